"""Options of the commands: each is declared once, with type, default, limits and help text.

An option is a dataclass field made by `option`; its type is the field's annotation, one of `KINDS`. Options that
several commands share stand here, in groups (base classes of the commands' settings) or as a function that returns the
field. From the declaration follow the settings (`read`), their checks (`check`), the command line (`add_arguments`) and
the fields of TRL's configuration (`calibrant.trl.config`). This module imports neither torch nor transformers.
"""

import argparse
import math
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields, is_dataclass
from inspect import get_annotations, getdoc
from types import NoneType, UnionType
from typing import Any, NamedTuple, TypeVar, get_args

import yaml

from calibrant.errors import CalibrantError, nearest

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
"""The embedding model of GCPO (appendix E.3)."""

T = TypeVar("T")


class Limit(NamedTuple):
    """Which numbers an option takes."""

    words: str  # completes "option 'x' is 0; "
    holds: Callable[[float], bool]


COUNT = Limit("it must be at least 1", lambda x: 1 <= x < math.inf)
POSITIVE = Limit("it must be a positive number", lambda x: 0 < x < math.inf)
NOT_NEGATIVE = Limit("it must be 0 or a positive number", lambda x: 0 <= x < math.inf)
SHARE = Limit("it must lie between 0 and 1", lambda x: 0 <= x <= 1)
GROUP = Limit("the answers of a group are compared, so give at least 2", lambda x: x >= 2)
SEED = Limit("it must be a whole number from 0 to 2^63 - 1", lambda x: 0 <= x < 2**63)
SEED_32 = Limit("it must be a whole number from 0 to 2^32 - 1", lambda x: 0 <= x < 2**32)


@dataclass(frozen=True)
class Option:
    """What is known of an option beside its name, type and default."""

    help: str
    limit: Limit | None = None
    choices: tuple[str, ...] = ()
    shown: str | None = None
    metavar: str | None = None


def option(
    default: T,
    help: str,
    *,
    limit: Limit | None = None,
    choices: tuple[str, ...] = (),
    shown: str | None = None,
    metavar: str | None = None,
) -> T:
    """A dataclass field that is an option.

    Args:
        default: the value when the option is not given.
        help: a noun phrase.
        limit: numbers that it takes.
        choices: words that it takes, None apart.
        shown: the default in words, where its value does not say it; with None, what None means.
        metavar: what stands for the value in the help text; the name of the type when None.
    """
    return field(default=default, metadata={"option": Option(help, limit, choices, shown, metavar)})


class Kind(NamedTuple):
    """A type of options."""

    words: str
    read: Callable[[Any], object]  # raises TypeError or ValueError
    argument: dict[str, Any]  # keywords of `add_argument`


def _boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(value)
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool):
        raise ValueError(value)
    return float(value)


def _whole(value: Any) -> int:
    if isinstance(value, bool) or (not isinstance(value, int) and int(value) != float(value)):
        raise ValueError(value)
    return int(value)


def _text(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(value)
    return str(value)


def _pair(value: Any) -> tuple[float, float]:
    low, high = value
    return _number(low), _number(high)


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(_text(x) for x in ([value] if isinstance(value, str) else value))


def assignment(text: str) -> tuple[str, object]:
    """NAME=VALUE of the command line, the value read as YAML.

    >>> assignment("shape=linear"), assignment("alpha=0.3")
    (('shape', 'linear'), ('alpha', 0.3))
    """
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"'{text}' is not NAME=VALUE")
    try:
        return name, yaml.safe_load(value)
    except yaml.YAMLError:
        raise argparse.ArgumentTypeError(f"the value of '{text}' is not YAML; give a number or a word") from None


KINDS: dict[object, Kind] = {
    bool: Kind("true or false", _boolean, {"action": argparse.BooleanOptionalAction}),
    int: Kind("a whole number", _whole, {"type": int, "metavar": "INT"}),
    float: Kind("a number", _number, {"type": float, "metavar": "FLOAT"}),
    str: Kind("text", _text, {"metavar": "STR"}),
    tuple[float, float]: Kind("two numbers", _pair, {"nargs": 2, "type": float, "metavar": ("LOW", "HIGH")}),
    tuple[str, ...]: Kind("a list of texts", _texts, {"nargs": "+"}),
    dict[str, Any]: Kind(
        "names with values",
        lambda value: {str(name): x for name, x in dict(value).items()},
        {"action": "append", "type": assignment, "metavar": "NAME=VALUE"},
    ),
}  # fmt: skip
"""The types that options have; each may be `| None`."""


def kind_of(f: "Field[Any]") -> tuple[Kind, bool]:
    """The kind of a field's type, and whether None is allowed."""
    members = get_args(f.type) if isinstance(f.type, UnionType) else (f.type,)
    (kind,) = (member for member in members if member is not NoneType)
    return KINDS[kind], NoneType in members


def about(f: "Field[Any]") -> Option | None:
    """The declaration of a field; None for one that is not an option, e.g. a positional argument."""
    return f.metadata.get("option")


def read(settings: type[T], given: Mapping[str, object], origin: str = "") -> T:
    """Settings with the options that are given, as YAML or a command line spells them, and defaults for the rest.

    Args:
        settings: a dataclass of options.
        given: values by name; YAML has 1e-5 as text, and whole numbers where numbers are meant.
        origin: where the values stand, for errors: ` in 'my.yaml'`.

    Raises:
        CalibrantError: an option that does not exist, with the nearest name, or a value that it does not take.
    """
    return settings(**coerced(settings, given, origin))


def coerced(settings: type[Any], given: Mapping[str, object], origin: str = "") -> dict[str, object]:
    """What is given, each value brought to the type of its option; raises as `read`."""
    known = {f.name: f for f in fields(settings)}
    for name in given:
        if name not in known:
            raise CalibrantError(f"unknown option '{name}'{origin}{nearest(name, known)}; --help lists all")
    return {name: _coerce(known[name], value, origin) for name, value in given.items()}


def _coerce(f: "Field[Any]", value: object, origin: str) -> object:
    kind, optional = kind_of(f)
    if value is None and optional:
        return None
    try:
        return kind.read(value)
    except (TypeError, ValueError, OverflowError):
        raise CalibrantError(f"option '{f.name}'{origin} cannot be {value!r}; it takes {kind.words}") from None


def check(settings: Any, names: Mapping[str, Option]) -> None:
    """Raises CalibrantError unless each named option of an object is within its limit or choices, or None."""
    for name, known in names.items():
        value = getattr(settings, name)
        if value is None:
            continue
        if known.limit and not known.limit.holds(value):
            raise CalibrantError(f"option '{name}' is {value}; {known.limit.words}")
        if known.choices and value not in known.choices:
            choices = ", ".join(known.choices)
            raise CalibrantError(f"option '{name}' is '{value}'{nearest(value, known.choices)}; it is one of {choices}")


def add_arguments(
    parser: argparse.ArgumentParser, settings: type[Any], defaults: Mapping[str, str] | None = None
) -> None:
    """Adds the options of settings to a command line; options that are not given are absent from its namespace.

    Args:
        parser: the command line.
        settings: a dataclass; each dataclass that it inherits from is a group of options of its own.
        defaults: further words on the default of an option, by name.
    """
    options = {f.name: f for f in fields(settings) if about(f)}
    for part in (cls for cls in settings.__mro__ if is_dataclass(cls)):
        own = [options[name] for name in get_annotations(part) if name in options]
        target = parser if part is settings or not own else parser.add_argument_group((getdoc(part) or "").rstrip("."))
        for f in own:
            more = (defaults or {}).get(f.name, "")
            target.add_argument(f"--{f.name.replace('_', '-')}", default=argparse.SUPPRESS, **_argument(f, more))


def _argument(f: "Field[Any]", more: str) -> dict[str, Any]:
    known = about(f)
    assert known is not None
    shown = known.shown or ("none" if f.default is None else f.default)
    keywords = kind_of(f)[0].argument | {"help": f"{known.help} (default: {shown}{more})".replace("%", "%%")}
    if known.choices:
        keywords["metavar"] = f"{{{','.join(known.choices)}}}"
    return keywords | ({"metavar": known.metavar} if known.metavar else {})


@dataclass(frozen=True)
class Settings:
    """Options that are within their limits, however they were made."""

    def __post_init__(self) -> None:
        check(self, {f.name: known for f in fields(self) if (known := about(f))})


def model() -> str:
    """The policy."""
    return option(
        "demo",
        "policy: run directory, model folder, hub name, 'demo' or 'demo-arithmetic'",
        shown="the embedded policy of the task",
        metavar="MODEL",
    )


def method(default: T, shown: str | None = None) -> T:
    """The method."""
    return option(
        default, "method: name in `calibrant methods`, or dotted path of a function", shown=shown, metavar="NAME"
    )


def rollouts() -> int:
    """Rollouts per prompt."""
    return option(16, "number of answers sampled per prompt, G (paper: 16)", limit=GROUP)


def seed(limit: Limit = SEED) -> int:
    """The random seed."""
    return option(0, "random seed of data order and sampling", limit=limit)


def from_rollouts() -> str | None:
    """A rollout file in place of sampling."""
    return option(None, "rollout file (.parquet or .jsonl) to read in place of sampling", metavar="FILE")


@dataclass(frozen=True)
class DataOptions(Settings):
    """Data."""

    task: str = option("places", "task: name in `calibrant tasks`", metavar="NAME")
    data_dir: str | None = option(None, "folder with the task's official files", shown="the hub", metavar="DIR")
    max_prompt_length: int = option(
        2048, "maximum length of the prompt in tokens; the text of a longer prompt is truncated", limit=COUNT
    )


@dataclass(frozen=True)
class ModelOptions(Settings):
    """Model."""

    trust_remote_code: bool = option(False, "whether to run Python code that ships with a hub model")


@dataclass(frozen=True)
class SamplingOptions(Settings):
    """Sampling."""

    temperature: float = option(0.9, "sampling temperature (paper: 0.9)", limit=POSITIVE)
    max_completion_length: int | None = option(
        None, "maximum length of the completion in tokens", shown="the task's", limit=COUNT
    )


@dataclass(frozen=True)
class WeightOptions(Settings):
    """Weights."""

    alpha: float | None = option(None, "strength of the weights (GCPO: 0.6)", shown="the method's")
    mean_one: bool = option(
        False, "whether to divide the weights of a batch by their mean, so that the learning rate is unchanged"
    )
    method_options: dict[str, Any] | None = option(None, "further hyper-parameters of the method; may be repeated")
    reward_range: tuple[float, float] | None = option(
        None, "lowest and highest task reward, as reward dispersion reads it", shown="the task's, or 0 2 without a task"
    )
    meaning: str | None = option(
        None,
        "text that is embedded and clustered: extracted answer (QA) or whole completion (mathematics)",
        choices=("answer", "completion"),
        shown="the task's, or answer without a task",
    )


@dataclass(frozen=True)
class TextOptions(Settings):
    """Embeddings and clusters."""

    embedding_model: str = option(
        MINILM, "sentence-transformers model: folder or hub name (paper: all-MiniLM-L6-v2)", metavar="MODEL"
    )
    entailment_model: str | None = option(
        None,
        "NLI model that clusters answers of one meaning: folder or hub name (paper: roberta-large-mnli)",
        shown="none, answers with equal keys are one cluster",
        metavar="MODEL",
    )
    entailment_dtype: str = option(
        "float32", "dtype of the entailment model", choices=("float32", "bfloat16", "float16")
    )
    cluster_rule: str = option(
        "greedy",
        "rule that makes clusters from entailment probabilities (paper: greedy)",
        choices=("greedy", "strict", "strict_last", "lenient", "lenient_last", "components"),
    )
    entailment_threshold: float = option(
        0.35, "minimum entailment probability to join a cluster by the greedy rule (paper: 0.35)", limit=SHARE
    )


@dataclass(frozen=True)
class TrainerOptions(WeightOptions, TextOptions):
    """Method."""

    method: str = method("gcpo_bot")
    ema_decay: float = option(
        0.995, "decay of the slow reference, for methods that read one (GRPO-CARE: 0.995)", limit=SHARE
    )
    ema_every: int = option(10, "optimisation steps between updates of the slow reference (GRPO-CARE: 10)", limit=COUNT)
    head_gram_top: int | None = option(
        None,
        "number of vocabulary columns per token, the most probable ones, in gradients of the output head; 0 for all",
        shown="all for a vocabulary of up to 32,768, else 64",
    )
    share_prefix: bool = option(
        True, "whether to compute each prompt once for all of its rollouts; off: TRL's computation, bit for bit"
    )
