"""The columns of the user's data set that calibrant reads: `prompt`, `prompt_id`, `references`."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from datasets import ClassLabel, Dataset, LargeList, List, Value
from torch import Tensor

from calibrant.errors import CalibrantError
from calibrant.tasks.cells import text_of, texts_of
from calibrant.text.messages import as_text

RolloutColumns = dict[str, list[Any]]

PLAIN = ("string", "large_string", "int", "uint", "float", "bool", "decimal", "null")
"""Prefixes of the Arrow types whose values are texts or numbers."""


class DataRow(NamedTuple):
    """What is read from one row of a data set."""

    prompt: str  # as text, before an environment adds to it
    prompt_id: str | None
    references: list[str] | None  # the right answers, None where they are not known
    key: str  # equal for the rollouts of one group


COLUMNS: dict[str, tuple[Callable[[object], object], str]] = {
    "prompt_id": (text_of, "a text or a number"),
    "references": (texts_of, "a text, a number or a list of them"),
}
"""Column -> how it is read, and what it has to hold."""


def column_value(name: str, value: object, place: str) -> Any:
    """The value of a column; a CalibrantError if the column cannot hold it."""
    read, wanted = COLUMNS[name]
    try:
        return read(value)
    except (TypeError, ValueError, OverflowError):
        raise CalibrantError(
            f"the column '{name}' of the data set holds {value!r:.60} in row {place}; give {wanted}, "
            "or rename the column"
        ) from None


def check_data(data: object) -> None:
    """Checks the columns of a data set, or of several by name; values are read only where their type does not tell.

    Streams, and data sets with a transform of their own, are checked row by row as they come.
    """
    if isinstance(data, Mapping):
        for part in data.values():
            check_data(part)
    elif isinstance(data, Dataset) and data.format["type"] != "custom":
        for name in set(COLUMNS) & set(data.column_names):
            if not _readable(data.features[name], name):
                for i, row in enumerate(data.select_columns(name).with_format(None)):
                    column_value(name, row[name], str(i))


def _readable(feature: object, name: str) -> bool:
    """Whether the type of a column says that each of its values can be read."""
    if isinstance(feature, (List, LargeList)) and name == "references":
        feature = feature.feature
    return isinstance(feature, ClassLabel) or (isinstance(feature, Value) and feature.dtype.startswith(PLAIN))


def read_rows(inputs: Sequence[Mapping[str, object]]) -> list[DataRow]:
    """The rows of a local batch, as the data set gave them."""
    return [_read_row(row, f"{i} of the batch") for i, row in enumerate(inputs)]


def _read_row(row: Mapping[str, object], place: str) -> DataRow:
    prompt = as_text(row.get("prompt", ""))
    prompt_id, references = (column_value(name, row.get(name), place) for name in ("prompt_id", "references"))
    parts = (prompt_id, row.get("environment"), prompt, *(references or ()))
    return DataRow(prompt, prompt_id or None, references, " | ".join(str(x) for x in parts if x is not None))


def settle_prompts(columns: RolloutColumns, size: int) -> RolloutColumns:
    """The columns of N * G values with one `prompt` per group of G: the one that its rollouts got.

    Where an environment gave each another one, it is the prompt of the data set, and `observed_prompt` stays.
    """
    observed = columns["observed_prompt"]
    blocks = [observed[i : i + size] for i in range(0, len(observed), size)]
    same = [len(set(block)) == 1 for block in blocks for _ in block]
    prompts = [x if one else own for x, one, own in zip(observed, same, columns["prompt"], strict=True)]
    rest = {name: values for name, values in columns.items() if name != "observed_prompt"}
    return rest | {"prompt": prompts} | ({} if all(same) else {"observed_prompt": observed})


def correctness(columns: RolloutColumns, device: torch.device) -> dict[str, Tensor]:
    """The input `correct`, NaN without a verdict; nothing where no rollout has references."""
    if "correct" not in columns or all(gold is None for gold in columns["references"]):
        return {}
    values = [torch.nan if right is None else float(right) for right in columns["correct"]]
    return {"correct": torch.tensor(values, device=device)}
