"""The section `calibrant` of verl's configuration, read and checked without verl."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from calibrant import options
from calibrant.errors import CalibrantError, nearest
from calibrant.methods import name_of, read_inputs, resolve_method
from calibrant.methods.inputs import SOURCES
from calibrant.methods.recommended import recommended_values
from calibrant.options import TextOptions, TrainerOptions, WeightOptions, coerced, option
from calibrant.scorer import Scorer, dry_run, options_of
from calibrant.tasks import resolve as resolve_task
from calibrant.tasks.answers import answer_rules
from calibrant.text.readers import load_readers
from calibrant.verl import SECTION, TRAINERS

LACKING = ("answer_confidence", "ratio_variance", "token_log_ratios", "head_gram", "block_gram")
"""Inputs of methods that verl does not have where it computes advantages."""


@dataclass(frozen=True)
class VerlSettings(WeightOptions, TextOptions):
    """The section `calibrant` of verl's configuration, e.g. `+calibrant.method=gcpo_cd +calibrant.alpha=0.6`."""

    method: str = options.method(TrainerOptions.method)
    task: str | None = options.task_of_answers()
    task_reward: str | None = option(
        None,
        "name of the reward that signals read, among what the reward function returns",
        shown="its score",
        metavar="NAME",
    )


class Calibration(NamedTuple):
    """What the settings make of a batch."""

    scorer: Scorer
    reward_range: tuple[float, float]
    extract: Callable[[str], str]  # completion -> answer
    task_reward: str | None = None


def read_settings(section: Mapping[str, Any]) -> VerlSettings:
    """The settings of the section, with what the method is recommended with where they leave it open."""
    names = [f.name for f in fields(VerlSettings)]
    method = str(section.get("method", VerlSettings.method))
    given = {name: value for name, value in recommended_values(method).items() if name in names} | dict(section)
    return VerlSettings(**coerced(VerlSettings, given, f" of +{SECTION}"))  # type: ignore[arg-type]


def calibration(settings: VerlSettings) -> Calibration:
    """The scorer of the settings, with the models that its method needs."""
    method, task = resolve_method(settings.method), resolve_task(settings.task) if settings.task else None
    hyper = options_of(method, settings)
    rules = answer_rules(task)
    readers = load_readers(read_inputs(method, hyper), settings, rules.cluster, rules.judge)
    meaning = settings.meaning or rules.meaning
    scorer = Scorer(method, hyper, readers, meaning, settings.cluster_text, settings.strength)
    return Calibration(scorer, settings.reward_range or rules.reward_range, rules.extract, settings.task_reward)


def check_config(config: Mapping[str, Any], section: Mapping[str, Any]) -> None:
    """Raises CalibrantError for what cannot be trained, before anything is started; loads no model.

    `config` is all of verl's configuration, `section` what it says under `calibrant`, as plain values.
    """
    _check_mode(config, section)
    settings = read_settings(section)
    method, task = resolve_method(settings.method), resolve_task(settings.task) if settings.task else None
    hyper = options_of(method, settings)
    named = read_inputs(method, hyper)
    _check_supplied(name_of(method), named, config)
    dry_run(method, hyper, () if task else ("correct",), settings.strength)


def _check_mode(config: Mapping[str, Any], section: Mapping[str, Any]) -> None:
    mode = str(_at(config, "trainer.v1.trainer_mode"))
    if mode not in TRAINERS:
        raise CalibrantError(
            f"trainer.v1.trainer_mode is '{mode}'{nearest(mode, TRAINERS)}, which does not read +{SECTION}.*; set it "
            f"to one of {', '.join(TRAINERS)}"
        )
    if not _at(config, "trainer.use_v1"):
        raise CalibrantError(f"trainer.v1.trainer_mode={mode} needs verl's v1 trainers; leave out trainer.use_v1=False")
    estimator = str(_at(config, "algorithm.adv_estimator"))
    if estimator != "grpo":
        raise CalibrantError(
            f"algorithm.adv_estimator is '{estimator}', but weights multiply advantages of groups; set it to grpo, and "
            f"choose another base by the method, e.g. +{SECTION}.method=rloo"
        )


def _check_supplied(method: str, named: tuple[str, ...], config: Mapping[str, Any]) -> None:
    for name in named:
        if name in LACKING:
            raise CalibrantError(
                f"method '{method}' reads '{name}' ({SOURCES[name]}), which verl does not have where it computes "
                "advantages; choose another method, or train it on TRL with calibrant train"
            )
    has_reference = _at(config, "actor_rollout_ref.actor.use_kl_loss") or _at(config, "algorithm.use_kl_in_reward")
    if "ref_mean_logprob" in named and not has_reference:
        raise CalibrantError(
            f"method '{method}' reads a reference model; set actor_rollout_ref.actor.use_kl_loss=True, and "
            "actor_rollout_ref.actor.kl_loss_coef=0 if it is not to act in the loss"
        )
    entropies = [name for name in ("token_entropy", "token_entropies") if name in named]
    if entropies and _at(config, "algorithm.rollout_correction.bypass_mode"):
        raise CalibrantError(
            f"method '{method}' reads '{entropies[0]}', which verl does not compute with "
            "algorithm.rollout_correction.bypass_mode; set that to False"
        )


def _at(config: Any, path: str) -> Any:
    """The value at a dotted path; None where there is none."""
    for name in path.split("."):
        config = config.get(name) if config is not None else None
    return config
