"""The configuration: TRL's, plus the method and its inputs."""

import logging
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any

from trl import GRPOConfig

from calibrant.errors import CalibrantError
from calibrant.files import json_object
from calibrant.methods import WeightedAdvantages
from calibrant.options import TrainerOptions, check, declared

log = logging.getLogger(__name__)

_SHARED, _DEFAULTS = declared(TrainerOptions), {f.name: f.default for f in fields(TrainerOptions)}


def _option(name: str, default: object = MISSING) -> Any:
    """The field of a shared option; HfArgumentParser hands all of its metadata on to argparse."""
    shared, default = _SHARED[name], _DEFAULTS[name] if default is MISSING else default
    help = shared.help + (f"; None: {shared.shown or 'none'}" if default is None else "")
    return _own(default, help, **({"choices": list(shared.choices)} if shared.choices else {}))


def _own(default: object, help: str, **keywords: list[str]) -> Any:
    metadata = {"help": f"{help[0].upper()}{help[1:]}.".replace("%", "%%")} | keywords
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class CalibratedGRPOConfig(GRPOConfig):
    """TRL's `GRPOConfig` plus the method and its inputs.

    TRL's fields keep TRL's defaults; the paper's settings (GCPO, appendix E.3) are `num_generations=16`,
    `temperature=0.9`, `learning_rate=5e-5`, `beta=0.002`, `max_steps=2000`.

    Raises:
        CalibrantError: an option outside its limits.
    """

    method: str = _option("method")
    alpha: float | None = _option("alpha")
    reward_range: list[float] = _option("reward_range", [0.0, 2.0])
    mean_one: bool = _option("mean_one")
    strength: float | None = _option("strength")
    method_options: dict[str, Any] | str | None = _option("method_options")
    meaning: str = _option("meaning", "answer")
    cluster_text: str | None = _option("cluster_text")
    embedding_model: str = _option("embedding_model")
    embedding_device: str | None = _own(None, "device of the embedding model; None: an accelerator if there is one")
    entailment_model: str | None = _option("entailment_model")
    entailment_device: str | None = _own(None, "device of the entailment model; None: an accelerator if there is one")
    entailment_dtype: str = _option("entailment_dtype")
    cluster_rule: str = _option("cluster_rule")
    entailment_threshold: float = _option("entailment_threshold")
    ema_decay: float = _option("ema_decay")
    ema_every: int = _option("ema_every")
    head_gram_top: int | None = _option("head_gram_top")
    resample_uninformative: int = _option("resample_uninformative")
    share_prefix: bool = _option("share_prefix")
    task_reward: str | None = _own(None, "name of the reward function that signals read; None: the first one")
    rollouts_dir: str | None = _own(
        None,
        "folder of the rollout files; None: OUTPUT_DIR/_rollouts, which is not pushed to the hub; an empty string: no "
        "rollout files",
    )

    def __post_init__(self) -> None:
        if isinstance(self.method_options, str):  # JSON on a command line, as TRL's own options of this kind
            options = json_object(self.method_options.encode())
            if options is None:
                raise CalibrantError(
                    f"method_options is no JSON object: '{self.method_options}'; give {{\"NAME\": VALUE}}"
                )
            self.method_options = options
        super().__post_init__()
        check(self, _SHARED)


OWN_FIELDS: "list[Field[object]]" = [
    f for f in fields(CalibratedGRPOConfig) if f.name not in {g.name for g in fields(GRPOConfig)}
]


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


def check_kernel(trial: WeightedAdvantages, args: GRPOConfig, method: str) -> None:
    """Raises CalibrantError for weights per token with the Liger kernel; `trial` is what the method gives."""
    if trial.weights.ndim > 2 and args.use_liger_kernel:
        raise CalibrantError(
            f"method '{method}' has weights per token, which the Liger kernel's loss cannot take; set use_liger_kernel "
            "to False"
        )
