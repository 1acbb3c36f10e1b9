"""HotpotQA, distractor setting: questions that need two of ten paragraphs (Yang et al., 2018).

The official test set has no answers, so that the development set is the evaluation split.
"""

from collections.abc import Iterable, Sequence

from calibrant.tasks.files import Record
from calibrant.tasks.reading import reading_task
from calibrant.tasks.sources import Hub, Item, Source
from calibrant.text.metrics import normalise_answer, reference_list, token_f1

FILES = {"train": "hotpot_train_v1.1.json", "validation": "hotpot_dev_distractor_v1.json"}
CLOSED = ("yes", "no", "noanswer")


def hotpotqa_f1(answer: str, references: Sequence[str]) -> float:
    """Token F1 with the rule of the official evaluation: no partial credit for or against "yes" and "no".

    >>> hotpotqa_f1("no", ["no"]), hotpotqa_f1("no, he is not", ["no"]), hotpotqa_f1("in Ohio", ["Ohio"])
    (1.0, 0.0, 0.6666666666666666)
    """
    return max((_f1(answer, reference) for reference in reference_list(references)), default=0.0)


def _f1(answer: str, reference: str) -> float:
    predicted, gold = normalise_answer(answer), normalise_answer(reference)
    return 0.0 if predicted != gold and (predicted in CLOSED or gold in CLOSED) else token_f1(answer, [reference])


def parse_hotpotqa(record: Record) -> Iterable[Item]:
    """A question, with paragraphs as in the official list or as in the hub's columns."""
    context = record["context"]
    paragraphs = zip(context["title"], context["sentences"], strict=True) if isinstance(context, dict) else context
    text = "\n\n".join(f"{title}\n{''.join(sentences).strip()}" for title, sentences in paragraphs)
    yield Item(record["_id"] if "_id" in record else record.get("id", ""), record["question"], [record["answer"]], text)


TASK = reading_task(
    "hotpotqa",
    "questions that need two of ten paragraphs",
    source=Source(
        hubs={split: Hub("hotpotqa/hotpot_qa", split, ("distractor",)) for split in FILES},
        files={
            split: (name, f"distractor/{split}-*.parquet", f"{split}-*.parquet", f"distractor/{split}/*.parquet")
            for split, name in FILES.items()
        },
        schema="hotpot_train_v1.1.json and hotpot_dev_distractor_v1.json",
        url="https://hotpotqa.github.io",
        parse=parse_hotpotqa,
        needs_context=True,
    ),
    instruction="Read the paragraphs and answer the question with a name, a phrase, yes or no.",
    max_completion_length=32,
    f1=hotpotqa_f1,
)
