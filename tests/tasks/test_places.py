import re

import pytest

from calibrant.errors import CalibrantError
from calibrant.tasks import resolve
from calibrant.tasks.places import QUESTIONS, SENTENCES, TASK, cities, countries, load_questions


@pytest.mark.parametrize("split", TASK.splits)
def test_the_same_arguments_give_the_same_rows(split):
    assert load_questions(split, 50, 3) == load_questions(split, 50, 3)
    assert load_questions(split, 50, 3) != load_questions(split, 50, 4)
    assert load_questions(split, 50, 3)[:20] == load_questions(split, 20, 3)


@pytest.mark.parametrize("split", TASK.splits)
def test_sizes_and_ids(split):
    rows = load_questions(split, 300, 0)
    assert len(rows) == len({row["prompt_id"] for row in rows}) == 300
    assert len(load_questions(split, 0, 0)) == 0


def test_no_question_is_asked_twice_in_an_evaluation():
    assert load_questions("test", 700, 0) == load_questions("test", None, 0)
    assert len(load_questions("train", 4700, 0)) == 4700


def test_default_sizes():
    assert len(load_questions("train", None, 0)) == 4000
    test = load_questions("test", None, 0)
    asked = {name for row in test for name in re.findall(r"Question: (.*)", row["prompt"])}
    assert 250 < len(test) < 322  # 46 countries x 7 facts, less the lists that are empty
    assert len(asked) == len(test)


@pytest.mark.parametrize("split", TASK.splits)
def test_the_sheet_holds_the_answer_and_the_answer_scores_full(split):
    for row in load_questions(split, 300, 1):
        (gold,) = row["references"]
        assert gold in row["prompt"].split("\nQuestion:")[0]
        assert row["prompt"].endswith("\nAnswer:")
        answer = TASK.extract(f" {gold}\nQuestion: and so on")
        assert TASK.reward(answer, row["references"]) == TASK.reward_range[1]
        assert TASK.correct(answer, row["references"])
        assert all(metric(answer, row["references"]) == 1 for metric in TASK.metrics.values())


def test_no_name_of_a_test_country_is_met_in_training():
    seen = "\n".join(row["prompt"] for row in load_questions("train", 8000, 0))
    for country in countries("test"):
        for name in (country["name"], country["capital"]):
            assert name not in seen, name
        for city in country["cities"]:
            assert not re.search(rf"\b{re.escape(city)}\b", seen), city


def test_enough_is_left_to_train_on():
    assert len(countries("train")) > 100
    assert len(cities()) > 2500


def test_capitals_and_names_of_test_countries_are_never_an_answer_in_training():
    answers = {name for row in load_questions("train", None, 0) for name in re.split(r", | and ", row["references"][0])}
    hidden = {c[key] for c in countries("test") for key in ("name", "capital")}
    assert not answers & hidden


def test_every_fact_has_sentences_and_questions():
    assert SENTENCES.keys() == QUESTIONS.keys()


def test_lists_earn_partial_credit():
    assert TASK.reward("Lyon", ["Lyon, Nice and Paris"]) == pytest.approx(2 * 2 * 1 / (1 + 4))  # P = 1, R = 1/4


@pytest.mark.parametrize("completion", ["", "  ", "\n\n", "Paris", " Paris\n", "\u2028", "</s>" * 1000])
def test_any_completion_has_an_answer_and_a_reward(completion):
    low, high = TASK.reward_range
    assert low <= TASK.reward(TASK.extract(completion), ["Paris"]) <= high


def test_errors_name_what_there_is():
    with pytest.raises(CalibrantError, match="it has train and test"):
        load_questions("validation", 1, 0)
    with pytest.raises(CalibrantError, match="did you mean 'places'"):
        resolve("place")
