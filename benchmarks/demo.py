"""Trains a demo for several methods and seeds and prints one JSON line: its metric before and after, and seconds.

    python benchmarks/demo.py --methods gcpo_bot --seeds 0 1 2 --out runs/demo

Runs that `--out` holds already are read, not repeated. `--jobs` trains that many at a time, on one thread each.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


def train(options: argparse.Namespace, method: str, seed: int) -> Path:
    """Trains one run unless it is there."""
    out, jobs = options.out, options.jobs
    run = out / f"{method}-seed{seed}"
    if not (run / "report.html").exists():
        environment = os.environ | ({"OMP_NUM_THREADS": "1"} if jobs > 1 else {})
        command = [sys.executable, "-m", "calibrant", "train", "--task", options.task, "--method", method]
        command += ["--seed", str(seed), *options.train.split()]
        started = time.monotonic()
        with (out / f"{method}-seed{seed}.log").open("w") as log:
            subprocess.run([*command, "--out", str(run)], check=True, env=environment, stdout=log, stderr=log)
        (run / "seconds.json").write_text(json.dumps(time.monotonic() - started))
    return run


def summary(run: Path) -> dict[str, object]:
    """Before and after of a run."""
    evaluation = json.loads((run / "evaluation.json").read_text())
    metric = next(iter(evaluation["before"]["sampled"]))
    scores = {
        f"{decoding}_{metric}_{when}": round(evaluation[when][decoding][metric]["mean"], 4)
        for decoding in ("sampled", "greedy")
        for when in ("before", "after")
    }
    return {"run": str(run), **scores, "seconds": round(json.loads((run / "seconds.json").read_text()))}


def main() -> None:
    """Runs all and prints the line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="places", help="places or arithmetic (default: places)")
    parser.add_argument("--train", default="", help="further options of `calibrant train`, in one string")
    parser.add_argument("--methods", nargs="+", default=["gcpo_bot"], help="default: gcpo_bot")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder of the runs (default: runs/demo)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (default: 1)")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    todo = [(method, seed) for method in options.methods for seed in options.seeds]
    with ThreadPoolExecutor(options.jobs) as pool:
        runs = list(pool.map(lambda job: train(options, *job), todo))
    print(
        json.dumps(
            {"benchmark": "demo", "task": options.task, "jobs": options.jobs, "runs": [summary(run) for run in runs]}
        )
    )


if __name__ == "__main__":
    main()
