"""Sentences and tables of a report, from saved numbers alone."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pandas as pd

from calibrant.report.reading import RunData, number

LABELS = {
    "f1": "F1",
    "em": "exact match",
    "accuracy": "accuracy",
    "sentence_bleu": "mean sentence BLEU",
    "corpus_bleu": "corpus BLEU",
}
SAMPLINGS = ("sampled", "greedy")
UNSEEN = {"places": "unseen countries"}


class Estimate(NamedTuple):
    """A mean and its 95% interval; NaN where the file has no number."""

    mean: float
    low: float
    high: float


class Comparison(NamedTuple):
    """One metric before and after training; None where it was not measured."""

    sampling: str
    metric: str
    before: Estimate | None
    after: Estimate | None

    @property
    def label(self) -> str:
        """`F1, sampled`."""
        return f"{LABELS.get(self.metric, self.metric)}, {self.sampling}"


@dataclass(frozen=True)
class Table:
    """A table of strings; the first `words` columns are text, the others are numbers."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: int = 1


def estimate(evaluation: Any, sampling: str, metric: str) -> Estimate | None:
    """One estimate of an evaluation, None where it is missing.

    >>> estimate({"greedy": {"f1": {"mean": 0.5, "low": 0.4, "high": 0.6}}}, "greedy", "f1")
    Estimate(mean=0.5, low=0.4, high=0.6)
    """
    found: Any = evaluation
    for key in (sampling, metric):
        found = found.get(key) if isinstance(found, dict) else None
    values = found if isinstance(found, dict) else {"mean": found}
    result = Estimate(*(number(values.get(key)) for key in Estimate._fields))
    return None if math.isnan(result.mean) else result


def comparisons(run: RunData) -> list[Comparison]:
    """Every metric that was measured, F1 first, sampled before greedy."""
    return [
        Comparison(sampling, metric, *found)
        for metric in _metric_names(run.evaluation)
        for sampling in SAMPLINGS
        if any(found := [estimate(run.evaluation.get(when), sampling, metric) for when in ("before", "after")])
    ]


def _metric_names(evaluation: dict[str, Any]) -> list[str]:
    parts = [e.get(s) for e in evaluation.values() if isinstance(e, dict) for s in SAMPLINGS]
    names = {name for part in parts if isinstance(part, dict) for name in part}
    first = [name for name in LABELS if name in names]
    return first + sorted(names - set(first))


def headline(run: RunData) -> str:
    """The result in one sentence."""
    rows = comparisons(run)
    first = [row for row in rows if row.metric == rows[0].metric]
    if both := [row for row in first if row.before and row.after]:
        clauses = [change(row, where(run) if i == 0 else "") for i, row in enumerate(both)]
        return _sentence("; ".join(clauses))
    if rows:
        return _one_sided(run, first)
    return _reward_headline(run)


def change(row: Comparison, place: str = "") -> str:
    """`sampled F1 on unseen countries rose from 0.41 to 0.66`; the verb follows the printed numbers."""
    assert row.before and row.after, "only what was measured twice can change"
    name = " ".join(filter(None, [row.sampling, LABELS.get(row.metric, row.metric), place]))
    return f"{name} {movement(row.before.mean, row.after.mean)}"


def movement(before: float, after: float) -> str:
    """What happened between two numbers, in words.

    >>> movement(0.41, 0.66), movement(0.5, 0.501)
    ('rose from 0.41 to 0.66', 'stayed at 0.50')
    """
    first, last = decimal(before), decimal(after)
    if first == last:
        return f"stayed at {first}"
    return f"{'rose' if after > before else 'fell'} from {first} to {last}"


def where(run: RunData) -> str:
    """`on unseen countries`, or the split that was evaluated."""
    task = run.options.get("task")
    if isinstance(task, str) and task in UNSEEN:
        return f"on {UNSEEN[task]}"
    split = next((e["split"] for e in run.evaluation.values() if isinstance(e.get("split"), str)), None)
    return f"on the {split} split" if split else ""


def _one_sided(run: RunData, rows: list[Comparison]) -> str:
    when = "before" if any(row.before for row in rows) else "after"
    missing = "after" if when == "before" else "before"
    parts = [
        f"{row.sampling} {LABELS.get(row.metric, row.metric)} {decimal(found.mean)}"
        for row in rows
        if (found := getattr(row, when))
    ]
    named = " ".join(filter(None, [" and ".join(parts), where(run)]))
    return _sentence(f"{named} {when} training; no evaluation {missing} training is saved")


def _reward_headline(run: RunData) -> str:
    reward = run.metric("reward")
    if not len(reward):
        return "This run has saved no result yet."
    if len(reward) < 2:
        return f"Mean reward {decimal(reward.iloc[0])} in the one step that is saved; no evaluation is saved."
    part = max(1, len(reward) // 10)
    moved = movement(reward.iloc[:part].mean(), reward.iloc[-part:].mean())
    span = f"the first {part} to the last {part} steps" if part > 1 else "the first to the last step"
    return f"Mean reward {moved} from {span}; no evaluation is saved."


def subtitle(run: RunData) -> str:
    """How the result was measured and how sure it is."""
    sentences = [_measured(run), _overlap(run), _progress(run)]
    return " ".join(s for s in sentences if s)


def _measured(run: RunData) -> str:
    found = next((e for e in run.evaluation.values() if isinstance(e.get("prompts"), int)), None)
    if not found:
        return ""
    text = f"{found['prompts']} prompts"
    if found.get("split"):
        text += f" of the split “{found['split']}”"
    if found.get("samples"):
        text += f", {found['samples']} sampled answers each"
    if found.get("temperature") is not None:
        text += f" at temperature {plain(found['temperature'])}"
    return text + "."


def _overlap(run: RunData) -> str:
    row = next((row for row in comparisons(run) if row.before and row.after), None)
    if row is None or row.before is None or row.after is None or math.isnan(sum(row.before + row.after)):
        return ""
    name = f"{row.sampling} {LABELS.get(row.metric, row.metric)}"
    if row.after.low > row.before.high or row.after.high < row.before.low:
        return f"The 95% intervals of {name} before and after do not overlap."
    return f"The 95% intervals of {name} before and after overlap: the change may be chance."


def _progress(run: RunData) -> str:
    planned, done = run.options.get("steps"), steps_done(run)
    if isinstance(planned, int) and done < planned:
        return f"{done} of {planned} steps are saved."
    return ""


def steps_done(run: RunData) -> int:
    """The last step that metrics or rollouts know."""
    last = [frame["step"].max() for frame in (run.metrics, run.groups) if len(frame)]
    return int(max(last, default=0))


def evaluation_table(run: RunData) -> Table:
    """Means with their intervals before and after, and the change."""
    rows = [[row.label, interval(row.before), interval(row.after), difference(row)] for row in comparisons(run)]
    return Table(["", "before training", "after training", "change"], rows)


def interval(found: Estimate | None) -> str:
    """`0.41 [0.38, 0.44]`, a dash where nothing was measured."""
    if found is None:
        return "–"
    if math.isnan(found.low + found.high):
        return decimal(found.mean)
    return f"{decimal(found.mean)} [{decimal(found.low)}, {decimal(found.high)}]"


def difference(row: Comparison) -> str:
    """The signed change of a metric, a dash where it was measured once."""
    if not (row.before and row.after):
        return "–"
    signed = f"{row.after.mean - row.before.mean:+.2f}".replace("-", "−")
    return signed if float(signed[1:]) else signed[1:]


def facts(run: RunData) -> list[tuple[str, str]]:
    """What was run, for the head of the page."""
    options = run.options
    pairs = [
        ("task", plain(options.get("task"))),
        ("model", plain(options.get("model"))),
        ("method", plain(options.get("method"))),
        ("steps", _steps(run)),
        ("a step", _batch(options)),
        ("learning rate", plain(options.get("learning_rate"))),
        ("KL weight (beta)", plain(options.get("beta"))),
        ("seed", plain(options.get("seed"))),
        ("training time", duration(run.metric("seconds").sum()) if len(run.metric("seconds")) else "–"),
        ("calibrant", plain(run.versions.get("calibrant"))),
    ]
    return [(name, value) for name, value in pairs if value != "–"]


def _steps(run: RunData) -> str:
    planned, done = run.options.get("steps"), steps_done(run)
    return f"{done} of {planned}" if isinstance(planned, int) and planned != done else str(done)


def _batch(options: dict[str, Any]) -> str:
    prompts, rollouts = options.get("prompts_per_step"), options.get("rollouts")
    return f"{prompts} prompts × {rollouts} answers" if prompts and rollouts else "–"


def option_table(run: RunData) -> Table:
    """Every option of the run."""
    return pairs("option", "value", run.options)


def version_table(run: RunData) -> Table:
    """Every version of the run."""
    return pairs("package", "version", run.versions)


def pairs(name: str, value: str, found: Mapping[str, Any]) -> Table:
    """Names and values as a table of texts."""
    return Table([name, value], [[str(key), plain(each)] for key, each in found.items()], words=2)


def reward_counts(run: RunData) -> pd.DataFrame:
    """Unscorable and out-of-range rewards by step; without a metric, the unscorable ones of the rollouts."""
    unscorable = run.metric("batch/unscorable")
    if not len(unscorable) and len(run.groups):
        unscorable = run.groups.groupby("step")["unscorable"].sum()
    outside = run.metric("batch/reward_out_of_range")
    return pd.DataFrame({"unscorable": unscorable, "out of range": outside}, dtype=float)


def uninformative(run: RunData) -> pd.Series:
    """Share of groups without reward spread by step, from metrics or else from rollouts."""
    logged = run.metric("group/uninformative")
    if len(logged) or not len(run.groups):
        return logged
    return run.groups.groupby("step")["uninformative"].mean()


def mean_weight(run: RunData) -> pd.Series:
    """Mean weight by step, from metrics or else from rollouts."""
    logged = run.metric("group/weight/mean")
    if len(logged) or not len(run.weights):
        return logged
    return run.weights.groupby("step")["weight"].mean()


def rank_correlation(x: pd.Series, y: pd.Series) -> float:
    """Spearman's rank correlation of the pairs without NaN; NaN where a side has no spread.

    >>> round(rank_correlation(pd.Series([1.0, 2.0, 3.0]), pd.Series([1.0, 4.0, 9.0])), 6)
    1.0
    """
    pairs = pd.concat([x, y], axis=1).dropna().rank()
    if len(pairs) < 3 or (pairs.nunique() < 2).any():
        return math.nan
    return float(pairs.corr().iloc[0, 1])


def decimal(x: float) -> str:
    """A number with two decimals and a true minus sign.

    >>> decimal(0.414), decimal(-1.0)
    ('0.41', '−1.00')
    """
    return f"{x:.2f}".replace("-", "−")


def plain(value: Any) -> str:
    """A value of a configuration as a reader would write it.

    >>> plain(0.0003), plain(True), plain(None), plain([0.0, 2.0])
    ('0.0003', 'yes', '–', '0, 2')
    """
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(plain(v) for v in value) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{k}={plain(v)}" for k, v in value.items()) or "none"
    return str(value)


def duration(seconds: float) -> str:
    """Seconds in the two units that a reader wants.

    >>> duration(42), duration(750), duration(7384)
    ('42 s', '12 min 30 s', '2 h 3 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."
