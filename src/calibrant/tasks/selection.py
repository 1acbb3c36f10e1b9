"""Files of selected prompts: JSON Lines with one `prompt_id` per line, as `calibrant analyze` writes them."""

from collections.abc import Sequence
from pathlib import Path

from calibrant.errors import CalibrantError
from calibrant.files import read_json_lines
from calibrant.tasks.base import Row


def selected(rows: Sequence[Row], path: str | Path) -> list[Row]:
    """The rows whose prompts a file selects, in their order.

    Raises CalibrantError for a file that cannot be read or that selects none of the rows.
    """
    ids = _read(Path(path))
    kept = [row for row in rows if row["prompt_id"] in ids]
    if not kept:
        raise CalibrantError(
            f"none of the {len(ids)} prompts of '{path}' is among the {len(rows)} training prompts; give the task, the "
            "data and, for generated prompts, the --seed of the analysis that selected them"
        )
    return kept


def _read(path: Path) -> set[str]:
    if not path.is_file():
        raise CalibrantError(f"the selection '{path}' is not a file; calibrant analyze --write-selection writes one")
    try:
        lines = list(read_json_lines(path))
    except ValueError as error:
        raise CalibrantError(f"the selection '{path}' is no JSON Lines file ({error}); write it anew") from None
    for number, line in enumerate(lines, start=1):
        if not isinstance(line.get("prompt_id"), str | int):
            raise CalibrantError(f"the selection '{path}' has no prompt_id in line {number}; give each line one")
    if not lines:
        raise CalibrantError(f"the selection '{path}' is empty; select more prompts")
    return {str(line["prompt_id"]) for line in lines}
