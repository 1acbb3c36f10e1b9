"""Every causal architecture that can be built tiny: shared prompts give what the plain path gives, or fall back."""

import copy
import warnings

import pytest
import torch
from architectures import tiny, types
from transformers import AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from calibrant.policy import logps_in_chunks
from calibrant.policy.prefill import shared_prefill
from calibrant.policy.verify import record_of
from calibrant.trl import CalibratedGRPOConfig, CalibratedGRPOTrainer

ORDINARY = (
    "llama",
    "qwen2",
    "qwen3",
    "gemma3_text",
    "mixtral",
    "mamba2",
    "jamba",
    "falcon_h1",
    "minimax",
    "qwen3_next",
)
SHARING = {"llama", "qwen2", "qwen3", "gemma3_text", "mixtral"}
LEAST = 40
REST = [pytest.param(kind, marks=pytest.mark.slow) for kind in types() if kind not in ORDINARY]


def built(kind):
    """The model, if transformers can build it so small and run it."""
    try:
        model = tiny(kind)
        ids, mask, _, _ = batch()
        sampled(model, ids, mask)
    except Exception as error:
        pytest.skip(f"transformers' own path: {type(error).__name__}: {str(error)[:100]}")
    return model


def batch():
    """Eight rows of two prompts, one padded, with ragged completions."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.tensor([0, 1, 0, 0, 1, 1, 0, 1])
    prompts = torch.randint(2, 1000, (2, 24), generator=generator)
    mask = (torch.arange(24) >= torch.tensor([[0], [9]])).long()
    completions = torch.randint(2, 1000, (8, 6), generator=generator)
    written = (torch.arange(6) < torch.tensor([6, 5, 1, 6, 3, 6, 2, 4])[:, None]).long()
    return (prompts * mask)[rows], mask[rows], completions * written, written


def sampled(model, ids, mask):
    torch.manual_seed(3)
    with torch.no_grad():
        return model.generate(input_ids=ids, attention_mask=mask, do_sample=True, max_new_tokens=6, pad_token_id=0)


def told(caught):
    return [str(x.message) for x in caught if "does not share prompts" in str(x.message)]


def reference(model, prompt_ids, prompt_mask, completion_ids, completion_mask):
    """As TRL computes log-probabilities, from whole logits."""
    ids = torch.cat([prompt_ids, completion_ids], dim=1)
    mask = torch.cat([prompt_mask, completion_mask], dim=1)
    logits = model(input_ids=ids, attention_mask=mask).logits[:, prompt_ids.shape[1] - 1 : -1]
    return logits.log_softmax(-1).gather(-1, completion_ids[..., None])[..., 0] * completion_mask


def gradient(model, logps):
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    grads = torch.autograd.grad(logps.sum(), weights, allow_unused=True, materialize_grads=True)
    return torch.cat([grad.flatten() for grad in grads])


@pytest.mark.parametrize("kind", [*ORDINARY, *REST])
def test_generation_and_log_probabilities(kind):
    model, (ids, mask, *written) = built(kind), batch()
    plain = sampled(model, ids, mask)
    with warnings.catch_warnings(record=True) as caught, shared_prefill(model):
        warnings.simplefilter("always")
        assert torch.equal(sampled(model, ids, mask), plain)
        found = logps_in_chunks(model, ids, mask, *written, rows_per_chunk=8).logps
        assert "generate" in vars(model)
    expected = reference(model, ids, mask, *written)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    memory = record_of(model)
    shares = any("gradients" in way for way in memory.verified) and "generation" not in memory.failed
    if kind != "rwkv":  # which has no gradient in evaluation mode
        theirs, ours = gradient(model, expected), gradient(model, found)
        assert (ours - theirs).norm() <= 1e-3 * theirs.norm()
    assert len(told(caught)) == (0 if shares else 1)
    if kind in ORDINARY:
        assert shares == (kind in SHARING)
    print(f"\n{kind}: {'shared' if shares else told(caught)[0]} {sorted(memory.verified)} {memory.failed}")


def step(model, kind, config, questions, folder):
    """One step with a reward that follows from the text; the advantages that were trained, and the loss."""
    tokenizer = AutoTokenizer.from_pretrained(POLICY, padding_side="left")
    own = {"method": "grpo", "rollouts_dir": ""} if config is CalibratedGRPOConfig else {}
    options = config(
        output_dir=str(folder), per_device_train_batch_size=8, num_generations=4, max_completion_length=5, max_steps=1,
        logging_steps=1, save_strategy="no", report_to="none", use_cpu=True, bf16=False, seed=0, disable_tqdm=True,
        gradient_checkpointing=False, **own,
    )  # fmt: skip
    trainer = kind(copy.deepcopy(model), reward, options, questions, processing_class=tokenizer)
    trainer.train()
    return list(trainer._logs["advantages"]), trainer.state.log_history[0]["loss"]


def reward(completions, **_):
    return [sum(map(ord, text)) % 7 / 7 for text in completions]


@pytest.mark.parametrize("kind", [*ORDINARY, *REST])
def test_one_step_of_training(kind, policy, questions, tmp_path):
    global POLICY
    POLICY, model = policy, built(kind)
    try:
        theirs = step(model, GRPOTrainer, GRPOConfig, questions, tmp_path / "a")
    except Exception as error:
        pytest.skip(f"TRL's own path: {type(error).__name__}: {str(error)[:100]}")
    ours = step(model, CalibratedGRPOTrainer, CalibratedGRPOConfig, questions, tmp_path / "b")
    assert any(theirs[0])
    for found, expected in zip(ours, theirs, strict=True):
        assert found == pytest.approx(expected, abs=1e-4)


@pytest.mark.slow
def test_enough_can_be_built():
    count = 0
    for kind in types():
        try:
            tiny(kind)
        except Exception:
            continue
        count += 1
    assert count >= LEAST
