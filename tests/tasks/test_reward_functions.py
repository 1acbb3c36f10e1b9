"""Reward functions of one's own and of TRL, from the command line."""

import json
from pathlib import Path

import pandas as pd
import pytest
from builders_tasks import lines
from refusals import refused

from calibrant.cli.main import main
from calibrant.errors import CalibrantError
from calibrant.options import DataOptions
from calibrant.tasks import chosen_task, resolve
from calibrant.tasks.rewards import UNKNOWN, reward_set, rewards_of, with_rewards

MODULE = """
def brevity(completions, **_):
    return [-len(text) / 100 for text in completions]
brevity.reward_range = (-1, 0)
def length(completions, weight, **_):
    return [w * len(text) for w, text in zip(weight, completions)]
async def later(completions, weight, **_):
    return weight
def broken(completions, weight, **_):
    return [1 / (w - 7) for w in weight]
def word(completions, **_):
    return ["good" for _ in completions]
def one(completions, **_):
    return [1.0]
def narrow(completions):
    return [1.0 for _ in completions]
def wide(completions, **_):
    return [1.0 for _ in completions]
wide.reward_range = 3
NUMBER = 5
"""
ROWS = [{"prompt": f"Name the number {i}.", "weight": i % 9, "a name": i} for i in range(24)]


@pytest.fixture
def folder(tmp_path, monkeypatch, request):
    """A folder with data and a module of reward functions, whose name differs per test."""
    lines(tmp_path / "mine.jsonl", ROWS)
    name = f"rewards_of_{abs(hash(request.node.name))}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def rows_of(count):
    return chosen_task(DataOptions(task="chat", data="mine.jsonl", test_share=1.0)).load("test", count, 0)


# What functions get


def scored(task, names, rows, completions, weights=None):
    rewards = with_rewards(task, reward_set(task, names, weights)).rewards
    return rewards_of(rewards, rows, [row["prompt"] for row in rows], completions, [[1] * 3 for _ in rows])


def test_functions_get_the_columns_of_their_rows(folder):
    rows = rows_of(6)
    found = scored(resolve("chat"), [f"{folder}.length", f"{folder}.later"], rows, ["ab"] * 6, [1.0, 0.5])
    weight = [row["columns"]["weight"] for row in rows]
    assert found["rewards/length"] == found["reward"] == [2.0 * w for w in weight]  # signals read the first one
    assert found["rewards/later"] == weight and found["total_reward"] == [2.5 * w for w in weight]


def test_signals_read_the_reward_of_the_task_if_it_is_among_them(folder):
    task = resolve("reading")
    rows = [{"prompt_id": "a", "prompt": "?", "references": ["x"]}]
    found = scored(task, [f"{folder}.brevity", "task_reward"], rows, ["x y"])
    assert found["reward"] == [pytest.approx(4 / 3)] and found["total_reward"] == [pytest.approx(4 / 3 - 0.03)]
    assert with_rewards(task, reward_set(task, [f"{folder}.brevity", "task_reward"], None)).reward_range == (0.0, 2.0)
    assert with_rewards(task, reward_set(task, [f"{folder}.brevity"], None)).reward_range == (-1.0, 0.0)
    assert with_rewards(task, reward_set(task, [f"{folder}.length"], None)).reward_range == UNKNOWN


@pytest.mark.parametrize("turned", [False, True])
def test_trls_own_functions_score_texts_and_turns(turned):
    rows = [{"prompt_id": str(i), "prompt": "?", "references": ["1/2"]} for i in range(3)]
    texts = [r"<think>a</think>\boxed{0.5}", r"\boxed{2}", "<think>"]
    completions = [[{"role": "assistant", "content": t}] for t in texts] if turned else texts
    names = ["accuracy_reward", "reasoning_accuracy_reward", "think_format_reward", "get_soft_overlong_punishment"]
    found = scored(resolve("maths"), names, rows, completions)
    assert found["rewards/accuracy_reward"] == [1.0, 0.0, 0.0] == found["reward"]
    assert found["rewards/think_format_reward"] == [1.0, 0.0, 0.0]
    assert found["rewards/soft_overlong_punishment_reward"] == [0.0, 0.0, 0.0]
    assert found["rewards/reasoning_accuracy_reward"][0] == 1.0


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (
            "broken",
            "'broken' raised ZeroDivisionError: division by zero for completion {i} of the row 'mine-{n}'; return",
        ),
        ("word", "'word' returned 'good' for completion 0 of the row 'mine-{first}'; return one number per completion"),
        ("one", "'one' returned 1 rewards for 12 completions; return one per completion"),
        ("narrow", r"unexpected keyword argument '\w+'.*; add \*\*kwargs to its parameters"),
    ],
)
def test_a_faulty_function_is_named_with_the_row(folder, function, said):
    rows = rows_of(12)
    i = next(i for i, row in enumerate(rows) if row["columns"]["weight"] == 7)
    said = said.format(i=i, n=rows[i]["columns"]["a name"] + 1, first=rows[0]["columns"]["a name"] + 1)
    with pytest.raises(CalibrantError, match=f"^the reward function {'.*' if function == 'narrow' else ''}{said}"):
        scored(resolve("chat"), [f"{folder}.{function}"], rows, ["ab"] * 12)


# Names and weights


@pytest.mark.parametrize(
    ("names", "weights", "said"),
    [
        (["accuracy_rewrd"], None, "unknown reward function 'accuracy_rewrd' (did you mean 'accuracy_reward'?)"),
        (["{m}.brevty"], None, "has no 'brevty' (did you mean 'brevity'?)"),
        (["{m}.NUMBER"], None, "has to be a function, got a int"),
        (["{m}.wide"], None, "wide.reward_range is 3; it has to be (lowest, highest)"),
        (["no_module_here.f"], None, "the module 'no_module_here' cannot be imported"),
        (["{m}.brevity", "{m}.brevity"], None, "brevity' twice; give each one once"),
        (["{m}.brevity"], [1.0, 2.0], "gives 2 numbers for 1 reward functions"),
        (["task_reward"], None, "the task 'chat' has no reward of its own; leave out 'task_reward'"),
    ],
)
def test_names_that_are_none(folder, names, weights, said):
    with pytest.raises(CalibrantError) as refusal:
        reward_set(resolve("chat"), [name.format(m=folder) for name in names], weights)
    assert said in str(refusal.value) and "\n" not in str(refusal.value)


# Commands

CHAT = ["--task", "chat", "--data", "mine.jsonl"]
SMALL = [
    "--steps", "2", "--prompts-per-step", "2", "--rollouts", "4", "--eval-prompts", "2", "--eval-samples", "2",
    "--max-completion-length", "4",
]  # fmt: skip


def test_a_chat_is_trained_evaluated_and_analyzed_on_several_rewards(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("calibrant.analyze.tables.RESAMPLES", 10)
    funcs = ["--reward-funcs", f"{folder}.brevity", f"{folder}.length", "--reward-weights", "1", "0.1"]
    assert main(["train", *CHAT, *SMALL, *funcs, "--out", "run"]) == 0
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    for row in metrics:
        total = row["rewards/brevity/mean"] + 0.1 * row["rewards/length/mean"]
        assert row["reward"] == pytest.approx(total, abs=1e-5) and row["batch/reward_out_of_range"] == 0
    evaluated = json.loads((tmp_path / "run" / "evaluation.json").read_text())["after"]
    assert list(evaluated["sampled"]) == ["rewards/brevity", "rewards/length"]
    assert main(["evaluate", "run", *CHAT, *funcs, *SMALL[-2:], "--samples", "2", "--out", "judged"]) == 0
    frame = pd.read_parquet("judged/rollouts.parquet")
    assert (frame["reward"] == frame["rewards/brevity"]).all()
    assert frame["total_reward"].tolist() == pytest.approx((frame["reward"] + 0.1 * frame["rewards/length"]).tolist())
    assert main(["analyze", *CHAT, *funcs, *SMALL[-2:], "--queries", "2", "--rollouts", "3", "--out", "analysis"]) == 0


def test_what_commands_say_of_rewards_that_do_not_fit(folder, capsys):
    length = ["--reward-funcs", f"{folder}.length"]
    out = ["--out", "none"]
    for command in (["train", *SMALL], ["analyze"]):
        said = refused(capsys, *command, *CHAT, *length, *out)
        assert "nothing says what 'length' can return; give --reward-range LOW HIGH" in said
    for command in (["train", *SMALL], ["analyze"], ["evaluate", "demo"]):
        assert "'chat' has no reward of its own; give --reward-funcs" in refused(capsys, *command, *CHAT, *out)
    assert "--reward-weights goes with --reward-funcs" in refused(capsys, "train", "--reward-weights", "1", *out)
    lines(Path("r.jsonl"), [{"prompt_id": "a", "completion": "x", "correct": 1}])
    said = refused(capsys, "evaluate", "--from-rollouts", "r.jsonl", *length)
    assert "leave them out with --from-rollouts" in said


def test_methods_that_read_no_range_need_none(folder, tmp_path):
    length = ["--reward-funcs", f"{folder}.length", "--method", "grpo", "--no-evaluation"]
    assert main(["train", *CHAT, *SMALL, *length, "--out", "run"]) == 0
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert row["batch/reward_out_of_range"] == 0


def test_functions_that_read_the_policy_are_for_training_alone(folder, tmp_path, capsys):
    own = ["--reward-funcs", "calibrant.rewards.self_certainty", "--method", "grpo", "--out", "run"]
    for command in (["train", *SMALL, *own], ["evaluate", "demo", *own[:2]]):
        assert "reads the policy that is trained" in refused(capsys, *command, *CHAT)
    assert main(["train", *CHAT, *SMALL, *own, "--no-evaluation"]) == 0
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert row["rewards/self_certainty/mean"] > 0
    both = [f"{folder}.brevity", "calibrant.rewards.self_certainty"]
    assert (
        main(["evaluate", "demo", *CHAT, "--prompts", "2", "--samples", "2", *SMALL[-2:], "--reward-funcs", *both]) == 0
    )
    assert "rewards/self_certainty" not in capsys.readouterr().out


def test_the_rewards_of_the_package_say_their_range():
    for name, expected in (("brier", (-1.0, 1.0)), ("semantic_calibration", (0.0, 1.0)), ("self_certainty", UNKNOWN)):
        assert reward_set(resolve("maths"), [f"calibrant.rewards.{name}"], None).read.range == expected


def test_methods_that_read_no_reward_need_none(folder):
    assert main(["train", *CHAT, *SMALL, "--method", "empo", "--no-evaluation", "--out", "run"]) == 0
