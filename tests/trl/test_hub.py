"""What `push_to_hub` uploads: the model and its card, no rollouts; checkpoints with what a resume needs."""

from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace

import pytest
import transformers.trainer
from huggingface_hub.utils import filter_repo_objects
from test_trainer import CalibratedGRPOTrainer, arguments, f1_reward, train

from calibrant.demo import policy_path
from calibrant.rollouts import read_rollouts
from calibrant.tasks.places import TASK


class Hub:
    """A stand-in for the hub's client that records the files of each upload by its commit message."""

    def __init__(self):
        self.uploads = {}

    def create_repo(self, repo_id, **_):
        return SimpleNamespace(repo_id=repo_id)

    def upload_folder(self, *, folder_path, commit_message, ignore_patterns=(), run_as_future=False, **_):
        folder = Path(folder_path)
        names = [str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()]
        self.uploads[commit_message] = sorted(filter_repo_objects(names, ignore_patterns=list(ignore_patterns)))
        done = Future()
        done.set_result(None)
        return done if run_as_future else None


MODEL = {"README.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
         "tokenizer_config.json", "training_args.bin"}  # fmt: skip
RESUME = {"optimizer.pt", "rng_state.pth", "scheduler.pt", "trainer_state.json"}


@pytest.fixture
def hub(monkeypatch):
    fake = Hub()
    monkeypatch.setattr(transformers.trainer, "hf_api", lambda: fake)
    return fake


def pushed(folder, method, strategy, **changes):
    push = {"push_to_hub": True, "hub_strategy": strategy, "hub_model_id": "someone/model"}
    return arguments(folder, method=method, save_strategy="steps", save_steps=2, **push, **changes)


def files(names):
    return {name for name in names if not name.endswith(".jinja")}


@pytest.mark.parametrize("strategy", ["every_save", "checkpoint"])
def test_neither_push_uploads_rollouts(questions, tmp_path, hub, strategy):
    args = pushed(tmp_path / "out", "grpo_care", strategy)
    trainer = train(str(policy_path()), questions, args, is_correct=TASK.correct)
    trainer.push_to_hub()
    assert len(read_rollouts(tmp_path / "out" / "_rollouts" / "step-000002.parquet")) == 8
    assert files(hub.uploads["Training in progress, step 2"]) == MODEL
    assert files(hub.uploads["End of training"]) == MODEL
    checkpoint = hub.uploads.get("Training in progress, step 2, checkpoint")
    if strategy == "every_save":
        assert checkpoint is None
    else:
        assert files(checkpoint) == MODEL - {"README.md"} | RESUME | {"slow_reference.safetensors"}


def test_a_checkpoint_is_pushed_with_the_state_of_its_method(questions, tmp_path, hub):
    args = pushed(tmp_path, "test_policy_inputs.counting", "checkpoint")
    trainer = train(str(policy_path()), questions, args)
    assert trainer._memory
    assert "method_state.safetensors" in hub.uploads["Training in progress, step 2, checkpoint"]
    assert "method_state.safetensors" not in hub.uploads["Training in progress, step 2"]


def test_rollouts_go_where_they_are_asked_to(questions, tmp_path):
    args = arguments(tmp_path / "out", method="grpo", max_steps=1, rollouts_dir=str(tmp_path / "elsewhere"))
    CalibratedGRPOTrainer(str(policy_path()), f1_reward, args, questions).train()
    assert [file.name for file in (tmp_path / "elsewhere").iterdir()] == ["step-000001.parquet"]
    assert not (tmp_path / "out" / "_rollouts").exists()
