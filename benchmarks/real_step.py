"""Training steps of a real model on real data: TRL's trainer and calibrant's, with the operations that none can avoid.

    python benchmarks/real_step.py --model FOLDER --data fairytaleqa/train.jsonl.gz --kind reading
    python benchmarks/real_step.py --model FOLDER --data gsm8k/train.jsonl.gz --kind maths --max-new 256
    python benchmarks/real_step.py --model FOLDER --data fairytaleqa/train.jsonl.gz --gradients
    python benchmarks/real_step.py --model FOLDER --data fairytaleqa/train.jsonl.gz --device cuda

On a CPU each trainer runs in a process of its own, so that peak memory is its own; on a GPU it is the allocator's. One
step is not timed; medians of `--steps`. TRL may be given smaller micro-batches (`--trl-micro-batch`): it holds
logits of every token of a micro-batch.

Operations that a step cannot avoid: with F those of one forward pass over real tokens (each prompt once; weights,
attention to what is seen, the head at completion tokens), F to generate, F for the reference if beta is not 0, and 3 F
for the update, 4 F with gradient checkpointing. Their time is that at the machine's own rate, of a plain forward and of
a plain forward and backward pass of the same model over rows without padding, measured before the steps of calibrant.
`unavoidable_share` is that time by the time of the step.

`--gradients` compares the first gradients of both instead, in float32 and with rewards that differ with the text, so
that there is one; and each of them with the gradient of TRL's loss of the same batch in float64 (weights, attention,
norms and logits; rotary angles stay in float32, as in the model). One JSON line.
"""

import argparse
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import json_rows, machine
from datasets import Dataset
from memory import resident_peak
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from transformers.trainer_callback import PrinterCallback
from trl import GRPOConfig, GRPOTrainer

from calibrant.policy import plain_logps
from calibrant.tasks import resolve
from calibrant.trl import CalibratedGRPOConfig, CalibratedGRPOTrainer
from calibrant.trl.clock import Clock

WORDS = (200, 260)
"""Words of the texts that are taken of --data, where it has enough of them: about 380 tokens."""
TRAINERS = {"trl": (GRPOTrainer, GRPOConfig), "calibrant": (CalibratedGRPOTrainer, CalibratedGRPOConfig)}
EXACT = "float64"  # TRL's trainer on a batch that was saved


def rows_of(options: argparse.Namespace, chat: bool) -> Dataset:
    """Questions with references, as conversations or texts."""
    rows = json_rows(options.data)
    if options.kind == "reading":
        rows = [row for row in rows if WORDS[0] < len(row["context"].split()) < WORDS[1]] or rows
    asked = "Answer the question about the text with a few words.\n\nText: {context}\n\nQuestion: {question}"
    template = asked if options.kind == "reading" else "{question}"
    rows = rows[: options.prompts * (options.steps + 1)]
    texts = [template.format(**row) for row in rows]
    prompts = [[{"role": "user", "content": text}] for text in texts] if chat else texts
    return Dataset.from_dict({"prompt": prompts, "references": [row["answers"] for row in rows]})


def reward_of(kind: str) -> Callable[..., list[float | None]]:
    """The task's reward of the extracted answers."""
    task = resolve(kind)

    def reward(completions: list[Any], references: list[list[str]], **_: Any) -> list[float | None]:
        return task.reward_batch(
            [task.extract(x if isinstance(x, str) else x[0]["content"]) for x in completions], references
        )

    return reward


def differing(completions: list[Any], **_: Any) -> list[float]:
    """Rewards that differ with the text, as short answers may all be wrong, which gives no gradient."""
    return [sum(map(ord, x if isinstance(x, str) else x[0]["content"])) % 7 / 7 for x in completions]


class Watch(TrainerCallback):
    """Notes seconds of each step and of its parts, the tokens of its batches, and the first gradient."""

    def __init__(self, trainer: Any):
        self.trainer, self.steps, self.parts, self.tokens, self.gradient = trainer, [], [], [], None
        self.clock = Clock()
        model = trainer.model
        self._time(trainer, "_generate_single_turn", lambda: "generation")
        self._time(trainer, "_calculate_rewards", lambda: "rewards")
        self._time(
            trainer, "_get_per_token_logps_and_entropies",
            lambda: "forward" if torch.is_grad_enabled() and model.training else "log_probabilities",
        )  # fmt: skip
        self._time(trainer.accelerator, "backward", lambda: "backward")
        generate = trainer._generate_and_score_completions
        trainer._generate_and_score_completions = lambda inputs: self._noted(generate(inputs))

    def _time(self, owner: Any, name: str, part: Callable[[], str]) -> None:
        """Counts a method as a part; what runs within another part counts for the inner one."""
        function = getattr(owner, name)

        def timed(*arguments: Any, **keywords: Any) -> Any:
            with self.clock.part(part()):
                return function(*arguments, **keywords)

        setattr(owner, name, timed)

    def _noted(self, output: dict[str, Any]) -> dict[str, Any]:
        prompts = output["prompt_ids"] * output["prompt_mask"], output["prompt_mask"]
        distinct = {tuple(ids): sum(mask) for ids, mask in zip(*(x.tolist() for x in prompts), strict=True)}
        rows = zip(output["prompt_mask"].sum(1).tolist(), output["completion_mask"].sum(1).tolist(), strict=True)
        self.tokens.append((list(distinct.values()), list(rows)))
        if self.gradient is None:
            self.batch = {name: x.cpu() for name, x in output.items() if isinstance(x, torch.Tensor)}
        return output

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.clock.taken()
        self.started = now()

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        if self.gradient is None:
            self.gradient = torch.cat(
                [p.grad.flatten().cpu() for p in self.trainer.model.parameters() if p.grad is not None]
            )

    def on_step_end(self, *_: Any, **__: Any) -> None:
        seconds = self.clock.taken()
        self.steps.append(now() - self.started)
        self.parts.append(seconds | {"rest": self.steps[-1] - sum(seconds.values())})
        print(f"step {len(self.steps)}: {self.steps[-1]:.1f} s", file=sys.stderr, flush=True)


def now() -> float:
    """Seconds, once a GPU has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def forward_operations(config: Any, prompts: list[int], rows: list[tuple[int, int]]) -> float:
    """Floating-point operations of a forward pass over distinct prompts, and rows (prompt, completion) of tokens.

    Two per weight of a layer and token, four per channel of a query and token that it sees. The last token of a
    completion has no pass.
    """
    heads, width = config.num_attention_heads, config.hidden_size
    channels = getattr(config, "head_dim", None) or width // heads
    shared = getattr(config, "num_key_value_heads", None) or heads
    layer = width * channels * (2 * heads + 2 * shared) + 3 * width * config.intermediate_size
    suffixes = [(prompt, max(0, tokens - 1)) for prompt, tokens in rows]
    passed = sum(prompts) + sum(tokens for _, tokens in suffixes)
    seen = sum(p * (p + 1) / 2 for p in prompts) + sum(t * p + t * (t + 1) / 2 for p, t in suffixes)
    read = sum(tokens for _, tokens in rows)
    layers = config.num_hidden_layers * (2.0 * layer * passed + 4.0 * heads * channels * seen)
    return layers + 2.0 * width * config.vocab_size * read


def rates(model: Any, options: argparse.Namespace) -> tuple[float, float]:
    """Operations per second of a plain forward, and of a forward and backward pass, over rows without padding."""
    config, device = model.config.get_text_config(), torch.device(options.device)
    prompt, tokens = (340, 32) if options.kind == "reading" else (100, 128)
    count = min(8, options.trl_micro_batch)
    ids = torch.randint(5, config.vocab_size, (count, prompt + tokens), device=device)
    ones, best = torch.ones_like(ids), [float("inf"), float("inf")]
    batch = (ids[:, :prompt], ones[:, :prompt], ids[:, prompt:], ones[:, prompt:])
    for _ in range(3):
        for backward in (False, True):
            start = time.perf_counter()
            with torch.set_grad_enabled(backward), torch.autocast(device.type, torch.bfloat16, enabled=options.bf16):
                logps = plain_logps(model, *batch).logps
            if backward:
                logps.sum().backward()
            if device.type == "cuda":
                torch.cuda.synchronize()
            best[backward] = min(best[backward], time.perf_counter() - start)
    model.zero_grad(set_to_none=True)
    forward = forward_operations(config, [prompt] * count, [(prompt, tokens)] * count)
    return forward / best[0], 3 * forward / best[1]


def exact_norms(model: Any) -> None:
    """Computes RMS norms in the type of their input, where models compute them in float32."""

    def normed(module: Any, _: Any, output: torch.Tensor) -> torch.Tensor:
        x = module.given
        return module.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + module.variance_epsilon)

    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.register_forward_pre_hook(lambda module, given: setattr(module, "given", given[0]))
            module.register_forward_hook(normed)


def replay(trainer: Any, path: str) -> None:
    """Lets a trainer train on a saved batch in float64."""
    batch = torch.load(path, weights_only=True)["batch"]
    batch = {name: x.to(trainer.accelerator.device) for name, x in batch.items()}
    double = {name: x.double() if x.is_floating_point() else x for name, x in batch.items()}
    trainer._generate_and_score_completions = lambda _: double


def trained(kind: str, options: argparse.Namespace) -> dict[str, Any]:
    """A few steps in this process; what was measured."""
    if options.threads:
        torch.set_num_threads(options.threads)
    tokenizer = AutoTokenizer.from_pretrained(options.model, padding_side="left")
    dtype = getattr(torch, EXACT if kind == EXACT else options.dtype)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=dtype).to(options.device)
    own_rates = rates(model, options) if kind == "calibrant" and not options.gradients else None
    trainer_class, config_class = TRAINERS["trl" if kind == EXACT else kind]
    size = options.prompts * options.rollouts
    micro = min(size, options.micro_batch if kind == "calibrant" else options.trl_micro_batch)
    args = config_class(
        output_dir=tempfile.mkdtemp(), max_steps=options.steps + 1, num_generations=options.rollouts, seed=3,
        per_device_train_batch_size=micro, gradient_accumulation_steps=size // micro,
        max_completion_length=options.max_new, temperature=0.9, beta=options.beta, learning_rate=1e-6,
        max_grad_norm=1e9, report_to=[], save_strategy="no", disable_tqdm=True, logging_strategy="no",
        gradient_checkpointing=options.gradient_checkpointing, bf16=options.bf16, use_cpu=options.device == "cpu",
        **({"optim": "sgd"} if options.gradients else {}),
        **({"method": options.method, "rollouts_dir": ""} if kind == "calibrant" else {}),
    )  # fmt: skip
    trainer = trainer_class(
        model=model, reward_funcs=differing if options.gradients else reward_of(options.kind), args=args,
        processing_class=tokenizer,
        train_dataset=rows_of(options, tokenizer.chat_template is not None),
    )  # fmt: skip
    watch = Watch(trainer)
    if kind == EXACT:
        exact_norms(model)
        replay(trainer, options.batch)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(watch)
    trainer.train()
    if options.gradients:
        torch.save({"gradient": watch.gradient, "batch": getattr(watch, "batch", {})}, options.out)
        return {}
    names = sorted({name for parts in watch.parts[1:] for name in parts})
    peak = torch.cuda.max_memory_allocated() if options.device == "cuda" else 2**20 * resident_peak()
    result = {
        "seconds": round(statistics.median(watch.steps[1:]), 2),
        "steps": [round(seconds, 2) for seconds in watch.steps],
        "parts": {name: round(statistics.median(x.get(name, 0.0) for x in watch.parts[1:]), 2) for name in names},
        "micro_batch": micro,
        "peak_mib": round(peak / 2**20),
        "prompt_tokens": statistics.mean(sum(prompts) for prompts, _ in watch.tokens[1:]),
        "completion_tokens": statistics.mean(sum(n for _, n in rows) for _, rows in watch.tokens[1:]),
    }
    if own_rates is not None:
        result |= unavoidable(model.config.get_text_config(), watch, own_rates, options)
    return result


def unavoidable(
    config: Any, watch: Watch, own_rates: tuple[float, float], options: argparse.Namespace
) -> dict[str, Any]:
    """Operations, rates, and the share of unavoidable time in each timed step."""
    passes = 2 if options.beta else 1  # without gradient
    forwards = [forward_operations(config, *batch) for batch in watch.tokens[1:]]
    update = 3 + options.gradient_checkpointing
    seconds = [passes * f / own_rates[0] + update * f / own_rates[1] for f in forwards]
    return {
        "forward_gflop": round(statistics.mean(forwards) / 1e9, 1),
        "forward_gflop_per_second": round(own_rates[0] / 1e9, 1),
        "forward_backward_gflop_per_second": round(own_rates[1] / 1e9, 1),
        "unavoidable_seconds": round(statistics.median(seconds), 2),
        "unavoidable_share": round(statistics.median(a / b for a, b in zip(seconds, watch.steps[1:], strict=False)), 3),
    }


def measured(kind: str, options: argparse.Namespace, arguments: list[str]) -> dict[str, Any]:
    """What one trainer measures, on a CPU in a process of its own."""
    if options.device == "cpu":
        return in_process(kind, options, arguments)
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return trained(kind, options)


def in_process(kind: str, options: argparse.Namespace, arguments: list[str]) -> dict[str, Any]:
    """What one trainer measures in a process of its own."""
    command = [sys.executable, __file__, *arguments, "--only", kind]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def gradient_error(options: argparse.Namespace, arguments: list[str]) -> dict[str, Any]:
    """The relative errors of the gradient of the first step, of the same samples."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        files = {kind: str(Path(folder) / f"{kind}.pt") for kind in (*TRAINERS, EXACT)}
        for kind, out in files.items():
            in_process(kind, options, [*arguments, "--out", out, "--batch", files["trl"]])
            found[kind] = torch.load(out, weights_only=True)
    ids = [found[kind]["batch"]["completion_ids"] for kind in TRAINERS]
    theirs, ours, exact = (found[kind]["gradient"].double() for kind in (*TRAINERS, EXACT))
    pairs = {"calibrant_trl": (ours, theirs), "trl_float64": (theirs, exact), "calibrant_float64": (ours, exact)}
    errors = {name: float((found - expected).norm() / expected.norm()) for name, (found, expected) in pairs.items()}
    return {"same_samples": torch.equal(*ids), "gradient_relative_error": errors}


def parsed() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    yes_no = argparse.BooleanOptionalAction
    parser.add_argument("--model", required=True, help="folder or hub name")
    parser.add_argument("--data", required=True, help="JSONL, perhaps .gz: question, answers and, to read, context")
    parser.add_argument("--kind", choices=("reading", "maths"), default="reading")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--rollouts", type=int, default=8)
    parser.add_argument("--max-new", type=int, default=32, help="tokens of a completion at most (default: 32)")
    parser.add_argument("--bf16", action=yes_no, default=True, help="bfloat16 autocast (default: yes)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the weights")
    parser.add_argument("--gradient-checkpointing", action=yes_no, default=False)
    parser.add_argument("--micro-batch", type=int, default=64, help="rows, of calibrant (default: 64)")
    parser.add_argument("--trl-micro-batch", type=int, default=16, help="rows, of TRL (default: 16)")
    parser.add_argument("--beta", type=float, default=0.002)
    parser.add_argument("--method", default="grpo", help="of calibrant (default: grpo, as TRL)")
    parser.add_argument("--steps", type=int, default=3, help="timed steps (default: 3)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, help="of the CPU (default: those of torch)")
    parser.add_argument("--only", choices=(*TRAINERS, EXACT), help="one trainer alone, in this process")
    parser.add_argument("--gradients", action="store_true", help="compare gradients in float32")
    parser.add_argument("--out", help=argparse.SUPPRESS)
    parser.add_argument("--batch", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.gradients:
        options.bf16, options.dtype, options.steps = False, "float32", 0
        options.micro_batch = options.trl_micro_batch = min(options.micro_batch, options.trl_micro_batch)
    return options


def main() -> None:
    """Prints one JSON line."""
    options = parsed()
    if options.only:
        print(json.dumps(trained(options.only, options)))
        return
    shown = ("model", "kind", "prompts", "rollouts", "max_new", "bf16", "dtype", "gradient_checkpointing", "beta")
    about = {"benchmark": "real_step"} | {name: getattr(options, name) for name in (*shown, "method", "device")}
    about["model"] = Path(options.model).name
    about |= {"machine": machine(options.device), "torch": torch.__version__}
    about["threads"] = options.threads or torch.get_num_threads()
    if options.gradients:
        print(json.dumps(about | gradient_error(options, sys.argv[1:])))
        return
    found = {kind: measured(kind, options, sys.argv[1:]) for kind in ("calibrant", "trl")}
    ratio = found["trl"]["seconds"] / found["calibrant"]["seconds"]
    print(json.dumps(about | found | {"ratio": round(ratio, 2)}))


if __name__ == "__main__":
    main()
