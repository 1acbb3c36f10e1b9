"""Real runs of verl's `main_ppo` with calibrated trainers, on CPUs."""

from pathlib import Path

import pytest
from main_ppo import Places, run
from safetensors.torch import load_file


def test_two_steps_with_two_workers(places: Places, tmp_path: Path) -> None:
    """Rollouts, embeddings, weights and updates of two FSDP2 workers; TRL, which would stop them, is installed."""
    done = run(
        places,
        tmp_path,
        *("+calibrant.method=gcpo_bot", "+calibrant.task=places", "+calibrant.alpha=0.6"),
        *("trainer.n_gpus_per_node=2", "trainer.total_training_steps=2", "trainer.resume_mode=disable"),
    )
    assert done.status == 0, done.output[-4000:]
    assert len(done.metrics) == 2
    for step in done.metrics:
        assert 0.5 < step["calibrant/group/weight/min"] < step["calibrant/group/weight/max"] < 1.3
        assert step["calibrant/batch/unscorable"] == 0
        assert 0 < step["calibrant/group/barycentric_transport/max"] <= 0.5
        assert step["actor/grad_norm"] > 0


def test_rollouts_that_run_ahead(places: Places, tmp_path: Path) -> None:
    done = run(
        places,
        tmp_path,
        *("+calibrant.method=seed_grpo", "+calibrant.task=places", "trainer.total_training_steps=2"),
        *("trainer.v1.trainer_mode=calibrant_colocate_async", "trainer.resume_mode=disable"),
    )
    assert done.status == 0, done.output[-4000:]
    assert [0 < step["calibrant/group/semantic_entropy/max"] < 2.1 for step in done.metrics] == [True, True]  # ln 8


def test_kill_and_resume_with_a_method_that_has_state(places: Places, tmp_path: Path) -> None:
    """The history of HA-DW: one success rate per step, kept through kill -9."""
    options = ["+calibrant.method=ha_dw", "+calibrant.task=places", "trainer.save_freq=1"]
    checkpoints = tmp_path / "checkpoints"
    latest = checkpoints / "latest_checkpointed_iteration.txt"

    def second_is_saved() -> bool:
        return latest.exists() and latest.read_text() == "2"

    killed = run(places, tmp_path, *options, "trainer.total_training_steps=50", until=second_is_saved)
    assert killed.status == -9, killed.output[-4000:]
    before = load_file(checkpoints / "global_step_2" / "method_state.safetensors")["history"]
    assert len(before) == 2
    resumed = run(places, tmp_path, *options, "trainer.total_training_steps=3")
    assert resumed.status == 0, resumed.output[-4000:]
    assert [step["training/global_step"] for step in resumed.metrics] == [3]
    after = load_file(checkpoints / "global_step_3" / "method_state.safetensors")["history"]
    assert after.tolist()[:2] == before.tolist()
    assert len(after) == 3


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["+calibrant.method=r2vpo"], "method 'r2vpo' reads 'ratio_variance'"),
        (["+calibrant.method=gcpo_cd", "+calibrant.alpa=0.6"], "unknown option 'alpa' of +calibrant"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_ray_starts(
    places: Places, tmp_path: Path, overrides: list[str], said: str
) -> None:
    refused = run(places, tmp_path, *overrides)
    assert refused.status == 2, refused.output[-4000:]
    assert "ray init kwargs" not in refused.output
    assert "Traceback" not in refused.output
    assert f"calibrant: error: {said}" in refused.output


def test_a_plugin_that_cannot_be_imported_names_the_cause(places: Places, tmp_path: Path) -> None:
    (tmp_path / "half_installed.py").write_text("import sys\nsys.modules['calibrant.scorer'] = None\n")
    modules = {"VERL_USE_EXTERNAL_MODULES": "half_installed,cpu_verl"}
    broken = run(places, tmp_path, "+calibrant.method=rd_only", environment=modules)
    assert broken.status == 2, broken.output[-4000:]
    assert "Unknown trainer" not in broken.output
    assert "calibrant's trainers for verl cannot be loaded (ModuleNotFoundError: " in broken.output
    assert "calibrant.scorer" in broken.output
