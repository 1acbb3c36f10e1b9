"""The private parts of TRL that the trainer overrides or calls, looked at before the first step instead of in a run."""

import importlib
import inspect
from importlib.metadata import PackageNotFoundError, requires, version

from trl import GRPOTrainer

from calibrant.errors import CalibrantError

METHODS = {
    "_calculate_rewards": "inputs prompts completions completion_ids_list",
    "_compute_loss": "model inputs",
    "_generate_and_score_completions": "inputs",
    "_generate_single_turn": "...",
    "_get_per_token_logps_and_entropies": "model input_ids attention_mask logits_to_keep batch_size compute_entropy "
    "compute_aux_loss ...",
    "_load_from_checkpoint": "resume_from_checkpoint model",
    "_load_optimizer_and_scheduler": "checkpoint",
    "_prepare_inputs": "generation_batch",
    "_save_optimizer_and_scheduler": "output_dir",
    "create_model_card": "...",
    "training_step": "model inputs num_items_in_batch",
}
"""Method of `GRPOTrainer` -> its parameters in order; `...` stands for any further ones, which are passed on."""

ATTRIBUTES = (
    "_buffered_inputs", "_entropy_bonus_enabled", "_logs", "_metrics", "_pending_extra_logs", "_pending_metrics",
    "_step", "_tokenizer", "aux_loss_enabled", "beta", "loss_type", "num_generations", "num_generations_eval",
    "reward_func_names", "reward_funcs", "reward_weights", "temperature", "top_entropy_quantile", "use_vllm",
)  # fmt: skip
"""What `GRPOTrainer.__init__` sets."""

FUNCTIONS = {
    "trl.models.utils.disable_gradient_checkpointing": "model gradient_checkpointing_kwargs",
    "trl.trainer.utils.get_config_model_id": "config",
}


def check_trl() -> None:
    """Raises a CalibrantError if a part is missing or has other parameters; it names the versions that work."""
    if missing := missing_parts():
        try:
            works = next((line for line in requires("calibrant") or [] if line.startswith("trl")), "trl")
        except PackageNotFoundError:
            works = "trl"
        raise CalibrantError(
            f"TRL {version('trl')} lacks or has changed what CalibratedGRPOTrainer is built on: {', '.join(missing)}; "
            f"install a version that works: pip install '{works}'"
        )


def missing_parts() -> list[str]:
    """What the installed TRL lacks: methods and functions with their parameters, attributes by name."""
    looked_at = [(GRPOTrainer, "GRPOTrainer", name, "self ", wanted) for name, wanted in METHODS.items()]
    for path, wanted in FUNCTIONS.items():
        module, _, name = path.rpartition(".")
        looked_at.append((importlib.import_module(module), module, name, "", wanted))
    missing = [
        f"{place}.{name}({', '.join(wanted.split())})"
        for owner, place, name, first, wanted in looked_at
        if not _takes(getattr(owner, name, None), first + wanted)
    ]
    set_names = inspect.unwrap(GRPOTrainer.__init__).__code__.co_names
    return missing + [f"GRPOTrainer.{name}" for name in ATTRIBUTES if name not in set_names]


def _takes(function: object, wanted: str) -> bool:
    """Whether a function has these parameters, and no others unless `...` ends them."""
    if not callable(function):
        return False
    names, open_ended = wanted.removesuffix("...").split(), wanted.endswith("...")
    parameters = list(inspect.signature(function).parameters)
    return parameters[: len(names)] == names and (open_ended or len(parameters) == len(names))
