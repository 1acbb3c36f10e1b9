"""Entailment matrices, questions and labels."""

import itertools
import warnings

import pytest
import torch
from builders_entail import ANSWERS, LABELS, save

from calibrant.errors import CalibrantError
from calibrant.signals import kernel_language_entropy
from calibrant.signals.clusters import RULES
from calibrant.text.entail import EntailmentJudge


def test_the_matrix(judge):
    p = judge.matrix([["Paris", " \n", "Lyon", "Paris"]])
    assert p.shape == (1, 4, 4, 3)
    assert p.dtype == torch.float32
    kept = [0, 2, 3]
    assert p[0, kept][:, kept].isfinite().all()
    assert p[0, 1].isnan().all()
    assert p[0, :, 1].isnan().all()
    for i, j in [(0, 0), (2, 2), (3, 3), (0, 3), (3, 0)]:
        assert p[0, i, j].tolist() == [0, 0, 1]
    torch.testing.assert_close(p[0, kept][:, kept].sum(-1), torch.ones(3, 3))
    assert torch.equal(p[0, 0, 2], judge.probabilities(["Paris"], ["Lyon"])[0])
    assert not torch.allclose(p[0, 0, 2], p[0, 2, 0])


def test_the_matrix_is_what_kernel_language_entropy_reads(judge):
    groups = [["Paris", "Paris", "Paris"], ["", " ", "Paris"]]
    apart = kernel_language_entropy(judge.matrix(groups), rescale=True)
    torch.testing.assert_close(apart, torch.tensor([0.0, 1.0]))


def test_empty_answers_are_alone_under_every_rule(judge):
    for rule in RULES:
        assert judge.clusters([["", "Paris", "", " \t", "Paris"]], rule, 0.0).tolist() == [[0, 1, 2, 3, 1]]
    assert judge.pairs_judged == 0


def test_equal_answers_may_part_as_the_rule_has_it(judge, monkeypatch):
    """b joins a with 0.4; c opens a cluster and entails b with 0.9, so that the second b goes there; a stays with a."""
    table = {("a", "b"): 0.4, ("a", "c"): 0.1, ("c", "b"): 0.9}
    asked = []

    def ask_model(pairs):
        asked.extend(pairs)
        return [(0.0, 1 - table[pair], table[pair]) for pair in pairs]

    monkeypatch.setattr(judge, "_run_model", ask_model)
    assert judge.clusters([["a", "b", "c", "b", "c", "a"]]).tolist() == [[0, 0, 1, 1, 1, 0]]
    assert sorted(asked) == sorted(table)


def test_questions_come_before_answers(judge):
    groups = [["Paris", "Lyon", ""]]
    question = "the capital is"
    p = judge.matrix(groups, [question])
    assert torch.equal(p[0, 0, 1], judge.probabilities([f"{question} Paris"], [f"{question} Lyon"])[0])
    assert not torch.allclose(p[0, 0, 1], judge.matrix(groups)[0, 0, 1])
    assert p[0, 2].isnan().all()
    threshold = (p[0, 0, 1, 2].item() + judge.matrix(groups)[0, 0, 1, 2].item()) / 2
    plain = judge.clusters(groups, threshold=threshold).tolist()
    assert judge.clusters(groups, threshold=threshold, questions=[question]).tolist() != plain


@pytest.mark.parametrize("order", itertools.permutations(range(3)))
def test_labels_in_any_order(tmp_path, judge, order):
    names = {k: LABELS[index].upper() if k else LABELS[index].title() for k, index in enumerate(order)}
    other = EntailmentJudge(save(tmp_path, names, list(order)), device="cpu")
    pair = ANSWERS[:4], ANSWERS[4:8]
    torch.testing.assert_close(other.probabilities(*pair), judge.probabilities(*pair))


@pytest.mark.parametrize("names", [["entailment", "not_entailment"], ["non_entailment", "ENTAILMENT"]])
def test_two_labels(tmp_path, names):
    judge = EntailmentJudge(save(tmp_path, dict(enumerate(names))), device="cpu")
    premises, hypotheses = ANSWERS[:4], ANSWERS[4:8]
    p = judge.probabilities(premises, hypotheses)
    encoded = judge.tokenizer(premises, hypotheses, padding=True, return_tensors="pt")
    expected = judge.model(**encoded).logits.softmax(-1)[:, [n.lower() == "entailment" for n in names]]
    torch.testing.assert_close(p[:, 2:], expected.detach())
    torch.testing.assert_close(p[:, 1], 1 - p[:, 2])
    assert (p[:, 0] == 0).all()


def test_labels_without_names_are_those_of_roberta(tmp_path, judge):
    with pytest.warns(UserWarning, match="index 2 is entailment"):
        other = EntailmentJudge(save(tmp_path, {k: f"LABEL_{k}" for k in range(3)}), device="cpu")
    assert torch.equal(other.probabilities(["Paris"], ["Lyon"]), judge.probabilities(["Paris"], ["Lyon"]))


@pytest.mark.parametrize(
    ("names", "columns"),
    [(["neutral", "entails", "contradiction"], [2, 0, 1]), (["entailment", "unknown", "contradiction"], [2, 1, 0])],
)
def test_the_third_label_is_what_is_left(tmp_path, names, columns):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert EntailmentJudge(save(tmp_path, dict(enumerate(names))), device="cpu").columns == columns


@pytest.mark.parametrize(
    "names",
    [
        ["LABEL_0", "LABEL_1"],
        ["positive"],
        ["a", "b", "c", "entailment"],
        ["entailment", "yes", "no"],
        ["a", "b", "neutral"],
        ["a", "contradiction", "b"],
        ["neutral", "a", "b"],
    ],
)
def test_other_labels_are_refused(tmp_path, names):
    with pytest.raises(CalibrantError, match="not those of entailment"):
        EntailmentJudge(save(tmp_path, dict(enumerate(names))), device="cpu")
