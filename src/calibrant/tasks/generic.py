"""Tasks for data of one's own: `reading`, `maths`, `choice` and `chat`, on the rows that `--data` names."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from calibrant.tasks import cells
from calibrant.tasks.base import Row, Task, loader
from calibrant.tasks.maths import maths_row, maths_task
from calibrant.tasks.reading import reading_row, reading_task
from calibrant.tasks.schema import Role, Schema, WrongCell
from calibrant.tasks.sources import Item
from calibrant.text.extract import boxed, first_line, stated_answer
from calibrant.text.keys import choice
from calibrant.text.metrics import normalise_answer, reference_list

READING_INSTRUCTION = "Read the text and answer the question in a few words."
CHOICE_INSTRUCTION = "Answer the question with the letter of the right option."

ID = Role(("id",), cells.text, "a name of the row", required=False)
QUESTION = Role(("question", "query", "problem"), cells.text, "the question")
LEVEL = Role(("level",), cells.text, "the difficulty, for --levels", required=False)
CONTEXT = Role(("context", "passage", "text"), cells.paragraphs, "the text that the question is about")
ANSWERS = Role(("answers", "answer"), cells.texts, "the right answer, or a list of right ones")


def _written(row: Row, text: str | None) -> Row:
    """The row, with the text of a prompt template as its prompt."""
    return row if text is None else {**row, "prompt": text, "messages": [{"role": "user", "content": text}]}


def _item(values: Mapping[str, Any]) -> Item:
    return Item("", values["question"], values["answers"], values.get("context") or "")


def _choice_row(values: Mapping[str, Any], text: str | None) -> Row:
    try:
        letter = cells.chosen(values["answers"], values["options"])
    except ValueError as error:
        raise WrongCell("answers", str(error)) from None
    fields = choice_texts(values)
    parts = (CHOICE_INSTRUCTION, fields.get("context"), f"Question: {fields['question']}\n{fields['options']}")
    message = "\n\n".join(part for part in parts if part)
    row: Row = {
        "prompt_id": "",
        "prompt": f"{message}\nAnswer:",
        "messages": [{"role": "user", "content": message}],
        "references": [letter],
    }
    return _written({**row, "context": values["context"]} if values.get("context") else row, text)


def _right(answer: str, references: str | Sequence[str]) -> bool:
    return bool(answer) and choice(answer) in map(choice, reference_list(references))


def choice_texts(values: Mapping[str, Any]) -> dict[str, str]:
    """The texts of a multiple choice for a prompt: question, context, and options, one per line with its letter."""
    options: cells.ChoiceOptions = values["options"]
    lines = [f"{letter}. {text}" for letter, text in zip(cells.letters(len(options.texts)), options.texts, strict=True)]
    return _texts({**values, "options": "\n".join(lines)})


def chosen_letter(completion: str) -> str:
    r"""The letter that a completion chooses: boxed, stated as the answer, or at the start of the first or last line.

    >>> [chosen_letter(t) for t in (" B", "C. Nice", r"so \boxed{A}", "2 is even.\nThe answer is (D).", "I think so")]
    ['B', 'C', 'A', 'D', '']
    """
    last = completion.strip().rpartition("\n")[2]
    for text in (boxed(completion), stated_answer(completion), first_line(completion), last):
        if len(letter := choice(text)) == 1 and letter.isupper():
            return letter
    return ""


def whole(completion: str) -> str:
    """The completion, without white space around it."""
    return completion.strip()


def _chat_row(values: Mapping[str, Any], text: str | None) -> Row:
    prompt = values["prompt"] if text is None else text
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return {
        "prompt_id": "",
        "prompt": "\n\n".join(turn["content"] for turn in turns),
        "messages": turns,
        "references": values.get("answers") or [],
    }


def _chat_texts(values: Mapping[str, Any]) -> dict[str, str]:
    if not isinstance(values["prompt"], str):
        raise WrongCell("prompt", "holds turns, which a prompt template cannot take; leave out --prompt-template")
    return _texts(values)


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    return {name: value for name, value in values.items() if isinstance(value, str)}


READING = replace(
    reading_task(
        "reading",
        "questions about texts of your own (--data), answered in free text",
        source=None,
        instruction=READING_INSTRUCTION,
        max_completion_length=64,
    ),
    schema=Schema(
        {"question": QUESTION, "context": CONTEXT, "answers": ANSWERS, "id": ID},
        lambda values, text: _written(reading_row(_item(values), READING_INSTRUCTION), text),
        _texts,
    ),
)

MATHS = replace(
    maths_task("maths", "problems of your own (--data) with a final answer", source=None, max_completion_length=2048),
    schema=Schema(
        {
            "question": QUESTION._replace(names=("question", "problem")),
            "answers": Role(
                ("answers", "answer", "solution"), cells.final_answers, "the final answer, or a solution that boxes it"
            ),
            "level": LEVEL,
            "id": ID,
        },
        lambda values, text: _written(maths_row(_item(values)), text),
        _texts,
    ),
)

CHOICE = Task(
    name="choice",
    summary="multiple choice of your own (--data), answered with a letter",
    splits=("train", "test"),
    load=loader("choice"),
    extract=chosen_letter,
    reward=lambda answer, references: 2.0 * _right(answer, references),
    reward_range=(0.0, 2.0),
    metrics={},
    correct=lambda answer, references: _right(answer, references),
    key=lambda text: chosen_letter(text) or normalise_answer(text),
    meaning="answer",
    max_completion_length=64,
    kind="choice",
    reward_name="2 x correct",
    schema=Schema(
        {
            "question": QUESTION,
            "options": Role(("options", "choices"), cells.options, "the list of options"),
            "answers": Role(("answers", "answer", "label", "answerKey"), cells.given, "the right option"),
            "context": CONTEXT._replace(required=False),
            "id": ID,
        },
        _choice_row,
        choice_texts,
    ),
)

CHAT = Task(
    name="chat",
    summary="prompts of your own (--data), scored by reward functions alone (--reward-funcs)",
    splits=("train", "test"),
    load=loader("chat"),
    extract=whole,
    reward=lambda answer, references: math.nan,
    reward_range=(-math.inf, math.inf),
    metrics={},
    correct=lambda answer, references: False,
    key=normalise_answer,
    meaning="completion",
    max_completion_length=256,
    kind="chat",
    reward_name="none",
    judge=lambda answers, references: [None] * len(answers),
    schema=Schema(
        {
            "prompt": Role(("prompt", "messages"), cells.turns, "a text, or turns with role and content"),
            "answers": ANSWERS._replace(required=False, words="references for reward functions"),
            "id": ID,
        },
        _chat_row,
        _chat_texts,
    ),
)

GENERIC: dict[str, Task] = {task.name: task for task in (READING, MATHS, CHOICE, CHAT)}
"""The tasks that need the user's own data, by name."""
