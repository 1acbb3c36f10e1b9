"""How often an interval of a gain covers the truth, on made-up comparisons: what docs/comparison_statistics.md states.

    python benchmarks/intervals.py > benchmarks/results/intervals.json     # some minutes on one core

A run is a policy after training with one seed. An answer scores 0, 1/2 or 1, as F1 does with near misses; the chance of
a score above 0 is `sigmoid(level + prompt + cell x prompt + seed + seed x prompt)`, all normal, and a value is the mean
over K answers. The gain is a shift of the level, found such that the difference of the expectations over all seeds,
prompts and answers is exact; without a gain the expectations are equal even where the seeds' deviations differ.
"""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import scipy.optimize
import scipy.stats

from calibrant.statistics.gains import Array, Components, Difference, components, difference
from calibrant.statistics.power import brown_forsythe_power, detectable_gain, gain_test

SCORE = 0.75  # mean score of an answer whose score is not 0
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(81)
MOST = 0.45  # of a gain
CHUNK = 500  # comparisons per pass


@dataclass(frozen=True)
class Scenario:
    """Deviations on the logit scale, of which 0.1 is about 0.01 of a mean score."""

    name: str
    seed: float = 0.1  # of seeds of the baseline
    ratio: float = 1.0  # deviation of the method's seeds over the baseline's
    cell_prompt: float = 0.3  # how differently a method and the baseline change the prompts
    seed_prompt: float = 0.3
    shared: float = 0.0  # correlation of the effects of equal seeds
    collapse: float = 0.0  # share of runs that score 0 everywhere
    level: float = -1.5
    prompt: float = 2.0  # half of the prompts below a score of 0.14
    answers: int = 8


SCENARIOS = (
    Scenario("no seed effect", seed=0.0),
    Scenario("no seed effect, methods differ by prompt", seed=0.0, cell_prompt=0.8, answers=16),
    Scenario("small seed effects", seed=0.05),
    Scenario("medium seed effects", seed=0.15),
    Scenario("large seed effects", seed=0.4),
    Scenario("method's seeds 3 times as wide", seed=0.15, ratio=3.0),
    Scenario("method's seeds a third as wide", seed=0.4, ratio=1 / 3),
    Scenario("seeds share luck", seed=0.15, shared=0.7),
    Scenario("seeds share nearly all luck", seed=0.3, shared=0.97),
    Scenario("four answers per prompt", seed=0.15, answers=4),
    Scenario("one run in ten collapses", seed=0.15, collapse=0.1),
)


def expected(level: float, scenario: Scenario, ratio: float) -> float:
    """Mean score over seeds, prompts and answers, by Gauss-Hermite quadrature."""
    parts = (scenario.prompt, scenario.cell_prompt, scenario.seed_prompt, scenario.seed * ratio)
    logits = level + np.sqrt(sum(d * d for d in parts)) * NODES
    mean = (WEIGHTS / (1 + np.exp(-logits))).sum() / WEIGHTS.sum()
    return float((1 - scenario.collapse) * SCORE * mean)


def level_for(gain: float, scenario: Scenario) -> float:
    """Level of the method at which its expectation is the baseline's plus the gain."""
    target = expected(scenario.level, scenario, 1.0) + gain
    return float(scipy.optimize.brentq(lambda x: expected(x, scenario, scenario.ratio) - target, -12, 12))


def simulate(
    scenario: Scenario, seeds: int, prompts: int, gain: float, count: int, draw: np.random.Generator
) -> tuple[Array, Array]:
    """Values of the method and of the baseline, each `[count, S, P]`."""
    prompt = scenario.prompt * draw.standard_normal((count, 1, prompts))
    common = draw.standard_normal((count, seeds, 1))
    levels = ((level_for(gain, scenario), scenario.ratio), (scenario.level, 1.0))
    method, baseline = (_cell(scenario, level, ratio, prompt, common, draw) for level, ratio in levels)
    return method, baseline


def _cell(
    scenario: Scenario, level: float, ratio: float, prompt: Array, common: Array, draw: np.random.Generator
) -> Array:
    (count, seeds, _), prompts = common.shape, prompt.shape[-1]
    luck = np.sqrt(scenario.shared) * common + np.sqrt(1 - scenario.shared) * draw.standard_normal(common.shape)
    logits = level + prompt + scenario.cell_prompt * draw.standard_normal(prompt.shape)
    logits = logits + scenario.seed * ratio * luck
    logits = logits + scenario.seed_prompt * draw.standard_normal((count, seeds, prompts))
    above = draw.binomial(scenario.answers, 1 / (1 + np.exp(-logits)))
    values = (above + draw.binomial(above, 0.5)) / (2 * scenario.answers)
    return values * (draw.random(common.shape) >= scenario.collapse)


Ends = tuple[Array, Array]


def paired(x: Array, y: Array) -> Ends:
    """What `calibrant compare` prints."""
    return difference(x, y, paired=True).interval()


def not_paired(x: Array, y: Array) -> Ends:
    """What `calibrant compare --no-pair-seeds` prints."""
    return difference(x, y, paired=False).interval()


def over_seeds(x: Array, y: Array) -> Ends:
    """Welch's t interval of the seeds' means."""
    return not_paired(x.mean(-1, keepdims=True), y.mean(-1, keepdims=True))


def over_paired_seeds(x: Array, y: Array) -> Ends:
    """Student's t interval of the differences of equal seeds."""
    return paired(x.mean(-1, keepdims=True), y.mean(-1, keepdims=True))


def seeds_and_bootstrap(x: Array, y: Array) -> Ends:
    """t over seeds, whose variance is added to that of a bootstrap over prompts (which is exact for a mean)."""
    change = x.mean(-2) - y.mean(-2)
    seeds = difference(x.mean(-1, keepdims=True), y.mean(-1, keepdims=True), paired=False)
    variance = seeds.standard_error**2 + change.var(-1) / change.shape[-1]
    return Difference(seeds.value, np.sqrt(variance), seeds.df).interval()


def percentile_bootstrap(x: Array, y: Array, resamples: int = 300) -> Ends:
    """Percentiles of the gain over resampled seeds (of each) and prompts (of both)."""
    draw = np.random.default_rng(0)
    (count, seeds, prompts), ends = x.shape, []
    for i in range(count):
        p = draw.multinomial(prompts, np.full(prompts, 1 / prompts), resamples) / prompts
        s, r = draw.multinomial(seeds, np.full(seeds, 1 / seeds), (2, resamples)) / seeds
        ends.append(np.quantile(((s @ x[i] - r @ y[i]) * p).sum(-1), (0.025, 0.975)))
    low, high = np.array(ends).T
    return low, high


OURS = ("paired", "not paired")

CANDIDATES: dict[str, Callable[[Array, Array], Ends]] = {
    "paired": paired,
    "not paired": not_paired,
    "t over seeds": over_seeds,
    "t over paired seeds": over_paired_seeds,
    "t over seeds plus bootstrap over prompts": seeds_and_bootstrap,
    "percentile bootstrap": percentile_bootstrap,
}


def measure(scenario: Scenario, seeds: int, prompts: int, count: int, names: tuple[str, ...]) -> dict[str, object]:
    """Shares of `count` comparisons: false alarms without a gain; coverage and power with the gain that pairs show."""
    draw = np.random.default_rng([seeds, prompts, SCENARIOS.index(scenario)])
    null = run(scenario, seeds, prompts, 0.0, count, draw, names)
    gain = min(null["detectable"], MOST)
    ours = tuple(name for name in OURS if name in names)
    shown = run(scenario, seeds, prompts, gain, count, draw, ours)
    result = {name: {"false_alarms": null[name]["excluded"], "width": null[name]["width"]} for name in names}
    for name in ours:
        result[name] |= {"coverage": 1 - shown[name]["excluded"], "power": shown[name]["rejected"]}
    return {"scenario": scenario.name, "seeds": seeds, "prompts": prompts, "gain": gain} | round_all(result)


def run(
    scenario: Scenario, seeds: int, prompts: int, gain: float, count: int, draw: np.random.Generator,
    names: tuple[str, ...],
) -> dict[str, Any]:  # fmt: skip
    """Per candidate the shares of intervals that exclude the true gain and that exclude 0, and the median width."""
    pairs = [simulate(scenario, seeds, prompts, gain, min(CHUNK, count), draw) for _ in range(-(-count // CHUNK))]
    result: dict[str, Any] = {}
    for name in names:
        low, high = (np.concatenate(side) for side in zip(*(CANDIDATES[name](*pair) for pair in pairs), strict=True))
        result[name] = {
            "excluded": float(np.mean((gain < low) | (gain > high))),
            "rejected": float(np.mean((low > 0) | (high < 0))),
            "width": float(np.nanmedian(high - low)),
        }
    return result | {"detectable": detectable([components(*pair, paired=True) for pair in pairs])}


def detectable(parts: list[Components]) -> float:
    """The gain that a power of 80% is predicted for, from the means of the parts: nearly the true variances."""
    seeds = (np.mean([part.seeds[0] for part in parts]),)
    prompts = np.mean([part.prompts for part in parts])
    return detectable_gain(gain_test(parts[0]._replace(seeds=seeds, prompts=prompts)))


def round_all(data: object) -> object:
    """Floats with four decimals."""
    if isinstance(data, dict):
        return {key: round_all(value) for key, value in data.items()}
    return round(data, 4) if isinstance(data, float) else data


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000, help="comparisons per row")
    count, rows = parser.parse_args().count, []
    for scenario in SCENARIOS:
        for seeds, prompts in ((s, p) for s in (2, 3, 5, 10) for p in (32, 200)):
            names = tuple(CANDIDATES) if seeds == 3 else tuple(CANDIDATES)[:-1]  # the last one is slow
            rows.append(measure(scenario, seeds, prompts, count, names))
            print(rows[-1], file=sys.stderr, flush=True)
    deviations = {
        str(s): {"false_alarms": brown_forsythe_power(s, s, 1.0), "power_at_ratio_2": brown_forsythe_power(s, s, 2.0)}
        for s in (3, 5, 10, 20)
    }
    scenarios = [asdict(scenario) for scenario in SCENARIOS]
    about = {"benchmark": "intervals", "comparisons_per_row": count, "scenarios": scenarios}
    print(json.dumps(about | {"rows": rows, "deviations": deviations}))


if __name__ == "__main__":
    main()
