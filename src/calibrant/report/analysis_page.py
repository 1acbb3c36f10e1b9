"""The report of an analysis: the recommendation, and the paper's figure and tables for one's own model and data."""

import heapq
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from calibrant.errors import CalibrantError
from calibrant.files import JsonObject, json_object
from calibrant.report import figures
from calibrant.report.analysis_files import Analysis
from calibrant.report.analysis_weights import filter_section, weight_section
from calibrant.report.figures import Estimates, rows_of_estimates
from calibrant.report.formats import DASH, capital, decimal, interval_text, p_value, plain, rho_text, shorten
from calibrant.report.names import SIGNALS, SUBSETS, TARGETS, label, raw_label
from calibrant.report.page import Page, Plot, Section, Table, write_page

EXAMPLES = 6  # groups shown with the largest V(q), and as many with the smallest
FEW = ["Too few groups for statistics."]

RANK_HEADER = (
    *("signal", "rank correlation", "p", "AUC of the top tenth", "precision at 10%"),
    *("held-out error / chance", "held-out rank corr."),
)

NOTES = {
    "gradient_variance": "V(q) is the variance of the advantage-weighted gradients of a group's answers, computed "
    "exactly. Groups without reward spread have V(q) = 0, so that “all groups” mixes two questions: whether a group "
    "has a gradient at all, and how noisy it is. Weights act on groups with spread alone.",
    "score_variance": "The same with every advantage 1: how much the gradients of the answers differ, whatever their "
    "rewards. The paper's argument is about this quantity.",
    "mean_norm_squared": "The squared norm of the mean gradient, the group's update. A signal that follows it as "
    "closely as V(q) marks groups with large gradients; damping them removes noise and signal alike.",
    "success_rate": "The share of right answers (the paper's table 3). Uncertainty should fall as it rises.",
}


def write_analysis_report(path: str | Path, images: Path | None = None) -> Path:
    """Writes `report.html` into the directory of an analysis and returns its path."""
    analysis = Analysis(Path(path))
    config = analysis.options()
    if not analysis.results.is_file():
        raise CalibrantError(f"'{path}' has no analysis.json yet; run calibrant analyze with --out {path} to its end")
    results = json_object(analysis.results.read_bytes())
    if results is None or not {"recommendation", "tables", "counts"} <= results.keys():
        raise CalibrantError(
            f"'{analysis.results}' is damaged; run calibrant analyze with --out {analysis.path} again, which computes "
            "it anew from the groups"
        )
    counts = results["counts"]
    page = Page(
        kind="analysis",
        name=analysis.path.resolve().name,
        headline=_headline(results),
        subtitle=f"{counts['groups']:,} groups of {results['rollouts']} answers, {counts['informative']:,} of them "
        f"with reward spread.{_gradient_of(results)} Brackets are 95% bootstrap intervals over prompts.",
        facts=_facts(config, results),
        options=config["settings"],
        versions=config["versions"],
        sections=list(_sections(analysis, results)),
        files="config.yaml, analysis.json, groups.jsonl",
    )
    return write_page(analysis.report, page, images)


def _gradient_of(results: JsonObject) -> str:
    measured = results.get("parameters")  # missing in older analyses
    return f" V(q) is the variance of the gradient of {measured}." if measured else ""


def _headline(results: JsonObject) -> str:
    """The signal with the highest rank correlation with V(q), in one sentence."""
    signal = results["recommendation"]["signal"]
    if signal is None:
        return "Too few groups with reward spread to tell which signal follows the gradient variance."
    if not signal["follows"]:
        return "No signal follows the gradient variance of this model on these data."
    name = capital(label(signal["name"]))
    return f"{name} follows the gradient variance most closely: rank correlation {rho_text(signal)}."


def _facts(config: JsonObject, results: JsonObject) -> JsonObject:
    settings, identity = config["settings"], config.get("identity") or {}
    return {
        "task": settings.get("task"),
        "model": settings.get("model"),
        "groups": f"{results['counts']['groups']:,}",
        "answers per group": results["rollouts"],
        "temperature": settings.get("temperature"),
        "answers from": settings.get("from_rollouts") or "the model",
        "clusters from": settings.get("entailment_model") or "equal normalised answers",
        "gradient of": identity.get("parameters") or settings.get("parameters") or "all parameters",
        "seed": settings.get("seed"),
    }


def _sections(analysis: Analysis, results: JsonObject) -> Iterator[Section]:
    yield Section("recommendation", "Recommendation", results["recommendation"]["words"])
    yield weight_section(results)
    yield _figure_one(results)
    for target in TARGETS:
        yield from _target_tables(target, results["tables"].get(target, {}))
    yield filter_section(results)
    yield _scatters(analysis)
    yield _distributions(results)
    yield _groups(analysis, results)


def _figure_one(results: JsonObject) -> Section:
    title, tables = "Figure 1 of the paper", results["tables"]["gradient_variance"]
    table = tables.get("without_outliers") or tables.get("all")
    if table is None:
        return Section("figure", title, missing=FEW)
    plots = [Plot(name, figures.data_uri([draw], (5.2, 4.6))) for name, draw in _panels(table).items()]
    outliers = f", without the {results['outliers']} largest V(q)" if results["outliers"] else ""
    text = (
        f"{table['groups']:,} groups{outliers}. Confidences are negated, so that larger means more uncertain: a "
        "positive correlation means that uncertainty and variance grow together."
    )
    return Section("figure", title, [text], plots)


def _panels(table: JsonObject) -> dict[str, figures.Draw]:
    """Title -> figure: rank correlation, retrieval, differences to barycentric transport, held-out prediction."""
    rows = dict(sorted(table["rows"].items(), key=lambda item: -item[1]["rho"]))
    names, values = [SIGNALS[name].short for name in rows], pd.DataFrame(rows).T
    rho = Estimates("rho", values["rho"], values["low"], values["high"])
    top = [
        Estimates("AUC", values["auc"], values["auc_low"], values["auc_high"]),
        Estimates("precision at 10%", values["precision"]),
    ]
    panels = {
        "(a) Rank correlation with V(q)": rows_of_estimates(names, [rho], "Spearman's rho"),
        "(b) Finding the top tenth by V(q)": rows_of_estimates(names, top, "share (dashed: AUC of chance)", line=0.5),
    }
    against = table["differences"].get("barycentric_transport")
    if against:
        others = {SIGNALS[name].short: against[name][:3] for name in rows if name in against}
        difference = Estimates("difference", *zip(*others.values(), strict=True))
        title = "(c) BoT minus each signal, paired bootstrap"
        panels[title] = rows_of_estimates(list(others), [difference], "difference of rho")
    areas = table.get("auc_differences", {}).get("barycentric_transport")
    if areas:
        others = {SIGNALS[name].short: areas[name][:3] for name in rows if name in areas}
        difference = Estimates("difference", *zip(*others.values(), strict=True))
        title = "(c) BoT minus each signal, AUC of the top tenth (appendix D.5)"
        panels[title] = rows_of_estimates(list(others), [difference], "difference of AUC")
    baseline = table["baseline_mae"]
    saved = Estimates("error saved", 1 - values["mae"] / baseline if baseline > 0 else values["mae"] * 0)
    held_out = [Estimates("rank correlation", values["held_out"]), saved]
    title, axis = "(d) Predicting V(q) of held-out groups", "held-out rank correlation; share of the mean error saved"
    return panels | {title: rows_of_estimates(names, held_out, axis)}


def _target_tables(target: str, tables: JsonObject) -> Iterator[Section]:
    if not tables:
        yield Section(target, capital(TARGETS[target]), missing=FEW)
    for subset, table in tables.items():
        if subset == "informative" and table["groups"] == tables["all"]["groups"]:
            continue  # each group has spread: the same table again
        left_out = ", ".join(map(label, table["left_out"]))
        yield Section(
            f"{target}-{subset}",
            f"{capital(TARGETS[target])}: {SUBSETS[subset]} ({table['groups']:,})",
            [NOTES[target]] if subset == "all" else [],
            table=_rank_table(table, target),
            missing=[f"Not measured here: {left_out}."] if left_out else [],
        )


def _rank_table(table: JsonObject, target: str) -> Table:
    """One row per signal, the closest first; for the success rate the correlation alone, as in the paper."""
    rows = sorted(table["rows"].items(), key=lambda item: -abs(item[1]["rho"]))
    baseline, shown = table["baseline_mae"], 3 if target == "success_rate" else None
    cells = [
        [
            label(name),
            rho_text(row),
            p_value(row["p"]),
            interval_text(row["auc"], row["auc_low"], row["auc_high"]),
            decimal(row["precision"]),
            decimal(row["mae"] / baseline) if baseline > 0 else DASH,
            decimal(row["held_out"]),
        ]
        for name, row in rows
    ]
    return Table(RANK_HEADER[:shown], [row[:shown] for row in cells])


def _scatters(analysis: Analysis) -> Section:
    """V(q) over each signal, one dot per group with reward spread."""
    title = "V(q) over each signal"
    rows = [{**line["signals"], "V": line["truth"]["gradient_variance"]} for line in _with_spread(analysis)]
    groups = pd.DataFrame(rows, dtype=float, columns=[*SIGNALS, "V"])
    if len(groups) < 2:
        return Section("scatter", title, missing=["Too few groups with reward spread to draw."])
    names = [name for name in SIGNALS if groups[name].notna().sum() > 1]
    draws = {name: figures.scatter(groups[name], groups["V"], name, "V(q)", log=True) for name in names}
    plots = [Plot(capital(raw_label(name)), figures.data_uri([draw])) for name, draw in draws.items()]
    return Section("scatter", title, [f"{len(groups):,} groups with reward spread; signals as measured."], plots)


def _with_spread(analysis: Analysis) -> Iterator[JsonObject]:
    """The groups with reward spread whose V(q) was measured."""
    for line in analysis.lines(analysis.options()["settings"]["queries"]):
        if line["outcome"] == "informative" and line["truth"].get("gradient_variance") is not None:
            yield line


def _distributions(results: JsonObject) -> Section:
    header = {"mean": "mean", "std": "deviation", "q01": "1st percentile", "median": "median", "q99": "99th percentile"}
    rows = [[raw_label(name), *(f"{row[key]:.4g}" for key in header)] for name, row in results["signals"].items()]
    table = Table(["signal", *header.values()], rows)
    return Section("signals", "Values of the signals", ["Over all groups, as measured."], table=table)


def _groups(analysis: Analysis, results: JsonObject) -> Section:
    """The variance between clusters, and the groups with the largest and the smallest V(q)."""
    settings, share = analysis.options()["settings"], results["between_clusters"]["variance"]
    text = []
    if share is not None and (settings.get("entailment_model") or settings.get("from_rollouts")):
        text = [f"Of V(q), {share:.0%} lies between semantic clusters, the rest within them."]
    elif share is not None:
        text = [
            "Clusters are answers that are equal after normalisation, which have nearly equal gradients; use an "
            "entailment model to measure how much of V(q) lies within a semantic cluster."
        ]
    rows = [_example(line) for line in _extremes(analysis)]
    header = ["question", "answers (times, reward)", "V(q)", "BoT", "RD"]
    return Section(
        "groups",
        "Groups with the largest and the smallest V(q)",
        text,
        table=Table(header, rows, text_columns=2) if rows else None,
        missing=[] if rows else ["No group has reward spread."],
    )


def _extremes(analysis: Analysis) -> list[JsonObject]:
    """The groups with the largest and the smallest V(q), read one line at a time."""
    largest = heapq.nlargest(EXAMPLES, _with_spread(analysis), key=_variance)
    indices = {line["index"] for line in largest}
    others = (line for line in _with_spread(analysis) if line["index"] not in indices)
    return largest + heapq.nsmallest(EXAMPLES, others, key=_variance)[::-1]


def _variance(line: JsonObject) -> float:
    return float(line["truth"]["gradient_variance"])


def _example(line: JsonObject) -> Sequence[str]:
    answers = [f"“{shorten(row['answer'], 60)}” ({row['count']} ×, {plain(row['reward'])})" for row in line["answers"]]
    scores = (line["signals"][name] for name in ("barycentric_transport", "reward_dispersion"))
    numbers = [DASH if score is None else decimal(score) for score in scores]
    return [_end(line["prompt_end"]), "; ".join(answers), f"{_variance(line):.4g}", *numbers]


def _end(text: str, limit: int = 160) -> str:
    """The last words of a text.

    >>> _end("one two three", 10)
    '… two three'
    """
    text = " ".join(text.split())
    return text if len(text) <= limit else "… " + text[-limit:].partition(" ")[2]
