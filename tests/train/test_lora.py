"""LoRA from the command line: trained, saved, evaluated, resumed, trained further and merged."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from refusals import refused
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from calibrant.cli.main import main
from calibrant.errors import CalibrantError
from calibrant.model_options import AdapterOptions
from calibrant.policy.adapters import with_new_adapter
from calibrant.policy.models import load_model, load_policy
from calibrant.train.checkpoints import last_checkpoint
from calibrant.train.runs import Run

LORA = ["--use-peft", "--lora-r", "4", "--learning-rate", "1e-2", "--lora-target-modules", "q_proj", "down_proj"]
SMALL = [
    "--prompts-per-step", "2", "--rollouts", "4", "--no-evaluation", "--max-completion-length", "8",
    "--save-every", "1",
]  # fmt: skip


DEPTH = ["--method-options", "depth=block"]


def train(out: Path, *options: str) -> Path:
    assert main(["train", "--out", str(out), *SMALL, *options]) == 0
    return out


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("lora") / "run", "--steps", "2", *LORA)


@pytest.fixture
def adapter(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run / "model", tmp_path / "adapter"))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def test_the_adapter_alone_is_saved_and_it_was_trained(run):
    files = {file.name for file in (run / "model").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= files
    assert not files & {"config.json", "model.safetensors", "optimizer.pt"}
    settings = json.loads((run / "model" / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"], settings["lora_dropout"]) == (4, 32, 0.0)
    assert sorted(settings["target_modules"]) == ["down_proj", "q_proj"]
    trained = weights(run / "model")
    assert all(bool(value.any()) for name, value in trained.items() if "lora_B" in name)
    assert all(("q_proj" in name or "down_proj" in name) and value.numel() < 4000 for name, value in trained.items())


@pytest.mark.parametrize(
    ("names", "adapted"),
    [
        (None, {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
        (("q_proj",), {"q_proj"}),
        (("q_proj", "mlp.up_proj"), {"q_proj", "up_proj"}),
        ((r".*layers\.[01]\..*_proj",), {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
    ],
)
def test_layers_are_named_or_matched(names, adapted):
    policy = with_new_adapter(load_policy("demo"), AdapterOptions(use_peft=True, lora_target_modules=names))
    trained = [name.split(".") for name, p in policy.named_parameters() if p.requires_grad]
    assert {name[-4] for name in trained} == adapted
    assert len({name[name.index("layers") + 1] for name in trained}) == (2 if names and "*" in names[0] else 5)


def test_an_adapter_is_loaded_on_its_base_and_changes_it(run):
    policy, tokenizer = load_model(str(run))
    assert isinstance(policy, PeftModel)
    assert {name.split(".")[-3] for name, p in policy.named_parameters() if p.requires_grad} == {"lora_A", "lora_B"}
    ids = tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        adapted, plain = policy(ids).logits, load_policy("demo")(ids).logits
        with policy.disable_adapter():
            assert torch.equal(policy(ids).logits, plain)
    assert (adapted - plain).abs().max() > 1e-2


@pytest.mark.parametrize("command", ["evaluate", "check-prefix"])
def test_commands_take_a_run_with_an_adapter(capsys, run, command):
    options = ["--prompts", "3", "--samples", "2"] if command == "evaluate" else []
    assert main([command, str(run), *options]) == 0
    said = capsys.readouterr().out
    assert "DIFFERS" not in said and "cannot share" not in said


def test_the_gradient_variance_of_an_adapter_is_that_of_what_it_trains(run, tmp_path):
    for name, options in (("saved", ["--model", str(run)]), ("new", ["--model", "demo", *LORA[:3], *LORA[5:]])):
        common = ["--queries", "3", "--rollouts", "4", "--max-completion-length", "8", "--out", str(tmp_path / name)]
        assert main(["analyze", *options, *common]) == 0
        lines = [json.loads(line) for line in (tmp_path / name / "groups.jsonl").read_text().splitlines()]
        assert any(line["truth"].get("score_variance", 0) > 0 for line in lines)


def test_a_resumed_run_ends_where_the_uninterrupted_one_ends(run, tmp_path, capsys):
    other = Path(shutil.copytree(run, tmp_path / "run"))
    shutil.rmtree(other / "model")
    shutil.rmtree(other / "checkpoints" / "checkpoint-2")
    assert main(["train", "--resume", str(other)]) == 0
    ended = weights(other / "model")
    assert all(torch.equal(value, ended[name]) for name, value in weights(run / "model").items())


def test_training_goes_on_with_an_adapter(run, tmp_path, caplog):
    caplog.set_level("WARNING", logger="trl")
    again = train(tmp_path / "again", "--steps", "1", "--model", str(run), "--learning-rate", "1e-2")
    assert "will be ignored" not in caplog.text
    before, after = weights(run / "model"), weights(again / "model")
    assert before.keys() == after.keys() and not (again / "model" / "ref").exists()
    assert all(not torch.equal(before[name], value) for name, value in after.items())
    first = json.loads((again / "metrics.jsonl").read_text().splitlines()[0])
    assert abs(first["kl"]) < 1e-6  # the reference is the adapter as it was, not the base


@pytest.mark.parametrize("options", [[], ["--dtype", "bfloat16"]])
def test_a_merged_adapter_is_a_whole_model(tmp_path, options):
    run = train(tmp_path / "run", "--steps", "1", *LORA, "--merge", *options)
    assert {f.name for f in (run / "model").iterdir()} >= {"config.json", "model.safetensors", "tokenizer.json"}
    assert not list((run / "model").glob("adapter*")) and not (run / "model" / "README.md").exists()
    merged = AutoModelForCausalLM.from_pretrained(run / "model", dtype="auto")
    assert merged.dtype == (torch.bfloat16 if options else torch.float32)
    checkpoint = last_checkpoint(Run(run), "gcpo_bot")
    policy, tokenizer = load_model(str(checkpoint))
    ids = tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        difference = (merged.float()(ids).logits - policy(ids).logits).abs().max()
        assert (policy(ids).logits - load_policy("demo")(ids).logits).abs().max() > 2 * difference
    assert difference < (0.5 if options else 1e-3)


def test_the_base_of_a_half_precision_adapter_is_in_half_precision_and_the_adapter_is_not(tmp_path):
    run = train(tmp_path / "run", "--steps", "1", *LORA, "--dtype", "bfloat16", "--bf16")
    assert {value.dtype for value in weights(run / "model").values()} == {torch.float32}


def without_base(folder: Path) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": "/nowhere/base"}))


def on_the_hub(folder: Path) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": "nobody/nothing"}))


def of_another_base(folder: Path) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"r": 8}))


def incomplete(folder: Path) -> None:
    kept = dict(list(weights(folder).items())[1:])
    save_file(kept, folder / "adapter_model.safetensors")


def not_finite(folder: Path) -> None:
    broken = {name: value * torch.inf for name, value in weights(folder).items()}
    save_file(broken, folder / "adapter_model.safetensors")


DAMAGES = {
    without_base: "belongs to the base model '/nowhere/base', which is not there",
    on_the_hub: "is no folder, is not in the hub's cache",
    of_another_base: "cannot be used: it",
    incomplete: "cannot be used: it lacks weights",
    not_finite: "NaN or infinite weights",
    lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"x" * 99): "cannot be",
    lambda folder: (folder / "adapter_model.safetensors").unlink(): "is damaged: it needs adapter_model.safetensors",
    lambda folder: (folder / "adapter_config.json").write_text("[1]"): "is damaged: it needs",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_adapter_is_refused_before_anything_is_written(capsys, monkeypatch, adapter, damage):
    damage(adapter)
    monkeypatch.chdir(adapter.parent)
    for command in (["train", *SMALL, "--model"], ["evaluate", "--prompts", "1", "--samples", "1"]):
        assert DAMAGES[damage] in refused(capsys, *command, str(adapter)), command
    assert [path.name for path in adapter.parent.iterdir()] == ["adapter"]


def test_an_adapter_without_a_tokenizer_has_that_of_its_base(adapter):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (adapter / name).unlink()
    assert load_model(str(adapter))[1].get_vocab() == load_model("demo")[1].get_vocab()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--lora-r", "4"], "option 'lora_r' does nothing without 'use_peft'; give --use-peft too"),
        (["--merge"], "option 'merge' does nothing without an adapter"),
        (["--use-peft", "--lora-target-modules", "q_porj"], "option 'lora_target_modules' does not fit the model"),
        (["--use-peft", "--lora-target-modules", "lm_head", "--method", "gcpo_grad"], "read from the output head"),
        (
            ["--use-peft", "--lora-target-modules", "embed_tokens", "--method", "gcpo_grad", *DEPTH],
            "what is trained of the last block, which is nothing",
        ),
        (["--load-in-4bit", "--use-peft"], "'load_in_4bit' needs a package that is not installed; pip install"),
    ],
)
def test_what_does_not_go_together_is_said_before_anything_is_written(capsys, monkeypatch, tmp_path, options, said):
    monkeypatch.chdir(tmp_path)
    assert said in refused(capsys, "train", *SMALL, *options)
    assert not list(tmp_path.iterdir())


def test_an_adapter_on_the_hub_is_refused(monkeypatch, adapter):
    """As transformers loads it: its base, with the adapter put into it."""
    for name in ("adapters.is_adapter", "models.is_adapter"):
        monkeypatch.setattr(f"calibrant.policy.{name}", lambda path: False)
    monkeypatch.setattr("calibrant.policy.models.locate", lambda model: model)
    with pytest.raises(CalibrantError, match="is an adapter on the hub"):
        load_policy(str(adapter))


def test_an_adapter_gets_no_second_one(capsys, monkeypatch, adapter):
    monkeypatch.chdir(adapter.parent)
    for command in (["train", *SMALL], ["analyze", "--queries", "1"]):
        assert "leave out --use-peft" in refused(capsys, *command, "--use-peft", "--model", str(adapter))


@pytest.mark.parametrize("missing", ["peft", "bitsandbytes", "a GPU"])
def test_packages_that_are_missing_are_named(capsys, monkeypatch, tmp_path, missing):
    monkeypatch.chdir(tmp_path)
    known = {"peft": missing != "peft", "bitsandbytes": missing != "bitsandbytes"}
    for module in ("adapters", "quantised"):
        monkeypatch.setattr(f"calibrant.policy.{module}.find_spec", lambda name: known[name] or None)
    options = ["--use-peft"] if missing == "peft" else ["--use-peft", "--load-in-4bit"]
    packages = {"peft": "pip install 'calibrant[peft]'", "bitsandbytes": "pip install 'bitsandbytes"}
    assert packages.get(missing, "needs a GPU") in refused(capsys, "train", *SMALL, *options)
    assert not list(tmp_path.iterdir())
