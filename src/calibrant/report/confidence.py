"""Calibration of the model's confidence: reliability, precision over coverage, and votes, from a saved evaluation."""

from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from calibrant.files import JsonObject
from calibrant.report.evaluations import WHEN, estimate, estimate_text, inside
from calibrant.report.figures import BLUE, DASHED, GREEN, GREY, ORANGE, PURPLE, Draw
from calibrant.report.page import Table
from calibrant.report.reading import finite

ROWS = {
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
COLOURS = dict(zip(WHEN, (GREY, BLUE), strict=True))


def calibration_table(evaluation: Mapping[str, JsonObject]) -> Table:
    """Calibration before and after training, one row per measure."""
    rows = [
        [label, *map(estimate_text, estimates)]
        for name, label in ROWS.items()
        if any(estimates := [estimate(evaluation.get(when), "calibration", name) for when in WHEN])
    ]
    return Table(["", "before training", "after training"], rows)


def calibration_figures(evaluation: Mapping[str, JsonObject]) -> dict[str, Draw]:
    """Title -> figure, for everything that was measured."""
    precision = _curves(evaluation, "precision_coverage", "coverage", "precision")
    figures = {
        "How often answers of a confidence are right": _curves(evaluation, "reliability", "confidence", "accuracy"),
        "Precision when only the most confident are answered": precision,
        "Accuracy of one answer of N": _votes(evaluation),
    }
    return {title: draw for title, draw in figures.items() if draw is not None}


def _curves(evaluation: Mapping[str, JsonObject], name: str, x: str, y: str) -> Draw | None:
    lines = {when: _points(evaluation.get(when), name, x, y) for when in WHEN}
    if not any(lines.values()):
        return None
    reliability = name == "reliability"

    def draw(ax: Axes) -> None:
        for when, points in lines.items():
            if points:
                ax.plot(*zip(*points, strict=True), "o-" if reliability else "-", ms=3.5, color=COLOURS[when])
                ax.plot([], [], color=COLOURS[when], label=f"{when} training")
        if reliability:
            ax.plot([0, 1], [0, 1], **DASHED)
        x_label = "likelihood per token" if reliability else "share of answers kept"
        ax.set(xlabel=x_label, ylabel="share of right answers", xlim=(0, 1), ylim=(0, 1.02))
        ax.legend(loc="lower right")

    return draw


def _points(evaluation: object, name: str, x: str, y: str) -> list[tuple[float, float]]:
    values = (inside(evaluation, "curves", name, axis) for axis in (x, y))
    axes = [[finite(value) for value in axis] if isinstance(axis, list) else [] for axis in values]
    return [(a, b) for a, b in zip(*axes, strict=False) if a == a and b == b]


def _votes(evaluation: Mapping[str, JsonObject]) -> Draw | None:
    selection = next((side for when in reversed(WHEN) if (side := inside(evaluation, when, "selection"))), None)
    if selection is None:
        return None

    def draw(ax: Axes) -> None:
        for rule, colour in RULES.items():
            by_size = inside(selection, rule)
            sizes = [n for n in by_size if str(n).isdigit()] if isinstance(by_size, dict) else []
            points = [(float(n), finite(inside(by_size, n, "mean"))) for n in sizes]
            if points:
                ax.plot(*zip(*points, strict=True), "o-", ms=3.5, color=colour, label=rule.replace("_", " "))
        ax.set_xscale("log", base=2)
        ax.set(xlabel="answers sampled", ylabel="share of prompts answered right")
        ax.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
        ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        ax.legend(loc="best")

    return draw
