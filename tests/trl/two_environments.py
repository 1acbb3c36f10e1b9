"""Run by torchrun in a test: one step with an environment that shows each rollout something else.

Usage: two_environments.py FOLDER
"""

import sys

import torch
from conftest import make_talking
from test_environments import Guessing, Playing, arguments, chats, length

from calibrant.demo import policy_path

torch.set_num_threads(1)


class Apart(Guessing):
    """Numbers that the processes do not share."""

    def reset(self, **_):
        return super().reset() + f" You are {torch.distributed.get_rank()}."


if __name__ == "__main__":
    model, tokenizer = make_talking(str(policy_path()))
    args = arguments(
        sys.argv[1], method="rd_only", max_steps=1, beta=0.0, shuffle_dataset=False, max_completion_length=400,
        per_device_train_batch_size=6,
    )  # fmt: skip
    trainer = Playing(model, [length], args, chats(), processing_class=tokenizer, environment_factory=Apart)
    trainer.train()
    trainer.accelerator.end_training()
