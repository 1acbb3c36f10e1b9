"""Recipes: all settings that a paper states, for `--recipe`; importing this module loads no torch.

Evaluations are on the whole split of a task (`eval_prompts` 0), as none of the papers names a subset.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

from calibrant.methods.recommended import RECOMMENDED, Setting

WHOLE_SPLIT = Setting(0, "results are on the whole test split", "b")
HYPERPARAMETERS = ("alpha", "method_options")  # settings that belong to the method of the recipe alone


class Recipe(NamedTuple):
    """The settings of a paper's experiments."""

    paper: str
    train: dict[str, Setting]  # options of `calibrant train`; those that `calibrant analyze` has, are its too
    analyze: dict[str, Setting]  # options of `calibrant analyze` alone
    no_option: tuple[str, ...]  # what the paper states and no option sets
    open: tuple[str, ...]  # what the paper leaves open, or was not found


RECIPES: dict[str, Recipe] = {
    "gcpo": Recipe(
        "GCPO (arXiv:2605.21801)",
        {
            "method": Setting("gcpo_bot", "sections 3.2 to 3.4; CD is --method gcpo_cd", "b"),
            "alpha": Setting(0.6, "appendix E.3", "b"),
            "model": Setting("Qwen/Qwen2.5-1.5B-Instruct", "appendix E.3", "b"),
            "task": Setting("narrativeqa", "section 4.1; also qasper, hotpotqa, math500, aime24, olympiadbench", "b"),
            "steps": Setting(2000, "appendix E.3", "b"),
            "learning_rate": Setting(5e-5, "appendix E.3", "b"),
            "beta": Setting(0.002, "appendix E.3", "b"),
            "rollouts": Setting(16, "appendix E.3", "b"),
            "temperature": Setting(0.9, "appendix E.3", "b"),
            "reward_range": Setting((0.0, 2.0), "appendix E.3, table 5", "b"),
            "embedding_model": Setting("sentence-transformers/all-MiniLM-L6-v2", "appendix E.3", "b"),
            "entailment_model": Setting("roberta-large-mnli", "appendix E.3", "b"),
            "cluster_rule": Setting("greedy", "appendix E.3", "b"),
            "entailment_threshold": Setting(0.35, "appendix E.3", "b"),
            "eval_prompts": WHOLE_SPLIT,
        },
        {"queries": Setting(1000, "appendix D.1", "b")},
        (),
        (
            "prompts per step", "optimizer and schedule", "how the loss is averaged (loss_type)",
            "lengths of prompts and completions", "prompt templates", "decoding of the evaluation",
            "in the analysis: the parameters that V(q) is of, and the number of rollouts",
        ),
    ),
    "seed_grpo": Recipe(
        "SEED-GRPO (arXiv:2505.12346)",
        {
            "method": Setting("seed_grpo", "the paper", "b"),
            **RECOMMENDED["seed_grpo"],
            "model": Setting("Qwen/Qwen2.5-Math-7B", "experiments", "b"),
            "task": Setting("math500", "trained on MATH, levels 3 to 5", "b"),
            "levels": Setting("3-5", "trained on MATH, levels 3 to 5; the evaluation is on all", "b"),
            "prompts_per_step": Setting(128, "batch size 128, read as prompts", "c"),
            "max_completion_length": Setting(3000, "experiments", "b"),
            "eval_prompts": WHOLE_SPLIT,
        },
        {},
        (),
        (
            "the form of f: the reciprocal one is that of the released code as its readers describe it",
            "learning rate, temperature and KL coefficient: set to those of Dr. GRPO's script",
            "number of steps and schedule", "prompt template",
        ),
    ),
    "capo": Recipe(
        "CAPO (arXiv:2604.12632)",
        {
            "method": Setting("capo", "the paper; tau 0.6 for 1.5B parameters, 0.5 for 7B", "b"),
            **RECOMMENDED["capo"],
            "model": Setting("Qwen/Qwen2.5-Math-1.5B", "experiments; also 7B", "b"),
            "task": Setting("math500", "mathematical reasoning; the training set was not found", "c"),
            "prompts_per_step": Setting(128, "batch size 128 in verl, which counts prompts", "b"),
            "eval_samples": Setting(16, "Perplexity Consistency with N = 16", "b"),
            "eval_prompts": WHOLE_SPLIT,
        },
        {},
        ("mini-batches of 64 prompts, two updates per batch: here a batch is one update",),
        (
            "the training set", "number of steps and schedule", "lengths of prompts and completions",
            "whether the sum over pairs is normalised",
        ),
    ),
    "egpo": Recipe(
        "EGPO (arXiv:2602.22751)",
        {
            "method": Setting("egpo", "the paper", "b"),
            "model": Setting("Qwen/Qwen2.5-Math-7B", "experiments, among others", "b"),
            "task": Setting("openr1_math", "trained on single answers of OpenR1-Math-220k; MATH-500 is tested", "b"),
            "eval_prompts": WHOLE_SPLIT,
        },
        {},
        (),
        (
            "bounds and epsilon of the weights", "the renormalisation", "learning rate, KL coefficient and schedule",
            "rollouts per prompt and temperature", "prompts per step and number of steps", "lengths",
        ),
    ),
}  # fmt: skip
"""Name -> recipe."""


def recipe_values(recipe: str | None, options: Collection[str], given: Mapping[str, object]) -> dict[str, object]:
    """Option -> value of a recipe, of those in `options`; nothing without a known recipe.

    Where the user has `given` the method of another paper, the hyper-parameters are left out, with another task its
    levels.

    >>> recipe_values("capo", ["rollouts", "queries"], {})
    {'rollouts': 8}
    """
    if recipe not in RECIPES:
        return {}
    settings = RECIPES[recipe].train | (RECIPES[recipe].analyze if "queries" in options else {})
    unfit: tuple[str, ...] = ()
    if given.get("method") is not None and not str(given["method"]).startswith(recipe):
        unfit += HYPERPARAMETERS
    if given.get("task", settings["task"].value) != settings["task"].value:
        unfit += ("levels",)
    return {name: x.value for name, x in settings.items() if name in options and name not in unfit}


def recipe_lines(recipe: str, resolved: Mapping[str, object]) -> Iterator[str]:
    """What a recipe set, and what its paper leaves open; `resolved` are the options of the run.

    >>> next(recipe_lines("egpo", {}))
    'Settings of EGPO (arXiv:2602.22751):'
    """
    about = RECIPES[recipe]
    yield f"Settings of {about.paper}:"
    for name, setting in (about.train | about.analyze).items():
        if name in resolved:
            value = resolved[name]
            changed = "" if value == setting.value else f"; instead of the paper's {setting.value}"
            yield f"  {name} = {value} ({setting.source}; {setting.certainty}){changed}"
    yield from (f"Stated, without an option: {text}" for text in about.no_option)
    yield f"Left open: {'; '.join(about.open)}"
