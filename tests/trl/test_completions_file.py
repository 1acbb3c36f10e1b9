"""The completions that TRL itself writes, scored: its groups, its rewards, and its advantages once more."""

import pandas as pd
import pytest
from test_trainer import arguments, f1_reward, train, vowels
from trl import GRPOConfig, GRPOTrainer

from calibrant.score.command import score_file
from calibrant.score.settings import ScoreSettings


@pytest.mark.parametrize("rewards", [[f1_reward], [f1_reward, vowels]])
def test_the_files_of_trl_are_scored_with_its_own_advantages(policy, questions, tmp_path, rewards):
    args = arguments(tmp_path / "run", GRPOConfig, log_completions=True, num_completions_to_print=0)
    train(policy, questions, args, rewards, GRPOTrainer)
    assert len(list((tmp_path / "run" / "completions").iterdir())) == 2
    notes = []
    settings = ScoreSettings(file=str(tmp_path / "run"), out=str(tmp_path / "out.parquet"), embeddings=False)
    result = score_file(settings, notes.append)
    scored = pd.read_parquet(tmp_path / "out.parquet")
    assert result.summary.groups == 4 and len(scored) == 16
    assert any("sum of" in note for note in notes) is (len(rewards) == 2)
    if len(rewards) == 2:
        pd.testing.assert_series_equal(scored["reward"], scored["f1_reward"] + scored["vowels"], check_names=False)
    spread = scored.groupby(["step", "prompt_id"])["reward"].transform(lambda x: x.max() - x.min()) > 1e-6
    assert spread.any()
    pd.testing.assert_series_equal(
        scored["grpo/advantage"][spread], scored["advantage"][spread], check_names=False, rtol=1e-4
    )
