"""The cells of a comparison: methods with options, from the command line or a YAML file, and all values of `--vary`."""

import argparse
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from itertools import product

from calibrant.compare.settings import OF_RUNS, CompareSettings
from calibrant.errors import CalibrantError, nearest
from calibrant.methods import hyperparameters, resolve_method
from calibrant.methods.calling import check_strength
from calibrant.methods.inputs import HYPERPARAMETERS
from calibrant.options import assignment, coerced
from calibrant.scorer import dry_run, options_of
from calibrant.train.settings import TrainSettings, resolve_settings

log = logging.getLogger(__name__)
Options = dict[str, object]

TRAIN_OPTIONS = {f.name for f in fields(TrainSettings)}
OF_EVALUATION = ("eval_prompts", "eval_samples")
"""Options of training that are the same for all cells, as all are evaluated alike."""
NAME = re.compile(r"[\w=,+-][\w.=,+-]{0,150}")


@dataclass(frozen=True)
class Cell:
    """One method with its options."""

    name: str  # also a folder's
    options: Options  # those that set it apart from other cells, method included
    training: TrainSettings

    def with_seed(self, seed: int) -> TrainSettings:
        """The options of one of its runs."""
        return replace(self.training, seed=seed)


def make_cells(settings: CompareSettings, given: Mapping[str, object]) -> list[Cell]:
    """The cells, in the order in which they were asked for; `given` are the options of training for all that have them.

    Raises CalibrantError for cells that cannot be, or that cannot be told apart.
    """
    named = [*map(_from_text, settings.methods or ()), *_from_mapping(settings.cells or {})]
    if not named:
        raise CalibrantError("a comparison needs methods; give --methods, e.g. --methods grpo gcpo_bot")
    vary = {option.replace("-", "_"): values for option, values in (settings.vary or {}).items()}
    _check_vary(vary, [str(options["method"]) for _, options in named])
    varied = [pair for cell in named for pair in _varied(*cell, vary)]
    cells = [_cell(name, options, given, shared=settings.settings == "shared") for name, options in varied]
    _check_distinct(cells)
    return cells


def split_text(text: str) -> tuple[str, Options]:
    """`NAME,OPTION=VALUE,...` as the name and the options.

    >>> split_text("gcpo_cd,alpha=0.3,reward-range=[0, 2]")
    ('gcpo_cd', {'alpha': 0.3, 'reward_range': [0, 2]})
    """
    name, *pairs = re.split(r",(?=[A-Za-z_][\w-]*=)", text)
    try:
        options = dict(map(assignment, pairs))
    except argparse.ArgumentTypeError as error:
        raise CalibrantError(f"'{text}': {error}") from None
    if len(options) < len(pairs):
        raise CalibrantError(f"'{text}' gives an option twice; give each once")
    return name, {option.replace("-", "_"): value for option, value in options.items()}


def label(name: str, options: Mapping[str, object]) -> str:
    """A name with options, safe as that of a folder.

    >>> label("gcpo_cd", {"alpha": 0.30, "learning_rate": "1e-5", "model": "Qwen/Qwen2.5-1.5B"})
    'gcpo_cd,alpha=0.3,learning_rate=1e-05,model=Qwen-Qwen2.5-1.5B'
    """
    text = ",".join([name, *(f"{option}={_word(value)}" for option, value in options.items())])
    return re.sub(r"[^\w.=,+-]+", "-", text)


def _word(value: object) -> str:
    """A value in a label; a number that YAML reads as text is as it would be as a number."""
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value):
        value = float(value)
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, list | tuple):
        return "+".join(map(_word, value))
    return f"{value:g}" if isinstance(value, float) else str(value).strip("/")


def _from_text(text: str) -> tuple[str, Options]:
    method, options = split_text(text)
    if "method" in options:
        raise CalibrantError(f"the cell '{text}' names two methods; give one")
    return label(method, options), {"method": method, **options}


def _from_mapping(cells: Mapping[str, object]) -> Iterator[tuple[str, Options]]:
    for name, options in cells.items():
        if not isinstance(options, dict) or "method" not in options:
            raise CalibrantError(f"the cell '{name}' has no method; write its options below it, e.g. 'method: gcpo_cd'")
        yield name, {str(option).replace("-", "_"): value for option, value in options.items()}


def _varied(name: str, options: Options, vary: Mapping[str, tuple[object, ...]]) -> Iterator[tuple[str, Options]]:
    """The cell with each combination of values of the varied options that its method has."""
    if twice := [option for option in vary if option in options]:
        raise CalibrantError(f"the cell '{name}' sets '{twice[0]}', which --vary varies; leave out one of the two")
    method = str(options["method"])
    mine = {option: values for option, values in vary.items() if _has(method, option)}
    if lacking := [option for option in vary if option not in mine]:
        log.warning("%s has no '%s': it is one cell for all of its values", name, "' and no '".join(lacking))
    for values in product(*mine.values()):
        chosen = dict(zip(mine, values, strict=True))
        yield label(name, chosen), options | chosen


def _has(method: str, option: str) -> bool:
    """Whether an option of training, or a hyper-parameter, changes what a method does."""
    if option == "strength":
        try:
            check_strength(method, 0.1, {})
        except CalibrantError:
            return False
        return True
    of_method = option in HYPERPARAMETERS or option not in TRAIN_OPTIONS
    return not of_method or option in hyperparameters(resolve_method(method))


def _check_vary(vary: Mapping[str, tuple[object, ...]], methods: list[str]) -> None:
    """Raises CalibrantError for an option that none of the methods has."""
    for option in vary:
        if any(_has(method, option) for method in methods):
            continue
        if option in TRAIN_OPTIONS:
            raise CalibrantError(f"none of the methods has the option '{option}' that --vary varies; give one that has")
        names = {*TRAIN_OPTIONS, *(name for method in methods for name in hyperparameters(method))}
        raise CalibrantError(
            f"unknown option '{option}' of --vary{nearest(option, names)}; calibrant train --help lists the options of "
            "training, calibrant methods NAME those of a method"
        )


def _cell(name: str, options: Options, given: Mapping[str, object], *, shared: bool) -> Cell:
    if not NAME.fullmatch(name):
        raise CalibrantError(f"'{name}' cannot be the name of a folder; name the cell under 'cells' of a YAML file")
    if fixed := [option for option in (*OF_RUNS[1:], *OF_EVALUATION) if option in options]:
        raise CalibrantError(f"the cell '{name}' sets '{fixed[0]}', which all cells share; give it for the comparison")
    of_method = {option: value for option, value in options.items() if option not in TRAIN_OPTIONS}
    own = coerced(TrainSettings, {k: v for k, v in options.items() if k in TRAIN_OPTIONS}, f" of the cell '{name}'")
    if of_method:
        base = own.get("method_options", given.get("method_options")) or {}
        own["method_options"] = dict(base) | of_method  # type: ignore[call-overload]
    method_name = str(options["method"])
    try:
        common = {option: value for option, value in given.items() if _has(method_name, option)}
        training = resolve_settings({**common, **own, "evaluation": False}, shared=shared)
        method = resolve_method(training.method)
        hyper = options_of(method, training)
        dry_run(method, hyper, strength=training.strength)
    except CalibrantError as error:
        raise CalibrantError(f"the cell '{name}': {error}") from None
    return Cell(name, {option: _plain(own.get(option, value)) for option, value in options.items()}, training)


def _plain(value: object) -> object:
    """A value as tables and figures show it."""
    return value if value is None or isinstance(value, str | int | float) else _word(value)


def _check_distinct(cells: list[Cell]) -> None:
    for i, cell in enumerate(cells):
        for other in cells[:i]:
            if cell.name.lower() == other.name.lower():
                raise CalibrantError(f"the cell '{cell.name}' is given twice; give each cell once")
            if cell.training == other.training:
                raise CalibrantError(f"the cells '{other.name}' and '{cell.name}' have equal options; leave one out")


def baseline_of(settings: CompareSettings, cells: list[Cell]) -> str:
    """The name of the cell that the others are compared with."""
    names = [cell.name for cell in cells]
    if settings.baseline is None:
        return next((cell.name for cell in cells if cell.training.method == "grpo"), names[0])
    if settings.baseline not in names:
        raise CalibrantError(
            f"the baseline '{settings.baseline}' is not among the cells{nearest(settings.baseline, names)}; they are "
            f"{', '.join(names)}"
        )
    return settings.baseline
