import pytest

from calibrant.text.metrics import exact_match, normalise_answer, token_f1


@pytest.mark.parametrize(
    ("answer", "references", "f1"),
    [
        ("Paris", ["Paris"], 1.0),
        ("the Paris!", ["paris"], 1.0),
        ("Paris", ["London"], 0.0),
        ("I think it is Paris", ["Paris"], 2 / 6),  # P = 1/5, R = 1
        ("Lyon and Nice", ["Lyon, Nice and Paris"], 2 * 3 / (3 + 4)),
        ("Lyon Lyon", ["Lyon"], 2 / 3),  # the second Lyon finds no partner
        ("Rome", ["Paris", "Rome"], 1.0),
        ("", ["Paris"], 0.0),
        ("Paris", [""], 0.0),
        ("the", ["a"], 1.0),  # both are empty after normalisation
        ("Paris", [], 0.0),
    ],
)
def test_token_f1(answer, references, f1):
    assert token_f1(answer, references) == pytest.approx(f1)


def test_normalisation():
    assert normalise_answer("  An  U.S. state,\tthe\n'Ohio' ") == "us state ohio"
    assert exact_match("An apple", ["apple."]) == 1.0
    assert exact_match("apples", ["apple"]) == 0.0
    assert exact_match("x", []) == 0.0
