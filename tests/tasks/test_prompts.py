"""Prompts and truncated contexts."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibrant.errors import CalibrantError
from calibrant.policy.models import load_tokenizer
from calibrant.tasks import prompts
from calibrant.tasks.prompts import prompt_for, prompt_tokens, truncate, truncate_all

# Prompts that fit


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("demo")


@pytest.fixture(scope="module")
def chat(tokenizer):
    chat = load_tokenizer("demo")
    chat.chat_template = (
        "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant] {% endif %}"
    )
    return chat


def long_row(words):
    context = " ".join(f"word{i}" for i in range(words))
    return {
        "prompt_id": "q",
        "prompt": f"Read.\n\n{context}\n\nQuestion: Why?\nAnswer:",
        "messages": [{"role": "user", "content": f"Read.\n\n{context}\n\nQuestion: Why?"}],
        "references": ["so"],
        "context": context,
    }


def test_the_form_of_a_prompt(tokenizer, chat):
    row = long_row(3)
    assert prompt_for(row, tokenizer) == row["prompt"]
    assert prompt_for(row, chat) == row["messages"]
    plain = {"prompt_id": "p", "prompt": "Why?", "references": []}
    assert prompt_for(plain, chat) == [{"role": "user", "content": "Why?"}]
    assert prompt_tokens(plain, tokenizer) == len(tokenizer("Why?")["input_ids"])
    assert prompt_tokens(plain, chat) == len(tokenizer("[user] Why?\n[assistant] ")["input_ids"])


@pytest.mark.parametrize("form", ["plain", "turns"])
@settings(max_examples=40, deadline=None)
@given(words=st.integers(0, 300), limit=st.integers(40, 500))
def test_a_text_is_cut_at_its_end_as_little_as_needed(form, words, limit, tokenizer, chat):
    own = chat if form == "turns" else tokenizer
    row = long_row(words)
    before = json.dumps(row)
    fitted, cut = truncate(row, own, limit)
    assert json.dumps(row) == before
    assert prompt_tokens(fitted, own) <= limit
    assert cut == (prompt_tokens(row, own) > limit)
    assert row["context"].startswith(fitted["context"])
    assert fitted["context"].split() == row["context"].split()[: len(fitted["context"].split())]
    assert fitted["prompt"] == f"Read.\n\n{fitted['context']}\n\nQuestion: Why?\nAnswer:"
    assert fitted["messages"][0]["content"] == f"Read.\n\n{fitted['context']}\n\nQuestion: Why?"
    if cut:  # two words more would not have fitted
        more = " ".join(row["context"].split()[: len(fitted["context"].split()) + 2])
        longer = {
            "prompt": f"Read.\n\n{more}\n\nQuestion: Why?\nAnswer:",
            "messages": [{"role": "user", "content": f"Read.\n\n{more}\n\nQuestion: Why?"}],
        }
        assert prompt_tokens(longer, own) > limit


def test_cut_texts_are_counted(tokenizer):
    rows, cut, left_out = truncate_all([long_row(5), long_row(200), long_row(300)], tokenizer, 100)
    assert (cut, left_out) == (2, [])
    assert rows[0] == long_row(5)
    assert 5 < len(rows[1]["context"].split()) == len(rows[2]["context"].split()) < 100


def test_questions_that_cannot_fit_are_left_out_and_named(tokenizer, caplog):
    rows = [{"prompt_id": f"p{n}", "prompt": "Why? " * n, "references": []} for n in (1, 200, 2, 300, 400, 500)]
    assert [row["prompt_id"] for row in prompts.truncate_for_policy(rows, tokenizer, 50, 10)] == ["p1", "p2"]
    assert "4 of 6 questions take more than 50 tokens" in caplog.text and "(p200, p300, p400, ...)" in caplog.text
    with pytest.raises(CalibrantError, match=r"1 of 1 questions.*\(p200\); raise --max-prompt-length"):
        prompts.truncate_for_policy(rows[1:2], tokenizer, 50, 10)


def test_a_model_without_a_chat_template_is_named_once(tokenizer, chat, caplog):
    turns = {"prompt_id": "p", "prompt": "Why?", "references": [], "messages": [{"role": "user", "content": "Why?"}]}
    prompts._warn_once.cache_clear()
    for _ in range(2):
        prompts.truncate_for_policy([turns], tokenizer, 50, 10)
    assert caplog.text.count("no chat template: its prompts are plain text") == 1
    prompts._warn_once.cache_clear()
    caplog.clear()
    prompts.truncate_for_policy([turns], chat, 100, 10)
    prompts.truncate_for_policy([{"prompt_id": "p", "prompt": "Why?", "references": []}], tokenizer, 50, 10)
    assert caplog.text == ""


def test_a_question_that_cannot_fit(tokenizer):
    with pytest.raises(CalibrantError, match=r"'q' takes \d+ tokens without its context, more than max_prompt_tok"):
        truncate(long_row(20), tokenizer, 5)
    with pytest.raises(CalibrantError, match="max_prompt_tokens = 2"):
        truncate({"prompt_id": "p", "prompt": "Why on earth is that so?", "references": []}, tokenizer, 2)


class Words:
    """A tokenizer that cannot say where its tokens begin."""

    is_fast = False
    chat_template = None

    def __call__(self, text):
        return {"input_ids": text.split()}


def test_a_tokenizer_without_offsets():
    fitted, cut = truncate(long_row(50), Words(), 20)
    assert cut
    assert len(fitted["prompt"].split()) == 20
    assert fitted["context"] == long_row(16)["context"]
