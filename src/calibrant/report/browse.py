"""The groups that a reader can open in the page: which ones, and their texts as harmless JSON."""

import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from calibrant.report.figures import shorten
from calibrant.report.reading import RunData, tidy
from calibrant.rollouts import read_rollouts

EXTREMES = 20
ANSWERS = 64
BUDGET = 3_000_000
LIMITS = ((300, 4000), (300, 1000), (300, 300), (100, 300), (30, 200))
"""Groups and characters a text, tried in turn until the JSON has at most `BUDGET` bytes."""

ESCAPES = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


def payload(run: RunData) -> tuple[str, dict[str, int]]:
    """The groups as JSON that is safe inside a script element, and what was left out.

    Returns:
        The JSON; `{"groups": shown, "of": all, "limit": longest text in characters}`.
    """
    chosen, limit = pd.DataFrame(), 0
    text = "{}"
    for count, limit in LIMITS:
        chosen = choose(run.groups, count)
        text = escaped({"columns": columns(run), "groups": list(entries(run, chosen, limit))})
        if len(text.encode("utf-8", "replace")) <= BUDGET:
            break
    return text, {"groups": len(chosen), "of": len(run.groups), "limit": limit}


def choose(groups: pd.DataFrame, count: int) -> pd.DataFrame:
    """At most `count` groups: the most and least weighted, the others evenly over the steps."""
    if len(groups) <= count:
        return groups
    weight = groups["weight"].dropna()
    part = min(EXTREMES, count // 4) if weight.nunique() > 1 else 0
    kept = {*weight.nlargest(part).index, *weight.nsmallest(part).index}
    others = groups.index.difference(list(kept))
    evenly = np.linspace(0, len(others) - 1, count - len(kept)).round().astype(int)
    return groups.loc[sorted(kept | set(others[evenly]))]


def columns(run: RunData) -> list[dict[str, str]]:
    """The numbers of a group that the table shows, each with its label."""
    fixed = [
        ("step", "step"),
        ("mean_reward", "mean reward"),
        ("spread", "reward spread"),
        ("weight", "weight"),
    ]
    return [{"key": key, "label": label} for key, label in [*fixed, *((s, shorten(s)) for s in run.scores)]]


def entries(run: RunData, chosen: pd.DataFrame, limit: int) -> Iterator[dict[str, Any]]:
    """The chosen groups with their texts, cut at `limit` characters."""
    keys = [column["key"] for column in columns(run)]
    for file, rows in chosen.groupby("file", sort=True):
        frame = tidy(read_rollouts(run.path / "rollouts" / str(file)), 0)
        for _, row in rows.iterrows():
            answers = frame[frame["group"] == row["group"]]
            yield {"numbers": {key: _json_number(row[key]) for key in keys}, **_texts(answers, limit)}


def _texts(answers: pd.DataFrame, limit: int) -> dict[str, Any]:
    first = answers.iloc[0]
    return {
        "id": cut(first["prompt_id"], 200),
        "prompt": cut(first.get("prompt"), limit),
        "references": _references(first.get("references")),
        "answers": [_answer(row, limit) for _, row in answers.head(ANSWERS).iterrows()],
        "more": max(0, len(answers) - ANSWERS),
    }


def _answer(row: pd.Series, limit: int) -> dict[str, Any]:
    correct = row.get("correct")
    completion = cut(row["completion"], limit)
    answer = cut(row.get("answer"), limit)
    return {
        "text": completion,
        "answer": "" if answer.strip() == completion.strip() else answer,
        "correct": bool(correct) if isinstance(correct, (bool, np.bool_)) else None,
        **{key: _json_number(row[key]) for key in ("reward", "cluster", "weight", "advantage", "num_tokens")},
    }


def _references(value: Any) -> list[str]:
    if not isinstance(value, (list, tuple, np.ndarray)):
        return []
    return [cut(text, 200) for text in list(value)[:20]]


def cut(text: Any, limit: int) -> str:
    """A text of at most `limit` characters, with a word on what was cut; empty for what is no text.

    >>> cut("abcdef", 4), cut(None, 4)
    ('abcd… (2 more characters in the rollout file)', '')
    """
    if not isinstance(text, str):
        return ""
    more = len(text) - limit
    return text if more <= 0 else f"{text[:limit]}… ({more:,} more characters in the rollout file)"


def escaped(data: Any) -> str:
    """JSON without any character that could end a script element or break a line of JavaScript.

    >>> escaped("</script>")
    '"\\\\u003c/script\\\\u003e"'
    """
    return json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":")).translate(ESCAPES)


def _json_number(value: Any) -> float | int | None:
    x = float(value)
    if not math.isfinite(x):
        return None
    return int(x) if x.is_integer() else float(f"{x:.6g}")
