"""The section `calibrant` of verl's configuration, without verl."""

import pytest

from calibrant.errors import CalibrantError
from calibrant.methods import METHODS, Outcome, read_inputs
from calibrant.options import TextOptions, WeightOptions, declared
from calibrant.verl import TRAINERS
from calibrant.verl.settings import LACKING, VerlSettings, calibration, check_config, read_settings


def config(mode="calibrant_sync", estimator="grpo", reference=False, bypass=False, v1=True):
    """What the checks read of verl's configuration."""
    return {
        "trainer": {"use_v1": v1, "v1": {"trainer_mode": mode}},
        "algorithm": {
            "adv_estimator": estimator,
            "use_kl_in_reward": False,
            "rollout_correction": {"bypass_mode": bypass},
        },
        "actor_rollout_ref": {"actor": {"use_kl_loss": reference}},
    }


def test_options_are_those_of_every_command():
    assert set(declared(VerlSettings)) == {
        *declared(WeightOptions),
        *declared(TextOptions),
        "method",
        "task",
        "task_reward",
    }


def test_the_section_is_read_as_yaml_is():
    section = {"method": "rd_only", "alpha": "1e-1", "reward_range": [0, 1], "method_options": {"mean_one": True}}
    settings = read_settings(section)
    assert (settings.alpha, settings.reward_range) == (0.1, (0.0, 1.0))
    assert calibration(settings).scorer.options == {"alpha": 0.1, "reward_range": (0.0, 1.0), "mean_one": True}


def test_a_method_brings_what_it_is_recommended_with():
    assert read_settings({"method": "seed_grpo"}).cluster_text == "answer"
    assert read_settings({"method": "seed_grpo", "cluster_text": "completion"}).cluster_text == "completion"
    assert read_settings({}).method == "gcpo_bot"


def test_a_task_extracts_answers_and_says_the_range():
    made = calibration(read_settings({"method": "rd_only", "task": "gsm8k"}))
    assert made.extract("So it is #### 12") == "12"
    assert made.scorer.meaning == "completion"
    made = calibration(read_settings({"method": "rd_only", "reward_range": [0, 1]}))
    assert made.reward_range == (0.0, 1.0)
    assert made.extract(" 12 \n") == "12"


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_taken_or_refused_with_what_it_lacks(method):
    lacking = [name for name in read_inputs(method) if name in LACKING]
    if not lacking:
        check_config(config(reference=True), {"method": method, "task": "places"})
        return
    with pytest.raises(CalibrantError, match=f"method '{method}' reads '{lacking[0]}' .* verl does not have .*TRL"):
        check_config(config(reference=True), {"method": method, "task": "places"})


def test_a_form_of_a_method_that_reads_nothing_lacking_is_taken():
    check_config(config(), {"method": "grpo_care", "method_options": {"form": "agreement"}})


@pytest.mark.parametrize(
    ("of_verl", "section", "said"),
    [
        ({"mode": "sync"}, {"method": "rd_only"}, "trainer_mode is 'sync'.*set it to one of calibrant_sync"),
        ({"mode": "calibrant_snyc"}, {}, r"did you mean 'calibrant_sync'\?"),
        ({"v1": False}, {}, "leave out trainer.use_v1=False"),
        ({"estimator": "rloo"}, {}, r"adv_estimator is 'rloo'.*set it to grpo.*\+calibrant.method=rloo"),
        ({}, {"method": "gcpo-bot"}, "unknown method 'gcpo-bot'"),
        ({}, {"method": "rd_only", "alpa": 0.3}, r"unknown option 'alpa' of \+calibrant \(did you mean 'alpha'"),
        ({}, {"method": "rd_only", "alpha": -1}, "rd_only: alpha|alpha has to be"),
        ({}, {"method": "rd_only", "reward_range": [2, 0]}, "option 'reward_range' of .*two numbers"),
        ({}, {"method": "rloo", "strength": 0.3}, "method 'rloo' has no weights that strength could set"),
        ({}, {"method": "rd_only", "task": "placse"}, "unknown task 'placse'"),
        ({}, {"method": "capo"}, "method 'capo' reads a reference model; set .*use_kl_loss=True"),
        ({"bypass": True}, {"method": "edge_grpo"}, "'token_entropy', which verl does not compute with .*bypass_mode"),
        ({}, {"method": f"{__name__}.fails"}, "cannot be imported|fails"),
    ],
)
def test_what_cannot_be_trained_is_one_sentence(of_verl, section, said):
    with pytest.raises(CalibrantError, match=said):
        check_config(config(**of_verl), section)


@pytest.mark.parametrize("mode", TRAINERS)
def test_every_mode_is_taken(mode):
    check_config(config(mode), {"method": "rd_only"})


def fails(rewards, where) -> Outcome:
    """A method of the user's own that fails."""
    raise CalibrantError("fails")
