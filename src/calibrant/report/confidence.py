"""Can the model's confidence be trusted: reliability, precision over coverage, and votes, from a saved evaluation."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from calibrant.report.figures import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, Draw
from calibrant.report.reading import number
from calibrant.report.tables import Table, estimate, interval

FIGURES = {
    "correctness_auc": "right answers are likelier than wrong ones (AUC)",
    "correctness_auc_per_prompt": "the same, within a prompt",
    "ece_equal_width_15": "expected calibration error, 15 equal bins",
    "brier": "Brier score",
    "precision_coverage_area": "area under precision over coverage",
}
RULES = {
    "majority_vote": BLUE,
    "confidence_weighted_vote": GREEN,
    "perplexity_consistency": PURPLE,
    "best_of_n": ORANGE,
}
WHEN = {"before": GREY, "after": BLUE}


def table(evaluation: Mapping[str, Any]) -> Table:
    """Calibration before and after training, a row a figure."""
    rows = []
    for name, words in FIGURES.items():
        found = [estimate(evaluation.get(when), "calibration", name) for when in WHEN]
        if any(found):
            rows.append([words, *(interval(each) for each in found)])
    return Table(["", "before training", "after training"], rows)


def panels(evaluation: Mapping[str, Any]) -> dict[str, Draw]:
    """Title -> figure; empty where nothing was measured."""
    found = {
        "How often answers of a confidence are right": _curves(evaluation, "reliability", "confidence", "accuracy"),
        "Precision when only the surest are answered": _curves(
            evaluation, "precision_coverage", "coverage", "precision"
        ),
        "Accuracy of one answer of N": _votes(evaluation),
    }
    return {title: draw for title, draw in found.items() if draw is not None}


def _curves(evaluation: Mapping[str, Any], name: str, x: str, y: str) -> Draw | None:
    lines = {when: _points(evaluation.get(when), name, x, y) for when in WHEN}
    if not any(lines.values()):
        return None

    def draw(ax: Axes) -> None:
        for when, points in lines.items():
            if points:
                ax.plot(*zip(*points, strict=True), "o-" if name == "reliability" else "-", ms=3.5, color=WHEN[when])
                ax.plot([], [], color=WHEN[when], label=f"{when} training")
        if name == "reliability":
            ax.plot([0, 1], [0, 1], color=INK, lw=1, ls=(0, (4, 3)), alpha=0.6)
        ax.set_xlabel("likelihood a token" if name == "reliability" else "share of answers that is kept")
        ax.set_ylabel("share that is right")
        ax.set_xlim(0, 1)
        ax.set_ylim(0, 1.02)
        ax.legend(loc="lower right")

    return draw


def _points(evaluation: Any, name: str, x: str, y: str) -> list[tuple[float, float]]:
    curve = _inside(evaluation, "curves", name)
    pairs = zip(_numbers(curve, x), _numbers(curve, y), strict=False)
    return [(a, b) for a, b in pairs if a == a and b == b]


def _votes(evaluation: Mapping[str, Any]) -> Draw | None:
    last = next((evaluation[when] for when in ("after", "before") if _inside(evaluation.get(when), "selection")), None)
    if last is None:
        return None

    def draw(ax: Axes) -> None:
        for rule, colour in RULES.items():
            row = _inside(last, "selection", rule) or {}
            points = [(float(n), number(_inside(x, "mean"))) for n, x in row.items() if str(n).isdigit()]
            if points:
                ax.plot(*zip(*points, strict=True), "o-", ms=3.5, color=colour, label=rule.replace("_", " "))
        ax.set_xscale("log", base=2)
        ax.set_xlabel("answers sampled")
        ax.set_ylabel("share of prompts that is right")
        ax.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
        ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        ax.legend(loc="best")

    return draw


def _inside(found: Any, *keys: str) -> Any:
    for key in keys:
        found = found.get(key) if isinstance(found, dict) else None
    return found


def _numbers(curve: Any, key: str) -> Sequence[float]:
    values = _inside(curve, key)
    return [number(value) for value in values] if isinstance(values, list) else []
