"""What fits: the memory of a training step, computed from a model's configuration, and measured for SmolLM2.

    python benchmarks/fits.py                      # the table of docs/models.md
    python benchmarks/fits.py --measure            # two steps of SmolLM2 per kind, each in a process of its own

Computed on shapes alone (the meta device). Persistent are weights, the optimizer's state and a reference; to them is
added the larger of the two phases: the update (gradients, casts, activations, logits) or the generation (casts, keys
and values, logits, recorded states). What the phases leave out: the CUDA context, fragmentation, buffers of kernels.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from memory import resident_peak
from transformers import AutoConfig, AutoModelForCausalLM, Qwen2Config, TrainerCallback

from calibrant.model_options import AdapterOptions
from calibrant.policy.adapters import lora_config, with_new_adapter
from calibrant.policy.head import CHUNK_ELEMENTS

GB = 1e9
OVERHEAD = 1.5 * GB
"""CUDA context, buffers of kernels and fragmentation on a GPU: an assumption."""

QWEN = {
    "0.5B": dict(hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14),
    "1.5B": dict(hidden_size=1536, intermediate_size=8960, num_hidden_layers=28, num_attention_heads=12),
    "7B": dict(hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28),
}
HEADS = {"0.5B": (2, 151_936, True), "1.5B": (2, 151_936, True), "7B": (4, 152_064, False)}
"""Of Qwen2.5: key-value heads, vocabulary, whether embedding and head are tied."""

KINDS = {
    "none": dict(method="grpo", beta=0.0),
    "reference": dict(method="grpo", beta=0.002),
    "moving average": dict(method="grpo_care", beta=0.0),
    "head gradients": dict(method="gcpo_grad", beta=0.0),
}
"""Kind of method -> an example of it."""

WAYS = {"full": "--bf16", "full, bfloat16": "--dtype bfloat16", "LoRA": "--use-peft --dtype bfloat16 --bf16"}


@dataclass(frozen=True)
class Step:
    """The shape of a training step; tokens are those of the longest prompt and completion."""

    prompts: int = 8
    rollouts: int = 16
    micro_batch: int = 16
    prompt: int = 1024
    completion: int = 256


def qwen(name: str) -> AutoModelForCausalLM:
    """A model of the shape of Qwen2.5, without weights."""
    heads, vocabulary, tied = HEADS[name]
    config = Qwen2Config(**QWEN[name], num_key_value_heads=heads, vocab_size=vocabulary, tie_word_embeddings=tied)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def parts(model: Any, way: str, kind: str, step: Step) -> dict[str, float]:
    """Bytes of each part of a step, `peak` among them."""
    lora = way == "LoRA"
    config = model.config
    model = with_new_adapter(model, AdapterOptions(use_peft=True)) if lora else model
    counts = [(p.numel(), p.requires_grad) for p in model.parameters()]
    trained, frozen = sum(n for n, t in counts if t), sum(n for n, t in counts if not t)
    wide = 2 if way == "full, bfloat16" else 4  # bytes of a trained parameter
    weights = trained * wide + frozen * 2
    reference = 0 if lora else trained * {"reference": wide, "moving average": 4}.get(kind, 0)
    reference += trained * 4 if lora and kind == "moving average" else 0
    casts = trained * 2 if wide == 4 else 0
    update = trained * wide + casts + activations(config, step, 4 if way == "full" else 2, lora)
    generation = casts + sampling(config, step, 4 if way == "full" else 2)
    fixed = weights + 2 * trained * wide + reference
    return dict(
        weights=weights, optimizer=2 * trained * wide, reference=reference, update=update, generation=generation,
        peak=fixed + max(update, generation),
    )  # fmt: skip


def activations(config: Any, step: Step, width: int, lora: bool) -> float:
    """Bytes of a micro-batch with gradient checkpointing: inputs of all layers, one layer computed again, logits."""
    groups = max(1, step.micro_batch // step.rollouts)
    tokens = groups * step.prompt + step.micro_batch * step.completion
    d, inner = config.hidden_size, config.intermediate_size
    keys = config.num_key_value_heads * (d // config.num_attention_heads)
    layer = tokens * (3 * width * d + 2 * (8 * d + 4 * keys) + 2 * 4 * inner)
    layer += tokens * 4 * (6 * d + inner) if lora else 0  # inputs of adapters, cast to float32
    logits = 3 * 4 * min(CHUNK_ELEMENTS, step.micro_batch * step.completion * config.vocab_size)
    return config.num_hidden_layers * tokens * d * width + 2 * layer + logits


def sampling(config: Any, step: Step, width: int) -> float:
    """Bytes of generation: keys and values, once per prompt and per completion; logits; states before the head."""
    rows, d = step.prompts * step.rollouts, config.hidden_size
    keys = config.num_key_value_heads * (d // config.num_attention_heads)
    cache = (step.prompts * step.prompt + rows * step.completion) * config.num_hidden_layers * 2 * keys * 2
    prefill = step.prompts * step.prompt * (3 * width * d + 2 * 3 * config.intermediate_size)
    logits = rows * config.vocab_size * 4 * 5
    return cache + prefill + logits + 2 * rows * step.completion * d * width


def table() -> None:
    """Prints the computed table as Markdown."""
    print("| model | way | parameters trained | none | reference | moving average | head gradients |")
    print("|---|---|---|---|---|---|---|")
    for name in QWEN:
        for way in WAYS:
            model = qwen(name)
            cells = [parts(qwen(name), way, kind, Step())["peak"] + OVERHEAD for kind in KINDS]
            count = sum(p.numel() for p in model.parameters())
            adapted = with_new_adapter(model, AdapterOptions(use_peft=True)) if way == "LoRA" else model
            trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
            share = f"{trained / 1e6:,.0f} M of {count / 1e6:,.0f} M"
            print(f"| {name} | {way} | {share} | " + " | ".join(map(_cell, cells)) + " |")


def _cell(size: float) -> str:
    fits = next((f"{gpu}" for gpu in (24, 40, 80) if size <= 0.95 * gpu * GB), "more")
    return f"{size / GB:.0f} GB: {fits}"


RETURN_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "1048576", "MALLOC_ARENA_MAX": "1"}
"""Has glibc give large blocks back to the system once they are free."""

SMALL = Step(prompts=2, rollouts=8, micro_batch=8, prompt=400, completion=24)


def measured(way: str, kind: str) -> float:
    """Bytes that the second step of SmolLM2 takes at most, beyond the process after a run of the embedded policy."""
    trained("demo", way, kind)  # imports, the embedding model, buffers of the libraries
    gc.collect()
    before = resident()
    peak = trained("smollm2", way, kind)
    return (peak - before) * 2**20


def trained(model: str, way: str, kind: str) -> float:
    """Trains two steps; the largest resident size in the second one, in MiB."""
    from train_step import prompts

    from calibrant.policy.models import load_tokenizer, locate
    from calibrant.trl import CalibratedGRPOConfig, CalibratedGRPOTrainer

    tokenizer = load_tokenizer(model)
    config = CalibratedGRPOConfig(
        output_dir=tempfile.mkdtemp(), max_steps=2, per_device_train_batch_size=SMALL.micro_batch,
        gradient_accumulation_steps=SMALL.prompts * SMALL.rollouts // SMALL.micro_batch,
        num_generations=SMALL.rollouts, max_completion_length=SMALL.completion, bf16="--bf16" in WAYS[way],
        model_init_kwargs={"dtype": "bfloat16" if "--dtype" in WAYS[way] else "float32"}, use_cpu=True, seed=1,
        report_to="none", save_strategy="no", disable_tqdm=True, rollouts_dir="", **KINDS[kind],
    )  # fmt: skip
    trainer = CalibratedGRPOTrainer(
        locate(model), [letters], config, prompts(tokenizer, SMALL.prompt, 16), processing_class=tokenizer,
        peft_config=lora_config(AdapterOptions(use_peft=True)) if way == "LoRA" else None, callbacks=[ResetPeak()],
        extract_answer=lambda text: text.split("\n")[0],
    )  # fmt: skip
    trainer.train()
    return resident_peak()


class ResetPeak(TrainerCallback):
    """Lets the peak of the process count from each step anew."""

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")


def letters(completions: list[str], **_: object) -> list[float]:
    """A reward that differs between completions."""
    return [len(set(text)) / 26 for text in completions]


def resident() -> float:
    """The resident size of this process now, in MiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


def compare() -> None:
    """Prints computed beside measured peaks of SmolLM2, one process per way and kind."""
    from calibrant.policy.models import locate

    config = AutoConfig.from_pretrained(locate("smollm2"))
    for way in WAYS:
        for kind in KINDS:
            command = [sys.executable, __file__, "--one", way, kind]
            run = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | RETURN_MEMORY)
            found = float(run.stdout.split()[-1])
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(config)
            computed = parts(model, way, kind, SMALL)
            row = {name: round(size / GB, 2) for name, size in computed.items()} | {"measured": round(found / GB, 2)}
            print(json.dumps({"way": way, "kind": kind, **row}), flush=True)


def main() -> None:
    """Prints the table, or compares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--one", nargs=2, metavar=("WAY", "KIND"))
    options = parser.parse_args()
    if options.one:
        torch.set_num_threads(1)
        print(measured(*options.one))
    elif options.measure:
        compare()
    else:
        table()


if __name__ == "__main__":
    main()
