"""The command line as a user meets it: what it lists, what it refuses, and how it says so."""

import errno
import json
import shutil
from pathlib import Path

import pytest
from refusals import refused
from safetensors.torch import load_file, save_file

from calibrant.cli.main import COMMANDS, main
from calibrant.files import write_json, write_yaml
from calibrant.methods import METHODS
from calibrant.tasks import TASKS

SMALL = ["--steps", "2", "--prompts-per-step", "2", "--rollouts", "4", "--no-evaluation"]


@pytest.mark.parametrize("command", list(COMMANDS))
def test_every_command_has_help_with_examples(capsys, command):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert f"calibrant {command}" in capsys.readouterr().out.split("example", 1)[1]


def test_every_default_is_named_in_the_help(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "(default: 2000; 60 with demo; 80 with demo-arithmetic; 60 with smollm2)" in said
    assert "(default: all; 32 with demo; 32 with demo-arithmetic)" in said
    assert "(GCPO: 5e-5, of AdamW)" in said


@pytest.mark.parametrize(("command", "known"), [("methods", METHODS), ("tasks", TASKS)])
def test_lists(capsys, command, known):
    assert main([command]) == 0
    lines = capsys.readouterr().out.splitlines()
    first_words = [line.split()[0] for line in lines if line[:1].strip()]
    assert first_words[: len(known)] == list(known)


def test_the_table_of_methods_says_what_there_is_to_choose_by(capsys):
    assert main(["methods"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "CAPO (arXiv:2604.12632) | needs rewards, mean_logprob, ref_mean_logprob | per rollout |" in said
    assert "x [0.946, 1] then x [1, 1.22]" in said and "(a) read in the authors' code" in said


def test_a_method_explains_itself(capsys):
    assert main(["methods", "egpo"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("# egpo\n") and "| `nsr_share` |" in said and "`mean_logprob`: the policy's" in said


def test_pages_of_methods_are_written(tmp_path, capsys):
    assert main(["methods", "--pages", str(tmp_path / "pages")]) == 0
    assert {path.stem for path in (tmp_path / "pages").iterdir()} == {*METHODS, "README", "recipes"}


def test_the_pages_in_the_documentation_are_those_of_the_docstrings():
    from calibrant.methods.pages import index, page, recipes_page

    folder = Path(__file__).parents[2] / "docs" / "methods"
    assert (folder / "README.md").read_text() == index(), "run: calibrant methods --pages docs/methods"
    assert (folder / "recipes.md").read_text() == recipes_page(), "run: calibrant methods --pages docs/methods"
    for name, method in METHODS.items():
        assert (folder / f"{name}.md").read_text() == page(name, method), "run: calibrant methods --pages docs/methods"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["trian"], "did you mean 'train'"),
        (["train", "--method", "gcpo_bott"], "gcpo_bot"),
        (["train", "--task", "placse"], "places"),
        (["train", "--learning-rat", "1"], "did you mean '--learning-rate'"),
        (["train", "--steps", "many"], "invalid int value"),
        (["train", "--rollouts", "1"], "give at least 2"),
        (["train", "--model", "/nowhere/at/all"], "model '/nowhere/at/all' does not exist"),
        (["train", "--method-options", "alpha"], "is not NAME=VALUE"),
        (["train", "--method-options", "beta=1"], "no hyper-parameter 'beta'"),
        (["train", "--method", "grpo", "--alpha", "0.3"], "'grpo' has no hyper-parameter 'alpha'"),
        (["train", "--method", "grpo", "--mean-one"], "'grpo' has no hyper-parameter 'mean_one'"),
        (["train", "--alpha", "-1"], "alpha"),
        (["train", "--reward-range", "2", "0"], "range"),
        (["train", "--config", "/nowhere.yaml"], "cannot read '/nowhere.yaml'"),
        (["train", "--resume", "/nowhere"], "not a run directory"),
        (["evaluate", "/nowhere"], "model '/nowhere'"),
        (["evaluate", "demo", "--samples", "0"], "'samples' is 0"),
        (["report", "/nowhere"], "/nowhere"),
        (["train", "--method-options", "alpha={"], "is not YAML"),
        (["train", "--method-options", "alpha=!!python/object/apply:os.system ['true']"], "is not YAML"),
        (["train", "--method-options", "reward_range=1"], "two finite numbers"),
        (["score", "rollouts.parquet", "--reward-range", "1", "0"], "two numbers, the lower one first"),
        (["tasks", "plces"], "did you mean 'places'"),
        (["tasks", "--data", "x.csv"], "--data belongs to one task; name it: calibrant tasks NAME"),
        (["train", "--dry-run", "--resume", "x"], "leave out --out, --config and --dry-run"),
        (["train", "--method-options", "reward_range=[a, b]"], "two finite numbers"),
        (["train", "--train-rows", "3", "--no-evaluation"], "3 training prompts, fewer than the 8 of a step"),
        (["train", "--seed", "-1"], "option 'seed' is -1"),
        (["train", "--seed", "4294967296"], "option 'seed' is 4294967296"),
        (["train", "--seed", "9223372036854775807"], "option 'seed' is 9223372036854775807"),
        (["evaluate", "demo", "--seed", "-1"], "option 'seed' is -1"),
        (["evaluate", "demo", "--seed", "9223372036854775808"], "option 'seed' is 9223372036854775808"),
        (["check-prefix", "demo", "--seed", "9223372036854775808"], "option 'seed' is 9223372036854775808"),
        (["analyze", "--queries", "1", "--rollouts", "99999999999"], "not enough memory"),
        (["evaluate", "demo", "--samples", "99999999999"], "not enough memory"),
        (["train", "--rollouts", "99999999999", "--no-evaluation"], "more than one step can hold"),
    ],
)
def test_bad_input_is_one_line_and_status_two(capsys, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    assert said in refused(capsys, *arguments)
    assert not any(tmp_path.rglob("*.parquet"))


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--model", "nobody/no-such-model"],
        ["train", "--embedding-model", "nobody/no-such-model"],
        ["evaluate", "nobody/no-such-model"],
    ],
)
def test_without_a_hub_it_says_what_to_give_instead(capsys, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    line = refused(capsys, *arguments)
    assert "nobody/no-such-model" in line
    assert "folder" in line


def test_a_folder_that_is_no_model(capsys, tmp_path):
    assert "is not a model" in refused(capsys, "train", "--model", str(tmp_path), "--out", str(tmp_path / "run"))


def test_a_model_of_garbage(capsys, tmp_path, policy):
    shutil.copytree(policy, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").write_bytes(b"not weights")
    line = refused(capsys, "evaluate", str(tmp_path / "model"))
    assert "cannot be loaded" in line


def broken_model(policy, path, change):
    """A copy of a policy whose weights, as a dictionary, `change` has changed."""
    shutil.copytree(policy, path)
    weights = load_file(path / "model.safetensors")
    change(weights)
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    return str(path)


@pytest.mark.parametrize("command", [["evaluate"], ["check-prefix"], ["analyze", "--model"], ["train", "--model"]])
def test_a_model_that_lacks_weights_is_not_completed_by_chance(capsys, tmp_path, monkeypatch, policy, command):
    monkeypatch.chdir(tmp_path)
    model = broken_model(policy, tmp_path / "model", lambda weights: weights.pop("model.norm.weight"))
    assert "(model.norm.weight)" in refused(capsys, *command, model)
    assert not (tmp_path / "runs").exists()


def test_a_model_with_weights_that_are_not_finite(capsys, tmp_path, policy):
    model = broken_model(policy, tmp_path / "model", lambda weights: weights["model.norm.weight"].fill_(float("nan")))
    assert "NaN or infinite weights (model.norm.weight)" in refused(capsys, "evaluate", model)
    line = refused(capsys, "train", "--model", model, *SMALL, "--out", str(tmp_path / "run"))
    assert "NaN or infinite weights (model.norm.weight)" in line and not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", [["evaluate"], ["train", "--model"]])
def test_a_model_without_a_tokenizer(capsys, tmp_path, monkeypatch, policy, command):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(policy, tmp_path / "model", ignore=shutil.ignore_patterns("token*"))
    assert "has no tokenizer" in refused(capsys, *command, "model")


@pytest.mark.parametrize("command", [["evaluate"], ["train", "--no-evaluation", "--model"]])
def test_pickled_weights_are_not_read(capsys, tmp_path, monkeypatch, policy, command):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(policy, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    (tmp_path / "model" / "pytorch_model.bin").write_bytes(b"cposix\nsystem\n(S'touch opened'\ntR.")
    assert "no file named model.safetensors" in refused(capsys, *command, "model")
    assert {path.name for path in tmp_path.iterdir()} == {"model"}


def test_an_empty_name_is_not_the_embedded_policy(capsys):
    assert "'' is not a model" in refused(capsys, "analyze", "--model", "", "--queries", "1")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["evaluate", "x" * 5000], "File name too long"),
        (["evaluate", "demo", "--out", "file/in"], "Not a directory"),
        (["evaluate", "demo", "--out", "file"], "'file' is a file"),
    ],
)
def test_a_path_that_cannot_be_used_is_one_line(capsys, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    small = ["--prompts", "1", "--samples", "1"]
    assert said in refused(capsys, *arguments, *small)
    assert (tmp_path / "file").read_text() == "mine"


def test_an_output_directory_that_holds_something(capsys, tmp_path):
    (tmp_path / "config.yaml").write_text("settings: {}")
    assert "holds another run" in refused(capsys, "train", "--out", str(tmp_path))
    assert (tmp_path / "config.yaml").read_text() == "settings: {}"


def test_an_evaluation_is_not_written_over_a_run(capsys, tmp_path):
    (tmp_path / "config.yaml").write_text("settings: {}")
    (tmp_path / "evaluation.json").write_text("kept")
    assert "holds a run or an analysis" in refused(capsys, "evaluate", "demo", "--out", str(tmp_path))
    assert (tmp_path / "evaluation.json").read_text() == "kept"


def test_an_analysis_is_not_resumed_as_a_run(capsys, tmp_path):
    write_yaml(tmp_path / "config.yaml", {"command": "analyze", "settings": {"split": None}})
    assert "was written by `calibrant analyze`" in refused(capsys, "train", "--resume", str(tmp_path))


def run_directory(path, **settings):
    write_yaml(path / "config.yaml", {"settings": settings})
    return path


def test_resume_with_another_option(capsys, tmp_path):
    run = run_directory(tmp_path / "run", method="grpo", seed=3)
    assert "was started with method = grpo, not rd_only" in refused(
        capsys, "train", "--resume", str(run), "--method", "rd_only"
    )


def test_resume_from_a_checkpoint_of_another_method(capsys, tmp_path):
    run = run_directory(tmp_path / "run", method="grpo", evaluation=False)
    write_json(run / "checkpoints" / "checkpoint-5" / "complete.json", {"step": 5, "method": "gcpo_cd", "files": {}})
    assert "was trained with 'gcpo_cd'" in refused(capsys, "train", "--resume", str(run))


@pytest.mark.parametrize("name", ["evaluation.json", "checkpoints/checkpoint-5/complete.json"])
def test_a_damaged_file_of_a_run_is_named(capsys, tmp_path, name):
    run = run_directory(tmp_path / "run", method="grpo", evaluation=name == "evaluation.json")
    (run / name).parent.mkdir(parents=True, exist_ok=True)
    (run / name).write_text("{bro")
    assert f"{name}' is damaged" in refused(capsys, "train", "--resume", str(run))


def test_options_of_a_file_and_of_the_line(tmp_path, capsys):
    config = write_yaml(tmp_path / "c.yaml", {"method": "grpo", "learning_rat": 1e-4})
    assert "did you mean 'learning_rate'" in refused(capsys, "train", "--config", str(config))


def test_a_full_disk_is_said_and_loses_nothing(capsys, tmp_path, monkeypatch):
    def full(*_args, **_keywords):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("calibrant.trl.rollout_files.write_rollouts", full)
    line = refused(capsys, "train", *SMALL, "--method", "grpo", "--out", str(tmp_path / "run"))
    assert "the disk is full" in line
    monkeypatch.undo()
    assert main(["train", "--resume", str(tmp_path / "run")]) == 0


def test_a_method_of_ones_own_trains(tmp_path, monkeypatch, capsys):
    (tmp_path / "my_methods.py").write_text(
        "from calibrant.methods import Outcome\n"
        "def halved(rewards, where, *, factor=0.5):\n"
        "    return Outcome(rewards * 0 + factor, {})\n"
    )
    monkeypatch.chdir(tmp_path)
    own = ["--method", "my_methods.halved", "--method-options", "factor=0.25"]
    assert main(["train", *SMALL, *own, "--out", "run"]) == 0
    line = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0]
    assert json.loads(line)["group/weight/mean"] == 0.25


def test_a_run_directory_has_what_it_promises(tmp_path, capsys):
    out = tmp_path / "run"
    small = [*SMALL[:-1], "--eval-prompts", "4", "--eval-samples", "2", "--report-to", "tensorboard"]
    assert main(["train", *small, "--out", str(out)]) == 0
    assert "report.html" in capsys.readouterr().out
    for name in ("config.yaml", "metrics.jsonl", "evaluation.json", "report.html", "model/model.safetensors"):
        assert (out / name).is_file(), name
    assert len(list((out / "rollouts").glob("step-*.parquet"))) == 2
    metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in metrics] == [1, 2]
    assert {"reward", "kl", "group/weight/mean", "group/barycentric_transport/mean"} <= set(metrics[0])
    assert set(json.loads((out / "evaluation.json").read_text())) == {"before", "after"}
    assert main(["train", "--resume", str(out)]) == 0
    assert main(["evaluate", str(out), "--prompts", "3", "--samples", "2", "--out", str(tmp_path / "judged")]) == 0
    assert (tmp_path / "judged" / "rollouts.parquet").is_file()
    assert main(["report", str(out)]) == 0
