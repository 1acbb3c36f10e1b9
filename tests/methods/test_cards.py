"""How methods are described: names, inputs, cards and recommended settings."""

import re
import subprocess
import sys

import pytest

from calibrant.errors import CalibrantError
from calibrant.methods import (
    METHODS,
    SOURCES,
    card,
    hyperparameters,
    optional_inputs,
    required_inputs,
    resolve_method,
    summary,
)
from calibrant.methods.inputs import HYPERPARAMETERS
from calibrant.methods.pages import page
from calibrant.methods.recommended import RECOMMENDED, recommended_values

ORDER = (
    "grpo dr_grpo rloo rd_only gcpo_cd gcpo_bot grpo_se grpo_kle seed_grpo empo grpo_care capo egpo edge_grpo "
    "q_hawkeye eg_spo r2vpo mgpo ha_dw dgpo codapo clip_cov kl_cov gtpo gcpo_grad gradient_snr"
)


def test_all_methods_are_there_in_order():
    assert list(METHODS) == ORDER.split()


def test_what_each_method_needs():
    needs = {name: " ".join(n for n in required_inputs(name) if n not in ("rewards", "where")) for name in METHODS}
    assert {name: inputs for name, inputs in needs.items() if inputs} == {
        "gcpo_cd": "embeddings",
        "gcpo_bot": "embeddings clusters",
        "grpo_se": "clusters",
        "grpo_kle": "entailment",
        "seed_grpo": "clusters",
        "empo": "clusters",
        "grpo_care": "answer_confidence",
        "capo": "mean_logprob ref_mean_logprob",
        "egpo": "mean_logprob",
        "edge_grpo": "token_entropy",
        "eg_spo": "token_entropy",
        "r2vpo": "ratio_variance",
        "codapo": "mean_logprob",
        "clip_cov": "token_logprobs",
        "kl_cov": "token_logprobs",
        "gtpo": "token_entropies",
        "gcpo_grad": "head_gram",
        "gradient_snr": "head_gram",
    }


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_name_a_summary_and_known_inputs(name):
    assert METHODS[name].__name__ == name
    assert resolve_method(name) is METHODS[name]
    assert 10 < len(summary(name)) <= 120 and summary(name).endswith(".")
    assert "where" in required_inputs(name)
    assert {*required_inputs(name), *optional_inputs(name)} <= set(SOURCES)


@pytest.mark.parametrize("name", METHODS)
def test_the_docstring_or_the_package_describes_every_parameter(name):
    text, shared = METHODS[name].__doc__, {"rewards", "where", "clusters", *HYPERPARAMETERS}
    for parameter in {*required_inputs(name), *optional_inputs(name), *hyperparameters(name)} - shared:
        assert re.search(rf"^        {parameter}: ", text, flags=re.MULTILINE), parameter
    rows = [line for line in page(name, name).splitlines() if re.match(r"\| `\w+` \|", line)]
    assert len(rows) == len(hyperparameters(name)) and not any(line.endswith("|  |") for line in rows)


@pytest.mark.parametrize("name", METHODS)
def test_every_card_is_complete(name):
    about = card(name)
    assert about.name == name and about.summary == summary(name)
    assert "-" not in (about.paper, about.effect, about.certainty, about.when)
    assert about.per in ("prompt", "rollout", "reward", "token")
    assert re.search(r"\((a|a\*|b|c)\)", about.certainty)
    assert about.when.endswith(".") and not any("  " in value for value in about if isinstance(value, str))
    assert set(about.needs) | {"where"} == set(required_inputs(name)) | {"where"}
    assert about.optional == optional_inputs(name)


def test_the_settings_that_methods_recommend():
    assert {name: dict(card(name).recommended) for name in METHODS if card(name).recommended} == {
        "dr_grpo": {"loss_type": "dr_grpo"},
        "grpo_care": {"beta": 0.0},
        "seed_grpo": {
            "loss_type": "dr_grpo", "rollouts": 8, "cluster_text": "answer", "learning_rate": 1e-6, "temperature": 1.0,
            "beta": 0.0,
        },
        "empo": {"cluster_text": "answer"},
        "capo": {"beta": 0.0, "learning_rate": 1e-6, "rollouts": 8, "temperature": 1.0, "loss_type": "grpo"},
        "r2vpo": {"num_iterations": 2},
        "ha_dw": {"loss_type": "grpo"},
        "kl_cov": {"num_iterations": 2},
    }  # fmt: skip


def test_a_card_of_a_method_that_says_nothing():
    def mine(rewards, clusters, where, empty=None):
        return None

    about = card(mine)
    assert about[:8] == ("mine", *"-------")
    assert about.needs == ("rewards", "clusters") and about.optional == ("empty",) and about.recommended == {}


def test_a_card_of_a_method_of_a_user():
    def mine(rewards, where):
        """Half of it.

        Paper: none
        Effect: x 0.5, which is
            half

        Per: prompt
        """

    about = card(mine)
    assert (about.summary, about.paper, about.per) == ("Half of it.", "none", "prompt")
    assert about.effect == "x 0.5, which is half"
    assert about.certainty == about.when == "-"


def test_recommended_settings_are_plain_data_without_torch():
    code = (
        "import sys; from calibrant.methods.recommended import RECOMMENDED; print('torch' in sys.modules, *RECOMMENDED)"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.split() == ["False", *METHODS]
    assert all(setting.certainty in ("a", "a*", "b", "c") for row in RECOMMENDED.values() for setting in row.values())


def test_a_method_of_a_user_recommends_settings():
    def mine(rewards, where):
        return None

    assert recommended_values(mine) == {}
    mine.recommended = {"beta": 0.0, "num_iterations": 2}
    assert recommended_values(mine) == card(mine).recommended == mine.recommended
    assert "`--beta 0.0`; `--num-iterations 2`" in page("mine", mine)
    mine.recommended = ["beta"]
    with pytest.raises(CalibrantError, match=r"'mine'.*'recommended' has to be a dictionary"):
        card(mine)
