"""Builders and constants of the tests of report."""

import math
from pathlib import Path

import numpy as np
import pandas as pd

from calibrant.files import append_json_lines, write_json, write_yaml
from calibrant.rollouts import write_rollouts

HOSTILE = (
    "</script><script>alert(1)</script>",
    "<img src=x onerror=\"document.body.setAttribute('data-broken', 1)\">",
    "<!--<script>",
    "line\u2028separator\u2029paragraph",
    "🦜🇪🇪 e\u0301",
    "\u202eמימין לשמאל\u202c עברית",
    "{{ 7 * 7 }} {% raw %} &lt;b&gt; ]]>",
    "\x00\x07 control $\\frac{1}{2}$",
    "",
    "x" * 50_000,
)
"""What a model, a data set or a joker can put into a text."""

COUNTRIES = {
    "Estonia": ["Latvia", "Russia"],
    "Chad": ["Libya", "Niger", "Sudan"],
    "Peru": ["Bolivia", "Brazil", "Chile"],
}


def make_run(
    path: Path, *, steps: int = 12, prompts: int = 4, answers: int = 8, seed: int = 0, hostile: bool = True
) -> Path:
    """A run directory whose numbers move as those of a real run do."""
    rng = np.random.default_rng(seed)
    write_yaml(path / "config.yaml", config(steps, prompts, answers, hostile))
    for step in range(1, steps + 1):
        skill = 0.35 + 0.4 * (1 - math.exp(-3 * step / steps))
        rows = [row for i in range(prompts) for row in group_rows(rng, step, i, answers, skill, hostile)]
        write_rollouts(path / "rollouts" / f"step-{step:06d}.parquet", rows)
        append_json_lines(path / "metrics.jsonl", [metric_line(rng, step, rows, answers)])
    write_json(path / "evaluation.json", {"before": evaluation(0.4137, 0.552), "after": evaluation(0.6642, 0.7018)})
    return path


def config(steps: int, prompts: int, answers: int, hostile: bool) -> dict:
    settings = {
        "task": "places",
        "model": HOSTILE[0] if hostile else "demo",
        "method": "gcpo_bot",
        "seed": 0,
        "steps": steps,
    }
    settings |= {
        "prompts_per_step": prompts,
        "rollouts": answers,
        "temperature": 0.9,
        "learning_rate": 3e-4,
        "beta": 0.002,
    }
    settings |= {
        "schedule": "linear",
        "alpha": None,
        "mean_one": False,
        "reward_range": [0.0, 2.0],
        "save_every": 25,
    }
    versions = {
        "calibrant": "0.1.0",
        "torch": "2.13.0",
        "transformers": "5.23.0",
        "trl": "1.16.0",
        "python": "3.12.1",
    }
    return {"command": "train", "settings": settings, "versions": versions}


def group_rows(rng: np.random.Generator, step: int, i: int, answers: int, skill: float, hostile: bool) -> list[dict]:
    country = list(COUNTRIES)[int(rng.integers(len(COUNTRIES)))]
    ease = float(np.clip(rng.normal(skill, 0.25), 0, 1))
    reward = 2 * np.clip(rng.choice([0.0, 0.4, 0.67, 1.0], answers, p=mixture(ease)), 0, 1)
    clusters = np.unique(np.round(reward, 1), return_inverse=True)[1]
    doubt = float(np.clip(0.5 * (1 - np.bincount(clusters).max() / answers) + rng.normal(0.03, 0.02), 0, 0.5))
    spread = float(np.abs(reward - reward.mean()).mean())
    factors = (1 - 0.29 * doubt**2, 1 + 0.29 * spread)
    advantage = (reward - reward.mean()) / (reward.std(ddof=1) + 1e-4)
    return [
        {
            "prompt_id": f"{country}-{step}-{i}", "rollout": j, "step": step,
            "references": COUNTRIES[country],
            "prompt": f"{country} {hostile * HOSTILE[(step + i) % 9]}\nWhich countries border {country}?",
            "completion": text(rng, country, reward[j], hostile),
            "answer": text(rng, country, reward[j], False),
            "reward": math.nan if (step, i, j) == (2, 0, 0) else float(reward[j]),
            "correct": bool(reward[j] > 1.9), "num_tokens": int(rng.integers(3, 24)),
            "cluster": int(clusters[j]),
            "advantage_base": float(advantage[j]), "weight": factors[0] * factors[1],
            "advantage": float(advantage[j] * factors[0] * factors[1]), "barycentric_transport": doubt,
            "reward_dispersion": spread, "geometric_weight": factors[0], "reward_weight": factors[1],
        }
        for j in range(answers)
    ]  # fmt: skip


def mixture(ease: float) -> list[float]:
    return [(1 - ease) * 0.6, (1 - ease) * 0.4, ease * 0.3, ease * 0.7]


def text(rng: np.random.Generator, country: str, reward: float, hostile: bool) -> str:
    known = COUNTRIES[country]
    right = ", ".join(known[: max(1, round(len(known) * reward / 2))]) if reward else "I do not know."
    return HOSTILE[int(rng.integers(len(HOSTILE)))] if hostile and rng.random() < 0.3 else right


def metric_line(rng: np.random.Generator, step: int, rows: list[dict], answers: int) -> dict:
    frame = pd.DataFrame(rows)
    by = frame.groupby(frame.index // answers)
    line = {"step": step, "reward": float(frame["reward"].mean()), "reward_std": float(frame["reward"].std())}
    line |= {"kl": 0.002 * step + 0.003 * rng.random(), "grad_norm": 0.4 + 0.3 * rng.random(), "seconds": 2.5}
    for name in ("weight", "barycentric_transport", "reward_dispersion"):
        values = by[name].mean()
        line |= {f"group/{name}/{k}": float(getattr(values, k)()) for k in ("mean", "min", "max")}
    line["group/uninformative"] = float((by["reward"].max() == by["reward"].min()).mean())
    return line | {"batch/unscorable": float(frame["reward"].isna().sum()), "batch/reward_out_of_range": 0.0}


def evaluation(sampled: float, greedy: float) -> dict:
    def part(f1: float) -> dict:
        values = {"f1": f1, "em": 0.8 * f1, "accuracy": 0.85 * f1}
        return {k: {"mean": v, "low": v - 0.031, "high": v + 0.032} for k, v in values.items()}

    facts = {"task": "places", "split": "test", "prompts": 200, "samples": 16, "temperature": 0.9, "seed": 0}
    return facts | {"greedy": part(greedy), "sampled": part(sampled)}


def rewrite_rollouts(run: Path, change: object) -> None:
    for file in (run / "rollouts").glob("*.parquet"):
        change(pd.read_parquet(file)).to_parquet(file)  # type: ignore[operator]
