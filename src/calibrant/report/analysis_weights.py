"""Sections of the page of an analysis about weights and filters: what methods do to noise and signal."""

import pandas as pd

from calibrant.files import JsonObject
from calibrant.report import figures
from calibrant.report.formats import DASH, decimal, interval_text
from calibrant.report.names import PAPER_ORDER, label
from calibrant.report.page import Plot, Section, Table

DRAWN = (*PAPER_ORDER, "reward_dispersion", "block_gradient_variance")
"""Signals of the figure: those of the paper, and two for comparison."""

WEIGHTS = (
    "The weight that each method gives a group, as what multiplies the size of GRPO's update: mean |A~| over mean |A|. "
    "Its rank correlations are with V(q) and with the signal-to-noise ratio of the update, |g|² / (V(q) / (n - 1)); a "
    "good weight rises with the ratio. A method without a rank correlation gives all groups one weight."
)
EFFECT = (
    "Noise and bias are the two terms of the variance of weighted updates (appendix F.3 of the paper), in units of the "
    "noise of plain GRPO and for weights divided by their mean: E[w² Var(g | q)] and Var(w) |E[g | q]|². Signal is "
    "what is left of |E g|². Equal weights have 1, 0 and 1. All are estimates from the same answers as the weights."
)
FILTER = (
    "Where groups with a signal above a threshold are left out (equations 5 and 6 of the paper): mean V(q) and mean "
    "|g|² of the groups that are kept, relative to all. Leaving out at random gives 1; a filter that is below 1 in "
    "both removes noise and learning signal together."
)


def weight_rows(weights: JsonObject) -> list[list[str]]:
    """Cells of the table of weights: method, mean, variation, rank correlations with V(q) and the ratio, effect."""
    rows = sorted(weights["rows"].items(), key=lambda item: -(item[1]["snr"] or [-2.0])[0])
    return [
        [
            name,
            decimal(row["mean"]),
            f"{row['cv']:.1%}",
            *(DASH if row[key] is None else interval_text(*row[key]) for key in ("variance", "snr")),
            *(decimal(row[key]) for key in ("noise", "bias", "signal")),
        ]
        for name, row in rows
    ]


WEIGHT_HEADER = ("method", "mean weight", "variation", "with V(q)", "with signal/noise", "noise", "bias", "signal")


def weight_section(results: JsonObject) -> Section:
    """The table of weights."""
    title, weights = "Weights of the methods", results.get("weights")
    if weights is None:
        return Section("weights", title, missing=["Too few groups with reward spread and measured weights."])
    text = [f"{weights['groups']:,} groups with reward spread. {WEIGHTS}", EFFECT]
    return Section("weights", title, text, table=Table(WEIGHT_HEADER, weight_rows(weights)))


def filter_section(results: JsonObject) -> Section:
    """The figure and table of filters."""
    title, found = "Leaving out uncertain groups", results.get("filtering")
    if found is None:
        return Section("filtering", title, missing=["No group has a gradient."])
    curves = found["curves"]
    drawn = {label(name): pd.DataFrame(curves[name]) for name in DRAWN if name in curves}
    panels = [
        figures.kept(drawn, "variance", "mean V(q), relative to all"),
        figures.kept(drawn, "squared_norm", "mean |g|², relative to all"),
    ]
    half = {name: next(i for i, share in enumerate(curve["share"]) if share >= 0.5) for name, curve in curves.items()}
    rows = [
        [label(name), *(decimal(curve[key][half[name]]) for key in ("share", "variance", "squared_norm"))]
        for name, curve in curves.items()
    ]
    return Section(
        "filtering",
        title,
        [f"{found['groups']:,} groups. {FILTER}"],
        [
            Plot(
                "Kept variance and gradients by the share of groups that is kept",
                figures.data_uri(panels, figures.WIDE),
            )
        ],
        table=Table(("kept: the lower half by", "share of groups", "V(q)", "|g|²"), rows),
    )
