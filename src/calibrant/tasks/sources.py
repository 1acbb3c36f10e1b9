"""Sources of benchmark rows: a data set of the hub, or a folder with its official files."""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import NamedTuple

from calibrant import hub
from calibrant.errors import CalibrantError, reason, shortened
from calibrant.tasks.files import Record, nested, records

logger = logging.getLogger(__name__)

PLAIN = "question, answers (a list) and, where there is one, context and id"
OTHER_NAMES = {"validation": ("validation", "valid", "dev")}


class Item(NamedTuple):
    """A question from a source."""

    id: str
    question: str
    answers: list[str]
    context: str = ""


class Hub(NamedTuple):
    """A split of a data set of the hub; its scripts are never run."""

    repository: str
    split: str
    configs: tuple[str | None, ...] = (None,)
    revision: str = "main"


@dataclass(frozen=True)
class Source:
    """The source of a task's rows, by split.

    `join` reads contexts that are in another file: `(file, its records, split) -> records`.
    """

    hubs: Mapping[str, Hub]
    files: Mapping[str, tuple[str, ...]]  # patterns of the official files; the first pattern that matches is read
    schema: str  # the fields of the official files, in words
    url: str  # of the official files
    parse: Callable[[Record], Iterable[Item]]  # a KeyError or TypeError means another schema
    columns: tuple[str, ...] = ()  # of Parquet files to read, nested ones with dots; all when empty
    folders: tuple[str, ...] = ()  # further names, beside the task's own, of its folder in the data folder
    join: Callable[[Path, Iterator[Record], str], Iterator[Record]] | None = None
    divide: Callable[[list[Item], str], list[Item]] | None = None  # chooses a split, if one file has all splits
    needs_context: bool = False  # whether to leave out questions without a context
    keep: Callable[[Record, str], bool] | None = None  # whether to read a record of a split


@dataclass(frozen=True)
class LoadReport:
    """Numbers of questions read and left out."""

    task: str
    split: str
    origin: str
    rows: int
    left_out: Mapping[str, list[str]]

    def __str__(self) -> str:
        lost = [f"{len(ids)} {why} ({shortened(ids)})" for why, ids in self.left_out.items()]
        return f"{self.task} {self.split}: {self.rows} questions from {self.origin}" + (
            f"; left out: {'; '.join(lost)}" if lost else ""
        )


def read_items(task: str, source: Source, split: str, data_dir: Path | None = None) -> tuple[list[Item], LoadReport]:
    """The questions of a split that have an answer, with unique ids, in the order of the source, and a report.

    `data_dir` is a folder with the official files, or with such a folder under the task's name; the hub when None.
    """
    if data_dir is None:
        origin, items = f"{source.hubs[split].repository} (hub)", list(_from_hub(task, source, split))
    else:
        paths = source_files(task, source, split, data_dir)
        origin = f"'{paths[0]}'" + (f" and {len(paths) - 1} more files" if len(paths) > 1 else "")
        items = [item for path in paths for item in _from_file(source, path, split)]
    chosen = source.divide(items, split) if source.divide else items
    kept, left_out = _filtered(_with_ids(chosen, f"{task}-{split}"), source.needs_context)
    report = LoadReport(task, split, origin, len(kept), left_out)
    logger.log(logging.WARNING if left_out else logging.INFO, "%s", report)
    if not kept:
        levels = "a level of --levels, " if source.keep else ""
        raise CalibrantError(f"{report}: no question is left; expected {levels}{source.schema}, or {PLAIN}")
    return kept, report


def source_files(task: str, source: Source, split: str, data_dir: Path) -> list[Path]:
    """The files of a split that match its first matching pattern."""
    if not data_dir.is_dir():
        raise CalibrantError(f"--data-dir '{data_dir}' is no folder; give the one that holds the files of {task}")
    plain = [f"{name}{end}" for name in OTHER_NAMES.get(split, (split,)) for end in (".jsonl", ".jsonl.gz")]
    patterns = list(dict.fromkeys([*source.files[split], *plain]))
    for folder in [data_dir / name for name in (task, *source.folders)] + [data_dir]:
        for pattern in patterns:
            if paths := sorted(path for path in folder.glob(pattern) if path.is_file()):
                return paths
    raise CalibrantError(
        f"'{data_dir}' holds no file of {task}, split {split}: looked there and in '{task}' for {', '.join(patterns)}. "
        f"Expected are the official files ({source.schema}; from {source.url}), or JSON Lines with {PLAIN}"
    )


def _from_file(source: Source, path: Path, split: str) -> Iterator[Item]:
    rows = records(path, source.columns)
    return _parsed(source, source.join(path, rows, split) if source.join else rows, f"'{path}'", split)


def _from_hub(task: str, source: Source, split: str) -> Iterator[Item]:
    at = source.hubs[split]
    for config in at.configs:
        where = f"{at.repository}{f' ({config})' if config else ''} of the hub"
        try:
            rows = _hub_rows(at, config, list(source.columns))
        except Exception as error:  # datasets and huggingface_hub raise many types
            raise CalibrantError(_unreachable(task, source, where, error)) from None
        yield from _parsed(source, map(nested, rows), where, split)


def _hub_rows(at: Hub, config: str | None, columns: list[str]) -> Iterable[Record]:
    import datasets

    if not hub.reachable():
        datasets.config.HF_HUB_OFFLINE = True  # datasets reads the environment on import alone
    rows = datasets.load_dataset(at.repository, config, split=at.split, revision=at.revision)
    flat = rows.flatten() if columns else rows
    return flat.select_columns([name for name in columns if name in flat.column_names]) if columns else rows


def _unreachable(task: str, source: Source, where: str, error: Exception) -> str:
    unreachable = "is not cached, and the hub cannot be reached"
    problem = f"could not be loaded ({reason(error)})" if hub.reachable() else unreachable
    return f"{where} {problem}; give --data-dir a folder with the files of {task} ({source.schema}; from {source.url})"


def _parsed(source: Source, rows: Iterator[Record], where: str, split: str) -> Iterator[Item]:
    for number in count(1):
        try:
            record = next(rows, None)
            if record is None:
                return
            if source.keep is None or source.keep(record, split):
                yield from map(_texts_only, _plain(record) or source.parse(record))
        except CalibrantError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CalibrantError(
                f"record {number} of {where} is of another schema ({type(error).__name__}: {error}); "
                f"expected {source.schema}, or {PLAIN}"
            ) from None


def _texts_only(item: Item) -> Item:
    """The question with null texts as ""; raises TypeError for anything else than text."""
    texts = [text or "" for text in (item.question, item.context, *item.answers)]
    if wrong := next((text for text in texts if not isinstance(text, str)), None):
        raise TypeError(f"{wrong!r} is no text")
    return Item(str(item.id or ""), texts[0], texts[2:], texts[1])


def _plain(record: Record) -> list[Item]:
    """The question of a record in the plain schema that every task reads, a question and a list of answers, else []."""
    question, answers = record.get("question"), record.get("answers")
    if not isinstance(question, str) or not isinstance(answers, list) or not all(isinstance(a, str) for a in answers):
        return []
    return [Item(record.get("id") or "", question, answers, record.get("context") or "")]


def _with_ids(items: list[Item], prefix: str) -> list[Item]:
    seen: Counter[str] = Counter()
    result = []
    for i, item in enumerate(items):
        name = item.id or f"{prefix}-{i}"
        seen[name] += 1
        result.append(item._replace(id=name if seen[name] == 1 else f"{name}#{seen[name]}"))
    return result


def _filtered(items: list[Item], needs_context: bool) -> tuple[list[Item], dict[str, list[str]]]:
    """The complete questions, and the ids of the others by what they lack."""
    kept: list[Item] = []
    left_out: dict[str, list[str]] = {}
    for item in items:
        item = item._replace(answers=[answer.strip() for answer in item.answers if answer.strip()])
        if not item.question.strip():
            left_out.setdefault("without a question", []).append(item.id)
        elif not item.answers:
            left_out.setdefault("without an answer", []).append(item.id)
        elif needs_context and not item.context.strip():
            left_out.setdefault("without a text", []).append(item.id)
        else:
            kept.append(item)
    return kept, left_out
