"""Sampling groups of answers: calibrant, transformers' `generate` and, where it is installed, vLLM.

    python benchmarks/generation.py --model FOLDER --dtype bfloat16 --prompts 8 --rollouts 8 --new-tokens 32
    python benchmarks/generation.py --model FOLDER --data train.jsonl.gz --vllm-python /path/to/python

The same prompts, number of samples and tokens for each, no answer ends early. Timed are one new token (the prompts are
read, "first") and all of them; decoding is the difference. The ways take turns, after one round that is not timed;
medians of `--repeats` rounds. vLLM runs after them, in a process of its own with the same number of threads; its cache
of prompts is emptied before each round. Processor seconds tell more than seconds on a machine with other load, on one
thread: threads that wait for each other count. One JSON line.
"""

import argparse
import json
import statistics
import subprocess
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from common import json_rows, machine, vllm_environment
from memory import resident_peak
from transformers import AutoModelForCausalLM, AutoTokenizer

from calibrant.demo import POLICIES
from calibrant.policy.generation import left_padded, prompt_ids
from calibrant.policy.prefill import shared_prefill
from calibrant.policy.verify import record_of
from calibrant.tasks.places import TASK

WORDS = (200, 260)
"""Words of the texts that are taken of --data, where it has enough of them."""


def prompts_of(options: argparse.Namespace) -> list[Any]:
    """Prompts: of rows with a prompt, or a question and perhaps a context, or of the embedded task."""
    if options.data is None:
        return [row["prompt"] for row in TASK.load("train", options.prompts, 0)]
    rows = json_rows(options.data)
    middle = [row for row in rows if WORDS[0] < len(row.get("context", "").split()) < WORDS[1]]
    rows = (middle if len(middle) >= options.prompts else rows)[: options.prompts]
    return [row["prompt"] if "prompt" in row else asked(row) for row in rows]


def asked(row: dict[str, str]) -> list[dict[str, str]]:
    """A conversation of one question."""
    text = (
        f"Answer the question about the text with a few words.\n\nText: {row['context']}\n\n"
        if "context" in row
        else ""
    )
    return [{"role": "user", "content": f"{text}Question: {row['question']}"}]


def ways(
    model: Any, ids: torch.Tensor, mask: torch.Tensor, options: argparse.Namespace
) -> dict[str, Callable[[int], Any]]:
    """Name -> function of the number of new tokens that samples them."""
    device = torch.device(options.device).type
    rows = {
        "input_ids": ids.repeat_interleave(options.rollouts, 0),
        "attention_mask": mask.repeat_interleave(options.rollouts, 0),
    }
    sampling = dict(do_sample=True, temperature=0.9, top_k=0, top_p=1.0, pad_token_id=0)

    def sampled(new: int, shared: bool) -> Any:
        torch.manual_seed(0)
        autocast = torch.autocast(device, torch.bfloat16, enabled=options.autocast)
        with torch.no_grad(), autocast, shared_prefill(model) if shared else nullcontext():
            found = model.generate(**rows, **sampling, max_new_tokens=new)
        if device == "cuda":
            torch.cuda.synchronize()
        return found

    return {
        name: lambda new, shared=shared: sampled(new, shared)
        for name, shared in (("calibrant", True), ("transformers", False))
        if name in options.ways
    }


Round = tuple[float, float, float, float]  # seconds and processor seconds of one token, the same of all of them


def timed(ways: dict[str, Callable[[int], Any]], new: int, repeats: int) -> dict[str, list[Round]]:
    """The rounds of each way, which take turns."""
    rounds: dict[str, list[Round]] = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name, way in ways.items():
            once = (*clocked(way, 1), *clocked(way, new))
            if turn:
                rounds[name].append(once)
    return rounds


def clocked(way: Callable[[int], Any], new: int) -> tuple[float, float]:
    """Seconds and processor seconds."""
    clock, processor = time.perf_counter(), time.process_time()
    way(new)
    return time.perf_counter() - clock, time.process_time() - processor


def summary(rounds: list[Round], prompt_tokens: int, rows: int, new: int) -> dict[str, float]:
    """Medians in seconds, and tokens per second."""
    first, processor_first, whole, processor = (statistics.median(column) for column in zip(*rounds, strict=True))
    return {
        "first_seconds": round(first, 3),
        "decoding_seconds": round(whole - first, 3),
        "whole_seconds": round(whole, 3),
        "prompt_tokens_per_second": round(prompt_tokens / first),
        "decoded_tokens_per_second": round(rows * (new - 1) / max(whole - first, 1e-9)),
        "new_tokens_per_second": round(rows * new / whole),
        "processor_seconds": {"first": round(processor_first, 3), "whole": round(processor, 3)},
    }


def same_tokens(found: torch.Tensor, expected: torch.Tensor, columns: int) -> float:
    """Share of the sampled tokens that are equal, of the same random numbers."""
    return round((found == expected)[:, columns:].float().mean().item(), 4)


def by_vllm(ids: torch.Tensor, mask: torch.Tensor, options: argparse.Namespace) -> list[Round]:
    """The same by vLLM, in an interpreter that has it."""
    asked = {
        "model": options.folder,
        "prompts": [row[kept.bool()].tolist() for row, kept in zip(ids.cpu(), mask.cpu(), strict=True)],
        "rollouts": options.rollouts,
        "new": options.new_tokens,
        "repeats": options.repeats,
        "dtype": "bfloat16" if options.autocast else options.dtype,
        "eager": options.vllm_eager,
    }
    script = str(Path(__file__).with_name("generation_vllm.py"))
    done = subprocess.run(
        [options.vllm_python, script], input=json.dumps(asked), capture_output=True, text=True, env=vllm_environment()
    )
    if done.returncode:
        raise SystemExit(f"vLLM failed:\n{done.stderr[-3000:]}")
    rounds = [line for line in done.stdout.splitlines() if line.startswith("[[")]  # vLLM logs there too
    return [tuple(pair) for pair in json.loads(rounds[-1])]


def main() -> None:
    """Prints one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="embedded policy or folder (default: demo)")
    parser.add_argument("--data", help="JSONL, perhaps .gz, with prompt or question and context (default: places)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the weights")
    parser.add_argument("--autocast", action="store_true", help="bfloat16 autocast, as bf16 in training")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--rollouts", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, help="of the CPU (default: those of torch)")
    parser.add_argument(
        "--ways", nargs="*", choices=("calibrant", "transformers"), default=["calibrant", "transformers"]
    )
    parser.add_argument("--vllm-python", help="interpreter of an environment with vLLM")
    parser.add_argument(
        "--vllm-eager", action="store_true", help="vLLM without compilation: starts sooner, runs slower"
    )
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    options.folder = str(POLICIES.get(options.model, options.model))
    tokenizer = AutoTokenizer.from_pretrained(options.folder, padding_side="left")
    dtype = getattr(torch, options.dtype)
    model = AutoModelForCausalLM.from_pretrained(options.folder, dtype=dtype).to(options.device).eval()
    model.generation_config.eos_token_id = None  # so that no answer ends early
    ids, mask = left_padded(tokenizer, prompt_ids(tokenizer, prompts_of(options)), options.device)
    shape = (int(mask.sum()), options.prompts * options.rollouts, options.new_tokens)
    sampling = ways(model, ids, mask, options)
    times = timed(sampling, options.new_tokens, options.repeats)
    results: dict[str, Any] = {name: summary(rounds, *shape) for name, rounds in times.items()}
    if len(sampling) > 1:
        results["same_tokens"] = same_tokens(*(way(options.new_tokens) for way in sampling.values()), ids.shape[1])
    results["not_shared"] = record_of(model).failed
    results["peak_mib"] = round(
        torch.cuda.max_memory_allocated() / 2**20 if options.device == "cuda" else resident_peak()
    )
    if options.vllm_python:
        results["vllm"] = summary(by_vllm(ids, mask, options), *shape)
    about = {
        name: getattr(options, name)
        for name in ("model", "dtype", "autocast", "device", "prompts", "rollouts", "new_tokens")
    }
    surroundings = {
        "machine": machine(options.device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    print(json.dumps({"benchmark": "generation"} | about | {"prompt_tokens": shape[0]} | surroundings | results))


if __name__ == "__main__":
    main()
