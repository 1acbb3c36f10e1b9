"""What question answering over a text has in common: prompt, answer, reward 2 x token F1."""

import re
from collections.abc import Callable, Sequence

from calibrant.tasks.base import Pooled, Row, Task
from calibrant.tasks.loading import loader
from calibrant.tasks.sources import Item, Source
from calibrant.text.bleu import bleu_counts, bleu_of_counts, sentence_bleu
from calibrant.text.extract import first_line
from calibrant.text.metrics import exact_match, normalise_answer, token_f1

Metric = Callable[[str, Sequence[str]], float]


def reading_task(
    name: str,
    summary: str,
    *,
    source: Source,
    splits: tuple[str, ...],
    instruction: str,
    max_completion_length: int,
    f1: Metric = token_f1,
    bleu: bool = False,
) -> Task:
    """A task of question answering over a text.

    The reward is `2 x F1`, in [0, 2] (GCPO, table 5); an answer is correct at `F1 > 0.5` (section 4.1); the extracted
    answer carries the meaning (appendix E.3).

    Args:
        name: of the task.
        summary: one line.
        source: where its rows come from.
        splits: that it has, training split first, evaluation split last.
        instruction: what stands above the text.
        max_completion_length: tokens that a completion may take.
        f1: `(answer, references) -> F1`.
        bleu: whether BLEU is a metric too: of each answer alone, and of all as one corpus.
    """
    extra = {"sentence_bleu": sentence_bleu} if bleu else {}
    return Task(
        name=name,
        summary=summary,
        splits=splits,
        load=loader(name, source, splits, lambda item: row_of(item, instruction)),
        extract=extract,
        reward=lambda answer, references: 2.0 * f1(answer, references),
        reward_range=(0.0, 2.0),
        metrics={"f1": f1, "em": exact_match, **extra},
        correct=lambda answer, references: f1(answer, references) > 0.5,
        key=normalise_answer,
        meaning="answer",
        max_completion_length=max_completion_length,
        source=source,
        pooled={"corpus_bleu": Pooled(bleu_counts, bleu_of_counts)} if bleu else {},
    )


def row_of(item: Item, instruction: str) -> Row:
    """A question with its text between instruction and question, as plain text and as one user turn.

    References stand on one line, as the answers do that `extract` finds.
    """
    asked = f"{instruction}\n\n{item.context}\n\nQuestion: {item.question}"
    return {
        "prompt_id": item.id,
        "prompt": f"{asked}\nAnswer:",
        "messages": [{"role": "user", "content": asked}],
        "references": [" ".join(answer.split()) for answer in item.answers],
        "context": item.context,
    }


def extract(completion: str) -> str:
    """The first line of a completion, without an "Answer:" before it.

    >>> extract(" Answer: Paris\\n\\nIt is the capital."), extract("")
    ('Paris', '')
    """
    return re.sub(r"^answer:\s*", "", first_line(completion), flags=re.IGNORECASE)
