"""The report: numbers from files, no markup from the run, and a page that runs in a browser."""

import base64
import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from calibrant.errors import CalibrantError
from calibrant.files import append_json_line, write_json, write_yaml
from calibrant.report import browse, figures, reading, run_words, write_picture, write_report
from calibrant.report.evaluations import comparisons
from calibrant.rollouts import write_rollouts

HOSTILE = (
    "</script><script>alert(1)</script>",
    "<img src=x onerror=\"document.body.setAttribute('data-broken', 1)\">",
    "<!--<script>",
    "line\u2028separator\u2029paragraph",
    "🦜🇪🇪 e\u0301",
    "\u202eמימין לשמאל\u202c עברית",
    "{{ 7 * 7 }} {% raw %} &lt;b&gt; ]]>",
    "\x00\x07 control $\\frac{1}{2}$",
    "",
    "x" * 50_000,
)
"""What a model, a data set or a joker can put into a text."""

COUNTRIES = {
    "Estonia": ["Latvia", "Russia"],
    "Chad": ["Libya", "Niger", "Sudan"],
    "Peru": ["Bolivia", "Brazil", "Chile"],
}


def make_run(
    path: Path, *, steps: int = 12, prompts: int = 4, answers: int = 8, seed: int = 0, hostile: bool = True
) -> Path:
    """A run directory whose numbers move as those of a real run do."""
    rng = np.random.default_rng(seed)
    write_yaml(path / "config.yaml", config(steps, prompts, answers, hostile))
    for step in range(1, steps + 1):
        skill = 0.35 + 0.4 * (1 - math.exp(-3 * step / steps))
        rows = [row for i in range(prompts) for row in group_rows(rng, step, i, answers, skill, hostile)]
        write_rollouts(path / "rollouts" / f"step-{step:06d}.parquet", rows)
        append_json_line(path / "metrics.jsonl", metric_line(rng, step, rows, answers))
    write_json(path / "evaluation.json", {"before": evaluation(0.4137, 0.552), "after": evaluation(0.6642, 0.7018)})
    return path


def config(steps: int, prompts: int, answers: int, hostile: bool) -> dict:
    settings = {
        "task": "places",
        "model": HOSTILE[0] if hostile else "demo",
        "method": "gcpo_bot",
        "seed": 0,
        "steps": steps,
    }
    settings |= {
        "prompts_per_step": prompts,
        "rollouts": answers,
        "temperature": 0.9,
        "learning_rate": 3e-4,
        "beta": 0.002,
    }
    settings |= {
        "schedule": "linear",
        "alpha": None,
        "mean_one": False,
        "reward_range": [0.0, 2.0],
        "save_every": 25,
    }
    versions = {
        "calibrant": "0.1.0",
        "torch": "2.13.0",
        "transformers": "5.23.0",
        "trl": "1.16.0",
        "python": "3.12.1",
    }
    return {"command": "train", "settings": settings, "versions": versions}


def group_rows(rng: np.random.Generator, step: int, i: int, answers: int, skill: float, hostile: bool) -> list[dict]:
    country = list(COUNTRIES)[int(rng.integers(len(COUNTRIES)))]
    ease = float(np.clip(rng.normal(skill, 0.25), 0, 1))
    reward = 2 * np.clip(rng.choice([0.0, 0.4, 0.67, 1.0], answers, p=mixture(ease)), 0, 1)
    clusters = np.unique(np.round(reward, 1), return_inverse=True)[1]
    doubt = float(np.clip(0.5 * (1 - np.bincount(clusters).max() / answers) + rng.normal(0.03, 0.02), 0, 0.5))
    spread = float(np.abs(reward - reward.mean()).mean())
    factors = (1 - 0.29 * doubt**2, 1 + 0.29 * spread)
    advantage = (reward - reward.mean()) / (reward.std(ddof=1) + 1e-4)
    return [
        {
            "prompt_id": f"{country}-{step}-{i}", "rollout": j, "step": step,
            "references": COUNTRIES[country],
            "prompt": f"{country} {hostile * HOSTILE[(step + i) % 9]}\nWhich countries border {country}?",
            "completion": text(rng, country, reward[j], hostile),
            "answer": text(rng, country, reward[j], False),
            "reward": math.nan if (step, i, j) == (2, 0, 0) else float(reward[j]),
            "correct": bool(reward[j] > 1.9), "num_tokens": int(rng.integers(3, 24)),
            "cluster": int(clusters[j]),
            "advantage_base": float(advantage[j]), "weight": factors[0] * factors[1],
            "advantage": float(advantage[j] * factors[0] * factors[1]), "barycentric_transport": doubt,
            "reward_dispersion": spread, "geometric_weight": factors[0], "reward_weight": factors[1],
        }
        for j in range(answers)
    ]  # fmt: skip


def mixture(ease: float) -> list[float]:
    return [(1 - ease) * 0.6, (1 - ease) * 0.4, ease * 0.3, ease * 0.7]


def text(rng: np.random.Generator, country: str, reward: float, hostile: bool) -> str:
    known = COUNTRIES[country]
    right = ", ".join(known[: max(1, round(len(known) * reward / 2))]) if reward else "I do not know."
    return HOSTILE[int(rng.integers(len(HOSTILE)))] if hostile and rng.random() < 0.3 else right


def metric_line(rng: np.random.Generator, step: int, rows: list[dict], answers: int) -> dict:
    frame = pd.DataFrame(rows)
    by = frame.groupby(frame.index // answers)
    line = {"step": step, "reward": float(frame["reward"].mean()), "reward_std": float(frame["reward"].std())}
    line |= {"kl": 0.002 * step + 0.003 * rng.random(), "grad_norm": 0.4 + 0.3 * rng.random(), "seconds": 2.5}
    for name in ("weight", "barycentric_transport", "reward_dispersion"):
        values = by[name].mean()
        line |= {f"group/{name}/{k}": float(getattr(values, k)()) for k in ("mean", "min", "max")}
    line["group/uninformative"] = float((by["reward"].max() == by["reward"].min()).mean())
    return line | {"batch/unscorable": float(frame["reward"].isna().sum()), "batch/reward_out_of_range": 0.0}


def evaluation(sampled: float, greedy: float) -> dict:
    def part(f1: float) -> dict:
        values = {"f1": f1, "em": 0.8 * f1, "accuracy": 0.85 * f1}
        return {k: {"mean": v, "low": v - 0.031, "high": v + 0.032} for k, v in values.items()}

    facts = {"task": "places", "split": "test", "prompts": 200, "samples": 16, "temperature": 0.9, "seed": 0}
    return facts | {"greedy": part(greedy), "sampled": part(sampled)}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run full of hostile texts, with its report."""
    path = make_run(tmp_path_factory.mktemp("runs") / "hostile <b>run</b>")
    write_report(path)
    return path


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


def words(path: Path) -> str:
    """The visible words of a page."""
    page = re.sub(r"<(script|style)[^>]*>.*?</\1>", " ", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]+>", " ", page).split())


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


def drop(run: Path, name: str) -> None:
    target = run / name
    shutil.rmtree(target) if target.is_dir() else target.unlink()


def rewrite_rollouts(run: Path, change: object) -> None:
    for file in (run / "rollouts").glob("*.parquet"):
        change(pd.read_parquet(file)).to_parquet(file)  # type: ignore[operator]


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
    with pytest.raises(CalibrantError, match="holds no mapping"):
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
