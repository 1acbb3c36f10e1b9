"""Verification of mathematics"""

import random

import pytest
from builders_verify import TOWER, pids

from calibrant.text.maths.clusters import symbolic_clusters
from calibrant.text.maths.verify import Verifier

EQUAL = [
    ("2", "2.0"),
    ("1,000", "1000"),
    ("4.5e33", r"4.5 \times 10^{33}"),
    ("0.333333", "1/3"),
    (r"\frac{1}{3}", "0.333333"),
    (r"\frac{2}{4}", r"\frac12"),
    (r"3\sqrt{13}", r"\sqrt{117}"),
    ("sqrt(2)", r"\sqrt{2}"),
    ("√2/2", r"\frac{1}{\sqrt{2}}"),
    ("pi/2", r"\frac{\pi}{2}"),
    ("2**10", "1024"),
    ("x**2 + 1", "1 + x^2"),
    ("2(n-1)", "2n-2"),
    (r"\binom{2n}{n}", r"\frac{(2n)!}{n!n!}"),
    ("y=2x+3", "2x+3"),
    ("x=5", "5"),
    ("3, 1 and 2", "1,2,3"),
    ("$3$, $1$, and $2$", "1,2,3"),
    ("x=1 \\text{ or } x=2", "2, 1"),
    (r"\{2, 1\}", "1,2"),
    (r"1 \pm \sqrt{19}", r"1-\sqrt{19},1+\sqrt{19}"),
    ("$69$,$84$", "84, 69"),
    ("(4,5,7), (1,8,19)", "$(1,8,19),(4,5,7)$"),
    ("(0,2),(0,-2)", "(0,-2),(0,2)"),
    (r"\left(3, \frac{\pi}{2}\right)", r"(3, \pi/2)"),
    (r"x \in [-2,7]", "[-2, 7]"),
    (r"(-∞, 5)", r"(-\infty,5)"),
    (r"(9,36) \cup (0,9)", r"(0,9)\cup(9,36)"),
    (r"\begin{pmatrix} 1/5 \\ -18/5 \end{pmatrix}", r"\begin{pmatrix} 0.2 \\ -3.6 \end{pmatrix}"),
    (r"45\text{ min}", "45"),
    (r"90^\circ", "90"),
    ("90°", r"90^{\circ}"),
    (r"50\%", "0.5"),
    ("50%", "50"),
    (r"\text{(B)}", "B"),
    ("evelyn", r"\text{Evelyn}"),
    (r"\boxed{2n}", "$2n$"),
    (r"2n.", "2n"),
    (".5\\sqrt{2}", r"\frac{\sqrt{2}}{2}"),
]
DIFFERENT = [
    ("3", "4"),
    ("0.33", "1/3"),
    ("333333/1000000", "1/3"),  # no decimal
    ("1.39e-10", "3.61e-10"),  # equal at six decimals
    ("0.00000001", "0.00000002"),
    ("2**10", "2"),
    ("5", "5, 15"),
    ("1, 2", "1, 2, 3"),
    ("(2,1)", "(1,2)"),
    ("(1,2)", "[1,2]"),
    ("(1,2]", "[1,2)"),
    ("(3,5)", "(3,5,7)"),
    ("(4,5,7), (1,8,19)", "(1,8,19),(4,7,5)"),
    ("x+1", "x-1"),
    ("g(x)=x", "f(x)=x"),
    (r"\text{odd}", r"\text{even}"),
    ("I do not know", "5"),
    ("", "5"),
    ("  ", "5"),
    ("__import__('os').system('echo')", "5"),
]


def test_equal_and_different_answers(verifier):
    assert verifier.verify(EQUAL + DIFFERENT) == [True] * len(EQUAL) + [False] * len(DIFFERENT)


def test_equal_to_any_reference(verifier):
    assert verifier.verify([("x+1", ["x", "1+x"]), ("x+1", ["x", "2x"]), ("x+1", [])]) == [True, False, None]
    assert verifier.verify([("2", ["", "2"]), ("3", ["", "2"]), ("3", ("3",))]) == [True, None, True]


def test_what_is_certain_needs_no_worker():
    long = "9" * 100_000
    with Verifier() as verifier:
        assert verifier.verify([]) == []
        pairs = [(TOWER, TOWER), (long, f" {long} "), ("1/2", "0.5"), ("1/2", "0.4"), ("", "x"), ("x", ""), (long, "x")]
        assert verifier.verify(pairs) == [True, True, True, False, False, None, None]
        assert pids(verifier) == set()


def test_a_reference_that_is_no_mathematics_compares_with_its_own_text_alone(verifier):
    prose = "np.arcsin(10/13)"
    assert verifier.verify([(prose, prose), (f"${prose}$", prose), ("5", prose)]) == [True, True, None]


def test_agreement_with_math_verify_called_directly(verifier):
    from math_verify import parse, verify

    words = ["x+1", "1+x", r"\frac{1}{2}", "0.5", r"\sqrt{8}", r"2\sqrt{2}", "(1,2)", "[1,2]", "2,1", "x=3", "3"]
    pairs = [(a, b) for a in words for b in words]
    direct = [verify(parse(f"${b}$"), parse(f"${a}$")) for a, b in pairs]
    assert verifier.verify(pairs) == direct
    assert 18 < sum(direct) < 30


def test_a_thousand_ordinary_pairs_lose_none(verifier):
    rng = random.Random(0)
    numbers = [f"{rng.randrange(-99, 9999)}" for _ in range(200)] + [f"{rng.randrange(999)}/{k}" for k in range(2, 50)]
    forms = ["{a}x + {b}", r"\frac{{{a}\pi}}{{{b}}}", r"{a}\sqrt{{{b}}}", "({a}, {b}]", "x = {a}.{b}", "{a}, {b}"]
    others = [form.format(a=a, b=b) for form in forms for a in range(2, 6) for b in range(2, 6)]
    pairs = [(rng.choice(numbers), rng.choice(numbers)) for _ in range(600)]
    pairs += [(rng.choice(others), rng.choice(others)) for _ in range(150)]
    pairs += [(answer, f"${answer}$") for answer in rng.choices(numbers + others, k=250)]
    verdicts = verifier.verify(pairs)
    assert None not in verdicts
    assert all(verdicts[750:])
    assert verdicts[:750].count(False) > 700


@pytest.mark.parametrize(
    ("prediction", "gold", "tolerance", "equal"),
    [
        ("4.3", "4.2", 0.1, True),
        ("4.1", "4.2", 0.1, True),
        ("4.31", "4.2", 0.1, False),
        ("4.3%", "4.2", 0.1, True),
        (r"\sqrt{2}", "1.41", 0.01, True),
        (r"\sqrt{2}", "1.41", 0.001, False),
        (r"x=\pi", "3.14", 0.01, True),
        (r"\sqrt{4}, 1.01", "1, 2", 0.05, True),
        ("1.01, 2, 3", "1, 2", 0.05, False),
        ("(1, 2.01)", "(1, 2)", 0.1, True),
        ("(2, 1.01)", "(2, 1)", 0.1, True),
        ("(1.01, 2)", "(2, 1)", 0.1, False),
        ("[1, 2]", "(1, 2)", 0.1, False),
        ("x+1", "1+x", 0.1, True),
        ("x+1", "x+1.01", 0.1, False),
        (r"(-\infty, 5)", r"(-\infty, 5)", 0.1, True),
        ("1.0000001", "1", 0, False),
        ("1.0000001", "1", None, True),
    ],
)
def test_tolerance(verifier, prediction, gold, tolerance, equal):
    assert verifier.verify([(prediction, gold)], tolerance) == [equal]


def test_one_tolerance_a_pair(verifier):
    assert verifier.verify([("4.3", "4.2")] * 3, [0.1, None, 0.01]) == [True, False, False]


def test_symbolic_clusters(verifier):
    groups = [
        ["x+1", "1+x", "2", r"\sqrt{4}", "", "2.0", "", "x"],
        [r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}", "1,2", "2,1", "(1,2)", "Paris", "paris", "0.5"],
    ]
    assert symbolic_clusters(groups, verifier).tolist() == [[0, 0, 1, 1, 2, 1, 3, 4], [0, 0, 1, 1, 1, 2, 2, 3]]
