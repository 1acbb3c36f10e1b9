"""check_prefix and its command: errors of routes and of generation, verdicts, exit status."""

import argparse
from types import SimpleNamespace

import pytest
import torch
from architectures import tiny
from peft import LoraConfig, get_peft_model
from small_models import build, watch
from transformers import AutoTokenizer

from calibrant.cli.check_prefix import add_options, run
from calibrant.errors import CalibrantError
from calibrant.policy import check_prefix


@pytest.mark.parametrize(
    ("dtype", "kind"), [(torch.float64, "mistral"), (torch.float32, "gemma3"), (torch.bfloat16, "qwen2")]
)
def test_check_of_a_sound_model(dtype, kind):
    model = build(kind, dtype=dtype).train()
    next(model.parameters()).grad = marker = torch.ones_like(next(model.parameters()))
    result = check_prefix(model, seed=1, temperature=0.7)
    assert result.equal and result.dtype == dtype
    assert [route.route for route in result.routes] == ["cached", "packed", "flat", "generation"]
    assert model.training and next(model.parameters()).grad is marker


def test_an_adapter_in_float32_on_a_base_in_half_precision_is_held_to_what_the_base_can():
    config = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(build("qwen2", dtype=torch.bfloat16), config)
    assert {weight.dtype for weight in model.parameters() if weight.requires_grad} == {torch.float32}
    result = check_prefix(model, seed=1)
    assert result.dtype == torch.bfloat16 and result.equal


@pytest.mark.parametrize("route", ["cached", "packed", "flat"])
@pytest.mark.parametrize("what", ["value", "gradient"])
def test_check_of_a_model_that_goes_wrong(route, what, monkeypatch):
    """Keys of the prompt lose their gradient, or are off by a little: both have to be seen."""
    model = build("qwen2", dtype=torch.float32)
    project = model.model.layers[0].self_attn.k_proj

    def spoil(module, args, out):
        rows = args[0].shape[0]
        if rows == (1 if route == "flat" else 3):
            return out.detach() if what == "gradient" else out * 1.01
        return out

    project.register_forward_hook(spoil)
    result = check_prefix(model)
    rows = {check.route: check for check in result.routes}
    broken = rows[route]
    assert rows["generation"].equal == (what == "gradient" or route != "flat")  # it reads prompts in one row too
    assert not result.equal and not broken.equal
    assert (broken.logp_error <= 1e-4) == (what == "gradient")
    assert broken.gradient_error > 1e-4


def test_check_needs_a_gradient_and_knows_refusals():
    with pytest.raises(CalibrantError, match="unfreeze"):
        check_prefix(build().requires_grad_(False))
    result = check_prefix(build("gpt2").train())  # with dropout, which the check switches off
    assert result.equal and "rotary" in result.routes[1].obstacle
    alone = check_prefix(build(rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}))
    assert not alone.equal


def test_check_keeps_special_tokens_out():
    model, seen = build(dtype=torch.float32), []
    watch(model, seen.append)
    check_prefix(model, SimpleNamespace(all_special_ids=[5, 6]))
    tokens = seen[0]["input_ids"][seen[0]["attention_mask"] == 1]
    assert not set(tokens.tolist()) & {5, 6} and len(set(tokens.tolist())) > 10


@pytest.mark.parametrize("kind", ["gemma3_text", "mixtral", "falcon_h1", "minimax", "mamba2"])
def test_check_of_architectures(kind, tmp_path, policy, capsys):
    """Attention with windows and mixtures of experts pass in each row; recurrent states are possible in none."""
    tiny(kind).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(policy).save_pretrained(tmp_path)
    assert command(str(tmp_path)) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[2:6]]
    assert [row[0] for row in rows] == ["cached", "packed", "flat", "generation"]
    shares = kind in ("gemma3_text", "mixtral")
    assert all(row[3] == "equal" if shares else row[3:5] == ["not", "possible:"] for row in rows)


def test_generation_that_is_not_transformers_own_is_not_possible():
    model = build()
    model.generate = lambda *_, **__: None
    assert "`generate` is not that of transformers" in check_prefix(model).routes[-1].obstacle
    model = build()
    model.generation_config.cache_implementation = "static"
    assert "more than plain sampling" in check_prefix(model).routes[-1].obstacle


def command(*arguments):
    parser = argparse.ArgumentParser()
    add_options(parser)
    return run(parser.parse_args(list(arguments)))


def test_command(capsys, monkeypatch):
    assert command("demo", "--seed", "3", "--temperature", "0.9") == 0
    said = capsys.readouterr().out
    assert "Qwen2ForCausalLM in float32" in said and said.count("equal") == 4
    from calibrant.policy import check

    monkeypatch.setitem(check.TOLERANCES, torch.float32, (0.0, 0.0))
    assert command("demo") == 1
    assert "DIFFERS" in capsys.readouterr().out
    with pytest.raises(CalibrantError, match="/nowhere"):
        command("/nowhere/at/all")
