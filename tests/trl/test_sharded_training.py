"""The trainer with weights that FSDP2 shards over processes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_sharded_weights_train_as_whole_ones(tmp_path):
    """Three steps of methods with a moving average and with the policy before training, resumed after two; bfloat16."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    script = Path(__file__).with_name("two_sharded_training.py")
    done = subprocess.run([*command, str(script), str(tmp_path)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    results = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"')]
    assert [result["method"] for result in results] == ["grpo_care", "capo"]
