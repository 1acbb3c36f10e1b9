"""The user's functions beside rewards: what they may return, and what is said of the rest."""

import numpy as np
import pytest
import torch
from test_trainer import arguments, train, vowels

from calibrant.errors import CalibrantError
from calibrant.methods import METHODS
from calibrant.rollouts import read_rollouts
from calibrant.trl.functions import (
    count_unextracted,
    extract,
    extractor,
    guarded_clusters,
    guarded_judge,
)

GOLD = [["x"], ["x"], ["x"]]


def one_at_a_time(values):
    remaining = iter(values)
    return guarded_judge(lambda answer, references: next(remaining), None)(["a", "b", "c"], GOLD)


TRUTHS = [
    [True, False, None], [np.bool_(True), np.bool_(False), None], [1, 0, float("nan")], [1.0, 0.0, None],
    [torch.tensor(True), torch.tensor(0), None], [np.float32(1), np.int64(0), np.float64("nan")],
]  # fmt: skip


@pytest.mark.parametrize("values", TRUTHS)
def test_verdicts_may_be_of_any_kind(values):
    assert one_at_a_time(values) == [True, False, None]
    assert guarded_judge(None, lambda *_: values)(["a", "b", "c"], GOLD) == [True, False, None]


@pytest.mark.parametrize("batch", [np.array, torch.tensor, tuple, iter])
def test_a_judge_may_return_any_batch(batch):
    assert guarded_judge(None, lambda *_: batch([True, False, True]))(["a"] * 3, GOLD) == [True, False, True]


@pytest.mark.parametrize("value", ["yes", 2, 0.5, [True], {"correct": True}, object(), torch.ones(2)])
def test_what_is_no_verdict_is_refused_with_function_and_row(value):
    with pytest.raises(
        CalibrantError, match=r"^the is_correct function '<lambda>' returned .* for completion 1; return"
    ):
        one_at_a_time([True, value, True])
    with pytest.raises(CalibrantError, match=r"^the judge 'f' returned .* for completion 1; return one verdict"):

        def f(answers, references):
            return [True, value, True]

        guarded_judge(None, f)(["a"] * 3, GOLD)


@pytest.mark.parametrize("returned", [[True], [True] * 4, None, True, "yes", {"a": True}, np.bool_(True)])
def test_a_judge_of_another_length_is_refused(returned):
    with pytest.raises(CalibrantError, match=r"^the judge '<lambda>' returned .*return one"):
        guarded_judge(None, lambda *_: returned)(["a"] * 3, GOLD)


def test_exceptions_name_the_function_and_the_row():
    def strict(answer, references):
        return references[answer == "b"] == answer

    with pytest.raises(CalibrantError, match=r"is_correct function 'strict' raised IndexError: .* for completion 1;"):
        guarded_judge(strict, None)(["a", "b"], GOLD[:2])
    with pytest.raises(CalibrantError, match="the judge '<lambda>' raised IndexError: list index out of range; return"):
        guarded_judge(None, lambda answers, references: references[1])(["b"], [["x"]])


def test_only_rows_with_references_are_judged():
    seen = []

    def judge(answers, references):
        seen.append((answers, references))
        return [True] * len(answers)

    judged = guarded_judge(None, judge)
    assert judged(["a", "b", "c"], [None, ["x"], []]) == [None, True, True]
    assert judged(["a"], [None]) == [None]
    assert seen == [(["b", "c"], [["x"], []])]


GROUPS = [["a", "b"], ["A", "c"]]


@pytest.mark.parametrize("returned", [[[0, 1], [0, 0]], np.array([[0, 1], [0, 0]]), torch.tensor([[0, 1], [0, 0]])])
def test_cluster_numbers_may_be_lists_or_arrays(returned):
    assert guarded_clusters(lambda _: returned, None)(GROUPS).tolist() == [[0, 1], [0, 0]]


@pytest.mark.parametrize(
    "returned", [[0, 1, 0, 0], [[0, 1]], [[0.0, 1.0], [0.0, 0.0]], None, "ab", [[0, 1], [0]], torch.tensor(0),
                 [["a"] * 2] * 2],
)  # fmt: skip
def test_clusters_of_another_shape_or_type_are_refused(returned):
    with pytest.raises(
        CalibrantError, match=r"^the cluster function '<lambda>' returned .* = \[2, 2\]; return integers"
    ):
        guarded_clusters(lambda _: returned, None)(GROUPS)


def test_cluster_and_keys_that_raise_are_named():
    with pytest.raises(CalibrantError, match=r"^the cluster function '<lambda>' raised KeyError: 'x'; return"):
        guarded_clusters(lambda _: {}["x"], None)(GROUPS)
    with pytest.raises(
        CalibrantError, match=r"^the answer_key function 'float' raised ValueError: .* for the answer 'a'"
    ):
        guarded_clusters(None, float)(GROUPS)


@pytest.mark.parametrize("key", [None, [], {}])
def test_an_answer_key_has_to_be_one(key):
    with pytest.raises(
        CalibrantError, match=r"^the answer_key function '<lambda>' returned .* for the answer 'A'; return"
    ):
        guarded_clusters(None, lambda text: key if text == "A" else text)(GROUPS)


@pytest.mark.parametrize("key", [str.lower, lambda text: (text.lower(), 1), lambda text: text == "b"])
def test_answer_keys_of_any_hashable_kind(key):
    assert guarded_clusters(None, key)([["a", "A", "b"]]).tolist() == [[0, 0, 1]]


def after_thinking(completion):
    return completion.split("</think>")[1]


@pytest.mark.parametrize("value", [None, ["a"], {}, object()])
def test_what_is_no_answer_is_empty_and_counted(value):
    found = [extract(extractor(lambda text: value if text == "b" else text), text) for text in "abc"]
    assert [x.answer for x in found] == ["a", "", "c"]
    assert count_unextracted(extractor(None), [x.problem for x in found]) == 1


def test_numbers_are_answers():
    assert extract(extractor(len), "abc") == ("3", None)


def test_an_extractor_that_fails_everywhere_is_an_error():
    guard = extractor(after_thinking)
    problems = [extract(guard, "no end").problem] * 2
    said = (
        "the extract_answer function 'after_thinking' raised IndexError: list index out of range, and failed on all 2"
    )
    with pytest.raises(CalibrantError, match=said):
        count_unextracted(guard, problems)
    assert count_unextracted(guard, problems[:1]) == 1


def test_each_completion_is_extracted_and_judged_once(policy, questions, tmp_path):
    """grpo_care reads the answers again, for their tokens; egpo the verdicts; the file both."""
    calls = {"extract": [], "judge": []}

    def extracting(completion):
        calls["extract"].append(completion)
        return completion.split()[0]

    def judging(answers, references):
        calls["judge"] += answers
        return [bool(answer) for answer in answers]

    args = arguments(tmp_path, method="test_functions.reading_all", max_steps=1)
    train(policy, questions, args, vowels, extract_answer=extracting, judge=judging)
    rows = read_rollouts(tmp_path / "_rollouts" / "step-000001.parquet")
    assert calls == {"extract": rows.completion.tolist(), "judge": rows.answer.tolist()}
    assert rows.correct.all() and rows.right.eq(1).all() and rows.confidence.gt(0).all()


def reading_all(rewards, answer_confidence, correct, clusters, where):
    scores = {"confidence": answer_confidence, "right": correct}
    return METHODS["grpo"](rewards, where)._replace(scores=scores)


def test_one_failing_extraction_is_an_empty_answer(policy, questions, tmp_path):
    seen = []

    def first_fails(completion):
        seen.append(completion)
        return completion.split("</think>")[1] if len(seen) == 1 else completion

    args = arguments(tmp_path, method="grpo", max_steps=1)
    trainer = train(policy, questions, args, vowels, extract_answer=first_fails)
    rows = read_rollouts(tmp_path / "_rollouts" / "step-000001.parquet")
    assert trainer.state.log_history[0]["batch/unextracted"] == 1
    assert rows.answer[0] == "" and (rows.answer[1:] == rows.completion[1:]).all()


@pytest.mark.parametrize(
    ("keywords", "said"),
    [
        (
            {"extract_answer": after_thinking},
            "extract_answer function 'after_thinking' raised IndexError: .* all 8 comp",
        ),
        (
            {"is_correct": lambda answer, references: "yes"},
            "is_correct function '<lambda>' returned 'yes' for completion 0",
        ),
        ({"judge": lambda answers, references: [True]}, "judge '<lambda>' returned 1 verdicts for 8 completions"),
        ({"answer_key": lambda answer: None}, "answer_key function '<lambda>' returned None for the answer"),
        ({"cluster": lambda groups: torch.zeros(8)}, r"cluster function '<lambda>' returned a tensor of shape \[8\]"),
    ],
)
def test_a_run_ends_with_one_sentence(policy, questions, tmp_path, keywords, said):
    args = arguments(tmp_path, method="test_functions.reading_clusters", max_steps=1)
    with pytest.raises(CalibrantError, match=said) as caught:
        train(policy, questions, args, vowels, **keywords)
    assert "\n" not in str(caught.value)


def reading_clusters(rewards, clusters, where):
    return METHODS["grpo"](rewards, where)
