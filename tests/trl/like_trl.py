"""Configurations of the kinds that TRL tests its trainer with, each as changes of one small run."""

import functools
from unittest.mock import patch

import torch
from conftest import make_talking
from datasets import Dataset
from image_models import image_model
from peft import LoraConfig, get_peft_model
from PIL import Image
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Qwen2Config,
    Qwen2ForSequenceClassification,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    TrainerCallback,
)

from calibrant.demo import policy_path

POLICY = str(policy_path())
TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% if shout %}!{% endif %}{% endfor %}"


def length(completions, **_):
    """How long a completion is; the same for all in every second group."""
    return [len(str(text)) % 7 / 7 for text in completions]


def letters(completions, **_):
    return [len(set(str(text))) / 26 for text in completions]


async def waiting(completions, **_):
    return letters(completions)


def unknown(completions, **_):
    return [None] * len(completions)


def sometimes(completions, **_):
    return [None if i % 3 == 0 else value for i, value in enumerate(letters(completions))]


def of_column(completions, subject, trainer_state, **_):
    return [
        len(text) * (1 + trainer_state.global_step) / len(name) / 50
        for text, name in zip(completions, subject, strict=True)
    ]


def logging(completions, log_extra, log_metric, **_):
    log_extra("letters", letters(completions))
    log_metric("mean_letters", sum(letters(completions)))
    return letters(completions)


def tokenizer():
    found = AutoTokenizer.from_pretrained(POLICY, padding_side="left")
    found.chat_template = TEMPLATE
    return found


def loaded():
    return AutoModelForCausalLM.from_pretrained(POLICY).float()


def judge(seed=0):
    """A reward model with random weights."""
    torch.manual_seed(seed)
    sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    config = Qwen2Config(vocab_size=1024, num_labels=1, pad_token_id=0, num_key_value_heads=1, **sizes)
    return Qwen2ForSequenceClassification(config).float()


def mixture(loss=0.1):
    torch.manual_seed(0)
    sizes = dict(hidden_size=16, intermediate_size=16, moe_intermediate_size=8, shared_expert_intermediate_size=8)
    layers = dict(num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, num_experts=4, vocab_size=1024)
    options = dict(eos_token_id=1, pad_token_id=0, num_experts_per_tok=2, router_aux_loss_coef=loss)
    return Qwen2MoeForCausalLM(Qwen2MoeConfig(**options, **sizes, **layers))


def untied():
    torch.manual_seed(0)
    model = loaded()
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    return model


def scaled(name, value):
    """The policy with another setting of its generation configuration."""
    model = loaded()
    setattr(model.generation_config, name, value)
    return model


def adapted(**options):
    torch.manual_seed(0)
    return get_peft_model(loaded(), adapter(**options))


def adapter(**options):
    return LoraConfig(r=2, target_modules=["q_proj", "v_proj"], **options)


TEXTS = ["Paris is the capital of", "The euro is", "Once upon a time there", "Two and three"]


def texts(rows=8, **columns):
    return Dataset.from_list(
        [{"prompt": f"{TEXTS[i % 4]} {i}", "subject": "abc"[: i % 3 + 1]} | columns for i in range(rows)]
    )


def chats(rows=8):
    return texts(rows).map(lambda row: {"prompt": [{"role": "user", "content": row["prompt"]}]})


def pictures(count=1, every=1):
    rows = chats().to_list()
    for i, row in enumerate(rows):
        shown = [Image.new("RGB", (28, 28), colour) for colour in ["red", "blue", "green"][i % 3 :][:1] * count]
        row["images"] = shown if i % every == 0 else []
    return Dataset.from_list(rows)


def multiply(a: int, b: int) -> int:
    """Multiplies two numbers.

    Args:
        a: The first number.
        b: The second number.
    """
    return a * b


async def multiply_later(a: int, b: int) -> int:
    """Multiplies two numbers.

    Args:
        a: The first number.
        b: The second number.
    """
    return a * b


CALL = '<tool_call>\n{"name": "%s", "arguments": {"a": 3, "b": 4}}\n</tool_call><|im_end|>'


@functools.cache
def talker():
    return make_talking(POLICY)[1]


def calling(name, turns, input_ids, **_):
    """Stands for `model.generate`: calls a tool until it was called `turns` times, in every second row."""
    words, said = talker(), []
    for i, ids in enumerate(input_ids):
        called = words.decode(ids).count("<tool_response>\n")
        said.append(words("Done.<|im_end|>" if called >= turns or i % 2 else CALL % name)["input_ids"])
    width = max(map(len, said))
    padded = [ids + [words.pad_token_id] * (width - len(ids)) for ids in said]
    return torch.cat([input_ids, torch.tensor(padded)], dim=1)


def talks(**options):
    return lambda: dict(zip(("model", "processing_class"), make_talking(POLICY), strict=True)) | options


class Board:
    """An environment that shows the same to all."""

    def reset(self, **_):
        self.moves = 0
        return " The board is empty."

    def move(self, to: int) -> str:
        """Moves.

        Args:
            to: The square.
        """
        self.moves += 1
        return f"moved to {to}"

    def get_reward(self):
        return float(self.moves)


def fixed(input_ids, **_):
    """Completions of different lengths, of which one has no end."""
    own = [[300 + i + j for j in range(i % 5 + 1)] + [1] * (i % 5 + 1 < 8) for i in range(len(input_ids))]
    own[0] = list(range(310, 318))
    padded = [(ids + [0] * 8)[:8] for ids in own]
    return torch.cat([input_ids, torch.tensor(padded)], dim=1)


def with_mock(target, function):
    """While it trains, an attribute of a class is replaced."""
    return lambda trainer: patch(target, side_effect=function)


def on(part, name, function):
    """While it trains, an attribute of the trainer or of its model is replaced by `function(trainer, original)`."""

    def patched(trainer):
        owner = functools.reduce(getattr, part, trainer)
        return patch.object(owner, name, function(trainer, getattr(owner, name)))

    return patched


def rollout(prompts, trainer):
    ids = [trainer.processing_class(prompt)["input_ids"] for prompt in prompts]
    own = [[300 + i, 301 + i, 1][: 2 + i % 2] for i in range(len(prompts))]
    return {
        "prompt_ids": ids, "completion_ids": own, "logprobs": [[-1.0] * len(x) for x in own],
        "env_mask": [[1] * (len(x) - 1) + [i % 2] for i, x in enumerate(own)],
        "subjects": [str(i) for i in range(len(prompts))],
    }  # fmt: skip


def of_field(completions, subjects, **_):
    return [float(name) % 3 for name in subjects]


class Reader(TrainerCallback):
    """Reads what the trainer keeps for its log."""

    def on_step_end(self, args, state, control, **_):
        kept = self.trainer._metrics["train"]
        assert len(kept["entropy"]) == args.gradient_accumulation_steps and len(kept["reward"]) == 1
        kept["read"].append(sum(kept["entropy"]))


def reading(trainer):
    reader = Reader()
    reader.trainer = trainer
    trainer.add_callback(reader)
    return patch.dict("os.environ")


def sees(family):
    """Makes an image model and its processor."""
    return lambda: dict(zip(("model", "processing_class"), image_model(family, POLICY), strict=True))


def reads():
    return {"processing_class": tokenizer()}


def turn(prompt_ids, *_):
    return [[300 + i] * (i % 3 + 1) + [1] for i in range(len(prompt_ids))], None


class Engine:
    """Stands for vLLM: fixed completions with log-probabilities that are nearly those of the policy."""

    def __init__(self, **_):
        self.synced = 0

    def sync_weights(self):
        self.synced += 1

    def generate(self, prompts, num_generations, **_):
        assert self.synced and num_generations == 4
        own = turn(prompts)[0]
        return prompts, own, [[[-5.0 - i / 9] for i, _ in enumerate(ids)] for ids in own], None
