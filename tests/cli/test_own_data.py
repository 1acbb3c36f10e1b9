"""A CSV file with columns of other names and a reward function in a file of the user's, from the command line."""

import csv
import json
import re

import pandas as pd
import pytest
from refusals import refused

from calibrant.cli.main import main
from calibrant.tasks import GENERIC, TASKS
from calibrant.train.prepare import prepare
from calibrant.train.settings import TrainSettings

REWARDS = """
def brief(completions, Antwort, **_):
    return [1.0 if len(text) <= len(answer) + 3 else 0.0 for text, answer in zip(completions, Antwort)]
brief.reward_range = (0, 1)

def careless(completions, Antwort, **_):
    return [1 / (len(answer) - 2) for answer in Antwort]  # an answer of two characters
"""
COLUMNS = "question=Frage,answers=Antwort,context=Text"
SMALL = [
    "--steps", "2", "--prompts-per-step", "4", "--rollouts", "4", "--eval-prompts", "4", "--eval-samples", "2",
    "--max-completion-length", "8",
]  # fmt: skip
MINE = ["--task", "reading", "--data", "pupils.csv"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    with open(tmp_path / "pupils.csv", "w", newline="", encoding="utf-8") as file:
        rows = [[f"Wie viel ist {i} mal 3?", 3 * i, f"{i} mal 3 ist {3 * i}."] for i in range(30)]
        csv.writer(file).writerows([["Frage", "Antwort", "Text"], *rows])
    (tmp_path / "rewards_of_pupils.py").write_text(REWARDS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_one_command_trains_on_a_csv_file_with_a_function_of_ones_own(folder):
    own = [*MINE, "--columns", COLUMNS, "--reward-funcs", "task_reward", "rewards_of_pupils.brief"]
    assert main(["train", *own, "--reward-weights", "1", "0.5", *SMALL, "--out", "run"]) == 0
    metrics = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in metrics] == [1, 2]
    for row in metrics:
        total = row["rewards/task_reward/mean"] + 0.5 * row["rewards/brief/mean"]
        assert row["reward"] == pytest.approx(total, abs=1e-5)
    rollouts = pd.read_parquet(folder / "run" / "rollouts" / "step-000001.parquet")
    assert rollouts["prompt"].str.contains(r"Question: Wie viel ist \d+ mal 3\?").all()
    assert all(re.fullmatch(r"pupils-\d+", name) for name in rollouts["prompt_id"])
    evaluation = json.loads((folder / "run" / "evaluation.json").read_text())["after"]
    assert {"f1", "accuracy", "rewards/task_reward", "rewards/brief"} <= set(evaluation["sampled"])
    assert main(["train", "--resume", "run"]) == 0


def test_a_fault_in_each_is_one_sentence(folder, capsys):
    said = refused(capsys, "train", *MINE, *SMALL, "--columns", "question=Frage,answers=Antwrot,context=Text")
    assert "'pupils.csv' has no column 'Antwrot' (did you mean 'Antwort'?), which --columns names for 'answers'" in said
    assert "it has 'Frage', 'Antwort', 'Text'" in said
    careless = ["--reward-funcs", "rewards_of_pupils.careless", "--method", "grpo", "--no-evaluation"]
    said = refused(capsys, "train", *MINE, *SMALL, "--columns", COLUMNS, *careless, "--out", "run")
    assert re.search(
        r"the reward function 'careless' raised ZeroDivisionError: division by zero for completion \d+ of the row "
        r"'pupils-\d+'; return one number per completion",
        said,
    )


def test_a_dry_run_shows_all_and_writes_nothing(folder, capsys):
    own = [*MINE, "--columns", COLUMNS, "--reward-funcs", "task_reward", "rewards_of_pupils.brief"]
    before = sorted(path.name for path in folder.rglob("*") if "__pycache__" not in path.parts)
    assert main(["train", *own, *SMALL, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert sorted(path.name for path in folder.rglob("*") if "__pycache__" not in path.parts) == before
    assert len(re.findall(r"== prompt \d: 'pupils-\d+', \d+ tokens\nRead the text and", said)) == 3
    assert len(re.findall(r"right answers: \d+\na completion:  '\d+', extracted: '\d+'", said)) == 3
    assert said.count("its reward:    3 (task_reward 2, brief 1)") == 3
    assert "signals read the range [0, 2]" in said and "27 for training, 3 for each evaluation" in said
    assert "  steps: 2\n" in said and "    question: Frage\n" in said
    assert re.search(r"time per step:  about .* if every completion has 8 tokens", said)
    assert re.search(r"memory:         0\.\d\d GB and activations \(weights 0\.01, gradients 0\.01, AdamW 0\.0", said)


def test_a_dry_run_finds_a_faulty_function_before_training(capsys):
    careless = ["--reward-funcs", "rewards_of_pupils.careless", "--method", "grpo"]
    said = refused(capsys, "train", *MINE, *SMALL, "--columns", COLUMNS, *careless, "--dry-run")
    assert "'careless' raised ZeroDivisionError" in said and "of the row 'pupils-" in said


@pytest.mark.parametrize("name", [*TASKS, *GENERIC])
def test_every_task_explains_itself(capsys, name):
    assert main(["tasks", name]) == 0
    said = capsys.readouterr().out
    task = (TASKS | GENERIC)[name]
    assert said.startswith(f"{name}: {task.summary}\n")
    for word in ("data:", "splits:", "answer:", "reward:", "metrics:", f"{task.max_completion_length} tokens"):
        assert word in said
    reachable = task.source is None and task.schema is None
    assert said.count("== prompt") == (3 if reachable else 0)
    assert reachable == (said.count("right answers: ") == 3) and reachable != ("no sample prompts: " in said)


def test_a_task_explains_itself_on_ones_own_data(capsys):
    assert main(["tasks", *MINE[1:], "--columns", COLUMNS, "--reward-funcs", "rewards_of_pupils.brief"]) == 0
    said = capsys.readouterr().out
    assert said.count("Question: Wie viel ist") == 3 and said.count("its reward:    1 (brief 1)") == 3
    assert "reward:     1 x brief [0, 1]" in said


def test_test_prompts_that_are_training_prompts_are_counted(folder, caplog):
    for name, numbers in (("train", range(8)), ("test", range(6, 10))):
        rows = [json.dumps({"question": f"{i} + 1?", "answers": str(i + 1)}) for i in numbers]
        (folder / "sums").mkdir(exist_ok=True)
        (folder / "sums" / f"{name}.jsonl").write_text("\n".join(rows))
    small = {"method": "grpo", "prompts_per_step": 2, "max_completion_length": 8}
    prepared = prepare(TrainSettings(model="demo", task="maths", data="sums", **small))
    assert (len(prepared.training), len(prepared.evaluation)) == (8, 4)
    assert "2 of 4 prompts of the evaluation are also training prompts" in caplog.text
