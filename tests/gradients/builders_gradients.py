"""Builders and constants of the tests of gradients."""

import math
from types import SimpleNamespace

import torch
import transformers
from torch import nn
from torch.nn import functional

NAN, INF = math.nan, math.inf
VOCABULARY = 61
SMALL = dict(
    vocab_size=VOCABULARY,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
)
TOTALS = ["variance", "mean_norm_squared", "score_variance", "squared_norms"]
SPLITS = ["variance_intra", "variance_inter", "score_variance_intra", "score_variance_inter"]
TENSORS = [*TOTALS, *SPLITS, "gram"]


def build(name):
    torch.manual_seed(0)
    if name == "gpt2":
        sizes = dict(n_embd=16, n_layer=2, n_head=2, n_positions=64, bos_token_id=1, eos_token_id=1)
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=VOCABULARY, **sizes))
    elif name == "gemma3":
        model = transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**SMALL, head_dim=8))
    else:
        family = {"qwen2": "Qwen2", "qwen3": "Qwen3", "llama": "Llama"}[name]
        extra = {"pad_token_id": 5} if name == "llama" else {}
        config = getattr(transformers, f"{family}Config")(**SMALL, tie_word_embeddings=name != "llama", **extra)
        model = getattr(transformers, f"{family}ForCausalLM")(config)
    with torch.no_grad():
        for parameter in model.parameters():  # norms away from 1, biases away from 0
            parameter.add_(0.2 * torch.randn(parameter.shape))
    return model.eval()


def make_batch(groups=2, rollouts=3, prompt=7, completion=5, seed=0):
    """Ragged: prompts padded on the left, completions on the right; the last rollout of a group of three is empty."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, prompt + 1, (groups, 1), generator=generator)
    prompt_mask = (torch.arange(prompt) >= prompt - lengths).repeat_interleave(rollouts, 0)
    prompts = torch.randint(3, VOCABULARY, (groups, prompt), generator=generator).repeat_interleave(rollouts, 0)
    ends = torch.randint(1, completion + 1, (groups * rollouts, 1), generator=generator)
    mask = torch.arange(completion) < ends
    completions = torch.randint(3, VOCABULARY, (groups * rollouts, completion), generator=generator)
    return dict(
        prompt_ids=torch.where(prompt_mask, prompts, 0),
        prompt_mask=prompt_mask.long(),
        completion_ids=torch.where(mask, completions, 0),
        completion_mask=mask.long(),
    )


def make_advantages(groups=2, rollouts=3, seed=1, dtype=torch.float64):
    return torch.randn(groups, rollouts, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def oracle_gradients(model, batch, temperature=1.0, mean=False):
    """Row by row, without padding, one flat float64 gradient each, over all parameters that require one."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    rows = []
    for i in range(len(batch["prompt_ids"])):
        prompt = batch["prompt_ids"][i][batch["prompt_mask"][i].bool()]
        completion = batch["completion_ids"][i][batch["completion_mask"][i].bool()]
        total = torch.zeros((), dtype=torch.float64) + sum(p.sum() * 0 for p in parameters)
        if len(completion):
            logits = model(input_ids=torch.cat([prompt, completion])[None]).logits[0] / temperature
            steps = logits[len(prompt) - 1 : -1].log_softmax(-1)
            total = total + sum(steps[t, completion[t]] for t in range(len(completion)))
            total = total / len(completion) if mean else total
        grads = torch.autograd.grad(total, parameters)
        rows.append(torch.cat([g.flatten() for g in grads]).double())
    return torch.stack(rows)


def oracle_variance(gradients, advantages):
    """Equation 20 as it is written, for one group."""
    weighted = [a * g for a, g in zip(advantages, gradients, strict=True)]
    mean = sum(weighted) / len(weighted)
    return sum((w - mean).square().sum() for w in weighted) / len(weighted)


def assert_close(found, expected, relative):
    assert torch.allclose(found.double(), expected.double(), rtol=relative, atol=relative * expected.abs().max().item())


class Odd(nn.Module):
    """A language model of nothing but traps; `trap` names the one that is set."""

    def __init__(self, trap):
        super().__init__()
        self.trap = trap
        self.embed = nn.Embedding(VOCABULARY, 8)
        self.first, self.second, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, VOCABULARY)
        self.norm, self.scale = nn.LayerNorm(8), nn.Parameter(torch.randn(8))

    def forward(self, input_ids, attention_mask):
        x = self.first(self.embed(input_ids)).cumsum(1).tanh()
        y = self.norm(x)
        if self.trap == "twice":
            y = self.second(self.second(y).tanh())
        elif self.trap == "function":
            y = self.second(y) + functional.linear(y, self.second.weight)
        elif self.trap == "unseen":
            y = functional.linear(y, self.second.weight, self.second.bias)
        elif self.trap == "flat":
            y = self.second(y.flatten(0, 1)).view_as(y)
        elif self.trap == "result unused":
            self.second(y.detach())
            y = self.second(y)
        elif self.trap == "one token":
            y = y + self.second(y[:, 0])[:, None]
        elif self.trap == "time first":
            y = self.second(y.transpose(0, 1)).transpose(0, 1)
        else:
            y = self.second(y)
        return SimpleNamespace(logits=self.head(y * self.scale))
