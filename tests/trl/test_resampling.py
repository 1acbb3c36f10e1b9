"""Groups without reward spread are replaced by groups of other prompts."""

import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from test_trainer import arguments, train

from calibrant.errors import CalibrantError
from calibrant.trl import CalibratedGRPOTrainer
from calibrant.trl.policy_inputs import model_inputs

STEP = {"max_steps": 2, "num_generations": 4, "per_device_train_batch_size": 16, "resample_uninformative": 8}


def some_useful(questions, share=3):
    return questions.map(lambda row, i: {"useful": i % share == 0 if share else False}, with_indices=True)


def by_place(completions, useful, **_):
    """Rewards that differ within a group for useful prompts alone."""
    return [float(i % 2) if use else 1.0 for i, use in enumerate(useful)]


def metric(trainer, name):
    return [row[name] for row in trainer.state.log_history if name in row]


class Watching(CalibratedGRPOTrainer):
    """Compares what was put together with what a pass over the same rows gives."""

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        again, _, _ = self._get_per_token_logps_and_entropies(self.model, **model_inputs(output), batch_size=16)
        mask = output["completion_mask"].bool()
        torch.testing.assert_close(output["ref_per_token_logps"][mask], again.detach()[mask], atol=1e-4, rtol=1e-4)
        assert output["num_items_in_batch"] == mask.sum()
        assert (output["advantages"] != 0).all()
        return output


def test_all_groups_of_a_step_have_spread_and_keep_their_own_prompts_and_references(policy, questions, tmp_path):
    data = some_useful(questions)
    exact = {"beta": 0.1, "learning_rate": 1e-9, "model_init_kwargs": {"dtype": "float32"}, "bf16": False}
    trainer = Watching(policy, by_place, arguments(tmp_path, **STEP | exact), data)
    trainer.train()
    assert min(metric(trainer, "batch/resampled")) > 0
    assert metric(trainer, "group/uninformative") == [0.0, 0.0]
    useful = {row["prompt"] for row in data if row["useful"]}
    for file in (tmp_path / "_rollouts").glob("*.parquet"):
        rows = pd.read_parquet(file)
        assert set(rows["prompt"]) <= useful and (rows.groupby("prompt").size() % 4 == 0).all()
        references = {row["prompt"]: list(row["references"]) for row in data}
        assert all(list(row.references) == references[row.prompt] for row in rows.itertuples())


def test_the_same_seed_draws_the_same_prompts(policy, questions, tmp_path):
    frames = []
    for name in "ab":
        train(policy, some_useful(questions), arguments(tmp_path / name, **STEP), by_place)
        files = sorted((tmp_path / name / "_rollouts").glob("*.parquet"))
        frames.append(pd.concat([pd.read_parquet(file) for file in files]))
    pd.testing.assert_frame_equal(*frames)


def test_the_budget_ends_the_search(policy, questions, tmp_path):
    twice = arguments(tmp_path, **STEP | {"resample_uninformative": 2})
    trainer = train(policy, some_useful(questions, 0), twice, by_place)
    assert metric(trainer, "batch/resampled") == [8.0, 8.0]  # two times the four prompts of a step
    assert metric(trainer, "group/uninformative") == [1.0, 1.0]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"method": "egpo"}, "'egpo' learns from wrong answers in groups without reward spread"),
        ({"method": "empo"}, "'empo' rewards agreement in groups"),
        ({"scale_rewards": "batch"}, "scale_rewards 'group' or 'none'"),
        ({"resample_uninformative": -1}, "resample_uninformative"),
    ],
)
def test_where_it_cannot_or_should_not_be_is_one_sentence(policy, questions, tmp_path, changes, said):
    with pytest.raises(CalibrantError, match=said):
        CalibratedGRPOTrainer(policy, by_place, arguments(tmp_path, **STEP | changes), questions)


def test_a_stream_of_prompts_is_refused(policy, questions, tmp_path):
    with pytest.raises(CalibrantError, match="IterableDataset"):
        CalibratedGRPOTrainer(policy, by_place, arguments(tmp_path, **STEP), questions.to_iterable_dataset())


def test_a_small_data_set_starts_again(policy, questions, tmp_path):
    data = some_useful(questions.select(range(5)), 5)
    trainer = train(policy, data, arguments(tmp_path, **STEP), by_place)
    assert max(metric(trainer, "group/uninformative")) < 1


def test_two_processes_replace_groups_together(tmp_path):
    script = Path(__file__).with_name("two_resampling.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run([*command, str(script), str(tmp_path)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    steps = re.findall(r"resampled ([\d.]+) uninformative ([\d.]+)", done.stdout)
    assert len(steps) == 2
    assert all(float(drawn) > 0 and float(drawn) % 2 == 0 and float(rest) == 0 for drawn, rest in steps)
