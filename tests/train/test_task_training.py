"""Every benchmark trains the embedded policy from files, end to end."""

import json

import pandas as pd
import pytest

from calibrant.cli.main import main
from calibrant.tasks import TASKS, training_task

FROM_FILES = [name for name, task in TASKS.items() if task.source]
SMALL = [
    "--steps", "5", "--prompts-per-step", "2", "--rollouts", "4", "--max-completion-length", "12",
    "--eval-prompts", "2", "--eval-samples", "2", "--max-prompt-length", "256", "--save-every", "5",
]  # fmt: skip


def write_rows(folder, task, split, count):
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "id": f"q{i}",
            "question": f"What is {i} plus {i}?",
            "context": f"The number is {2 * i}.",
            "answers": [str(2 * i)],
        }
        for i in range(count)
    ]
    (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("name", FROM_FILES)
def test_five_steps_from_files(tmp_path, capsys, name):
    task = TASKS[name]
    source = training_task(task)
    for each, split in ((source, source.splits[0]), (task, task.splits[-1])):
        write_rows(tmp_path / "data" / each.name, each, split, 12)
    out = tmp_path / "run"
    options = ["--task", name, "--data-dir", str(tmp_path / "data"), "--out", str(out), "--method", "gcpo_bot"]
    assert main(["train", *options, *SMALL]) == 0
    rollouts = pd.concat(pd.read_parquet(file) for file in sorted((out / "rollouts").glob("step-*.parquet")))
    assert len(rollouts) == 5 * 2 * 4
    assert rollouts["step"].nunique() == 5
    assert rollouts["reward"].dropna().between(*task.reward_range).all()
    assert rollouts["prompt"].str.contains(r"What is \d+ plus \d+\?").all()
    assert (rollouts["prompt"].str.contains("The number is") == (task.kind == "reading")).all()
    assert {"cluster", "weight", "advantage", "answer", "correct"} <= set(rollouts)
    assert set(json.loads((out / "evaluation.json").read_text())) == {"before", "after"}
    assert (out / "report.html").exists()
