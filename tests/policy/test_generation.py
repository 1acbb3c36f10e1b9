"""Answers are samples of the tempered distribution, with the values that a second pass would give them."""

import math

import pytest
import torch
from small_models import build

from calibrant.errors import CalibrantError
from calibrant.policy import generation, plain_logps
from calibrant.policy.generation import (
    Sampling,
    encoded,
    end_tokens,
    generate,
    prompt_ids,
    rows_that_fit,
    sample_group,
)
from calibrant.policy.models import load_policy, load_tokenizer
from calibrant.policy.prompts import Tokens
from calibrant.policy.sampling import GREEDY, NOTHING, Sampler, uniform_numbers
from calibrant.policy.verify import record_of
from calibrant.tasks.places import TASK

PROMPTS = [row["prompt"] for row in TASK.load("test", 5, 0)]
SAMPLING = Sampling(samples=3, temperature=0.9, max_new_tokens=12, seed=1, greedy=True)


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("demo")


@pytest.fixture
def model():
    return load_policy("demo").double()


def ids(answers):
    return [[answer.ids for answer in (*group.greedy, *group.sampled)] for group in answers]


def test_answers_depend_on_neither_batch_size_nor_the_number_of_other_answers(model, tokenizer):
    whole = generate(model, tokenizer, PROMPTS, SAMPLING)
    assert [(len(group.greedy), len(group.sampled)) for group in whole] == [(1, 3)] * 5
    assert len({len(answer.ids) for group in whole for answer in group.sampled}) > 3
    for size in (1, 3):
        assert ids(generate(model, tokenizer, PROMPTS, SAMPLING, batch_size=size)) == ids(whole)
    more = generate(model, tokenizer, PROMPTS[:2], SAMPLING._replace(samples=5, greedy=False))
    assert [[a.ids for a in g.sampled[:3]] for g in more] == [[a.ids for a in g.sampled] for g in whole[:2]]
    assert ids(generate(model, tokenizer, PROMPTS, SAMPLING._replace(seed=2))) != ids(whole)


@pytest.mark.parametrize("way", ["shared", "plain"])
def test_values_are_those_of_a_second_pass_over_what_was_sampled(model, tokenizer, way):
    if way == "plain":
        record_of(model).failed["generation"] = "as a model without a cache"
    group = generate(model, tokenizer, PROMPTS[:1], SAMPLING)[0]
    prompt, mask = encoded(tokenizer, PROMPTS[:1], "cpu")
    for answer in group.sampled:
        completion = torch.tensor([answer.ids])
        batch = Tokens(prompt, mask, completion, torch.ones_like(completion))
        expected = plain_logps(model, *batch, temperature=0.9, entropies=True)
        assert answer.logprob == pytest.approx(expected.logps.sum().item(), abs=1e-4)
        assert answer.token_entropy == pytest.approx(expected.entropies.mean().item(), abs=1e-5)
    assert group.greedy[0][2:] == (None, None)


def test_the_greedy_answer_is_that_of_generate(model, tokenizer):
    prompt, mask = encoded(tokenizer, PROMPTS, "cpu")
    plain = model.generate(input_ids=prompt, attention_mask=mask, do_sample=False, max_new_tokens=12)
    texts = tokenizer.batch_decode(plain[:, prompt.shape[1] :], skip_special_tokens=True)
    assert [group.greedy[0].text for group in generate(model, tokenizer, PROMPTS, SAMPLING)] == texts


def test_one_pass_reads_each_prompt_once(model, tokenizer):
    generate(model, tokenizer, PROMPTS, SAMPLING)  # compares both ways once
    seen = []
    model.get_input_embeddings().register_forward_hook(lambda _m, tokens, _o: seen.append(tuple(tokens[0].shape)))
    group = generate(model, tokenizer, PROMPTS[:1], SAMPLING)[0]
    assert seen[0][0] == 1 and all(shape[1] == 1 for shape in seen[1:])
    assert len(seen) == 1 + max(len(answer.ids) for answer in (*group.sampled, *group.greedy))


def test_what_prompts_begin_with_is_read_once(model, tokenizer):
    """Questions about one text, beside another text; each answer is that of its prompt alone."""
    texts = [PROMPTS[0] + end for end in ("", " Which one?", " And why?")] + PROMPTS[1:2]
    numbered = [[(0, 0)], [(1, 0)], [(2, 0)], [(3, 0)]]
    alone = [_alone(model, tokenizer, text, row) for text, row in zip(texts, numbered, strict=True)]
    seen = []
    model.get_input_embeddings().register_forward_hook(lambda _m, tokens, _o: seen.append(tokens[0].shape))
    found = generate(model, tokenizer, texts, SAMPLING._replace(samples=1))
    lengths = list(map(len, prompt_ids(tokenizer, texts)))
    assert [group.sampled[0].ids for group in found] == alone
    read = next(shape for shape in seen if shape[0] == 1 and shape[1] > max(lengths))
    assert lengths[0] + lengths[3] - 2 - 40 <= read[1] < lengths[0] + lengths[3] + 20 < sum(lengths)


def _alone(model, tokenizer, text, rows):
    """The sampled answer of one prompt by `generate` of transformers."""
    prompt, mask = encoded(tokenizer, [text], "cpu")
    numbers = uniform_numbers(SAMPLING.seed, rows, SAMPLING.max_new_tokens)
    sampler = Sampler(numbers, SAMPLING.temperature, end_tokens(model.generation_config.eos_token_id))
    options = {"do_sample": False, "max_new_tokens": SAMPLING.max_new_tokens}
    output = model.generate(input_ids=prompt, attention_mask=mask, logits_processor=[sampler], **options)
    ids = output[0, prompt.shape[1] :]
    return ids[: int((sampler.logps[0] != 0).sum())].tolist()


def test_the_models_own_settings_of_generation_do_not_apply(model, tokenizer, recwarn):
    plain = ids(generate(model, tokenizer, PROMPTS, SAMPLING))
    own = dict(do_sample=True, temperature=0.1, top_k=1, top_p=0.5, repetition_penalty=5.0, num_return_sequences=1)
    model.generation_config.update(**own)
    assert ids(generate(model, tokenizer, PROMPTS, SAMPLING)) == plain
    assert not [str(w.message) for w in recwarn if "generation" in str(w.message)]


def test_a_group_has_the_states_that_predict_its_tokens(model, tokenizer):
    group = sample_group(model.eval(), tokenizer, PROMPTS[0], SAMPLING._replace(samples=4))
    expected = plain_logps(model, *group.tokens, temperature=0.9, entropies=True, hidden_states=True)
    where = group.tokens.completion_mask.bool()
    torch.testing.assert_close(group.states[where], expected.hidden_states[where].to(group.states))
    torch.testing.assert_close(group.logps, expected.logps.float() * where, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(group.entropies, expected.entropies.float() * where, atol=1e-5, rtol=1e-5)


def drawn(scores, numbers, temperature=1.0, ends=()):
    sampler = Sampler(torch.tensor(numbers).double()[:, None], temperature, ends)
    return sampler(torch.zeros(len(numbers), 2, dtype=torch.long), scores).argmax(-1).tolist(), sampler


def test_a_token_is_drawn_where_the_cumulative_probability_passes_the_number():
    logits = torch.tensor([0.0, 0.1, 0.2, 0.7, 0.0]).log()
    numbers = [0.0, 0.0999, 0.1001, 0.2999, 0.3001, math.nextafter(1.0, 0.0), math.nan]
    tokens, sampler = drawn(logits.repeat(7, 1), numbers)
    assert tokens == [1, 1, 2, 2, 3, 3, 3]
    assert sampler.logps[:6, 0].exp().tolist() == pytest.approx([0.1, 0.1, 0.2, 0.2, 0.7, 0.7])
    assert sampler.entropies[0, 0].item() == pytest.approx(0.801819, abs=1e-6)
    assert sampler.logps[6, 0] == sampler.entropies[6, 0] == 0
    squared = torch.tensor([0.0, 0.01, 0.04, 0.49, 0.0]) / 0.54
    assert drawn(logits[None].clone(), [0.05], 0.5)[1].logps.exp().item() == pytest.approx(squared[2].item())


def test_rows_that_have_ended_draw_nothing():
    sampler = Sampler(torch.full((2, 3), 0.5).double(), 1.0, ends=[1])
    scores = torch.tensor([[0.0, 9.0, 0.0], [0.0, 0.0, 9.0]])
    for step in range(3):
        after = sampler(torch.zeros(2, 4 + step, dtype=torch.long), scores.clone())
    assert after.isinf().sum(1).tolist() == [0, 1]
    assert (sampler.logps != 0).tolist() == [[True, False, False], [True, True, True]]


def test_tokens_of_some_rows_are_those_of_all():
    numbers = torch.tensor([[0.9], [0.1], [math.nan], [0.5]]).double().expand(4, 3)
    scores = torch.randn(4, 7, generator=torch.Generator().manual_seed(0))
    ids, whole, some = torch.zeros(4, 2, dtype=torch.long), Sampler(numbers, 1.0, [2]), Sampler(numbers, 1.0, [2])
    scores[1, 2], scores[2, 5] = 99.0, 99.0  # row 1 ends
    assert some.next_tokens(ids, torch.arange(4), scores).tolist() == whole(ids, scores.clone()).argmax(-1).tolist()
    longer, rows = torch.zeros(4, 3, dtype=torch.long), torch.tensor([3, 0, 2])
    expected = whole(longer, scores.clone()).argmax(-1)
    expected[1] = NOTHING
    assert torch.equal(some.next_tokens(longer, rows, scores[rows]), expected)
    assert torch.equal(some.logps, whole.logps) and torch.equal(some.entropies, whole.entropies)


def test_numbers_of_a_row_are_its_own():
    numbers = uniform_numbers(3, [(0, 0), (0, 1), (1, 0), (0, GREEDY)], 2000)
    assert numbers[3].isnan().all() and not numbers[:3].isnan().any()
    assert torch.corrcoef(numbers[:3]).sub(torch.eye(3)).abs().max() < 0.1
    assert numbers[:3].mean(1).sub(0.5).abs().max() < 0.03


def test_damaged_weights_are_one_sentence(tokenizer):
    model = load_policy("demo")
    model.get_input_embeddings().weight.data[:] = torch.nan
    with pytest.raises(CalibrantError, match="logits are not finite"):
        generate(model, tokenizer, PROMPTS, SAMPLING)


def test_the_batch_size_follows_from_memory(monkeypatch):
    models = [build(kind, dtype=torch.float32) for kind in ("llama", "gpt2", "gemma3")]
    assert [rows_that_fit(model, 1000) for model in models] == [256] * 3
    monkeypatch.setattr(generation, "_memory", lambda device: 2**25)
    few = [rows_that_fit(model, 1000) for model in models]
    assert all(1 <= rows < 256 for rows in few)
    assert [rows_that_fit(model, 4000) for model in models] < few
    assert rows_that_fit(models[0], 10**9) == 1
