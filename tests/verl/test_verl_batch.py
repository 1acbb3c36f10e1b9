"""A batch of verl's queue as groups, and back, without verl."""

import pytest
import torch

from calibrant.errors import CalibrantError
from calibrant.verl.batch import field_names, first_values, layout_of, rollouts_of_batch, spread_out

NAN = torch.nan
TEXTS = {1: "one", 2: "two", 3: "three"}


def jagged(*rows):
    return torch.nested.as_nested_tensor([torch.tensor(row) for row in rows], layout=torch.jagged)


def decode(tokens):
    return " ".join(TEXTS[token] for token in tokens)


KEYS = ["b_0_0", "pad_0_0", "a_1_0", "a_0_0"]
TAGS = [{}, {"is_padding": True}, {}, {"is_padding": False}]
FIELDS = {
    "responses": jagged([1, 2], [1], [3, 1, 2], [2]),
    "response_mask": jagged([1, 1], [1], [1, 0, 1], [1]),
    "rm_scores": jagged([0.0, 2.0], [0.0], [0.0, 0.0, 1.0], [0.5]),
    "old_log_probs": jagged([-1.0, -3.0], [0.0], [-1.0, -9.0, -2.0], [-4.0]),
    "reward_model": [
        {"ground_truth": "x"},
        {"ground_truth": "x"},
        {"ground_truth": ["y", "z"]},
        {"ground_truth": ["y"]},
    ],
    "extra_fields": [{"reward_extra_info": {"acc": True}}, {}, {"reward_extra_info": {"acc": False}}, {}],
}


def test_rows_become_groups():
    layout = layout_of(KEYS, TAGS)
    read = rollouts_of_batch(FIELDS, layout, ["mean_logprob", "token_logprobs", "correct", "token_entropy"], decode)
    assert layout.rows.tolist() == [[0, -1], [3, 2]]
    assert read.completions == ["one two", "", "two", "three two"]  # what a tool returned is no text of the policy
    assert read.references == [["x"], ["x"], ["y"], ["y"]]
    torch.testing.assert_close(read.rewards, torch.tensor([[2.0, NAN], [0.5, 1.0]]), equal_nan=True)
    mean = torch.tensor([[-2.0, NAN], [-4.0, -1.5]])
    torch.testing.assert_close(read.given["mean_logprob"], mean, equal_nan=True)
    tokens = torch.tensor([[[-1.0, -3.0, NAN], [NAN] * 3], [[-4.0, NAN, NAN], [-1.0, NAN, -2.0]]])
    torch.testing.assert_close(read.given["token_logprobs"], tokens, equal_nan=True)
    assert set(read.given) == {"where", "mean_logprob", "token_logprobs"}


def test_only_fields_of_named_inputs_are_fetched():
    assert field_names(["rewards", "where"], None) == ["responses", "response_mask", "rm_scores"]
    named = ["mean_logprob", "token_logprobs", "token_entropy", "correct"]
    assert field_names(named, "acc")[3:] == ["entropy", "old_log_probs", "reward_model", "extra_fields"]


def test_the_reward_that_is_named():
    layout = layout_of(["a_0_0", "a_1_0"], [{}, {}])
    fields = {name: FIELDS[name] for name in FIELDS} | {
        "extra_fields": [{"reward_extra_info": {"acc": x}} for x in (1, 0)]
    }
    fields |= {name: jagged([1], [2]) for name in ("responses", "response_mask")} | {"rm_scores": jagged([9.0], [9.0])}
    assert rollouts_of_batch(fields, layout, [], decode, "acc").rewards.tolist() == [[1.0, 0.0]]
    with pytest.raises(CalibrantError, match=r"returned no 'ac' \(did you mean 'acc'\?\).*it returned acc"):
        rollouts_of_batch(fields, layout, [], decode, "ac")


def test_a_ground_truth_that_is_no_text_is_refused():
    fields = FIELDS | {"reward_model": [{"ground_truth": {"target": ["x"]}}] * 4}
    with pytest.raises(CalibrantError, match="ground_truth is a dictionary of target"):
        rollouts_of_batch(fields, layout_of(KEYS, TAGS), ["correct"], decode)
    numbers = FIELDS | {"reward_model": [{"ground_truth": 7}, None, {}, {"ground_truth": None}]}
    assert rollouts_of_batch(numbers, layout_of(KEYS, TAGS), ["correct"], decode).references == [
        ["7"],
        ["7"],
        None,
        None,
    ]


def test_advantages_go_back_to_tokens():
    layout = layout_of(KEYS, TAGS)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 0, 1], [1, 0, 0]]).bool()
    before = torch.tensor([[5.0, 5, 0], [7, 0, 0], [6, 0, 6], [4, 0, 0]])
    assert first_values(before, mask).tolist() == [5, 7, 6, 4]
    after = spread_out(torch.tensor([[1.0, 0.0], [3.0, 2.0]]), layout, mask, before)
    assert after.tolist() == [[1, 1, 0], [7, 0, 0], [2, 0, 2], [3, 0, 0]]
    per_token = torch.arange(12.0).view(2, 2, 3)
    assert spread_out(per_token, layout, mask, before).tolist() == [[0, 1, 0], [7, 0, 0], [9, 0, 11], [6, 0, 0]]


def test_the_first_value_skips_tokens_out_of_the_mask():
    values, mask = torch.tensor([[0.0, 3.0], [2.0, 0.0]]), torch.tensor([[False, True], [False, False]])
    assert first_values(values, mask).tolist() == [3.0, 0.0]


def test_advantages_per_token_need_one_output_per_rollout():
    layout = layout_of(["a_0_0", "a_0_1"], [{}, {}])
    with pytest.raises(CalibrantError, match="split over several outputs"):
        spread_out(torch.zeros(1, 1, 2), layout, torch.ones(2, 2).bool(), torch.zeros(2, 2))
