"""The page"""

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from builders_report import HOSTILE, evaluation, make_run, rewrite_rollouts

from calibrant.files import write_json
from calibrant.report import browse, reading, run_words, write_report
from calibrant.report.evaluations import comparisons


class Page(HTMLParser):
    """What a browser would find in a page: elements with attributes, and text by element."""

    def __init__(self, path: Path):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, str] = {}
        self._open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "input"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        element = self._open[-1] if self._open else ""
        self.text[element] = self.text.get(element, "") + data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def payload(self) -> dict:
        return json.loads(self.text["script"].split("\n")[0].partition('"use strict"')[0])


def test_headline_numbers_come_from_the_saved_file(run: Path) -> None:
    saved = json.loads((run / "evaluation.json").read_text())
    numbers = [saved[when][how]["f1"]["mean"] for how in ("sampled", "greedy") for when in ("before", "after")]
    headline = Page(run / "report.html").text["h1"]
    assert re.findall(r"\d+\.\d+", headline) == [f"{x:.2f}" for x in numbers] == ["0.41", "0.66", "0.55", "0.70"]
    assert headline == "Sampled F1 on unseen countries rose from 0.41 to 0.66; greedy F1 rose from 0.55 to 0.70."


def test_every_number_of_the_evaluation_table_is_saved(run: Path) -> None:
    saved = json.loads((run / "evaluation.json").read_text())
    data = reading.load_run(run)
    for row, cells in zip(comparisons(data.evaluation), run_words.evaluation_table(data).rows, strict=True):
        for when, cell in zip(("before", "after"), cells[1:3], strict=True):
            found = saved[when][row.sampling][row.metric]
            assert cell == f"{found['mean']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (0.6, 0.5, "fell from 0.60 to 0.50"),
        (0.5, 0.504, "stayed at 0.50"),
        (-0.5, 0.1, "rose from -0.50 to 0.10"),
    ],
)
def test_the_verb_follows_the_printed_numbers(before: float, after: float, said: str) -> None:
    assert run_words.movement(before, after) == said


def test_overlapping_intervals_are_said(tmp_path: Path) -> None:
    path = make_run(tmp_path / "run", steps=1)
    write_json(path / "evaluation.json", {"before": evaluation(0.5, 0.5), "after": evaluation(0.52, 0.49)})
    assert "overlap: the change may be chance" in run_words.run_subtitle(reading.load_run(path))


def test_groups_are_those_of_the_rollout_files(run: Path) -> None:
    payload = Page(run / "report.html").payload()
    assert len(payload["groups"]) == 12 * 4
    group = payload["groups"][5]
    frame = pd.read_parquet(run / "rollouts" / "step-000002.parquet").iloc[8:16]
    assert group["numbers"]["step"] == 2
    assert group["numbers"]["mean_reward"] == pytest.approx(frame["reward"].mean(), rel=1e-5)
    assert group["numbers"]["spread"] == pytest.approx(frame["reward"].std(ddof=1), rel=1e-5)
    assert [a["advantage"] for a in group["answers"]] == pytest.approx(list(frame["advantage"]), rel=1e-5)
    assert [a["text"] for a in group["answers"]] == [browse.cut(text, 4000) for text in frame["completion"]]
    assert payload["groups"][4]["answers"][0]["reward"] is None


def test_no_markup_of_a_text_survives(run: Path) -> None:
    page = Page(run / "report.html")
    raw = (run / "report.html").read_text(encoding="utf-8")
    assert [a.get("type") for a in page.all("script")] == ["application/json", None]
    assert all((image["src"] or "").startswith("data:image/svg+xml;base64,") for image in page.all("img"))
    assert not [a for _, attributes in page.elements for a in attributes if a.startswith("on") or a == "style"]
    assert not re.search("[\u2028\u2029\u202e]", raw.partition('id="data"')[0])
    data = raw.partition('type="application/json">')[2].partition("</script>")[0]
    assert not set(data) & set("<>&\u2028\u2029")
    shown = {answer["text"] for group in page.payload()["groups"] for answer in group["answers"]}
    assert set(HOSTILE[:-1]) <= shown


def test_names_are_escaped_as_texts_are(tmp_path: Path) -> None:
    path = make_run(tmp_path / "run", steps=1)
    rewrite_rollouts(path, lambda frame: frame.assign(**{HOSTILE[0]: 0.5, HOSTILE[5]: 0.2}))
    saved = json.loads((path / "evaluation.json").read_text())
    saved["after"]["sampled"][HOSTILE[1]] = {"mean": 0.5}
    saved["before"]["split"] = "\ud800 <b>"
    (path / "evaluation.json").write_text(json.dumps(saved), encoding="utf-8")
    write_report(path)
    page = Page(path / "report.html")
    assert len(page.all("script")) == 2 and not page.all("b")
    assert all((image["src"] or "").startswith("data:") for image in page.all("img"))
    assert {HOSTILE[0], HOSTILE[5]} <= {column["key"] for column in page.payload()["columns"]}


def test_the_page_needs_nothing_from_elsewhere(run: Path) -> None:
    page = Page(run / "report.html")
    policy = next(m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert policy and policy.startswith("default-src 'none'; img-src data:; ") and "unsafe" not in policy
    assert not page.all("link") and not page.all("iframe")
    assert all((a["href"] or "").startswith("#") for a in page.all("a"))
    assert "http" not in page.text["style"] and "http" not in page.text["script"].partition('"use strict"')[2]
    assert "innerHTML" not in page.text["script"].partition('"use strict"')[2]
    assert (run / "report.html").stat().st_size < 5_000_000


def test_figures_hold_no_script_and_no_style(run: Path) -> None:
    for image in Page(run / "report.html").all("img"):
        svg = base64.b64decode((image["src"] or "").partition(",")[2]).decode()
        assert svg.rstrip().endswith("</svg>")
        assert "<style" not in svg and "style=" not in svg and "<script" not in svg and "mathdefault" not in svg
        assert image["alt"]


def test_the_same_run_gives_the_same_page(run: Path) -> None:
    before = (run / "report.html").read_bytes()
    assert write_report(run) == run / "report.html"
    assert (run / "report.html").read_bytes() == before
    assert not list(run.glob(".report*"))
