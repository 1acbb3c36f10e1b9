"""The page of an analysis: the recommendation, the paper's figure and tables for one's own model and data."""

import heapq
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup

from calibrant.errors import CalibrantError
from calibrant.files import json_object, write_text
from calibrant.report import figures
from calibrant.report.analysis_files import Analysis
from calibrant.report.names import SIGNALS, SUBSETS, TARGETS, decimal, interval, words
from calibrant.report.page import Plot, Section, asset, policy, template
from calibrant.report.tables import Table, pairs, plain

EXAMPLES = 6
"""Groups shown with the largest V(q), and as many with the smallest."""

NOTES = {
    "gradient_variance": "V(q) is the variance of the advantage-weighted gradients of a group's answers, computed "
    "exactly. Groups without reward spread have V(q) = 0, so that “all groups” mixes two questions: does a group teach "
    "anything, and how noisy is it. Weights act on groups with spread alone.",
    "score_variance": "The same with every advantage 1: how much the gradients of the answers differ, whatever their "
    "rewards. The paper's argument is about this quantity.",
    "mean_norm_squared": "The squared norm of the mean gradient, the group's update. A signal that follows it as "
    "closely as V(q) marks groups with large gradients, of which damping takes noise and signal alike.",
    "success_rate": "The share of right answers (the paper's table 3). Doubt should fall as it rises.",
}


def write_analysis_report(path: str | Path) -> Path:
    """Writes `report.html` into the directory of an analysis: self-contained, whole or not at all.

    Args:
        path: the directory, with `analysis.json`.

    Returns:
        The path of the page.

    Raises:
        CalibrantError: the directory holds no finished analysis.
    """
    analysis = Analysis(Path(path))
    config = analysis.options()
    if not analysis.results.is_file():
        raise CalibrantError(f"'{path}' has no analysis.json yet; run calibrant analyze with --out {path} to its end")
    results = _results(analysis)
    return write_text(analysis.report, render(analysis, config, results))


def _results(analysis: Analysis) -> dict[str, Any]:
    found = json_object(analysis.results.read_bytes())
    if found is None or not {"recommendation", "tables", "counts"} <= found.keys():
        raise CalibrantError(
            f"'{analysis.results}' is damaged; run calibrant analyze with --out {analysis.path} again, which writes it "
            "anew from the groups"
        )
    return found


def render(analysis: Analysis, config: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    """The page of an analysis."""
    style = asset("report.css")
    page = template("analysis.html").render(
        policy=policy(style, ""),
        style=Markup(style),
        name=analysis.path.resolve().name,
        headline=headline(results),
        subtitle=subtitle(results),
        facts=facts(config["settings"], results),
        lists=[pairs("option", "value", config["settings"]), pairs("package", "version", config["versions"])],
        sections=list(sections(analysis, results)),
        notes=[],
    )
    return page.encode("utf-8", "replace").decode("utf-8")


def headline(results: Mapping[str, Any]) -> str:
    """The finding in one sentence."""
    signal = results["recommendation"]["signal"]
    if signal is None:
        return "Too few groups with reward spread to say which signal follows the gradient variance."
    if not signal["follows"]:
        return "No signal follows the gradient variance of this model on these data."
    name = words(signal["name"])
    return (
        f"{name[0].upper()}{name[1:]} follows the gradient variance most closely: rank correlation {interval(signal)}."
    )


def subtitle(results: Mapping[str, Any]) -> str:
    """What it is of."""
    counts = results["counts"]
    return (
        f"{counts['groups']:,} groups of {results['rollouts']} answers, {counts['informative']:,} of them with reward "
        "spread. Brackets are 95% bootstrap intervals over prompts."
    )


def facts(settings: Mapping[str, Any], results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was analysed, for the head of the page."""
    given = settings.get("from_rollouts")
    pairs = [
        ("task", plain(settings.get("task"))),
        ("model", plain(settings.get("model"))),
        ("groups", f"{results['counts']['groups']:,}"),
        ("answers a group", plain(results["rollouts"])),
        ("temperature", plain(settings.get("temperature"))),
        ("answers from", plain(given) if given else "the model"),
        (
            "clusters from",
            plain(settings.get("entailment_model")) if settings.get("entailment_model") else "equal keys",
        ),
        ("gradient of", plain(settings.get("parameters")) if settings.get("parameters") else "all parameters"),
        ("seed", plain(settings.get("seed"))),
    ]
    return [(name, value) for name, value in pairs if value != "–"]


def sections(analysis: Analysis, results: Mapping[str, Any]) -> Iterator[Section]:
    """Every part of the page, in order."""
    yield Section("recommendation", "What to do", results["recommendation"]["words"])
    yield figure_one(results)
    for target in TARGETS:
        yield from target_tables(target, results)
    yield scatters(analysis)
    yield distributions(results)
    yield groups(analysis, results)


def figure_one(results: Mapping[str, Any]) -> Section:
    """The four panels of the paper's figure 1."""
    title, tables = "Figure 1 of the paper", results["tables"]["gradient_variance"]
    table = tables.get("without_outliers") or tables.get("all")
    if table is None:
        return Section("figure", title, missing=["Too few groups for statistics."])
    plots = [Plot(name, figures.data_uri([draw], (5.2, 4.6))) for name, draw in panels(table).items()]
    less = f", without the {results['outliers']} largest V(q)" if results["outliers"] else ""
    said = [
        f"{table['groups']:,} groups{less}. Confidences are turned round: where a correlation is positive, doubt and "
        "variance grow together."
    ]
    return Section("figure", title, said, plots)


def panels(table: Mapping[str, Any]) -> dict[str, figures.Draw]:
    """Title -> figure: rank correlation, retrieval, differences to barycentric transport, held-out prediction."""
    rows = dict(sorted(table["rows"].items(), key=lambda item: -item[1]["rho"]))
    names, values = [SIGNALS[name].short for name in rows], pd.DataFrame(rows).T
    made = {
        "(a) Rank correlation with V(q)": figures.rows_of_estimates(
            names, [figures.Estimates("rho", values["rho"], values["low"], values["high"])], "Spearman's rho"
        ),
        "(b) Finding the top tenth by V(q)": figures.rows_of_estimates(
            names,
            [
                figures.Estimates("AUC", values["auc"], values["auc_low"], values["auc_high"]),
                figures.Estimates("precision at 10%", values["precision"]),
            ],
            "share (dashed: AUC of chance)",
            line=0.5,
        ),
    }
    against = table["differences"].get("barycentric_transport")
    if against:
        others = {name: against[name] for name in rows if name in against}
        d, low, high, _ = zip(*others.values(), strict=True)
        made["(c) BoT minus each signal, paired bootstrap"] = figures.rows_of_estimates(
            [SIGNALS[name].short for name in others],
            [figures.Estimates("difference", d, low, high)],
            "difference of rho",
        )
    baseline = table["baseline_mae"]
    explained = 1 - values["mae"] / baseline if baseline > 0 else values["mae"] * 0
    made["(d) Predicting V(q) of held-out groups"] = figures.rows_of_estimates(
        names,
        [figures.Estimates("rank correlation", values["held_out"]), figures.Estimates("error saved", explained)],
        "held-out rank correlation; share of the mean error saved",
    )
    return made


def target_tables(target: str, results: Mapping[str, Any]) -> Iterator[Section]:
    """The tables of one target, a section each."""
    made = results["tables"].get(target, {})
    if not made:
        yield Section(target, capital(TARGETS[target]), missing=["Too few groups for statistics."])
    for subset, table in made.items():
        said = [NOTES[target]] if subset == "all" else []
        if subset == "informative" and table["groups"] == made["all"]["groups"]:
            continue  # each group has spread: the same table again
        left = [f"Not measured here: {', '.join(words(n) for n in table['left_out'])}."] if table["left_out"] else []
        title = f"{capital(TARGETS[target])}: {SUBSETS[subset]} ({table['groups']:,})"
        yield Section(f"{target}-{subset}", title, said, table=rank_table(table, target), missing=left)


def rank_table(table: Mapping[str, Any], target: str) -> Table:
    """A row a signal, the closest first; of the success rate the correlation alone, as in the paper."""
    rows = sorted(table["rows"].items(), key=lambda item: -abs(item[1]["rho"]))
    header = ["signal", "rank correlation", "p"]
    if target == "success_rate":
        return Table(header, [[words(name), interval(row), p_value(row["p"])] for name, row in rows])
    baseline = table["baseline_mae"]
    return Table(
        [*header, "AUC of the top tenth", "precision at 10%", "held-out error / chance", "held-out rank corr."],
        [
            [
                words(name),
                interval(row),
                p_value(row["p"]),
                f"{decimal(row['auc'])} [{decimal(row['auc_low'])}, {decimal(row['auc_high'])}]",
                decimal(row["precision"]),
                decimal(row["mae"] / baseline) if baseline > 0 else "–",
                decimal(row["held_out"]),
            ]
            for name, row in rows
        ],
    )


def p_value(p: float) -> str:
    """`<0.001`, or three decimals.

    >>> p_value(1e-9), p_value(0.04)
    ('<0.001', '0.040')
    """
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def scatters(analysis: Analysis) -> Section:
    """V(q) over each signal, a dot a group with reward spread."""
    title, known = "V(q) over each signal", _spread(analysis)
    if len(known) < 2:
        return Section("scatter", title, missing=["Too few groups with reward spread to draw."])
    plots = [
        Plot(
            capital(as_it_is(name)),
            figures.data_uri([figures.scatter(known[name], known["V"], name, "V(q)", log=True)]),
        )
        for name in SIGNALS
        if known[name].notna().sum() > 1
    ]
    return Section("scatter", title, [f"{len(known):,} groups with reward spread; signals as they are."], plots)


def _spread(analysis: Analysis) -> pd.DataFrame:
    rows = [
        {**line["signals"], "V": line["truth"]["gradient_variance"]}
        for line in analysis.lines(_queries(analysis))
        if line["outcome"] == "informative" and line["truth"].get("gradient_variance") is not None
    ]
    return pd.DataFrame(rows, dtype=float, columns=[*SIGNALS, "V"])


def distributions(results: Mapping[str, Any]) -> Section:
    """What values each signal takes."""
    parts = ("mean", "std", "q01", "median", "q99")
    rows = [[as_it_is(name), *(f"{row[part]:.4g}" for part in parts)] for name, row in results["signals"].items()]
    header = ["signal", "mean", "deviation", "1st percentile", "median", "99th percentile"]
    return Section("signals", "Values of the signals", ["Over all groups, as they are."], table=Table(header, rows))


def groups(analysis: Analysis, results: Mapping[str, Any]) -> Section:
    """How many groups teach something, and those with the largest and the smallest V(q)."""
    settings, share = analysis.options()["settings"], results["between_clusters"]["variance"]
    judged = settings.get("entailment_model") or settings.get("from_rollouts")
    said = [] if share is None else [f"Of V(q), {share:.0%} lies between clusters of meaning, the rest within."]
    if said and not judged:
        said = [
            "Clusters are answers with equal keys, which have nearly equal gradients: how much of V(q) lies within a "
            "meaning is for an entailment model to say."
        ]
    rows = [_example(line) for line in _extremes(analysis)]
    header = ["question", "answers (times, reward)", "V(q)", "BoT", "RD"]
    return Section(
        "groups",
        "Groups with the largest and the smallest V(q)",
        said,
        table=Table(header, rows, words=2) if rows else None,
        missing=[] if rows else ["No group has reward spread."],
    )


def _extremes(analysis: Analysis) -> list[dict[str, Any]]:
    """Lines of a few groups; no more are held at a time."""

    def size(line: Mapping[str, Any]) -> float:
        return float(line["truth"]["gradient_variance"])

    def spread() -> Iterator[dict[str, Any]]:
        for line in analysis.lines(_queries(analysis)):
            if line["outcome"] == "informative" and line["truth"].get("gradient_variance") is not None:
                yield line

    largest = heapq.nlargest(EXAMPLES, spread(), key=size)
    known = {line["index"] for line in largest}
    smallest = heapq.nsmallest(EXAMPLES, (line for line in spread() if line["index"] not in known), key=size)
    return largest + smallest[::-1]


def _example(line: Mapping[str, Any]) -> Sequence[str]:
    answers = "; ".join(
        f"“{figures.shorten(found['answer'], 60)}” ({found['count']} ×, {plain(found['reward'])})"
        for found in line["answers"]
    )
    bot, spread = (line["signals"][name] for name in ("barycentric_transport", "reward_dispersion"))
    return [
        _end(line["prompt_end"]),
        answers,
        f"{line['truth']['gradient_variance']:.4g}",
        _or_dash(bot),
        _or_dash(spread),
    ]


def _end(text: str, limit: int = 160) -> str:
    """The last words of a text.

    >>> _end("one two three", 10)
    '… two three'
    """
    text = " ".join(text.split())
    return text if len(text) <= limit else "… " + text[-limit:].partition(" ")[2]


def _or_dash(x: float | None) -> str:
    return "–" if x is None else decimal(x)


def _queries(analysis: Analysis) -> int | None:
    count: int | None = analysis.options()["settings"]["queries"]
    return count


def as_it_is(signal: str) -> str:
    """A signal in words, where it is not turned round.

    >>> as_it_is("self_consistency")
    'self-consistency'
    """
    return words(signal).removesuffix(", turned round")


def capital(text: str) -> str:
    """With a capital at the beginning."""
    return text[:1].upper() + text[1:]
