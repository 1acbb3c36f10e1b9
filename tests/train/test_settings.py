import pytest

from calibrant.errors import CalibrantError
from calibrant.train.settings import TrainSettings, resolve_settings


def test_the_demo_has_defaults_of_its_own_and_what_is_given_wins():
    assert resolve_settings({}).steps == 60
    assert resolve_settings({"model": "other"}).steps == 2000
    assert resolve_settings({"steps": 7}).steps == 7


def test_the_papers_values_are_the_general_defaults():
    s = TrainSettings()
    assert (s.steps, s.rollouts, s.temperature, s.learning_rate, s.beta) == (2000, 16, 0.9, 5e-5, 0.002)


def test_yaml_numbers_are_read_as_numbers():
    s = resolve_settings({"learning_rate": "1e-4", "reward_range": [0, 1], "steps": 10.0})
    assert (s.learning_rate, s.reward_range, s.steps) == (1e-4, (0.0, 1.0), 10)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"learning_rat": 1}, "did you mean 'learning_rate'"),
        ({"steps": 0}, "'steps' is 0"),
        ({"steps": "many"}, "'steps' cannot be 'many'"),
        ({"steps": 1.5}, "'steps' cannot be 1.5"),
        ({"steps": None}, "'steps' cannot be None"),
        ({"steps": True}, "'steps' cannot be True"),
        ({"rollouts": 1}, "give at least 2"),
        ({"temperature": 0}, "'temperature' is 0"),
        ({"temperature": float("nan")}, "'temperature' is nan"),
        ({"beta": -1}, "'beta' is -1"),
        ({"bf16": "yes"}, "'bf16' cannot be 'yes'"),
        ({"reward_range": 3}, "'reward_range' cannot be 3"),
        ({"meaning": "title"}, "one of answer, completion"),
        ({"loss_type": "dap"}, "did you mean 'dapo'"),
        ({"report_to": "tensorbord"}, "did you mean 'tensorboard'"),
        ({"schedule": "lin"}, "did you mean 'linear'"),
        ({"micro_batch": 0}, "'micro_batch' is 0"),
    ],
)
def test_what_cannot_be_is_said(given, said):
    with pytest.raises(CalibrantError, match=said):
        resolve_settings(given)
