"""Sentences, facts and derived series of the report of a run, from saved numbers alone."""

import math

import pandas as pd

from calibrant.files import JsonObject
from calibrant.report.evaluations import BeforeAndAfter, comparisons, estimate_text
from calibrant.report.formats import DASH, capital, decimal, duration, plain
from calibrant.report.page import Table
from calibrant.report.reading import RunData

UNSEEN = {"places": "unseen countries"}
"""Task -> a name for the prompts of its evaluation, where it says more than that of the split."""


def run_headline(run: RunData) -> str:
    """The result in one sentence."""
    rows = comparisons(run.evaluation)
    first = [row for row in rows if row.metric == rows[0].metric]
    changes = [(row, movement(row.before.mean, row.after.mean)) for row in first if row.before and row.after]
    if changes:
        clauses = [
            _joined(row.sampling, row.metric_label, "" if i else where(run), words)
            for i, (row, words) in enumerate(changes)
        ]
        return capital("; ".join(clauses)) + "."
    return _one_sided(run, first) if rows else _reward_headline(run)


def _joined(*parts: str) -> str:
    return " ".join(part for part in parts if part)


def movement(before: float, after: float) -> str:
    """The change between two numbers, in words; the verb follows the printed digits.

    >>> movement(0.41, 0.66), movement(0.5, 0.501)
    ('rose from 0.41 to 0.66', 'stayed at 0.50')
    """
    first, last = decimal(before), decimal(after)
    if first == last:
        return f"stayed at {first}"
    return f"{'rose' if after > before else 'fell'} from {first} to {last}"


def where(run: RunData) -> str:
    """`on unseen countries`, or the evaluated split."""
    task = run.options.get("task")
    if isinstance(task, str) and task in UNSEEN:
        return f"on {UNSEEN[task]}"
    split = next((e["split"] for e in run.evaluation.values() if isinstance(e.get("split"), str)), None)
    return f"on the {split} split" if split else ""


def _one_sided(run: RunData, rows: list[BeforeAndAfter]) -> str:
    when, missing = ("before", "after") if any(row.before for row in rows) else ("after", "before")
    estimates = [(row, getattr(row, when)) for row in rows]
    parts = [f"{row.sampling} {row.metric_label} {decimal(value.mean)}" for row, value in estimates if value]
    values = _joined(" and ".join(parts), where(run))
    return f"{capital(values)} {when} training; no evaluation {missing} training is saved."


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


def run_subtitle(run: RunData) -> str:
    """How the result was measured and how certain it is."""
    planned, done = run.options.get("steps"), last_step(run)
    progress = f"{done} of {planned} steps are saved." if isinstance(planned, int) and done < planned else ""
    return _joined(_measured(run), _overlap(run), progress)


def _measured(run: RunData) -> str:
    settings = next((e for e in run.evaluation.values() if isinstance(e.get("prompts"), int)), None)
    if not settings:
        return ""
    parts = [
        f"{settings['prompts']} prompts",
        f" of the split “{settings['split']}”" if settings.get("split") else "",
        f", {settings['samples']} sampled answers each" if settings.get("samples") else "",
        f" at temperature {plain(settings['temperature'])}" if settings.get("temperature") is not None else "",
    ]
    return "".join(parts) + "."


def _overlap(run: RunData) -> str:
    both = [(row, row.before, row.after) for row in comparisons(run.evaluation) if row.before and row.after]
    if not both or math.isnan(sum(both[0][1] + both[0][2])):
        return ""
    row, before, after = both[0]
    apart = after.low > before.high or after.high < before.low
    words = "do not overlap." if apart else "overlap: the change may be chance."
    return f"The 95% intervals of {row.sampling} {row.metric_label} before and after {words}"


def last_step(run: RunData) -> int:
    """The last step with metrics or rollouts."""
    last = [frame["step"].max() for frame in (run.metrics, run.groups) if len(frame)]
    return int(max(last, default=0))


def evaluation_table(run: RunData) -> Table:
    """One row per metric: mean with 95% interval before and after training, and the change of the mean."""
    rows = [
        [row.label, estimate_text(row.before), estimate_text(row.after), gain_text(row)]
        for row in comparisons(run.evaluation)
    ]
    return Table(["", "before training", "after training", "change"], rows)


def gain_text(row: BeforeAndAfter) -> str:
    """The signed change of the mean of a metric; a dash if it was not measured both before and after."""
    if not (row.before and row.after):
        return DASH
    signed = f"{row.after.mean - row.before.mean:+.2f}"
    return signed if float(signed) else signed[1:]  # no change has no sign


def run_facts(run: RunData) -> JsonObject:
    """The main options, for the head of the page; None where there is none."""
    options, seconds, done = run.options, run.metric("seconds"), last_step(run)
    planned, prompts, rollouts = (options.get(name) for name in ("steps", "prompts_per_step", "rollouts"))
    return {
        **{name: options.get(name) for name in ("task", "model", "method")},
        "steps": f"{done} of {planned}" if isinstance(planned, int) and planned != done else done,
        "per step": f"{prompts} prompts × {rollouts} answers" if prompts and rollouts else None,
        "learning rate": options.get("learning_rate"),
        "KL weight (beta)": options.get("beta"),
        "seed": options.get("seed"),
        "training time": duration(seconds.sum()) if len(seconds) else None,
        "calibrant": run.versions.get("calibrant"),
    }


def reward_counts(run: RunData) -> pd.DataFrame:
    """Unscorable and out-of-range rewards by step; without a metric, the unscorable ones of the rollouts."""
    unscorable = run.metric("batch/unscorable")
    if not len(unscorable) and len(run.groups):
        unscorable = run.groups.groupby("step")["unscorable"].sum()
    outside = run.metric("batch/reward_out_of_range")
    return pd.DataFrame({"unscorable": unscorable, "out of range": outside}, dtype=float)
