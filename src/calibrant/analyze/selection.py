"""Selects the prompts of an analysis that teach: with reward spread, neither too easy nor too hard, not too noisy."""

from collections.abc import Sequence
from pathlib import Path

from calibrant.analyze.settings import SelectionOptions
from calibrant.errors import CalibrantError, nearest
from calibrant.files import JsonObject, write_json_lines
from calibrant.report.analysis_files import Analysis
from calibrant.report.names import SIGNALS


def check_selection(options: SelectionOptions) -> None:
    """Raises CalibrantError for a signal that there is not."""
    if options.select_by is not None and options.select_by not in SIGNALS:
        hint, known = nearest(options.select_by, SIGNALS), ", ".join(SIGNALS)
        raise CalibrantError(f"--select-by '{options.select_by}' is no signal{hint}; it is one of {known}")


def write_selection(analysis: Analysis, options: SelectionOptions) -> int:
    """Writes the selected prompts with their success rate and signal, and returns their number."""
    assert options.write_selection
    lines = list(analysis.lines(analysis.options()["settings"]["queries"]))
    chosen = selection(lines, options)
    if not chosen:
        raise CalibrantError(
            f"none of the {len(lines)} prompts has reward spread within these bounds; widen --success-between, or "
            "analyze more prompts"
        )
    write_json_lines(Path(options.write_selection), chosen)
    return len(chosen)


def selection(lines: Sequence[JsonObject], options: SelectionOptions) -> list[JsonObject]:
    """Prompts with reward spread and a success rate within the bounds; of those the share with the lowest uncertainty.

    A success rate that is not known is within all bounds; a prompt without the signal is left out.
    """
    low, high = options.success_between
    teaching = [
        line for line in lines
        if line["outcome"] == "informative" and (line["success_rate"] is None or low <= line["success_rate"] <= high)
    ]  # fmt: skip
    name = options.select_by
    if name is not None:
        known = [line for line in teaching if line["signals"].get(name) is not None]
        ranked = sorted(known, key=lambda line: SIGNALS[name].sign * line["signals"][name])
        kept = {line["index"] for line in ranked[: round(options.select_share * len(ranked))]}
        teaching = [line for line in teaching if line["index"] in kept]
    return [
        {"prompt_id": line["prompt_id"], "success_rate": line["success_rate"]}
        | ({} if name is None else {name: line["signals"][name]})
        for line in teaching
    ]
