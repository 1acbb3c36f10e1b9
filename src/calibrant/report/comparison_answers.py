"""The prompts that changed most between two cells of a comparison, with the answers of both."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from calibrant.errors import CalibrantError
from calibrant.report.browse import cut
from calibrant.report.comparison_files import ComparisonData, metric_words
from calibrant.report.page import Pair, Section, Side
from calibrant.rollouts import read_rollouts
from calibrant.statistics.measurements import Scores

SHOWN = 6  # prompts that rose most, and as many that fell most
ANSWERS = 6  # different answers per side
LIMIT, PROMPT_LIMIT, TITLE = 400, 4000, 160  # characters


def changed_prompts(data: ComparisonData, scores: Scores, first: str, second: str) -> Section:
    """The prompts whose metric differs most between two cells, over the seeds that both have."""
    title, metric = "Prompts that changed most", metric_words(scores.metric)
    seeds = sorted(scores.values.get(first, {}).keys() & scores.values.get(second, {}).keys())
    if not seeds or not scores.prompts:
        return Section("prompts", title, missing=[f"{first} and {second} have no seed in common to compare."])
    changes = prompt_changes(scores, first, second, seeds)
    chosen = extremes(changes)
    if not chosen:
        return Section("prompts", title, [f"No prompt has another {metric} with {second} than with {first}."])
    missing: list[str] = []
    answers = {cell: _answers(data, scores.task, cell, seeds, chosen, missing) for cell in (first, second)}
    text = (
        f"{second} beside {first}: the prompts whose {metric} rose and fell most, as means over "
        f"{len(seeds)} {'seed' if len(seeds) == 1 else 'seeds'}. Look for what kind of answer was gained or lost. The "
        "largest of many changes are large by chance too: these are examples, not evidence."
    )
    pairs = [_pair(prompt, changes[prompt], answers, metric) for prompt in chosen]
    return Section("prompts", title, [text], pairs=[pair for pair in pairs if pair], missing=missing)


def prompt_changes(scores: Scores, first: str, second: str, seeds: Sequence[int]) -> dict[str, float]:
    """Prompt -> mean over seeds of the second cell minus that of the first; without prompts that lack a value."""
    values = [np.array([scores.values[cell][seed] for seed in seeds]).mean(0) for cell in (first, second)]
    changes = zip(scores.prompts, (values[1] - values[0]).tolist(), strict=True)
    return {prompt: change for prompt, change in changes if not math.isnan(change)}


def extremes(changes: Mapping[str, float], count: int = SHOWN) -> list[str]:
    """The prompts that rose most, then those that fell most; none that stayed.

    >>> extremes({"a": 0.1, "b": -0.5, "c": 0.0, "d": 0.4}, 1)
    ['d', 'b']
    """
    ordered = sorted(changes, key=lambda prompt: (-changes[prompt], prompt))
    up = [prompt for prompt in ordered if changes[prompt] > 0][:count]
    return up + [prompt for prompt in reversed(ordered) if changes[prompt] < 0][:count]


def _answers(
    data: ComparisonData, task: str, cell: str, seeds: Sequence[int], prompts: Sequence[str], missing: list[str]
) -> pd.DataFrame:
    """The rows of some prompts in the rollout files of a cell's evaluations."""
    frames = []
    for seed in seeds:
        file = data.evaluation(task, cell, seed) / "rollouts.parquet"
        try:
            frame = read_rollouts(file)
        except CalibrantError as error:
            missing.append(f"The answers of {cell} with seed {seed} are left out: {error}.")
            continue
        frames.append(frame[frame["prompt_id"].isin(prompts)])
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame({"prompt_id": []})


def _pair(prompt: str, change: float, answers: Mapping[str, pd.DataFrame], metric: str) -> Pair | None:
    rows = {cell: frame[frame["prompt_id"] == prompt] for cell, frame in answers.items()}
    known = next((frame.iloc[0] for frame in rows.values() if len(frame)), None)
    if known is None:
        return None
    first, second = (Side(cell, list(_side(frame))) for cell, frame in rows.items())
    references = known.get("references")
    expected = [cut(x, 200) for x in references[:10]] if isinstance(references, (list, tuple, np.ndarray)) else []
    text = cut(known.get("prompt"), PROMPT_LIMIT)
    return Pair(question(text) or prompt, f"{metric} {change:+.2f}", text, "  |  ".join(expected), (first, second))


def _side(frame: pd.DataFrame) -> list[tuple[str, str]]:
    """The different answers, the most frequent first, each with how often it was given and whether it is right."""
    if frame.empty:
        return [("(no answers in the files)", "")]
    texts = frame["answer"].fillna(frame["completion"]) if "answer" in frame else frame["completion"]
    by_text = frame.assign(text=texts.astype(str)).groupby("text", sort=False)
    groups = sorted(by_text, key=lambda group: -len(group[1]))
    shown = [(cut(str(text), LIMIT) or "(empty)", _note(rows)) for text, rows in groups[:ANSWERS]]
    rest = sum(len(rows) for _, rows in groups[ANSWERS:])
    return shown + ([("…", f"and {rest} further answers")] if rest else [])


def _note(rows: pd.DataFrame) -> str:
    correct = rows["correct"].iloc[0] if "correct" in rows else None
    verdict = (", right" if correct else ", wrong") if isinstance(correct, (bool, np.bool_)) else ""
    return f"{len(rows)} ×{verdict}"


def question(prompt: str) -> str:
    """The last line of a prompt that asks something, else its last words, in one line.

    >>> question("Read.\\nWhere is Ohio?\\nAnswer:")
    'Where is Ohio?'
    """
    lines = [" ".join(line.split()) for line in prompt.splitlines() if line.strip()]
    asked = next((line for line in reversed(lines) if "?" in line), lines[-1] if lines else "")
    return asked if len(asked) <= TITLE else "… " + asked[-TITLE:].partition(" ")[2]
