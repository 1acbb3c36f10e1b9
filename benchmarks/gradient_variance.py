"""Times and peak memory of the exact gradient variance of one group, and prints one JSON line.

    OMP_NUM_THREADS=1 python benchmarks/gradient_variance.py --quick

Two models (the embedded policy, and a random Qwen2 of 30 million parameters), groups of 16 rollouts with short (80 + 8
tokens) and long (100 + 256) rows. Measured are

* `plain`: one forward and one backward pass over the same rows, as training does, which yields the group's gradient;
* `hooks` and `loop`: `gradient_variance` with these backends;
* `hooks_untied`: the same where the head has a weight of its own, to compare with
* `vmap`: `torch.func.vmap(grad)`, every gradient at once;
* `opacus`: the norms of ghost clipping, if Opacus is installed. It has no variance, and refuses shared weights.

Each variant runs in a process of its own, one warm-up and then `--repeats` runs; seconds are processor time on one
thread, the least of the runs, and memory is the peak of the process above what it held with the model loaded.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from memory import resident_peak
from torch import Tensor, nn

from calibrant.demo import policy_path
from calibrant.gradients import gradient_variance

ROLLOUTS = 16
LENGTHS = {"short": (80, 8), "long": (100, 256)}
VARIANTS = ("plain", "hooks", "loop", "hooks_untied", "vmap", "opacus")
MODELS = ("demo", "random")
RANDOM = {
    "vocab_size": 16384,
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 7,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
}
Result = dict[str, float]


def load(name: str, tied: bool) -> nn.Module:
    """The model in float32; `tied=False` gives its head a copy of the embedding's weight."""
    torch.manual_seed(0)
    if name == "demo":
        model = transformers.AutoModelForCausalLM.from_pretrained(policy_path(), dtype=torch.float32)
    else:
        model = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**RANDOM, tie_word_embeddings=True))
    if not tied:
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    return model


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


def by_plain(model: nn.Module, batch: dict[str, Tensor], advantages: Tensor) -> Callable[[], Result]:
    """The gradient of the group, in `.grad` as in training."""
    ids, completion = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1), batch["completion_ids"].shape[1]

    def run() -> Result:
        model.zero_grad(set_to_none=True)
        (advantages[0] * scores(model, ids, completion)).mean().backward()
        return {}

    return run


def by_vmap(model: nn.Module, batch: dict[str, Tensor], advantages: Tensor) -> Callable[[], Result]:
    """All gradients at once, then equation 20."""
    ids, completion = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1), batch["completion_ids"].shape[1]
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def score(values: dict[str, Tensor], row: Tensor) -> Tensor:
        def call(**inputs: Any) -> Any:
            return torch.func.functional_call(model, values, (), inputs)

        return scores(call, row[None], completion)[0]

    def run() -> Result:
        gradients = torch.func.vmap(torch.func.grad(score), in_dims=(None, 0))(weights, ids)
        variance = norms = 0.0
        for gradient in gradients.values():
            rows = (advantages[0, :, None] * gradient.flatten(1)).double()
            variance += float((rows - rows.mean(0)).square().sum(-1).mean())
            norms += float(gradient.double().square().sum())
        return {"variance": variance, "squared_norms": norms}

    return run


def by_opacus(model: nn.Module, batch: dict[str, Tensor], advantages: Tensor) -> Callable[[], Result]:
    """Norms of the rollouts' gradients by ghost clipping."""
    from opacus.grad_sample import GradSampleModuleFastGradientClipping

    model.train()  # it takes activations in training mode only; the models have no dropout
    wrapped = GradSampleModuleFastGradientClipping(model, loss_reduction="sum", strict=False)
    ids, completion = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1), batch["completion_ids"].shape[1]

    def run() -> Result:
        model.zero_grad(set_to_none=True)
        scores(wrapped, ids, completion).sum().backward()
        return {"squared_norms": float(wrapped.get_norm_sample().double().square().sum())}

    return run


def by_backend(
    backend: Literal["hooks", "loop"], model: nn.Module, batch: dict[str, Tensor], advantages: Tensor
) -> Callable[[], Result]:
    """calibrant's own."""

    def run() -> Result:
        found = gradient_variance(model, batch, advantages, backend=backend)
        return {"variance": found.variance.item(), "squared_norms": found.squared_norms.sum().item()}

    return run


def runner(variant: str, model: nn.Module, batch: dict[str, Tensor], advantages: Tensor) -> Callable[[], Result]:
    """The function to measure."""
    if variant.startswith("hooks"):
        return by_backend("hooks", model, batch, advantages)
    if variant == "loop":
        return by_backend("loop", model, batch, advantages)
    return {"plain": by_plain, "vmap": by_vmap, "opacus": by_opacus}[variant](model, batch, advantages)


def measure(variant: str, name: str, length: str, repeats: int) -> Result:
    """Seconds, memory in MB and the results of one variant, in this process."""
    torch.set_num_threads(1)
    model = load(name, tied=variant in ("plain", "hooks", "loop")).eval()
    run = runner(variant, model, *make_rows(model, length))
    before = resident_peak()
    result, seconds = run(), []
    for _ in range(repeats):
        started = time.process_time()
        run()
        seconds.append(time.process_time() - started)
    return {"seconds": round(min(seconds), 3), "megabytes": round(resident_peak() - before, 1), **result}


def in_a_process(variant: str, name: str, length: str, repeats: int) -> dict[str, Any]:
    """Measures one variant in a fresh process; a note in place of numbers if it cannot run."""
    command = [sys.executable, __file__, "--only", variant, name, length, "--repeats", str(repeats)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or ["no message"])[-1][:200]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def compare(name: str, length: str, repeats: int) -> dict[str, Any]:
    """All variants of one case, with ratios to the plain pass and errors against the exact reference."""
    found = {variant: in_a_process(variant, name, length, repeats) for variant in VARIANTS}
    for result in found.values():
        if "seconds" in result and "seconds" in found["plain"]:
            result["times_plain"] = round(result["seconds"] / found["plain"]["seconds"], 2)
            result["memory_times_plain"] = round(result["megabytes"] / found["plain"]["megabytes"], 2)
    for variant, reference in (("hooks", "loop"), ("vmap", "hooks_untied"), ("opacus", "hooks_untied")):
        for key in {"variance", "squared_norms"} & set(found[variant]) & set(found[reference]):
            found[variant][f"{key}_difference"] = abs(found[variant][key] / found[reference][key] - 1)
    return {"model": name, "length": length, "rollouts": ROLLOUTS, **found}


def main() -> None:
    """Runs all and prints the line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the embedded policy and short rows only")
    parser.add_argument("--repeats", type=int, default=3, help="runs after the warm-up (default: 3)")
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
