"""Conversations as text: pictures, tool calls, and a run with tools."""

import json
import re

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image
from test_trainer import arguments, train

from calibrant.rollouts import read_rollouts
from calibrant.text.messages import as_text
from calibrant.trl import CalibratedGRPOTrainer

PICTURE = Image.new("RGB", (2, 2))
CALL = {"type": "function", "function": {"name": "multiply", "arguments": {"a": 3, "b": 4}}}
MESSAGES = {
    "picture": (
        [{"type": "image", "image": PICTURE}, {"type": "text", "text": "What is it?"}],
        "user: <image>What is it?",
    ),
    "two pictures": (
        [{"type": "image"}, {"type": "text", "text": " or "}, {"type": "image"}],
        "user: <image> or <image>",
    ),
    "address": ([{"type": "image_url", "image_url": {"url": "data:..."}}], "user: <image>"),
    "sound": ([{"type": "text", "text": "Hear: "}, {"type": "audio", "audio": np.zeros(3)}], "user: Hear: <audio>"),
    "sound of OpenAI": ([{"type": "input_audio", "input_audio": {}}], "user: <audio>"),
    "film": ([{"type": "video", "video": object()}], "user: <video>"),
    "texts": (["one ", {"type": "text", "text": "two"}], "user: one two"),
    "text without a type": ([{"text": "plain"}], "user: plain"),
    "unknown part": ([{"type": "mesh", "mesh": object()}], "user: <mesh>"),
    "object": ([PICTURE], "user: <Image>"),
    "nothing": (None, "user: "),
    "empty": ([], "user: "),
    "null text": ([{"type": "text", "text": None}], "user: "),
}


@pytest.mark.parametrize("kind", list(MESSAGES))
def test_contents_are_texts_without_addresses(kind):
    content, expected = MESSAGES[kind]
    assert as_text([{"role": "user", "content": content}]) == expected
    assert not re.search(r"0x[0-9a-f]{4}", as_text([{"role": "user", "content": content}]))


@pytest.mark.parametrize(
    ("turn", "expected"),
    [
        ({"content": "", "tool_calls": [CALL]}, 'multiply({"a": 3, "b": 4})'),
        ({"content": "Let me see.", "tool_calls": [CALL, CALL]},
         'Let me see.\nmultiply({"a": 3, "b": 4})\nmultiply({"a": 3, "b": 4})'),
        ({"tool_calls": [CALL["function"]]}, 'multiply({"a": 3, "b": 4})'),
        ({"content": None, "tool_calls": [{"function": {"name": "f", "arguments": '{"x":1}'}}]}, 'f({"x":1})'),
        ({"content": "12", "tool_calls": None}, "12"),
        ({"content": None, "tool_calls": [{"function": {"name": "f", "arguments": {"x": PICTURE}}}]},
         'f({"x": "<Image>"})'),
    ],
)  # fmt: skip
def test_tool_calls_are_readable(turn, expected):
    assert as_text([{"role": "assistant", **turn}]) == expected


def test_turns_stand_with_their_roles():
    turns = [
        {"role": "assistant", "tool_calls": [CALL]},
        {"role": "tool", "name": "multiply", "content": "12"},
        {"role": "tool", "name": "draw", "content": [{"type": "image", "image": PICTURE}]},
        {"role": "assistant", "content": "It is 12."},
    ]
    expected = 'assistant: multiply({"a": 3, "b": 4})\ntool: 12\ntool: <image>\nassistant: It is 12.'
    assert as_text(turns) == expected


def letters(completions, **_):
    return [len(json.dumps(c)) % 5 / 5 for c in completions]


@pytest.mark.parametrize("share", [True, False])
def test_content_lists_train_and_are_written_as_text(talking, questions, tmp_path, share):
    chats = [
        {"prompt": [{"role": "user", "content": [{"type": "text", "text": row["prompt"]}]}]}
        for row in questions.to_list()
    ]
    args = arguments(tmp_path, method="rd_only", max_steps=1, share_prefix=share)
    model, tokenizer = talking()
    tokenizer.chat_template = (
        "{% for m in messages %}{% for p in m['content'] %}{{ p['text'] }}{% endfor %}{% endfor %}"
    )
    train(model, Dataset.from_list(chats), args, letters, processing_class=tokenizer)
    rows = read_rollouts(tmp_path / "_rollouts" / "step-000001.parquet")
    assert rows.prompt_id.nunique() == 2
    assert set(rows.prompt) <= {f"user: {row['prompt']}" for row in questions.to_list()}


class Calling(CalibratedGRPOTrainer):
    """A policy that calls the tool at its first turn, and answers at its second."""

    def _generate_single_turn(self, prompt_ids, *_args, **_keywords):
        answered = ["<tool_response>\n12" in self._tokenizer.decode(ids) for ids in prompt_ids]
        call = '<tool_call>\n{"name": "multiply", "arguments": {"a": 3, "b": 4}}\n</tool_call>'
        texts = [f"It is 1{i % 3}." if done else call for i, done in enumerate(answered)]
        return [self._tokenizer(f"{text}<|im_end|>")["input_ids"] for text in texts], None


def multiply(a: int, b: int) -> int:
    """Multiplies two numbers.

    Args:
        a: The first.
        b: The second.
    """
    return a * b


@pytest.mark.parametrize("changes", [{"method": "grpo"}, {"method": "test_functions.reading_all"}])
def test_tools(talking, questions, tmp_path, changes):
    model, tokenizer = talking()
    chats = [
        {"prompt": [{"role": "user", "content": row["prompt"]}], "references": "12"} for row in questions.to_list()
    ]
    args = arguments(tmp_path, max_steps=1, max_completion_length=512, beta=0.0, **changes)
    trainer = train(
        model, Dataset.from_list(chats), args, letters, kind=Calling, processing_class=tokenizer, tools=[multiply],
        extract_answer=lambda text: text.rpartition("It is ")[2].strip(" ."),
        is_correct=lambda answer, references: answer in references,
    )  # fmt: skip
    rows = read_rollouts(tmp_path / "_rollouts" / "step-000001.parquet")
    assert trainer.state.log_history[0]["tools/call_frequency"] == 1
    assert rows.completion[0] == 'assistant: multiply({"a": 3, "b": 4})\ntool: 12\nassistant: It is 10.'
    assert rows.answer[:3].tolist() == ["10", "11", "12"]
    assert rows.correct[:3].tolist() == [False, False, True]
