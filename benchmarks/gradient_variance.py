"""Times and peak memory of the exact gradient variance of one group, and prints one JSON line.

    OMP_NUM_THREADS=1 python benchmarks/gradient_variance.py --quick

Two models (the embedded policy, and a random Qwen2 of 30 million parameters), groups of 16 rollouts with short (80 + 8
tokens) and long (100 + 256) rows. Measured are

* `plain`: one forward and one backward pass over the same rows, as training does, which yields the group's gradient;
* `hooks` and `loop`: `gradient_variance` with these backends;
* `vmap`: `torch.func.vmap(grad)`, every gradient at once, on a model without sharing of weights;
* `opacus`: the norms of ghost clipping, if Opacus is installed, on a model without sharing of weights, which it
  refuses. It has no variance.

Each variant runs in a process of its own, one warm-up and then `--repeats` runs; seconds are processor time on one
thread, the least of the runs, and memory is the peak of the process above what it held with the model loaded.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from calibrant.demo import policy_path
from calibrant.gradients import gradient_variance

ROLLOUTS = 16
LENGTHS = {"short": (80, 8), "long": (100, 256)}
VARIANTS = ("plain", "hooks", "loop", "vmap", "opacus")
MODELS = ("demo", "random")


def load(name: str, tied: bool) -> nn.Module:
    """The model in float32; `tied=False` gives its head a weight of its own."""
    torch.manual_seed(0)
    if name == "demo":
        config = transformers.AutoConfig.from_pretrained(policy_path(), dtype=torch.float32, tie_word_embeddings=tied)
        return transformers.AutoModelForCausalLM.from_pretrained(policy_path(), config=config, dtype=torch.float32)
    config = transformers.Qwen2Config(
        vocab_size=16384,
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=7,
        num_attention_heads=8,
        num_key_value_heads=4,
        tie_word_embeddings=tied,
    )
    return transformers.Qwen2ForCausalLM(config)


def make_rows(model: nn.Module, length: str) -> tuple[dict[str, Tensor], Tensor]:
    """A group with one prompt, and its advantages."""
    prompt, completion = LENGTHS[length]
    generator = torch.Generator().manual_seed(0)
    vocabulary = model.config.vocab_size
    batch = {
        "prompt_ids": torch.randint(3, vocabulary, (1, prompt), generator=generator).repeat(ROLLOUTS, 1),
        "prompt_mask": torch.ones(ROLLOUTS, prompt, dtype=torch.long),
        "completion_ids": torch.randint(3, vocabulary, (ROLLOUTS, completion), generator=generator),
        "completion_mask": torch.ones(ROLLOUTS, completion, dtype=torch.long),
    }
    return batch, torch.randn(1, ROLLOUTS, generator=generator)


def scores(model: Callable[..., Any], ids: Tensor, completion: int) -> Tensor:
    """Log-likelihoods of the completions, `[R]`."""
    logits = model(input_ids=ids, use_cache=False, logits_to_keep=completion + 1).logits[:, :-1]
    losses = nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, -completion:].flatten(), reduction="none")
    return -losses.view(len(ids), completion).sum(-1)


def by_plain(model: nn.Module, batch: dict[str, Tensor], advantages: Tensor) -> Callable[[], float]:
    """The gradient of the group, in `.grad` as in training."""
    ids, completion = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1), batch["completion_ids"].shape[1]

    def run() -> float:
        model.zero_grad(set_to_none=True)
        (advantages[0] * scores(model, ids, completion)).mean().backward()
        return float("nan")

    return run


def by_vmap(model: nn.Module, batch: dict[str, Tensor], advantages: Tensor) -> Callable[[], float]:
    """All gradients at once, then equation 20."""
    ids, completion = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1), batch["completion_ids"].shape[1]
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def score(values: dict[str, Tensor], row: Tensor) -> Tensor:
        def call(**inputs: Any) -> Any:
            return torch.func.functional_call(model, values, (), inputs)

        return scores(call, row[None], completion)[0]

    def run() -> float:
        gradients = torch.func.vmap(torch.func.grad(score), in_dims=(None, 0))(weights, ids)
        total = 0.0
        for gradient in gradients.values():
            rows = (advantages[0, :, None] * gradient.flatten(1)).double()
            total += float((rows - rows.mean(0)).square().sum(-1).mean())
        return total

    return run


def by_opacus(model: nn.Module, batch: dict[str, Tensor], advantages: Tensor) -> Callable[[], float]:
    """Norms of the rollouts' gradients by ghost clipping."""
    from opacus.grad_sample import GradSampleModuleFastGradientClipping

    wrapped = GradSampleModuleFastGradientClipping(model, loss_reduction="sum", strict=False)
    ids, completion = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1), batch["completion_ids"].shape[1]

    def run() -> float:
        model.zero_grad(set_to_none=True)
        scores(wrapped, ids, completion).sum().backward()
        return float(wrapped.get_norm_sample().double().square().sum())

    return run


def by_backend(backend: str, model: nn.Module, batch: dict[str, Tensor], advantages: Tensor) -> Callable[[], float]:
    """calibrant's own."""
    return lambda: gradient_variance(model, batch, advantages, backend=backend).variance.item()  # type: ignore[arg-type]


def measure(variant: str, name: str, length: str, repeats: int) -> dict[str, float]:
    """Seconds, memory in MB and the result of one variant, in this process."""
    torch.set_num_threads(1)
    model = load(name, tied=variant not in ("vmap", "opacus")).eval()
    batch, advantages = make_rows(model, length)
    if variant in ("hooks", "loop"):
        run = by_backend(variant, model, batch, advantages)
    else:
        run = {"plain": by_plain, "vmap": by_vmap, "opacus": by_opacus}[variant](model, batch, advantages)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    value = run()
    seconds = []
    for _ in range(repeats):
        started = time.process_time()
        run()
        seconds.append(time.process_time() - started)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": round(min(seconds), 3), "megabytes": round((peak - before) / 1024, 1), "value": value}


def in_a_process(variant: str, name: str, length: str, repeats: int) -> dict[str, Any]:
    """Measures one variant in a fresh process; a note in place of numbers if it cannot run."""
    command = [sys.executable, __file__, "--only", variant, name, length, "--repeats", str(repeats)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or ["no message"])[-1][:200]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def compare(name: str, length: str, repeats: int) -> dict[str, Any]:
    """All variants of one case, with ratios to the plain pass."""
    found = {variant: in_a_process(variant, name, length, repeats) for variant in VARIANTS}
    plain = found["plain"]
    for result in found.values():
        if "seconds" in result and "seconds" in plain:
            result["times_plain"] = round(result["seconds"] / plain["seconds"], 2)
            result["memory_times_plain"] = round(result["megabytes"] / plain["megabytes"], 2)
    if "value" in found["hooks"] and "value" in found["loop"]:
        found["hooks"]["error"] = abs(found["hooks"]["value"] / found["loop"]["value"] - 1)
    return {"model": name, "length": length, "rollouts": ROLLOUTS, **found}


def main() -> None:
    """Runs all and prints the line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the embedded policy and short rows only")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs=3, metavar=("VARIANT", "MODEL", "LENGTH"), help="one variant, in this process")
    parser.add_argument("--out", type=Path, help="a file for the line, too")
    options = parser.parse_args()
    if options.only:
        print(json.dumps(measure(*options.only, options.repeats)))
        return
    models, lengths = (MODELS[:1], ["short"]) if options.quick else (MODELS, list(LENGTHS))
    cases = [compare(name, length, options.repeats) for name in models for length in lengths]
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    line = json.dumps({"benchmark": "gradient_variance", "versions": versions, "cases": cases})
    print(line)
    if options.out:
        options.out.write_text(line + "\n")


if __name__ == "__main__":
    main()
