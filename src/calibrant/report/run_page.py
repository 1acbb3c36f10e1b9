"""The report of a training run: learning curve, evaluation, weights, signals, and groups of answers to read."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from calibrant.errors import CalibrantError
from calibrant.files import write_with
from calibrant.report import figures, run_words
from calibrant.report.browse import browser
from calibrant.report.confidence import calibration_figures, calibration_table
from calibrant.report.evaluations import WHEN, comparisons
from calibrant.report.figures import HALF, WIDE
from calibrant.report.formats import DASH, plain, shorten
from calibrant.report.page import Page, Plot, Section, Table, write_page
from calibrant.report.reading import RunData, load_run


def write_report(run_dir: str | Path, images: Path | None = None) -> Path:
    """Writes `report.html` into a run directory, whether the run has ended or not, and returns its path."""
    run = load_run(run_dir)
    page = Page(
        kind="training report",
        name=run.path.resolve().name,
        headline=run_words.run_headline(run),
        subtitle=run_words.run_subtitle(run),
        facts=run_words.run_facts(run),
        options=run.options,
        versions=run.versions,
        sections=[section(run) for section in SECTIONS],
        files="config.yaml, metrics.jsonl, evaluation.json, rollouts/",
        notes=run.notes,
        browser=browser(run),
    )
    return write_page(run.path / "report.html", page, images)


def write_picture(run_dir: str | Path, path: str | Path) -> Path:
    """Saves the learning curve and the evaluation before and after training, side by side, as `.svg` or `.png`."""
    path = Path(path)
    format = path.suffix.lower().removeprefix(".")
    if format not in ("svg", "png"):
        raise CalibrantError(f"the picture '{path}' ends in '{path.suffix}'; give a name that ends in .svg or .png")
    run = load_run(run_dir)
    reward, rows = run.metric("reward"), comparisons(run.evaluation)
    panels = [figures.curve(reward, "mean reward of a step")] if len(reward) else []
    panels += [figures.before_after(rows)] if rows else []
    if not panels:
        raise CalibrantError(f"'{run_dir}' holds neither rewards nor evaluations yet; train first, then draw")
    widths = [1.5, 1.0][-len(panels) :]
    picture = figures.save_figure(panels, (10.4, 3.6) if len(panels) > 1 else (6.4, 3.6), format, widths)
    return write_with(path, lambda file: file.write_bytes(picture))


def _plot(title: str, *draw: figures.Draw, caption: str = "", size: tuple[float, float] = HALF) -> Plot:
    return Plot(title, figures.data_uri(draw, size), caption, wide=size != HALF)


def learning(run: RunData) -> Section:
    """Reward, KL and gradient norm by step."""
    curves = [
        ("reward", "Mean reward", "reward", figures.BLUE),
        ("kl", "KL divergence from the starting policy", "KL (nats)", figures.GREEN),
        ("grad_norm", "Gradient norm, before clipping", "gradient norm", figures.PURPLE),
    ]
    plots, missing = [], []
    for name, title, label, colour in curves:
        values = run.metric(name)
        if len(values):
            draw = figures.curve(values, label, colour=colour, log=name == "grad_norm")
            plots.append(_plot(title, draw, size=WIDE if name == "reward" else HALF))
        else:
            missing.append(f"{title}: metrics.jsonl holds no “{name}”{' (beta is 0?)' if name == 'kl' else ''}.")
    text = "Rewards of the training prompts, which change with each step; the evaluation below measures the result."
    return Section("learning", "Learning curve", [text] if plots else [], plots, missing=missing)


def evaluation(run: RunData) -> Section:
    """Before and after training, on prompts that are not trained on."""
    rows, title = comparisons(run.evaluation), "Before and after"
    missing = [f"No evaluation {when} training is saved." for when in WHEN if when not in run.evaluation]
    if not rows:
        return Section("evaluation", title, missing=missing)
    text = (
        "Greedy is the answer at temperature 0. Sampled is the mean over the sampled answers, which training "
        "improves. Brackets are 95% intervals over prompts."
    )
    size = (WIDE[0], 0.9 + 0.42 * len(rows))
    plot = _plot("Scores before and after training", figures.before_after(rows), size=size)
    return Section("evaluation", title, [text], [plot], run_words.evaluation_table(run), missing)


def trust(run: RunData) -> Section:
    """Calibration of the model's confidence, before and after training."""
    title, table = "Can its confidence be trusted?", calibration_table(run.evaluation)
    if not table.rows:
        return Section("trust", title, missing=["No calibration is saved with the evaluation."])
    text = (
        "Confidence is the likelihood of an answer per token. An AUC of 0.5 means that it does not separate right "
        "from wrong answers; a model can gain accuracy and lose this. Votes choose one of the first N sampled answers."
    )
    plots = [_plot(name, draw) for name, draw in calibration_figures(run.evaluation).items()]
    return Section("trust", title, [text], plots, table)


def weights(run: RunData) -> Section:
    """Distribution and mean of the weights by step."""
    mean = run.logged("group/weight/mean", run.weights, "weight")
    if not len(mean):
        return Section("weights", "Weights", missing=["This run has saved no weights."])
    text = ["A weight multiplies the advantages of answers: above 1 their update is larger, below 1 smaller."]
    draw = figures.curve(mean, "mean weight", colour=figures.ORANGE, line=1)
    plots = [
        _bands(run, "weight", "Distribution of the weights", figures.BLUE),
        _plot("Mean weight", draw, caption="It changes the effective learning rate."),
        *(_bands(run, name, f"Factor of the weight: {shorten(name)}", figures.PURPLE) for name in run.factors),
    ]
    return Section("weights", "Weights", [*text, _effect(mean)], [plot for plot in plots if plot], _spread(run))


def _spread(run: RunData) -> Table:
    """Mean and coefficient of variation of the weight and of its factors, per group, and shares of its variance.

    The share of a factor f of the weight w is `cov(ln f, ln w) / var(ln w)`; those of all factors add up to 1. There
    are none where the weight is not the product of its factors (`strength`, `mean_one`).
    """
    columns = run.groups[["weight", *run.factors]].dropna().clip(lower=1e-12)
    logs = np.log(columns)
    total = logs["weight"].var()
    product = bool(run.factors) and np.allclose(logs["weight"], logs[run.factors].sum(axis=1), atol=1e-5)
    shares = {name: logs[name].cov(logs["weight"]) / total for name in run.factors if product and total > 1e-12}
    rows = [
        [shorten(name), f"{x.mean():.4f}", f"{x.std(ddof=0) / x.mean():.1%}", f"{shares.get(name, np.nan):.0%}"]
        for name, x in columns.items()
    ]  # fmt: skip
    rows = [[cell.replace("nan%", DASH) for cell in row] for row in rows]
    header = ["per group", "mean", "coefficient of variation", "share of its variance"]
    return Table(header, rows if len(columns) else [])


def _effect(mean: pd.Series) -> str:
    average = float(mean.mean())
    change = f"{abs(average - 1):.1%}"
    if change == "0.0%":
        return "The mean weight of the run is 1.000: on average the weights leave the learning rate unchanged."
    direction = "higher" if average > 1 else "lower"
    return (
        f"The mean weight of the run is {average:.3f}, which changes the effective learning rate: on average the "
        f"policy term was trained as with a learning rate {change} {direction}. The option mean_one removes this."
    )


def signals(run: RunData) -> Section:
    """Distribution of each signal by step."""
    names = run.scores or _logged_scores(run)
    if not names:
        method = plain(run.options.get("method"))
        return Section("signals", "Signals", missing=[f"The method “{method}” has saved no signals."])
    plots = [_bands(run, name, shorten(name), figures.GREEN) for name in names]
    text = "The signals of each group of answers. A falling uncertainty means that the answers of a group agree more."
    return Section("signals", "Signals", [text], [plot for plot in plots if plot])


def _logged_scores(run: RunData) -> list[str]:
    parts = [str(name).split("/") for name in run.metrics if len(run.metric(str(name)))]
    return sorted({p[1] for p in parts if len(p) == 3 and p[0] == "group" and p[2] == "mean" and p[1] != "weight"})


def _bands(run: RunData, name: str, title: str, colour: str) -> Plot | None:
    """Quantiles from the rollout files, or else the range in the metrics."""
    frame = run.weights if name == "weight" else run.groups
    if name in frame and frame[name].notna().any():
        table = figures.quantile_bands(frame["step"], frame[name])
        unit = "answers" if name == "weight" else "groups"
        pooled = table.attrs["pooled"]
        caption = f"Over the {unit} of {'a step' if pooled == 1 else f'{pooled} neighbouring steps'}."
    else:
        table = figures.logged_bands(*(run.metric(f"group/{name}/{part}") for part in ("min", "mean", "max")))
        caption = "From metrics.jsonl; no rollout file has it."
    if not len(table):
        return None
    line = 1 if name == "weight" or name in run.factors else None
    return _plot(title, figures.bands(table, name, colour=colour, line=line), caption=caption)


def scatters(run: RunData) -> Section:
    """Signals against reward, spread and weight, one dot per group."""
    title = "Signals against reward"
    if not run.scores:
        return Section("scatter", title, missing=["The rollout files hold no signals to compare."])
    targets = {"mean_reward": "mean reward", "spread": "reward spread", "weight": "weight"}
    present = {column: label for column, label in targets.items() if run.groups[column].notna().any()}
    plots = []
    for score in run.scores if present else []:
        draws = [figures.scatter(run.groups[score], run.groups[name], score, label) for name, label in present.items()]
        plots.append(_plot(shorten(score), *draws, size=(WIDE[0] * len(draws) / 3, 2.8)))
    text = (
        f"Each dot is a group; {len(run.groups):,} groups. Reward spread is the standard deviation of the rewards of "
        "a group. A signal that rises with the spread marks groups that training can learn from; one that falls as "
        "the mean reward rises is uncertain where the model is wrong."
    )
    return Section("scatter", title, [text], plots)


def informative(run: RunData) -> Section:
    """Share of groups without reward spread."""
    share, title = run.logged("group/uninformative", run.groups, "uninformative"), "Groups without reward spread"
    if not len(share):
        return Section("uninformative", title, missing=["This run has not saved the share of uninformative groups."])
    text = (
        "Where all answers of a group earn the same reward, every advantage is 0 and the group has no gradient. "
        f"{f'{share.mean():.1%}' if share.any() else 'None'} of the groups were such, over all steps. A growing share "
        "means that prompts have become too easy or stay too hard."
    )
    draw = figures.curve(share, "share of groups", colour=figures.ORANGE, share=True)
    plots = [_plot("Uninformative groups", draw, size=WIDE)] if share.any() else []
    return Section("uninformative", title, [text], plots)


def integrity(run: RunData) -> Section:
    """Rewards that were unscorable or out of range."""
    table = run_words.reward_counts(run)
    counted: Sequence[str] = [name for name in table if table[name].notna().any()]
    totals = {name: int(table[name].sum()) for name in counted}
    wrong = [name for name, total in totals.items() if total]
    draw = figures.stacked_counts(table[wrong])
    return Section(
        "integrity",
        "Unscorable and out-of-range rewards",
        [_total(name, total) for name, total in totals.items()],
        [_plot("Counts by step", draw, size=WIDE)] if wrong else [],
        missing=[f"This run has not saved how many rewards were {name}." for name in table if name not in counted],
    )


def _total(name: str, total: int) -> str:
    if name == "unscorable":
        return f"Unscorable rewards: {total:,}. They are left out of every statistic and have advantage 0."
    return f"Rewards out of the reward range: {total:,}. Signals read them clipped" + (
        "; set reward_range to what the reward function can return." if total else "."
    )


SECTIONS: tuple[Callable[[RunData], Section], ...] = (
    learning, evaluation, trust, weights, signals, scatters, informative, integrity,
)  # fmt: skip
