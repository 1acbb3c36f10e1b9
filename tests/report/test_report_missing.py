"""Incomplete runs, selection of groups, and the page in a browser."""

import math
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from builders_report import evaluation, make_run, rewrite_rollouts

from calibrant.errors import CalibrantError
from calibrant.files import write_json, write_yaml
from calibrant.report import browse, figures, reading, run_page, write_picture, write_report


def words(path: Path) -> str:
    """The visible words of a page."""
    page = re.sub(r"<(script|style)[^>]*>.*?</\1>", " ", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]+>", " ", page).split())


def drop(run: Path, name: str) -> None:
    target = run / name
    shutil.rmtree(target) if target.is_dir() else target.unlink()


def only_before(run: Path) -> None:
    write_json(run / "evaluation.json", {"before": evaluation(0.41, 0.55)})


def holes_in_metrics(run: Path) -> None:
    lines = [
        '{"step": 1}',
        '{"step": 2, "reward": null, "grad_norm": 0.5}',
        '{"loss": 1}',
        "[]",
        '{"step": 3, "reward": "x"}',
        '{"step": 4, "reward": 1e308, "kl": NaN, "grad_norm": Infinity}',
    ]
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def plain_grpo(run: Path) -> None:
    gone = ["barycentric_transport", "reward_dispersion", "geometric_weight", "reward_weight", "cluster"]
    rewrite_rollouts(run, lambda frame: frame.drop(columns=gone).assign(weight=1.0, ref_logprob=None))
    (run / "metrics.jsonl").write_text('{"step": 1, "reward": 0.5}\n', encoding="utf-8")


def damaged_files(run: Path) -> None:
    (run / "metrics.jsonl").write_text('{"step": 1, "reward": 0.5}\n{"step": 2, \n', encoding="utf-8")
    (run / "evaluation.json").write_text("{", encoding="utf-8")
    (run / "rollouts" / "step-000001.parquet").write_bytes(b"PAR1")


MISSING = {
    "no evaluation after": (only_before, "No evaluation after training is saved."),
    "no evaluation": (lambda run: drop(run, "evaluation.json"), "no evaluation is saved"),
    "no metrics": (lambda run: drop(run, "metrics.jsonl"), "metrics.jsonl holds no “kl” (beta is 0?)"),
    "no rollouts": (lambda run: drop(run, "rollouts"), "holds no rollout files of training"),
    "holes in metrics": (holes_in_metrics, "metrics.jsonl holds no “reward”"),
    "plain grpo": (plain_grpo, "has saved no signals"),
    "no reward at all": (
        lambda run: rewrite_rollouts(run, lambda frame: frame.assign(reward=math.nan)),
        "Unscorable rewards: 1.",
    ),
    "empty and null texts": (
        lambda run: rewrite_rollouts(run, lambda frame: frame.assign(completion=None, prompt="", answer=None)),
        "8 of 8 training groups",
    ),
    "files of another make": (
        lambda run: rewrite_rollouts(run, lambda f: f[["prompt_id", "completion", "correct"]].assign(**{"$x^{": 0.5})),
        "$x^{",
    ),
    "damaged files": (damaged_files, "A rollout file was left out"),
}


@pytest.mark.parametrize("name", MISSING)
def test_what_is_missing_is_said(tmp_path: Path, name: str) -> None:
    path = make_run(tmp_path / "run", steps=2)
    change, said = MISSING[name]
    change(path)
    write_report(path)
    text = words(path / "report.html")
    assert said in text
    assert not re.search(r"\bnan\b|\bNone of [a-z]+ \d|\binf\b|undefined", text)


def test_one_step_and_nothing_else(tmp_path: Path) -> None:
    one = make_run(tmp_path / "one", steps=1, prompts=1, answers=2)
    assert "1 of 1 training groups" in words(write_report(one))
    write_yaml(tmp_path / "empty" / "config.yaml", {"command": "train"})
    text = words(write_report(tmp_path / "empty"))
    assert "This run has saved no result yet." in text


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    for wrong in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(CalibrantError, match=r"is not a run directory.*give the folder"):
            write_report(wrong)
    (tmp_path / "config.yaml").write_text("- a list", encoding="utf-8")
    with pytest.raises(CalibrantError, match="is not a YAML mapping"):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_one_prompt_twice_in_a_step_is_two_groups() -> None:
    frame = pd.DataFrame(
        {"prompt_id": ["a"] * 4, "rollout": [0, 1, 0, 1], "completion": "x", "reward": [0.0, 1.0, 1.0, 1.0]}
    )
    table = reading.group_table(reading.tidy(frame, 3), "file")
    assert list(table["mean_reward"]) == [0.5, 1.0]
    assert list(table["uninformative"]) == [0.0, 1.0]
    assert list(table["step"]) == [3.0, 3.0]


def test_extremes_are_chosen_and_the_rest_evenly() -> None:
    weight = np.linspace(0, 1, 1000)[np.random.default_rng(0).permutation(1000)]
    groups = pd.DataFrame({"step": np.arange(1000) // 10, "weight": weight})
    chosen = browse.choose_groups(groups, 300)
    assert len(chosen) == 300
    assert set(groups["weight"].nlargest(20).index) | set(groups["weight"].nsmallest(20).index) <= set(chosen.index)
    assert chosen.groupby(chosen["step"] // 10).size().between(24, 38).all()


def test_long_texts_keep_the_page_small(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(browse, "BUDGET", 60_000)
    shown = browse.browser(reading.load_run(run))
    assert shown.limit < 4000
    assert len(shown.json.encode()) <= 200_000


def test_quantile_bands_by_hand() -> None:
    table = figures.quantile_bands(pd.Series([1, 1, 1, 2]), pd.Series([0.0, 1.0, 2.0, 5.0]))
    assert list(table["middle"]) == [1.0, 5.0]
    assert list(table["q25"]) == [0.5, 5.0]
    long = figures.quantile_bands(pd.Series(range(1000)), pd.Series(np.zeros(1000)))
    assert len(long) <= figures.BINS and long.attrs["pooled"] == 17


def test_the_picture_alone(run: Path, tmp_path: Path) -> None:
    assert write_picture(run, tmp_path / "main.png").read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in write_picture(run, tmp_path / "main.svg").read_bytes()
    with pytest.raises(CalibrantError, match=r"\.svg or \.png"):
        write_picture(run, tmp_path / "main.gif")
    write_yaml(tmp_path / "empty" / "config.yaml", {"command": "train"})
    with pytest.raises(CalibrantError, match="neither rewards nor evaluations"):
        write_picture(tmp_path / "empty", tmp_path / "main.png")


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
in_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine to open the page with")


def browse_to(url: str, profile: Path) -> tuple[str, str]:
    """The document after its scripts ran, and what the browser's console said."""
    quiet = ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
    quiet += ["--disable-component-update", "--disable-sync", "--enable-logging=stderr", "--v=0"]
    command = [
        str(CHROMIUM),
        "--headless",
        "--no-sandbox",
        *quiet,
        f"--user-data-dir={profile}",
        "--dump-dom",
        url,
    ]
    done = subprocess.run(command, capture_output=True, timeout=60, check=True)
    lines = done.stderr.decode(errors="replace").splitlines()
    return done.stdout.decode(errors="replace"), "\n".join(line for line in lines if "CONSOLE" in line)


@in_browser
def test_the_page_runs_in_a_browser(run: Path, tmp_path: Path) -> None:
    dom, console = browse_to((run / "report.html").as_uri() + "#group-4", tmp_path)
    assert console == ""
    assert re.search(r'<html[^>]* data-calibrant="ready"', dom) and re.search(r'<html[^>]* data-rows="40"', dom)
    assert dom.count('<tr class="group') == 40 and dom.count('class="detail"') == 1
    assert len(re.findall(r"<script\b", dom)) == 2 and "data-broken" not in re.findall(r"<body[^>]*>", dom)[0]
    assert not re.search(r"<img(?! src=\"data:image/svg)", dom)
    assert "48 groups" in dom


@in_browser
def test_the_policy_stops_what_should_not_be_there(run: Path, tmp_path: Path) -> None:
    page = (run / "report.html").read_text(encoding="utf-8")
    strange = (
        "<script>document.documentElement.dataset.strange = 1</script><img src='https://example.org/x.png'></main>"
    )
    (tmp_path / "page.html").write_text(page.replace("</main>", strange), encoding="utf-8")
    dom, console = browse_to((tmp_path / "page.html").as_uri(), tmp_path / "profile")
    assert "data-strange" not in dom
    assert console.count("Content Security Policy") == 2


def test_shares_of_the_weights_variance_add_up_where_the_weight_is_the_product_of_its_factors(tmp_path: Path) -> None:
    run = reading.load_run(make_run(tmp_path / "run", steps=4))
    rows = run_page.weights(run).table.rows
    shares = [float(row[3].rstrip("%")) for row in rows if row[0] != "weight"]
    assert len(shares) == 2 and sum(shares) == pytest.approx(100, abs=1.5)
    weights = run.groups["weight"]
    assert rows[0][1:3] == [f"{weights.mean():.4f}", f"{weights.std(ddof=0) / weights.mean():.1%}"]
    run.groups["weight"] = run.groups["weight"].to_numpy()[::-1]
    assert all(row[3] == "–" for row in run_page.weights(run).table.rows)
