"""Options that several commands have."""

import argparse

from calibrant.text import MINILM
from calibrant.train.settings import CHOICES


def add_text_models(parser: argparse.ArgumentParser) -> None:
    """The models that read answers, and how entailment makes clusters."""
    add = parser.add_argument
    add("--embedding-model", default=MINILM, help="folder or hub name (default: all-MiniLM-L6-v2)")
    add(
        "--entailment-model",
        help="NLI model that makes clusters (paper: roberta-large-mnli), folder or hub name; equal keys when not given",
    )
    add("--entailment-dtype", default="float32", choices=CHOICES["entailment_dtype"], help="default: float32")
    add("--cluster-rule", default="greedy", choices=CHOICES["cluster_rule"], help="default: greedy (paper)")
    add("--entailment-threshold", type=float, default=0.35, help="least probability that joins (default: 0.35)")
