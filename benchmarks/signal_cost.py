"""What the signals of a method add to a training step: whole steps of `calibrant train`, methods in turn.

    python benchmarks/signal_cost.py                                     # the demo's defaults, five methods
    python benchmarks/signal_cost.py --method gradient_snr --rounds 5

In each round every method trains a fresh copy of the policy for a few steps on the same prompts and seeds, in one
process, so slowly that all methods sample the same answers. The first step of each is not timed. A step is everything
from the end of one to the end of the next: generation, rewards, signals, log-probabilities, update, files. Medians
over all rounds, of the clock and, on a processor, of the time that this process had of it, which other processes move
less. One JSON line.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import machine
from transformers import TrainerCallback

from calibrant.train.prepare import prepare
from calibrant.train.runs import Run, create
from calibrant.train.settings import resolve_settings
from calibrant.train.trainer import build_trainer

METHODS = ("grpo", "gcpo_cd", "gcpo_bot", "gradient_snr", "gcpo_grad")


class Watch(TrainerCallback):
    """Notes when each step ends."""

    def __init__(self) -> None:
        self.ends: list[tuple[float, float]] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append((time.perf_counter(), time.process_time()))


def seconds(method: str, steps: int, given: dict[str, Any]) -> list[tuple[float, float]]:
    """Of each step but the first: seconds of the clock and of the processor."""
    settings = resolve_settings({**given, "method": method, "steps": steps + 1, "save_every": steps + 1})
    watch = Watch()
    with tempfile.TemporaryDirectory() as folder:
        create(Path(folder) / "run", settings)
        trainer = build_trainer(Run(Path(folder) / "run"), prepare(settings), extra_callbacks=[watch])
        trainer.train()
    return [(b[0] - a[0], b[1] - a[1]) for a, b in zip(watch.ends, watch.ends[1:], strict=False)]


def summary(times: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Medians, and how they compare with the first method's."""
    medians = {method: statistics.median(found) for method, found in times.items()}
    first = next(iter(medians.values()))
    ratios = {method: round(x / first, 3) for method, x in medians.items()}
    return {"seconds": {method: round(x, 3) for method, x in medians.items()}, "ratio": ratios}


def main() -> None:
    """Prints one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--method", action="append", help="beside grpo; default: gcpo_cd gcpo_bot gradient_snr gcpo_grad"
    )
    parser.add_argument("--rounds", type=int, default=3, help="default: 3")
    parser.add_argument("--steps", type=int, default=5, help="timed steps of a method in a round (default: 5)")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="an option of calibrant train")
    options = parser.parse_args()
    given = {"learning_rate": "1e-12"} | dict(pair.split("=", 1) for pair in options.set)
    methods = ("grpo", *options.method) if options.method else METHODS
    times: dict[str, list[tuple[float, float]]] = {method: [] for method in methods}
    for _ in range(options.rounds):
        for method in methods:
            times[method] += seconds(method, options.steps, given)
    about = {"benchmark": "signal_cost", "torch": torch.__version__, "threads": torch.get_num_threads()}
    about |= {"machine": machine(), "rounds": options.rounds, "steps": options.steps}
    clocks = ("clock",) if torch.cuda.is_available() else ("clock", "processor")
    found = {name: summary({m: [x[i] for x in ts] for m, ts in times.items()}) for i, name in enumerate(clocks)}
    print(json.dumps(about | given | found))


if __name__ == "__main__":
    main()
