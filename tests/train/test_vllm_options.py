"""`calibrant train --use-vllm`: options reach TRL's engine, and what is missing is said before a model is loaded."""

import pytest
from refusals import refused
from vllm_stand_in import install

from calibrant.cli.main import main
from calibrant.demo import policy_path

SMALL = [
    "--steps", "1", "--prompts-per-step", "2", "--rollouts", "4", "--no-evaluation", "--max-completion-length", "8",
]  # fmt: skip


def as_if(monkeypatch, vllm, gpu):
    monkeypatch.setattr("calibrant.train.possible.is_vllm_available", lambda: vllm)
    monkeypatch.setattr("calibrant.train.possible.torch.accelerator.is_available", lambda: gpu)


def test_options_reach_the_engine(tmp_path, monkeypatch):
    engines = install(monkeypatch, str(policy_path()))
    monkeypatch.setattr("calibrant.train.possible._check_vllm", lambda settings: None)
    options = ["--vllm-gpu-memory-utilization", "0.5", "--vllm-max-model-length", "700"]
    assert main(["train", "--out", str(tmp_path / "run"), *SMALL, "--use-vllm", *options, "--temperature", "0.8"]) == 0
    assert (engines[0].options["gpu_memory_utilization"], engines[0].options["max_model_len"]) == (0.5, 700)
    assert (engines[0].asked[0]["temperature"], engines[0].asked[0]["max_tokens"]) == (0.8, 8)


def test_a_server_that_does_not_answer(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("calibrant.train.possible._check_vllm", lambda settings: None)
    for module in ("vllm_generation", "vllm_client"):
        monkeypatch.setattr(f"trl.generation.{module}.is_vllm_available", lambda: True)
    server = ["--vllm-mode", "server", "--vllm-server-port", "9", "--vllm-server-timeout", "0.01"]
    said = refused(capsys, "train", "--out", str(tmp_path / "run"), *SMALL, "--use-vllm", *server)
    assert "vLLM server can't be reached at http://0.0.0.0:9" in said and "give --vllm-server-host" in said


@pytest.mark.parametrize(
    ("options", "vllm", "gpu", "said"),
    [
        ([], False, True, "option 'use_vllm' needs vLLM, which is not installed; pip install 'trl[vllm]'"),
        ([], True, False, "option 'use_vllm' needs a GPU"),
        (["--loss-type", "vespo"], True, True, "give --vllm-importance-sampling-mode token_truncate"),
        (["--vllm-mode", "collocate"], True, True, "did you mean 'colocate'"),
    ],
)
def test_what_is_missing_is_said(capsys, monkeypatch, tmp_path, options, vllm, gpu, said):
    monkeypatch.chdir(tmp_path)
    as_if(monkeypatch, vllm, gpu)
    assert said in refused(capsys, "train", *SMALL, "--use-vllm", *options)
    assert not list(tmp_path.iterdir())


def test_its_options_do_nothing_without_it(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert "give --use-vllm too" in refused(capsys, "train", *SMALL, "--vllm-server-port", "9000")
