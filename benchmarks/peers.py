"""Semantic entropy, kernel entropy and cosine scores beside lm-polygraph and UQLM: times, and differences explained.

    python -m venv PEERS; PEERS/bin/pip install torch==2.13.0
    PEERS/bin/pip install lm-polygraph uqlm
    OMP_NUM_THREADS=1 python benchmarks/peers.py --model FOLDER --peer-python PEERS/bin/python

Prints one JSON line. UQLM does not accept transformers 5, so both run in a process of their own (`peers_theirs.py`), in
turns with ours; all use the same entailment and embedding model, and nothing is kept from one work to the next. The
texts are 64 groups of 16 short answers, half of them repeated, or those of rollout files (`--rollouts`). lm-polygraph
gets the batch size that is fastest for it. Loading is not timed.

`rounds` has seconds by the clock and of the processor, which other programs disturb less; `ratios` divide medians of
theirs by medians of ours. Works: clusters with counted and likelihood-weighted semantic entropy, by the rule `strict`
(lm-polygraph's) or `greedy` (GCPO's); kernel language entropy, which needs all pairs; cosines of sentence embeddings.
`differences` has for each of their numbers the mean, that of ours with default settings, Spearman's rank correlation
over groups, the largest difference, and the largest one that is left when ours is computed as theirs (`explained`).
"""

import argparse
import glob
import json
import math
import os
import random
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from common import seconds
from scipy.stats import spearmanr
from torch import Tensor

from calibrant.signals import cosine_dispersion, kernel_language_entropy, semantic_entropy
from calibrant.signals.clusters import entailment_clusters
from calibrant.text.embed import Embedder, packaged
from calibrant.text.entail import EntailmentJudge

THINGS = [
    ["Paris", "Lyon", "Marseille", "Toulouse", "Nice"],
    ["the euro", "the Swiss franc", "the dollar", "the pound sterling", "the krone"],
    ["Germany and Austria", "Austria", "Germany, Austria and Italy", "Italy", "Slovenia"],
    ["about two million", "2,102,650 people", "five million", "less than a million", "two million people"],
    ["in Africa", "Asia", "South America", "the north of Europe", "Oceania"],
    ["his older brother", "the old captain", "a doctor from the village", "nobody", "his wife"],
    ["because he was afraid of the sea", "to find his father", "he wanted the money", "for love", "out of pity"],
    ["in 1867", "after the war", "in the spring of 1867", "before the treaty was signed", "in 1918"],
]
PHRASES = ["{}", "{}.", "It is {}.", "The answer is {}", "{}, I think", "Probably {}", "It was {}, as the text says."]
OTHERS = ["I do not know.", "The text does not say.", "unknown"]
RATIOS = [
    ("polygraph_entropy", ("strict", "strict_bfloat16", "greedy", "greedy_bfloat16")),
    ("uqlm_entropy", ("strict", "strict_bfloat16", "greedy", "greedy_bfloat16")),
    ("polygraph_kernel", ("kernel", "kernel_bfloat16")),
    ("uqlm_cosine", ("cosine",)),
]


class Rollouts(NamedTuple):
    """Texts, log-likelihoods of each, and the same per token: `[N][G]`."""

    groups: list[list[str]]
    logprobs: list[list[float]]
    mean_logprobs: list[list[float]]


def made_up(count: int, size: int) -> Rollouts:
    """Groups of answers of which half are distinct and half repeat one of these, in random order."""
    choose = random.Random(0)
    groups = []
    for _ in range(count):
        things = choose.choice(THINGS)
        possible = [phrase.format(thing) for thing in things for phrase in PHRASES] + OTHERS
        distinct = choose.sample(possible, size // 2)
        groups.append(choose.sample(distinct + choose.choices(distinct, k=size - size // 2), size))
    means = [[-random.Random(text).uniform(0.1, 1.2) for text in group] for group in groups]
    totals = [[m * (len(t.split()) + 1) for m, t in zip(*row, strict=True)] for row in zip(means, groups, strict=True)]
    return Rollouts(groups, totals, means)


def sampled(pattern: str, count: int, size: int) -> Rollouts:
    """The first rollouts of each prompt, with log-likelihoods, in files of `calibrant train`."""
    files = [pd.read_parquet(file) for file in sorted(glob.glob(pattern))]
    frame = pd.concat(files).query("num_tokens > 0 and answer != '' and logprob == logprob")
    frames = [rows.head(size) for _, rows in frame.groupby("prompt_id", sort=False) if len(rows) >= size][:count]
    columns = [(f.answer, f.logprob, f.logprob / f.num_tokens) for f in frames]
    return Rollouts(*([list(column) for column in kind] for kind in zip(*columns, strict=True)))


class Peers:
    """The process that has lm-polygraph and UQLM."""

    def __init__(self, python: str, task: dict[str, Any]):
        script = str(Path(__file__).with_name("peers_theirs.py"))
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen([python, script], **pipes, text=True, env=environment)
        self.about = self.ask(json.dumps(task))

    def ask(self, line: str) -> Any:
        """What it answers to a line."""
        assert self.process.stdin and self.process.stdout
        print(line, file=self.process.stdin, flush=True)
        for answer in self.process.stdout:
            if answer.startswith("@"):
                return json.loads(answer[1:])
        raise SystemExit("the process of the peers ended; its messages stand above")


def ours(judges: dict[str, EntailmentJudge], embedder: Embedder, data: Rollouts) -> dict[str, Callable[[], Tensor]]:
    """Our works, each a tensor of scores: counted and weighted semantic entropy `[2, N]`, or `[N]`."""
    groups, weights = data.groups, torch.tensor(data.mean_logprobs, dtype=torch.float64)

    def entropy(judge: EntailmentJudge, rule: str) -> Tensor:
        clusters = judge.clusters(groups, rule)
        return torch.stack([semantic_entropy(clusters, torch.zeros_like(weights)), semantic_entropy(clusters, weights)])

    def cosine() -> Tensor:
        return cosine_dispersion(embedder([text for group in groups for text in group]).unflatten(0, weights.shape))

    works: dict[str, Callable[[], Tensor]] = {"cosine": cosine}
    for end, judge in judges.items():
        works |= {rule + end: lambda judge=judge, rule=rule: entropy(judge, rule) for rule in ("strict", "greedy")}
        works["kernel" + end] = lambda judge=judge: kernel_language_entropy(judge.matrix(groups))
    return works


def timed(peers: Peers, works: dict[str, Callable[[], Tensor]], repeats: int, pause: bool) -> dict[str, Any]:
    """All rounds and medians of all works, theirs and ours in turns, and the last results."""
    rounds: dict[str, list[list[float]]] = {}
    results = {}
    order = list(dict.fromkeys(name for theirs, names in RATIOS for name in (theirs, *names)))
    for _ in range(repeats):
        if pause:
            print("waiting for a line of standard input", file=sys.stderr, flush=True)
            sys.stdin.readline()
        for name in order:
            *taken, results[name] = seconds(works[name]) if name in works else peers.ask(name)
            rounds.setdefault(name, []).append([round(value, 3) for value in taken])
    print("all rounds are done", file=sys.stderr, flush=True)
    medians = {name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in rounds.items()}
    ratios = {
        theirs: {name: [round(a / b, 2) for a, b in zip(medians[theirs], medians[name], strict=True)] for name in names}
        for theirs, names in RATIOS
    }
    return {"results": results, "medians": medians, "ratios": ratios, "rounds": rounds}


def as_uqlm(related: Tensor, masses: Tensor) -> Tensor:
    """UQLM's entropy: an answer enters every cluster whose first member is related; masses are scaled to sum 1."""
    entropies = []
    for links, mass in zip(related.tolist(), masses.tolist(), strict=True):
        clusters: list[list[int]] = []
        for i in range(len(mass)):
            joined = [cluster for cluster in clusters if links[cluster[0]][i]]
            for cluster in joined:
                cluster.append(i)
            clusters += [] if joined else [[i]]
        p = torch.tensor([sum(mass[i] for i in cluster) for cluster in clusters], dtype=torch.float64)
        entropies.append(torch.special.entr(p / p.sum()).sum())
    return torch.stack(entropies)


def differences(
    peers: Peers, judge: EntailmentJudge, embedder: Embedder, data: Rollouts, found: dict[str, Any]
) -> dict[str, Any]:
    """For each of their numbers: means, rank correlation, largest difference, and what is left when computed so."""
    groups, size = data.groups, len(data.groups[0])
    totals, means = (torch.tensor(kind, dtype=torch.float64) for kind in data[1:])
    pairs = [(a, b + " ") for group in groups for a in group for b in group]  # a space: equal texts are judged too
    judged = judge.probabilities(*zip(*pairs, strict=True)).double().view(-1, size, size, 3)
    equal = torch.tensor([[[a == b for b in group] for a in group] for group in groups])
    one = torch.where(equal[..., None], torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64), judged)
    clusters = entailment_clusters(judged, "strict")
    same = clusters[:, :, None] == clusters[:, None, :]
    class_sums = torch.where(same, totals[:, None], -torch.inf).logsumexp(-1)
    related = (one.argmax(-1) == 2) | (one.argmax(-1) == 2).mT
    e = embedder([text for group in groups for text in group]).double().unflatten(0, means.shape)
    cosines = (e[:, :1] @ e.mT)[:, 0, 1:]
    counted, weighted = found["strict"]
    equal_masses = torch.zeros_like(means)
    degree = peers.ask("polygraph_degree")[2]
    polygraph, uqlm = found["polygraph_entropy"], found["uqlm_entropy"]
    contradiction = (one[..., 0] + one[..., 0].mT)[:, 0, 1:] / 2
    uqlm_counted, uqlm_weighted = as_uqlm(related, equal_masses.exp()), as_uqlm(related, means.exp())
    kernel = kernel_language_entropy(judged, t=0.3) / math.log(size)
    rows = {
        "polygraph entropy, frequency": (polygraph["frequency"], counted, semantic_entropy(clusters, equal_masses)),
        "polygraph entropy, sum": (polygraph["sum"], weighted, -class_sums.mean(-1)),
        "polygraph kernel": (found["polygraph_kernel"], found["kernel"], kernel),
        "polygraph degree": (degree, found["cosine"], 1 - judged[..., 2].mean((-1, -2))),
        "uqlm entropy, discrete": (uqlm["discrete_entropy_values"], counted, uqlm_counted),
        "uqlm entropy, token probabilities": (uqlm["tokenprob_entropy_values"], weighted, uqlm_weighted),
        "uqlm confidence": (uqlm["discrete_confidence_scores"], counted, 1 - uqlm_counted / math.log(size)),
        "uqlm noncontradiction": (peers.ask("uqlm_noncontradiction")[2], found["kernel"], 1 - contradiction.mean(-1)),
        "uqlm cosine": (found["uqlm_cosine"], found["cosine"], (0.5 + cosines / 2).mean(-1)),
    }  # fmt: skip
    return {name: difference(*(torch.as_tensor(x, dtype=torch.float64) for x in row)) for name, row in rows.items()}


def difference(theirs: Tensor, default: Tensor, explained: Tensor) -> dict[str, float]:
    """A row of `differences`."""
    return {
        "theirs": round(theirs.mean().item(), 4),
        "ours": round(default.mean().item(), 4),
        "rank_correlation": round(float(spearmanr(theirs, default).statistic), 3),
        "largest": round((theirs - default).abs().max().item(), 4),
        "explained": (theirs - explained).abs().max().item(),
    }


def floor(judge: EntailmentJudge, data: Rollouts) -> dict[str, float]:
    """What `greedy` computes in linear layers, last layer in full, and the seconds at the rate of a large product."""
    tokens: list[int] = []
    network = judge.model.base_model
    hook = network.embeddings.register_forward_hook(lambda _m, _i, output: tokens.append(output[..., 0].numel()))
    judge.clusters(data.groups)
    hook.remove()
    weights = [weight for weight in network.encoder.parameters() if weight.ndim == 2]
    x = torch.randn(1024, weights[0].shape[1], dtype=judge.model.dtype)
    taken = min(seconds(lambda: [x @ weights[0].T for _ in range(50)])[1] for _ in range(5))
    gflop = 2e-9 * sum(weight.numel() for weight in weights) * sum(tokens)
    rate = 50 * 2e-9 * x.shape[0] * weights[0].numel() / taken
    about = {"tokens": sum(tokens), "passes": len(tokens), "gflop": gflop, "gflop_per_second": rate}
    return {name: round(value, 2) for name, value in (about | {"seconds": gflop / rate}).items()}


def main() -> None:
    """Runs all and prints the line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of an entailment model of the BERT family")
    parser.add_argument("--peer-python", required=True, help="interpreter of an environment with lm-polygraph and UQLM")
    parser.add_argument("--rollouts", help="pattern of Parquet files with rollouts (default: made-up answers)")
    parser.add_argument("--groups", type=int, default=64)
    parser.add_argument("--size", type=int, default=16, help="answers per group")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--pause", action="store_true", help="wait for a line of standard input before each round")
    options = parser.parse_args()
    shape = options.groups, options.size
    data = sampled(options.rollouts, *shape) if options.rollouts else made_up(*shape)
    embedder = Embedder()
    task = data._asdict() | {"model": options.model, "embedding_model": str(packaged(embedder.name))}
    peers = Peers(options.peer_python, task)
    judge, half = (EntailmentJudge(options.model, cache_size=0, dtype=kind) for kind in ("float32", "bfloat16"))
    works = ours({"": judge, "_bfloat16": half}, embedder, data)
    works["greedy"](), works["greedy_bfloat16"]()  # theirs are warm from the choice of the batch size
    times = timed(peers, works, options.repeats, options.pause)
    found = times.pop("results")
    distinct = [len(set(group)) for group in data.groups]
    pairs = {"polygraph": sum(n * n for n in distinct), "uqlm": found["uqlm_entropy"]["pairs"]}
    for rule in ("strict", "greedy"):
        before = judge.pairs_judged
        judge.clusters(data.groups, rule)
        pairs[rule] = judge.pairs_judged - before
    line = {
        "benchmark": "peers",
        "texts": "sampled answers" if options.rollouts else "made-up answers",
        "groups": [len(data.groups), options.size],
        "distinct_per_group": statistics.mean(distinct),
        "threads": torch.get_num_threads(),
        "peers": peers.about,
        "pairs_judged": pairs,
        **times,
        "floor_greedy_bfloat16": floor(half, data),
        "differences": differences(peers, judge, embedder, data, found),
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
