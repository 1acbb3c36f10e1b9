"""Entailment clusters against one pair at a time; CALIBRANT_NLI=FOLDER adds the model in FOLDER."""

import itertools
import os
from itertools import pairwise

import pytest
import torch
from builders_entail import ANSWERS, LABELS, greedy, some_groups
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from calibrant.signals.clusters import RULES, entailment_clusters
from calibrant.text import entail
from calibrant.text.entail import EntailmentJudge


@pytest.fixture(scope="module", params=["made here", "CALIBRANT_NLI"])
def any_folder(request, folder):
    if request.param == "made here":
        return folder
    if request.param not in os.environ:
        pytest.skip("CALIBRANT_NLI names no folder")
    return os.environ[request.param]


def one_pair(folder):
    """What the network says of one pair alone: a function, and the list of the pairs that it was asked for."""
    words = AutoTokenizer.from_pretrained(folder)
    network = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    label = {name.lower(): index for index, name in network.config.id2label.items()}
    answers = {}

    @torch.no_grad()
    def ask(premise, hypothesis):
        if (premise, hypothesis) not in answers:
            encoded = words(premise, hypothesis, return_tensors="pt")
            p = network(**encoded).logits[0].softmax(-1)
            answers[premise, hypothesis] = [p[label[name]].item() for name in LABELS.values()]
        return answers[premise, hypothesis]

    return ask, answers


def related(a, b, ask, rule):
    if not (a.strip() and b.strip()):
        return False
    there, back = ((0, 0, 1) if x == y else ask(x, y) for x, y in [(a, b), (b, a)])
    labels = [max(range(3), key=lambda k, p=p: p[k]) for p in (there, back)]
    return labels == [2, 2] if rule == "strict" else 0 not in labels and labels != [1, 1]


def first_match(group, ask, rule):
    first, ids = [], []
    for answer in group:
        found = next((k for k, r in enumerate(first) if related(r, answer, ask, rule)), len(first))
        if found == len(first):
            first.append(answer)
        ids.append(found)
    return ids


def last_seed(group, ask, rule):
    ids, number = [None] * len(group), 0
    for i, seed in enumerate(group):
        if ids[i] is None:
            ids[i] = number
            for j in range(i + 1, len(group)):
                if related(seed, group[j], ask, rule):
                    ids[j] = number
            number += 1
    return ids


def components(group, ask, rule):
    ids, number = [None] * len(group), 0
    for i in range(len(group)):
        if ids[i] is not None:
            continue
        found = [i]
        while found:
            k = found.pop()
            ids[k] = number
            found += [j for j in range(len(group)) if ids[j] is None and related(group[k], group[j], ask, rule)]
        number += 1
    return ids


LOOPS = {"best": lambda group, ask, _: greedy(group, ask), "first": first_match, "last": last_seed}
LOOPS["components"] = components


def test_200_groups_are_one_pair_at_a_time(any_folder):
    groups = some_groups(200, 8)
    judge = EntailmentJudge(any_folder, device="cpu", batch_size=17)
    ask, answers = one_pair(any_folder)
    expected = [greedy(group, ask) for group in groups]
    assert judge.clusters(groups).tolist() == expected
    assert max(map(max, expected)) >= 4
    p = torch.tensor([row[2] for row in answers.values()])
    assert p.min() < 0.1
    assert p.max() > 0.8
    assert judge.pairs_judged <= len(answers)
    judged = judge.probabilities(*zip(*answers, strict=True))
    torch.testing.assert_close(judged, torch.tensor(list(answers.values())), atol=1e-5, rtol=0)


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_is_one_pair_at_a_time(any_folder, rule):
    groups = some_groups(60, 7, seed=1)
    judge = EntailmentJudge(any_folder, device="cpu")
    ask, _ = one_pair(any_folder)
    relation, assignment = RULES[rule]
    expected = [LOOPS[assignment](group, ask, relation) for group in groups]
    assert judge.clusters(groups, rule).tolist() == expected
    assert judge.clusters(groups, (relation, assignment)).tolist() == expected
    everything = EntailmentJudge(any_folder, device="cpu")
    everything.matrix(groups)
    assert judge.pairs_judged < everything.pairs_judged


def test_the_rules_differ(judge):
    groups = some_groups(60, 7, seed=1)
    results = [judge.clusters(groups, rule).tolist() for rule in RULES]
    assert all(a != b for a, b in itertools.combinations(results, 2))


@pytest.mark.parametrize("rule", RULES)
def test_clusters_are_those_of_the_matrix(judge, rule):
    groups = some_groups(100, 8, seed=2)
    where = torch.rand(100, 8, generator=torch.Generator().manual_seed(0)) > 0.2
    for questions in (None, [f"Which city, {i}?" for i in range(100)]):
        p = judge.matrix(groups, questions)
        for threshold in (0.0, 0.35, 0.9, 1.0):
            expected = entailment_clusters(p, rule, where, threshold=threshold)
            assert torch.equal(judge.clusters(groups, rule, threshold, questions, where), expected)


def test_only_the_pairs_needed_are_asked_each_once_and_many_at_a_time(folder, monkeypatch):
    groups = some_groups(64, 8, seed=4)
    judge = EntailmentJudge(folder, device="cpu", batch_size=4096)
    calls, ask_model = [], judge._run_model
    monkeypatch.setattr(judge, "_run_model", lambda pairs: calls.append(list(pairs)) or ask_model(pairs))
    judge.clusters(groups)
    asked = [pair for call in calls for pair in call]
    ask, _ = one_pair(folder)
    needed = set()
    for group in groups:
        for j, answer in enumerate(group):
            ids = greedy(group[:j], ask)
            first = [group[ids.index(k)] for k in range(max(ids, default=-1) + 1)]
            if answer.strip() and answer not in first:
                needed |= {(member, answer) for member in first if member.strip()}
    assert len(asked) == len(set(asked)) == judge.pairs_judged
    assert set(asked) == needed
    assert len(calls) <= 8


def count_forwards(judge):
    rows = []
    judge.model.classifier.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    return rows


def test_judged_once_and_kept(judge):
    rows = count_forwards(judge)
    first = judge.matrix([["Paris", "Lyon", "Paris", ""], ["Lyon", "Paris", "Lyon", "Lyon"]])
    assert rows == [2]
    assert torch.equal(judge.matrix([["Paris", "Lyon", "Paris", ""]]), first[:1]) or first.isnan().any()
    judge.clusters([["Lyon", "Paris", "Lyon"]])
    assert judge.probabilities(["Paris"] * 5, ["Lyon"] * 5).unique(dim=0).shape == (1, 3)
    assert rows == [2]
    judge.probabilities(["Paris"], ["the euro"])
    assert rows == [2, 1]
    assert judge.pairs_judged == 3


def test_the_cache_is_bounded_and_drops_what_was_not_used_for_longest(folder):
    judge = EntailmentJudge(folder, device="cpu", cache_size=2)
    rows = count_forwards(judge)
    for other in ("Lyon", "the euro", "Lyon", "about 2 million", "Lyon"):  # the euro goes, Lyon was used since
        judge.probabilities(["Paris"], [other])
    assert rows == [1, 1, 1]
    judge.probabilities(["Paris"], ["the euro"])
    assert rows == [1, 1, 1, 1]


@pytest.mark.parametrize("cache_size", [0, 1, 5])
def test_a_small_cache_changes_no_result_and_asks_nothing_twice_in_a_call(folder, judge, cache_size):
    groups = some_groups(30, 8, seed=5)
    small = EntailmentJudge(folder, device="cpu", cache_size=cache_size)
    assert torch.equal(small.clusters(groups), judge.clusters(groups))
    assert small.pairs_judged == judge.pairs_judged
    torch.testing.assert_close(small.matrix(groups), judge.matrix(groups), atol=1e-5, rtol=0, equal_nan=True)


def test_without_a_cache_a_call_does_not_depend_on_what_was_before(folder):
    judge = EntailmentJudge(folder, device="cpu", cache_size=0, batch_size=5)
    groups = some_groups(10, 6, seed=6)
    first = judge.matrix(groups)
    judge.matrix(some_groups(3, 6, seed=7))
    assert torch.equal(judge.matrix(groups).nan_to_num(-1.0), first.nan_to_num(-1.0))


@pytest.mark.parametrize("padding", [None, 0, 32])
def test_batches_are_sorted_by_tokens(folder, monkeypatch, padding):
    judge = EntailmentJudge(folder, device="cpu", batch_size=20)
    expected = judge.matrix([ANSWERS])
    monkeypatch.setattr(entail, "CPU_PADDING", padding)
    other = EntailmentJudge(folder, device="cpu", batch_size=20)
    other.flat = False
    widths = []
    hook = other.model.register_forward_pre_hook(
        lambda _, __, kwargs: widths.append(kwargs["attention_mask"].sum(1).tolist()), with_kwargs=True
    )
    torch.testing.assert_close(other.matrix([ANSWERS]), expected, atol=1e-5, rtol=0)
    hook.remove()  # judges share the model
    flat = [width for batch in widths for width in batch]
    assert flat == sorted(flat, reverse=True)
    assert flat[0] > flat[-1] + 10
    assert len(flat) == 210
    assert max(map(len, widths)) == 20
    padded = [batch[0] * len(batch) - sum(batch) for batch in widths]
    if padding is None:
        assert [len(batch) for batch in widths] == [20] * 10 + [10]
        assert max(padded) > 32
    else:
        assert max(padded) <= padding
        steps = zip(pairwise(widths), padded, strict=False)
        assert all(len(batch) == 20 or held + batch[0] - after[0] > padding for (batch, after), held in steps)
