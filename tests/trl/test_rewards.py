import asyncio

import pytest
import torch

from calibrant.errors import CalibrantError
from calibrant.trl.rewards import check_rewards, checked


def test_numbers_pass_and_what_is_no_finite_number_is_unscorable():
    rewards = check_rewards("f", [1, 0.5, None, float("nan"), float("inf"), True], 6)
    assert rewards == [1.0, 0.5, None, None, None, 1.0]


def test_a_tensor_is_taken():
    assert check_rewards("f", torch.tensor([0.5, 2.0]), 2) == [0.5, 2.0]


@pytest.mark.parametrize("returned", [[1.0], [1.0, "x"], [1.0, [1.0]], None, 3.0, [1.0, 2.0, 3.0]])
def test_anything_else_is_refused(returned):
    with pytest.raises(CalibrantError, match="'f' returned"):
        check_rewards("f", returned, 2)


def test_an_exception_keeps_its_cause():
    def broken(completions):
        return completions[5]

    with pytest.raises(CalibrantError, match="'broken' raised IndexError") as caught:
        checked(broken)(completions=["a"])
    assert isinstance(caught.value.__cause__, IndexError)


def test_an_asynchronous_function_stays_asynchronous():
    async def later(completions):
        return [len(c) for c in completions]

    assert asyncio.run(checked(later)(completions=["abc"])) == [3.0]
    assert checked(later).__name__ == "later"


def test_a_callable_object_gets_a_name():
    class Reward:
        def __call__(self, completions):
            return [0.0] * len(completions)

    assert checked(Reward()).__name__ == "Reward"
