"""Options of the model in `train`, `evaluate` and `analyze`: dtype, attention and optimizer, taken or refused."""

import pytest
import torch
from refusals import refused
from safetensors.torch import load_file

from calibrant.cli.main import main
from calibrant.policy.models import check_model, load_policy
from calibrant.train.possible import check_possible
from calibrant.train.settings import TrainSettings

SMALL = [
    "--steps", "1", "--prompts-per-step", "2", "--rollouts", "4", "--no-evaluation", "--max-completion-length", "8",
]  # fmt: skip


def train(out, *options):
    assert main(["train", "--out", str(out), *SMALL, *options]) == 0
    return load_file(out / "model" / "model.safetensors")


def test_weights_have_the_dtype_that_is_asked_for_and_mixed_precision_leaves_it(tmp_path):
    assert {x.dtype for x in train(tmp_path / "a", "--dtype", "bfloat16").values()} == {torch.bfloat16}
    assert {x.dtype for x in train(tmp_path / "b", "--bf16").values()} == {torch.float32}


def test_the_optimizer_is_the_one_that_is_asked_for(tmp_path):
    before = load_policy("demo").state_dict()
    weights = [train(tmp_path / name, *options) for name, options in (("a", []), ("b", ["--optim", "sgd"]))]
    adam, sgd = (max(float((x - before[name]).abs().max()) for name, x in after.items()) for after in weights)
    assert adam > 9e-5  # AdamW's first step is the learning rate, 1e-4
    assert adam != sgd > 0
    state = torch.load(tmp_path / "b" / "checkpoints" / "checkpoint-1" / "optimizer.pt", weights_only=True)["state"]
    assert all(not value or set(value) == {"momentum_buffer"} for value in state.values())


@pytest.mark.parametrize("name", ["eager", "sdpa"])
def test_attention_is_the_one_that_is_asked_for(name):
    options = TrainSettings(attn_implementation=name)
    assert load_policy("demo", options).config._attn_implementation == name
    assert check_model("demo", options)[0].config._attn_implementation == name


@pytest.mark.parametrize(
    "command", [["train", *SMALL], ["evaluate", "demo"], ["analyze", "--queries", "1"], ["check-prefix", "demo"]]
)
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--attn-implementation", "flash_attention_2"], "try it without attn_implementation = 'flash_attention_2'"),
        (["--attn-implementation", "spda"], "try it without attn_implementation = 'spda'"),
        (["--dtype", "bf16"], "option 'dtype' is 'bf16' (did you mean 'bfloat16'?)"),
    ],
)
def test_what_a_model_cannot_have_is_said(capsys, monkeypatch, tmp_path, command, options, said):
    monkeypatch.chdir(tmp_path)
    assert said in refused(capsys, *command, *options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--optim", "adam"], "option 'optim' is 'adam' (did you mean"),
        (["--optim", "galore_adamw"], "option 'optim' is 'galore_adamw', which cannot be used here: You need"),
        (["--dtype", "float16"], "would be trained in float16"),
    ],
)
def test_what_cannot_be_trained_is_said_before_anything_is_written(capsys, monkeypatch, tmp_path, options, said):
    monkeypatch.chdir(tmp_path)
    assert said in refused(capsys, "train", *SMALL, *options)
    assert not list(tmp_path.iterdir())


def test_float16_files_are_refused_when_their_type_is_taken(tmp_path):
    load_policy("demo").half().save_pretrained(tmp_path)
    settings = TrainSettings(model=str(tmp_path), dtype="auto")
    with pytest.raises(ValueError, match="in float16"):
        check_possible(settings, load_policy(settings.model, settings), ())
    check_possible(TrainSettings(), load_policy(settings.model, TrainSettings()), ())


def test_an_evaluation_takes_the_dtype(capsys, tmp_path):
    common = ["evaluate", "demo", "--prompts", "4", "--samples", "2", "--out"]
    assert main([*common, str(tmp_path / "a"), "--dtype", "bfloat16"]) == 0
    assert main([*common, str(tmp_path / "b")]) == 0
    rows = [(tmp_path / name / "rollouts.parquet").read_bytes() for name in "ab"]
    assert rows[0] != rows[1]
