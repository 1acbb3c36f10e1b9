"""The options of `calibrant train`."""

from collections.abc import Mapping
from dataclasses import dataclass, fields

from calibrant import model_options, options
from calibrant.demo import embedded_policy
from calibrant.methods.recipes import recipe_values
from calibrant.methods.recommended import recommended_values
from calibrant.options import COUNT, NOT_NEGATIVE, POSITIVE, SEED_32, option, read

_DEMO: dict[str, float | bool | str] = dict(
    steps=60, learning_rate=1e-4, micro_batch=32, gradient_checkpointing=False, eval_samples=8, save_every=20
)

_SMOLLM2: dict[str, float | bool | str] = dict(
    steps=60, rollouts=8, learning_rate=2e-5, schedule="constant", bf16=True, gradient_checkpointing=False,
    eval_prompts=32, eval_samples=4, max_completion_length=32, save_every=20,
)  # fmt: skip
POLICY_DEFAULTS: dict[str, dict[str, float | bool | str]] = {
    "demo": _DEMO,
    "demo-arithmetic": _DEMO | {"steps": 80},
    "smollm2": _SMOLLM2,
}
"""Policy -> the defaults that were measured for it, in place of the general ones."""


@dataclass(frozen=True)
class TrainSettings(
    options.DataOptions,
    model_options.ModelOptions,
    model_options.AdapterOptions,
    options.SamplingOptions,
    model_options.VllmOptions,
    options.TrainerOptions,
):
    """The settings of a training run. Defaults are the paper's (GCPO, appendix E.3) where it states one."""

    recipe: str | None = options.recipe()
    model: str = options.model()
    seed: int = options.seed(SEED_32)  # NumPy's range, because transformers seeds NumPy too
    steps: int = option(2000, "number of optimisation steps (GCPO: 2000)", limit=COUNT)
    prompts_per_step: int = option(8, "number of prompts per optimisation step (GCPO: not stated)", limit=COUNT)
    rollouts: int = options.rollouts()
    learning_rate: float = option(5e-5, "initial learning rate (GCPO: 5e-5, of AdamW)", limit=POSITIVE)
    optim: str = option(
        "adamw_torch_fused", "optimizer, by its name in transformers, e.g. adamw_torch, adamw_8bit, sgd", metavar="NAME"
    )
    schedule: str = option(
        "linear",
        "learning rate scheduler",
        choices=("linear", "constant", "cosine", "constant_with_warmup", "inverse_sqrt", "polynomial"),
    )
    beta: float = option(
        0.002, "KL coefficient, with the initial policy as the reference (GCPO: 0.002)", limit=NOT_NEGATIVE
    )
    loss_type: str = option(
        "dapo", "loss formulation of TRL", choices=("dapo", "grpo", "bnpo", "dr_grpo", "cispo", "sapo", "vespo")
    )
    num_iterations: int = option(1, "number of optimisation passes per batch of rollouts", limit=COUNT)
    micro_batch: int | None = option(
        None, "maximum number of rollouts per forward pass and device", shown="all", limit=COUNT
    )
    max_grad_norm: float = option(1.0, "maximum gradient norm, for gradient clipping", limit=POSITIVE)
    gradient_checkpointing: bool = option(
        True, "whether to save memory by computing activations again in the backward pass"
    )
    bf16: bool = option(False, "whether to compute in bfloat16 mixed precision; the weights stay what --dtype says")
    merge: bool = option(False, "whether to save a trained adapter merged into its base, as a whole model")
    train_rows: int | None = option(None, "number of training prompts", shown="the task's", limit=COUNT)
    selection: str | None = option(
        None, "file of the prompts to train on, from calibrant analyze --write-selection", metavar="FILE"
    )
    evaluation: bool = option(True, "whether to evaluate on the unseen split before and after training")
    eval_prompts: int = option(200, "number of prompts of the evaluation; 0 for the whole split", limit=NOT_NEGATIVE)
    eval_samples: int = option(16, "number of answers sampled per prompt in the evaluation", limit=COUNT)
    save_every: int = option(50, "optimisation steps between checkpoints, of which the last two are kept", limit=COUNT)
    report_to: str = option(
        "none", "experiment tracker that TRL reports to", choices=("none", "tensorboard", "wandb", "trackio")
    )


def resolve_settings(given: Mapping[str, object], *, shared: bool = False) -> TrainSettings:
    """Given options, then the recipe, then what was measured for the policy, then what the method is recommended with.

    So a learning rate that was measured for a small policy stays, and a paper's is that of any other model. `shared`
    leaves out the settings of the method's paper that do not make it what it is, so that methods train alike.
    """
    recipe = None if given.get("recipe") is None else str(given["recipe"])
    settings = recipe_values(recipe, [f.name for f in fields(TrainSettings)], given) | dict(given)
    policy = settings.get("model", embedded_policy(str(settings.get("task", TrainSettings.task))))
    method = str(settings.get("method", TrainSettings.method))
    defaults = recommended(method, inherent=shared) | POLICY_DEFAULTS.get(str(policy), {})
    return read(TrainSettings, {"model": policy} | defaults | settings)


def recommended(method: str, *, inherent: bool = False) -> dict[str, object]:
    """The training options that a method is recommended with, e.g. no KL term for CAPO; see `recommended_values`.

    >>> recommended("dr_grpo")
    {'loss_type': 'dr_grpo'}
    """
    names = {f.name for f in fields(TrainSettings)}
    values = recommended_values(method, inherent=inherent)
    return {name: value for name, value in values.items() if name in names}


def policy_defaults() -> dict[str, str]:
    """Option -> its defaults with the embedded policies, for the help text.

    >>> policy_defaults()["steps"]
    '; 60 with demo; 80 with demo-arithmetic; 60 with smollm2'
    """
    words: dict[str, str] = {}
    for policy, defaults in POLICY_DEFAULTS.items():
        for name, value in defaults.items():
            words[name] = words.get(name, "") + f"; {value} with {policy}"
    return words
