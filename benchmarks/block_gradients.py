"""How closely the gradient variance of the head and of the last block follows that of the whole model, group by group.

    python benchmarks/block_gradients.py places.jsonl --groups 64
    python benchmarks/block_gradients.py arithmetic.jsonl --task arithmetic --groups 64
    python benchmarks/block_gradients.py tales.jsonl --model smollm2 --data DATA/fairytaleqa/train.jsonl.gz \\
        --task narrativeqa --rollouts 8 --max-new 32 --groups 24
    python benchmarks/block_gradients.py gsm8k.jsonl --model smollm2 --data DATA/gsm8k/train.jsonl.gz --task gsm8k \\
        --rollouts 8 --max-new 96 --groups 24

One line per group with the inner products of the rollouts' gradients of all parameters, of the last block and of the
output head, the rewards, and other signals; then a table: rank correlations with V(q), and how far the block is ahead
of the head by the paired bootstrap. The same command with more groups continues the file; `--minutes` ends it early,
after a whole group. Rows of `--data` are JSON lines with question, answers and, for reading, context. Completions are
compared with a `solution` by token F1, a second reward with spread where no rollout solves a problem.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import json_rows
from torch import Tensor

from calibrant import signals
from calibrant.advantages import standardised
from calibrant.analyze.groups import group_seed, sampled_group
from calibrant.demo import embedded_policy
from calibrant.files import append_json_lines, keep_lines, read_json_lines
from calibrant.gradients import block_gram, gradient_variance
from calibrant.groups import has_spread, valid
from calibrant.policy import SharedPrefix, logps_in_chunks
from calibrant.policy.generation import Sampling
from calibrant.policy.head import find_head
from calibrant.policy.models import load_model
from calibrant.policy.prompts import Tokens
from calibrant.report.formats import interval_text
from calibrant.statistics import paired_bootstrap
from calibrant.tasks import resolve
from calibrant.tasks.base import Row, Task
from calibrant.tasks.maths import maths_row
from calibrant.tasks.prompts import prompt_tokens, truncate_for_policy
from calibrant.tasks.reading import reading_row
from calibrant.tasks.sources import Item
from calibrant.text.embed import Embedder
from calibrant.text.metrics import token_f1

INSTRUCTION = "Read the text and answer the question in a few words."


def rows_of(options: argparse.Namespace, task: Task, tokenizer: Any) -> tuple[list[Row], dict[str, str]]:
    """The questions, those of `--data` with short prompts, and by prompt id the solutions that there are."""
    if options.data is None:
        rows = task.load(task.splits[0], options.groups, options.seed)[: options.groups]
        return rows, {}
    records = json_rows(options.data)
    order = torch.randperm(len(records), generator=torch.Generator().manual_seed(options.seed)).tolist()
    rows, solutions = [], {}
    for record in (records[i] for i in order):
        item = Item(record["id"], record["question"], record["answers"], context=record.get("context", ""))
        row = maths_row(item) if task.kind == "maths" else reading_row(item, INSTRUCTION)
        if len(rows) == options.groups or prompt_tokens(row, tokenizer) > options.max_prompt:
            continue
        rows.append(row)
        solutions |= {item.id: record["solution"]} if "solution" in record else {}
    return rows, solutions


def grams(model: Any, tokens: Tokens, states: Tensor, temperature: float) -> dict[str, list[list[float]]]:
    """Inner products of the rollouts' gradients, by part: "all", "block", "head"."""
    head, batch = find_head(model), {name: x[None] for name, x in tokens._asdict().items()}
    ones = torch.ones(1, len(tokens.completion_ids), dtype=torch.float64)
    whole = gradient_variance(model, batch, ones, parameters="all", gram=True, temperature=temperature).gram
    assert whole is not None
    found = {"all": whole[0].tolist(), "block": block_gram(model, batch, temperature=temperature)[0].tolist()}
    weight, bias = head.module.weight, head.module.bias
    rows = (x[None] for x in (tokens.completion_ids, tokens.completion_mask))
    found["head"] = signals.head_gram_from_weight(
        states[None], weight, *rows, bias=bias, temperature=temperature / head.scale
    )[0].tolist()
    return found


def other_signals(read: SharedPrefix, mask: Tensor, texts: list[str], task: Task, embed: Embedder) -> dict[str, float]:
    """Signals from likelihoods and from texts."""
    embeddings, clusters = embed(texts)[None].double(), task.clusters([texts])
    assert read.entropies is not None
    return {
        "token_entropy": signals.group_token_entropy(read.entropies.double()[None], mask.bool()[None]).item(),
        "predictive_entropy": signals.predictive_entropy(read.logps.double().sum(-1)[None]).item(),
        "semantic_entropy": float(signals.semantic_entropy(clusters)),
        "cosine_dispersion": signals.cosine_dispersion(embeddings).item(),
        "barycentric_transport": signals.barycentric_transport(embeddings, clusters).item(),
    }


def measure(options: argparse.Namespace, done: int) -> None:
    """Appends groups to the file, from the first that it lacks on."""
    task, began = resolve(options.task), time.monotonic()
    model, tokenizer = load_model(options.model or embedded_policy(options.task))
    model.eval()
    length = options.max_new or task.max_completion_length
    rows, solutions = rows_of(options, task, tokenizer)
    rows, embed = truncate_for_policy(rows, tokenizer, options.max_prompt, length), Embedder()
    for index in range(done, len(rows)):
        if time.monotonic() - began > 60 * options.minutes:
            return
        seed, start = group_seed(options.seed, index), time.monotonic()
        sampling = Sampling(options.rollouts, options.temperature, length, seed)
        group = sampled_group(model, tokenizer, task, rows[index], sampling)
        completions = [str(row["completion"]) for row in group.rows]
        texts = [task.extract(text) for text in completions] if task.meaning == "answer" else completions
        with torch.no_grad():
            options_of_pass = {
                "rows_per_chunk": options.rollouts,
                "entropies": True,
                "hidden_states": True,
                "temperature": options.temperature,
            }
            read = logps_in_chunks(model, *group.tokens, **options_of_pass)
        assert read.hidden_states is not None
        with torch.autocast(model.device.type, torch.bfloat16, enabled=options.bf16):
            products = grams(model, group.tokens, read.hidden_states, options.temperature)
        solution = solutions.get(rows[index]["prompt_id"])
        line = {
            "index": index,
            "prompt_id": rows[index]["prompt_id"],
            "prompt_tokens": int(group.tokens.prompt_mask[0].sum()),
            "tokens": group.tokens.completion_mask.sum(-1).tolist(),
            "rewards": [row["reward"] for row in group.rows],
            "overlap": None if solution is None else [token_f1(text, [solution]) for text in completions],
            "grams": products,
            "signals": other_signals(read, group.tokens.completion_mask, texts, task, embed),
            "completion": completions[0],
        }
        append_json_lines(options.out, [line | {"seconds": time.monotonic() - start}])


Statistic = Callable[[Tensor, Tensor], Tensor]  # of inner products [1, G, G] and advantages [1, G], [1]


def values_of(lines: list[dict[str, Any]], rewards: str | None, statistic: Statistic) -> dict[str, Tensor]:
    """Of each part and signal a value per group, `[N]`; with advantages of these rewards, or every advantage 1."""
    found: dict[str, list[float]] = {}
    for line in lines:
        given = line[rewards] if rewards else [1.0] * len(line["tokens"])
        values = torch.tensor([[float("nan") if r is None else r for r in given]], dtype=torch.float64)
        advantages = torch.where(valid(values), standardised(values), torch.nan) if rewards else values
        if rewards and not bool(has_spread(values)):
            continue
        parts = {name: torch.tensor([gram], dtype=torch.float64) for name, gram in line["grams"].items()}
        row = {name: statistic(gram, advantages).item() for name, gram in parts.items()}
        for name, value in (row | line["signals"]).items():
            found.setdefault(name, []).append(value)
    return {name: torch.tensor(values, dtype=torch.float64) for name, values in found.items()}


def table(values: dict[str, Tensor]) -> dict[str, Any]:
    """Rank correlations with "all", with intervals, and the difference of block and head."""
    names = [name for name in values if name != "all"]
    ranks = paired_bootstrap(torch.stack([values[name] for name in names]), values["all"])
    block, head = names.index("block"), names.index("head")
    pair = (ranks.difference, ranks.difference_low, ranks.difference_high)
    rows = {name: [float(x[i]) for x in (ranks.value, ranks.low, ranks.high)] for i, name in enumerate(names)}
    some = values["all"] > 0
    shares = {name: float((values[name] / values["all"])[some].median()) for name in ("block", "head")}
    return {
        "groups": len(values["all"]), "share": shares, "rho": rows,
        "block minus head": [float(x[block, head]) for x in pair],
    }  # fmt: skip


def summary(path: Path) -> dict[str, Any]:
    """The tables of a file: variance and signal share, by the rewards of the task and by overlap with the solution."""
    lines, result = list(read_json_lines(path)), {}
    variance, share = signals.head_gradient_variance, signals.gradient_snr_weight
    kinds: dict[str, tuple[str | None, Statistic]] = {
        "V(q)": ("rewards", variance),
        "V(q) without advantages": (None, variance),
        "signal share": ("rewards", share),
    }
    if lines and lines[0]["overlap"]:
        kinds["V(q), rewards by overlap"] = ("overlap", variance)
        kinds["signal share, rewards by overlap"] = ("overlap", share)
    for title, (rewards, statistic) in kinds.items():
        values = values_of(lines, rewards, statistic)
        if len(values.get("all", ())) >= 5:
            result[title] = table(values)
    return result


def main() -> None:
    """Measures, then prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="file of the groups, JSON lines")
    parser.add_argument("--model", help="policy (default: the embedded one of the task)")
    parser.add_argument("--task", default="places", help="prompts, rewards and answers (default: places)")
    parser.add_argument("--data", type=Path, help="gzip JSON lines to take questions from, instead of the task's")
    parser.add_argument("--groups", type=int, default=64)
    parser.add_argument("--rollouts", type=int, default=16)
    parser.add_argument("--max-new", type=int, help="tokens (default: the task's)")
    parser.add_argument("--max-prompt", type=int, default=768, help="tokens; longer ones are left out")
    parser.add_argument("--temperature", type=float, default=0.9)
    parser.add_argument("--bf16", action="store_true", help="passes for the gradients under autocast")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="a file for the tables, too")
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after so many")
    options = parser.parse_args()
    keep_lines(options.out)
    done = sum(1 for _ in read_json_lines(options.out)) if options.out.exists() else 0
    measure(options, done)
    tables = summary(options.out)
    if options.json:
        named = {name: str(value) for name, value in vars(options).items() if name not in ("out", "json", "minutes")}
        options.json.write_text(json.dumps({"benchmark": "block_gradients", "options": named, **tables}) + "\n")
    for title, found in tables.items():
        print(f"\n{title}, {found['groups']} groups; median of a part by that of all: {found['share']}")
        for name, values in sorted(found["rho"].items(), key=lambda item: -item[1][0]):
            print(f"{name:>24} {interval_text(*values)}")
        print(f"{'block minus head':>24} {interval_text(*found['block minus head'])}")


if __name__ == "__main__":
    main()
