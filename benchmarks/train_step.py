"""A whole training step: TRL's own trainer and calibrant's, on the same model, prompts, seeds and update.

    python benchmarks/train_step.py --shape demo --shape qa --shape maths

Generation, rewards, log-probabilities and update are timed together, from the end of one step to the end of the
next; both trainers run in one process, one after the other, and medians are reported. The gradient of the first step
is compared. Peak memory is that of a process of its own for each trainer (on a GPU, of the allocator). One JSON line.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import torch
from common import machine
from datasets import Dataset
from memory import resident_peak
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from transformers.trainer_callback import PrinterCallback
from trl import GRPOConfig, GRPOTrainer

from calibrant.demo import policy_path
from calibrant.tasks.places import TASK
from calibrant.trl import CalibratedGRPOConfig, CalibratedGRPOTrainer

SHAPES = {"demo": (80, 8, 8), "qa": (800, 16, 4), "maths": (100, 256, 2)}
"""Name -> tokens of a prompt, tokens of a completion, prompts a step."""
ROLLOUTS = 16


class Watch(TrainerCallback):
    """Notes when each step ends, and the gradient of the first."""

    def __init__(self, model: Any):
        self.model, self.ends, self.gradient = model, [], None

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        if self.gradient is None:
            parts = [p.grad.flatten().double().cpu() for p in self.model.parameters() if p.grad is not None]
            self.gradient = torch.cat(parts)

    def on_step_end(self, *_: Any, **__: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())


def prompts(tokenizer: Any, length: int, count: int) -> Dataset:
    """Questions about sheets, each of about so many tokens."""
    rows = TASK.load("train", 400, 0)
    texts = iter([row["prompt"] for row in rows] * 20)
    made = []
    for row in rows[:count]:
        text = row["prompt"]
        while len(tokenizer(text)["input_ids"]) < length:
            text = f"{next(texts)} ... \n{text}"
        ids = tokenizer(text)["input_ids"][-length:]
        made.append({"prompt": tokenizer.decode(ids), "references": row["references"]})
    return Dataset.from_list(made)


def reward(completions: list[str], references: list[list[str]], **_: Any) -> list[float]:
    """Twice the token F1."""
    return [TASK.reward(TASK.extract(text), gold) for text, gold in zip(completions, references, strict=True)]


def policy_of(options: argparse.Namespace) -> Any:
    """The embedded policy, or random weights of the architecture in a folder."""
    dtype = torch.bfloat16 if options.device == "cuda" else torch.float32
    if options.config is None:
        return AutoModelForCausalLM.from_pretrained(str(policy_path()), dtype=dtype)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(options.config), dtype=dtype)


def run(kind: str, shape: str, options: argparse.Namespace) -> tuple[list[float], torch.Tensor]:
    """Trains for a few steps; the seconds of each but the first, and the first gradient."""
    length, tokens, count = SHAPES[shape]
    tokenizer = AutoTokenizer.from_pretrained(options.config or str(policy_path()), padding_side="left")
    common = dict(
        output_dir=tempfile.mkdtemp(), max_steps=options.steps + 1, num_generations=ROLLOUTS, seed=0,
        per_device_train_batch_size=count * ROLLOUTS // options.passes, gradient_accumulation_steps=options.passes,
        max_completion_length=tokens, temperature=0.9, beta=0.002,
        learning_rate=1e-6, max_grad_norm=1e9, report_to="none", save_strategy="no", disable_tqdm=True,
        logging_strategy="no", gradient_checkpointing=False, bf16=options.device == "cuda",
        use_cpu=options.device == "cpu", generation_kwargs={"min_new_tokens": tokens}, loss_type="dapo",
    )  # fmt: skip
    trainer_class, config_class, own = GRPOTrainer, GRPOConfig, {}
    if kind == "calibrant":
        trainer_class, config_class = CalibratedGRPOTrainer, CalibratedGRPOConfig
        own = {"method": options.method, "rollouts_dir": ""}
    model = policy_of(options)
    trainer = trainer_class(
        model, reward, config_class(**common, **own), prompts(tokenizer, length, count * (options.steps + 1)),
        processing_class=tokenizer,
    )  # fmt: skip
    watch = Watch(model)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(watch)
    trainer.train()
    return [b - a for a, b in zip(watch.ends, watch.ends[1:], strict=False)], watch.gradient


def peak_memory(kind: str, shape: str, options: argparse.Namespace) -> float:
    """Peak memory in MiB of two steps in a process of its own."""
    arguments = [
        "--shape",
        shape,
        "--only",
        kind,
        "--steps",
        "1",
        "--method",
        options.method,
        "--passes",
        str(options.passes),
    ]
    arguments += ["--device", options.device]
    arguments += ["--config", options.config] if options.config else []
    done = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True, check=True)
    return float(done.stdout.strip().splitlines()[-1])


def compare(shape: str, options: argparse.Namespace) -> dict[str, Any]:
    """Both trainers on one shape."""
    theirs, expected = run("trl", shape, options)
    ours, found = run("calibrant", shape, options)
    memory = {kind: peak_memory(kind, shape, options) for kind in ("trl", "calibrant")} if options.memory else {}
    return {
        "shape": dict(zip(("prompt", "completion", "prompts"), SHAPES[shape], strict=True)) | {"rollouts": ROLLOUTS},
        "trl_seconds": round(statistics.median(theirs), 3),
        "calibrant_seconds": round(statistics.median(ours), 3),
        "ratio": round(statistics.median(theirs) / statistics.median(ours), 2),
        "gradient_relative_error": float((found - expected).norm() / expected.norm()),
        **{f"{kind}_peak_mib": round(x) for kind, x in memory.items()},
    }


def main() -> None:
    """Prints one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", action="append", choices=list(SHAPES), help="default: all")
    parser.add_argument("--steps", type=int, default=3, help="timed steps of each trainer (default: 3)")
    parser.add_argument("--passes", type=int, default=1, help="micro-batches of a step (default: 1)")
    parser.add_argument("--method", default="grpo", help="ours; with others the gradients differ")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--config", help="folder with a model's config and tokenizer; random weights")
    parser.add_argument("--memory", action=argparse.BooleanOptionalAction, default=True, help="measure peak memory too")
    parser.add_argument("--only", choices=("trl", "calibrant"), help="run one trainer, print its peak memory in MiB")
    options = parser.parse_args()
    shapes = options.shape or list(SHAPES)
    if options.only:
        run(options.only, shapes[0], options)
        print(torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else resident_peak())
        return
    surroundings = {"machine": machine(options.device), "threads": torch.get_num_threads()}
    results = {shape: compare(shape, options) for shape in shapes}
    about = {"benchmark": "train_step", "torch": torch.__version__, "method": options.method, "passes": options.passes}
    print(json.dumps(about | surroundings | results))


if __name__ == "__main__":
    main()
