"""The report: one self-contained page a run, with no network and no markup from the run."""

import base64
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jinja2
import pandas as pd
from markupsafe import Markup

from calibrant.files import write_text
from calibrant.report import browse, confidence, figures, tables
from calibrant.report.reading import RunData, load_run

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Plot:
    """A figure in the page: what it shows, in words too."""

    title: str
    uri: str
    caption: str = ""
    wide: bool = False


@dataclass(frozen=True)
class Section:
    """A part of the page; what is missing in it is said in `missing`."""

    id: str
    title: str
    words: Sequence[str] = ()
    plots: Sequence[Plot] = ()
    table: tables.Table | None = None
    missing: Sequence[str] = field(default=())


def write_report(run_dir: str | Path) -> Path:
    """Writes `report.html` into a run directory: self-contained, readable offline, whole or not at all.

    Args:
        run_dir: a run directory, of a run that has ended or not.

    Returns:
        The path of the page.

    Raises:
        CalibrantError: the directory is not one of a run.
    """
    run = load_run(run_dir)
    page = render(run).encode("utf-8", "replace").decode("utf-8")
    return write_text(run.path / "report.html", page)


def render(run: RunData) -> str:
    """The page of a run."""
    style, script = asset("report.css"), asset("report.js")
    groups, shown = browse.payload(run)
    return template("report.html").render(
        policy=policy(style, script),
        style=Markup(style),
        script=Markup(script),
        groups=Markup(groups),
        shown=shown,
        name=run.path.resolve().name,
        headline=tables.headline(run),
        subtitle=tables.subtitle(run),
        facts=tables.facts(run),
        lists=[tables.option_table(run), tables.version_table(run)],
        sections=[section(run) for section in SECTIONS],
        notes=run.notes,
    )


def policy(style: str, script: str) -> str:
    """A content security policy: this style, this script and embedded images, and nothing else."""
    return (
        f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}; "
        "base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def asset(name: str) -> str:
    """The text of a file beside the templates."""
    return (HERE / name).read_text(encoding="utf-8")


def template(name: str) -> jinja2.Template:
    """A template that escapes what is put into it and refuses what is not there."""
    loader = jinja2.FileSystemLoader(HERE)
    return jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined).get_template(name)


def learning(run: RunData) -> Section:
    """Reward, KL and gradient norm by step."""
    curves = [
        ("reward", "Mean reward", "reward", figures.BLUE),
        ("kl", "KL divergence from the starting policy", "KL (nats)", figures.GREEN),
        ("grad_norm", "Gradient norm, before clipping", "gradient norm", figures.PURPLE),
    ]
    plots, missing = [], []
    for name, title, label, colour in curves:
        values, wide = run.metric(name), name == "reward"
        if len(values):
            draw = figures.curve(values, label, colour=colour, log=name == "grad_norm")
            size = figures.WIDE if wide else figures.HALF
            plots.append(Plot(title, figures.data_uri([draw], size), wide=wide))
        else:
            missing.append(f"{title}: metrics.jsonl holds no “{name}”{' (beta is 0?)' if name == 'kl' else ''}.")
    words = [
        "Rewards of the training prompts, which change from step to step: for the result, trust the evaluation below."
    ]
    return Section("learning", "Learning curve", words if plots else [], plots, missing=missing)


def evaluation(run: RunData) -> Section:
    """Before and after training, on prompts that training never sees."""
    rows = tables.comparisons(run)
    missing = [f"No evaluation {when} training is saved." for when in ("before", "after") if when not in run.evaluation]
    if not rows:
        return Section("evaluation", "Before and after", missing=missing)
    words = [
        "Greedy is the answer that the model gives at temperature 0. Sampled is the mean over its sampled "
        "answers, what training works on. Brackets are 95% intervals over prompts."
    ]
    size = (figures.WIDE[0], 0.9 + 0.42 * len(rows))
    plot = Plot("Scores before and after training", figures.data_uri([figures.before_after(rows)], size), wide=True)
    return Section("evaluation", "Before and after", words, [plot], tables.evaluation_table(run), missing)


def trust(run: RunData) -> Section:
    """Whether the model's confidence can be trusted, before and after training."""
    title, found = "Can its confidence be trusted?", confidence.table(run.evaluation)
    panels = confidence.panels(run.evaluation)
    if not found.rows:
        return Section("trust", title, missing=["No calibration is saved with the evaluation."])
    words = [
        "Confidence is the likelihood of an answer a token. An AUC of 0.5 says that it tells nothing about which "
        "answers are right; a model can gain accuracy and lose this. Votes choose one of the first N sampled answers."
    ]
    plots = [Plot(name, figures.data_uri([draw])) for name, draw in panels.items()]
    return Section("trust", title, words, plots, found)


def weights(run: RunData) -> Section:
    """Distribution and mean of the weights by step."""
    mean = tables.mean_weight(run)
    if not len(mean):
        return Section("weights", "Weights", missing=["This run has saved no weights."])
    words = [
        "A weight multiplies the advantages of answers: above 1 the update follows them more, below 1 less.",
        _effect(mean),
    ]
    draw = figures.curve(mean, "mean weight", colour=figures.ORANGE, line=1)
    parts = {name: f"Part of the weight: {figures.shorten(name)}" for name in run.factors}
    plots = [
        _bands(run, "weight", "Distribution of the weights", figures.BLUE),
        Plot("Mean weight", figures.data_uri([draw]), "A learning-rate change in disguise."),
        *(_bands(run, name, title, figures.PURPLE) for name, title in parts.items()),
    ]
    return Section("weights", "Weights", words, [plot for plot in plots if plot])


def _effect(mean: pd.Series) -> str:
    average = float(mean.mean())
    change = f"{abs(average - 1):.1%}"
    if change == "0.0%":
        return "The mean weight of the run is 1.000: on average the weights leave the learning rate alone."
    direction = "higher" if average > 1 else "lower"
    return (
        f"The mean weight of the run is {average:.3f}. That is a learning-rate change in disguise: on "
        f"average the policy term was trained as with a learning rate {change} {direction}. The option "
        "mean_one takes it out."
    )


def signals(run: RunData) -> Section:
    """Distribution of each signal by step."""
    names = run.scores or _logged_scores(run)
    if not names:
        method = tables.plain(run.options.get("method"))
        return Section("signals", "Signals", missing=[f"The method “{method}” has saved no signals."])
    plots = [_bands(run, name, figures.shorten(name), figures.GREEN) for name in names]
    words = [
        "What the method read from each group of answers. An uncertainty that falls means that the answers "
        "of a group agree more."
    ]
    return Section("signals", "Signals", words, [plot for plot in plots if plot])


def _logged_scores(run: RunData) -> list[str]:
    parts = [str(name).split("/") for name in run.metrics if len(run.metric(str(name)))]
    return sorted({p[1] for p in parts if len(p) == 3 and p[0] == "group" and p[2] == "mean" and p[1] != "weight"})


def _bands(run: RunData, name: str, title: str, colour: str) -> Plot | None:
    """Quantiles from the rollout files, or else what the metrics keep."""
    frame = run.weights if name == "weight" else run.groups
    if name in frame and frame[name].notna().any():
        table = figures.quantile_bands(frame["step"], frame[name])
        unit = "answers" if name == "weight" else "groups"
        pooled = table.attrs["pooled"]
        caption = f"Over the {unit} of {'a step' if pooled == 1 else f'{pooled} neighbouring steps'}."
    else:
        table = figures.logged_bands(*(run.metric(f"group/{name}/{part}") for part in ("min", "mean", "max")))
        caption = "From metrics.jsonl; there are no rollout files with it."
    if not len(table):
        return None
    line = 1 if name == "weight" or name in run.factors else None
    return Plot(title, figures.data_uri([figures.bands(table, name, colour=colour, line=line)]), caption)


def scatters(run: RunData) -> Section:
    """Signals against reward, spread and weight, a dot a group."""
    if not run.scores:
        return Section("scatter", "Signals against reward", missing=["The rollout files hold no signals to compare."])
    targets = [("mean_reward", "mean reward"), ("spread", "reward spread"), ("weight", "weight")]
    plots = []
    for score in run.scores:
        x = run.groups[score]
        draws = [
            figures.scatter(x, run.groups[column], score, label)
            for column, label in targets
            if run.groups[column].notna().any()
        ]
        if draws:
            size = (figures.WIDE[0] * len(draws) / 3, 2.8)
            plots.append(Plot(figures.shorten(score), figures.data_uri(draws, size), wide=True))
    words = [
        f"A dot is a group; {len(run.groups):,} groups. Reward spread is the standard deviation of the "
        "rewards of a group. A signal that rises with the spread points at groups with something to learn; "
        "one that falls as the mean reward rises doubts where the model is wrong."
    ]
    return Section("scatter", "Signals against reward", words, plots)


def informative(run: RunData) -> Section:
    """Share of groups that teach nothing."""
    share = tables.uninformative(run)
    title = "Groups that teach nothing"
    if not len(share):
        return Section("uninformative", title, missing=["This run has not saved the share of uninformative groups."])
    known = f"{share.mean():.1%}" if share.any() else "None"
    words = [
        "Where all answers of a group earn the same reward, every advantage is 0 and nothing is learnt. "
        f"{known} of the groups were such, over all steps. A growing share means that prompts have become "
        "too easy or stay too hard."
    ]
    draw = figures.curve(share, "share of groups", colour=figures.ORANGE, share=True)
    plots = [_wide("Uninformative groups", draw)] if share.any() else []
    return Section("uninformative", title, words, plots)


def _wide(title: str, draw: figures.Draw) -> Plot:
    return Plot(title, figures.data_uri([draw], figures.WIDE), wide=True)


def integrity(run: RunData) -> Section:
    """Rewards that could not be used as they were."""
    table, title = tables.reward_counts(run), "Rewards that went wrong"
    missing = [
        f"Rewards {name if name != 'unscorable' else 'that could not be scored'} were not counted."
        for name in table
        if not table[name].notna().any()
    ]
    totals = {name: int(table[name].sum()) for name in table if table[name].notna().any()}
    words = [_total(name, total) for name, total in totals.items()]
    wrong = [name for name, total in totals.items() if total]
    plots = [_wide("Counts by step", figures.counts(table[wrong]))] if wrong else []
    return Section("integrity", title, words, plots, missing=missing)


def _total(name: str, total: int) -> str:
    if name == "unscorable":
        return f"Unscorable rewards: {total:,}. They are left out of every statistic and have advantage 0."
    return f"Rewards out of the reward range: {total:,}. Signals read them clipped" + (
        "; set reward_range to what the reward function can return." if total else "."
    )


SECTIONS: tuple[Callable[[RunData], Section], ...] = (
    learning, evaluation, trust, weights, signals, scatters, informative, integrity,
)  # fmt: skip
