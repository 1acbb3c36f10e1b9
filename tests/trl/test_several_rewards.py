"""Several reward functions, summed and normalised in TRL's two orders; without strength a method is TRL's GRPO."""

import functools

import numpy as np
import pytest
import torch
from test_trainer import TASK, arguments, f1_reward, losses, same_bits, train, vowels
from trl import GRPOConfig, GRPOTrainer

from calibrant.advantages import total_rewards
from calibrant.groups import has_spread

ORDERS = ("sum_then_normalize", "normalize_then_sum")
NO_STRENGTH = {
    "rd_only": {"alpha": 0.0},
    "gcpo_cd": {"alpha": 0.0},
    "gcpo_bot": {"alpha": 0.0},
    "gcpo_grad": {"alpha": 0.0},
    "grpo_se": {"alpha": 0.0},
    "q_hawkeye": {"alpha": 0.0},
    "gradient_snr": {"alpha": 0.0},
    "eg_spo": {"phi": 1.0},
    "r2vpo": {"penalty": 0.0},
    "edge_grpo": {"low": 1.0, "high": 1.0},
    "egpo": {"low": 1.0, "high": 1.0, "nsr": False, "reading": "symmetric"},
}


def first(completions, **_):
    """0, 1, 0, 1 in two groups, equal rewards in the third."""
    return [0.0, 1.0] * 4 + [0.3] * 4


def second(completions, **_):
    """The opposite of `first` at half the size: the sum of both has no spread with weights 1 and 2."""
    return [0.5, 0.0] * 4 + [0.7] * 4


def partial(completions, **_):
    """Unknown for some rollouts, for all of the first group, and for one whole row together with `gaps`."""
    return [None] * 4 + [None, 0.2, 0.9, 0.4] + [None, 0.1, 0.1, 0.1]


def gaps(completions, **_):
    return [0.0, None, 1.0, 1.0, None, 0.6, None, 0.6, None, 0.3, 0.3, 0.3]


REWARDS = {
    "opposite": ([first, second], [1.0, 2.0]),
    "unknown": ([partial, gaps, second], [1.0, 0.5, 2.0]),
    "all_unknown_rows": ([partial, gaps], [1.0, 3.0]),
    "single": ([gaps], [2.0]),
}


def advantages(policy, questions, folder, kind, order, rewards, **changes):
    functions, weights = REWARDS[rewards]
    common = dict(
        max_steps=1, per_device_train_batch_size=12, max_completion_length=3, reward_weights=weights,
        multi_objective_aggregation=order, beta=0.0,
    )  # fmt: skip
    trained = train(policy, questions, arguments(folder, kind, **common, **changes), functions, **_trainer(kind))
    return np.array(list(trained._logs["advantages"])).reshape(3, 4)


def _trainer(kind):
    return {"kind": GRPOTrainer} if kind is GRPOConfig else {"is_correct": TASK.correct}


@pytest.fixture(scope="module")
def trl_advantages(policy, questions, tmp_path_factory):
    @functools.cache
    def of(order, rewards):
        return advantages(policy, questions, tmp_path_factory.mktemp("trl"), GRPOConfig, order, rewards)

    return of


def per_function(rewards):
    functions, weights = REWARDS[rewards]
    values = [[torch.nan if x is None else x for x in function([])] for function in functions]
    return torch.tensor(values).T.reshape(3, 4, -1), torch.tensor(weights)


def informative(order, rewards):
    """Groups in which what TRL normalises has spread, by the definition: any function, or the sum of all."""
    values, weights = per_function(rewards)
    if order == "normalize_then_sum":
        return has_spread(values.movedim(-1, 0)).any(0).numpy()
    return has_spread((values * weights).nansum(-1).where(~values.isnan().all(-1), torch.nan)).numpy()


CASES = [(order, rewards) for order in ORDERS for rewards in REWARDS]
EACH = [(*CASES[i % len(CASES)], method) for i, method in enumerate(NO_STRENGTH)]


@pytest.mark.parametrize(("order", "rewards", "method"), [*EACH, *((*case, "rd_only") for case in CASES)])
def test_without_strength_the_advantages_are_those_of_trl(
    policy, questions, tmp_path, trl_advantages, order, rewards, method
):
    from calibrant.trl import CalibratedGRPOConfig

    options = {"method": method, "method_options": NO_STRENGTH[method]}
    ours = advantages(policy, questions, tmp_path, CalibratedGRPOConfig, order, rewards, **options)
    theirs, spread = trl_advantages(order, rewards), informative(order, rewards)
    np.testing.assert_array_equal(ours[spread], theirs[spread])
    assert (ours[~spread] == 0).all()


def test_the_smallest_example(trl_advantages):
    found = trl_advantages("normalize_then_sum", "opposite")
    assert np.abs(found[:2]).min() > 0.5  # a signal where the weighted sum of the rewards has none
    assert not informative("sum_then_normalize", "opposite").any()
    assert informative("normalize_then_sum", "opposite").tolist() == [True, True, False]


def test_what_cancels_after_it_was_normalised_has_no_spread():
    rewards = torch.tensor([[[0.1, 0.9], [0.7, 0.3], [0.4, 0.6]]])
    total = total_rewards(rewards, torch.ones(2), "normalize_then_sum")
    assert not has_spread(total).any() and total.dtype == torch.float32


def test_rewards_without_spread_are_zero_before_they_are_summed():
    rewards = torch.tensor([[[0.3, 0.0], [0.3, 1.0], [0.3, 1.0], [0.3, 0.0]]])
    alone = total_rewards(rewards[..., 1:], torch.ones(1), "normalize_then_sum")
    assert torch.equal(total_rewards(rewards, torch.ones(2), "normalize_then_sum"), alone)


@pytest.mark.parametrize("order", ORDERS)
def test_grpo_is_trl_to_the_bit_in_both_orders(policy, questions, tmp_path, order):
    changes = dict(max_steps=1, multi_objective_aggregation=order, reward_weights=[1.0, 2.0])
    rewards = [vowels, f1_reward]
    args = arguments(tmp_path / "a", GRPOConfig, **changes)
    theirs = train(policy, questions, args, rewards, kind=GRPOTrainer)
    args = arguments(tmp_path / "b", method="grpo", share_prefix=False, **changes)
    ours = train(policy, questions, args, rewards)
    assert losses(ours) == losses(theirs) and same_bits(ours, theirs)
