"""Arithmetic"""

import random
import re
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from solutions import noisy_solution, solution

from calibrant.errors import CalibrantError
from calibrant.tasks import problems
from calibrant.tasks.arithmetic import TASK as ARITHMETIC

# arithmetic


@pytest.mark.parametrize("split", ARITHMETIC.splits)
def test_arithmetic_rows(split):
    load = ARITHMETIC.load
    rows = load(split, 300, 1)
    assert rows == load(split, 300, 1)
    assert rows[:50] == load(split, 50, 1)
    assert {row["prompt"] for row in rows} != {row["prompt"] for row in load(split, 300, 2)}
    assert len({row["prompt"] for row in rows}) == len({row["prompt_id"] for row in rows}) == 300
    assert all(row["prompt"].endswith("\nSolution:") and len(row["references"]) == 1 for row in rows)
    assert all(row["prompt"].removesuffix("\nSolution:") in row["messages"][0]["content"] for row in rows)


def test_arithmetic_sizes():
    assert [len(ARITHMETIC.load(split, None, 0)) for split in ARITHMETIC.splits] == [4000, 500]
    assert ARITHMETIC.load("train", 0, 0) == []
    with pytest.raises(CalibrantError, match="arithmetic has no split 'dev'; it has train and test"):
        ARITHMETIC.load("dev", 1, 0)


def opening(row):
    return frozenset(re.findall(r"\d+", row["prompt"])[:2])


def test_no_training_problem_opens_like_a_test_problem():
    train = {opening(row) for row in ARITHMETIC.load("train", 4000, 0)}
    rows = ARITHMETIC.load("test", 3000, 0)  # enough that some would be met twice
    test = {opening(row) for row in rows}
    assert len({row["prompt"] for row in rows}) == 3000
    assert not train & test
    assert len(test) > 100


@settings(deadline=None)
@given(st.sampled_from(["train", "test"]), st.sampled_from(problems.STEPS), st.integers())
def test_a_solution_is_right_and_stays_small(split, steps, seed):
    rng = random.Random(seed)
    problem = problems.problem(split, steps, rng)
    written = solution(problem)
    lines = re.findall(r"(-?\d+) ([-+*/]) (\d+) = (-?\d+)\.", written)
    assert len(lines) == len(problem.steps) == steps
    assert all(problems.APPLY[op](int(a), int(b)) == int(c) for a, op, b, c in lines)
    assert all(int(a) == int(b) * int(c) for a, op, b, c in lines if op == "/")
    assert all(later[0] == line[3] for line, later in pairwise(lines))
    assert all(1 <= int(line[3]) <= problems.LARGEST for line in lines)
    assert all(sentence.sentence in problem.text and sentence.sentence in written for sentence in problem.steps)
    assert ARITHMETIC.extract(written) == str(problem.answer) == lines[-1][3]
    assert ARITHMETIC.reward(ARITHMETIC.extract(written), [str(problem.answer)]) == 2
    assert ARITHMETIC.key(written) == ARITHMETIC.key(str(problem.answer))
    noisy = noisy_solution(problem, rng, slip_rate=1.0)
    assert noisy != written
    assert re.fullmatch(r"(?:.*\. )?The answer is -?\d+\.", noisy)
    assert noisy_solution(problem, rng, slip_rate=0.0) == written


def test_noisy_solutions_are_right_about_half_the_time():
    rng = random.Random(0)
    share = []
    for steps in problems.STEPS:
        made = [problems.problem("train", steps, rng) for _ in range(1000)]
        right = [ARITHMETIC.extract(noisy_solution(p, rng)) == str(p.answer) for p in made]
        share.append(sum(right) / len(right))
        assert share[-1] == pytest.approx(0.75**steps, abs=0.05)
    assert 0.3 < sum(share) / 4 < 0.6


def test_slips_are_of_three_kinds():
    tom = problems.Problem(3, (problems.Step("Tom has 3 boxes of 4 pens.", "*", 4),), "How many?")
    rng = random.Random(0)
    made = Counter(noisy_solution(tom, rng, slip_rate=1.0) for _ in range(3000))
    skipped = made.pop("The answer is 3.")
    operation = sum(n for text, n in made.items() if " * " not in text)
    assert {text.split(". ")[1] for text in made} == {
        "3 * 4 = 2", "3 * 4 = 11", "3 * 4 = 13", "3 * 4 = 22", "3 + 4 = 7", "3 - 4 = -1",
    }  # fmt: skip
    assert skipped / 3000 == pytest.approx(1 / 3, abs=0.04)
    assert operation / 3000 == pytest.approx(1 / 3, abs=0.04)


def test_the_only_step_gone_wrong_never_ends_right():
    twice = problems.Problem(2, (problems.Step("Tom has 2 boxes of 2 pens.", "*", 2),), "How many?")  # 2 + 2 = 2 * 2
    rng = random.Random(0)
    assert all(ARITHMETIC.extract(noisy_solution(twice, rng, slip_rate=1.0)) != "4" for _ in range(300))


@pytest.mark.parametrize(
    ("completion", "answer", "right"),
    [
        ("3 * 4 = 12. The answer is 12.", "12", True),
        ("The answer is 11. No, the answer is 12", "12", True),
        ("3 * 4 = 12.", "", False),
        ("The answer is 12.0 pens.", "12.0", True),
        ("The answer is -12.", "-12", False),
        ("The answer is", "", False),
        ("", "", False),
    ],
)
def test_arithmetic_answers(completion, answer, right):
    assert ARITHMETIC.extract(completion) == answer
    assert ARITHMETIC.reward_batch([answer], [["12"]]) == [2.0 * right]
    assert ARITHMETIC.correct_batch([answer], [["12"]]) == [right]
