"""Runs of verl's `main_ppo` on CPUs, in processes of their own."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import psutil
from transformers import AutoModelForCausalLM, AutoTokenizer

from calibrant.demo import policy_path
from calibrant.tasks.places import TASK

TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
LIMIT = 540  # seconds that one run may take


class Places(NamedTuple):
    """Files of a small reading task."""

    train: Path
    test: Path
    policy: Path
    reward: Path


def make_places(folder: Path) -> Places:
    """Writes the files."""
    files = Places(folder / "train.parquet", folder / "test.parquet", folder / "policy", folder / "reward.py")
    for file, split, size in ((files.train, "train", 16), (files.test, "test", 4)):
        pd.DataFrame([_row(i, row) for i, row in enumerate(TASK.load(split, size, 0))]).to_parquet(file)
    tokenizer = AutoTokenizer.from_pretrained(policy_path())
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(files.policy)
    AutoModelForCausalLM.from_pretrained(policy_path()).save_pretrained(files.policy)
    files.reward.write_text(
        "from calibrant.tasks.places import TASK\n"
        "def compute_score(data_source, solution_str, ground_truth, extra_info=None, **_):\n"
        "    return TASK.reward(TASK.extract(solution_str), list(ground_truth))\n"
    )
    return files


def _row(index: int, row: dict) -> dict:
    return {
        "data_source": "places",
        "prompt": [{"role": "user", "content": row["prompt"]}],
        "reward_model": {"style": "rule", "ground_truth": row["references"]},
        "extra_info": {"index": index},
    }


def command(places: Places, folder: Path, *overrides: str) -> list[str]:
    """The command line of a run: 4 prompts of 8 rollouts per step, one FSDP2 worker, unless `overrides` say else."""
    model, actor = "actor_rollout_ref.model", "actor_rollout_ref.actor"
    rollout, ray = "actor_rollout_ref.rollout", "ray_kwargs.ray_init"
    return [
        *(sys.executable, "-m", "verl.trainer.main_ppo"),
        *(f"data.train_files={places.train}", f"data.val_files={places.test}", "data.train_batch_size=4"),
        *("data.max_prompt_length=256", "data.max_response_length=24", "data.dataloader_num_workers=0"),
        "data.return_raw_chat=True",
        *(f"{model}.path={places.policy}", f"{model}.use_remove_padding=False"),
        *(f"{model}.enable_gradient_checkpointing=False", f"+{model}.override_config.attn_implementation=sdpa"),
        *(f"{actor}.strategy=fsdp2", f"{actor}.use_torch_compile=False", f"{actor}.fsdp_config.strategy=fsdp2"),
        *(f"{actor}.fsdp_config.use_torch_compile=False", f"{actor}.fsdp_config.model_dtype=fp32"),
        f"+{actor}.fsdp_config.mixed_precision.param_dtype=fp32",
        *(f"{actor}.optim.lr=1e-5", f"{actor}.ppo_mini_batch_size=4", f"{actor}.ppo_micro_batch_size_per_gpu=16"),
        *(f"{rollout}.name=transformers_cpu", f"{rollout}.n=8", f"{rollout}.tensor_model_parallel_size=1"),
        *(f"{rollout}.n_gpus_per_node=1", f"{rollout}.log_prob_micro_batch_size_per_gpu=16"),
        *(f"{rollout}.calculate_log_probs=True", f"{rollout}.agent.num_workers=1"),
        *(f"{rollout}.free_cache_engine=False", f"{rollout}.load_format=auto"),
        *("reward.num_workers=1", f"reward.custom_reward_function.path={places.reward}"),
        *("algorithm.adv_estimator=grpo", "trainer.v1.trainer_mode=calibrant_sync"),
        *("trainer.device=cpu", "trainer.n_gpus_per_node=1", "trainer.nnodes=1", "trainer.logger=[console,file]"),
        *("trainer.val_before_train=False", "trainer.test_freq=-1", "trainer.save_freq=-1"),
        f"trainer.default_local_dir={folder / 'checkpoints'}",
        *(f"+{ray}.address=local", f"{ray}.num_cpus=32", f"+{ray}.num_gpus=2", f"+{ray}.include_dashboard=False"),
        *(f"+{ray}._node_ip_address=127.0.0.1", f"+{ray}.object_store_memory=500000000"),
        "transfer_queue.backend.SimpleStorage.num_data_storage_units=1",  # with few CPUs its 8 never get a place
        f"hydra.run.dir={folder / 'hydra'}",
        *overrides,
    ]


class Run(NamedTuple):
    """A run that has ended."""

    status: int
    output: str
    metrics: list[dict]  # per step


def run(
    places: Places,
    folder: Path,
    *overrides: str,
    until: Callable[[], bool] | None = None,
    environment: dict[str, str] | None = None,
) -> Run:
    """Runs `main_ppo` to its end, or kills it and all of its processes once `until` is true."""
    folder.mkdir(parents=True, exist_ok=True)
    log, metrics = folder / "log.txt", folder / "metrics.jsonl"
    variables = os.environ | {"VERL_FILE_LOGGER_PATH": str(metrics)} | (environment or {})
    with log.open("w") as output:
        process = subprocess.Popen(
            command(places, folder, *overrides), env=variables, stdout=output, stderr=subprocess.STDOUT, cwd=folder
        )
        waited = 0
        while process.poll() is None and not (until and until()):
            time.sleep(0.2)
            waited += 0.2
            if waited > LIMIT:
                break
        kill_with_children(process.pid)
        status = process.wait()
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    return Run(status, log.read_text(), [json.loads(line)["data"] for line in lines])


def kill_with_children(pid: int) -> None:
    """Kills a process and those that it started, Ray's too."""
    if psutil.pid_exists(pid):
        process = psutil.Process(pid)
        for one in [*process.children(recursive=True), process]:
            try:
                one.send_signal(signal.SIGKILL)
            except psutil.NoSuchProcess:
                continue
