"""Shared prompts and references of models that FSDP2 shards over two processes."""

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def test_two_processes_with_sharded_weights(tmp_path):
    """Log-probabilities, gradients, samples and references beside those of whole models: see the script."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [*command, str(HERE / "two_sharded.py"), str(tmp_path)],
        capture_output=True, text=True, timeout=300, env=os.environ | {"PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("all equal") == 2
