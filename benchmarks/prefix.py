"""Log-probabilities forward and backward: plain and with shared prompts. One JSON line a shape.

    python benchmarks/prefix.py
    python benchmarks/prefix.py --device cuda --dtype bfloat16 --model Qwen/Qwen2.5-0.5B

The model has the architecture of the embedded policy (or of `--model`) and random weights. A variant runs in a process
of its own, for its peak memory. `trl` is the forward of TRL's GRPO trainer, the peer; `plain` is calibrant's; `cached`,
`packed` and `flat` are the routes that share prompts, `chunks` takes what is estimated to be cheapest. Seconds are the
least of `--repeats`, CPU seconds those of that run; memory is what the step adds at its peak; errors are those of the
log-probabilities (largest, in nats) and of the gradient (relative) against `plain`.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from calibrant.demo import policy_path
from calibrant.policy import logps_in_chunks, plain_logps, shared_prefix_logps

SHAPES = ["8x80+8", "8x800+16", "1x100+256"]
VARIANTS = ["trl", "plain", "cached", "packed", "flat", "chunks"]


def batch_of(shape: str, rollouts: int, ragged: bool, vocabulary: int) -> list[Tensor]:
    """Prompts and completions, whole or with lengths drawn from half the prompt and from 1 on, in group order."""
    generator = torch.Generator().manual_seed(0)
    prompts, rest = shape.split("x")
    count, long, short = int(prompts), *map(int, rest.split("+"))
    lengths = torch.randint(long // 2, long + 1, (count, 1), generator=generator) if ragged else long
    ends = torch.randint(1, short + 1, (count * rollouts, 1), generator=generator) if ragged else short
    ids = torch.randint(2, vocabulary, (count, long), generator=generator)
    mask = (torch.arange(long).expand(count, -1) >= long - lengths).long()
    tokens = torch.randint(2, vocabulary, (count * rollouts, short), generator=generator)
    counts = (torch.arange(short).expand(len(tokens), -1) < ends).long()
    return [ids.repeat_interleave(rollouts, 0), mask.repeat_interleave(rollouts, 0), tokens, counts]


def logps_of(variant: str, model: Any, batch: list[Tensor]) -> Tensor:
    """Log-probabilities of one variant."""
    if variant == "trl":
        ids, mask = torch.cat([batch[0], batch[2]], 1), torch.cat([batch[1], batch[3]], 1)
        labels = ids.masked_fill(mask == 0, -100)
        labels[:, : batch[0].shape[1]] = -100
        return model(input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True).log_probs[
            :, -batch[2].shape[1] :
        ]
    if variant == "plain":
        return plain_logps(model, *batch).logps
    if variant == "chunks":
        return logps_in_chunks(model, *batch, rows_per_chunk=len(batch[0])).logps
    return shared_prefix_logps(model, *batch, route=variant).logps


def load(options: argparse.Namespace) -> Any:
    """The model with random weights."""
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(options.model)
    config.max_position_embeddings = max(config.max_position_embeddings, 8192)
    dtype = getattr(torch, options.dtype)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=options.attention)
    if options.variant == "trl":
        from trl.trainer.utils import add_fused_lm_head

        add_fused_lm_head(model)
    model.train()
    if options.gradient_checkpointing:
        model.activation_checkpointing_enable()
    return model.to(options.device)


def memory(device: str) -> int:
    """Peak bytes so far."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def step(options: argparse.Namespace, model: Any, batch: list[Tensor]) -> tuple[float, float, Tensor]:
    """Seconds and CPU seconds of one forward and backward, and its log-probabilities."""
    model.zero_grad()
    started = time.perf_counter(), time.process_time()
    logps = logps_of(options.variant, model, batch)
    (logps * torch.linspace(-1, 1, logps.numel(), device=logps.device).view_as(logps)).sum().backward()
    if options.device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started[0], time.process_time() - started[1], logps.detach()


def measure(options: argparse.Namespace) -> None:
    """One variant of one shape, in this process; results go to `--out`."""
    model = load(options)
    config = model.config.get_text_config()
    batch = [x.to(options.device) for x in batch_of(options.shape, options.rollouts, options.ragged, config.vocab_size)]
    before = memory(options.device)
    runs = [step(options, model, batch) for _ in range(options.repeats)]
    seconds, cpu, logps = min(runs, key=lambda run: run[0])
    result = {"seconds": seconds, "cpu_seconds": cpu, "bytes": memory(options.device) - before}
    gradient = torch.cat([weight.grad.flatten() for weight in model.parameters()])
    torch.save((result, logps.double().cpu(), gradient.double().cpu()), options.out)


def compare(options: argparse.Namespace, arguments: list[str], shape: str) -> dict[str, Any]:
    """All variants of one shape."""
    results = {}
    for variant in options.variants:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "result.pt"
            own = ["--variant", variant, "--shape", shape, "--out", str(out)]
            subprocess.run([sys.executable, __file__, *arguments, *own], check=True)
            results[variant] = torch.load(out)
    plain = results.get("plain")
    return {name: summary(result, plain) for name, result in results.items()}


def summary(result: tuple[Any, Tensor, Tensor], plain: tuple[Any, Tensor, Tensor] | None) -> dict[str, Any]:
    """Numbers of one variant, and what they are beside the plain ones."""
    numbers = {
        "seconds": round(result[0]["seconds"], 4),
        "cpu_seconds": round(result[0]["cpu_seconds"], 4),
        "megabytes": round(result[0]["bytes"] / 2**20, 1),
    }
    if plain is None:
        return numbers
    return numbers | {
        "speedup": round(plain[0]["seconds"] / result[0]["seconds"], 2),
        "cpu_speedup": round(plain[0]["cpu_seconds"] / result[0]["cpu_seconds"], 2),
        "logp_error": float((result[1] - plain[1]).abs().max()),
        "gradient_error": float((result[2] - plain[2]).norm() / plain[2].norm()),
    }


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=SHAPES, metavar="PROMPTSxLENGTH+COMPLETION")
    parser.add_argument("--variants", nargs="+", default=VARIANTS, choices=VARIANTS)
    parser.add_argument("--rollouts", type=int, default=16)
    parser.add_argument("--ragged", action="store_true", help="prompts and completions of different lengths")
    parser.add_argument(
        "--model", default=str(policy_path()), help="folder or hub name, of which the configuration is read"
    )
    parser.add_argument("--attention", default="sdpa")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--repeats", type=int, default=2)
    for own in ("--variant", "--shape", "--out"):
        parser.add_argument(own, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.variant:
        measure(options)
        return
    if options.gradient_checkpointing:
        options.variants = [variant for variant in options.variants if variant != "cached"]
    if options.attention != "sdpa":
        options.variants = [variant for variant in options.variants if variant != "flat"]
    for shape in options.shapes:
        about = {name: getattr(options, name) for name in ("rollouts", "ragged", "attention", "device", "dtype")}
        about["gradient_checkpointing"] = options.gradient_checkpointing
        print(json.dumps({"benchmark": "prefix", "shape": shape, **about, **compare(options, sys.argv[1:], shape)}))


if __name__ == "__main__":
    main()
