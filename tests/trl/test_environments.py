"""Environments: groups are rows of the data set, whatever each rollout observes."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import Dataset
from test_trainer import arguments, train

from calibrant.errors import CalibrantError
from calibrant.methods import METHODS
from calibrant.rollouts import RolloutGroups, read_rollouts
from calibrant.score.methods import score
from calibrant.trl import CalibratedGRPOTrainer

NUMBERS = itertools.count()


class Guessing:
    """Another number at each reset."""

    def reset(self, **_):
        self.number = next(NUMBERS)
        return f" The board shows {self.number}."

    def guess(self, number: int) -> str:
        """Guesses the number.

        Args:
            number: The guess.
        """
        return "right" if number == self.number else "wrong"

    def get_reward(self):
        return float(self.number % 3 == 0)


class Still:
    """Adds nothing to the prompt."""

    def reset(self, **_):
        return None

    def look(self) -> str:
        """Looks around."""
        return "nothing"


class Playing(CalibratedGRPOTrainer):
    """A policy that uses the tool of the board, then answers."""

    def _generate_single_turn(self, prompt_ids, *_args, **_keywords):
        texts = [self.says(self._tokenizer.decode(ids)) for ids in prompt_ids]
        return [self._tokenizer(f"{text}<|im_end|>")["input_ids"] for text in texts], None

    @staticmethod
    def says(prompt):
        if "<tool_response>\n" in prompt or "The board shows" not in prompt:
            return "done" if len(prompt) % 2 else "I am done"
        return '<tool_call>\n{"name": "guess", "arguments": {"number": 3}}\n</tool_call>'


def length(completions, **_):
    return [len(c[0]["content"]) % 3 for c in completions]


def chats(count=4, **columns):
    prompts = [{"prompt": [{"role": "user", "content": f"Question {i}."}]} for i in range(count)]
    return Dataset.from_list(
        [row | {name: values[i] for name, values in columns.items()} for i, row in enumerate(prompts)]
    )


@pytest.mark.parametrize("method", ["grpo", "rd_only"])
def test_a_reset_that_differs_within_a_group(talking, tmp_path, method):
    model, tokenizer = talking()
    args = arguments(tmp_path, method=method, max_steps=1, max_completion_length=400, beta=0.0, shuffle_dataset=False)
    keywords = dict(kind=Playing, processing_class=tokenizer, environment_factory=Guessing)
    trainer = train(model, chats(), args, [length], **keywords)
    assert trainer.reward_func_names == ["length", "Guessing"]
    assert trainer.state.log_history[0]["tools/call_frequency"] == 1
    rows = read_rollouts(tmp_path / "_rollouts" / "step-000001.parquet")
    assert rows.prompt.tolist() == ["user: Question 0."] * 4 + ["user: Question 1."] * 4
    assert rows.observed_prompt.str.contains(r"Question \d\. The board shows \d+\.").all()
    assert rows.observed_prompt.nunique() == 8
    assert rows.groupby("prompt_id").size().tolist() == [4, 4]
    scored = score(RolloutGroups(rows), METHODS["rd_only"])
    assert scored.groups.rewards.shape == (2, 4)


def test_two_environments_of_which_one_differs(talking, tmp_path):
    model, tokenizer = talking()
    args = arguments(
        tmp_path, method="rd_only", max_steps=1, max_completion_length=400, beta=0.0, shuffle_dataset=False
    )
    factories = {"guessing": Guessing, "still": Still}
    keywords = dict(kind=Playing, processing_class=tokenizer, environment_factory=factories)
    train(model, chats(environment=["guessing", "still"] * 2), args, [length], **keywords)
    rows = read_rollouts(tmp_path / "_rollouts" / "step-000001.parquet")
    assert rows.prompt.tolist() == ["user: Question 0."] * 4 + ["user: Question 1."] * 4
    assert rows.observed_prompt[:4].nunique() == 4 and rows.observed_prompt[4:].nunique() == 1


def test_an_environment_that_owns_its_data(talking, tmp_path):
    """Every row of the data set is empty: groups get ids of their own."""
    model, tokenizer = talking()
    args = arguments(tmp_path, method="rd_only", max_steps=1, max_completion_length=400, beta=0.0)
    keywords = dict(kind=Playing, processing_class=tokenizer, environment_factory=Guessing)
    train(model, None, args, None, **keywords)
    rows = read_rollouts(tmp_path / "_rollouts" / "step-000001.parquet")
    assert (rows.prompt == "user: ").all()
    assert rows.groupby("prompt_id", sort=False).size().tolist() == [4, 4]


class Shuffled(Playing):
    def _generate_and_score_completions(self, inputs):
        return super()._generate_and_score_completions([*inputs[:3], *inputs[4:], inputs[3]])


@pytest.mark.parametrize("environment", [None, Guessing, Still])
def test_rows_out_of_order_are_shown(talking, tmp_path, environment):
    model, tokenizer = talking()
    args = arguments(tmp_path, method="grpo", max_steps=1, max_completion_length=400, beta=0.0, shuffle_dataset=False)
    keywords = dict(kind=Shuffled, processing_class=tokenizer, environment_factory=environment)
    said = r"broken group: row 3 of block 0 .* are A A A B with A = 'user: Question 0.', B = 'user: Question 1.'"
    with pytest.raises(CalibrantError, match=said):
        train(model, chats(), args, [length], **keywords)


@pytest.mark.parametrize(
    "columns", [{"prompt_id": [1, 2]}, {"references": ["a", "b"]}, {"environment": ["one", "other"]}]
)
def test_rows_with_one_prompt_are_told_apart_by_their_other_columns(talking, tmp_path, columns):
    model, tokenizer = talking()
    data = chats(1).select([0, 0])
    for name, values in columns.items():
        data = data.add_column(name, values)
    args = arguments(tmp_path, method="grpo", max_steps=1, beta=0.0, shuffle_dataset=False)
    with pytest.raises(CalibrantError, match=r"broken group: row 3 of block 0 .* are A A A B"):
        train(model, data, args, [length], kind=Shuffled, processing_class=tokenizer)


@pytest.mark.slow
def test_two_processes_see_the_groups_of_one(tmp_path):
    """Six rows per process and G = 4: the middle group straddles the processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    script = Path(__file__).with_name("two_environments.py")
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run(
        [*command, str(script), str(tmp_path)], capture_output=True, text=True, timeout=300, env=paths
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    rows = read_rollouts(tmp_path / "_rollouts" / "step-000001.parquet")
    assert rows.prompt.tolist() == [f"user: Question {i}." for i in range(3) for _ in range(4)]
    assert rows.observed_prompt.nunique() == 12
