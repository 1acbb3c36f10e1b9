"""What the trainers are built on: the parts of verl that they override and read, and TRL beside it."""

from importlib.metadata import version
from typing import Any

import pytest
from main_ppo import Places
from transformers import AutoModelForCausalLM
from verl.models.transformers.monkey_patch import apply_monkey_patch
from verl.trainer.ppo.v1 import PPOTrainer, get_trainer_cls
from verl.utils import import_utils

from calibrant.errors import CalibrantError
from calibrant.verl import TRAINERS
from calibrant.verl.broken import register_broken
from calibrant.verl.seams import check_verl, missing_parts


def test_verl_is_as_the_trainers_expect() -> None:
    assert missing_parts() == []


def test_the_trainers_are_registered_beside_verls() -> None:
    for name, mode in TRAINERS.items():
        assert issubclass(get_trainer_cls(name), get_trainer_cls(mode))


def with_more(self: PPOTrainer, batch: Any, metrics: Any, more: Any) -> None:
    """advantages returns response_mask rm_scores"""


@pytest.mark.parametrize(
    ("name", "replacement", "said"),
    [
        ("_compute_advantage", with_more, r"PPOTrainer._compute_advantage\(batch, metrics\), 'token_level_rewards' in"),
        ("_save_checkpoint", None, r"PPOTrainer._save_checkpoint\(\), 'default_local_dir' in"),
    ],
)
def test_another_verl_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, replacement: Any, said: str) -> None:
    monkeypatch.setattr(PPOTrainer, name, replacement)
    with pytest.raises(CalibrantError, match=f"verl 0.9.1 lacks or has changed .*{said}.* pip install"):
        check_verl()


def test_trl_beside_verl_does_not_stop_its_workers(places: Places) -> None:
    """verl imports a class of TRL's, where TRL is installed, which TRL 1.16 has not."""
    assert version("trl").startswith("1.16")
    with pytest.raises(ImportError):
        from trl import AutoModelForCausalLMWithValueHead as _  # noqa: F401
    assert not import_utils.is_trl_available()
    apply_monkey_patch(AutoModelForCausalLM.from_pretrained(places.policy), use_remove_padding=False)


def test_a_trainer_that_could_not_be_imported_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    import verl.trainer.ppo.v1 as trainers
    from verl.trainer.ppo.v1 import trainer_base

    monkeypatch.setattr(trainer_base, "TRAINER_REGISTRY", {})
    register_broken(trainers, ImportError("no module named 'tasks'"))
    with pytest.raises(CalibrantError, match=r"cannot be loaded \(ImportError: no module named 'tasks'\)"):
        get_trainer_cls("calibrant_sync")(config=None)
