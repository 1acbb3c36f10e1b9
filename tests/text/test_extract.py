import itertools
import string

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from calibrant.demo import policy_path
from calibrant.text import extract
from calibrant.text.extract import (
    after_marker,
    answer_span,
    boxed,
    completion_offsets,
    final_answer,
    first_line,
    last_number,
    stated_answer,
    tagged,
    token_offsets,
    token_span,
)

SIZE = 200_000


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{5}", "5"),
        (r"first \boxed{1}, then \boxed{2}.", "2"),
        (r"\boxed{\frac{14}{3}}", r"\frac{14}{3}"),
        (r"\fbox{ 7 }", "7"),
        (r"\boxed {7}", "7"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{a \\ b}", r"a \\ b"),
        (r"\boxed{\boxed{3}}", "3"),
        (r"\boxed{x + \fbox{y}}", "y"),
        (r"\boxed{1} and \boxed{2", "1"),  # the second is cut off
        (r"\boxed{1}} }", "1"),
        (r"{\boxed{1}", "1"),
        (r"\boxed{}", ""),
        (r"\boxed{1} \boxed{}", ""),  # the last one is empty
        (r"\\boxed{9}", "9"),  # a backslash escaped twice
        (r"\boxed 5", ""),
        (r"\unboxed{5}", ""),
        ("boxed{5}", ""),
        ("", ""),
    ],
)
def test_boxed(text, answer):
    assert boxed(text) == answer


def nested(children):
    return st.lists(children, max_size=4).map(lambda parts: "".join(f"{{{part}}}" for part in parts))


balanced = st.recursive(st.text("ab1 +", max_size=5), nested, max_leaves=20)


@given(st.text("ab{}\\ "), balanced)
def test_whatever_stands_before_the_last_box_is_its_balanced_content(before, content):
    assert boxed(f"{before} \\boxed{{{content}}} and so on }} \\}}") == content.strip()


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>1</think><answer>2</answer>", "2"),
        ("<answer>1</answer><answer> 2\n</answer> 3", "2"),
        ("<answer>1</answer><answer>2", "2"),
        ("<Answer>2</ANSWER>", "2"),
        ("<answer></answer>", ""),
        ("1</answer>", ""),
        ("<answers>2</answers>", ""),
        ("", ""),
    ],
)
def test_tagged(text, answer):
    assert tagged(text) == answer


def test_another_tag():
    assert tagged("<final.>4</final.><answer>5</answer>", "final.") == "4"


@pytest.mark.parametrize(
    ("text", "answer"),
    [("9*2=<<9*2=18>>18\n#### 18", "18"), ("#### 1\n#### 2,000 \nnext", "2,000"), ("18", ""), ("18 ####", "")],
)
def test_after_marker(text, answer):
    assert after_marker(text) == answer


def test_another_marker_is_no_pattern():
    assert after_marker("a.b => c", "=>") == "c"
    assert after_marker("abc", ".") == ""


@pytest.mark.parametrize(("text", "answer"), [("\n \n Paris \nLyon", "Paris"), ("Paris", "Paris"), (" \n ", "")])
def test_first_line(text, answer):
    assert first_line(text) == answer


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("12 apples and 3.", "3"),
        ("it costs $1,234,567.89!", "1,234,567.89"),
        ("1,2,3", "3"),
        ("1,0000", "0000"),  # no thousands
        ("x = -4", "-4"),
        ("x = −4", "−4"),
        ("5-3", "3"),
        ("(x)-3", "3"),
        ("about .5", ".5"),
        ("3.14.", "3.14"),
        ("6.02e23 of them", "6.02e23"),
        ("with probability 3/4.", "3/4"),
        (r"so -\frac{3}{4}.", r"-\frac{3}{4}"),
        (r"so \dfrac{-3}{4}.", r"\dfrac{-3}{4}"),
        ("none", ""),
        ("٣", ""),  # other scripts' digits are not read as a number anywhere
    ],
)
def test_last_number(text, number):
    assert last_number(text) == number


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The answer is 5.", "5"),
        ("The final answer is $x^2$. I hope it is correct.", "x^2"),
        ("The answer is $1$. No, the answer is $2$ or so", "2"),
        ("the answer is:\n\n$$\n\\frac{1}{2}\n$$\nDone", r"\frac{1}{2}"),
        (r"Answer: \(x + 1\) units", "x + 1"),
        (r"The answer is \[7\]", "7"),
        ("**Final Answer:** 3.5 km", "3.5 km"),
        ("The answer is **12**.", "12"),
        ("ANSWER: B\nbecause", "B"),
        ("The answer is $5 a day", "$5 a day"),
        ("The answers isolate nothing", ""),
        ("The answer", ""),
        ("The answer is", ""),
        ("", ""),
    ],
)
def test_stated_answer(text, answer):
    assert stated_answer(text) == answer


def test_the_order_of_final_answer():
    assert final_answer(r"The answer is 3. \boxed{4} 5") == "4"
    assert final_answer(r"The answer is 3. \boxed{4") == "3"
    assert final_answer("The result: 3, of 5") == "5"
    assert final_answer("no idea") == ""


def spans_by_eye(text, answer):
    """Every span whose text, with its white space squeezed, is the answer."""
    wanted = " ".join(answer.split())
    spans = [(i, j) for j in range(len(text) + 1) for i in range(j)]
    spans = [span for span in spans if text[slice(*span)] == text[slice(*span)].strip()]
    return [span for span in spans if " ".join(text[slice(*span)].split()) == wanted]


def is_word(text, span):
    ends = [(span[0] - 1, span[0]), (span[1] - 1, span[1])]
    return not any(i >= 0 and j < len(text) and text[i].isalnum() and text[j].isalnum() for i, j in ends)


@given(st.text("ab \n-", max_size=12), st.text("ab \n-", max_size=5))
@example("aaa", "aa")
@example("a b a b a", "a b a")
@settings(max_examples=300)
def test_the_answer_stands_where_the_eye_finds_it_last(text, answer):
    found = spans_by_eye(text, answer)
    words = [span for span in found if is_word(text, span)]
    assert answer_span(text, answer) == (max(words or found) if found else None)


def test_an_answer_is_a_whole_word_where_it_can_be():
    assert answer_span("so 5, not 15", "5") == (3, 4)
    assert answer_span("15", "5") == (1, 2)
    assert answer_span("New\n  York", "New York") == (0, 10)
    assert answer_span("x", "") is None
    assert answer_span("x", " ") is None
    assert answer_span("", "x") is None


def test_a_long_answer_is_found_as_it_is():
    long = "a" * (extract.SHORT + 1)
    assert answer_span(f"{long} b{long}", long) == (len(long) + 2, 2 * len(long) + 2)


def test_spans_and_tokens():
    assert token_span([], (0, 1)) == []
    assert token_span([(0, 3), (3, 3), (3, 5)], (3, 4)) == [False, False, True]
    assert token_span([(0, 3), (3, 5)], (2, 2)) == [False, False]
    assert token_offsets([]) == []


HOSTILE = {
    "opening braces": "{" * SIZE,
    "closing braces": "}" * SIZE,
    "boxes": r"\boxed{" * (SIZE // 7),
    "balanced braces": "{" * (SIZE // 2) + "}" * (SIZE // 2),
    "backslashes": "\\" * SIZE,
    "boxes without braces": r"\boxed " * (SIZE // 7),
    "spaces": r"\boxed" + " " * SIZE,
    "spaces everywhere": "answer " + " " * SIZE,
    "answers": "answer" * (SIZE // 6),
    "answers with spaces": ("answer" + " " * 1000) * (SIZE // 1000),
    "stated": "answer is " * (SIZE // 10),
    "tags": "<answer>" * (SIZE // 8),
    "half tags": "<" * SIZE,
    "markers": "####" * (SIZE // 4),
    "digits": "9" * SIZE,
    "thousands": "1" + ",000" * (SIZE // 4),
    "thousands that fail": "1" + ",000" * (SIZE // 4) + "0",
    "commas": "1," * (SIZE // 2),
    "points": "1." * (SIZE // 2),
    "minus signs": "-" * SIZE,
    "fractions": r"\frac{1}{" * (SIZE // 9),
    "exponents": "1e" * (SIZE // 2),
    "slashes": "1/" * (SIZE // 2),
    "lines": "\n" * SIZE,
    "dollars": "answer is $" + "$" * SIZE,
    "letters": "a" * SIZE,
    "words": "a " * (SIZE // 2),
    "null bytes": "\0" * SIZE,
    "emoji": "😀" * SIZE,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_texts_are_read_in_linear_time(name):
    text = HOSTILE[name]
    for function in (boxed, tagged, after_marker, first_line, last_number, stated_answer):
        assert isinstance(function(text), str)
    half = text[: len(text) // 2]
    for answer in (half, half[:40], half[:40] + "!", "b" + half, half + "b", "a"):
        answer_span(text, answer)


@pytest.mark.parametrize("unit", ["{", "9", "a ", r"\boxed{"])
def test_a_megabyte_is_read(unit):
    text = unit * (1_000_000 // len(unit))
    assert final_answer(text) == (text if unit == "9" else "")
    assert answer_span(text, text) == (0, len(text.rstrip()))


@given(st.text(alphabet=st.characters() | st.sampled_from("\\{}$<>#0123456789. \n")))
def test_no_text_is_too_strange(text):
    for function in (boxed, tagged, after_marker, first_line, last_number, stated_answer, final_answer):
        answer = function(text)
        assert answer == answer.strip()
        assert answer in text
        assert (answer_span(text, answer) is None) == (not answer)


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
