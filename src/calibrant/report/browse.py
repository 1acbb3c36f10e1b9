"""The groups that a reader can open in the page, as JSON."""

import json
import math
from collections.abc import Iterable, Iterator

import numpy as np
import pandas as pd

from calibrant.files import JsonObject
from calibrant.report.formats import shorten
from calibrant.report.page import Browser
from calibrant.report.reading import RunData, tidy
from calibrant.rollouts import read_rollouts

EXTREMES = 20
ANSWERS = 64
BUDGET = 3_000_000
LIMITS = ((300, 4000), (300, 1000), (300, 300), (100, 300), (30, 200))
"""Numbers of groups and characters per text, tried in turn until the JSON has at most `BUDGET` bytes."""

NUMERIC = {"step": "step", "mean_reward": "mean reward", "spread": "reward spread", "weight": "weight"}
"""Numeric columns of the table, beside the signals, and their labels."""

ESCAPES = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


def browser(run: RunData) -> Browser:
    """The groups that fit into the page, and what was left out."""
    labels = NUMERIC | {name: shorten(name) for name in run.scores}
    columns = [{"key": key, "label": label} for key, label in labels.items()]
    for count, limit in LIMITS:
        chosen = choose_groups(run.groups, count)
        text = script_json({"columns": columns, "groups": list(entries(run, chosen, labels, limit))})
        if len(text.encode("utf-8", "replace")) <= BUDGET:
            break
    return Browser(text, groups=len(chosen), of=len(run.groups), limit=limit)


def choose_groups(groups: pd.DataFrame, count: int) -> pd.DataFrame:
    """At most `count` groups: those with the largest and smallest weights, the others evenly over the steps."""
    if len(groups) <= count:
        return groups
    weight = groups["weight"].dropna()
    part = min(EXTREMES, count // 4) if weight.nunique() > 1 else 0
    extremes = {*weight.nlargest(part).index, *weight.nsmallest(part).index}
    others = groups.index.difference(list(extremes))
    evenly = np.linspace(0, len(others) - 1, count - len(extremes)).round().astype(int)
    return groups.loc[sorted(extremes | set(others[evenly]))]


def entries(run: RunData, chosen: pd.DataFrame, keys: Iterable[str], limit: int) -> Iterator[JsonObject]:
    """The chosen groups with the numbers of `keys` and their texts, cut at `limit` characters."""
    for file, rows in chosen.groupby("file", sort=True):
        frame = tidy(read_rollouts(run.path / "rollouts" / str(file)), 0)
        for _, row in rows.iterrows():
            answers = frame[frame["group"] == row["group"]]
            yield {"numbers": {key: _json_number(row[key]) for key in keys}, **_texts(answers, limit)}


def _texts(answers: pd.DataFrame, limit: int) -> JsonObject:
    first = answers.iloc[0]
    references = first.get("references")
    known = list(references)[:20] if isinstance(references, (list, tuple, np.ndarray)) else []
    return {
        "id": cut(first["prompt_id"], 200),
        "prompt": cut(first.get("prompt"), limit),
        "references": [cut(text, 200) for text in known],
        "answers": [_answer(row, limit) for _, row in answers.head(ANSWERS).iterrows()],
        "more": max(0, len(answers) - ANSWERS),
    }


def _answer(row: pd.Series, limit: int) -> JsonObject:
    correct, completion, answer = row.get("correct"), cut(row["completion"], limit), cut(row.get("answer"), limit)
    return {
        "text": completion,
        "answer": "" if answer.strip() == completion.strip() else answer,
        "correct": bool(correct) if isinstance(correct, (bool, np.bool_)) else None,
        **{key: _json_number(row[key]) for key in ("reward", "cluster", "weight", "advantage", "num_tokens")},
    }


def cut(text: object, limit: int) -> str:
    """At most `limit` characters of a text, and how many more there are; "" for anything but a text.

    >>> cut("abcdef", 4), cut(None, 4)
    ('abcd… (2 more characters in the rollout file)', '')
    """
    if not isinstance(text, str):
        return ""
    more = len(text) - limit
    return text if more <= 0 else f"{text[:limit]}… ({more:,} more characters in the rollout file)"


def script_json(data: object) -> str:
    """JSON without any character that could end a script element or break a line of JavaScript.

    >>> script_json("</script>")
    '"\\\\u003c/script\\\\u003e"'
    """
    return json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":")).translate(ESCAPES)


def _json_number(value: float) -> float | int | None:
    x = float(value)
    if not math.isfinite(x):
        return None
    return int(x) if x.is_integer() else float(f"{x:.6g}")
