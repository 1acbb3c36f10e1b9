"""Runs lm-polygraph and UQLM for `peers.py`: reads names of works from standard input, prints results as JSON lines.

Run by the interpreter of an environment that has both. The first line of the input is what to work on.
"""

import json
import sys
from collections.abc import Callable
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from common import seconds
from lm_polygraph.estimators.deg_mat import DegMat
from lm_polygraph.estimators.kernel_language_entropy import KernelLanguageEntropy
from lm_polygraph.estimators.semantic_entropy import SemanticEntropy
from lm_polygraph.stat_calculators.semantic_classes import SemanticClassesCalculator
from lm_polygraph.stat_calculators.semantic_matrix import SemanticMatrixCalculator
from uqlm.black_box import ConsistencyScorer, CosineScorer
from uqlm.nli import NLI
from uqlm.scorers import SemanticEntropy as UQLMSemanticEntropy

PACKAGES = ("lm-polygraph", "uqlm", "transformers", "torch", "sentence-transformers")


def polygraph(network: NLI, task: dict[str, Any]) -> tuple[dict[str, Callable[[], Any]], dict[int, float]]:
    """lm-polygraph's works on the network, with the batch size that is fastest for it, and the seconds of each."""
    network.model.config.label2id = {name.upper(): k for name, k in network.model.config.label2id.items()}
    nli = SimpleNamespace(deberta=network.model, deberta_tokenizer=network.tokenizer, device="cpu", batch_size=10)
    matrix, classes = SemanticMatrixCalculator(nli), SemanticClassesCalculator()
    given = {"sample_texts": task["groups"], "sample_log_probs": np.array(task["logprobs"])}

    def stats() -> dict[str, Any]:
        return given | matrix(given, [], None)

    def entropy() -> dict[str, list[float]]:
        found = stats()
        found |= classes(found, [], None)
        return {
            kind: SemanticEntropy(class_probability_estimation=kind)(found).tolist() for kind in ("frequency", "sum")
        }

    tried = {}
    for nli.batch_size in (10, 16, 32, 64):
        part = {"sample_texts": task["groups"][:6]}
        tried[nli.batch_size] = min(seconds(lambda part=part: matrix(part, [], None))[1] for _ in range(2))
    nli.batch_size = min(tried, key=lambda size: tried[size])
    works = {
        "polygraph_entropy": entropy,
        "polygraph_kernel": lambda: [float(value) for value in KernelLanguageEntropy()(stats())],
        "polygraph_degree": lambda: DegMat()(stats()).tolist(),
    }
    return works, tried


def uqlm(network: NLI, task: dict[str, Any]) -> dict[str, Callable[[], Any]]:
    """UQLM's works on the network; nothing is kept from one to the next."""
    length_normalised = [[[{"logprob": value}] for value in row] for row in task["mean_logprobs"]]
    cosine = CosineScorer(task["embedding_model"])

    def split(groups: list[list[Any]]) -> tuple[list[Any], list[list[Any]]]:
        return [group[0] for group in groups], [group[1:] for group in groups]  # fresh lists, which it changes

    def entropy() -> dict[str, list[float]]:
        network.probabilities.clear()
        scorer = UQLMSemanticEntropy(nli=network, device="cpu")
        texts, logprobs = split(task["groups"]), split(length_normalised)
        names = ("responses", "sampled_responses", "logprobs_results", "sampled_logprobs_results")
        data = scorer.score(**dict(zip(names, (*texts, *logprobs), strict=True)), show_progress_bars=False).data
        kept = ("discrete_entropy_values", "tokenprob_entropy_values", "discrete_confidence_scores")
        return {name: [float(value) for value in data[name]] for name in kept} | {"pairs": len(network.probabilities)}

    def noncontradiction() -> list[float]:
        network.probabilities.clear()
        found = ConsistencyScorer(nli=network, scorers=["noncontradiction"]).evaluate(*split(task["groups"]))
        return [float(value) for value in found["noncontradiction"]]

    def similarity() -> list[float]:
        return [float(value) for value in cosine.evaluate(*split(task["groups"]))]

    return {"uqlm_entropy": entropy, "uqlm_noncontradiction": noncontradiction, "uqlm_cosine": similarity}


def main() -> None:
    """Prints the surroundings, then for each line of the input seconds, processor seconds and result."""
    task = json.loads(sys.stdin.readline())
    network = NLI(device="cpu", nli_model_name=task["model"])
    works, tried = polygraph(network, task)
    works |= uqlm(network, task)
    about = {"versions": {name: version(name) for name in PACKAGES}, "polygraph_batch_sizes": tried}
    print("@" + json.dumps(about | {"threads": torch.get_num_threads()}), flush=True)
    for line in sys.stdin:
        print("@" + json.dumps(seconds(works[line.strip()])), flush=True)


if __name__ == "__main__":
    main()
