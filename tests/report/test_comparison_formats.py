"""The table of a comparison as text, Markdown, LaTeX and CSV."""

import csv
import io
import re
import shutil
import subprocess
from dataclasses import replace

import pytest

from calibrant.report.comparison_table import as_csv, as_latex, as_markdown, as_text, latex, markdown
from calibrant.report.comparison_words import metric_notes, verdict
from calibrant.statistics.comparison_table import (
    CellSummary,
    ComparisonRow,
    ComparisonTable,
    Cost,
    Gain,
    MetricTable,
    Stability,
)

HOSTILE = "a_b|<b>\n\x1b[31m \\input{/etc/passwd} $x$ 50% & #1 ~^ {y} `c` [l](javascript:1) =SUM(A1)"


def gain(value=0.012, low=0.003, high=0.021, p=0.01, p_holm=0.02, **changed):
    return Gain(**{"against": "grpo", "value": value, "percent": 100 * value / 0.4, "over": "seeds and prompts",
                   "pairs": (0, 1, 2), "standard_error": 0.003, "df": 4.0, "low": low, "high": high, "p": p,
                   "p_holm": p_holm, "above_zero": 0.98, "detectable": 0.03, "seeds_needed": 5, **changed})  # fmt: skip


def row(cell, gain=None, seeds=3, mean=0.4):
    by_seed = dict.fromkeys(range(seeds), mean)
    return ComparisonRow(
        cell, by_seed, mean, 0.01 if seeds > 1 else None, 0.3, (), gain, Stability(0.5, 0.4, 0.0) if gain else None
    )


def table_of(*rows, metric="sampled/f1", prompts=32, **changed):
    return MetricTable("places", metric, prompts, **{"dropped": 0, "missing": (), **changed}, rows=rows)


def comparison(*tables, names=("grpo", "gcpo_bot"), left_out=None, pair_seeds=True):
    costs = [
        {"updates": Cost(30.0 * k, float(k), k > 1), "seconds/reward": Cost(1.0, 9.0, True)}
        for k in range(1, len(names) + 1)
    ]
    cells = tuple(
        CellSummary(n, {"method": n}, (0, 1, 2), left_out or {}, c) for n, c in zip(names, costs, strict=True)
    )
    return ComparisonTable(names[0], "shared", pair_seeds, {}, cells, tables)


LESS, NULL = gain(-0.012, -0.021, -0.003), gain(0.004, -0.01, 0.018, 0.5, 0.5)


@pytest.mark.parametrize(("metric", "given", "expected"), [
    ("sampled/f1", gain(), "gcpo_bot is better than grpo by 0.012 [0.003, 0.021] (p = 0.020 after Holm)."),
    ("sampled/f1", LESS, "gcpo_bot is worse than grpo by 0.012 [0.003, 0.021] (p = 0.020 after Holm)."),
    ("calibration/brier", LESS, "gcpo_bot is better than grpo by 0.012 [0.003, 0.021] (p = 0.020 after Holm)."),
    ("sampled/f1", NULL, "no difference between gcpo_bot and grpo is shown: with 3 seeds and 32 prompts a gain below "
     "0.030 is often missed."),
    ("sampled/f1", gain(p=0.04, p_holm=0.08), "no difference between gcpo_bot and grpo is shown after the correction "
     "for 1 comparison (p = 0.040, p = 0.080 after Holm): with 3 seeds and 32 prompts a gain below 0.030 is "
     "often missed."),
    ("sampled/f1", gain(over="prompts"), "gcpo_bot is better than grpo by 0.012 [0.003, 0.021] (p = 0.020 after Holm). "
     "This is over prompts alone: one seed says nothing about another."),
    ("sampled/f1", gain(p=None, p_holm=None, low=None, high=None, over=""), "gcpo_bot differs from grpo by 0.012; the "
     "values have no spread from which an interval could be made."),
    ("sampled/f1", gain(0.0, p=None, p_holm=None, low=None, high=None, over=""), "gcpo_bot equals grpo; the values "
     "have no spread from which an interval could be made."),
])  # fmt: skip
def test_verdicts(metric, given, expected):
    table = table_of(row("grpo"), row("gcpo_bot", given), metric=metric)
    assert verdict(table.rows[1], table) == expected and verdict(table.rows[0], table) == ""


def test_what_limits_a_table_is_said():
    limited = table_of(row("grpo", seeds=2), prompts=0, dropped=2, missing=("empo",))
    notes = " ".join(metric_notes(limited))
    assert "2 prompts without a value" in notes and "Not measured for empo." in notes and "No gains" in notes
    assert "not for new prompts" in notes and "two seeds" in notes
    tested = table_of(row("grpo"), row("gcpo_bot", gain()))
    assert metric_notes(tested) == [
        "No deviation over seeds differs from the baseline's (Brown-Forsythe, uncorrected); twice the deviation is "
        "seen with a probability of 0%."
    ]


def test_runs_that_collapsed_are_named():
    broken, worse = (
        replace(row(name, gain()), collapsed=seeds) for name, seeds in {"gcpo_bot": (1,), "rd_only": (0, 1, 2)}.items()
    )
    note, _ = metric_notes(table_of(row("grpo"), broken, worse))
    assert "before training: gcpo_bot (seed 1); rd_only (seed 0, 1, 2). Where runs collapse" in note


def test_text_says_settings_failures_cost_and_verdicts_within_the_width():
    names = ("grpo", "gcpo_bot, learning_rate=0.0001, alpha=0.3, beta=0.001, " + "x" * 80 + ", temperature=0.7")
    wide = table_of(row(names[0]), row(names[1], gain(-12345.678, -23456.789, -1234.567)))
    text = as_text(comparison(wide, names=names, left_out={3: "out of memory " * 20}))
    assert max(map(len, text.splitlines())) <= 120
    assert "shared settings" in text and "without seed 3" in text and "2.00 times the updates" in text
    assert "[-23456.789, -1234.567]" in text and "temperature=0.7" in text and "seconds/reward" not in text
    assert "the gain that is shown with a probability of 80%" in " ".join(text.split()) and "60 (2.00*)" in text


@pytest.mark.parametrize(("pair", "gains", "said"), [
    (True, [gain(), gain()], "Runs of equal seeds are compared as pairs."),
    (True, [gain(), gain(pairs=(0, 2))], "b and grpo have the seeds 0, 2 in common: the gain is over these alone."),
    (True, [gain(), gain(pairs=())], "b and grpo have no seed in common: they are not compared as pairs."),
    (False, [gain(pairs=()), gain(pairs=())], "Runs of equal seeds are not paired (--no-pair-seeds)."),
    (True, [gain(over="prompts"), gain(over="")], None),
])  # fmt: skip
def test_text_says_whether_seeds_are_paired(pair, gains, said):
    table = table_of(row("grpo"), *(row(name, one) for name, one in zip("ab", gains, strict=True)))
    text = as_text(comparison(table, names=("grpo", "a", "b"), pair_seeds=pair))
    assert said in text if said else "pair" not in text


def test_by_default_the_sampled_answers_are_shown_and_the_rest_is_named():
    tables = [table_of(row("grpo"), row("gcpo_bot", gain()), metric=m) for m in ("sampled/f1", "greedy/f1")]
    text = as_text(comparison(*tables))
    assert "places, sampled/f1 (32 prompts" in text and "Further metrics: places greedy/f1." in text
    assert "places, greedy/f1 (" in as_text(comparison(*tables), ["greedy/f1"])
    assert "places, greedy/f1 (" in as_markdown(comparison(tables[1])) and as_text(comparison())


def hostile():
    names = ("grpo", HOSTILE)
    return comparison(
        replace(table_of(row("grpo"), row(HOSTILE, gain(against=HOSTILE))), task=HOSTILE),
        names=names,
        left_out={1: HOSTILE},
    )


def test_markdown_is_escaped():
    text = as_markdown(replace(hostile(), tables=(table_of(row("grpo"), row(HOSTILE, gain())),)))
    assert not re.search(r"(?<!\\)[<`$~]", text) and "\x1b" not in text and "[l](" not in text.replace("\\[l\\](", "")
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    columns = {len(re.findall(r"(?<!\\)\|", line)) for line in rows if "mean" in line or "0.4" in line}
    assert columns == {11}
    assert markdown("1 | 2") == r"1 \| 2"


def test_latex_is_escaped_and_balanced():
    text = as_latex(hostile())
    assert r"\input" not in text and r"\textbackslash{}input\{" in text and "\x1b" not in text
    assert text.count(r"\begin{") == text.count(r"\end{") == 2 and r"\toprule" in text
    body = text.split(r"\midrule")[1].split(r"\bottomrule")[0].strip().splitlines()
    assert [len(re.findall(r"(?<!\\)&", line)) for line in body] == [9, 9] and all(x.endswith(r" \\") for x in body)
    assert latex("\\") == r"\textbackslash{}"


def test_a_name_is_no_argument_of_the_line_break_before_it():
    text = as_latex(comparison(table_of(row("[2cm]"), row("*", gain())), names=("[2cm]", "*")))
    assert "{}[2cm] & 3" in text and "{}* & 3" in text


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_latex_compiles(tmp_path):
    document = r"\documentclass{article}\usepackage{booktabs}\begin{document}" + as_latex(hostile()) + r"\end{document}"
    (tmp_path / "t.tex").write_text(document)
    subprocess.run(["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"], cwd=tmp_path, check=True)


def test_csv_has_every_number_in_full():
    table = comparison(
        table_of(row("grpo"), row("gcpo_bot", gain(1 / 3))), table_of(row("grpo"), row("gcpo_bot", NULL), metric="m")
    )
    rows = list(csv.DictReader(io.StringIO(as_csv(table))))
    assert [r["metric"] for r in rows] == ["sampled/f1", "sampled/f1", "m", "m"]
    assert float(rows[1]["gain_value"]) == 1 / 3 and rows[0]["gain_value"] == "" and rows[1]["gain_p_holm"] == "0.02"
    assert rows[1]["updates_ratio"] == "2.0" and rows[1]["deviation_power"] == "0.0" and rows[1]["seeds"] == "3"


def test_csv_holds_no_formula():
    names = ("grpo", "=HYPERLINK(1)\n,x")
    rows = list(
        csv.DictReader(io.StringIO(as_csv(comparison(table_of(row("grpo"), row(names[1], LESS)), names=names))))
    )
    assert rows[1]["cell"] == "'=HYPERLINK(1) ,x" and rows[1]["gain_value"] == "-0.012"
