"""Options: one declaration from which settings, YAML, command lines and TRL's configuration follow."""

import argparse
import json
from dataclasses import dataclass, fields
from typing import Any, get_type_hints

import pytest

from calibrant.analyze.settings import AnalyzeSettings
from calibrant.errors import CalibrantError
from calibrant.evaluate.settings import EvaluateSettings
from calibrant.options import COUNT, SHARE, DataOptions, Settings, add_arguments, declared, kind_of, option, read
from calibrant.score.settings import ScoreSettings
from calibrant.train.settings import POLICY_DEFAULTS, TrainSettings

COMMANDS = [TrainSettings, AnalyzeSettings, EvaluateSettings, ScoreSettings]


@dataclass(frozen=True)
class Some(DataOptions):
    """One option of each kind."""

    flag: bool = option(False, "whether 100% are wanted")
    count: int = option(1, "number", limit=COUNT)
    share: float | None = option(None, "share", limit=SHARE, shown="all")
    word: str = option("x", "word", choices=("x", "yes"))
    pair: tuple[float, float] | None = option(None, "range")
    names: tuple[str, ...] | None = option(None, "patterns")
    more: dict[str, Any] | None = option(None, "further values")


def command_line(settings, *arguments):
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_arguments(parser, settings)
    return parser, vars(parser.parse_args(arguments))


def test_a_command_line_and_a_yaml_file_give_the_same_settings():
    line = "--flag --count 3 --share 1e-1 --word yes --pair 0 1 --names a b --more k=1 --more l=[2] --task chat"
    yaml = {"flag": True, "count": 3.0, "share": "1e-1", "word": "yes", "pair": [0, 1], "names": ["a", "b"]}
    yaml |= {"more": {"k": 1, "l": [2]}, "task": "chat"}
    given = command_line(Some, *line.split())[1]
    assert read(Some, given) == read(Some, yaml)
    assert read(Some, yaml) == Some(task="chat", flag=True, count=3, share=0.1, word="yes", pair=(0.0, 1.0),
                                    names=("a", "b"), more={"k": 1, "l": [2]})  # fmt: skip


def test_what_is_not_given_is_absent_from_the_namespace():
    assert command_line(Some)[1] == {}
    assert read(Some, {}) == Some()


def test_help_has_text_default_choices_and_groups():
    text = " ".join(command_line(Some)[0].format_help().split())
    assert "whether 100% are wanted (default: False)" in text and "--no-flag" in text
    assert "share (default: all)" in text and "--word {x,yes}" in text and "--more NAME=VALUE" in text
    assert "Data: --task NAME" in text


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"flag": "yes"}, "option 'flag' cannot be 'yes'; it takes true or false"),
        ({"count": 1.5}, "option 'count' cannot be 1.5; it takes a whole number"),
        ({"count": float("inf")}, "option 'count' cannot be inf"),
        ({"count": None}, "option 'count' cannot be None"),
        ({"count": 0}, "option 'count' is 0; it must be at least 1"),
        ({"share": True}, "option 'share' cannot be True; it takes a number"),
        ({"share": float("nan")}, "option 'share' is nan; it must lie between 0 and 1"),
        ({"word": ["x"]}, r"option 'word' cannot be \['x'\]; it takes text"),
        ({"word": "yess"}, r"option 'word' is 'yess' \(did you mean 'yes'\?\); it is one of x, yes"),
        ({"pair": [0, 1, 2]}, "it takes two numbers"),
        ({"names": 3}, "it takes a list of texts"),
        ({"more": [1]}, "it takes names with values"),
        ({1: 3}, "unknown option '1'"),
        ({"cuont": 3}, r"unknown option 'cuont' \(did you mean 'count'\?\)"),
    ],
)
def test_a_wrong_value_is_one_sentence(given, said):
    with pytest.raises(CalibrantError, match=said) as refused:
        read(Some, given)
    assert "\n" not in str(refused.value)


def test_one_text_is_a_list_of_one():
    assert read(Some, {"names": "layers"}).names == ("layers",)


@pytest.mark.parametrize("settings", COMMANDS)
def test_settings_are_checked_however_they_are_made(settings):
    with pytest.raises(CalibrantError, match=r"it is one of|it must"):
        settings(**{"cluster_rule": "x"} if hasattr(settings, "cluster_rule") else {"models": ("demo",), "samples": 0})


@pytest.mark.parametrize("settings", COMMANDS)
def test_defaults_of_every_option_are_values_that_it_takes(settings):
    assert issubclass(settings, Settings)
    options = [f for f in fields(settings) if f.name in declared(settings)]
    assert len(options) > 8
    for f in options:
        kind, optional = kind_of(f)
        assert optional if f.default is None else kind.read(f.default) == f.default, f.name


def test_an_option_of_several_commands_is_the_same_option():
    seen = {}
    for settings in COMMANDS:
        for f in fields(settings):
            known = declared(settings).get(f.name)
            if known and f.name not in ("method", "task", "out", "seed"):
                assert seen.setdefault(f.name, (known, f.type, f.default)) == (known, f.type, f.default), f.name


@pytest.mark.parametrize("policy", POLICY_DEFAULTS)
def test_defaults_of_policies_are_options(policy):
    read(TrainSettings, POLICY_DEFAULTS[policy])


def parsed(*arguments, tmp_path):
    from transformers import HfArgumentParser

    from calibrant.trl import CalibratedGRPOConfig

    (config,) = HfArgumentParser(CalibratedGRPOConfig).parse_args_into_dataclasses(
        ["--output_dir", str(tmp_path), "--use_cpu", "--bf16", "False", *arguments], look_for_args_file=False
    )
    return config


def test_trls_command_line_takes_every_option(tmp_path):
    options = {"shape": "linear", "alpha": 0.5}
    config = parsed(
        "--method", "gcpo_cd", "--alpha", "0.3", "--reward_range", "0", "1", "--mean_one", "--method_options",
        json.dumps(options), "--meaning", "completion", "--cluster_rule", "strict", "--no_share_prefix",
        "--head_gram_top", "7", "--ema_decay", "0.9", tmp_path=tmp_path,
    )  # fmt: skip
    assert (config.method, config.alpha, config.reward_range, config.mean_one) == ("gcpo_cd", 0.3, [0.0, 1.0], True)
    assert config.method_options == options
    assert (config.meaning, config.cluster_rule, config.share_prefix) == ("completion", "strict", False)
    assert (config.head_gram_top, config.ema_decay) == (7, 0.9)


def test_trls_configuration_has_the_defaults_and_help_of_the_options(tmp_path):
    from transformers import HfArgumentParser

    from calibrant.trl import CalibratedGRPOConfig

    config = parsed(tmp_path=tmp_path)
    hints = get_type_hints(CalibratedGRPOConfig)
    own = {"reward_range", "meaning", "method_options"}  # TRL has lists and text in place of tuples and None
    for f in fields(TrainSettings):
        if f.name in CalibratedGRPOConfig.__annotations__ and f.name not in own:
            assert hints[f.name] == f.type and getattr(config, f.name) == f.default, f.name
    text = " ".join(HfArgumentParser(CalibratedGRPOConfig).format_help().split())
    assert "{greedy,strict,strict_last,lenient,lenient_last,components}" in text
    assert "Strength of the weights (GCPO: 0.6); None: the method's." in text


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"cluster_rule": "greedi"}, "did you mean 'greedy'"),
        ({"entailment_threshold": 1.5}, "must lie between 0 and 1"),
        ({"ema_every": 0}, "at least 1"),
        ({"ema_decay": "0.9"}, "must lie between 0 and 1"),
        ({"cluster_rule": 1}, "is one of greedy"),
        ({"method_options": "alpha=1"}, "JSON"),
        ({"method_options": "{alpha"}, "JSON"),
    ],
)
def test_trls_configuration_refuses_what_the_commands_refuse(tmp_path, given, said):
    from calibrant.trl import CalibratedGRPOConfig

    with pytest.raises(CalibrantError, match=said):
        CalibratedGRPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, **given)
