"""Chat templates that are wrong, or take no system turn: seen before anything is written, in one sentence."""

import json
import shutil
from pathlib import Path

import pytest
from refusals import refused

from calibrant.cli.main import main
from calibrant.errors import CalibrantError
from calibrant.policy.models import load_tokenizer
from calibrant.tasks import TASKS
from calibrant.tasks.prompts import _warn_once, prompt_for, prompt_tokens, truncate_for_policy

TURNS = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] | trim }}\n{% endfor %}"
GEMMA = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + TURNS
ALTERNATES = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}{{ m['content'] }}{% endfor %}"
)
DROPS = "{% for m in messages if m['role'] != 'system' %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}"

WRONG = {
    "undefined name": ("{{ chat.turns[0] }}" + TURNS, "'chat' is undefined"),
    "undefined filter": ("{{ messages | shout }}", "No filter named 'shout'"),
    "syntax": ("{% for m in messages %}{{ m['content'] }}", "Unexpected end of template"),
    "sandbox": ("{{ messages.__class__.__mro__ }}", "access to attribute '__class__'"),
    "refusal": ("{{ raise_exception('no conversation at all') }}", "no conversation at all"),
    "expression": ("{{ 1 / 0 }}", "division by zero"),
    "types": ("{{ messages + 1 }}", "can only concatenate list"),
    "endless range": ("{% for i in range(10**9) %}x{% endfor %}", "Range too big"),
    "nothing": ("{% if false %}x{% endif %}", "renders a prompt as an empty text"),
    "spaces": ("{% for m in messages %} \n{% endfor %}", "renders a prompt as an empty text"),
    "no question": ("{% for m in messages %}<{{ m['role'] }}>{% endfor %}", "leaves the question out"),
}


def row(*turns, prompt="Add.\n\n1 + 1"):
    return {"prompt_id": "p", "prompt": prompt, "references": ["2"], "messages": list(turns)}


SYSTEM, USER = {"role": "system", "content": "Add. "}, {"role": "user", "content": "1 + 1"}


def with_template(template):
    tokenizer = load_tokenizer("demo")
    tokenizer.chat_template = template
    return tokenizer


def model_with(policy: str, folder: Path, template: str) -> str:
    """A copy of the embedded policy with a chat template."""
    shutil.copytree(policy, folder)
    (folder / "chat_template.jinja").write_text(template)
    return str(folder)


@pytest.fixture
def sums(tmp_path) -> list[str]:
    """Options of a mathematics task, whose prompts have a system turn, with small files of its own."""
    rows = [{"id": f"q{i}", "question": f"What is {i} + {i}?", "answers": [str(2 * i)]} for i in range(12)]
    for name in ("math500", "gsm8k"):
        for split in TASKS[name].splits:
            file = tmp_path / "data" / name / f"{split}.jsonl"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ["--task", "gsm8k", "--data-dir", str(tmp_path / "data")]


COMMANDS = {
    "train": [
        "train", "--steps", "1", "--prompts-per-step", "1", "--rollouts", "2", "--no-evaluation", "--method", "grpo",
        "--max-completion-length", "4", "--model",
    ],
    "evaluate": ["evaluate", "--prompts", "2", "--samples", "2", "--max-completion-length", "4"],
    "analyze": ["analyze", "--queries", "2", "--rollouts", "2", "--max-completion-length", "4", "--model"],
}  # fmt: skip


@pytest.mark.parametrize("template", [GEMMA, ALTERNATES, DROPS], ids=["refused", "alternating", "left out"])
def test_a_system_turn_that_a_template_does_not_take_stands_before_the_question(template, caplog):
    _warn_once.cache_clear()
    tokenizer, question = with_template(template), row(SYSTEM, USER)
    for _ in range(2):
        assert prompt_for(question, tokenizer) == [{"role": "user", "content": "Add. \n\n1 + 1"}]
    assert caplog.text.count("takes no system message") == 1
    assert question["messages"] == [SYSTEM, USER]
    answered = row(SYSTEM, USER, {"role": "assistant", "content": "2"}, USER)
    assert [turn["role"] for turn in prompt_for(answered, tokenizer)] == ["user", "assistant", "user"]


def test_a_system_turn_that_a_template_takes_stays():
    assert prompt_for(row(SYSTEM, USER), with_template(TURNS)) == [SYSTEM, USER]


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_run_with_a_template_that_refuses_system_turns(tmp_path, monkeypatch, policy, sums, command):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("calibrant.analyze.tables.RESAMPLES", 10)
    assert main([*COMMANDS[command], model_with(policy, tmp_path / "model", GEMMA), *sums, "--out", "out"]) == 0
    file = next((tmp_path / "out").rglob("step-*.parquet"), None) or next((tmp_path / "out").rglob("rollouts.*"))
    assert b"Please reason step by step" in file.read_bytes()


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_template_is_one_sentence(name):
    template, said = WRONG[name]
    rows = [row(SYSTEM, USER), row(SYSTEM, {"role": "user", "content": "2 + 2"}, prompt="Add.\n\n2 + 2")]
    with pytest.raises(CalibrantError, match="the model's chat template") as refusal:
        truncate_for_policy(rows, with_template(template), 100, 10)
    assert said in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", ["undefined name", "no question"])
def test_commands_refuse_a_wrong_template_before_anything_is_written(
    tmp_path, monkeypatch, capsys, policy, sums, command, name
):
    monkeypatch.chdir(tmp_path)
    template, said = WRONG[name]
    model = model_with(policy, tmp_path / "model", template)
    assert said in refused(capsys, *COMMANDS[command], model, *sums, "--out", "out")
    assert not (tmp_path / "out").exists()


def test_a_wrong_template_is_not_taken_for_a_question_that_is_too_long():
    with pytest.raises(CalibrantError, match="No filter named"):
        prompt_tokens(row(USER), with_template("{{ messages | shout }}"))
