"""Micro-batches cut along groups, and rows without an advantage left out: the same gradient with less work."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_shared_training import EXACT, parameters
from test_trainer import CalibratedGRPOConfig, arguments, f1_reward, losses, some_slow, train
from trl import GRPOConfig, GRPOTrainer

from calibrant.trl import shared_prompts
from calibrant.trl.batches import along_groups, contributing, in_order
from calibrant.trl.passes import Pass, merged


def micro_batches(rows, size):
    """Rows of (prompt, length) as micro-batches; `number` tells them apart."""
    prompts = torch.tensor([[prompt, 7] for prompt, _ in rows])
    masks = torch.tensor([[1] * length + [0] * (5 - length) for _, length in rows])
    tensors = {
        "prompt_ids": prompts,
        "prompt_mask": torch.ones_like(prompts),
        "completion_mask": masks,
        "number": torch.arange(len(rows)),
    }
    parts = [{name: x[i : i + size] for name, x in tensors.items()} for i in range(0, len(rows), size)]
    names = [str(i) for i in range(len(rows))]
    for i, part in enumerate(parts):
        part |= {"names": names[i * size : (i + 1) * size], "num_items_in_batch": torch.tensor(9), "nothing": None}
    return parts


ROWS = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 5)), min_size=12, max_size=12)


@given(ROWS, st.sampled_from([1, 2, 3, 4]), st.sampled_from([1, 2, 3]))
def test_each_window_keeps_its_rows_and_groups_stand_together(rows, size, window):
    before = micro_batches(rows, size)
    after = along_groups(before, window)
    assert [len(part["number"]) for part in after] == [len(part["number"]) for part in before]
    for start in range(0, len(after), window):
        old, new = (torch.cat([part["number"] for part in parts[start : start + window]]) for parts in (before, after))
        assert sorted(new.tolist()) == sorted(old.tolist())
        seen = [rows[i][0] for i in new.tolist()]
        assert len([1 for a, b in pairwise(seen) if a != b]) == len(set(seen)) - 1
        longest = [max(length for prompt, length in (rows[i] for i in old.tolist()) if prompt == p) for p in seen]
        assert longest == sorted(longest)
    for part in after:
        assert part["names"] == [str(i) for i in part["number"].tolist()]
        assert [rows[i][1] for i in part["number"].tolist()] == part["completion_mask"].sum(1).tolist()
        assert part["num_items_in_batch"] == 9 and part["nothing"] is None and part["window"] == window
    for start in range(0, len(after), window):
        again = [part["number"].tolist() for part in in_order(after[start : start + window])]
        assert again == [part["number"].tolist() for part in before[start : start + window]]


def test_rows_that_contribute():
    lengths = torch.tensor([4, 2, 3])
    second = [False, True, False]
    assert contributing(torch.tensor([0.0, -1e-30, 0.0]), lengths).tolist() == second
    assert contributing(torch.tensor([[0.0, 0.0], [0.0, 0.5], [0.0, 0.0]]), lengths).tolist() == second
    assert contributing(torch.tensor([0.0, -0.0, 0.0]), lengths).tolist() == second
    wrong = contributing(torch.tensor([torch.nan, 0.0, 0.0]), lengths)
    assert wrong.tolist() == [True, False, False]  # what is wrong is not hidden


def test_a_merged_pass_keeps_the_gradient_of_some_rows_alone():
    some = torch.tensor([[2.0, 3.0]], requires_grad=True)
    others = torch.ones(2, 2, requires_grad=True)
    both = merged(torch.tensor([False, True, False]), Pass(some, 2 * some), Pass(others, others))
    assert both.logps.tolist() == [[1.0, 1.0], [2.0, 3.0], [1.0, 1.0]]
    assert both.entropies.tolist() == [[1.0, 1.0], [4.0, 6.0], [1.0, 1.0]]
    (both.logps + both.entropies).sum().backward()
    assert some.grad.tolist() == [[3.0, 3.0]] and others.grad is None


TWO_PASSES = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4}
KINDS = ("dapo", "grpo", "dr_grpo", "cispo", "sapo", "vespo", "bnpo")


ORDERED = [
    {"gradient_accumulation_steps": 2, "steps_per_generation": 4, "per_device_train_batch_size": 4, "max_steps": 4},
    {"loss_type": "dr_grpo", **TWO_PASSES},
    {"gradient_accumulation_steps": 4, "steps_per_generation": 2, "per_device_train_batch_size": 4},
    {"loss_type": "dapo", **TWO_PASSES},
    {"loss_type": "grpo", **TWO_PASSES},
]


@pytest.mark.parametrize("changes", some_slow(ORDERED, often=2))
def test_groups_in_order_give_trls_parameters(policy, questions, tmp_path, changes):
    changes = EXACT | changes
    theirs = train(policy, questions, arguments(tmp_path / "a", GRPOConfig, **changes), kind=GRPOTrainer)
    ours = train(policy, questions, arguments(tmp_path / "b", method="grpo", **changes))
    assert losses(ours) == pytest.approx(losses(theirs), abs=2e-5)
    assert (parameters(ours) - parameters(theirs)).abs().max() < 1e-5


def test_micro_batches_hold_whole_groups(policy, questions, tmp_path, monkeypatch):
    """Without order a micro-batch of four rows would hold rows of several of the four groups."""
    prompts = []
    original = shared_prompts.logps_in_chunks

    def counting(model, prompt_ids, *tensors, **options):
        if torch.is_grad_enabled():
            prompts.append(len(prompt_ids.unique(dim=0)))
        return original(model, prompt_ids, *tensors, **options)

    monkeypatch.setattr(shared_prompts, "logps_in_chunks", counting)
    changes = {"gradient_accumulation_steps": 4, "per_device_train_batch_size": 4, "beta": 0.01}
    train(policy, questions, arguments(tmp_path, method="grpo", **changes))
    assert prompts == [1] * 8


def half_constant(completions, references, **others):
    """No spread in the reward of every second question."""
    scores = f1_reward(completions, references, **others)
    return [1.0 if len(gold[0]) % 2 else score for score, gold in zip(scores, references, strict=True)]


def constant(completions, **_):
    """No spread anywhere."""
    return [1.0] * len(completions)


LEFT_OUT = [("vespo", half_constant), ("dapo", constant), ("bnpo", half_constant)]
LEFT_OUT += [(kind, half_constant) for kind in KINDS[:5]]


@pytest.mark.parametrize(("kind", "reward"), some_slow(LEFT_OUT, often=3))
def test_rows_without_advantage_are_left_out_of_the_same_gradient(policy, questions, tmp_path, kind, reward):
    changes = EXACT | {"beta": 0.0, "loss_type": kind, "per_device_train_batch_size": 16, "max_steps": 3}
    theirs = train(policy, questions, arguments(tmp_path / "a", GRPOConfig, **changes), reward, kind=GRPOTrainer)
    ours = train(policy, questions, arguments(tmp_path / "b", method="grpo", **changes), reward)
    assert losses(ours) == pytest.approx(losses(theirs), abs=2e-5)
    assert (parameters(ours) - parameters(theirs)).abs().max() < 1e-5
    shares = [row["batch/left_out"] for row in ours.state.log_history if "batch/left_out" in row]
    assert (len(shares) == 3 and 0 < max(shares) < 1) if kind != "bnpo" else not shares


def test_rows_left_out_have_no_backward_pass(policy, questions, tmp_path, monkeypatch):
    rows = {True: [], False: []}
    original = shared_prompts.logps_in_chunks

    def counting(model, prompt_ids, *tensors, **options):
        rows[torch.is_grad_enabled()].append(len(prompt_ids))
        return original(model, prompt_ids, *tensors, **options)

    monkeypatch.setattr(shared_prompts, "logps_in_chunks", counting)
    args = arguments(
        tmp_path, method="gcpo_bot", beta=0.0, per_device_train_batch_size=16, num_iterations=2, max_steps=2
    )
    trainer = train(policy, questions, args, half_constant)
    shares = [row["batch/left_out"] for row in trainer.state.log_history if "batch/left_out" in row]
    assert rows[True] == [round(16 * (1 - share)) for share in shares]
    assert all(4 <= count < 16 for count in rows[True])
    assert rows[False] == [16, *(16 - count for count in rows[True])]  # the first pass is of the old policy


@pytest.mark.parametrize("changes", [{"beta": 0.01}, {"beta": 0.0, "share_prefix": False}])
def test_what_has_other_terms_or_is_trls_own_leaves_nothing_out(policy, questions, tmp_path, changes):
    args = arguments(tmp_path, CalibratedGRPOConfig, method="gcpo_bot", max_steps=1, **changes)
    trainer = train(policy, questions, args, half_constant)
    assert not any("batch/left_out" in row for row in trainer.state.log_history)
