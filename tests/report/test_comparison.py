"""The page of a comparison"""

import json
import math
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from builders_comparison import IDS, make_comparison, make_sweep
from builders_report import HOSTILE
from test_report import Page

from calibrant.cli.main import main
from calibrant.errors import CalibrantError
from calibrant.report import comparison_answers, comparison_figures, comparison_training, write_comparison
from calibrant.report.comparison_files import load_comparison, main_tables
from calibrant.report.published import gains_here, published


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison full of hostile texts, with its page."""
    path = make_comparison(tmp_path_factory.mktemp("compared") / "hostile <b>comparison</b>", beside=("gcpo:table1",))
    write_comparison(path)
    return path


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    return Page(folder / "comparison.html")


def test_the_headline_is_the_largest_gain_of_the_table(folder: Path, page: Page) -> None:
    table = main_tables(load_comparison(folder).table)[0]
    best = next(row for row in table.rows if row.cell == "gcpo_bot")
    assert table.metric == "sampled/f1"
    assert best.gain is not None
    assert page.text["h1"] == f"Sampled F1 on places: gcpo_bot is better than grpo by {best.gain.value:.3f}."
    assert best.gain.value == pytest.approx(0.15, abs=0.03)


def test_no_difference_is_said_not_to_be_shown(tmp_path: Path) -> None:
    path = make_comparison(tmp_path, {"grpo": 0.45, "gcpo_bot": 0.463}, rollouts=False)
    gain = main_tables(load_comparison(path).table)[0].rows[1].gain
    assert gain is not None
    assert gain.value > 0
    write_comparison(path)
    assert (
        Page(path / "comparison.html").text["h1"] == "Sampled F1 on places: no method is shown to be better than grpo."
    )


def test_texts_are_text(page: Page) -> None:
    assert not page.all("script")
    assert not [image for image in page.all("img") if image["src"] == "x"]
    assert all(image["src"].startswith("data:image/svg+xml") for image in page.all("img"))
    assert HOSTILE[0] in page.text["bdi"] + page.text["span"]
    assert "out of memory <script>" in page.text["p"]


def test_every_figure_says_what_to_look_for_and_has_the_same_as_its_alternative(page: Page) -> None:
    images = page.all("img")
    assert len(images) > 8
    assert all(re.search(r"Look (for|at) ", image["alt"] or "") for image in images)


def test_answers_stand_beside_each_other_and_long_ones_are_cut(folder: Path) -> None:
    data = load_comparison(folder)
    section = comparison_answers.changed_prompts(data, data.measured.scores[0], "grpo", "gcpo_bot")
    assert [side.name for side in section.pairs[0].sides] == ["grpo", "gcpo_bot"]
    assert sum(int(note.split(" ")[0]) for _, note in section.pairs[0].sides[0].answers) == 3 * 8
    texts = [text for pair in section.pairs for side in pair.sides for text, _ in side.answers]
    assert max(map(len, texts)) < 500
    assert any(text.startswith("xxx") for text in texts)


def test_changes_are_those_of_the_seeds_in_common() -> None:
    from calibrant.statistics.measurements import Scores

    values = {"a": {0: (0.0, 0.5), 1: (0.0, 0.7)}, "b": {1: (1.0, math.nan), 2: (0.3, 0.3)}}
    scores = Scores("places", "sampled/f1", ("p", "q"), values, {})
    assert comparison_answers.prompt_changes(scores, "a", "b", [1]) == {"p": 1.0}


def test_a_band_goes_from_the_lowest_to_the_highest_seed() -> None:
    table = comparison_figures.seed_band({0: [1.0, 2.0], 1: [3.0, math.nan], 2: [2.0, 5.0]})
    assert table.loc[1].tolist() == [2.0, 1.0, 3.0]
    assert table.loc[2].tolist() == [3.5, 2.0, 5.0]


def test_selections_are_those_among_the_most_samples(page: Page) -> None:
    assert "majority vote of 16" in page.text["th"]
    assert "majority vote of 8" not in page.text["th"]


def test_equal_answers_make_no_pairs(folder: Path) -> None:
    data = load_comparison(folder)
    section = comparison_answers.changed_prompts(data, data.measured.scores[0], "grpo", "grpo")
    assert section.text == ["No prompt has another sampled F1 with grpo than with grpo."]


def test_missing_answers_are_said(tmp_path: Path) -> None:
    path = make_comparison(tmp_path, rollouts=False)
    write_comparison(path)
    assert "The answers of grpo with seed 0 are left out" in Page(path / "comparison.html").text["p"]


def test_a_sweep_has_a_figure_against_its_option_and_counts_collapses(tmp_path: Path) -> None:
    data = load_comparison(make_sweep(tmp_path))
    section = next(iter(comparison_training.sweeps(data, main_tables(data.table))))
    assert [plot.title for plot in section.plots] == [
        "F1, sampled, on places, against learning rate",
        "Collapsed runs by F1, sampled, on places",
        "accuracy, sampled, on places, against learning rate",
    ]
    broken = {row.cell: row.collapsed for row in main_tables(data.table)[0].rows if row.collapsed}
    assert broken == {"grpo,learning_rate=0.001": (0, 1, 2)}


def test_values_that_are_no_numbers_are_drawn_too(tmp_path: Path) -> None:
    path = make_sweep(tmp_path, ("Qwen/Qwen2.5-0.5B", "$\\frac$", "x" * 300))
    write_comparison(path)
    assert "Against learning rate" in Page(path / "comparison.html").text["h2"]


def test_one_seed_and_one_cell_make_a_page(tmp_path: Path) -> None:
    write_comparison(make_comparison(tmp_path / "seed", seeds=1))
    write_comparison(make_comparison(tmp_path / "cell", {"grpo": 0.5}))
    assert "nothing to compare" in Page(tmp_path / "cell" / "comparison.html").text["h1"]


def test_published_numbers_are_said_to_be_no_comparison(page: Page) -> None:
    assert "A reference of shape, not a comparison" in page.text["p"]
    assert "73.77 ± 0.16 (+11.4%)" in page.text["td"]


def test_a_published_table_stands_beside_what_was_measured_here(folder: Path) -> None:
    table = load_comparison(folder).table
    header, *rows = published("gcpo:table1").rows_of_text(gains_here(table))
    assert header[2] == "here: places, F1, sampled"
    best = next(row for row in main_tables(table)[0].rows if row.cell == "gcpo_bot")
    assert best.gain is not None
    assert best.deviation is not None
    mine = f"{best.mean:.3f} ± {best.deviation:.3f} ({best.gain.percent:+.1f}%)"
    assert next(row for row in rows if row[1] == "gcpo_bot")[2] == mine
    assert next(row for row in rows if row[1] == "empo")[2] == "–"


def test_the_command_draws_a_comparison_again_published_tables_included(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = (folder / "comparison.html").read_bytes()
    (folder / "comparison.html").unlink()
    assert main(["report", str(folder), "--images", str(folder / "images")]) == 0
    assert (folder / "comparison.html").read_bytes() == drawn
    images = sorted((folder / "images").iterdir())
    assert len(images) == drawn.count(b"<img ") and "gains-" in " ".join(image.name for image in images)
    assert all(ElementTree.parse(image).getroot().tag.endswith("svg") for image in images)
    assert capsys.readouterr().out.strip().endswith("comparison.html")


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"measurements": {"cells": 3}}'])
def test_a_damaged_file_is_one_sentence(content: str, tmp_path: Path) -> None:
    (tmp_path / "comparison.json").write_text(content)
    with pytest.raises(CalibrantError, match="is damaged"):
        write_comparison(tmp_path)


def test_names_cannot_leave_the_directory(tmp_path: Path) -> None:
    path = make_comparison(tmp_path / "inside")
    saved = json.loads((path / "comparison.json").read_text())
    saved["measurements"]["scores"][0]["task"] = "../../outside"
    (path / "comparison.json").write_text(json.dumps(saved))
    data = load_comparison(path)
    assert data.evaluation("../../outside", "grpo", 0) == path / "none"
    assert data.measured.scores[0].prompts == IDS
