"""The formats of rollouts: which columns of other tools hold what calibrant reads.

A format maps roles, the columns of a rollout file, to the columns of its files, as `--columns` does for one's own.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from calibrant.errors import CalibrantError, nearest
from calibrant.rollouts import lm_eval
from calibrant.rollouts.columns import COLUMNS, TYPES, read_column
from calibrant.rollouts.tables import Column, RowBlock
from calibrant.tasks import cells
from calibrant.tasks.schema import Role, cell, resolve_columns
from calibrant.text.messages import as_text

FLAGS = {"true": True, "false": False, "1": True, "0": False}  # of files that know texts alone


class Format(NamedTuple):
    """The files of one tool."""

    marks: tuple[tuple[str, ...], ...]  # names of columns; a file with all of one tuple is of this format
    columns: Mapping[str, tuple[str, ...]]  # role -> columns that hold it, the first one that exists
    expand: Callable[[RowBlock, str, str | None], RowBlock] | None = None  # rows that hold several rollouts


OWN = {name: (name,) for name in TYPES}
FORMATS: dict[str, Format] = {
    "calibrant": Format((("prompt_id", "completion"),), OWN),
    "lm-eval": Format((("doc_id", "resps"),), OWN, lm_eval.expand),
    "verl": Format(
        (("input", "output", "score"),),
        {**OWN, "prompt_id": ("uid",), "prompt": ("input",), "completion": ("output",), "reward": ("score",)}
        | {"references": ("gts",)},
    ),
    "trl": Format((("prompt", "completion", "advantage"),), OWN),
    "openrlhf": Format(
        (("prompt", "response"), ("input", "output", "reward")),
        {**OWN, "prompt": ("prompt", "input"), "completion": ("response", "output")},
    ),
}
"""Name -> format, in the order in which they are tried."""


@dataclass(frozen=True)
class Layout:
    """How the columns of a source are read."""

    format: str
    columns: Mapping[str, str]  # role -> column
    filter: str | None = None  # of lm-evaluation-harness: the rows that are read
    notes: tuple[str, ...] = ()  # what the user should know


def layout_of(block: RowBlock, origin: str, name: str, given: Mapping[str, str], chosen: str | None = None) -> Layout:
    """How a source is read, by its first rows; `name` is a format or "auto", `given` roles and columns of the user.

    Raises CalibrantError for columns that are not there, and rollouts without an id, a prompt or a reward.
    """
    name = _detected(block) if name == "auto" else name
    if FORMATS[name].expand:
        chosen = chosen or lm_eval.first_filter(block)
        block = _expanded(block, name, origin, None)
    elif chosen:
        raise CalibrantError(f"--filter goes with files of lm-evaluation-harness; {origin} is read as {name}")
    rewards = _rewards_of_trl(block) if name == "trl" and "reward" not in given else []
    if rewards:
        given = {**given, "reward": "+".join(rewards)}
    roles = {role: Role(names, cells.given, TYPES_IN_WORDS.get(role, role), False) for role, names in _roles(name)}
    columns = resolve_columns(roles, given, list(block.columns), origin)
    _check_roles(columns, block, origin, name)
    notes = []
    if "prompt_id" not in columns:
        notes.append(f"{origin} has no ids of prompts; rollouts with equal prompts are a group")
    if len(rewards) > 1:
        notes.append(f"{origin}: the reward is the sum of {', '.join(rewards)}; choose with --columns reward=NAME")
    if chosen and FORMATS[name].expand:
        notes.append(f"{origin}: read are the rows with the filter '{chosen}'")
    return Layout(name, columns, chosen, tuple(notes))


TYPES_IN_WORDS = {"completion": "the text that was sampled", "prompt_id": "the id of the prompt"}


def _roles(name: str) -> list[tuple[str, tuple[str, ...]]]:
    return list(FORMATS[name].columns.items())


def _detected(block: RowBlock) -> str:
    marked = (
        name for name, about in FORMATS.items() if any(all(x in block.columns for x in marks) for marks in about.marks)
    )
    return next(marked, "calibrant")


def _rewards_of_trl(block: RowBlock) -> list[str]:
    """The columns of reward functions: those of numbers that have no other meaning."""
    return [
        name
        for name, values in block.columns.items()
        if name not in COLUMNS and isinstance(values, (pa.Array, pa.ChunkedArray)) and _is_number(values.type)
    ]


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_floating(kind) or pa.types.is_integer(kind)


def _check_roles(columns: Mapping[str, str], block: RowBlock, origin: str, name: str) -> None:
    missing = [] if "completion" in columns else ["completion"]
    if not {"prompt_id", "prompt"} & set(columns):
        missing.append("prompt_id (or prompt)")
    if not {"reward", "correct", "references"} & set(columns):
        missing.append("reward (or correct)")
    if missing:
        names = [str(x) for x in block.columns]
        meant = nearest(missing[0].partition(" ")[0], names)
        raise CalibrantError(
            f"{origin}, read as the format {name}, lacks {', '.join(missing)}{meant}; it has {', '.join(names[:20])}; "
            "name its columns, e.g. --columns prompt_id=uid,completion=output,reward=score, or choose a --format"
        )


def rollouts_of(block: RowBlock, layout: Layout, origin: str) -> pa.Table:
    """The rollouts of a block: the columns of a rollout file that it has, in their types, and all others as they are.

    Raises CalibrantError, with row and column, for a value that does not belong there.
    """
    block = _expanded(block, layout.format, origin, layout.filter)
    arrays = {role: _role(block, role, column, origin) for role, column in layout.columns.items()}
    if not block.size:
        return pa.table({name: pa.array([], TYPES[name]) for name in arrays})
    if "prompt_id" not in arrays:
        arrays["prompt_id"] = _ids(arrays["prompt"], origin, block.first)
    elif arrays["prompt_id"].null_count:
        row = pc.index(arrays["prompt_id"].is_null(), True).as_py() + block.first
        raise CalibrantError(f"{origin} has no prompt_id in row {row}; rollouts of one prompt share an id")
    arrays["completion"] = arrays["completion"].fill_null("")
    read = {column for role, column in layout.columns.items() if role != "reward" or "+" not in column}
    further = {name: values for name, values in block.columns.items() if name not in read and name not in arrays}
    return pa.table({**arrays, **{name: further_column(values) for name, values in further.items()}})


def further_column(values: Column) -> pa.Array:
    """A column without a role: numbers as floats, texts as they are, everything else as text."""
    if isinstance(values, list):
        if all(value is None or isinstance(value, (int, float)) for value in values):
            return pa.array([None if value is None else float(value) for value in values], pa.float64())
        return pa.array([None if value is None else str(value) for value in values], pa.string())
    kind = values.type
    if pa.types.is_string(kind):
        return values
    if pa.types.is_null(kind) or pa.types.is_boolean(kind) or _is_number(kind):
        return values.cast(pa.float64(), safe=False)
    return further_column(values.to_pylist())


def _expanded(block: RowBlock, name: str, origin: str, chosen: str | None) -> RowBlock:
    expand = FORMATS[name].expand
    return expand(block, origin, chosen) if expand else block


def _role(block: RowBlock, role: str, column: str, origin: str) -> pa.Array:
    """The column of a role; one that these rows lack is null."""
    if column in block.columns:
        return _read(block.columns[column], role, column, block, origin)
    parts = column.split("+")
    if len(parts) > 1 and role == "reward":
        return _sum([_role(block, role, part, origin) for part in parts])
    names = {part.partition(".")[0] for part in parts} & set(block.columns)
    if not names:
        return pa.nulls(block.size, TYPES[role])
    lists = {name: _listed(block.columns[name]) for name in names}
    rows = [dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True)]
    return _read([cell(row, column) for row in rows], role, column, block, origin)


def _listed(values: Column) -> list[Any]:
    return values if isinstance(values, list) else values.to_pylist()


def _sum(columns: list[pa.Array]) -> pa.Array:
    """The sum of rewards, without those that are null; null where all are."""
    missing, total = columns[0].is_null(), columns[0].fill_null(0.0)
    for column in columns[1:]:
        missing, total = pc.and_(missing, column.is_null()), pc.add(total, column.fill_null(0.0))
    return pc.if_else(missing, None, total)


def _read(values: Column, role: str, column: str, block: RowBlock, origin: str) -> pa.Array:
    """A column in the type of its role; conversations become texts, and single references lists."""
    kind = None if isinstance(values, list) else values.type
    if role in ("prompt", "completion") and kind != pa.string():
        values = _each(_listed(values), _text, role, column, block, origin)
    elif role == "references" and kind != TYPES[role]:
        values = _each(_listed(values), lambda x: _texts(x, block.textual), role, column, block, origin)
    elif role == "prompt_id" and (kind is None or pa.types.is_floating(kind)):
        values = [cells.number_text(x) if isinstance(x, float) and x.is_integer() else x for x in _listed(values)]
    elif role == "correct" and block.textual:
        values = [FLAGS.get(str(value).lower(), value) for value in _listed(values)]
    return read_column(values, role, origin, block.first)


def _text(value: Any) -> object:
    return as_text(value) if isinstance(value, list) else value


def _texts(value: object, textual: bool) -> list[str] | None:
    return None if value is None else cells.texts(value, textual)


def _each(
    values: list[Any], read: Callable[[Any], object], role: str, column: str, block: RowBlock, origin: str
) -> list[Any]:
    found = []
    for row, value in enumerate(values, block.first):
        try:
            found.append(read(value))
        except ValueError as error:
            raise CalibrantError(f"{origin} has in the column '{column}', row {row}, a value that {error}") from None
        except (TypeError, KeyError, AttributeError):
            raise CalibrantError(
                f"{origin} has no conversation in the column '{column}', row {row}, where {role} is read; "
                "give a text, or messages with role and content"
            ) from None
    return found


def _ids(prompts: pa.Array, origin: str, first: int) -> pa.Array:
    """Ids made of the prompts: the start of their SHA-256."""
    if prompts.null_count:
        row = pc.index(prompts.is_null(), True).as_py() + first
        raise CalibrantError(f"{origin} has neither an id nor a prompt in row {row}; complete that row")
    distinct = prompts.dictionary_encode()
    names = [hashlib.sha256(text.encode()).hexdigest()[:16] for text in distinct.dictionary.to_pylist()]
    return pa.DictionaryArray.from_arrays(distinct.indices, pa.array(names, pa.string())).dictionary_decode()
