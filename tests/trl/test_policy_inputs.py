"""What the trainer supplies to methods from models: against a plain forward pass, and across a resume."""

import copy
from contextlib import nullcontext
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
from accelerate import DistributedType
from test_trainer import arguments, f1_reward, same_bits, train
from transformers import AutoModelForCausalLM
from trl import GRPOConfig, GRPOTrainer

from calibrant.errors import CalibrantError
from calibrant.methods import METHODS, Outcome
from calibrant.policy.references import SlowReference
from calibrant.rollouts import read_rollouts
from calibrant.tasks.places import TASK
from calibrant.trl import CalibratedGRPOTrainer
from calibrant.trl.policy_inputs import PolicyInputs


def everything(
    rewards, mean_logprob, ref_mean_logprob, token_entropy, answer_confidence, ratio_variance, correct, where
):
    """Names all that models supply and keeps it."""
    scores = dict(mean_logprob=mean_logprob, ref_mean_logprob=ref_mean_logprob, entropy=token_entropy)
    scores |= dict(confidence=answer_confidence, ratio_variance=ratio_variance, right=correct)
    return Outcome(torch.ones_like(rewards), {k: x.nan_to_num(nan=-99.0) for k, x in scores.items()})


def rows_of(folder, step=1):
    return read_rollouts(folder / "_rollouts" / f"step-{step:06d}.parquet")


class Keeping(CalibratedGRPOTrainer):
    """Keeps the tokens of each batch."""

    batches: ClassVar[list] = []

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        self.batches.append({name: x.clone() for name, x in output.items() if name.endswith(("_ids", "_mask"))})
        return output


def plain_forward(policy, batch, temperature):
    """Summed log-probability, mean entropy and length of each completion: one row at a time, without padding."""
    model = AutoModelForCausalLM.from_pretrained(policy).float()
    for prompt, prompt_mask, own, mask in zip(*(batch[f"{k}"] for k in TOKENS), strict=True):
        prompt, own = prompt[prompt_mask.bool()], own[mask.bool()]
        with torch.no_grad():
            logits = model(torch.cat([prompt, own])[None]).logits[0, len(prompt) - 1 : -1] / temperature
        logp = logits.log_softmax(-1)
        entropy = torch.special.entr(logp.exp()).sum(-1).mean()
        yield logp[torch.arange(len(own)), own].sum().item(), entropy.item(), len(own)


TOKENS = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")


@pytest.mark.parametrize(("beta", "share"), [(0.0, True), (0.01, True), (0.0, False)])
def test_likelihoods_are_those_of_the_tempered_policies(policy, questions, tmp_path, beta, share):
    changes = dict(beta=beta, share_prefix=share, temperature=0.7, bf16=False, model_init_kwargs={"dtype": "float32"})
    args = arguments(tmp_path, method="test_policy_inputs.everything", **changes)
    Keeping.batches.clear()
    train(policy, questions, args, kind=Keeping, is_correct=TASK.correct, extract_answer=TASK.extract)
    first, second = rows_of(tmp_path), rows_of(tmp_path, 2)
    expected = np.array(list(plain_forward(policy, Keeping.batches[0], 0.7)))
    np.testing.assert_allclose(first.logprob, expected[:, 0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(first.ref_logprob, expected[:, 0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(first.token_entropy, expected[:, 1], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(first.mean_logprob, expected[:, 0] / expected[:, 2], rtol=1e-4, atol=1e-4)
    expected = np.array(list(plain_forward(policy, Keeping.batches[1], 0.7)))
    np.testing.assert_allclose(second.ref_logprob, expected[:, 0], rtol=1e-4, atol=1e-4)
    assert (second.logprob - second.ref_logprob).abs().max() > 1e-3  # the policy has moved, its reference has not
    assert (first.ratio_variance == 0).all()
    assert first.correct.tolist() == first.right.astype(bool).tolist()


def test_answer_confidence_reads_the_tokens_of_the_answer(policy, questions, tmp_path):
    changes = dict(max_steps=1, beta=0.01, num_generations=4)
    first_word = dict(extract_answer=lambda text: text.split()[0] if text.split() else "", is_correct=TASK.correct)
    args = arguments(tmp_path, method="test_policy_inputs.everything", **changes)
    train(policy, questions, args, **first_word)
    rows = rows_of(tmp_path)
    whole = np.exp(rows.logprob / rows.num_tokens)
    assert ((rows.confidence > 0) & (rows.confidence <= 1)).all()
    assert (abs(rows.confidence - whole) > 1e-3).any()
    args = arguments(tmp_path / "none", method="test_policy_inputs.everything", **changes)
    train(policy, questions, args, is_correct=TASK.correct, extract_answer=lambda text: "")
    assert (rows_of(tmp_path / "none").confidence == 0).all()


def test_nothing_is_computed_that_no_method_names(policy, questions, tmp_path, monkeypatch):
    monkeypatch.setattr(PolicyInputs, "_per_token", lambda *_: pytest.fail("nobody asked for log-probabilities"))
    trainer = train(policy, questions, arguments(tmp_path, method="gcpo_bot", max_steps=1))
    assert trainer._policy_inputs.initial is trainer._policy_inputs.slow is None
    assert rows_of(tmp_path).logprob.isna().all()


@pytest.mark.parametrize("method", ["seed_grpo", "edge_grpo"])
def test_what_was_read_while_sampling_takes_no_pass(policy, questions, tmp_path, monkeypatch, method):
    monkeypatch.setattr(PolicyInputs, "_per_token", lambda *_: pytest.fail("it is known from sampling"))
    train(policy, questions, arguments(tmp_path, method=method, max_steps=1, beta=0.0), is_correct=TASK.correct)
    assert rows_of(tmp_path).logprob.lt(0).all()


def test_reading_likelihoods_leaves_training_alone(policy, questions, tmp_path):
    plain = train(policy, questions, arguments(tmp_path / "a", method="dr_grpo", beta=0.0))
    args = arguments(tmp_path / "b", method="test_policy_inputs.watching", beta=0.0)
    assert same_bits(plain, train(policy, questions, args))


def watching(rewards, mean_logprob, ref_mean_logprob, token_entropy, answer_confidence, where):
    """Reads it all and does as Dr. GRPO does."""
    return METHODS["dr_grpo"](rewards, where)


def test_the_slow_reference_follows(policy):
    model = AutoModelForCausalLM.from_pretrained(policy).float()
    slow, by_hand = SlowReference(model, decay=0.9, every=2), copy.deepcopy(model.state_dict())
    for step in range(1, 7):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.01)
        slow.follow(model, step)
        if step % 2 == 0:
            by_hand = {name: 0.9 * x + 0.1 * model.state_dict()[name] for name, x in by_hand.items()}
    assert slow.average.keys() == dict(model.named_parameters()).keys()
    for name, value in slow.average.items():
        torch.testing.assert_close(value, by_hand[name])


def test_a_half_precision_policy_is_followed_in_float32(policy):
    model = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.bfloat16)
    before, slow = SlowReference(model), SlowReference(model, decay=0.995, every=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.01)
    for step in range(1, 5):
        slow.follow(model, step)
    assert all((slow.average[name] - value).abs().max() > 0 for name, value in before.average.items())


@pytest.mark.parametrize(("decay", "every"), [(1.5, 10), (-0.1, 10), (0.9, 0)])
def test_a_slow_reference_that_cannot_be(policy, decay, every):
    with pytest.raises(CalibrantError, match="ema_decay"):
        SlowReference(AutoModelForCausalLM.from_pretrained(policy), decay, every)


def counting(rewards, answer_confidence, where, state, *, decay=0.5):
    """Remembers the mean confidence and weighs by it."""
    level = decay * state.get("level", torch.tensor(1.0)) + (1 - decay) * answer_confidence.nanmean()
    return Outcome(torch.ones_like(rewards) * level.to(rewards), {}, state={"level": level})


def test_memory_and_the_slow_reference_survive_a_resume(policy, questions, tmp_path):
    def prepared(folder, **changes):
        options = dict(max_steps=4, save_strategy="steps", save_steps=2, ema_every=1, ema_decay=0.5, beta=0.0)
        args = arguments(folder, method="test_policy_inputs.counting", **(options | changes))
        return CalibratedGRPOTrainer(policy, f1_reward, args, questions)

    whole = prepared(tmp_path / "a")
    whole.train()
    halved = prepared(tmp_path / "b")
    halved.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))
    assert same_bits(whole, halved)
    assert torch.equal(whole._memory["level"], halved._memory["level"])
    followed, resumed = (trainer._policy_inputs.slow.average for trainer in (whole, halved))
    assert followed.keys() == resumed.keys() and all(torch.equal(x, resumed[name]) for name, x in followed.items())
    weights = [rows_of(tmp_path / folder, 3).weight.iloc[0] for folder in "ab"]
    assert weights[0] == weights[1] != 1.0


def test_a_checkpoint_of_another_method_is_refused(policy, questions, tmp_path):
    args = arguments(tmp_path / "a", method="grpo", max_steps=1, save_strategy="steps", save_steps=1)
    train(policy, questions, args)
    args = arguments(tmp_path / "b", method="grpo_care", max_steps=2, beta=0.0)
    trainer = CalibratedGRPOTrainer(policy, f1_reward, args, questions)
    with pytest.raises(CalibrantError, match="no EMA reference of this policy"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-1"))


def test_empo_trains_without_any_label(policy, questions, tmp_path):
    unlabelled = questions.remove_columns("references")
    trainer = train(policy, unlabelled, arguments(tmp_path, method="empo", max_steps=2), None)
    rows = rows_of(tmp_path)
    assert rows.reward.isna().all()
    assert rows.advantage.ne(0).any()
    less = train(policy, unlabelled, arguments(tmp_path / "b", method="empo", max_steps=1), None)
    assert not same_bits(trainer, less)


def test_a_method_that_reads_rewards_wants_some(policy, questions, tmp_path):
    with pytest.raises(ValueError, match="No reward source") as theirs:
        GRPOTrainer(policy, None, arguments(tmp_path, GRPOConfig), questions)
    with pytest.raises(ValueError, match="No reward source") as ours:
        CalibratedGRPOTrainer(policy, None, arguments(tmp_path, method="gcpo_cd"), questions)
    assert str(ours.value) == str(theirs.value)


def test_capo_wants_to_know_what_is_correct(policy, questions, tmp_path):
    args = arguments(tmp_path / "a", method="capo", max_steps=1, beta=0.0)
    with pytest.raises(CalibrantError, match="'correct'"):
        train(policy, questions, args)
    train(policy, questions, arguments(tmp_path / "b", method="capo", max_steps=1, beta=0.0), is_correct=TASK.correct)
    assert rows_of(tmp_path / "b").advantage.ne(0).any()


def test_the_ratio_is_alive_with_several_updates(policy, questions, tmp_path):
    """The second update of a batch is weighed by what the first one did to each rollout's ratio."""
    options = dict(max_steps=4, num_iterations=2, beta=0.0, learning_rate=1e-2, lr_scheduler_type="constant")
    trainer = train(policy, questions, arguments(tmp_path, method="r2vpo", **options))
    history = trainer.state.log_history
    variances = [row["batch/ratio_variance/mean"] for row in history if "batch/ratio_variance/mean" in row]
    weights = [row["batch/update_weight/mean"] for row in history if "batch/update_weight/mean" in row]
    assert max(variances[0], variances[2]) < 1e-6 < 1e-4 < min(variances[1], variances[3])  # but for rounding
    assert min(weights[0], weights[2]) > 1 - 1e-6 > 1 - 1e-4 > max(weights[1], weights[3])


def test_the_weight_of_a_moved_rollout_is_that_of_its_ratio(policy, questions, tmp_path):
    seen = []

    class Watching(CalibratedGRPOTrainer):
        def _reweighed(self, inputs, logps):
            before, after = inputs["advantages"], super()._reweighed(inputs, logps)
            ratio = (logps.detach() - inputs["old_per_token_logps"]).exp()
            for row, mask in enumerate(inputs["completion_mask"].bool()):
                expected = before[row] / (1 + 2.0 * ratio[row][mask].double().var(correction=0))
                seen.append((after[row].item(), expected.item()))
            return after

    options = dict(max_steps=2, num_iterations=2, beta=0.0, learning_rate=1e-2, method_options={"penalty": 2.0})
    train(policy, questions, arguments(tmp_path, method="r2vpo", **options), kind=Watching)
    assert len(seen) == 16
    assert all(got == pytest.approx(expected, rel=1e-4, abs=1e-6) for got, expected in seen)


def test_clusters_may_come_from_a_function_of_ones_own(policy, questions, tmp_path):
    def all_one(groups):
        return torch.zeros(len(groups), len(groups[0]), dtype=torch.long)

    train(policy, questions, arguments(tmp_path, method="grpo_se", max_steps=1), cluster=all_one)
    assert (rows_of(tmp_path).semantic_entropy == 0).all() and (rows_of(tmp_path).weight == 1).all()


def test_clusters_and_entailment_from_an_nli_model(policy, questions, tmp_path, monkeypatch):
    asked = []

    class Judge:
        def __init__(self, model, *, device=None, dtype=None):
            asked.append(model)

        def clusters(self, groups, rule, threshold):
            asked.append((rule, threshold, len(groups), len(groups[0])))
            return torch.zeros(len(groups), len(groups[0]), dtype=torch.long)

        def matrix(self, groups):
            size = len(groups[0])
            return torch.tensor([0.0, 0.0, 1.0]).expand(len(groups), size, size, 3)

    monkeypatch.setattr("calibrant.text.entail.EntailmentJudge", Judge)
    judged = dict(entailment_model="nli", cluster_rule="strict", entailment_threshold=0.5, max_steps=1)
    train(policy, questions, arguments(tmp_path / "a", method="gcpo_bot", **judged))
    assert asked == ["nli", ("strict", 0.5, 2, 4)]
    train(policy, questions, arguments(tmp_path / "b", method="grpo_kle", **judged))
    assert rows_of(tmp_path / "b").entropy_weight.eq(1).all()


@pytest.mark.parametrize("kind", ["FSDP1", "FSDP2", "ZeRO-3", "ZeRO-2"])
def test_what_sharded_weights_refuse(policy, kind, tmp_path):
    """By what the accelerator is going to do: the model, made before, does not show it."""
    state = SimpleNamespace(fsdp_plugin=SimpleNamespace(fsdp_version=int(kind[-1])))
    state.deepspeed_plugin = SimpleNamespace(zero_stage=int(kind[-1]))
    distributed = DistributedType.FSDP if kind.startswith("FSDP") else DistributedType.DEEPSPEED
    accelerator, args = SimpleNamespace(distributed_type=distributed, state=state), arguments(tmp_path, beta=0.0)
    model, sentence = AutoModelForCausalLM.from_pretrained(policy), "cannot be kept of parameters that ZeRO-3 or"
    gram = "'{}' is read from weights that FSDP or ZeRO-3 shards"
    sentences = {name: sentence for name in ("ref_mean_logprob", "answer_confidence") if kind != "FSDP2"}
    sentences |= {name: gram.format(name) for name in ("head_gram", "block_gram")}
    for name in ("ref_mean_logprob", "answer_confidence", "head_gram", "block_gram"):
        refused = kind != "ZeRO-2" and name in sentences
        with pytest.raises(CalibrantError, match=sentences[name]) if refused else nullcontext():
            PolicyInputs(model, args, accelerator, named=[name], tokenizer=None, per_token=None)
