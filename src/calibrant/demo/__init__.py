"""The embedded demo: data, a small policy, and the scripts that made both."""

import gzip
import json
from functools import cache
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent


def policy_path() -> Path:
    """The folder of the embedded policy, in the format of `save_pretrained`."""
    return FOLDER / "policy"


@cache
def load_places() -> dict[str, Any]:
    """The extract of GeoNames data: `countries` (with their `split`), `continents`, `cities` and their source."""
    with gzip.open(FOLDER / "places.json.gz", "rt", encoding="utf-8") as file:
        return json.load(file)
