"""A comparison's directory with made-up numbers and hostile texts."""

from pathlib import Path

import numpy as np
from builders_report import HOSTILE

from calibrant.files import write_json
from calibrant.report.comparison_files import save_comparison
from calibrant.rollouts import write_rollouts
from calibrant.statistics.comparison import compare
from calibrant.statistics.measurements import CellMeasurements, Measurements, Scores

PROMPTS, STEPS, ANSWERS = 24, 30, 8
IDS = tuple(f"prompt-{i} <b>" for i in range(PROMPTS))
PARTS = ("generation", "embedding", "reward", "logprobs", "backward")
Skill = dict[str, float]  # name of a cell -> final F1


def make_comparison(
    path: Path, skills: Skill | None = None, seeds: int = 3, rollouts: bool = True, beside: tuple[str, ...] = ()
) -> Path:
    """Three methods, of which the second is clearly better; the third has a failed seed."""
    skills = skills or {"grpo": 0.45, "gcpo_bot": 0.6, "gcpo_cd": 0.46}
    options = {name: {"method": name} for name in skills}
    failed = {"gcpo_cd": {seeds: "out of memory <script>"}} if seeds > 1 else {}
    measured = measurements(skills, options, seeds, failed)
    save_comparison(path / "comparison.json", measured, compare(measured), beside)
    for scores in measured.scores[:1] if rollouts else ():
        for name, by_seed in scores.values.items():
            for seed, values in by_seed.items():
                write_evaluation(path / "evaluations" / "places" / name / f"seed-{seed}", values)
    return path


def make_sweep(path: Path, values: tuple[object, ...] = (1e-5, 1e-4, 1e-3)) -> Path:
    """Two methods over the values of an option, the baseline breaking at the last, and a poor one without it."""
    cells = {f"{m},learning_rate={v}": {"method": m, "learning_rate": v} for m in ("grpo", "gcpo_bot") for v in values}
    skills = dict.fromkeys(cells, 0.5) | {f"grpo,learning_rate={values[-1]}": 0.08, "rd_only": 0.3}
    measured = measurements(skills, cells | {"rd_only": {"method": "rd_only"}}, 3, {}, {"learning_rate": values})
    save_comparison(path / "comparison.json", measured, compare(measured))
    return path


def measurements(
    skills: Skill, options: dict[str, dict[str, object]], seeds: int, failed: dict[str, dict[int, str]],
    varied: dict[str, tuple[object, ...]] | None = None,
) -> Measurements:  # fmt: skip
    """F1, accuracy and AUC of each cell around its skill; numbers differ by cell and seed."""
    rng = np.random.default_rng(0)
    hard = rng.normal(0, 0.1, PROMPTS)
    f1 = {name: {s: values(rng, skill, hard) for s in range(seeds)} for name, skill in skills.items()}
    right = {name: {s: tuple(float(v > 0.5) for v in x) for s, x in by.items()} for name, by in f1.items()}
    auc = {name: {s: (float(rng.uniform(0.6, 0.8)),) for s in range(seeds)} for name in skills}
    start = values(rng, 0.4, hard)
    return Measurements(
        baseline=next(iter(skills)),
        settings="shared",
        pair_seeds=True,
        varied=varied or {},
        cells=tuple(cell(rng, name, options[name], seeds, failed.get(name, {}), skills[name]) for name in skills),
        scores=(
            Scores("places", "sampled/f1", IDS, f1, {"demo": start}),
            Scores("places", "sampled/accuracy", IDS, right, {"demo": tuple(float(v > 0.5) for v in start)}),
            Scores("places", "calibration/correctness_auc", (), auc, {"demo": (0.7,)}),
            *(Scores("places", f"selection/majority_vote/{n}", (), auc, {"demo": (0.7,)}) for n in (8, 16, 2)),
        ),
    )


def values(rng: np.random.Generator, skill: float, hard: np.ndarray) -> tuple[float, ...]:
    """A value per prompt."""
    return tuple(np.clip(skill + hard + rng.normal(0, 0.03, PROMPTS), 0, 1).tolist())


def cell(
    rng: np.random.Generator, name: str, options: dict[str, object], seeds: int, failed: dict[int, str], skill: float
) -> CellMeasurements:
    """A cell whose reward rises to its skill; KL starts at 0, and one value is missing."""
    steps = np.arange(STEPS)
    rise = 0.4 + (skill - 0.4) * (1 - np.exp(-3 * steps / STEPS))
    curves: dict[str, dict[int, tuple[float, ...]]] = {"reward": {}, "kl": {}, "grad_norm": {}, "group/weight/mean": {}}
    for seed in range(seeds):
        curves["reward"][seed] = (float("nan"), *(2 * rise + rng.normal(0, 0.05, STEPS))[1:].tolist())
        curves["kl"][seed] = (0.001 * steps + rng.normal(0, 1e-4, STEPS)).clip(0).tolist()
        curves["grad_norm"][seed] = np.exp(rng.normal(0, 0.4, STEPS)).tolist()
        curves["group/weight/mean"][seed] = (1 + rng.normal(0, 0.01, STEPS)).tolist()
    seconds = {part: {s: float(rng.uniform(1, 9)) for s in range(seeds)} for part in PARTS}
    total = {s: sum(by_seed[s] for by_seed in seconds.values()) for s in range(seeds)}
    cost = {f"seconds/{part}": by_seed for part, by_seed in seconds.items()} | {"seconds": total}
    cost |= {name: dict.fromkeys(range(seeds), float(n)) for name, n in (("updates", STEPS), ("samples", STEPS * 128))}
    return CellMeasurements(name, options, tuple(range(seeds)), failed, cost, curves)


def write_evaluation(folder: Path, values: tuple[float, ...]) -> None:
    """Answers that any of a model, a data set or a joker can write, and a curve of precision over coverage."""
    rows = [
        {
            "prompt_id": IDS[i],
            "rollout": g,
            "prompt": f"The capital of Chad is N'Djamena.\nWhat is the capital of Chad? {HOSTILE[i % len(HOSTILE)]}",
            "completion": answer,
            "answer": answer,
            "references": ["N'Djamena", HOSTILE[0]],
            "reward": value,
            "correct": g / ANSWERS < value,
        }
        for i, value in enumerate(values)
        for g, answer in enumerate([HOSTILE[(i + g // 3) % len(HOSTILE)] for g in range(ANSWERS - 1)] + [HOSTILE[-1]])
    ]
    write_rollouts(folder / "rollouts.parquet", rows)
    share = np.linspace(0.1, 1, 10)
    curve = {"coverage": share.tolist(), "precision": (1 - share * (1 - float(np.mean(values)))).tolist()}
    write_json(folder / "evaluation.json", {"curves": {"precision_coverage": curve}})
