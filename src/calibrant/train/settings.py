"""The options of `calibrant train`: one dataclass, read by the command line, YAML files and run directories."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from calibrant.demo import POLICIES
from calibrant.errors import CalibrantError, nearest
from calibrant.text import MINILM

CHOICES = {
    "meaning": (None, "answer", "completion"),
    "cluster_rule": ("greedy", "strict", "strict_last", "lenient", "lenient_last", "components"),
    "entailment_dtype": ("float32", "bfloat16", "float16"),
    "loss_type": ("dapo", "grpo", "bnpo", "dr_grpo", "cispo", "sapo", "vespo"),
    "report_to": ("none", "tensorboard", "wandb", "trackio"),
    "schedule": ("linear", "constant", "cosine", "constant_with_warmup", "inverse_sqrt", "polynomial"),
}
"""What the options take that are one of a few words."""


OF_ONE_POLICY = {"demo-arithmetic": {"steps": 80}}
"""What measurement chose for one embedded policy alone."""


def option(default: Any, help: str, *, demo: Any = None) -> Any:
    """A field with its help text and, where measurement chose another value, its default for the demo policies."""
    return field(default=default, metadata={"help": help, "demo": demo})


@dataclass(frozen=True)
class TrainSettings:
    """Everything that decides a training run. Defaults are the paper's (GCPO, appendix E.3) where it states one."""

    task: str = option("places", "what to learn; see `calibrant tasks`")
    data_dir: str | None = option(None, "folder with the task's official files; the hub when not given")
    model: str = option("demo", "policy: 'demo', 'demo-arithmetic' (arithmetic's own), a folder, or a hub name")
    method: str = option("gcpo_bot", "a name from `calibrant methods`, or the dotted path of your own function")
    seed: int = option(0, "seed of data order, sampling and initialisation")
    steps: int = option(2000, "optimisation steps (paper: 2000)", demo=60)
    prompts_per_step: int = option(8, "prompts in a step (the paper names none)")
    rollouts: int = option(16, "answers sampled a prompt, G (paper: 16)")
    temperature: float = option(0.9, "sampling temperature (paper: 0.9)")
    learning_rate: float = option(5e-5, "peak learning rate of AdamW (paper: 5e-5)", demo=1e-4)
    schedule: str = option(
        "linear",
        "learning-rate schedule: linear, constant, cosine, constant_with_warmup, inverse_sqrt or polynomial",
    )
    beta: float = option(0.002, "weight of the KL term to the starting policy (paper: 0.002)")
    alpha: float | None = option(None, "strength of the weights (paper: 0.6); the method's own default when not given")
    mean_one: bool = option(False, "divide the weights of a step by their mean, leaving the learning rate alone")
    method_options: dict[str, Any] | None = option(
        None, "further hyper-parameters of the method; the option once for each"
    )
    reward_range: tuple[float, float] | None = option(None, "lowest and highest reward; the task's when not given")
    meaning: str | None = option(None, "text with the meaning: answer or completion; the task's when not given")
    embedding_model: str = option(MINILM, "sentence-transformers model: a folder or a hub name")
    entailment_model: str | None = option(
        None, "NLI model that says which answers mean the same (paper: roberta-large-mnli); equal keys when not given"
    )
    entailment_dtype: str = option(
        "float32",
        "type that the NLI model computes in: float32, bfloat16 (faster, rarely moves an answer) or float16",
    )
    cluster_rule: str = option(
        "greedy",
        "how entailment makes clusters: greedy (paper), strict, strict_last, lenient, lenient_last or components",
    )
    entailment_threshold: float = option(0.35, "least probability of entailment that joins a cluster (paper: 0.35)")
    ema_decay: float = option(0.995, "decay of the slow reference of grpo_care")
    ema_every: int = option(10, "optimisation steps between updates of the slow reference of grpo_care")
    head_gram_top: int | None = option(
        None, "columns a token of the head's gradients, 0 for all; all up to 32,768 and else 64 when not given"
    )
    max_prompt_length: int = option(2048, "longest prompt in tokens; the text of a longer one loses its end")
    max_completion_length: int | None = option(None, "longest answer in tokens; the task's when not given")
    loss_type: str = option("dapo", "how TRL averages the loss: dapo, grpo, bnpo, dr_grpo, cispo, sapo or vespo")
    num_iterations: int = option(1, "optimisation passes over a batch of rollouts")
    micro_batch: int | None = option(None, "most rollouts in a forward pass of a device; all when not given", demo=32)
    max_grad_norm: float = option(1.0, "gradient clipping")
    gradient_checkpointing: bool = option(True, "trade time for memory in the backward pass", demo=False)
    share_prefix: bool = option(True, "compute each prompt once for its rollouts; off: TRL's own path, to the bit")
    bf16: bool = option(False, "train in bfloat16 mixed precision")
    train_rows: int | None = option(None, "size of the training split; the task's when not given")
    evaluation: bool = option(True, "evaluate on the unseen split before and after training")
    eval_prompts: int = option(200, "prompts of an evaluation")
    eval_samples: int = option(16, "answers sampled a prompt in an evaluation", demo=8)
    save_every: int = option(50, "steps between checkpoints; the last two are kept", demo=20)
    report_to: str = option("none", "tracker that TRL reports to: none, tensorboard, wandb or trackio")
    trust_remote_code: bool = option(False, "run code that comes with a hub model")


def names() -> list[str]:
    """The names of all options."""
    return [f.name for f in fields(TrainSettings)]


def resolve_settings(given: Mapping[str, Any]) -> TrainSettings:
    """Fills what was not given: what the method is trained with, the demo's defaults with the demo policy, the rest.

    Raises:
        CalibrantError: an option that does not exist, with the nearest name, or a value that cannot be.
    """
    for name in given:
        if name not in names():
            raise CalibrantError(f"unknown option '{name}'{nearest(name, names())}; `calibrant train --help` lists all")
    model = given.get("model", embedded_policy(str(given.get("task", TrainSettings.task))))
    demo = {f.name: f.metadata["demo"] for f in fields(TrainSettings) if f.metadata["demo"] is not None}
    defaults = {"model": model} | (demo if model in POLICIES else {}) | OF_ONE_POLICY.get(model, {})
    defaults = defaults | recommended(str(given.get("method", TrainSettings.method)))
    settings = TrainSettings(**{**defaults, **{name: _coerce(name, value) for name, value in given.items()}})
    _check(settings)
    return settings


def embedded_policy(task: str) -> str:
    """The embedded policy that a task trains when no model is given.

    >>> embedded_policy("arithmetic"), embedded_policy("places")
    ('demo-arithmetic', 'demo')
    """
    own = f"demo-{task}"
    return own if own in POLICIES else "demo"


def recommended(method: str) -> dict[str, Any]:
    """The options that a method's docstring recommends, e.g. no KL term for CAPO; what is given goes before them.

    >>> recommended("dr_grpo")
    {'loss_type': 'dr_grpo'}
    """
    from calibrant.methods.card import card  # torch is slow to import, and `--help` needs none

    return {name: value for name, value in card(method).recommended if name in names()}


def kind_of(name: str) -> str:
    """The type of an option as text: `int`, `float | None`, `tuple[float, float] | None`, ..."""
    kind = {f.name: f.type for f in fields(TrainSettings)}[name]
    return kind.__name__ if isinstance(kind, type) else str(kind)


def _coerce(name: str, value: Any) -> Any:
    """Brings a YAML value to the type of its field: 1e-5 is a string in YAML, an int may stand for a float."""
    kind = kind_of(name)
    try:
        if value is None:
            return _none(name, kind)
        if kind.startswith("tuple"):
            low, high = value
            return (float(low), float(high))
        if kind.startswith("dict"):
            return {str(k): v for k, v in dict(value).items()}
        if kind.startswith("bool"):
            return _boolean(value)
        if kind.startswith("int"):
            return _whole(value)
        return float(value) if kind.startswith("float") else str(value)
    except (TypeError, ValueError):
        raise CalibrantError(f"option '{name}' cannot be {value!r}; it takes {kind.split(' |')[0]}") from None


def _none(name: str, kind: str) -> None:
    if "None" not in kind:
        raise ValueError(name)


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(value)
    return value


def _whole(value: Any) -> int:
    if isinstance(value, bool) or (not isinstance(value, int) and int(value) != float(value)):
        raise ValueError(value)
    return int(value)


def _check(settings: TrainSettings) -> None:
    counts = ("steps", "prompts_per_step", "num_iterations", "ema_every", "eval_prompts", "eval_samples", "save_every")
    for name in (*counts, "max_prompt_length"):
        if getattr(settings, name) < 1:
            raise CalibrantError(f"option '{name}' is {getattr(settings, name)}; it must be at least 1")
    for name in ("micro_batch", "max_completion_length", "train_rows"):
        if (value := getattr(settings, name)) is not None and value < 1:
            raise CalibrantError(f"option '{name}' is {value}; it must be at least 1")
    for name in ("temperature", "learning_rate", "max_grad_norm"):
        if not 0 < getattr(settings, name) < float("inf"):
            raise CalibrantError(f"option '{name}' is {getattr(settings, name)}; it must be a positive number")
    for name in ("ema_decay", "entailment_threshold"):
        if not 0 <= getattr(settings, name) <= 1:
            raise CalibrantError(f"option '{name}' is {getattr(settings, name)}; it must lie between 0 and 1")
    if not 0 <= settings.beta < float("inf"):
        raise CalibrantError(f"option 'beta' is {settings.beta}; it must be 0 or a positive number")
    if settings.rollouts < 2:
        raise CalibrantError(
            f"option 'rollouts' is {settings.rollouts}; '{settings.method}' compares the answers of a group, "
            "so give at least 2"
        )
    if not 0 <= settings.seed < 2**32:  # NumPy's, which transformers seeds too
        raise CalibrantError(f"option 'seed' is {settings.seed}; it must be a whole number from 0 to 2^32 - 1")
    for name, choices in CHOICES.items():
        if (value := getattr(settings, name)) not in choices:
            known = [choice for choice in choices if choice]
            raise CalibrantError(
                f"option '{name}' is '{value}'{nearest(value, known)}; it is one of {', '.join(known)}"
            )
