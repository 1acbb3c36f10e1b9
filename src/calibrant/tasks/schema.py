"""The columns of the user's data that a task reads, and the row that they become."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from calibrant.errors import CalibrantError, nearest
from calibrant.tasks.base import Row
from calibrant.tasks.files import Record


class Role(NamedTuple):
    """What one column is for."""

    names: tuple[str, ...]  # columns that are looked for; the first one that exists is read
    read: Callable[[object, bool], Any]  # see `calibrant.tasks.cells`
    words: str  # what the column holds
    required: bool = True


class WrongCell(ValueError):
    """A cell that contradicts others of its row; the message is the rest of a sentence."""

    def __init__(self, role: str, problem: str):
        super().__init__(problem)
        self.role = role


@dataclass(frozen=True)
class Schema:
    """How rows of the user's data become rows of a task.

    `row` takes the values of the roles, of which optional ones may be empty, and the text of a prompt template, if
    there is one, and returns a row without `prompt_id`; it raises `WrongCell`.
    """

    roles: Mapping[str, Role]
    row: Callable[[Mapping[str, Any], str | None], Row]
    texts: Callable[[Mapping[str, Any]], Mapping[str, str]]  # values of the roles -> texts for a prompt template


def resolve_columns(
    roles: Mapping[str, Role], given: Mapping[str, str], names: Collection[str], origin: str
) -> dict[str, str]:
    """Role -> the column that it is read from; `given` are those that the user names.

    Raises CalibrantError for an unknown role, and for a column that the data do not have.
    """
    for role, column in given.items():
        if role not in roles:
            raise CalibrantError(f"--columns: '{role}'{nearest(role, roles)} is none of {', '.join(roles)}")
        if not _exists(column, names):
            raise CalibrantError(
                f"{origin} has no column '{column}'{nearest(column, names)}, which --columns names for '{role}'; "
                f"it has {_listed(names)}"
            )
    columns = {}
    for role, about in roles.items():
        found = given.get(role) or next((name for name in about.names if name in names), None)
        if found is None and about.required:
            meant = nearest(role, names)
            raise CalibrantError(
                f"{origin} has no column '{role}' ({about.words}){meant}; it has {_listed(names)}; "
                f"name yours with --columns {role}=COLUMN"
            )
        if found is not None:
            columns[role] = found
    return columns


def cell(record: Record, column: str) -> Any:
    """The value of a column; `a.b` is the field of a nested record, `a+b` the list of two columns.

    >>> cell({"answers": {"text": ["x"]}}, "answers.text"), cell({"A": "x", "B": "y"}, "A+B"), cell({}, "z")
    (['x'], ['x', 'y'], None)
    """
    if column in record:
        return record[column]
    if "+" in column:
        return [cell(record, part) for part in column.split("+")]
    value: Any = record
    for part in column.split("."):
        if isinstance(value, list):
            value = [x.get(part) if isinstance(x, dict) else None for x in value]
        else:
            value = value.get(part) if isinstance(value, dict) else None
    return value


def _exists(column: str, names: Collection[str]) -> bool:
    return column in names or all(part.partition(".")[0] in names for part in column.split("+"))


def _listed(names: Collection[str], most: int = 20) -> str:
    shown = ", ".join(f"'{name:.40}'" for name in list(names)[:most])
    return (shown + (", ..." if len(names) > most else "")) or "no column"
