"""Samples of lm-evaluation-harness (`lm_eval --log_samples`): a row per question, with one or several responses."""

from collections.abc import Mapping
from typing import Any

from calibrant.errors import CalibrantError
from calibrant.rollouts.tables import RowBlock


def first_filter(block: RowBlock) -> str | None:
    """The filter of the first row; a question has a row for each filter."""
    names = block.columns.get("filter", [None])
    return next((str(name) for name in _listed(names) if name is not None), None)


def expand(block: RowBlock, origin: str, chosen: str | None) -> RowBlock:
    """One row per response of the rows with the filter `chosen`.

    Ids are the number and hash of the question, so that files of several runs share groups. The reward is the first
    metric where a question has one response; of several responses the metric does not say which it belongs to, unless
    it is a list.
    """
    lists = {name: _listed(values) for name, values in block.columns.items()}
    rows = [dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True)]
    rollouts = []
    for number, row in enumerate(rows, block.first):
        if chosen is None or row.get("filter") is None or row["filter"] == chosen:
            rollouts += _rollouts(row, f"{origin}, row {number}")
    names = dict.fromkeys(name for row in rollouts for name in row)
    return RowBlock({name: [row.get(name) for row in rollouts] for name in names}, len(rollouts), block.first)


def _listed(values: Any) -> list[Any]:
    return values if isinstance(values, list) else values.to_pylist()


def _rollouts(row: Mapping[str, Any], place: str) -> list[dict[str, object]]:
    responses = _texts(row.get("resps"))
    if responses is None:
        raise CalibrantError(
            f"{place}: the responses are no generated texts (resps is {row.get('resps')!r:.60}); give samples of a "
            "task that generates (generate_until), not of one that compares likelihoods"
        )
    answers, scores = _texts(row.get("filtered_resps")), _scores(row, len(responses))
    many = len(responses)
    if answers is None or len(answers) != many:
        answers = [None] * many
    name, digest = str(row.get("doc_id")), str(row.get("doc_hash") or "")[:8]
    shared = {
        "prompt_id": f"{name}-{digest}" if digest else name,
        "prompt": _prompt(row.get("arguments")),
        "references": _references(row.get("target")),
    }
    plain = {name: value for name, value in row.items() if isinstance(value, (int, float, str)) and name not in shared}
    return [
        {**plain, **shared, "completion": text, "answer": answer, **score}
        for text, answer, score in zip(responses, answers, scores, strict=True)
    ]


def _scores(row: Mapping[str, Any], count: int) -> list[dict[str, object]]:
    metric = next((name for name in row.get("metrics") or [] if name in row), None)
    value = row.get(metric) if metric else None
    if isinstance(value, list) and len(value) == count:
        return [{"reward": x} for x in value]
    return [{"reward": value if count == 1 and isinstance(value, (int, float)) else None}] * count


def _texts(value: Any) -> list[Any] | None:
    """The texts of nested lists, in order; None if there is anything else."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not value:
        return None
    parts = [_texts(part) for part in value]
    return None if any(part is None for part in parts) else [text for part in parts for text in part or []]


def _prompt(arguments: Any) -> str | None:
    """The text of the request, of a list of arguments or an object of objects, as newer versions write it."""
    while isinstance(arguments, (list, Mapping)) and arguments:
        arguments = arguments[0] if isinstance(arguments, list) else next(iter(arguments.values()))
    return arguments if isinstance(arguments, str) else None


def _references(target: Any) -> list[str] | None:
    texts = _texts(target if isinstance(target, (str, list)) else str(target)) if target is not None else None
    return texts or None
