"""Truncation, types, models and bad input of entailment."""

import random

import pytest
import torch
from builders_entail import ANSWERS, LABELS, save, some_groups, tokenizer
from transformers import (
    BertForSequenceClassification,
    BertModel,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from calibrant import hub
from calibrant.errors import CalibrantError
from calibrant.signals.clusters import greedy_clusters
from calibrant.text.entail import EntailmentJudge


@pytest.mark.parametrize("sides", [("long", "short"), ("short", "long"), ("long", "long")])
def test_long_texts_are_cut_as_the_tokenizer_cuts_pairs(judge, sides):
    count = 400 if sides == ("long", "long") else 5000  # two long ones take the tokenizer itself a minute
    long = random.Random(0).choices(" ".join(ANSWERS).split(), k=count)
    premise, hypothesis = (" ".join(long) if side == "long" else "a large city" for side in sides)
    if sides == ("long", "long"):
        hypothesis = " ".join(reversed(long))  # another one, with as many tokens
    assert judge.max_length == 64
    rows = []
    judge.model.register_forward_pre_hook(lambda _, __, k: rows.append(k["input_ids"]), with_kwargs=True)
    p = judge.probabilities([premise], [hypothesis])
    encoded = judge.tokenizer(premise, hypothesis, truncation="longest_first", max_length=64, return_tensors="pt")
    assert torch.equal(rows[0], encoded["input_ids"])
    torch.testing.assert_close(p, judge.model(**encoded).logits.softmax(-1).detach())


def test_texts_cut_on_the_left(judge):
    judge.tokenizer.truncation_side = "left"
    text = "Paris " * 100 + "the euro"
    p = judge.probabilities([text], ["Lyon"])
    encoded = judge.tokenizer(text, "Lyon", truncation="longest_first", max_length=64, return_tensors="pt")
    torch.testing.assert_close(p, judge.model(**encoded).logits.softmax(-1).detach())


def test_long_texts_take_no_long_time(judge):
    """Of 6 long texts, 30 pairs: each is tokenised once, not in each pair, where the tokenizer is slow to cut it."""
    texts = [f"{i} " + "the capital is not Paris " * 200 for i in range(6)]
    seen = []
    tokenize = judge.tokenizer

    class Counting:
        def __getattr__(self, name):
            return getattr(tokenize, name)

        def __call__(self, *texts, **options):
            seen.extend(len(text) for side in texts for text in side)
            return tokenize(*texts, **options)

    judge.tokenizer = Counting()
    judge.matrix([texts])
    assert sum(length > 1000 for length in seen) == 6


def test_max_length(folder):
    judge = EntailmentJudge(folder, device="cpu", max_length=12)
    runs = []
    judge.model.register_forward_pre_hook(lambda _, __, kwargs: runs.extend(kwargs["pair_runs"].runs), with_kwargs=True)
    judge.probabilities(["Paris " * 30, "Paris"], ["Lyon " * 30, "Lyon"])
    assert runs == [(12, 1), (5, 1)]
    for wrong in (0, 4, 65, 12.0, True):
        with pytest.raises(CalibrantError, match="max_length"):
            EntailmentJudge(folder, device="cpu", max_length=wrong)


def test_positions_that_begin_after_the_padding(tmp_path):
    """RoBERTa numbers positions from its padding index + 1 on: of 40 positions, 39 are left."""
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    options = {"vocab_size": tokenizer(tmp_path), "max_position_embeddings": 40, "pad_token_id": 0, "id2label": LABELS}
    RobertaForSequenceClassification(RobertaConfig(**small, **options, type_vocab_size=2)).save_pretrained(tmp_path)
    judge = EntailmentJudge(str(tmp_path), device="cpu")
    assert judge.max_length == 39
    assert judge.probabilities(["Paris " * 100], ["Lyon " * 100]).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, "bfloat16"])
def test_bfloat16(folder, judge, dtype):
    half = EntailmentJudge(folder, device="cpu", dtype=dtype)
    assert half.model.dtype == torch.bfloat16
    p = half.matrix([ANSWERS])
    assert p.dtype == torch.float32
    assert 1e-4 < (p - judge.matrix([ANSWERS])).abs().mean() < 0.05
    assert (p.sum(-1) - 1).abs().max() < 1e-5  # the probabilities themselves are computed in float32
    assert (half.clusters([ANSWERS]) >= 0).all()


def test_float32_whatever_was_saved(tmp_path, judge):
    save(tmp_path)
    network = BertForSequenceClassification.from_pretrained(tmp_path)
    network.to(torch.float16).save_pretrained(tmp_path)
    other = EntailmentJudge(str(tmp_path), device="cpu")
    assert other.model.dtype == torch.float32
    assert not other.model.training
    torch.testing.assert_close(other.matrix([ANSWERS]), judge.matrix([ANSWERS]), atol=0.02, rtol=0)


def test_it_says_where_it_is(judge, folder):
    assert judge.device == torch.device("cpu")
    assert repr(judge) == f"EntailmentJudge({folder!r}, device='cpu', dtype=torch.float32)"


def test_nothing_to_judge(judge):
    assert judge.probabilities([], []).shape == (0, 3)
    assert judge.matrix([]).shape == (0, 0, 0, 3)
    assert judge.clusters([]).shape == (0, 0)
    assert judge.clusters([["Paris"], ["Lyon"]]).tolist() == [[0], [0]]
    assert judge.pairs_judged == 0


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(CalibrantError, match=r"cannot load the entailment model .*give a folder"):
        EntailmentJudge(str(tmp_path))


def test_a_broken_folder(tmp_path):
    save(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(CalibrantError, match="cannot load the entailment model"):
        EntailmentJudge(str(tmp_path))


def test_weights_that_could_run_code_are_refused(tmp_path):
    save(tmp_path)
    weights = BertForSequenceClassification.from_pretrained(tmp_path).state_dict()
    (tmp_path / "model.safetensors").unlink()
    torch.save(weights, tmp_path / "pytorch_model.bin")
    with pytest.raises(CalibrantError, match="safetensors"):
        EntailmentJudge(str(tmp_path))


def test_a_model_that_was_not_trained_to_classify(tmp_path):
    save(tmp_path)
    BertModel.from_pretrained(tmp_path).save_pretrained(tmp_path)
    with pytest.raises(CalibrantError, match=r"not trained to classify.*classifier"):
        EntailmentJudge(str(tmp_path))


def test_no_hub(monkeypatch):
    monkeypatch.setattr(hub, "reachable", lambda: False)
    with pytest.raises(CalibrantError, match="hub cannot be reached; give a folder"):
        EntailmentJudge("nobody/roberta-large-mnli")


@pytest.mark.parametrize("options", [{"device": "nowhere"}, {"dtype": "float33"}])
def test_a_device_or_type_that_is_none(folder, options):
    with pytest.raises(CalibrantError, match=next(iter(options.values()))):
        EntailmentJudge(folder, **options)


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"batch_size": 2.0}, {"cache_size": -1}])
def test_sizes_that_are_none(folder, options):
    with pytest.raises(CalibrantError, match=next(iter(options))):
        EntailmentJudge(folder, **options)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ((["Paris", "Lyon"],), "flat list"),
        (("Paris",), "flat list"),
        (([["a", "b"], ["a"]],), r"groups of \[1, 2\]"),
        (([["a", None]],), "NoneType"),
        (([["a", "b"]], "greed"), "did you mean 'greedy'"),
        (([["a", "b"]], ("strict", "never")), "assignment"),
        (([["a", "b"]], "greedy", 1.5), "threshold"),
        (([["a", "b"]], "greedy", 0.35, ["q", "r"]), "one question per group, 1, got 2"),
        (([["a", "b"]], "greedy", 0.35, "q"), "one question per group"),
        (([["a", "b"]], "greedy", 0.35, None, torch.ones(1, 3, dtype=torch.bool)), "G is 2 in answers and 3 in where"),
        (([["a", "b"]], "greedy", 0.35, None, torch.ones(1, 2)), "boolean"),
    ],
)
def test_what_is_no_groups_is_refused(judge, arguments, problem):
    with pytest.raises(CalibrantError, match=problem):
        judge.clusters(*arguments)


def test_premises_without_hypotheses(judge):
    with pytest.raises(CalibrantError, match="2 premises but 1 hypotheses"):
        judge.probabilities(["a", "b"], ["a"])


def test_greedy_is_the_rule_of_greedy_clusters(judge):
    groups = some_groups(50, 8, seed=8)
    assert torch.equal(judge.clusters(groups), greedy_clusters(judge.matrix(groups)[..., 2]))
