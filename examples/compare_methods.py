"""Trains two methods from the same policy on the same data, and compares them on the same unseen prompts.

python examples/compare_methods.py                     # a few steps each, to see it run
python examples/compare_methods.py --steps 60          # what `calibrant train` does by default
"""

import argparse

from calibrant.cli.main import main as calibrant


def main() -> None:
    """Runs `calibrant train` per method, then `calibrant evaluate` on both with paired intervals."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs=2, default=["grpo", "gcpo_bot"], metavar="METHOD", help="two methods")
    parser.add_argument("--steps", default="4", help="optimisation steps per method")
    parser.add_argument("--prompts", default="40", help="prompts of the evaluation")
    parser.add_argument("--out", default="runs/compare_methods", help="folder of both runs")
    options = parser.parse_args()
    runs = [f"{options.out}/{method}" for method in options.methods]
    for method, run in zip(options.methods, runs, strict=True):
        calibrant(["train", "--method", method, "--steps", options.steps, "--no-evaluation", "--out", run])
    calibrant(["evaluate", *runs, "--prompts", options.prompts, "--samples", "4"])


if __name__ == "__main__":
    main()
