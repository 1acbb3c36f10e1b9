"""Finds the rows of the user's data: in a file, in a folder in the layout of the hub, or in a data set of the hub."""

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

from calibrant import hub
from calibrant.errors import CalibrantError, reason
from calibrant.tasks.files import Record, records

KEYWORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""Split -> the words in file names that mean it, those of the `datasets` library."""

HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


class GivenRow(NamedTuple):
    """One row of the user's data."""

    record: Record
    place: str  # e.g. "row 3 of 'pupils.csv'"
    name: str  # its id if it has none of its own
    textual: bool  # whether the file knows texts alone (CSV)


Splits = Mapping[str, Callable[[], Iterator[GivenRow]]]
"""Name of a split -> its rows; train, validation and test are those of the library `datasets`."""


def find_splits(data: str) -> Splits:
    """The splits of a file, of a folder, or of a data set of the hub, `NAME:CONFIG` for one of its configurations.

    A file has one split, by the word in its name; without one it is `train`. Files are not read yet.
    """
    path, name, config = Path(data), *_configured(data)
    if path.is_file():
        return {split_of(path): partial(_of_files, [path])}
    if path.is_dir() or Path(name).is_dir():
        return _of_folder(*((data, None) if path.is_dir() else (name, config)))
    if not is_hub_name(data):
        raise CalibrantError(f"--data '{data}' does not exist; give a file, a folder, or the name of a hub's data set")
    return hub_splits(data)


def is_hub_name(data: str) -> bool:
    """Whether a text can name a data set of the hub, with or without a configuration, and no file.

    >>> is_hub_name("openai/gsm8k:main"), is_hub_name("pupils.csv")
    (True, False)
    """
    name, _ = _configured(data)
    return bool(HUB_NAME.fullmatch(name)) and not re.search(r"\.(jsonl?|csv|parquet|gz|zst|tsv|txt)$", name)


def split_of(path: Path) -> str:
    """The split that the name of a file means.

    >>> split_of(Path("dev.jsonl")), split_of(Path("a/quiz_test.csv.gz")), split_of(Path("latest.csv"))
    ('validation', 'test', 'train')
    """
    words = re.split(r"[\W_\d]+", path.name.lower())
    return next((split for split, known in KEYWORDS.items() if set(known) & set(words)), "train")


def _configured(data: str) -> tuple[str, str | None]:
    name, colon, config = data.rpartition(":")
    return (name, config) if colon else (data, None)


def _of_files(paths: Iterable[Path]) -> Iterator[GivenRow]:
    for path in paths:
        stem, textual = path.name.partition(".")[0], ".csv" in path.suffixes
        for number, record in enumerate(records(path), 1):
            yield GivenRow(record, f"row {number} of '{path}'", f"{stem}-{number}", textual)


def _of_folder(folder: str, config: str | None) -> Splits:
    import datasets

    level = logging.getLogger("datasets").level
    logging.getLogger("datasets").setLevel(logging.ERROR)
    try:
        found = datasets.load_dataset_builder(folder, config).config.data_files
    except Exception as error:  # datasets raises many types
        named = reason(error).removesuffix(".")
        more = f" {error!s}".splitlines()[1:2] if "onfig" in named else []
        raise CalibrantError(
            f"the folder '{folder}' cannot be read as a data set ({' '.join([named, *more])}); give --data a file, "
            "FOLDER:CONFIG, or a folder whose files are named train, validation or test"
        ) from None
    finally:
        logging.getLogger("datasets").setLevel(level)
    return {str(split): partial(_of_files, [Path(file) for file in files]) for split, files in found.items()}


def hub_splits(data: str, option: str = "--data") -> Splits:
    """The splits of a data set of the hub, NAME or NAME:CONFIG, which `option` names."""
    import datasets

    name, config = _configured(data)
    if not hub.reachable():
        datasets.config.HF_HUB_OFFLINE = True  # datasets reads the environment on import alone
    try:
        found = datasets.load_dataset(name, config)
    except Exception as error:  # datasets and huggingface_hub raise many types
        problem = f"could not be loaded from the hub ({' '.join(str(error).split())[:300]})"
        if not hub.reachable():
            problem = "is no file or folder, is not in the hub's cache, and the hub cannot be reached"
        raise CalibrantError(f"{option} '{name}' {problem}; give a file, a folder, or NAME:CONFIG of the hub") from None
    where = f"{name}{f' ({config})' if config else ''} of the hub"
    return {str(split): partial(_of_rows, rows, where, str(split)) for split, rows in found.items()}


def _of_rows(rows: Iterable[Record], where: str, split: str) -> Iterator[GivenRow]:
    for number, record in enumerate(rows, 1):
        yield GivenRow(record, f"row {number} of {where}, {split}", f"{split}-{number}", False)
