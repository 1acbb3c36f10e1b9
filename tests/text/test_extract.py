"""Answers extracted from completions."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from calibrant.text import extract
from calibrant.text.extract import (
    after_marker,
    answer_span,
    boxed,
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
