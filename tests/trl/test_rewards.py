"""Reward functions of every kind: what they may return, what is said of the rest, and under which names they stand."""

import asyncio
import functools
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
import torch
from test_trainer import arguments, train
from transformers import Qwen2Config, Qwen2ForSequenceClassification

from calibrant.errors import CalibrantError
from calibrant.tasks.checked_rewards import checked
from calibrant.trl import CalibratedGRPOTrainer


def returning(value, count=2):
    return checked(lambda completions: value, "f")(completions=["a"] * count)


def test_numbers_pass_and_what_is_no_finite_number_is_unscorable():
    values = [1, 0.5, None, float("nan"), float("inf"), True]
    assert returning(values, 6) == [1.0, 0.5, None, None, None, 1.0]


@pytest.mark.parametrize(
    "returned",
    [
        [0.5, 2], (0.5, 2.0), np.array([0.5, 2.0]), [np.float32(0.5), np.int64(2)], torch.tensor([0.5, 2.0]),
        torch.tensor([[0.5], [2.0]]), torch.tensor([0.5, 2.0], dtype=torch.bfloat16, requires_grad=True),
        [torch.tensor(0.5), torch.tensor([2.0])], pd.Series([0.5, 2.0], index=[7, 9]), (x for x in [0.5, 2.0]),
        {"a": 0.5, "b": 2.0}.values(), [Fraction(1, 2), 2],
    ],
)  # fmt: skip
def test_all_that_holds_one_number_per_completion_is_taken(returned):
    assert returning(returned) == [0.5, 2.0]


@pytest.mark.parametrize(
    "returned",
    [
        [1.0], [1.0, "x"], [1.0, "0.5"], [1.0, b"1"], [1.0, [1.0]], None, 3.0, [1.0, 2.0, 3.0], np.float64(0.5), "ab",
        torch.tensor(0.5), np.array(0.5), {0: 1.0, 1: 2.0}, {1.0, 2.0}, [1.0, 1j], [1.0, 10**400], torch.zeros(2, 2),
        torch.zeros(2, device="meta"), [1.0, torch.zeros(2)], [1.0, {"reward": 1.0}],
    ],
)  # fmt: skip
def test_anything_else_is_refused_with_the_name_of_the_function(returned):
    with pytest.raises(CalibrantError, match=r"^the reward function 'f' returned .*return one") as caught:
        returning(returned)
    assert "\n" not in str(caught.value)


def test_an_exception_keeps_its_cause_also_of_a_generator():
    def broken(completions):
        yield completions[5]

    with pytest.raises(
        CalibrantError, match="'broken' raised IndexError: list index out of range for completion 0; return"
    ) as caught:
        checked(broken)(completions=["a"])
    assert isinstance(caught.value.__cause__, IndexError)


def test_an_asynchronous_function_stays_asynchronous():
    async def later(completions):
        return [1 / (len(c) - 1) for c in completions]

    assert asyncio.run(checked(later)(completions=["abc"])) == [0.5]
    with pytest.raises(CalibrantError, match="'later' raised ZeroDivisionError"):
        asyncio.run(checked(later)(completions=["a"]))


def scaled(completions, scale, **_):
    return [scale * (len(text) % 3) for text in completions]


async def later(completions, scale, **_):
    return [scale * (len(text) % 2) for text in completions]


class Length:
    def __call__(self, completions, **_):
        return [len(text) % 5 for text in completions]


class LaterLength:
    async def __call__(self, completions, **_):
        return [len(text) % 7 for text in completions]


def reward_model(tokenizer):
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, num_labels=1, name_or_path="org/reward-model",
    )  # fmt: skip
    return Qwen2ForSequenceClassification(config)


def test_names_and_functions_are_the_users_own(policy, questions, tmp_path):
    """Partials, callable objects and models keep the names that TRL gives them; task_reward finds each."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(policy, padding_side="left")
    partial = functools.partial(functools.partial(scaled), scale=0.5)
    given = [partial, functools.partial(later, scale=0.1), Length(), LaterLength(), reward_model(tokenizer)]
    own = list(given)
    args = arguments(tmp_path, method="rd_only", max_steps=1, task_reward="LaterLength", reward_range=[0.0, 6.0])
    classes = [None, None, None, None, tokenizer]
    trainer = train(policy, questions, args, given, reward_processing_classes=classes)
    names = ["scaled", "later", "Length", "LaterLength", "reward-model"]
    assert trainer.reward_func_names == names
    assert all(a is b for a, b in zip(trainer.reward_funcs, own, strict=True)) and given == own
    assert {f"rewards/{name}/mean" for name in names} <= set(trainer.state.log_history[0])


def test_the_users_functions_are_back_after_a_failure(policy, questions, tmp_path):
    def broken(**_):
        raise OSError("no judge")

    partial = functools.partial(broken, x=1)
    trainer = CalibratedGRPOTrainer(policy, partial, arguments(tmp_path, method="grpo"), questions)
    with pytest.raises(CalibrantError, match="the reward function 'broken' raised OSError: no judge"):
        trainer.train()
    assert trainer.reward_funcs == [partial]


def test_the_row_that_raised_is_named(policy, questions, tmp_path):
    faulty = []

    def broken(completions, prompt_id, **_):
        faulty.extend([] if faulty else [prompt_id[-1]])
        return [1 / (name != faulty[0]) for name in prompt_id]

    with pytest.raises(CalibrantError, match=r"ZeroDivisionError: division by zero for completion \d+ of") as caught:
        train(policy, questions, arguments(tmp_path, method="grpo", max_steps=1), broken)
    assert f"of the row '{faulty[0]}'; return one number" in str(caught.value)


def test_a_function_without_keywords_is_told_to_take_them():
    with pytest.raises(CalibrantError, match=r"unexpected keyword argument 'x'.*; add \*\*kwargs to its parameters"):
        checked(lambda completions: [1.0], "f")(completions=["a"], x=1)
