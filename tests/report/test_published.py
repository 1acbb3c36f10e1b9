"""Published tables"""

import pytest

from calibrant.errors import CalibrantError
from calibrant.methods import METHODS
from calibrant.report.published import WARNING, Here, as_lines, published, published_names

NOTHING = Here("", {})
PRINTED = {  # gains over GRPO in per cent, as the paper prints them in table 1
    "gcpo_cd": (9.60, 10.29, 9.30, 17.95, 20.00, 18.24, 19.94, 26.28),
    "gcpo_bot": (11.38, 12.61, 10.15, 20.02, 16.38, 18.82, 21.56, 27.55),
}


@pytest.mark.parametrize("method", PRINTED)
def test_gains_are_those_that_the_paper_prints(method: str) -> None:
    table = published("gcpo:table1")
    row = next(row for row in table.rows if row.method == method)
    assert [table.gain(row, column) for column in range(8)] == pytest.approx(PRINTED[method], abs=0.02)


@pytest.mark.parametrize("name", published_names())
def test_rows_are_complete_and_name_methods_that_exist(name: str) -> None:
    table = published(name)
    assert table.baseline is None or table.baseline in {row.method for row in table.rows}
    for row in table.rows:
        assert row.method in METHODS or row.method == ""
        assert len(row.numbers) == len(table.columns)
    assert all(number is None or 0 < number.mean < 100 for row in table.rows for number in row.numbers)


def test_a_table_says_what_it_must_not_be_read_as() -> None:
    text = " ".join(published("gcpo:table1").about())
    assert WARNING in text
    assert "arXiv:2605.21801, table 1" in text
    assert "Qwen2.5-1.5B-Instruct" in text


def test_what_is_not_printed_stays_open() -> None:
    empo = next(cells for cells in published("gcpo:table1").rows_of_text(NOTHING) if cells[1] == "empo")
    assert empo[2:4] == ["57.38 ± 0.25 (-13.4%)", "41.32 ± 0.28 (-15.2%)"]
    assert empo[-2:] == ["–", "–"]


def test_gains_need_a_baseline() -> None:
    table = published("gcpo:table6")
    assert all(table.gain(row, 0) is None for row in table.rows)


@pytest.mark.parametrize("name", published_names())
def test_a_table_fits_a_terminal(name: str) -> None:
    here = Here("here: places, F1, sampled", {"gcpo_bot": "0.585 ± 0.006 (+31.6%)"})
    text = as_lines(published(name), here)
    assert max(len(line) for lines in text for line in lines.split("\n")) <= 120
    assert all(any(cell in line for line in text) for cells in published(name).rows_of_text(here) for cell in cells)


def test_an_unknown_table_is_named_with_the_nearest() -> None:
    with pytest.raises(CalibrantError, match=r"no published table 'gcpo:tabel1'.*gcpo:table1"):
        published("gcpo:tabel1")
