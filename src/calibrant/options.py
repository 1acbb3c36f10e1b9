"""Options of the commands: each is declared once, with type, default, limits and help text.

An option is a dataclass field made by `option`; its type is the annotation, one of `KINDS`. Options of several commands
are declared here, in groups that the commands' settings inherit, or in functions that return the field; options of one
command in its settings. `read` (YAML and command lines), `check`, `add_arguments` and `calibrant.trl.config` follow
from the declaration. Nothing heavy is imported here.
"""

import argparse
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import Field, asdict, dataclass, field, fields, is_dataclass
from inspect import get_annotations, getdoc
from types import NoneType, UnionType
from typing import Any, NamedTuple, TypeVar, get_args

import yaml

from calibrant.errors import CalibrantError, nearest

MINILM = "sentence-transformers/all-MiniLM-L6-v2"  # the embedding model of GCPO (appendix E.3)
T = TypeVar("T")


class Limit(NamedTuple):
    """The numbers that an option accepts."""

    words: str  # completes "option 'x' is 0; "
    holds: Callable[[float], bool]


COUNT = Limit("it must be at least 1", lambda x: 1 <= x < math.inf)
POSITIVE = Limit("it must be a positive number", lambda x: 0 < x < math.inf)
NOT_NEGATIVE = Limit("it must be 0 or a positive number", lambda x: 0 <= x < math.inf)
POSITIVE_SHARE = Limit("it must be above 0 and at most 1", lambda x: 0 < x <= 1)
SHARE = Limit("it must lie between 0 and 1", lambda x: 0 <= x <= 1)
GROUP = Limit("a group needs answers to compare, so give at least 2", lambda x: x >= 2)
SEED = Limit("it must be a whole number from 0 to 2^63 - 1", lambda x: 0 <= x < 2**63)
SEED_32 = Limit("it must be a whole number from 0 to 2^32 - 1", lambda x: 0 <= x < 2**32)


@dataclass(frozen=True)
class Option:
    """The declaration of an option, beside its name, type and default."""

    help: str  # a noun phrase, or "whether to ..."
    limit: Limit | None = None
    choices: tuple[str, ...] = ()
    shown: str | None = None  # the default in words, e.g. what None means
    metavar: str | None = None  # placeholder of the value in the help text; the type's if None


def option(default: T, help: str, **about: Any) -> T:
    """A dataclass field that is an option; `about` are further attributes of `Option`."""
    return field(default=default, metadata={"option": Option(help, **about)})


class Kind(NamedTuple):
    """A type of options."""

    words: str
    read: Callable[[Any], object]  # raises TypeError or ValueError
    argument: dict[str, Any]  # keywords of `add_argument`


def _only(value: object, *types: type) -> Any:
    """The value, if its type is one of `types`; True and False are not numbers."""
    if type(value) not in types:
        raise ValueError(value)
    return value


def _whole(value: object) -> int:
    number = _only(value, int, float, str)
    if not isinstance(number, int) and int(number) != float(number):
        raise ValueError(value)
    return int(number)


def _number(value: object) -> float:
    return float(_only(value, int, float, str))


def _text(value: object) -> str:
    return str(_only(value, str, int, float))


def _pair(value: Iterable[object]) -> tuple[float, float]:
    low, high = map(_number, value)
    if not -math.inf < low < high < math.inf:
        raise ValueError(value)
    return low, high


def _numbers(value: Iterable[object]) -> tuple[float, ...]:
    numbers = tuple(_number(x) for x in ([value] if isinstance(value, int | float | str) else value))
    if not all(map(math.isfinite, numbers)):
        raise ValueError(value)
    return numbers


def _texts(value: Iterable[object]) -> tuple[str, ...]:
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


def _columns(value: object) -> dict[str, str]:
    """`NAME=COLUMN` texts, several in one text with commas between them, or a mapping, as names with columns.

    >>> _columns(["question=Frage,answers=Antwort", "context=Text"])
    {'question': 'Frage', 'answers': 'Antwort', 'context': 'Text'}
    """
    if isinstance(value, Mapping):
        return {_text(name): _text(column) for name, column in value.items()}
    pairs = [part.partition("=") for text in _texts(value) for part in text.split(",")]  # type: ignore[arg-type]
    if not all(name and equals and column for name, equals, column in pairs):
        raise ValueError(value)
    return {name.strip(): column.strip() for name, _, column in pairs}


def _wholes(value: Iterable[object]) -> tuple[int, ...]:
    return tuple(_whole(x) for x in ([value] if isinstance(value, int | str) else value))


def _lists(value: Any) -> dict[str, tuple[object, ...]]:
    """Names with lists of values: a mapping, or lists of a name and values, which are texts and read as YAML.

    >>> _lists([["alpha", "0", "0.3"], ["model", "a"]]), _lists({"alpha": [0, 0.3], "form": "agreement"})
    ({'alpha': (0, 0.3), 'model': ('a',)}, {'alpha': (0, 0.3), 'form': ('agreement',)})
    """
    if isinstance(value, Mapping):
        return {str(name): tuple(x) if isinstance(x, list | tuple) else (x,) for name, x in value.items()}
    try:
        lists = {name: tuple(yaml.safe_load(text) for text in texts) for name, *texts in value}
    except yaml.YAMLError:
        raise ValueError(value) from None
    if len(lists) < len(value) or not all(lists.values()):
        raise ValueError(value)
    return lists


KINDS: dict[object, Kind] = {
    bool: Kind("true or false", lambda x: _only(x, bool), {"action": argparse.BooleanOptionalAction}),
    int: Kind("a whole number", _whole, {"type": int, "metavar": "INT"}),
    float: Kind("a number", _number, {"type": float, "metavar": "FLOAT"}),
    str: Kind("text", _text, {"metavar": "STR"}),
    tuple[float, float]: Kind(
        "two numbers, the lower one first", _pair, {"nargs": 2, "type": float, "metavar": ("LOW", "HIGH")}
    ),
    tuple[str, ...]: Kind("a list of texts", _texts, {"nargs": "+"}),
    tuple[int, ...]: Kind("a list of whole numbers", _wholes, {"nargs": "+", "type": int, "metavar": "INT"}),
    tuple[float, ...]: Kind("a list of numbers", _numbers, {"nargs": "+", "type": float, "metavar": "FLOAT"}),
    dict[str, str]: Kind("NAME=COLUMN,...", _columns, {"action": "append", "metavar": "NAME=COLUMN,..."}),
    dict[str, Any]: Kind(
        "names with values",
        lambda x: {str(name): value for name, value in dict(x).items()},
        {"action": "append", "type": assignment, "metavar": "NAME=VALUE"},
    ),
    dict[str, tuple[Any, ...]]: Kind(
        "names, each once, with one or more values each",
        _lists,
        {"action": "append", "nargs": "+", "metavar": ("NAME", "VALUE")},
    ),
}
"""The types that options have; each may be `| None`."""


def declared(settings: Any) -> dict[str, Option]:
    """Name -> declaration, for the options of a dataclass or of one of its objects."""
    return {f.name: f.metadata["option"] for f in fields(settings) if "option" in f.metadata}


def kind_of(f: "Field[object]") -> tuple[Kind, bool]:
    """The kind of a field, and whether it may be None."""
    members = get_args(f.type) if isinstance(f.type, UnionType) else (f.type,)
    (kind,) = (member for member in members if member is not NoneType)
    return KINDS[kind], NoneType in members


def read(settings: type[T], given: Mapping[str, object]) -> T:
    """Settings from given options, as YAML or the command line spells them, and defaults; raises as `coerced` does."""
    return settings(**coerced(settings, given))


def coerced(settings: type[Any], given: Mapping[str, object], origin: str = "") -> dict[str, object]:
    """Given options in their types (YAML reads 1e-5 as text, and allows 10.0 for 10).

    `origin` says in error messages where they come from, e.g. ` in 'my.yaml'`. Raises CalibrantError for an unknown
    option, with the nearest name, or a value that its option does not accept.
    """
    by_name, values = {f.name: f for f in fields(settings)}, {}
    for name, value in given.items():
        if name not in by_name:
            raise CalibrantError(f"unknown option '{name}'{origin}{nearest(str(name), by_name)}; --help lists all")
        kind, optional = kind_of(by_name[name])
        try:
            values[name] = None if value is None and optional else kind.read(value)
        except (TypeError, ValueError, OverflowError):
            raise CalibrantError(f"option '{name}'{origin} cannot be {value!r}; it takes {kind.words}") from None
    return values


def plain_values(settings: Any) -> dict[str, Any]:
    """The values of settings in the types of YAML, by name."""
    return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(settings).items()}


def check(settings: object, options: Mapping[str, Option]) -> None:
    """Raises CalibrantError unless each option is None, or within its limit and one of its choices."""
    for name, option in options.items():
        value = getattr(settings, name)
        if value is None:
            continue
        if option.limit and not (isinstance(value, int | float) and option.limit.holds(value)):
            raise CalibrantError(f"option '{name}' is {value}; {option.limit.words}")
        if option.choices and value not in option.choices:
            meant, choices = nearest(str(value), option.choices), ", ".join(option.choices)
            raise CalibrantError(f"option '{name}' is '{value}'{meant}; it is one of {choices}")


def add_arguments(
    parser: argparse.ArgumentParser,
    settings: type[Any],
    more: Mapping[str, str] | None = None,
    without: Collection[str] = (),
) -> None:
    """Adds the options of a dataclass to a command line; options that are not given are absent from its namespace.

    Each dataclass that it inherits from is a group of options, titled by its docstring. `more` are words to add to the
    defaults of some options; the options `without` are left out.
    """
    by_name, options = {f.name: f for f in fields(settings)}, declared(settings)
    options = {name: about for name, about in options.items() if name not in without}
    for part in (cls for cls in settings.__mro__ if is_dataclass(cls)):
        names = [name for name in get_annotations(part) if name in options]
        group = parser if part is settings or not names else parser.add_argument_group((getdoc(part) or "").rstrip("."))
        for name in names:
            keywords = _keywords(by_name[name], options[name], (more or {}).get(name, ""))
            group.add_argument(f"--{name.replace('_', '-')}", default=argparse.SUPPRESS, **keywords)


def _keywords(f: "Field[object]", option: Option, more: str) -> dict[str, Any]:
    shown = option.shown or ("none" if f.default is None else f.default)
    metavar = option.metavar or (f"{{{','.join(option.choices)}}}" if option.choices else None)
    keywords = kind_of(f)[0].argument | {"help": f"{option.help} (default: {shown}{more})".replace("%", "%%")}
    return keywords | ({"metavar": metavar} if metavar else {})


@dataclass(frozen=True)
class Settings:
    """Options whose limits and choices are checked, however they are made."""

    def __post_init__(self) -> None:
        check(self, declared(self))


def model() -> str:
    """The policy."""
    return option(
        "demo",
        "policy: run directory, model or adapter folder, GGUF file, hub name, 'smollm2', 'demo' or 'demo-arithmetic'",
        shown="the embedded policy of the task",
        metavar="MODEL",
    )


def method(default: T, shown: str | None = None) -> T:
    """The method."""
    words = "method: name in `calibrant methods`, or dotted path of a function"
    return option(default, words, shown=shown, metavar="NAME")


def recipe() -> str | None:
    """A paper."""
    papers = ("gcpo", "seed_grpo", "capo", "egpo")
    return option(None, f"paper whose settings are the defaults: {', '.join(papers)}", choices=papers, metavar="PAPER")


def rollouts() -> int:
    """Rollouts per prompt."""
    return option(16, "number of answers sampled per prompt, G (GCPO: 16)", limit=GROUP)


def seed(limit: Limit = SEED) -> int:
    """The random seed."""
    return option(0, "random seed of data order and sampling", limit=limit)


def columns() -> dict[str, str] | None:
    """Names of columns."""
    return option(
        None,
        "columns of your own data by what they hold, e.g. question=Frage,answers=Antwort for a task (`calibrant tasks "
        "NAME` lists what it reads), prompt_id=uid,reward=score for rollouts; a.b is a field of a nested column, a+b "
        "the list of two columns, and of two rewards their sum",
        shown="the task's, or those of the format",
    )


def task_of_answers() -> str | None:
    """The task by which answers are read, where it is not what is trained or evaluated."""
    words = "task that extracts and clusters answers, and judges them by their references: name in `calibrant tasks`"
    return option(None, words, metavar="NAME")


def from_rollouts() -> str | None:
    """A rollout file in place of sampling."""
    return option(None, "rollout file (.parquet or .jsonl) to read in place of sampling", metavar="FILE")


@dataclass(frozen=True)
class RewardOptions(Settings):
    """Rewards."""

    reward_funcs: tuple[str, ...] | None = option(
        None,
        "reward functions as in `trl grpo`: accuracy_reward, reasoning_accuracy_reward, think_format_reward, "
        "get_soft_overlong_punishment, dotted paths of your own, and task_reward for the task's own",
        shown="the task's own",
        metavar="NAME",
    )
    reward_weights: tuple[float, ...] | None = option(None, "weights of the reward functions", shown="1 for each")


@dataclass(frozen=True)
class RangeOptions(Settings):
    """Range of rewards."""

    reward_range: tuple[float, float] | None = option(
        None,
        "lowest and highest reward, as reward dispersion reads it; of several reward functions that of the task's own, "
        "else of the first",
        shown="the task's or the reward function's, or 0 2 without a task",
    )


@dataclass(frozen=True)
class DataOptions(RewardOptions):
    """Data."""

    task: str = option("places", "task: name in `calibrant tasks`, or dotted path of a Task object", metavar="NAME")
    data: str | None = option(
        None,
        "your own data, for the tasks reading, maths, choice and chat: file (JSONL, JSON, CSV, Parquet, .gz, .zst), "
        "folder with train and test files, or data set of the hub, NAME:CONFIG for one of its configurations",
        metavar="DATA",
    )
    columns: dict[str, str] | None = columns()
    prompt_template: str | None = option(
        None,
        "file with the prompt for your own data, in which {question} or {COLUMN} stands for the row's text",
        shown="the task's",
        metavar="FILE",
    )
    test_share: float | None = option(
        None,
        "share of your own data that is for testing; rows with equal contexts or questions stay together",
        shown="0.1 of data without a test split",
        limit=POSITIVE_SHARE,
    )
    levels: str | None = option(
        None,
        "levels of difficulty to keep, e.g. 3-5 or 1,2: of math500, or by the column level of maths; training keeps "
        "them in its training prompts, and evaluates on all",
        shown="all",
    )
    data_dir: str | None = option(
        None,
        "folder with the official files of a benchmark; your own files go with --data",
        shown="none; they come from the hub",
        metavar="DIR",
    )
    max_prompt_length: int = option(
        2048, "maximum length of the prompt in tokens; the context of a longer prompt is truncated", limit=COUNT
    )


@dataclass(frozen=True)
class SamplingOptions(Settings):
    """Sampling."""

    temperature: float = option(0.9, "sampling temperature (GCPO: 0.9)", limit=POSITIVE)
    max_completion_length: int | None = option(
        None, "maximum length of the completion in tokens", shown="the task's", limit=COUNT
    )


@dataclass(frozen=True)
class WeightOptions(RangeOptions):
    """Weights."""

    alpha: float | None = option(None, "strength of the weights (GCPO: 0.6)", shown="the method's")
    mean_one: bool = option(
        False, "whether to divide the weights of a batch by their mean, so that the learning rate is unchanged"
    )
    strength: float | None = option(
        None,
        "coefficient of variation of the weights, in the method's order and of mean 1; alpha then has no effect",
        limit=NOT_NEGATIVE,
        shown="the paper's weights",
    )
    method_options: dict[str, Any] | None = option(None, "further hyper-parameters of the method; may be repeated")
    meaning: str | None = option(
        None,
        "text that is embedded and clustered: extracted answer (QA) or whole completion (mathematics)",
        choices=("answer", "completion"),
        shown="the task's, or answer without a task",
    )
    cluster_text: str | None = option(
        None,
        "text that is clustered, where it is not the one that is embedded (SEED-GRPO and EMPO: answer)",
        choices=("answer", "completion"),
        shown="the method's, or that of --meaning",
    )


@dataclass(frozen=True)
class TextOptions(Settings):
    """Embeddings and clusters."""

    embedding_model: str = option(
        MINILM, "sentence-transformers model: folder or hub name (GCPO: all-MiniLM-L6-v2)", metavar="MODEL"
    )
    entailment_model: str | None = option(
        None,
        "NLI model that clusters answers of equal meaning: folder or hub name (GCPO: roberta-large-mnli)",
        shown="none; answers that are equal after normalisation form a cluster",
        metavar="MODEL",
    )
    entailment_dtype: str = option(
        "float32", "dtype of the entailment model", choices=("float32", "bfloat16", "float16")
    )
    cluster_rule: str = option(
        "greedy",
        "rule that forms clusters from entailment probabilities (GCPO: greedy)",
        choices=("greedy", "strict", "strict_last", "lenient", "lenient_last", "components"),
    )
    entailment_threshold: float = option(
        0.35, "minimum entailment probability to join a cluster by the greedy rule (GCPO: 0.35)", limit=SHARE
    )


@dataclass(frozen=True)
class TrainerOptions(WeightOptions, TextOptions):
    """Method."""

    method: str = method("gcpo_bot")
    ema_decay: float = option(
        0.995, "decay of the EMA reference model, for methods that need one (GRPO-CARE: 0.995)", limit=SHARE
    )
    ema_every: int = option(
        10, "optimizer steps between updates of the EMA reference model (GRPO-CARE: 10)", limit=COUNT
    )
    head_gram_top: int | None = option(
        None,
        "number of vocabulary columns per token, the most probable ones, in gradients of the output head; 0 for all",
        limit=NOT_NEGATIVE,
        shown="all for a vocabulary of up to 32,768, else 64",
    )
    resample_uninformative: int = option(
        0,
        "prompts to draw in place of those without reward spread, at most this many times the prompts of a step "
        "(DAPO's dynamic sampling); 0: none",
        limit=NOT_NEGATIVE,
    )
    share_prefix: bool = option(
        True, "whether to compute each prompt once for all of its rollouts; if not, TRL's computation, bit for bit"
    )
