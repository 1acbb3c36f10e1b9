"""The private parts of verl that the trainers override or read, looked at before training starts."""

import inspect
from importlib.metadata import version

from verl.trainer.ppo.v1 import PPOTrainer
from verl.workers.utils.padding import response_to_nested

from calibrant.errors import CalibrantError

METHODS = {
    "__init__": "config",
    "_compute_advantage": "batch metrics",
    "_save_checkpoint": "",
    "_load_checkpoint": "",
}
"""Method of `PPOTrainer` -> its parameters."""

FIELDS = {
    "_compute_advantage": ("advantages", "returns", "response_mask", "rm_scores", "token_level_rewards"),
    "_compute_old_log_prob": ("old_log_probs", "entropy"),
    "_compute_ref_log_prob": ("ref_log_prob",),
    "_save_checkpoint": ("default_local_dir", "latest_checkpointed_iteration.txt"),
    "_load_checkpoint": ("resume_mode", "resume_from_path"),
}
"""Method of `PPOTrainer` -> the fields of the queue and the options that it names."""

TESTED = "verl==0.9.1"


def check_verl() -> None:
    """Raises a CalibrantError if a part is missing or has changed; it names the version that works."""
    if missing := missing_parts():
        raise CalibrantError(
            f"verl {version('verl')} lacks or has changed what calibrant's trainers are built on: "
            f"{', '.join(missing)}; install a version that works: pip install '{TESTED}'"
        )


def missing_parts() -> list[str]:
    """What the installed verl lacks."""
    missing = []
    for name, wanted in METHODS.items():
        method = getattr(PPOTrainer, name, None)
        if method is None or list(inspect.signature(method).parameters) != ["self", *wanted.split()]:
            missing.append(f"PPOTrainer.{name}({', '.join(wanted.split())})")
    for name, fields in FIELDS.items():
        method = getattr(PPOTrainer, name, None)
        source = inspect.getsource(method) if method else ""
        missing += [f"'{field}' in PPOTrainer.{name}" for field in fields if field not in source]
    if list(inspect.signature(response_to_nested).parameters) != ["tensor", "response_mask"]:
        missing.append("response_to_nested(tensor, response_mask)")
    return missing
