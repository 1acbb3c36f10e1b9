"""Offsets of tokens in their completion."""

import itertools
import string

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from calibrant.demo import policy_path
from calibrant.text import extract
from calibrant.text.extract import (
    answer_span,
    completion_offsets,
    token_offsets,
    token_span,
)

CORPUS = [
    "The quick brown fox jumps over the lazy dog, twice: 12 and 3.5.",
    "Zürich, Łódź, São Paulo and Århus are cities; 東京 too.",
    "naïve café 😀 👩‍👩‍👧 ∑ x² → \\boxed{\\frac{1}{2}}",
    string.printable,
]
TEXTS = [
    *CORPUS,
    "Paris",
    " Paris  and\n\nLyon ",
    "Straße in 東京 😀😀, naïve 👩‍👩‍👧!",
    "\\boxed{∑}",
    "",
    "né",
]


@pytest.fixture(scope="module")
def byte_level():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, special_tokens=["<s>", "</s>"])
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>")


@pytest.fixture(scope="module")
def metaspace():
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=200, special_tokens=["<s>", "</s>", "<unk>"], unk_token="<unk>")
    tokenizer.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.fixture(scope="module")
def demo():
    return AutoTokenizer.from_pretrained(policy_path())


def byte_spans(tokenizer, ids):
    """Where each token's bytes stand, in the characters that they belong to."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    printable = [b for b in range(256) if chr(b) in letters]
    others = [b for b in range(256) if b not in printable]
    byte_of = {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}
    pieces = [[] if i in tokenizer.all_special_ids else tokenizer.convert_ids_to_tokens(i) for i in ids]
    raw = bytes(byte_of[letter] for piece in pieces for letter in piece)
    owner = [i for i, char in enumerate(raw.decode()) for _ in char.encode()]
    spans, place = [], 0
    for piece in pieces:
        own = owner[place : place + len(piece)]
        spans.append((own[0], own[-1] + 1) if own else None)
        place += len(piece)
    return raw.decode(), spans


@pytest.mark.parametrize("text", TEXTS)
def test_offsets_of_byte_level_tokens_are_those_of_their_bytes(byte_level, text):
    ids = byte_level(text, add_special_tokens=False)["input_ids"]
    ids = [byte_level.bos_token_id, *ids[: len(ids) // 2], byte_level.eos_token_id, *ids[len(ids) // 2 :]]
    ids += [byte_level.eos_token_id]
    decoded, expected = byte_spans(byte_level, ids)
    assert byte_level.decode(ids, skip_special_tokens=True) == decoded == text
    offsets = completion_offsets(byte_level, ids)
    assert [o if o[0] < o[1] else None for o in offsets] == expected


def test_some_of_these_tokens_split_characters(byte_level):
    ids = byte_level("東京", add_special_tokens=False)["input_ids"]
    assert len(ids) > 2
    assert {(0, 1), (1, 2)} == set(completion_offsets(byte_level, ids))


@pytest.mark.parametrize("cut", range(1, 8))
def test_a_completion_cut_inside_a_character(byte_level, cut):
    ids = byte_level("a 😀 東", add_special_tokens=False)["input_ids"][:cut]
    text = byte_level.decode(ids)
    offsets = completion_offsets(byte_level, ids)
    assert len(offsets) == len(ids)
    assert {i for start, end in offsets for i in range(start, end)} == set(range(len(text)))


@pytest.mark.parametrize("text", TEXTS)
def test_offsets_of_metaspace_tokens_are_those_of_their_pieces(metaspace, text):
    ids = metaspace(text, add_special_tokens=False)["input_ids"]
    ids = [metaspace.bos_token_id, *ids, metaspace.eos_token_id, metaspace.eos_token_id]
    decoded = metaspace.decode(ids, skip_special_tokens=True)
    special = metaspace.all_special_ids
    pieces = ["" if i in special else metaspace.convert_ids_to_tokens(i).replace("▁", " ") for i in ids]
    first = next((k for k, piece in enumerate(pieces) if piece), 0)
    pieces[first] = pieces[first].removeprefix(" ")
    assert "".join(pieces) == decoded
    assert completion_offsets(metaspace, ids) == token_offsets(pieces)


@pytest.mark.parametrize("text", ["Paris, Lyon and Nice.", "Zürich 東京", " a\nb "])
def test_offsets_of_the_demo_policy(demo, text):
    ids = [*demo(text, add_special_tokens=False)["input_ids"], demo.eos_token_id]
    offsets = completion_offsets(demo, ids)
    assert demo.decode(ids, skip_special_tokens=True) == text
    assert offsets[0][0] == 0
    assert offsets[-1] == (len(text), len(text))
    assert all(a[0] <= b[0] <= a[1] for a, b in itertools.pairwise(offsets))
    for (start, end), i in zip(offsets, ids, strict=True):
        piece = demo.decode([i], skip_special_tokens=True)
        assert "�" in piece or text[start:end] == piece


def test_the_tokens_of_an_answer(byte_level):
    text = "no: café, so café"
    ids = byte_level(text, add_special_tokens=False)["input_ids"]
    mask = token_span(completion_offsets(byte_level, ids), answer_span(text, "café"))
    kept = [i for i, inside in zip(ids, mask, strict=True) if inside]
    assert byte_level.decode(kept).strip() == "café"
    assert not any(mask[: len(ids) // 2])


def test_a_special_token_inside_a_character_holds_nothing_of_it(byte_level):
    halves = byte_level("é", add_special_tokens=False)["input_ids"]
    assert len(halves) == 2
    ids = [halves[0], byte_level.eos_token_id, halves[1]]
    assert completion_offsets(byte_level, ids) == [(0, 1), (0, 0), (0, 1)]


def test_windows_and_prefixes_agree(byte_level, metaspace):
    for tokenizer in (byte_level, metaspace):
        for text in TEXTS[:-2]:
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]

            def decode(part, tokenizer=tokenizer):
                return tokenizer.decode(list(part), skip_special_tokens=True)

            given = decode, ids, decode(ids), [bool(decode([i])) for i in ids]
            assert extract._by_windows(*given) == extract._by_prefixes(*given)


class Wordy:
    """Decodes with a full stop wherever a text ends: no token adds what it adds alone."""

    words = ("one", " two", " three", "")

    def decode(self, ids, skip_special_tokens):
        assert skip_special_tokens
        return "".join(self.words[i] for i in ids) + "." * bool(ids)


def test_a_decoder_that_looks_ahead_gets_offsets_too():
    assert completion_offsets(Wordy(), [0, 1, 2]) == [(0, 4), (3, 8), (7, 14)]


def test_offsets_take_linear_time(metaspace, byte_level):
    calls = []

    class Counting:
        def __init__(self, tokenizer):
            self.tokenizer = tokenizer

        def decode(self, ids, skip_special_tokens):
            calls.append(len(ids))
            return self.tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)

    for tokenizer in (metaspace, byte_level):
        ids = tokenizer("naïve 東京 " * 100, add_special_tokens=False)["input_ids"]
        calls.clear()
        completion_offsets(Counting(tokenizer), ids)
        assert sum(calls) < 25 * len(ids)
