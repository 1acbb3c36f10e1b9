"""Pairs in one row against each pair in a row of its own."""

import pytest
import torch
from builders_entail import ANSWERS, LABELS, tokenizer
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    CamembertConfig,
    DebertaV2Config,
    ElectraConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
    XLMRobertaConfig,
)

from calibrant.text.entail import EntailmentJudge
from calibrant.text.flat_pairs import can_be_flat, flat_logits

FLAT = [BertConfig, RobertaConfig, XLMRobertaConfig, CamembertConfig, ElectraConfig]
PAIRS = [(a, b) for a in ANSWERS[:6] for b in ANSWERS[2:9]]


def network(kind, folder, **options):
    """A model with random weights, large enough for logits that differ, and its tokenizer."""
    torch.manual_seed(1)
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
    sizes |= {"vocab_size": tokenizer(folder), "max_position_embeddings": 64, "initializer_range": 0.2}
    sizes |= {"type_vocab_size": 2, "pad_token_id": 0, "id2label": LABELS}
    model = AutoModelForSequenceClassification.from_config(kind(**sizes | options)).eval()
    return model, PreTrainedTokenizerFast.from_pretrained(folder)


@torch.no_grad()
def one_by_one(model, words, types=True):
    return torch.cat([model(**words(*pair, return_token_type_ids=types, return_tensors="pt")).logits for pair in PAIRS])


@torch.no_grad()
@pytest.mark.parametrize("types", [True, False])
@pytest.mark.parametrize("kind", FLAT)
def test_logits_are_those_of_each_pair_alone(kind, types, tmp_path):
    model, words = network(kind, tmp_path)
    assert can_be_flat(model)
    expected = one_by_one(model, words, types)
    assert expected.std(0).min() > 0.01
    logits = flat_logits(model, words(*zip(*PAIRS, strict=True), return_token_type_ids=types))
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_model_computes_as_before_after_a_flat_pass(tmp_path):
    model, words = network(BertConfig, tmp_path)
    before = one_by_one(model, words)
    flat_logits(model, words(*zip(*PAIRS, strict=True)))
    assert torch.equal(one_by_one(model, words), before)


@pytest.mark.parametrize("kind, options", [(DebertaV2Config, {}), (BertConfig, {"attn_implementation": "eager"})])
def test_other_models_are_padded(kind, options, tmp_path):
    model, words = network(kind, tmp_path, **options)
    assert not can_be_flat(model)
    model.save_pretrained(tmp_path)
    if not options:
        judge = EntailmentJudge(str(tmp_path), device="cpu")
        assert not judge.flat
        with torch.no_grad():
            expected = one_by_one(model, words, "token_type_ids" in judge.tokenizer("a")).softmax(-1)
        p = judge.probabilities(*zip(*PAIRS, strict=True))
        differ = torch.tensor([a != b for a, b in PAIRS])
        torch.testing.assert_close(p[differ], expected[differ], atol=1e-5, rtol=0)


def test_a_class_of_a_checkpoint_is_padded(tmp_path):
    model, _ = network(BertConfig, tmp_path)
    model.__class__ = type("BertForSequenceClassification", (type(model),), {"__module__": "transformers_modules.x"})
    assert not can_be_flat(model)
