import json

import pytest
import torch

from calibrant.demo import FOLDER, POLICIES, load_places, policy_path
from calibrant.evaluate.evaluation import evaluate
from calibrant.policy.generation import Sampling, generate
from calibrant.policy.models import load_policy, load_tokenizer
from calibrant.tasks import arithmetic
from calibrant.tasks.places import TASK
from calibrant.train.settings import resolve_settings


@pytest.fixture(scope="module")
def demo():
    return load_policy("demo"), load_tokenizer("demo")


def test_size(demo):
    model, _ = demo
    assert 2_000_000 <= model.num_parameters() <= 5_000_000
    assert model.config.architectures == ["Qwen2ForCausalLM"]
    assert sum(file.stat().st_size for file in FOLDER.rglob("*") if "__pycache__" not in str(file)) < 12_000_000


@pytest.mark.parametrize("name", POLICIES)
def test_weights_are_safetensors_and_no_code_comes_with_them(name):
    names = {file.name for file in policy_path(name).iterdir()}
    assert "model.safetensors" in names
    assert not {name for name in names if name.endswith((".py", ".bin", ".pt", ".pkl"))}
    assert "auto_map" not in json.loads((policy_path(name) / "config.json").read_text())


def test_the_tokenizer_gives_back_what_it_was_given(demo):
    _, tokenizer = demo
    for text in ("São Tomé, 67 million\nQuestion: \u00e9?", "Hobart Ouagadougou 1234567", " Lyon and Nice"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.padding_side == "left"
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    lengths = [len(tokenizer(row["prompt"])["input_ids"]) for row in TASK.load("test", 100, 0)]
    assert max(lengths) < 200


def test_attribution_is_shipped():
    assert "CC BY 4.0" in (FOLDER / "LICENSE-DATA").read_text()
    assert "GeoNames" in load_places()["source"]
    assert "GeoNames" in (policy_path() / "README.md").read_text()


def test_generation_is_repeatable_and_leaves_the_global_state_alone(demo):
    model, tokenizer = demo
    prompts = [row["prompt"] for row in TASK.load("test", 5, 0)]
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    sampling = Sampling(samples=3, temperature=0.9, max_new_tokens=12, seed=1)
    first = generate(model, tokenizer, prompts, sampling)
    assert torch.equal(before, torch.random.get_rng_state())
    assert first == generate(model, tokenizer, prompts, sampling)
    assert [(len(group.sampled), len(group.greedy)) for group in first] == [(3, 0)] * 5
    assert any(answer.text.strip() and answer.logprob < 0 for group in first for answer in group.sampled)


def test_the_start_leaves_room_to_learn(demo):
    """Sampled answers start at F1 0.30 to 0.55 on unseen countries, and good ones are among them."""
    model, tokenizer = demo
    results, rows = evaluate(model, tokenizer, TASK, TASK.load("test", 60, 0), samples=8, progress=False)
    assert 0.30 <= results["sampled"]["f1"]["mean"] <= 0.55
    best = {}
    for row in rows:
        best[row["prompt_id"]] = max(best.get(row["prompt_id"], 0.0), row["reward"] / 2)
    assert sum(best.values()) / len(best) > results["sampled"]["f1"]["mean"] + 0.25


def test_the_policy_of_arithmetic_knows_how_and_slips():
    model, tokenizer = load_policy("demo-arithmetic"), load_tokenizer("demo-arithmetic")
    assert 2_000_000 <= model.num_parameters() <= 5_000_000
    rows = arithmetic.TASK.load("test", 40, 0)
    assert max(len(tokenizer(row["prompt"])["input_ids"]) for row in rows) < 512 - 192
    results, _ = evaluate(model, tokenizer, arithmetic.TASK, rows, samples=4, progress=False)
    assert 0.3 <= results["sampled"]["accuracy"]["mean"] <= 0.65
    assert results["greedy"]["accuracy"]["mean"] >= 0.85


def test_a_task_with_a_policy_of_its_own_trains_that():
    settings = resolve_settings({"task": "arithmetic"})
    assert (settings.model, settings.steps) == ("demo-arithmetic", 80)
    assert settings.learning_rate == resolve_settings({}).learning_rate
    assert resolve_settings({"task": "gsm8k"}).model == "demo"
    assert resolve_settings({"task": "arithmetic", "model": "folder"}).steps == 2000
