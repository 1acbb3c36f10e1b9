"""A whole evaluation (sampling, log-probabilities, metrics, intervals) beside vLLM's time for sampling alone.

    python benchmarks/evaluation.py --model smollm2 --vllm-python /path/to/python --threads 2
    python benchmarks/evaluation.py --model smollm2 --data test.jsonl.gz --vllm-python /path/to/python

A greedy answer and some samples for each prompt, as `calibrant evaluate` does it: the same token ids, temperature,
limit of tokens and ends of answers for both. Loading is not timed. After one round each that is not timed the two take
turns; vLLM waits in a process of its own with the same number of threads, and its cache of prompts is emptied before
each round. Medians of `--repeats` rounds; one JSON line. Answers differ between the two, and so do their lengths, which
`tokens` counts. Without --vllm-python calibrant is timed alone.
"""

import argparse
import json
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import json_rows, machine, vllm_environment

from calibrant.evaluate.evaluation import evaluate_answers
from calibrant.model_options import ModelOptions
from calibrant.policy.generation import Sampling, generate, prompt_ids
from calibrant.policy.models import load_model, locate
from calibrant.policy.verify import record_of
from calibrant.tasks import narrativeqa, places
from calibrant.tasks.base import Row, Task
from calibrant.tasks.prompts import prompt_for

Turn = Callable[[], dict[str, float]]  # seconds and tokens of one round


def questions(options: argparse.Namespace) -> tuple[Task, list[Row]]:
    """Rows of `places`, or those of a JSONL file with question, context and answers, judged as NarrativeQA's."""
    if options.data is None:
        return places.TASK, places.TASK.load("test", options.prompts, 0)
    records = json_rows(options.data)[: options.prompts]
    ask = "Answer the question about the text with a few words.\n\nText: {context}\n\nQuestion: {question}"
    return narrativeqa.TASK, [
        {"prompt_id": str(i), "prompt": ask.format(**record), "references": record["answers"]}
        for i, record in enumerate(records)
    ]


def calibrant(model: Any, tokenizer: Any, task: Task, rows: list[Row], sampling: Sampling) -> dict[str, float]:
    """Evaluates once; `sampling` is the share of the seconds that sampling took."""
    start = time.perf_counter()
    answers = generate(model, tokenizer, [prompt_for(row, tokenizer) for row in rows], sampling)
    sampled = time.perf_counter()
    evaluate_answers(task, rows, answers, sampling, tokenizer)
    tokens = sum(len(answer.ids) for group in answers for answer in (*group.sampled, *group.greedy))
    return {"seconds": time.perf_counter() - start, "sampling": sampled - start, "tokens": tokens}


def vllm(ids: list[list[int]], sampling: Sampling, options: argparse.Namespace) -> Turn:
    """Starts vLLM in an interpreter that has it; returns the function that samples once."""
    asked = {"model": locate(options.model), "dtype": options.dtype, "prompts": ids, "eager": options.vllm_eager}
    asked |= sampling._asdict()
    script = str(Path(__file__).with_name("evaluation_vllm.py"))
    process = subprocess.Popen(
        [options.vllm_python, script],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=vllm_environment(),
    )  # fmt: skip
    assert process.stdin is not None and process.stdout is not None
    sent, received = process.stdin, process.stdout
    print(json.dumps(asked), file=sent, flush=True)

    def turn() -> dict[str, float]:
        print("again", file=sent, flush=True)
        for line in received:  # vLLM prints lines of its own
            if line.startswith('{"seconds"'):
                return dict(json.loads(line))
        raise SystemExit("vLLM failed; its messages are above")

    return turn


def medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    """The median of each number."""
    return {name: round(statistics.median(turn[name] for turn in rounds), 3) for name in rounds[0]}


def main() -> None:
    """Prints one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="as of calibrant evaluate (default: demo)")
    parser.add_argument("--data", help="JSONL, perhaps .gz, with question, context and answers (default: places)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16", help="of the weights")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, help="of the CPU (default: those of torch)")
    parser.add_argument("--vllm-python", help="interpreter of an environment with vLLM")
    parser.add_argument("--vllm-eager", action="store_true", help="whether vLLM compiles nothing, and starts sooner")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    model, tokenizer = load_model(options.model, ModelOptions(dtype=options.dtype))
    task, rows = questions(options)
    sampling = Sampling(options.samples, 0.9, options.new_tokens, greedy=True)
    ids = prompt_ids(tokenizer, [prompt_for(row, tokenizer) for row in rows])
    ways: dict[str, Turn] = {"calibrant": lambda: calibrant(model, tokenizer, task, rows, sampling)}
    if options.vllm_python:
        ways["vllm"] = vllm(ids, sampling, options)
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for _ in range(options.repeats + 1):
        for name, turn in ways.items():
            rounds[name].append(turn())
    results: dict[str, Any] = {name: medians(turns[1:]) for name, turns in rounds.items()}
    if "vllm" in results:
        results["ratio"] = round(results["calibrant"]["seconds"] / results["vllm"]["seconds"], 3)
    about = {name: getattr(options, name) for name in ("model", "dtype", "prompts", "samples", "new_tokens")}
    about |= {"data": Path(options.data).name if options.data else None}
    about |= {"vllm_eager": options.vllm_eager} if options.vllm_python else {}
    about |= {"prompt_tokens": sum(map(len, ids)), "not_shared": record_of(model).failed}
    surroundings = {"machine": machine(), "threads": torch.get_num_threads()}
    print(json.dumps({"benchmark": "evaluation"} | about | surroundings | {"torch": torch.__version__} | results))


if __name__ == "__main__":
    main()
