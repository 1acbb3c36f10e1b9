import math
import sys
from itertools import zip_longest

import pytest
import sacrebleu
from hypothesis import given
from hypothesis import strategies as st

from calibrant.errors import CalibrantError
from calibrant.tasks.hotpotqa import hotpotqa_f1
from calibrant.text import bleu as bleu_module
from calibrant.text.bleu import bleu_counts, bleu_of_counts, sentence_bleu
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


CAT = "the cat sat on the mat"


def corpus_bleu(predictions, references):
    counts = [bleu_counts(*row) for row in zip(predictions, references, strict=True)]
    return 100 * bleu_of_counts([sum(column) for column in zip(*counts, strict=True)])


def mean_sentence_bleu(predictions, references):
    scores = [sentence_bleu(*row) for row in zip(predictions, references, strict=True)]
    return 100 * sum(scores) / len(scores)


def test_bleu_by_hand():
    # "the cat sat on a mat" against CAT: 1-grams 5/6, 2-grams 3/5, 3-grams 2/4, 4-grams 1/3, equal lengths
    expected = 100 * (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25
    assert corpus_bleu(["the cat sat on a mat"], [[CAT]]) == pytest.approx(expected)
    assert mean_sentence_bleu(["the cat sat on a mat"], [[CAT]]) == pytest.approx(expected)


def test_a_prediction_that_is_too_short_is_penalised():
    # all n-grams match, 4 of 6 words
    assert corpus_bleu(["the cat sat on"], [[CAT]]) == pytest.approx(100 * math.exp(1 - 6 / 4))


def test_corpus_and_sentences_weigh_differently():
    predictions, references = [CAT, "no"], [[CAT], ["yes"]]
    # one of six 1-grams of both is wrong, no longer n-gram is
    assert corpus_bleu(predictions, references) == pytest.approx(100 * (6 / 7) ** 0.25)
    assert mean_sentence_bleu(predictions, references) == 50.0


def test_short_answers_can_be_perfect_alone():
    assert mean_sentence_bleu(["Paris"], [["Paris"]]) == 100.0
    assert corpus_bleu(["Paris"], [["Paris"]]) == 0.0  # a corpus without 4-grams


@pytest.mark.parametrize("bleu", [corpus_bleu, mean_sentence_bleu])
def test_bleu_takes_any_number_of_references(bleu):
    assert bleu([CAT, CAT], [["a dog", CAT], [CAT]]) == 100.0
    assert bleu([CAT, CAT], [[CAT], ["a dog", "x", CAT]]) == 100.0
    assert bleu([CAT], [["a dog ran off a roof"]]) < 20.0


@pytest.mark.parametrize("bleu", [corpus_bleu, mean_sentence_bleu])
def test_bleu_of_nothing(bleu):
    assert bleu([""], [[CAT]]) == 0.0
    assert bleu([CAT], [[""]]) == 0.0
    assert bleu(["", CAT], [[""], [CAT]]) <= 100.0


def test_sacrebleu_may_be_missing(monkeypatch):
    bleu_module._bleu.cache_clear()
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    with pytest.raises(CalibrantError, match=r"sacrebleu"):
        sentence_bleu("a", ["a"])


WORDS = st.lists(st.sampled_from(["the", "cat", "sat", "on", "a", "Paris", ".", ","]), max_size=12).map(" ".join)


@given(st.lists(st.tuples(WORDS, st.lists(WORDS, min_size=1, max_size=3)), min_size=1, max_size=8))
def test_counts_add_up_to_the_bleu_of_the_corpus(rows):
    predictions, references = [text for text, _ in rows], [gold for _, gold in rows]
    streams = [list(stream) for stream in zip_longest(*references)]
    assert corpus_bleu(predictions, references) == pytest.approx(
        sacrebleu.corpus_bleu(predictions, streams).score, abs=1e-9
    )


def test_without_references_there_is_no_bleu():
    assert sentence_bleu("x", []) == 0.0
    assert bleu_counts("x", []) == [0] * 10


@pytest.mark.parametrize("metric", [token_f1, exact_match, sentence_bleu, bleu_counts, hotpotqa_f1])
@pytest.mark.parametrize("text", ["Paris and Lyon", "a", "no", "12"])
def test_a_text_is_a_list_of_one_reference(metric, text):
    assert metric(text, text) == metric(text, [text]) != metric(text, "Rome")
    assert metric("Paris", text) == metric("Paris", [text])
