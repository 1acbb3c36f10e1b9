"""The embedded demo: data, two small policies, and the scripts that made them."""

import gzip
import json
from functools import cache
from pathlib import Path

from calibrant.files import JsonObject

FOLDER = Path(__file__).parent
POLICIES = {"demo": FOLDER / "policy", "demo-arithmetic": FOLDER / "policy_arithmetic"}
"""The embedded policies by name: of `places` and of `arithmetic`."""


def policy_path(name: str = "demo") -> Path:
    """The folder of an embedded policy, in the format of `save_pretrained`."""
    return POLICIES[name]


def embedded_policy(task: str) -> str:
    """The name of the embedded policy of a task; `demo` for a task that has none.

    >>> embedded_policy("arithmetic"), embedded_policy("gsm8k")
    ('demo-arithmetic', 'demo')
    """
    name = f"demo-{task}"
    return name if name in POLICIES else "demo"


@cache
def load_places() -> JsonObject:
    """The extract of GeoNames data: `countries` (with their `split`), `continents`, `cities` and their source."""
    with gzip.open(FOLDER / "places.json.gz", "rt", encoding="utf-8") as file:
        return json.load(file)
