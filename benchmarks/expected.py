"""What the configurations of `configs/` need on a GPU of 80 GB: hours and memory, computed and not measured.

    python benchmarks/expected.py                  # a row per configuration, as in configs/README.md

Memory is computed as for docs/models.md (`fits.py`). Seconds are operations over assumed speeds: passes at 110 TFLOP/s
(35% of an A100 in bfloat16), decoding at 1.2 TB/s of weights and keys and values, and at 25 ms per token at least,
which transformers takes to launch its kernels. Every completion is counted with its maximum length, prompts with the
lengths of `PROMPTS`. Embeddings, entailment and rewards are not counted.
"""

import sys
from pathlib import Path
from typing import Any, NamedTuple

import fits
from fits import GB, OVERHEAD, Step, parts, qwen

from calibrant.cli.compare import read_config
from calibrant.compare.cells import make_cells
from calibrant.compare.settings import CompareSettings
from calibrant.options import read
from calibrant.tasks import TASKS
from calibrant.train.settings import TrainSettings

FLOPS, BANDWIDTH, LAUNCH = 1.1e14, 1.2e12, 0.025
PROMPTS = {"narrativeqa": 900, "qasper": 2048, "hotpotqa": 1400}  # tokens; problems of mathematics have 200
TEST = {"narrativeqa": 10_557, "qasper": 1_451, "hotpotqa": 7_405, "math500": 500, "aime24": 30, "amc23": 40,
        "minerva": 272, "olympiadbench": 102, "openr1_math": 500}  # fmt: skip
ROWS = 256  # completions that the evaluation samples side by side
fits.QWEN["3B"] = dict(hidden_size=2048, intermediate_size=11008, num_hidden_layers=36, num_attention_heads=16)
fits.HEADS["3B"] = (2, 151_936, True)


class Need(NamedTuple):
    """Hours of one run with its evaluations, and bytes at most."""

    hours: float
    bytes: float


def size_of(model: str) -> str:
    """The size in a name, e.g. `1.5B`."""
    return next(size for size in fits.QWEN if f"-{size}" in model)


def need(settings: TrainSettings, evaluate_on: tuple[str, ...]) -> Need:
    """What a run of a cell needs."""
    config = (model := qwen(size_of(settings.model))).config
    count = sum(p.numel() for p in model.parameters())
    prompt, length = PROMPTS.get(settings.task, 200), settings.max_completion_length or longest(settings.task)
    rows = settings.prompts_per_step * settings.rollouts
    reads_reference = settings.method in ("capo", "grpo_care")
    passes = settings.num_iterations * (3 + settings.gradient_checkpointing) + (settings.beta > 0) + reads_reference
    tokens = settings.prompts_per_step * prompt + rows * length
    step = decode(config, count, rows, prompt, length) + passes * 2 * count * tokens / FLOPS
    evaluations = sum(evaluation(config, count, settings, task) for task in evaluate_on)
    kind = (
        "moving average"
        if settings.method == "grpo_care"
        else "reference"
        if settings.beta or reads_reference
        else "none"
    )
    shape = Step(settings.prompts_per_step, settings.rollouts, settings.micro_batch or rows, prompt, length)
    way = "full, bfloat16" if settings.dtype == "bfloat16" else "full"
    memory = parts(qwen(size_of(settings.model)), way, kind, shape)["peak"] + OVERHEAD
    return Need((settings.steps * step + evaluations) / 3600, memory)


def longest(task: str) -> int:
    """Maximum tokens of a task's completions."""
    return TASKS[task].max_completion_length


def decode(config: Any, count: int, rows: int, prompt: int, length: int) -> float:
    """Seconds that generation takes for rows side by side."""
    keys = config.num_key_value_heads * (config.hidden_size // config.num_attention_heads)
    cache = rows * (prompt + length / 2) * config.num_hidden_layers * 2 * keys * 2
    return length * max(LAUNCH, (2 * count + cache) / BANDWIDTH)


def evaluation(config: Any, count: int, settings: TrainSettings, task: str) -> float:
    """Seconds of an evaluation: a greedy answer and the sampled ones to every prompt."""
    answers = (settings.eval_prompts or TEST[task]) * (1 + settings.eval_samples)
    length, prompt = settings.max_completion_length or longest(task), PROMPTS.get(task, 200)
    return answers / ROWS * decode(config, count, ROWS, prompt, length)


def main() -> None:
    """Prints a row per configuration."""
    print("| file | cells × seeds | hours of a run | hours of all | GB at most |")
    print("|---|---|---|---|---|")
    for file in sorted(map(Path, sys.argv[1:]) if sys.argv[1:] else Path("configs").glob("*.yaml")):
        own, training, _ = read_config(file)
        settings = read(CompareSettings, own)
        cells = make_cells(settings, training)
        needs = [need(cell.training, settings.evaluate_on or (cell.training.task,)) for cell in cells]
        hours, memory = [n.hours for n in needs], max(n.bytes for n in needs) / GB
        ends = dict.fromkeys(f"{end:.1f}" if end < 10 else f"{end:.0f}" for end in (min(hours), max(hours)))
        every, runs = len(settings.seeds) * sum(hours), f"{len(cells)} × {len(settings.seeds)}"
        print(f"| `{file.stem}` | {runs} | {' to '.join(ends)} | {every:,.0f} | {memory:.0f} |")


if __name__ == "__main__":
    main()
