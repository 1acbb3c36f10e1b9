"""Writes a synthetic rollout file, scores it with `calibrant score`, and prints one JSON line: seconds and peak memory.

    python benchmarks/scoring.py --groups 12500 --folder /tmp/scoring

Rollouts have a prompt, a completion of a few sentences that ends in a short answer, a reward, log-probabilities and
token counts: about 470 bytes per rollout. Groups differ in difficulty, answers repeat within a group as sampled ones
do. The file depends on `--seed` alone; one that exists is scored again. `--shuffle` writes the rollouts in random
order. With `--answers FILE` (JSON Lines with lists `answers`, perhaps compressed) completions are short answers of the
file, 8 consecutive ones per group; `distinct` counts them. `cpu_seconds` are those of all processes, user and system;
`peak_mb` is the largest size that they have together.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from common import json_rows

WORDS = ["river", "market", "bridge", "captain", "winter", "letter", "garden", "engine", "village", "silver", "harbour"]


def rollouts(groups: int, size: int, seed: int, pool: list[str]) -> Iterator[dict[str, object]]:
    """Rows of `groups` prompts with `size` rollouts each, with answers of the pool if it has any."""
    draw = random.Random(seed)
    for number in range(groups):
        prompt = f"Question {number}: {' '.join(draw.choices(WORDS, k=18))}?"
        answers = [" ".join(draw.choices(WORDS, k=draw.randint(1, 3))) for _ in range(5)]
        answers = [pool[(8 * number + i) % len(pool)] for i in range(8)] if pool else answers
        chance = draw.betavariate(0.8, 0.8)
        for rollout in range(size):
            right = draw.random() < chance
            answer = answers[0] if right else draw.choice(answers[1:])
            tokens = draw.randint(20, 60)
            yield {
                "prompt_id": f"q{number:07d}",
                "rollout": rollout,
                "prompt": prompt,
                "completion": answer if pool else f"{' '.join(draw.choices(WORDS, k=15))}. The answer is {answer}.",
                "answer": answer,
                "reward": 2.0 if right else round(draw.random() * 0.8, 3) * draw.randint(0, 1),
                "logprob": round(-tokens * draw.uniform(0.1, 1.2), 4),
                "ref_logprob": round(-tokens * draw.uniform(0.2, 1.3), 4),
                "num_tokens": tokens,
                "token_entropy": round(draw.uniform(0.1, 1.5), 4),
                "correct": right,
            }


def written(options: argparse.Namespace) -> Path:
    """The file of rollouts, which is written if it does not exist."""
    order = "shuffled" if options.shuffle else "sorted"
    kind = "-answers" if options.answers else ""
    path = options.folder / f"{options.groups}x{options.size}-{order}-{options.seed}{kind}.jsonl"
    if path.exists():
        return path
    options.folder.mkdir(parents=True, exist_ok=True)
    pool = [answer for row in json_rows(options.answers) for answer in row["answers"]] if options.answers else []
    lines = (json.dumps(row) + "\n" for row in rollouts(options.groups, options.size, options.seed, pool))
    if options.shuffle:
        lines = list(lines)
        random.Random(options.seed).shuffle(lines)
    temporary = path.with_suffix(".part")
    with open(temporary, "w") as file:
        file.writelines(lines)
    temporary.rename(path)
    return path


def peak_of(process: subprocess.Popen[bytes]) -> float:
    """Waits for a process; the largest resident size of it and all that it starts, together, in MiB."""
    peak = 0.0
    while process.poll() is None:
        peak = max(peak, sum(_resident(pid) for pid in (process.pid, *_children(process.pid))))
        time.sleep(0.2)
    return peak


def _children(pid: int) -> list[int]:
    """The processes that a process has started, and theirs."""
    try:
        own = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
    return own + [grandchild for child in own for grandchild in _children(child)]


def _resident(pid: int) -> float:
    """Resident MiB of a process, of memory that is shared its part."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0.0
    return int(text.partition("\nPss:")[2].split()[0]) / 2**10 if "\nPss:" in text else 0.0


def main() -> None:
    """Writes, scores and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", type=int, default=12_500, help="number of prompts (default: 12500)")
    parser.add_argument("--size", type=int, default=16, help="rollouts per prompt (default: 16)")
    parser.add_argument("--seed", type=int, default=0, help="random seed of the file (default: 0)")
    parser.add_argument("--shuffle", action="store_true", help="write the rollouts in random order")
    parser.add_argument("--answers", type=Path, help="file of short answers (default: sentences of made-up words)")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/scoring"), help="folder of the file")
    parser.add_argument("score", nargs="*", help="further arguments of `calibrant score`, after --")
    options = parser.parse_args()
    path = written(options)
    started, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "calibrant", "score", str(path), *options.score]
    process = subprocess.Popen(command, stdout=sys.stderr)
    peak = peak_of(process)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    measured = {
        "rollouts": options.groups * options.size,
        "distinct": len({row["completion"] for row in json_rows(path)}) if options.answers else None,
        "bytes": path.stat().st_size,
        "score": options.score,
        "status": process.returncode,
        "seconds": round(time.monotonic() - started, 1),
        "cpu_seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1),
        "peak_mb": round(peak),
    }
    print(json.dumps({"benchmark": "scoring", **measured}))


if __name__ == "__main__":
    main()
