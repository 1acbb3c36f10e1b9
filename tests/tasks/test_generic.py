"""Tasks for data of one's own: prompts, templates, answers and rewards."""

import json

import pytest
from builders_tasks import lines
from test_own_data import everything, refusal

from calibrant.cli.main import main
from calibrant.errors import CalibrantError
from calibrant.tasks import GENERIC, TASKS, Task, resolve
from calibrant.tasks.generic import chosen_letter

ROWS = {
    "reading": {"question": "Who?", "context": "Tom lies.", "answers": ["Tom"], "tone": "kindly"},
    "maths": {"question": "1 + 1?", "answers": "2", "tone": "kindly"},
    "choice": {"question": "Which?", "options": ["Paris", "Nice"], "answer": "Nice", "tone": "kindly"},
    "chat": {"prompt": "Hello", "tone": "kindly"},
}


def write(folder, task, count=1):
    """A file of different rows."""
    varied = ("question", "prompt", "context")
    rows = [{k: f"{v} {i}" if k in varied else v for k, v in ROWS[task].items()} for i in range(count)]
    return lines(folder / "d.jsonl", rows) / "d.jsonl"


def templated(tmp_path, task, text):
    (tmp_path / "prompt.txt").write_text(text)
    (row,) = everything(write(tmp_path, task), task, prompt_template=str(tmp_path / "prompt.txt")).values()
    assert row["messages"] == [{"role": "user", "content": row["prompt"]}]
    return row["prompt"]


@pytest.mark.parametrize(
    ("task", "text", "prompt"),
    [
        ("reading", "{context}\nSay {tone}: {question}\n", "Tom lies. 0\nSay kindly: Who? 0"),
        ("maths", r"{question} Use \boxed{} or \boxed{\frac{1}{2}}.", r"1 + 1? 0 Use \boxed{} or \boxed{\frac{1}{2}}."),
        ("choice", "{question}\n{options}", "Which? 0\nA. Paris\nB. Nice"),
        ("chat", "{{prompt}}: {prompt}", "{prompt}: Hello 0"),
        ("maths", "{question.__class__} {question}", None),
    ],
)
def test_a_template_is_filled_in_and_evaluates_nothing(tmp_path, task, text, prompt):
    if prompt is None:
        with pytest.raises(CalibrantError, match=r"placeholder \{question.__class__\}, which is no column"):
            templated(tmp_path, task, text)
    else:
        assert templated(tmp_path, task, text) == prompt


def test_what_a_row_holds_is_not_filled_in_again(tmp_path):
    file = lines(tmp_path / "d.jsonl", [{"question": "{answers} {0.__class__}", "answers": "2"}]) / "d.jsonl"
    (tmp_path / "p.txt").write_text("{question}!")
    (row,) = everything(file, "maths", prompt_template=str(tmp_path / "p.txt")).values()
    assert row["prompt"] == "{answers} {0.__class__}!"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{questoin}", "has the placeholder {questoin}, which is no column (did you mean 'question'?); there are"),
        ("no placeholder {}", "has no placeholder, such as {question}; add one"),
    ],
)
def test_templates_that_do_not_fit(tmp_path, text, said):
    (tmp_path / "p.txt").write_text(text)
    assert said in refusal(write(tmp_path, "reading"), prompt_template=str(tmp_path / "p.txt"))


def test_a_template_needs_texts(tmp_path):
    (tmp_path / "p.txt").write_text("{tone} {question}")
    file = lines(tmp_path / "d.jsonl", [ROWS["maths"], ROWS["maths"] | {"tone": ["x"]}]) / "d.jsonl"
    assert f"row 2 of '{file}', column 'tone', holds no text" in refusal(
        file, "maths", prompt_template=str(tmp_path / "p.txt")
    )
    assert "cannot be read" in refusal(file, "maths", prompt_template=str(tmp_path / "no.txt"))
    (tmp_path / "p.txt").write_text("{prompt}")
    file = lines(tmp_path / "c.jsonl", [{"prompt": [{"role": "user", "content": "x"}]}]) / "c.jsonl"
    assert "column 'prompt', holds turns" in refusal(file, "chat", prompt_template=str(tmp_path / "p.txt"))


# Answers


@pytest.mark.parametrize(
    ("completion", "letter"),
    [
        ("B", "B"), (" b.", "B"), ("(C) Nice", "C"), ("The answer is (D).", "D"), ("Paris is big.\nB", "B"),
        (r"\boxed{A}", "A"), ("**Answer:** C", "C"), ("A cat", ""), ("I do not know", ""), ("", ""), ("Bordeaux", ""),
        ("Let us see. A is wrong.\nSo the answer is B.", "B"),
    ],
)  # fmt: skip
def test_letters(completion, letter):
    assert chosen_letter(completion) == letter


def test_rewards_of_a_multiple_choice():
    task = resolve("choice")
    assert task.reward_batch(["B", "", "A"], [["B"], ["B"], ["B"]]) == [2.0, 0.0, 0.0]
    assert task.correct_batch(["B", "C"], [["B"], ["B"]]) == [True, False]
    assert task.clusters([["The answer is B", "B", "", "A"]]).tolist() == [[0, 0, 1, 2]]


def test_a_chat_has_no_reward_and_no_verdict_of_its_own():
    task = resolve("chat")
    assert task.reward_batch(["x"], [[]]) == [None] == task.correct_batch(["x"], [["x"]])


@pytest.mark.parametrize("task", [*TASKS.values(), *GENERIC.values()], ids=lambda task: task.name)
def test_the_example_of_a_right_completion_is_right(task):
    gold = "B" if task.kind == "choice" else "12"
    answer = task.extract(task.completion_of(gold))
    assert answer == gold
    assert task.kind == "chat" or task.reward(answer, [gold]) == task.reward_range[1]


# A task object of the user's


def test_a_task_by_its_dotted_path(tmp_path, monkeypatch):
    (tmp_path / "task_of_mine.py").write_text(
        "from dataclasses import replace\nfrom calibrant.tasks import resolve\n"
        "TASK = replace(resolve('reading'), name='mine')\nNUMBER = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert isinstance(resolve("task_of_mine.TASK"), Task)
    for name, said in (
        ("task_of_mine.TASC", r"has no 'TASC' \(did you mean 'TASK'\?\)"),
        ("task_of_mine.NUMBER", r"has to be a calibrant.tasks.Task, got a int"),
        ("no_such_module.TASK", r"the module 'no_such_module' cannot be imported"),
        ("task", r"or give the dotted path of a Task object"),
    ):
        with pytest.raises(CalibrantError, match=said):
            resolve(name)


# The commands


@pytest.mark.parametrize("task", ["reading", "maths", "choice"])
def test_train_evaluate_analyze_and_score_on_own_data(tmp_path, monkeypatch, task):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("calibrant.analyze.tables.RESAMPLES", 10)
    own = ["--task", task, "--data", str(write(tmp_path, task, 12)), "--test-share", "0.3"]
    short = ["--max-completion-length", "4"]
    small = ["--steps", "2", "--prompts-per-step", "2", "--rollouts", "4", "--eval-prompts", "3", "--eval-samples", "2"]
    assert main(["train", *own, *small, *short, "--out", "run"]) == 0
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text())["after"]["prompts"] == 3
    evaluated = ["evaluate", "run", *own, *short, "--prompts", "9", "--samples", "2", "--out", "judged"]
    assert main(evaluated) == 0
    assert json.loads((tmp_path / "judged" / "evaluation.json").read_text())["prompts"] == 4
    assert main(["analyze", *own, *short, "--queries", "2", "--rollouts", "3", "--out", "analysis"]) == 0
    assert main(["score", "judged/rollouts.parquet", "--task", task]) == 0
    assert main(["evaluate", "--from-rollouts", "judged/rollouts.parquet", "--task", task]) == 0
