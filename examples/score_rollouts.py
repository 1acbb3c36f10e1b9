"""Scores rollouts that exist already: a file with one row per rollout goes in, signals and weights come out.

    python examples/score_rollouts.py

The same on the command line: `calibrant score rollouts.jsonl --method gcpo_bot --out scored.parquet`.
"""

from pathlib import Path

from calibrant.methods import METHODS
from calibrant.rollouts import RolloutGroups, read_rollouts, write_rollouts
from calibrant.score.methods import score, with_scores
from calibrant.text.embed import Embedder
from calibrant.text.inputs import Readers

ANSWERS = {
    "capital-of-france": [("Paris", 1.0), ("paris.", 1.0), ("Lyon", 0.0), ("It is Paris", 0.5)],
    "capital-of-chile": [("Santiago", 1.0), ("Santiago", 1.0), ("Santiago", 1.0), ("Santiago", 1.0)],
    "capital-of-australia": [("Sydney", 0.0), ("Canberra", 1.0), ("Melbourne", 0.0), ("Perth", 0.0)],
}


def main() -> None:
    """Writes a file of rollouts, scores it with one method and prints a table."""
    rows = [{"prompt_id": prompt, "completion": text, "reward": reward}
            for prompt, answers in ANSWERS.items() for text, reward in answers]  # fmt: skip
    file = write_rollouts(Path("runs/score_rollouts/rollouts.jsonl"), rows)
    groups = RolloutGroups(read_rollouts(file))
    scored = score(groups, METHODS["gcpo_bot"], {"reward_range": (0.0, 1.0)}, Readers(Embedder()))
    for prompt, weights, bot, rd in zip(
        ANSWERS, scored.outcome.weights[:, 0], scored.outcome.scores["barycentric_transport"],
        scored.outcome.scores["reward_dispersion"], strict=True,
    ):  # fmt: skip
        print(f"{prompt:<22}weight {weights:.3f}  barycentric transport {bot:.3f}  reward dispersion {rd:.3f}")
    print(f"written: {write_rollouts(file.with_name('scored.parquet'), with_scores(groups, {'gcpo_bot': scored}))}")


if __name__ == "__main__":
    main()
