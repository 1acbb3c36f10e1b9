"""Models that share no prompts: every command works for them by the plain path, and check-prefix says so."""

import json
import warnings

import pytest
import torch
from architectures import tiny
from small_models import build, random_batch
from transformers import AutoTokenizer, DynamicCache, cache_utils
from transformers.cache_utils import DynamicLayer
from transformers.models.minimax.modeling_minimax import MiniMaxCache

from calibrant.cli.main import main
from calibrant.policy import cached, logps_in_chunks, plain_logps, reads_head, shared_prefix_logps
from calibrant.policy.cached import repeatable
from calibrant.policy.prefill import shared_prefill
from calibrant.policy.prompts import Tokens
from calibrant.policy.routes import PASSES
from calibrant.policy.verify import record_of

KINDS = ["mamba2", "jamba", "qwen3_next"]
SAMPLING = ["--max-completion-length", "4"]
LONG = ((0,) * 4, (60,), (3,) * 4, (60, 3))


@pytest.fixture
def folder(request, tmp_path, policy):
    tiny(request.param).save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(policy).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("folder", KINDS, indirect=True)
def test_evaluate_and_check_prefix(folder, tmp_path, capsys):
    options = ["--prompts", "2", "--samples", "4", "--out", str(tmp_path / "judged"), *SAMPLING]
    with pytest.warns(UserWarning, match="does not share prompts, the plain path is taken"):
        assert main(["evaluate", str(folder), *options]) == 0
    assert (tmp_path / "judged" / "evaluation.json").exists()
    capsys.readouterr()
    assert main(["check-prefix", str(folder)]) == 0
    said = capsys.readouterr().out
    assert said.count("not possible") == 4 and "This model cannot share prompts" in said


@pytest.mark.parametrize("folder", KINDS, indirect=True)
def test_analyze(folder, tmp_path):
    options = ["--queries", "1", "--rollouts", "4", "--out", str(tmp_path / "analysis"), *SAMPLING]
    with pytest.warns(UserWarning, match="does not share prompts, the plain path is taken"):
        assert main(["analyze", "--model", str(folder), *options]) == 0
    line = json.loads((tmp_path / "analysis" / "groups.jsonl").read_text().splitlines()[0])
    assert line["truth"]["score_variance"] > 0 and line["signals"]["token_entropy"] > 0


@pytest.mark.parametrize("folder", KINDS, indirect=True)
def test_train(folder, tmp_path):
    options = ["--steps", "1", "--prompts-per-step", "2", "--rollouts", "4", "--eval-prompts", "2", *SAMPLING]
    options += ["--eval-samples", "2", "--method", "gcpo_grad", "--out", str(tmp_path / "run")]
    with pytest.warns(UserWarning, match="does not share prompts, the plain path is taken"):
        assert main(["train", "--model", str(folder), *options]) == 0
    assert (tmp_path / "run" / "report.html").exists()


def test_only_layers_known_to_be_safe_are_repeated():
    def of(*layers):
        cache = DynamicCache()
        cache.layers = [layer() for layer in layers]
        return cache

    assert repeatable(of(DynamicLayer, DynamicLayer))
    for name in ("DynamicIndexedLayer", "LinearAttentionLayer", "LinearAttentionAndFullAttentionLayer"):
        if other := getattr(cache_utils, name, None):  # older versions have none of them
            assert not repeatable(of(DynamicLayer, other))
    assert not repeatable(MiniMaxCache()) and not repeatable(None)


def spoiled(model, what):
    """Keys of three rows that come before the completions: wrong, or without their gradient."""

    def hook(_module, _arguments, keys):
        if keys.shape[1] in (60, 32):  # 32 where a comparison cuts them
            return keys.detach() if what == "gradient" else keys * 1.5
        return keys

    model.model.layers[0].self_attn.k_proj.register_forward_hook(hook)
    return model


@pytest.mark.parametrize("what", ["values", "gradient"])
def test_a_route_that_differs_is_not_taken(what, monkeypatch):
    model, batch = spoiled(build("qwen2", dtype=torch.float32), what), random_batch(*LONG)
    for name in ("packed.packed_refusal", "flat.flat_refusal"):
        monkeypatch.setattr(f"calibrant.policy.{name}", lambda _: "is not packed here")
    expected = plain_logps(model, *batch).logps
    with pytest.warns(UserWarning, match="Qwen2ForCausalLM does not share prompts.*differ from those of the plain"):
        found = logps_in_chunks(model, *batch, rows_per_chunk=4).logps
    assert torch.equal(found, expected) and list(record_of(model).failed) == ["cached"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        logps_in_chunks(model, *batch, rows_per_chunk=4)


def test_padding_is_compared_though_the_first_batch_has_none():
    """Whisper counts padding in positions, and `generate` does not: that shows in padded rows alone."""
    model = tiny("whisper")
    ids = torch.arange(2, 42).repeat(4, 1)
    differs = "does not share prompts.*logits after a shared prompt differ"
    with pytest.warns(UserWarning, match=differs), shared_prefill(model):
        model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=True, max_new_tokens=2)


@pytest.mark.parametrize("failure", [RuntimeError, TypeError, NotImplementedError, torch.OutOfMemoryError])
def test_any_failure_falls_back(failure, monkeypatch):
    def raises(*_):
        raise failure("no")

    model, batch = build(dtype=torch.float32), random_batch(*LONG)
    monkeypatch.setattr(cached, "cached_states", raises)
    for name in ("packed", "flat"):
        monkeypatch.setitem(PASSES, name, raises)
    with pytest.warns(UserWarning, match=f"does not share prompts.*{failure.__name__}: no"):
        found = logps_in_chunks(model, *batch, rows_per_chunk=4).logps
    assert torch.equal(found, plain_logps(model, *batch).logps)
    with pytest.raises(failure):
        shared_prefix_logps(model, *batch)


def test_a_head_that_cannot_be_read_leaves_the_whole_logits():
    class Doubling(type(build())):
        def forward(self, *arguments, **keywords):
            output = super().forward(*arguments, **keywords)
            output.logits = 2 * output.logits
            return output

    model, batch = Doubling(build().config).eval(), Tokens(*random_batch(*LONG))
    with pytest.warns(UserWarning, match="changes its logits"):
        found = logps_in_chunks(model, *batch, rows_per_chunk=3, temperature=2.0, entropies=True, hidden_states=True)
    expected = plain_logps(super_of(model), *batch, entropies=True)
    torch.testing.assert_close(found.logps, expected.logps, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.entropies, expected.entropies, atol=1e-5, rtol=0)
    assert found.hidden_states is None and not reads_head(model)


def super_of(model):
    """The same weights without the doubling: at temperature 2 the same distribution."""
    plain = type(build())(model.config).eval()
    plain.load_state_dict(model.state_dict())
    return plain
