"""The HTML page of a report: self-contained, without network access, everything from a run escaped."""

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import jinja2
from markupsafe import Markup

from calibrant.files import write_text, write_with
from calibrant.report.formats import plain

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Table:
    """Cells as text; the first `text_columns` columns are text, the others are numbers."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    text_columns: int = 1


@dataclass(frozen=True)
class Plot:
    """A figure as a `data:` URI, with its title and caption."""

    title: str
    uri: str
    caption: str = ""
    wide: bool = False


class Side(NamedTuple):
    """The answers of one policy to a prompt."""

    name: str
    answers: Sequence[tuple[str, str]]  # text, and a note about it


@dataclass(frozen=True)
class Pair:
    """A prompt with the answers of two policies beside each other."""

    title: str
    note: str  # in one line
    prompt: str
    expected: str
    sides: tuple[Side, Side]


@dataclass(frozen=True)
class Section:
    """A section of a page; `missing` names what the files lack."""

    id: str
    title: str
    text: Sequence[str] = ()
    plots: Sequence[Plot] = ()
    table: Table | None = None
    missing: Sequence[str] = ()
    folded: Mapping[str, Table] = field(default_factory=dict)  # title -> a table that a reader opens
    pairs: Sequence[Pair] = ()


@dataclass(frozen=True)
class Browser:
    """The table of groups that a reader can search and open: JSON, safe inside a script element, and its extent."""

    json: str
    groups: int  # shown
    of: int  # in the rollout files
    limit: int  # characters per text


@dataclass(frozen=True)
class Page:
    """Everything that the template shows; a fact that is None is left out.

    `browser` is None on a page without a table of groups.
    """

    kind: str
    name: str
    headline: str
    subtitle: str
    facts: Mapping[str, object]
    options: Mapping[str, object]
    versions: Mapping[str, object]
    sections: Sequence[Section]
    files: str
    notes: Sequence[str] = ()
    browser: Browser | None = None


def write_page(path: Path, page: Page, images: Path | None = None) -> Path:
    """Writes a page atomically and returns its path; lone surrogates become question marks.

    With `images`, its figures are written into that folder too, each as an SVG file named by its section and title.
    """
    if images:
        for section in page.sections:
            for plot in section.plots:
                _write_image(images / f"{_file_name(f'{section.id} {plot.title}')}.svg", plot)
    return write_text(path, render(page).encode("utf-8", "replace").decode("utf-8"))


def _write_image(path: Path, plot: Plot) -> None:
    content = base64.b64decode(plot.uri.partition(",")[2])
    write_with(path, lambda file: file.write_bytes(content))


def _file_name(title: str) -> str:
    """A title in lower case, with hyphens for all but letters and digits.

    >>> _file_name("F1, sampled, on places")
    'f1-sampled-on-places'
    """
    return "-".join(re.findall(r"[a-z0-9]+", title.lower()))[:80]


def render(page: Page) -> str:
    """The HTML of a page. The template escapes every value and refuses unknown ones."""
    style = (HERE / "report.css").read_text(encoding="utf-8")
    script = (HERE / "report.js").read_text(encoding="utf-8") if page.browser else ""
    files = jinja2.FileSystemLoader(HERE)
    template = jinja2.Environment(loader=files, autoescape=True, undefined=jinja2.StrictUndefined)
    return template.get_template("report.html").render(
        page=page,
        facts={name: plain(value) for name, value in page.facts.items() if value is not None},
        lists=[_pairs_table("option", "value", page.options), _pairs_table("package", "version", page.versions)],
        policy=_security_policy(style, script),
        style=Markup(style),
        script=Markup(script),
        data=Markup(page.browser.json if page.browser else ""),
    )


def _pairs_table(name: str, value: str, pairs: Mapping[str, object]) -> Table:
    return Table([name, value], [[str(key), plain(item)] for key, item in pairs.items()], text_columns=2)


def _security_policy(style: str, script: str) -> str:
    """A content security policy that allows this style, this script and embedded images only."""
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]
    return (
        f"default-src 'none'; img-src data:; style-src 'sha256-{hashes[0]}'; script-src 'sha256-{hashes[1]}'; "
        "base-uri 'none'; form-action 'none'"
    )
