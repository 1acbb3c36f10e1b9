"""The trainer, with the embedded policy, real embeddings and TRL's own trainer beside it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM, HfArgumentParser
from trl import GRPOConfig, GRPOTrainer

from calibrant.demo import policy_path
from calibrant.errors import CalibrantError
from calibrant.methods import METHODS
from calibrant.rollouts import read_rollouts
from calibrant.tasks.places import TASK
from calibrant.trl import CalibratedGRPOConfig, CalibratedGRPOTrainer


def f1_reward(completions, references, **_):
    return [TASK.reward(TASK.extract(c), r) for c, r in zip(completions, references, strict=True)]


def vowels(completions, **_):
    return [sum(c in "aeiou" for c in text) / 7 for text in completions]


def arguments(folder, kind=CalibratedGRPOConfig, **changes):
    common = dict(
        max_steps=2, num_generations=4, per_device_train_batch_size=8, max_completion_length=8, temperature=0.9,
        learning_rate=1e-3, beta=0.01, logging_steps=1, report_to="none", save_strategy="no", disable_tqdm=True,
        gradient_checkpointing=False, seed=3, use_cpu=True,
    )  # fmt: skip
    return kind(output_dir=str(folder), **(common | changes))


def train(policy, questions, args, rewards=f1_reward, kind=CalibratedGRPOTrainer, **keywords):
    trainer = kind(policy, rewards, args, questions, **keywords)
    trainer.train()
    return trainer


def some_slow(cases, often):
    """Cases of which the ordinary run takes those in `often`, or the first so many."""
    kept = list(cases)[:often] if isinstance(often, int) else often
    values = [(x, x if isinstance(x, tuple) else (x,)) for x in cases]
    return [pytest.param(*value, marks=() if x in kept else pytest.mark.slow) for x, value in values]


def losses(trainer):
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def same_bits(a, b):
    pairs = zip(a.model.state_dict().values(), b.model.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"gradient_accumulation_steps": 2, "num_iterations": 2, "per_device_train_batch_size": 4, "beta": 0.0},
        {"scale_rewards": "batch", "loss_type": "dr_grpo"},
    ],
)
def test_grpo_is_trl_to_the_bit(policy, questions, tmp_path, changes):
    theirs = train(policy, questions, arguments(tmp_path / "a", GRPOConfig, **changes), kind=GRPOTrainer)
    ours = train(policy, questions, arguments(tmp_path / "b", method="grpo", share_prefix=False, **changes))
    assert losses(ours) == losses(theirs)
    assert same_bits(ours, theirs)


def test_alpha_zero_is_grpo_to_the_bit_and_alpha_is_not(policy, questions, tmp_path):
    plain = train(policy, questions, arguments(tmp_path / "a", method="grpo"))
    zero = train(policy, questions, arguments(tmp_path / "b", method="gcpo_bot", alpha=0.0))
    weighted = train(policy, questions, arguments(tmp_path / "c", method="gcpo_bot"))
    assert same_bits(plain, zero)
    assert not same_bits(plain, weighted)


@pytest.mark.parametrize("method", list(METHODS))
def test_rollouts_hold_what_was_trained(policy, questions, tmp_path, method):
    trainer = train(policy, questions, arguments(tmp_path, method=method, max_steps=1), is_correct=TASK.correct)
    rows = read_rollouts(tmp_path / "_rollouts" / "step-000001.parquet")
    assert len(rows) == 8
    assert (rows.groupby("prompt_id").size() == 4).all()
    batch = trainer._buffered_inputs[0]
    trained, mask = batch["advantages"], batch["completion_mask"]
    if trained.ndim > 1:  # per token; files hold the mean
        trained = (trained * mask).sum(-1) / mask.sum(-1)
    np.testing.assert_allclose(sorted(trained), sorted(rows.advantage), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(sorted(trainer._logs["advantages"]), sorted(trained), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(rows.advantage, rows.advantage_base * rows.weight, rtol=1e-6, atol=3e-3)
    assert rows.ref_logprob.lt(0).all()
    logged = trainer.state.log_history[0]
    assert logged["group/weight/mean"] == pytest.approx(rows.weight.mean(), rel=1e-6)


def test_the_core_gives_the_trained_weights(policy, questions, tmp_path):
    train(policy, questions, arguments(tmp_path, method="rd_only", max_steps=1))
    rows = read_rollouts(tmp_path / "_rollouts" / "step-000001.parquet")
    rewards = torch.tensor(rows.reward.to_numpy().reshape(2, 4), dtype=torch.float32)
    expected = METHODS["rd_only"](rewards, ~rewards.isnan()).weights
    np.testing.assert_array_equal(rows.weight.astype("float32"), expected.flatten().numpy())


def test_a_group_without_spread_is_exactly_zero(policy, questions, tmp_path):
    def constant(completions, **_):
        return [0.3] * len(completions)

    args = arguments(tmp_path, method="gcpo_cd", num_generations=8, per_device_train_batch_size=8, max_steps=1)
    train(policy, questions, args, constant)
    rows = read_rollouts(tmp_path / "_rollouts" / "step-000001.parquet")
    assert (rows.advantage == 0).all()


def test_signals_read_the_task_reward_not_the_sum(policy, questions, tmp_path):
    args = arguments(tmp_path, method="rd_only", task_reward="f1_reward", max_steps=1)
    train(policy, questions, args, [vowels, f1_reward])
    rows = read_rollouts(tmp_path / "_rollouts" / "step-000001.parquet")
    expected = [TASK.reward(TASK.extract(c), list(r)) for c, r in zip(rows.completion, rows.references, strict=True)]
    np.testing.assert_allclose(rows.reward, expected, rtol=1e-6)


def test_unscorable_rollouts_are_left_out_and_counted(policy, questions, tmp_path):
    def partly(completions, references, **_):
        rewards = f1_reward(completions, references)
        return [None if i == 0 else float("nan") if i == 1 else r for i, r in enumerate(rewards)]

    trainer = train(policy, questions, arguments(tmp_path, max_steps=1), partly)
    rows = read_rollouts(tmp_path / "_rollouts" / "step-000001.parquet")
    assert rows.reward.isna().sum() == 2
    assert (rows.advantage[rows.reward.isna()] == 0).all()
    assert np.isfinite(rows.advantage).all()
    assert trainer.state.log_history[0]["batch/unscorable"] == 2


def test_rewards_out_of_range_are_counted_and_said(policy, questions, tmp_path):
    def large(completions, **_):
        return [5.0 if i % 2 else 0.0 for i in range(len(completions))]

    with pytest.warns(UserWarning, match=r"4 rewards of step 1 lie outside the reward range \[0.0, 2.0\]"):
        trainer = train(policy, questions, arguments(tmp_path, max_steps=1), large)
    assert trainer.state.log_history[0]["batch/reward_out_of_range"] == 4


class Silent(CalibratedGRPOTrainer):
    """A policy that ends every answer at once."""

    def _generate_single_turn(self, prompt_ids, *_args, **_keywords):
        return [[self.processing_class.eos_token_id] for _ in prompt_ids], None


def test_empty_completions_are_clusters_of_their_own(policy, questions, tmp_path):
    train(policy, questions, arguments(tmp_path, max_steps=1), kind=Silent)
    rows = read_rollouts(tmp_path / "_rollouts" / "step-000001.parquet")
    assert (rows.completion == "").all()
    assert rows.groupby("prompt_id").cluster.nunique().eq(4).all()
    assert rows.barycentric_transport.eq(0).all()
    assert (rows.advantage == 0).all()


def raising(completions, **_):
    raise KeyError("gold")


def short(completions, **_):
    return [1.0]


def words(completions, **_):
    return ["good"] * len(completions)


@pytest.mark.parametrize(
    ("reward", "said"),
    [
        (raising, "'raising' raised KeyError"),
        (short, "'short' returned 1 rewards for 8"),
        (words, "'words' returned 'good'"),
    ],
)
def test_a_failing_reward_says_so_in_one_sentence(policy, questions, tmp_path, reward, said):
    with pytest.raises(CalibrantError, match=said):
        train(policy, questions, arguments(tmp_path, method="grpo"), reward)


async def asynchronous(completions, **_):
    return [float(len(text)) for text in completions]


def test_an_asynchronous_reward_works(policy, questions, tmp_path):
    trainer = train(policy, questions, arguments(tmp_path, max_steps=1, reward_range=(0.0, 60.0)), asynchronous)
    assert trainer.state.log_history[0]["reward"] > 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"method": "gcpo_bott"}, "gcpo_bot"),
        ({"method_options": {"aplha": 1}}, "no hyper-parameter 'aplha'"),
        ({"task_reward": "nothing"}, "no reward function is named 'nothing'"),
        ({"embedding_model": "/nowhere"}, "cannot load the embedding model"),
    ],
)
def test_bad_configuration_is_refused(policy, questions, tmp_path, changes, said):
    with pytest.raises(CalibrantError, match=said):
        CalibratedGRPOTrainer(policy, f1_reward, arguments(tmp_path, **changes), questions)


def test_a_plain_trl_configuration_takes_the_defaults(policy, questions, tmp_path):
    trainer = train(policy, questions, arguments(tmp_path, GRPOConfig, max_steps=1))
    assert trainer.method is METHODS["gcpo_bot"]


def test_the_configuration_is_an_argument_parser_of_trl():
    (config,) = HfArgumentParser(CalibratedGRPOConfig).parse_args_into_dataclasses(
        ["--output_dir", "x", "--use_cpu", "--method", "rd_only", "--alpha", "0.3", "--reward_range", "0", "1"]
    )
    assert (config.method, config.alpha, tuple(config.reward_range)) == ("rd_only", 0.3, (0.0, 1.0))


def test_evaluation_with_one_generation_has_weight_one(policy, questions, tmp_path):
    args = arguments(tmp_path, max_steps=1, per_device_eval_batch_size=2, num_generations_eval=1)
    trainer = CalibratedGRPOTrainer(policy, f1_reward, args, questions, eval_dataset=questions.select(range(2)))
    metrics = trainer.evaluate()
    assert metrics["eval_group/weight/mean"] == 1.0


def test_conversational_prompts(policy, questions, tmp_path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(policy, padding_side="left")
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    chats = questions.map(lambda row: {"prompt": [{"role": "user", "content": row["prompt"]}]})

    def reward(completions, references, **_):
        return f1_reward([c[0]["content"] for c in completions], references)

    train(policy, chats, arguments(tmp_path, max_steps=1), reward, processing_class=tokenizer)
    rows = read_rollouts(tmp_path / "_rollouts" / "step-000001.parquet")
    assert not rows.completion.str.contains("role").any()


SCRIPT = Path(__file__).with_name("two_processes.py")


def launch(
    folder: Path, processes: int, per_device: int, passes: int = 1, method: str = "gcpo_bot", options: str = "{}"
) -> pd.DataFrame:
    """Runs the script with torchrun: `accelerate launch --cpu` starts one process however many are asked for."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    arguments = [str(folder), str(per_device), str(passes), method, options]
    ended = subprocess.run([*command, str(SCRIPT), *arguments], capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return read_rollouts(folder / "_rollouts" / "step-000001.parquet")


@pytest.mark.parametrize(("per_device", "passes"), some_slow([(6, 1), (4, 2)], often=1))
def test_two_processes_give_what_one_gives(tmp_path, per_device, passes):
    """G = 4: with 4 rows a process groups are whole, with 6 the middle one straddles the processes."""
    one = launch(tmp_path / "one", 1, 2 * per_device, passes)
    two = launch(tmp_path / "two", 2, per_device, passes)
    pd.testing.assert_frame_equal(one, two)
    assert one.weight.nunique() > 1
    logs = [json.loads((tmp_path / name / "trained-0.json").read_text()) for name in ("one", "two")]
    trained = logs[1] + json.loads((tmp_path / "two" / "trained-1.json").read_text())
    assert trained == logs[0]
    updated = [np.load(tmp_path / name / "parameters.npy") for name in ("one", "two")]
    policy = AutoModelForCausalLM.from_pretrained(policy_path()).float()
    before = torch.cat([x.detach().flatten() for x in policy.parameters()])
    moved = np.linalg.norm(updated[0] - before.numpy())
    assert np.linalg.norm(updated[1] - updated[0]) < 1e-5 * moved  # one process, one gradient: two, the same
