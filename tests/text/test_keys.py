from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from calibrant.errors import CalibrantError
from calibrant.text.keys import as_number, choice, number
from calibrant.text.maths.clusters import symbolic_clusters

SAME = [
    ["1,000", "1000.0", "1e3", "1E+3", "$1000", r"\$1,000", "1000%", "+1000", r"1 \times 10^3", "1{,}000", r"1\!000"],
    ["0.5", ".5", "1/2", "2/4", r"\frac12", r"\frac{1}{2}", r"$\dfrac{2}{4}$", r"\frac1{2}", r"\(0.50\)", "1./2"],
    ["9/5", "1 4/5", r"1\frac{4}{5}", r"1 \frac45", "1.8", r"\text{1.8}"],
    ["-5", "−5", "-$5", "$-5", "- 5", r"$-\frac{5}{1}$", "-5.00"],
    ["1234567.25", "1,234,567.25", r"1,\!234,\!567.25", "4938269/4"],
    ["50", "50%", r"50\%", r"$50\%$"],
    ["1500", r"1.5 \times 10^{3}", "1.5×10^3", "1.5*10^3", r"1.5 \cdot 10^{ 3 }", "1.5e3"],
    ["0.00015", "1.5e-4", r"1.5 \times 10^{-4}"],
    ["0", "-0", "0.0", "0/7", "$0"],
    ["7", "007", "7.0"],
    ["The Euro", "euro.", " EURO!", r"\text{Euro}"],
    ["x-1", "x - 1", "$x-1$", r"\(x - 1\)", "x-1."],
    ["(1,2)", "(1, 2)", "( 1 ,2 )"],
    ["The", "the"],
]
"""Answers of one meaning a row, and another in each row."""


@pytest.mark.parametrize("row", SAME, ids=lambda row: row[0])
def test_answers_of_one_meaning_have_one_key(row):
    assert {number(text) for text in row} == {number(row[0])} == {number(number(row[0]))}


def test_answers_of_other_meanings_have_other_keys():
    assert len({number(row[0]) for row in SAME}) == len(SAME)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (r"\frac{14}{3}", r"\frac{1}{43}"),
        ("x-1", "x+1"),
        ("1 2", "12"),
        ("5 km", "5"),
        ("50%", "0.5"),
        ("1,23", "123"),
        ("1,234", "1, 234"),  # one number; a list of two
        ("1_000", "1000"),
        ("(1,2)", "[1,2]"),
        ("x", "X-1"),
        ("--5", "5"),
        ("-$-5", "5"),
        ("1/0", "1"),
        ("52_8", "528"),
        ("1.2.3", "1.23"),
        ("1e", "1"),
        ("$5$ and $6$", "5$ and $6"),
    ],
)
def test_what_differs_keeps_its_own_key(a, b):
    assert number(a) != number(b)


@pytest.mark.parametrize("text", ["", " ", "$$", r"\text{}", "\n\t", "..."])
def test_the_empty_answer_has_the_empty_key(text):
    assert number(text) == ""
    assert choice(text) == ""


@pytest.mark.parametrize("text", ["nan", "-Infinity", "0x10", "1/0", r"\frac{3}{0}", "٣", "½", "1e", "e5", "--1", "."])
def test_these_are_no_numbers(text):
    assert as_number(text) is None


@pytest.mark.parametrize("text", ["9" * 1001, "1e1001", "1e-1001", "1e" + "9" * 500, r"1 \times 10^{99999}"])
def test_absurd_numbers_are_texts(text):
    assert as_number(text) is None
    assert number(text) == number(f" {text} ")


def test_large_numbers_are_exact():
    assert as_number("9" * 1000) == 10**1000 - 1
    assert as_number("1e1000") == 10**1000
    assert number("1e-1000") == f"1/1{'0' * 1000}"


@given(st.fractions(), st.sampled_from(["{a}/{b}", r"\frac{{{a}}}{{{b}}}", r"$\frac{{{a}}}{{{b}}}$"]))
def test_fractions_are_read_exactly(value, form):
    top, bottom = abs(value.numerator), value.denominator
    written = "-" * (value < 0) + form.replace("$", "").format(a=top, b=bottom)
    assert as_number(f"${written}$" if "$" in form else written) == value


@given(st.decimals(allow_nan=False, allow_infinity=False, places=4), st.booleans())
def test_decimals_are_read_exactly(value, thousands):
    assert as_number(f"{value:,f}" if thousands else f"{value:f}") == Fraction(value)


@given(st.text())
def test_every_text_has_a_key(text):
    for key in (number, choice):
        assert isinstance(key(text), str)


@pytest.mark.parametrize("unit", ["{", "1,", "1 ", "-", "a ", "$", "\\", r"\text{", " ", ".", "9", r"\frac1"])
def test_hostile_texts_are_read_in_linear_time(unit):
    for length in (900, 50_000):  # short ones are read as numbers, if they are some
        text = unit * (length // len(unit))
        for function in (number, choice):
            assert isinstance(function(text), str)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("B", "B"),
        ("(B)", "B"),
        ("[b]", "B"),
        ("B.", "B"),
        ("B) Paris", "B"),
        ("B: Paris", "B"),
        ("B. Paris", "B"),
        (r"\text{(B)}", "B"),
        (r"$\textbf{(B)}$", "B"),
        ("**B**", "B"),
        ("The correct answer is (B).", "B"),
        ("Option B", "B"),
        ("A", "A"),  # not the article
        ("a", "A"),
        ("A cat", "cat"),
        ("Paris", "paris"),
        ("BC", "bc"),
        ("B.C.", "bc"),
        ("3", "3"),
        ("", ""),
    ],
)
def test_choice(text, key):
    assert choice(text) == key


class Asked:
    """A verifier by a table: which pairs are equal, and which cannot be scored; it notes what it was asked."""

    def __init__(self, equal=(), unscorable=()):
        self.equal, self.unscorable, self.batches = set(equal), set(unscorable), []

    def verify(self, pairs):
        self.batches.append(list(pairs))
        return [None if pair in self.unscorable else pair in self.equal for pair in pairs]


def test_clusters_of_keys_need_no_verifier():
    verifier = Asked()
    clusters = symbolic_clusters([["1/2", "0.5", "1/2"], ["", " ", "The euro"]], verifier)
    assert clusters.tolist() == [[0, 0, 0], [0, 1, 2]]
    assert clusters.dtype == torch.int64
    assert [pair for batch in verifier.batches for pair in batch] == []


def test_the_first_match_wins_and_first_members_are_compared():
    # d equals b and c, c equals none before it; e equals d, which is no first member
    verifier = Asked(equal={("d+1", "b+1"), ("d+1", "c+1"), ("e+1", "d+1")})
    clusters = symbolic_clusters([["a+1", "b+1", "c+1", "d+1", "e+1"]], verifier)
    assert clusters.tolist() == [[0, 1, 2, 1, 3]]


def test_all_groups_are_asked_for_together_and_each_pair_once():
    groups = [["x+1", "1+x", "x + 1", "x+1", "y"], ["x+1", "x+2", "x+2", "", "x+3"]]
    verifier = Asked(equal={("1+x", "x+1")})
    assert symbolic_clusters(groups, verifier).tolist() == [[0, 0, 0, 0, 1], [0, 1, 1, 2, 3]]
    assert [batch for batch in verifier.batches if batch] == [
        [("1+x", "x+1"), ("x+2", "x+1")],
        [("y", "x+1"), ("x+3", "x+1"), ("x+3", "x+2")],
    ]


def test_an_answer_is_asked_for_as_it_was_first_written():
    verifier = Asked()
    symbolic_clusters([["$x - 1$", "x-1", "1+ y"]], verifier)
    assert verifier.batches[-1] == [("1+ y", "$x - 1$")]


def test_unscorable_pairs_are_not_equal():
    assert symbolic_clusters([["x", "y"]], Asked(unscorable={("y", "x")})).tolist() == [[0, 1]]


def test_no_groups_and_no_answers():
    assert symbolic_clusters([], Asked()).shape == (0, 0)
    assert symbolic_clusters([["", ""]], Asked()).tolist() == [[0, 1]]


@pytest.mark.parametrize("groups", [["ab", "cd"], [["a"], ["b", "c"]]])
def test_groups_have_to_be_lists_of_one_length(groups):
    with pytest.raises(CalibrantError):
        symbolic_clusters(groups, Asked())


answers = st.sampled_from(["x", "y+1", "1+y", "2", "2.0", "", "z"])


@given(st.lists(st.lists(answers, min_size=4, max_size=4), max_size=4))
def test_clusters_match_a_slow_loop(groups):
    verifier = Asked(equal={("1+y", "y+1"), ("y+1", "1+y")})
    expected = []
    for group in groups:
        firsts, row = [], []
        for i, answer in enumerate(group):
            same = [
                c
                for c, first in enumerate(firsts)
                if answer and first and (number(answer) == number(first) or (answer, first) in verifier.equal)
            ]
            if not same:
                firsts.append(answer)
            row.append(same[0] if same else len(firsts) - 1)
            assert len(row) == i + 1
        expected.append(row)
    assert symbolic_clusters(groups, verifier).tolist() == expected
