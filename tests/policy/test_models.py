"""Model folders that are wrong: one sentence, before anything is written."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from refusals import refused
from transformers import AutoModelForCausalLM, AutoTokenizer

from calibrant.errors import CalibrantError
from calibrant.policy.models import check_model, load_model, load_tokenizer

COMMANDS = {
    "train": ["train", "--no-evaluation", "--model"],
    "evaluate": ["evaluate", "--prompts", "1", "--samples", "1"],
    "analyze": ["analyze", "--queries", "1", "--rollouts", "2", "--model"],
    "check-prefix": ["check-prefix"],
}


@pytest.fixture
def model(policy, tmp_path) -> Path:
    return Path(shutil.copytree(policy, tmp_path / "model"))


def add_tokens(folder: Path, *tokens: str, **special: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(list(tokens))
    tokenizer.add_special_tokens(special)
    tokenizer.save_pretrained(folder)


def unset(folder: Path, *names: str) -> None:
    """Takes tokens with a meaning, e.g. `eos_token`, from a tokenizer."""
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | dict.fromkeys(names)))


def shrink(folder: Path, rows: int) -> None:
    """Gives a model a smaller embedding than its tokenizer needs."""
    policy = AutoModelForCausalLM.from_pretrained(folder)
    policy.resize_token_embeddings(rows)
    policy.save_pretrained(folder)


def refused_by_every_command(capsys, monkeypatch, folder: Path, said: str, *commands: str) -> None:
    monkeypatch.chdir(folder.parent)
    before = {path.name for path in folder.parent.iterdir()}
    for command in commands or COMMANDS:
        assert said in refused(capsys, *COMMANDS[command], str(folder)), command
    assert {path.name for path in folder.parent.iterdir()} == before


def test_a_tokenizer_larger_than_the_embedding(capsys, monkeypatch, model):
    shrink(model, 1000)
    refused_by_every_command(capsys, monkeypatch, model, "has tokens beyond the 1000 of the model's embedding")


@pytest.mark.parametrize("kind", ["eos_token", "pad_token", "bos_token"])
def test_a_special_token_without_an_embedding(model, kind):
    add_tokens(model, **{kind: "<new>"})
    for load in (load_model, check_model):
        with pytest.raises(CalibrantError, match=r"beyond the 1024 of the model's embedding \(<new>\)"):
            load(str(model))


def test_a_token_of_the_chat_template_without_an_embedding(model):
    add_tokens(model, "<turn>")
    (model / "chat_template.jinja").write_text("{% for m in messages %}<turn>{{ m['content'] }}{% endfor %}")
    with pytest.raises(CalibrantError, match=r"\(<turn>\)"):
        check_model(str(model))


def test_an_added_token_that_no_prompt_has_may_lie_beyond_the_embedding(model):
    add_tokens(model, "<image>")
    assert len(check_model(str(model))[1]) > 1024
    load_model(str(model))


def test_an_embedding_may_have_rows_to_spare(model):
    shrink(model, 1088)
    check_model(str(model))


def test_a_tokenizer_without_ends_and_padding(capsys, monkeypatch, model):
    unset(model, "eos_token", "pad_token")
    refused_by_every_command(capsys, monkeypatch, model, "neither a padding nor an EOS token")


def test_a_tokenizer_without_ends_is_not_trained(capsys, monkeypatch, model):
    pad = load_tokenizer(str(model)).convert_ids_to_tokens(5)
    unset(model, "eos_token")
    add_tokens(model, pad_token=pad)
    refused_by_every_command(capsys, monkeypatch, model, "has no EOS token", "train")
    assert load_tokenizer(str(model)).pad_token == pad


@pytest.mark.parametrize("damage", ["empty", "truncated", "random", "a list"])
@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json"])
def test_a_damaged_file_of_a_model(model, name, damage):
    file = model / name
    content = file.read_bytes()
    damaged = {"empty": b"", "truncated": content[:100], "random": bytes(range(256)), "a list": b"[1]"}
    file.write_bytes(damaged[damage])
    for load in (load_model, check_model):
        with pytest.raises(CalibrantError) as refusal:
            load(str(model))
        assert str(model) in str(refusal.value)


def test_weights_that_are_not_finite(capsys, monkeypatch, model):
    policy = AutoModelForCausalLM.from_pretrained(model)
    with torch.no_grad():
        policy.model.norm.weight[3] = torch.inf
    policy.save_pretrained(model)
    refused_by_every_command(capsys, monkeypatch, model, "NaN or infinite weights (model.norm.weight)")
