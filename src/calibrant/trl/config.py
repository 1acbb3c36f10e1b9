"""The configuration: TRL's, plus the method and what it reads."""

import logging
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from trl import GRPOConfig

from calibrant.text import MINILM

log = logging.getLogger(__name__)


@dataclass
class CalibratedGRPOConfig(GRPOConfig):
    """TRL's `GRPOConfig` plus the method and what it reads.

    TRL's fields keep TRL's defaults; the paper's settings (GCPO, appendix E.3) are `num_generations=16`,
    `temperature=0.9`, `learning_rate=5e-5`, `beta=0.002`, `max_steps=2000`.
    """

    method: str = field(
        default="gcpo_bot", metadata={"help": "Method: a name in calibrant.methods.METHODS or a dotted path."}
    )
    alpha: float | None = field(
        default=None, metadata={"help": "Strength of the weights; None: the method's own default (GCPO: 0.6)."}
    )
    reward_range: list[float] = field(
        default_factory=lambda: [0.0, 2.0],
        metadata={"help": "Lowest and highest value of the task reward, as reward dispersion reads it (GCPO: 0, 2)."},
    )
    mean_one: bool = field(
        default=False,
        metadata={"help": "Divide the weights of a batch by their mean, so that they leave the learning rate alone."},
    )
    method_options: dict[str, Any] | None = field(
        default=None, metadata={"help": "Further hyper-parameters of the method, by name."}
    )
    meaning: str = field(
        default="answer",
        metadata={"help": "Text that is embedded and clustered: 'answer' (QA) or 'completion' (mathematics)."},
    )
    embedding_model: str = field(
        default=MINILM,
        metadata={"help": "Sentence-transformers model: a folder or a hub name (GCPO: all-MiniLM-L6-v2)."},
    )
    embedding_device: str | None = field(default=None, metadata={"help": "Device of the embedding model."})
    entailment_model: str | None = field(
        default=None,
        metadata={
            "help": "NLI model that judges which answers mean the same: a folder or a hub name (GCPO: "
            "roberta-large-mnli). None: answers with equal keys do."
        },
    )
    entailment_device: str | None = field(default=None, metadata={"help": "Device of the entailment model."})
    entailment_dtype: str = field(
        default="float32",
        metadata={"help": "Type that the entailment model computes in: float32, bfloat16 or float16."},
    )
    cluster_rule: str = field(
        default="greedy",
        metadata={
            "help": "How entailment makes clusters: greedy (GCPO), strict, strict_last, lenient, lenient_last or "
            "components."
        },
    )
    entailment_threshold: float = field(
        default=0.35, metadata={"help": "Least probability of entailment that joins a cluster by the greedy rule."}
    )
    ema_decay: float = field(
        default=0.995, metadata={"help": "Decay of the slow reference of methods that read one (GRPO-CARE: 0.995)."}
    )
    ema_every: int = field(
        default=10, metadata={"help": "Optimisation steps between updates of the slow reference (GRPO-CARE: 10)."}
    )
    head_gram_top: int | None = field(
        default=None,
        metadata={
            "help": "Columns of the vocabulary a token, the most probable ones, from which the gradients of the output "
            "head are compared; 0: all. None: all up to a vocabulary of 32,768, 64 of a larger one."
        },
    )
    share_prefix: bool = field(
        default=True,
        metadata={
            "help": "Compute each prompt once for all of its rollouts, where that is cheaper and the model can: the "
            "same gradient up to rounding, sooner. False: TRL's own path, to the bit."
        },
    )
    task_reward: str | None = field(
        default=None,
        metadata={"help": "Name of the reward function that signals read; None: the first. Never the shaped sum."},
    )
    rollouts_dir: str | None = field(
        default=None,
        metadata={
            "help": "Folder of the rollout files; None: OUTPUT_DIR/_rollouts, which is not pushed to the hub; an empty "
            "string: none are written."
        },
    )


OWN_FIELDS = [f for f in fields(CalibratedGRPOConfig) if f.name not in {g.name for g in fields(GRPOConfig)}]


def complete(args: GRPOConfig) -> None:
    """Gives a plain `GRPOConfig` the fields that it lacks, with their defaults; warns of the method that it gets."""
    if not hasattr(args, "method") and args.process_index == 0:
        log.warning(
            "%s names no method, so training uses the default of CalibratedGRPOConfig, '%s'; pass "
            "CalibratedGRPOConfig(method=...) to choose another ('grpo' is TRL's own)",
            type(args).__name__,
            CalibratedGRPOConfig.method,
        )
    for own in OWN_FIELDS:
        if not hasattr(args, own.name):
            setattr(args, own.name, own.default if own.default_factory is MISSING else own.default_factory())
