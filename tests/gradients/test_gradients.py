import copy
import math
from types import SimpleNamespace

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from calibrant.errors import CalibrantError
from calibrant.gradients import gradient_variance
from calibrant.gradients.model import passes, read_rows
from calibrant.signals import grams

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


@pytest.fixture(scope="module")
def models():
    return {name: build(name) for name in ("qwen2", "llama", "gpt2", "gemma3", "qwen3")}


@pytest.fixture
def qwen2(models):
    return copy.deepcopy(models["qwen2"]).double()


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


@pytest.mark.parametrize("name", ["qwen2", "llama", "gpt2", "gemma3", "qwen3"])
def test_hooks_are_the_loop(models, name):
    batch, clusters = make_batch(), torch.tensor([[0, 0, 1], [7, 3, 7]])
    for dtype, relative in ((torch.float32, 1e-6), (torch.float64, 1e-10)):
        if name == "gemma3" and dtype == torch.float64:
            continue  # its attention takes a softmax in float32 whatever the model's type
        model = copy.deepcopy(models[name]).to(dtype)
        options = dict(clusters=clusters, gram=True, temperature=0.7)
        hooks = gradient_variance(model, batch, make_advantages(), rows_per_chunk=6, **options)
        loop = gradient_variance(model, batch, make_advantages(), backend="loop", **options)
        assert hooks.fallback == loop.fallback == ()
        assert hooks.where.all() and loop.where.all()
        for tensor in TENSORS:
            assert_close(getattr(hooks, tensor), getattr(loop, tensor), relative)


@pytest.mark.parametrize("name", ["qwen2", "llama", "gpt2"])
@pytest.mark.parametrize("backend", ["hooks", "loop"])
def test_the_definition(models, name, backend):
    model, batch, advantages = copy.deepcopy(models[name]).double(), make_batch(), make_advantages()
    gradients = oracle_gradients(model, batch).unflatten(0, (2, 3))
    found = gradient_variance(model, batch, advantages, backend=backend)
    for n in range(2):
        ones = torch.ones(3, dtype=torch.float64)
        assert_close(found.variance[n], oracle_variance(gradients[n], advantages[n]), 1e-10)
        assert_close(found.score_variance[n], oracle_variance(gradients[n], ones), 1e-10)
        update = (advantages[n, :, None] * gradients[n]).mean(0)
        assert_close(found.mean_norm_squared[n], update.square().sum(), 1e-10)
    assert_close(found.squared_norms, gradients.square().sum(-1), 1e-10)
    assert found.gram is found.variance_intra is found.variance_inter is found.score_variance_intra is None


def test_options_change_the_score_as_they_say(qwen2):
    batch, advantages = make_batch(), make_advantages()
    for options in (dict(temperature=0.5), dict(mean=True), dict(temperature=2.0, mean=True)):
        gradients = oracle_gradients(qwen2, batch, **options)
        found = gradient_variance(
            qwen2,
            batch,
            advantages,
            gram=True,
            temperature=options.get("temperature", 1.0),
            reduction="mean" if options.get("mean") else "sum",
        )
        expected = torch.stack([g @ g.T for g in gradients.unflatten(0, (2, 3))])
        assert_close(found.gram, expected, 1e-10)


def test_split_between_clusters_is_the_law_of_total_variance(qwen2):
    batch, advantages = make_batch(1, 5), make_advantages(1, 5)
    gradients, clusters = oracle_gradients(qwen2, batch), torch.tensor([[4, 1, 4, 4, 1]])
    for backend in ("hooks", "loop"):
        found = gradient_variance(qwen2, batch, advantages, backend=backend, clusters=clusters)
        for weights, intra, inter, total in (
            (advantages[0], found.variance_intra, found.variance_inter, found.variance),
            (torch.ones(5), found.score_variance_intra, found.score_variance_inter, found.score_variance),
        ):
            rows = weights[:, None] * gradients
            parts = [rows[[0, 2, 3]], rows[[1, 4]]]
            within = sum(len(p) / 5 * (p - p.mean(0)).square().sum(-1).mean() for p in parts)
            between = sum(len(p) / 5 * (p.mean(0) - rows.mean(0)).square().sum() for p in parts)
            assert_close(intra[0], within, 1e-10)
            assert_close(inter[0], between, 1e-10)
            assert_close(intra + inter, total, 1e-12)
    one = gradient_variance(qwen2, batch, advantages, clusters=torch.zeros(1, 5, dtype=torch.long))
    apart = gradient_variance(qwen2, batch, advantages, clusters=torch.arange(5)[None])
    assert one.variance_inter.item() == pytest.approx(0, abs=1e-9 * one.variance.item())
    assert apart.variance_intra.item() == pytest.approx(0, abs=1e-9 * one.variance.item())
    assert one.gram is None


@pytest.mark.parametrize("backend", ["hooks", "loop"])
def test_groups_without_variance(models, backend):
    model = copy.deepcopy(models["qwen2"])
    single = gradient_variance(model, make_batch(2, 1), torch.ones(2, 1), backend=backend)
    assert single.variance.tolist() == single.score_variance.tolist() == [0.0, 0.0]
    assert (single.squared_norms > 0).all()
    batch = {key: rows[:1].repeat(4, 1) for key, rows in make_batch(1, 1).items()}
    same = gradient_variance(model, batch, torch.ones(1, 4), backend=backend)
    scale = same.squared_norms[0, 0].item()
    assert max(same.variance.item(), same.score_variance.item()) <= 1e-11 * scale
    assert same.mean_norm_squared.item() == pytest.approx(scale, rel=1e-6)
    none = gradient_variance(model, make_batch(), torch.zeros(2, 3), backend=backend)
    assert none.variance.tolist() == none.mean_norm_squared.tolist() == [0.0, 0.0]
    assert (none.score_variance > 0).all()


def test_a_small_variance_beside_long_gradients_keeps_its_digits(qwen2):
    # Rollouts that differ by little: the identity of V subtracts numbers that agree in most digits.
    batch = {key: rows[:1].repeat(3, 1) for key, rows in make_batch(1, 1).items()}
    advantages = torch.tensor([[1.0, 1.0 + 1e-5, 1.0 - 1e-5]], dtype=torch.float64)
    model = copy.deepcopy(qwen2).float()
    found = gradient_variance(model, batch, advantages)
    norm = gradient_variance(qwen2, batch, advantages).squared_norms[0, 0].item()
    assert found.variance.item() == pytest.approx(norm * 2e-10 / 3, rel=1e-4)


@pytest.mark.parametrize("name", ["qwen2", "llama", "gpt2"])
def test_padding_does_not_matter(models, name):
    model, batch, advantages = copy.deepcopy(models[name]).double(), make_batch(), make_advantages()
    pad = {key: functional.pad(rows, (3, 0) if "prompt" in key else (0, 4)) for key, rows in batch.items()}
    with_ids = pad | {"completion_ids": torch.where(pad["completion_mask"] > 0, pad["completion_ids"], 17)}
    expected = gradient_variance(model, batch, advantages, gram=True)
    for other in (pad, with_ids):
        for rows in (None, 1, 6, 100):
            found = gradient_variance(model, other, advantages, gram=True, rows_per_chunk=rows)
            assert_close(found.gram, expected.gram, 1e-11)


def test_rows_or_groups_of_rows(qwen2):
    batch, advantages = make_batch(), make_advantages()
    grouped = {key: rows.unflatten(0, (2, 3)) for key, rows in batch.items()}
    flat, split = gradient_variance(qwen2, batch, advantages), gradient_variance(qwen2, grouped, advantages)
    assert flat.variance.equal(split.variance)


def test_groups_stand_alone(qwen2):
    batch, advantages = make_batch(3, 2), make_advantages(3, 2)
    together = gradient_variance(qwen2, batch, advantages, rows_per_chunk=6)
    for n in range(3):
        alone = gradient_variance(
            qwen2, {key: rows[2 * n : 2 * n + 2] for key, rows in batch.items()}, advantages[n : n + 1]
        )
        assert_close(together.variance[n : n + 1], alone.variance, 1e-11)


def test_a_tied_weight_has_one_gradient(qwen2):
    """|E + H|^2, not |E|^2 + |H|^2: the cross term of embedding and head is no detail."""
    batch, advantages = make_batch(), make_advantages()
    found = gradient_variance(qwen2, batch, advantages, parameters=["lm_head.weight"]).squared_norms
    untied = copy.deepcopy(qwen2)
    untied.lm_head.weight = nn.Parameter(untied.lm_head.weight.detach().clone())
    embedding = gradient_variance(untied, batch, advantages, parameters=["*embed_tokens.weight"])
    head = gradient_variance(untied, batch, advantages, parameters=["lm_head.weight"])
    without = embedding.squared_norms + head.squared_norms
    for parameter in qwen2.parameters():
        parameter.requires_grad_(parameter is qwen2.lm_head.weight)
    exact = oracle_gradients(qwen2, batch).square().sum(-1).view(2, 3)
    assert_close(found, exact, 1e-10)
    assert ((without - exact).abs() / exact).max() > 0.01


def test_padding_token_of_an_embedding_gets_no_gradient_also_in_the_text(models):
    model = copy.deepcopy(models["llama"]).double()
    assert model.model.embed_tokens.padding_idx == 5
    batch = make_batch()
    batch["prompt_ids"][:, -2] = 5
    expected = oracle_gradients(model, batch).square().sum(-1).view(2, 3)
    assert_close(gradient_variance(model, batch, make_advantages()).squared_norms, expected, 1e-10)


@pytest.mark.parametrize("rollouts,tokens,width_in,width_out", [(3, 2, 40, 90), (4, 30, 5, 7), (1, 1, 1, 1)])
def test_routes_agree_and_each_is_taken(rollouts, tokens, width_in, width_out):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(rollouts, tokens, width_in, generator=generator, dtype=torch.float64)
    outputs = torch.randn(rollouts, tokens, width_out, generator=generator, dtype=torch.float64)
    matrices = torch.einsum("gto,gti->goi", outputs, inputs).flatten(1)
    for route in (grams.explicit_gram, grams.token_gram):
        assert_close(route(inputs, [outputs]), matrices @ matrices.T, 1e-13)
        assert_close(route(inputs, outputs.split(3, -1)), matrices @ matrices.T, 1e-13)
    assert_close(grams.matrix_gram(inputs, outputs.split(5, -1), width_out), matrices @ matrices.T, 1e-13)


@pytest.mark.parametrize("shared", [1, 3, 6])
def test_rollouts_that_begin_alike(shared):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(4, 6, 5, generator=generator, dtype=torch.float64)
    inputs[:, :shared] = inputs[:1, :shared]
    outputs = torch.randn(4, 6, 7, generator=generator, dtype=torch.float64)
    matrices = torch.einsum("gto,gti->goi", outputs, inputs).flatten(1)
    assert grams.common_start(inputs) == shared
    assert_close(grams.token_gram(inputs, outputs.split(3, -1), shared), matrices @ matrices.T, 1e-13)


def test_where_rollouts_part():
    inputs = torch.zeros(3, 5, 2)
    assert grams.common_start(inputs) == grams.common_start(inputs[:1]) == 5
    inputs[2, 3] = 1.0
    assert grams.common_start(inputs) == 3 and grams.common_start(inputs[:2]) == 5
    inputs[0, 1, 1] = torch.nan  # equals nothing, itself neither
    assert grams.common_start(inputs) == 1


def test_the_route_follows_the_cost():
    assert grams.cheapest((16, 8, 512), 150_000) == "tokens"
    assert grams.cheapest((16, 300, 512), 1408) == "explicit"
    assert grams.cheapest((16, 88, 512), 1408, shared=80) == "shared"
    assert grams.cheapest((16, 356, 512), 1408, shared=100) == "explicit"
    assert grams.cheapest((8, 1000, 100_000), 100_000) == "tokens"
    assert grams.cheapest((10, 1000, 100_000), 100_000) == "explicit"  # the square of the tokens is too much memory


def test_inner_products_carry_small_differences_of_long_rows():
    rows = 1 + 1e-4 * torch.randn(6, 5000, generator=torch.Generator().manual_seed(0))
    gram, exact = grams.row_gram(rows), (rows.double() - rows.double().mean(0)).square().sum(-1).mean()
    assert (gram.diagonal().mean() - gram.mean()).item() == pytest.approx(exact.item(), rel=1e-6)


def test_each_route_serves_every_layer(qwen2, monkeypatch):
    batch, advantages = make_batch(), make_advantages()
    expected = gradient_variance(qwen2, batch, advantages, gram=True).gram
    for route in grams.ROUTES:
        monkeypatch.setattr(grams, "cheapest", lambda *_, route=route: route)
        monkeypatch.setattr(grams, "NARROWEST", 1)
        monkeypatch.setattr(grams, "CHUNK", 300)  # several chunks a layer
        assert_close(gradient_variance(qwen2, batch, advantages, gram=True).gram, expected, 1e-11)


def test_choosing_parameters(qwen2):
    batch, advantages = make_batch(), make_advantages()
    names = [name for name, _ in qwen2.named_parameters()]
    layer = [name for name in names if ".layers.1." in name]
    parts = []
    for chosen in (["*.layers.0.*"], ["*.layers.1.*"], lambda name: ".layers." not in name):
        hooks = gradient_variance(qwen2, batch, advantages, parameters=chosen)
        loop = gradient_variance(qwen2, batch, advantages, parameters=chosen, backend="loop")
        assert_close(hooks.variance, loop.variance, 1e-10)
        parts.append(hooks.variance)
    assert_close(sum(parts), gradient_variance(qwen2, batch, advantages).variance, 1e-10)
    by_name = gradient_variance(qwen2, batch, advantages, parameters=layer)
    assert_close(by_name.variance, parts[1], 1e-12)
    for parameter in qwen2.parameters():
        parameter.requires_grad_(False)
    qwen2.model.layers[1].requires_grad_(True)
    assert_close(gradient_variance(qwen2, batch, advantages).variance, parts[1], 1e-12)
    assert_close(gradient_variance(qwen2, batch, advantages, parameters="all").variance, sum(parts), 1e-10)
    bias = gradient_variance(qwen2, batch, advantages, parameters=["*q_proj.bias"])
    assert_close(
        bias.variance,
        gradient_variance(qwen2, batch, advantages, parameters=["*q_proj.bias"], backend="loop").variance,
        1e-10,
    )


def test_adapters(models):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=3, target_modules=["q_proj", "down_proj"], lora_dropout=0.3, init_lora_weights=False)
    model = peft.get_peft_model(copy.deepcopy(models["qwen2"]), config).double().train()
    batch, advantages = make_batch(), make_advantages()
    hooks = gradient_variance(model, batch, advantages, gram=True)
    loop = gradient_variance(model, batch, advantages, gram=True, backend="loop")
    assert hooks.fallback == () and model.training
    assert_close(hooks.gram, loop.gram, 1e-10)
    assert_close(hooks.gram[0, 0, 0], oracle_gradients(model.eval(), batch)[0].square().sum(), 1e-10)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("backend", ["hooks", "loop"])
def test_the_model_is_left_as_it_was(models, training, backend):
    config = transformers.Qwen2Config(**SMALL, attention_dropout=0.5)
    model = transformers.Qwen2ForCausalLM(config).train(training)
    model.load_state_dict(models["qwen2"].state_dict())
    model.gradient_checkpointing_enable()
    model.model.layers[0].eval()
    model.model.norm.weight.requires_grad_(False)
    model.model.norm.weight.grad = torch.ones_like(model.model.norm.weight)
    hooks = [len(module._forward_hooks) for module in model.modules()]
    modes = [module.training for module in model.modules()]
    required = [parameter.requires_grad for parameter in model.parameters()]
    with torch.no_grad():
        first = gradient_variance(model, make_batch(), make_advantages(), backend=backend)
        assert not torch.is_grad_enabled()
    second = gradient_variance(model, make_batch(), make_advantages(), backend=backend)
    assert first.variance.equal(second.variance)  # no dropout
    assert modes == [module.training for module in model.modules()]
    assert required == [parameter.requires_grad for parameter in model.parameters()]
    assert (model.model.norm.weight.grad == 1).all()
    assert all(p.grad is None for p in model.parameters() if p is not model.model.norm.weight)
    assert hooks == [len(module._forward_hooks) for module in model.modules()]


@pytest.mark.parametrize("backend", ["hooks", "loop"])
def test_rollouts_without_an_advantage_do_not_count(qwen2, backend):
    batch, advantages = make_batch(1, 5), make_advantages(1, 5)
    rest = torch.tensor([0, 2, 3])
    kept = {key: rows[rest] for key, rows in batch.items()}
    clusters = torch.tensor([[1, 1, 1, 2, 2]])
    advantages[0, 1], advantages[0, 4] = NAN, INF
    found = gradient_variance(qwen2, batch, advantages, backend=backend, clusters=clusters, gram=True)
    options = dict(backend=backend, clusters=clusters[:, rest], gram=True)
    expected = gradient_variance(qwen2, kept, advantages[:, rest], **options)
    assert found.where.tolist() == [[True, False, True, True, False]]
    for name in set(TENSORS) - {"squared_norms", "gram"}:
        assert_close(getattr(found, name), getattr(expected, name), 1e-10)
    assert (found.squared_norms > 0).all()
    assert found.gram[0, 1].abs().max() == found.gram[0, :, 4].abs().max() == 0
    none = gradient_variance(qwen2, batch, torch.full((1, 5), NAN), backend=backend)
    assert none.variance.item() == none.score_variance.item() == 0 and not none.where.any()


@pytest.mark.parametrize("backend", ["hooks", "loop"])
def test_a_gradient_that_is_not_finite_takes_its_rollout_out_alone(qwen2, backend):
    batch, advantages = make_batch(1, 4), make_advantages(1, 4)
    batch["completion_ids"][batch["completion_ids"] == 60] = 59
    batch["completion_ids"][2, 0], batch["completion_mask"][2, :2] = 60, 1
    untied = copy.deepcopy(qwen2)
    untied.lm_head.weight = nn.Parameter(untied.lm_head.weight.detach().clone())
    with torch.no_grad():
        untied.model.embed_tokens.weight[60] = NAN
    found = gradient_variance(untied, batch, advantages, backend=backend)
    rest = torch.tensor([0, 1, 3])
    expected = gradient_variance(untied, {key: rows[rest] for key, rows in batch.items()}, advantages[:, rest])
    assert found.where.tolist() == [[True, True, False, True]]
    assert found.squared_norms[0, 2] == 0
    assert_close(found.variance, expected.variance, 1e-10)
    assert_close(found.score_variance, expected.score_variance, 1e-10)


def test_tokens_of_tools_are_read_but_not_scored(qwen2):
    batch, advantages = make_batch(1, 3), make_advantages(1, 3)
    batch["completion_mask"][:] = 1
    own = torch.tensor([[1, 1, 0, 0, 1]]).repeat(3, 1)
    ids = torch.cat([batch["prompt_ids"][:, -2:], batch["completion_ids"]], 1)
    short = batch | {"prompt_ids": batch["prompt_ids"][:, -2:], "prompt_mask": torch.ones(3, 2, dtype=torch.long)}
    found = gradient_variance(qwen2, short | {"tool_mask": own}, advantages, gram=True)
    logprobs = qwen2(input_ids=ids).logits[:, 1:-1].log_softmax(-1)
    for i in range(3):
        total = sum(logprobs[i, t, short["completion_ids"][i, t]] for t in (0, 1, 4))
        exact = sum(g.square().sum() for g in torch.autograd.grad(total, list(qwen2.parameters()), retain_graph=True))
        assert_close(found.squared_norms[0, i], exact, 1e-10)


def test_completions_without_tokens_have_no_gradient(qwen2):
    batch, advantages = make_batch(1, 3), make_advantages(1, 3)
    batch["completion_mask"][1] = 0
    for backend in ("hooks", "loop"):
        found = gradient_variance(qwen2, batch, advantages, backend=backend, reduction="mean")
        assert found.squared_norms[0, 1] == 0 and found.where.all()
        assert found.squared_norms[0, 0] > 0
        nothing = batch | {"completion_mask": torch.zeros_like(batch["completion_mask"])}
        assert gradient_variance(qwen2, nothing, advantages, backend=backend).variance.tolist() == [0.0]


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


TRAPS = {
    "twice": {"scale", "second.weight", "second.bias"},
    "function": {"scale", "second.weight"},
    "unseen": {"scale", "second.weight", "second.bias"},
    "flat": {"scale", "second.weight", "second.bias"},
    "result unused": {"scale", "second.weight", "second.bias"},
    "one token": {"scale", "second.weight", "second.bias"},
    "time first": {"scale", "second.weight", "second.bias"},
    "none": {"scale"},
}


@pytest.mark.parametrize("trap", TRAPS)
def test_what_has_no_rule_falls_back_and_is_named(trap):
    torch.manual_seed(0)
    model, batch, advantages = Odd(trap).double(), make_batch(), make_advantages()
    batch = {k: torch.ones_like(v) if k == "prompt_mask" else v for k, v in batch.items()}  # it takes no positions
    exact = gradient_variance(model, batch, advantages, backend="loop", gram=True)
    sums = gradient_variance(model, batch, advantages, rows_per_chunk=6)
    products = gradient_variance(model, batch, advantages, gram=True)
    assert TRAPS[trap] <= set(sums.fallback) == set(products.fallback)
    assert "first.weight" not in sums.fallback and "head.weight" not in sums.fallback
    assert_close(products.gram, exact.gram, 1e-10)
    for name in TOTALS:
        assert_close(getattr(sums, name), getattr(exact, name), 1e-10)


def test_a_weight_that_two_linear_layers_share_falls_back():
    torch.manual_seed(0)
    model, batch, advantages = Odd("none").double(), make_batch(), make_advantages()
    model.second.weight = model.first.weight
    found = gradient_variance(model, batch, advantages)
    assert set(found.fallback) == {"first.weight", "scale"}
    assert_close(found.variance, gradient_variance(model, batch, advantages, backend="loop").variance, 1e-10)


def test_a_row_on_its_own_has_no_padding():
    rows = read_rows(make_batch(), make_advantages())
    assert not rows.attended.all()
    assert all(rows.part(slice(i, i + 1)).attended.all() for i in range(6))


def test_as_many_groups_a_pass_as_rows_allow(qwen2):
    def parts(*sizes):
        return [(part.start, part.stop) for part in passes(*sizes)]

    assert parts(5, 4, None) == parts(5, 4, 1) == parts(5, 4, 7) == [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5)]
    assert parts(5, 4, 8) == parts(5, 4, 11) == [(0, 2), (2, 4), (4, 5)]
    seen = []
    qwen2.lm_head.register_forward_hook(lambda module, args, output: seen.append(output.shape[:2]))
    gradient_variance(qwen2, make_batch(), make_advantages(), rows_per_chunk=6)
    assert seen[-1] == (6, 6)  # no logits of the prompt but its last


def test_a_layer_that_is_called_again_in_long_texts_is_noticed():
    class Sometimes(Odd):
        def forward(self, input_ids, attention_mask):
            if input_ids.shape[1] > 3:
                self.first(self.embed.weight)
            return super().forward(input_ids, attention_mask)

    with pytest.raises(CalibrantError, match=r"a Linear is called twice .* use backend='loop'"):
        gradient_variance(Sometimes("none"), make_batch(), make_advantages())


class Mixing(nn.Module):
    """Has one weight of the width of its input, as a normalisation does, but is none."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8))

    def forward(self, x):
        return x * self.weight.flip(0) if x.shape[-1] == 8 else x


def test_what_only_looks_like_a_normalisation_falls_back():
    torch.manual_seed(0)
    model, batch, advantages = Odd("none").double(), make_batch(), make_advantages()
    model.norm = Mixing().double()
    found = gradient_variance(model, batch, advantages)
    assert "norm.weight" in found.fallback
    assert_close(found.variance, gradient_variance(model, batch, advantages, backend="loop").variance, 1e-10)


class Rotated(nn.Embedding):
    """Says that it scales its rows, but does something else."""

    embed_scale = 2.0

    def forward(self, ids):
        return 2 * super().forward(ids).roll(1, -1)


def test_an_embedding_that_only_says_that_it_scales_falls_back():
    torch.manual_seed(0)
    model, batch, advantages = Odd("none").double(), make_batch(), make_advantages()
    model.embed = Rotated(VOCABULARY, 8).double()
    assert "embed.weight" in gradient_variance(model, batch, advantages).fallback


@pytest.mark.parametrize("option", [dict(scale_grad_by_freq=True), dict(max_norm=1.0)])
def test_embeddings_that_change_their_gradient_fall_back(option):
    torch.manual_seed(0)
    model, batch, advantages = Odd("none").double(), make_batch(), make_advantages()
    model.embed = nn.Embedding(VOCABULARY, 8, **option).double()
    batch["completion_ids"][:, :3] = 7  # a token that comes often
    found = gradient_variance(model, batch, advantages)
    assert "embed.weight" in found.fallback
    assert_close(found.variance, gradient_variance(model, batch, advantages, backend="loop").variance, 1e-10)


def test_half_precision_is_finite_and_near(models):
    model, batch = copy.deepcopy(models["qwen2"]), make_batch()
    advantages = make_advantages(dtype=torch.float32)
    expected = gradient_variance(model, batch, advantages)
    found = gradient_variance(model.bfloat16(), batch, advantages)
    assert found.variance.dtype == torch.float32
    assert torch.allclose(found.variance, expected.variance, rtol=0.1)


@pytest.mark.parametrize("backend", ["hooks", "loop"])
def test_finite_whatever_the_advantages(models, backend):
    huge = torch.tensor([[1e30, -3e38, 0.0], [NAN, INF, 1e-40]])
    found = gradient_variance(models["qwen2"], make_batch(), huge, backend=backend, clusters=torch.zeros(2, 3).long())
    for name in set(TENSORS) - {"gram"}:
        assert torch.isfinite(getattr(found, name)).all() and (getattr(found, name) >= 0).all()


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(0, 10_000), st.sampled_from([None, 1, 3, 8]))
def test_any_group_is_its_definition(groups, rollouts, seed, rows_per_chunk):
    torch.manual_seed(seed)
    model = Odd("none").double()
    batch = make_batch(groups, rollouts, prompt=3, completion=4, seed=seed)
    batch["prompt_mask"] = torch.ones_like(batch["prompt_mask"])
    advantages = make_advantages(groups, rollouts, seed)
    found = gradient_variance(model, batch, advantages, rows_per_chunk=rows_per_chunk)
    parameters = list(model.parameters())
    for n in range(groups):
        rows = []
        for i in range(rollouts * n, rollouts * (n + 1)):
            ids = torch.cat([batch["prompt_ids"][i], batch["completion_ids"][i]])[None]
            logprobs = model(ids, None).logits[0, 2:-1].log_softmax(-1)
            total = sum(logprobs[t, batch["completion_ids"][i, t]] * batch["completion_mask"][i, t] for t in range(4))
            rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(total, parameters)]))
        assert_close(found.variance[n], oracle_variance(rows, advantages[n]), 1e-9)


BAD = [
    (dict(backend="ghost"), "backend has to be 'hooks' or 'loop', got 'ghost'"),
    (dict(reduction="max"), "reduction has to be 'sum' or 'mean', got 'max'"),
    (dict(temperature=0.0), "temperature has to be a positive finite number, got 0.0"),
    (dict(temperature=NAN), "temperature has to be a positive finite number, got nan"),
    (dict(rows_per_chunk=0), "rows_per_chunk has to be a positive integer or None, got 0"),
    (dict(parameters=["*q_prj*"]), r"no parameter is named '\*q_prj\*'"),
    (dict(parameters=lambda name: False), "no parameter is chosen"),
    (dict(clusters=torch.zeros(2, 4).long()), "G is 3 in advantages and 4 in clusters"),
]


@pytest.mark.parametrize("options,message", BAD)
def test_bad_options(models, options, message):
    with pytest.raises(CalibrantError, match=message):
        gradient_variance(models["qwen2"], make_batch(), make_advantages(), **options)


def test_bad_batches(models):
    model, batch, advantages = models["qwen2"], make_batch(), make_advantages()

    def refuse(message, **changes):
        with pytest.raises(CalibrantError, match=message):
            gradient_variance(model, {**batch, **changes}, advantages)

    with pytest.raises(CalibrantError, match="no completion_mask; it needs prompt_ids"):
        gradient_variance(model, {k: v for k, v in batch.items() if k != "completion_mask"}, advantages)
    with pytest.raises(CalibrantError, match=r"N\*G is 0 in advantages"):
        gradient_variance(model, {key: rows[:0] for key, rows in batch.items()}, torch.zeros(0, 3))
    with pytest.raises(CalibrantError, match=r"N\*G is 8 in advantages and 6 in prompt_ids"):
        gradient_variance(model, batch, make_advantages(2, 4))
    refuse("completion_mask has to be a tensor of integers", completion_mask=batch["completion_mask"].float())
    refuse("T is 5 in completion_ids and 4 in completion_mask", completion_mask=batch["completion_mask"][:, :4])
    empty = batch["prompt_mask"].clone()
    empty[3] = 0
    refuse("the prompt of row 3 has no token", prompt_mask=empty)
    frozen = copy.deepcopy(model).requires_grad_(False)
    with pytest.raises(CalibrantError, match="pass parameters='all' to include frozen ones"):
        gradient_variance(frozen, batch, advantages)
