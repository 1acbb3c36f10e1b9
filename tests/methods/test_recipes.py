"""Recipes: what a paper states is what its name resolves to."""

import subprocess
import sys

import pytest

from calibrant.analyze.settings import AnalyzeSettings
from calibrant.analyze.settings import resolve_settings as resolve_analysis
from calibrant.errors import CalibrantError
from calibrant.methods import METHODS, hyperparameters
from calibrant.methods.recipes import RECIPES, recipe_lines
from calibrant.train.settings import TrainSettings, resolve_settings

E3 = "GCPO, E.3: "
STATED = {
    "gcpo": {
        "model": ("Qwen/Qwen2.5-1.5B-Instruct", E3 + "By default, we train all models on Qwen 2.5-1.5b-instruct"),
        "steps": (2000, E3 + "we train the models with 2000 steps"),
        "learning_rate": (5e-5, E3 + "with a learning rate of 5e-5"),
        "beta": (0.002, E3 + "and beta 0.002"),
        "rollouts": (16, E3 + "with 16 rollouts"),
        "temperature": (0.9, E3 + "and a temperature of 0.9"),
        "alpha": (0.6, E3 + "The alpha is set to 0.6 for default"),
        "reward_range": ((0.0, 2.0), E3 + "RD normalization uses the configured correctness range [0, 2]"),
        "embedding_model": ("sentence-transformers/all-MiniLM-L6-v2", E3 + "we use all-MiniLM-L6-v2 as the embedding"),
        "entailment_model": ("roberta-large-mnli", E3 + "The entailment model is roberta-large-mnli"),
        "entailment_threshold": (0.35, E3 + "The default entailment threshold is 0.35"),
        "cluster_rule": ("greedy", E3 + "Clustering is greedy and order-dependent"),
        "eval_prompts": (0, E3 + "We use designed split for training and testing"),
        "method": ("gcpo_bot", "GCPO, 3.4: w_geo is instantiated as either w_CD or w_BoT"),
    },
    "seed_grpo": {
        "method": ("seed_grpo", "SEED-GRPO"),
        "loss_type": ("dr_grpo", "SEED-GRPO: Dr. GRPO's objective, neither a deviation nor a length divides"),
        "model": ("Qwen/Qwen2.5-Math-7B", "SEED-GRPO, experiments: Qwen2.5-Math"),
        "levels": ("3-5", "SEED-GRPO, experiments: MATH, levels 3 to 5"),
        "rollouts": (8, "SEED-GRPO, experiments: G = 8, ablated with 10 and 16"),
        "max_completion_length": (3000, "SEED-GRPO, experiments: at most 3000 tokens"),
        "prompts_per_step": (128, "SEED-GRPO, experiments: batch size 128"),
        "cluster_text": ("answer", "SEED-GRPO: responses with equal final answers are one cluster"),
        "learning_rate": (1e-6, "Dr. GRPO, script: --learning_rate 0.000001"),
        "temperature": (1.0, "Dr. GRPO, script: --temperature 1"),
        "beta": (0.0, "Dr. GRPO, script: --beta 0"),
        "eval_prompts": (0, "SEED-GRPO, abstract: accuracies of whole benchmarks"),
    },
    "capo": {
        "method": ("capo", "CAPO"),
        "learning_rate": (1e-6, "CAPO, experiments: learning rate 1e-6"),
        "rollouts": (8, "CAPO, experiments: n = 8 rollouts"),
        "temperature": (1.0, "CAPO, experiments: T = 1.0"),
        "beta": (0.0, "CAPO, experiments: KL and entropy coefficients 0"),
        "prompts_per_step": (128, "CAPO, experiments: batch 128"),
        "eval_samples": (16, "CAPO, inference: Perplexity Consistency with N = 16"),
        "eval_prompts": (0, "CAPO, abstract: accuracies of whole benchmarks"),
        "model": ("Qwen/Qwen2.5-Math-1.5B", "CAPO, experiments: Qwen2.5-Math, 1.5B and 7B"),
    },
    "egpo": {
        "method": ("egpo", "EGPO"),
        "model": ("Qwen/Qwen2.5-Math-7B", "EGPO, experiments: Qwen2.5-Math-7B"),
        "task": ("openr1_math", "EGPO, experiments: trained on single answers of OpenR1-Math-220k, MATH-500 tested"),
        "eval_prompts": (0, "EGPO, experiments: results of whole benchmarks"),
    },
}
"""Recipe -> option -> the paper's value, and the line that states it."""

IN_THE_METHOD = {
    "seed_grpo": {"form": "reciprocal", "alpha": None, "estimator": "rao"},  # None: 0.0417, the released code's
    "grpo_se": {"shape": "reciprocal", "alpha": None},
    "capo": {"tau": 0.6, "ref_high": "auto", "ref_low": "auto", "normalise": "sum", "inverse_tau": True},
    "egpo": {"reading": "asymmetric", "nsr": True, "nsr_share": None, "renormalise": "none"},
    "grpo_care": {"bonus": 0.5, "margin": 0.01, "upper": 0.95, "threshold": 0.1, "form": "likelihood"},
    "gcpo_bot": {"alpha": 0.6},
    "gcpo_cd": {"alpha": 0.6},
}
"""Method -> hyper-parameters that its paper, or its released code, states."""


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_resolves_to_what_its_paper_states(recipe):
    settings = resolve_settings({"recipe": recipe})
    for option, (value, line) in STATED[recipe].items():
        assert getattr(settings, option) == value, line
    assert settings.recipe == recipe
    said = RECIPES[recipe].train
    assert {option for option, setting in said.items() if setting.certainty != "c"} <= {*STATED[recipe], "task"}


@pytest.mark.parametrize("method", IN_THE_METHOD)
def test_the_defaults_of_a_method_are_those_of_its_paper(method):
    defaults = hyperparameters(method)
    assert {name: defaults[name] for name in IN_THE_METHOD[method]} == IN_THE_METHOD[method]


def test_every_recipe_has_a_table_and_says_what_is_open():
    assert set(RECIPES) == set(STATED) and all(about.open for about in RECIPES.values())
    assert {f"{name}" for name in RECIPES} <= {"gcpo", *METHODS}


def test_the_analysis_of_gcpo_is_over_a_thousand_prompts():
    settings = resolve_analysis({"recipe": "gcpo"})
    assert (settings.queries, settings.task, settings.rollouts) == (1000, "narrativeqa", 16)
    assert settings.model == "Qwen/Qwen2.5-1.5B-Instruct" and settings.entailment_model == "roberta-large-mnli"
    assert resolve_analysis({}).model == "demo" and resolve_analysis({}).queries is None


def test_what_is_given_comes_before_the_recipe_and_the_recipe_before_the_method():
    settings = resolve_settings({"recipe": "gcpo", "rollouts": 4, "model": "demo"})
    assert (settings.rollouts, settings.model, settings.learning_rate, settings.steps) == (4, "demo", 5e-5, 2000)
    other = resolve_settings({"recipe": "gcpo", "method": "capo"})  # the protocol of GCPO's comparison
    assert (other.method, other.learning_rate, other.rollouts, other.loss_type) == ("capo", 5e-5, 16, "grpo")
    assert other.alpha is None  # of GCPO's weights, which CAPO has not
    assert resolve_settings({"recipe": "gcpo", "method": "gcpo_cd"}).alpha == 0.6
    assert resolve_settings({"recipe": "seed_grpo", "task": "aime24"}).levels is None


def test_a_method_brings_its_settings_where_nothing_was_measured_for_the_policy():
    own, demo = (resolve_settings({"method": "capo", "model": model}) for model in ("Qwen/Qwen2.5-1.5B", "demo"))
    assert (own.learning_rate, own.rollouts, own.temperature, own.beta) == (1e-6, 8, 1.0, 0.0)
    assert (demo.learning_rate, demo.rollouts, demo.temperature, demo.beta) == (1e-4, 8, 1.0, 0.0)


def test_an_unknown_recipe_is_refused():
    for resolve in (resolve_settings, resolve_analysis):
        with pytest.raises(CalibrantError, match=r"option 'recipe' is 'gcp' .did you mean 'gcpo'"):
            resolve({"recipe": "gcp"})
    assert TrainSettings.recipe is AnalyzeSettings.recipe is None


def test_a_recipe_says_what_it_set_with_source_and_level_and_what_is_open():
    lines = list(recipe_lines("gcpo", vars(resolve_settings({"recipe": "gcpo", "rollouts": 4}))))
    assert lines[0] == "Settings of GCPO (arXiv:2605.21801):"
    assert "  steps = 2000 (appendix E.3; b)" in lines
    assert "  rollouts = 4 (appendix E.3; b); instead of the paper's 16" in lines
    assert "queries" not in "".join(lines[:-1])  # an option of the analysis
    assert lines[-1].startswith("Left open: prompts per step; ")
    assert any(line.startswith("Stated, without an option: mini-batches") for line in recipe_lines("capo", {}))


def test_recipes_are_plain_data_without_torch():
    code = "import sys; from calibrant.methods.recipes import RECIPES; print('torch' in sys.modules, *RECIPES)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.split() == ["False", *RECIPES]
