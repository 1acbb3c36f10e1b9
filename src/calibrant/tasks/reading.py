"""Reading comprehension: prompt, answer, and the reward 2 x token F1."""

import re
from collections.abc import Callable, Sequence

from calibrant.tasks.base import Pooled, Row, Task, loader, splits_of
from calibrant.tasks.sources import Item, Source
from calibrant.text.bleu import bleu_counts, bleu_of_counts, sentence_bleu
from calibrant.text.extract import first_line
from calibrant.text.metrics import exact_match, normalise_answer, token_f1

Metric = Callable[[str, Sequence[str]], float]


def reading_task(
    name: str,
    summary: str,
    *,
    source: Source | None,
    instruction: str,
    max_completion_length: int,
    f1: Metric = token_f1,
    bleu: bool = False,
) -> Task:
    """A reading-comprehension task: questions about a context.

    The reward is `2 x F1`, in [0, 2] (GCPO, table 5); an answer is correct at `F1 > 0.5` (section 4.1); the extracted
    answer is embedded and clustered (appendix E.3). `instruction` is the first lines of each prompt, before the
    context; `bleu` adds sentence BLEU and corpus BLEU to the metrics; other arguments are fields of `Task`.
    """
    extra = {"sentence_bleu": sentence_bleu} if bleu else {}
    return Task(
        name=name,
        summary=summary,
        splits=splits_of(source),
        load=loader(name, source, lambda item: reading_row(item, instruction)),
        extract=short_answer,
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


def reading_row(item: Item, instruction: str) -> Row:
    """Instruction, context and question as plain text and as one user message.

    White space in references becomes single spaces, since `short_answer` keeps one line of a completion.
    """
    text = f"{instruction}\n\n{item.context}\n\nQuestion: {item.question}"
    return {
        "prompt_id": item.id,
        "prompt": f"{text}\nAnswer:",
        "messages": [{"role": "user", "content": text}],
        "references": [" ".join(answer.split()) for answer in item.answers],
        "context": item.context,
    }


def short_answer(completion: str) -> str:
    """The first line of a completion, without "Answer:" in front.

    >>> short_answer(" Answer: Paris\\n\\nIt is the capital."), short_answer("")
    ('Paris', '')
    """
    return re.sub(r"^answer:\s*", "", first_line(completion), flags=re.IGNORECASE)
