"""Times the entailment judge and lm-polygraph's calculators on the same network and answers; prints one JSON line.

    pip install lm-polygraph
    OMP_NUM_THREADS=1 python benchmarks/entailment.py --model FOLDER

64 groups of 16 short answers, half of them repeated. Both sides use one network object and tokenizer, in float32, with
gradients off and as many threads; nothing is kept from one repeat to the next. lm-polygraph gets the batch size that
is fastest for it on a part of the groups. Loading is not timed. `cpu_ratio` is that of the processor time, which other
programs on the machine disturb less than the clock; it says nothing where an accelerator computes. The rows:

* `matrix`: all three probabilities, all pairs, both directions. lm-polygraph: SemanticMatrixCalculator, which judges
  the distinct texts of each group. Ours: `EntailmentJudge.matrix`.
* `strict`: clusters by entailment in both directions against first members. lm-polygraph: its matrix, then
  SemanticClassesCalculator. Ours: `EntailmentJudge.clusters(rule="strict")`.
* `greedy`: clusters by GCPO's rule. lm-polygraph has no such rule: its matrix, then `greedy_clusters`. Ours:
  `EntailmentJudge.clusters`.
* `greedy_bfloat16`: the same, ours with `dtype="bfloat16"`, which lm-polygraph has no option for; theirs in float32.
"""

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from calibrant.signals.clusters import greedy_clusters
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


def make_groups(count: int, size: int, seed: int = 0) -> list[list[str]]:
    """Groups of answers of which half are distinct and half repeat one of these, in random order."""
    choose = random.Random(seed)
    groups = []
    for _ in range(count):
        things = choose.choice(THINGS)
        possible = [phrase.format(thing) for thing in things for phrase in PHRASES] + OTHERS
        distinct = choose.sample(possible, size // 2)
        groups.append(choose.sample(distinct + choose.choices(distinct, k=size - size // 2), size))
    return groups


def theirs(judge: EntailmentJudge, batch_size: int) -> Callable[[list[list[str]]], dict[str, Any]]:
    """lm-polygraph's matrix of groups, by the network of the judge."""
    from lm_polygraph.stat_calculators.semantic_matrix import SemanticMatrixCalculator

    config = judge.model.config
    config.label2id = {name.upper(): index for index, name in config.id2label.items()}  # it looks for capitals
    network = SimpleNamespace(
        deberta=judge.model, deberta_tokenizer=judge.tokenizer, batch_size=batch_size, device=judge.device
    )
    calculator = SemanticMatrixCalculator(network)
    return lambda groups: calculator({"sample_texts": groups}, [], None)


def their_classes(matrix: dict[str, Any], groups: list[list[str]]) -> torch.Tensor:
    """lm-polygraph's classes from its matrix."""
    from lm_polygraph.stat_calculators.semantic_classes import SemanticClassesCalculator

    classes = SemanticClassesCalculator()({"sample_texts": groups, **matrix}, [], None)["semantic_classes_entail"]
    of_group = classes["sample_to_class"]
    return torch.tensor([[of_group[n][i] for i in range(len(group))] for n, group in enumerate(groups)])


def seconds(work: Callable[[], Any]) -> tuple[float, float, Any]:
    """How long it takes by the clock and by the processor, and what it gives."""
    started = time.perf_counter(), time.process_time()
    result = work()
    return time.perf_counter() - started[0], time.process_time() - started[1], result


def best_batch_size(judge: EntailmentJudge, groups: list[list[str]]) -> tuple[int, dict[int, float]]:
    """The batch size that is fastest for lm-polygraph, and the processor seconds of each, the better of two."""
    tried = {}
    for size in (10, 16, 32, 64):
        work = theirs(judge, size)
        tried[size] = min(seconds(lambda work=work: work(groups))[1] for _ in range(2))
    return min(tried, key=lambda size: tried[size]), tried


def compare(
    judge: EntailmentJudge, half: EntailmentJudge, groups: list[list[str]], batch_size: int, repeats: int
) -> dict[str, Any]:
    """Medians of both sides, in turn, and what the last repeat gave."""
    matrix = theirs(judge, batch_size)
    work: dict[str, dict[str, Callable[[], Any]]] = {
        "matrix": {"theirs": lambda: matrix(groups), "ours": lambda: judge.matrix(groups)},
        "strict": {
            "theirs": lambda: their_classes(matrix(groups), groups),
            "ours": lambda: judge.clusters(groups, "strict"),
        },
        "greedy": {
            "theirs": lambda: greedy_clusters(torch.from_numpy(matrix(groups)["semantic_matrix_entail"])),
            "ours": lambda: judge.clusters(groups),
        },
        "greedy_bfloat16": {
            "theirs": lambda: greedy_clusters(torch.from_numpy(matrix(groups)["semantic_matrix_entail"])),
            "ours": lambda: half.clusters(groups),
        },
    }
    rows = {}
    for name, sides in work.items():
        before = judge.pairs_judged + half.pairs_judged
        timed = [{side: seconds(run) for side, run in sides.items()} for _ in range(repeats)]
        clock, processor = (
            {side: statistics.median(one[side][kind] for one in timed) for side in sides} for kind in (0, 1)
        )
        rows[name] = {
            "theirs_seconds": round(clock["theirs"], 3),
            "ours_seconds": round(clock["ours"], 3),
            "ratio": round(clock["theirs"] / clock["ours"], 2),
            "cpu_ratio": round(processor["theirs"] / processor["ours"], 2),
            "all_seconds": {side: [round(one[side][0], 3) for one in timed] for side in sides},
            "all_cpu_seconds": {side: [round(one[side][1], 3) for one in timed] for side in sides},
            "ours_pairs_judged": (judge.pairs_judged + half.pairs_judged - before) // repeats,
            "results": {side: timed[-1][side][2] for side in sides},
        }
    return rows


def agreement(rows: dict[str, Any], groups: list[list[str]]) -> dict[str, Any]:
    """How far the results of both sides are apart; takes them out of the rows.

    lm-polygraph judges a text against itself too, and a network may find that it does not entail itself; the clusters
    are compared as they are, and from its matrix with entailment where texts are equal.
    """
    results = {name: row.pop("results") for name, row in rows.items()}
    ours, matrix = results["matrix"]["ours"].numpy(), results["matrix"]["theirs"]
    entail, contradict = matrix["semantic_matrix_entail"], matrix["semantic_matrix_contra"]
    difference = np.maximum(np.abs(ours[..., 2] - entail), np.abs(ours[..., 0] - contradict))
    texts = np.array(groups)
    equal = texts[:, :, None] == texts[:, None, :]
    classes = np.where(equal, matrix["entailment_id"], matrix["semantic_matrix_classes"])
    repaired = {
        "strict": their_classes(matrix | {"semantic_matrix_classes": classes}, groups),
        "greedy": greedy_clusters(torch.from_numpy(np.where(equal, 1.0, entail).astype(np.float32))),
    }
    repaired["greedy_bfloat16"] = repaired["greedy"]
    same = {
        name: {"as_they_are": count(row["ours"], row["theirs"]), "repaired": count(row["ours"], repaired[name])}
        for name, row in results.items()
        if name in repaired
    }
    return {
        "largest_difference_of_probabilities_of_unequal_texts": float(difference[~equal].max()),
        "largest_difference_for_equal_texts_which_only_theirs_judges": float(difference[equal].max()),
        "groups_with_equal_clusters": same,
        "clusters_a_group": float((results["greedy"]["ours"].amax(1) + 1).double().mean()),
    }


def count(ours: torch.Tensor, theirs: torch.Tensor) -> int:
    """How many groups have the same clusters."""
    return int((ours == theirs).all(1).sum())


def main() -> None:
    """Runs all and prints the line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or hub name of an entailment model")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=64, help="of our judge")
    parser.add_argument("--quick", action="store_true", help="8 groups, one repeat")
    options = parser.parse_args()
    groups = make_groups(8 if options.quick else 64, 16)
    repeats = 1 if options.quick else options.repeats
    judge = EntailmentJudge(options.model, batch_size=options.batch_size, cache_size=0)
    batch_size, tried = best_batch_size(judge, groups[:8])
    half = EntailmentJudge(options.model, batch_size=options.batch_size, cache_size=0, dtype="bfloat16")
    rows = compare(judge, half, groups, batch_size, repeats)
    line = {
        "benchmark": "entailment",
        "groups": [len(groups), len(groups[0])],
        "distinct_pairs_both_directions": sum(len(set(group)) * (len(set(group)) - 1) for group in groups),
        "their_pairs_judged": sum(len(set(group)) ** 2 for group in groups),
        "threads": torch.get_num_threads(),
        "device": str(judge.device),
        "batch_size": {"theirs": batch_size, "theirs_tried": tried, "ours": options.batch_size},
        "repeats": repeats,
        "rows": rows,
        "agreement": agreement(rows, groups),
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
