"""`calibrant train --method X` on the demo, for every X, with the statistics that are its own."""

import math

import pandas as pd
import pytest
from test_trainer import some_slow

from calibrant.cli.main import main
from calibrant.files import read_json_lines
from calibrant.methods import METHODS
from calibrant.rollouts import read_rollouts

SMALL = [
    "--steps", "6", "--prompts-per-step", "2", "--rollouts", "4", "--max-completion-length", "8",
    "--no-evaluation", "--learning-rate", "1e-3",
]  # fmt: skip

OWN = {
    "grpo": (),
    "dr_grpo": (),
    "rloo": (),
    "rd_only": ("group/reward_dispersion/mean",),
    "gcpo_cd": ("group/cosine_dispersion/mean", "group/geometric_weight/mean"),
    "gcpo_bot": ("group/barycentric_transport/mean", "group/geometric_weight/mean"),
    "grpo_se": ("group/semantic_entropy/mean",),
    "grpo_kle": ("group/kernel_entropy/mean",),
    "seed_grpo": ("group/semantic_entropy/mean",),
    "empo": ("group/semantic_entropy/mean",),
    "grpo_care": ("rollout/consistency_bonus/mean", "group/accurate_confidence/mean"),
    "capo": ("group/correctness_auc/mean",),
    "egpo": ("group/nsr/mean",),
    "edge_grpo": ("rollout/entropy_ratio/mean",),
    "q_hawkeye": ("group/reward_variance/mean",),
    "eg_spo": ("rollout/token_entropy/mean",),
    "r2vpo": ("batch/ratio_variance/mean", "batch/update_weight/mean"),
    "mgpo": ("group/success_rate/mean", "group/learning_weight/mean"),
    "ha_dw": ("group/difficulty_anchor/mean",),
    "dgpo": ("group/difficulty_weight/mean",),
    "codapo": ("group/group_confidence/mean",),
    "clip_cov": ("rollout/clipped_share/mean", "token/weight/mean"),
    "kl_cov": ("rollout/covariance/mean", "batch/token_log_ratios/mean"),
    "gtpo": ("rollout/entropy_share/mean", "token/weight/mean"),
    "gcpo_grad": ("group/gradient_dispersion/mean", "group/geometric_weight/mean"),
    "gradient_snr": ("group/signal_share/mean", "group/head_variance/mean"),
}


@pytest.mark.parametrize("method", some_slow(METHODS, often=("gcpo_bot", "capo", "r2vpo", "gcpo_grad")))
def test_six_steps_with_its_own_statistics(tmp_path, method):
    assert main(["train", "--method", method, "--out", str(tmp_path / "run"), *SMALL]) == 0
    metrics = pd.DataFrame(read_json_lines(tmp_path / "run" / "metrics.jsonl"))
    assert len(metrics) == 6
    assert all(math.isfinite(x) for x in metrics.loss)
    fresh = slice(
        None, None, 2 if method in ("r2vpo", "kl_cov") else 1
    )  # two updates a batch: it is scored at the first
    for name in (*OWN[method], "group/weight/mean", "group/uninformative"):
        assert name in metrics, f"there are {sorted(metrics)}"
        assert metrics[name][fresh].notna().all()
    rows = pd.concat(read_rollouts(path) for path in sorted((tmp_path / "run" / "rollouts").glob("step-*")))
    assert rows.advantage.ne(0).any()
    assert (tmp_path / "run" / "report.html").is_file()
