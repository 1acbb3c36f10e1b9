"""`calibrant analyze`: what it measures, that an interruption changes nothing, and what it recommends."""

import html
import json
import math
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from refusals import refused

from calibrant.advantages import standardised
from calibrant.analyze import collect as collecting
from calibrant.analyze.collect import measure_context
from calibrant.analyze.groups import given_group, group_seed, groups_of_file, sampled_group
from calibrant.analyze.measure import measure_group
from calibrant.analyze.recommendation import ENOUGH, Evidence, paper_order, recommend, strength
from calibrant.analyze.settings import AnalyzeSettings
from calibrant.analyze.store import default_path
from calibrant.analyze.tables import (
    association_table,
    association_tables,
    outcome_counts,
    outliers,
    read_columns,
    subsets,
)
from calibrant.cli.main import main
from calibrant.errors import CalibrantError
from calibrant.files import keep_lines
from calibrant.gradients import gradient_variance
from calibrant.methods import METHODS
from calibrant.policy.head import find_head
from calibrant.policy.models import load_policy, load_tokenizer
from calibrant.report import write_analysis_report
from calibrant.report.analysis_files import Analysis
from calibrant.report.names import PAPER_ORDER, SIGNALS
from calibrant.rollouts import write_rollouts
from calibrant.signals import cosine_dispersion, reward_dispersion, semantic_entropy
from calibrant.tasks.places import TASK
from calibrant.text.embed import Embedder

SMALL = ["analyze", "--queries", "6", "--rollouts", "4"]
KEPT = ("groups.jsonl", "rollouts.jsonl", "analysis.json")


@pytest.fixture(autouse=True, scope="module")
def fewer_resamples() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("calibrant.analyze.tables.RESAMPLES", 100)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory, fewer_resamples) -> Path:
    """An analysis that nothing has interrupted."""
    path = tmp_path_factory.mktemp("whole") / "analysis"
    assert main([*SMALL, "--out", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def tools(one_thread):
    return measure_context(AnalyzeSettings(), TASK, load_policy("demo"))


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("demo")


def lines_of(path: Path) -> list[dict]:
    return list(Analysis(path).lines())


def rollouts_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in (path / "rollouts.jsonl").read_text().splitlines()]


def test_every_group_has_every_signal_and_its_variance(whole):
    lines = lines_of(whole)
    assert [line["index"] for line in lines] == list(range(6))
    for line in lines:
        assert set(line["signals"]) == set(SIGNALS)
        assert all(isinstance(x, float) for x in line["signals"].values())
        truth = line["truth"]
        assert truth["gradient_variance"] == pytest.approx(truth["variance_intra"] + truth["variance_inter"], rel=1e-5)
        assert (truth["gradient_variance"] > 0) == (line["outcome"] == "informative")
        assert truth["score_variance"] > 0
    assert len(rollouts_of(whole)) == 24


def test_signals_are_those_of_the_rollouts_that_are_written(whole):
    line, rows = lines_of(whole)[0], rollouts_of(whole)[:4]
    clusters = torch.tensor([[row["cluster"] for row in rows]])
    rewards = torch.tensor([[row["reward"] for row in rows]], dtype=torch.float64)
    embeddings = Embedder()([row["answer"] for row in rows])[None].double()
    found = line["signals"]
    assert found["semantic_entropy_discrete"] == semantic_entropy(clusters).double().item()
    assert found["reward_dispersion"] == reward_dispersion(rewards, (0.0, 2.0)).item()
    assert found["cosine_dispersion"] == pytest.approx(cosine_dispersion(embeddings).item(), rel=1e-5)
    means = [row["logprob"] / row["num_tokens"] for row in rows]
    assert found["mean_logprob"] == pytest.approx(sum(means) / 4)
    assert found["predictive_entropy"] == pytest.approx(-sum(row["logprob"] for row in rows) / 4)
    assert found["token_entropy"] == pytest.approx(sum(row["token_entropy"] for row in rows) / 4)
    assert line["success_rate"] == sum(row["correct"] for row in rows) / 4


def test_the_variance_is_that_of_one_backward_pass_a_rollout(whole, tools, tokenizer):
    index = next(line["index"] for line in lines_of(whole) if line["outcome"] == "informative")
    frame = groups_of_file(str(whole / "rollouts.jsonl"))[index]
    group = given_group(frame, tokenizer, 2048, torch.device("cpu"))
    advantages = standardised(torch.tensor([[row["reward"] for row in group.rows]], dtype=torch.float64))
    clusters = torch.tensor([[row["cluster"] for row in group.rows]])
    slow = gradient_variance(
        tools.model, group.tokens._asdict(), advantages, backend="loop", clusters=clusters, temperature=0.9
    )
    truth = lines_of(whole)[index]["truth"]
    for name in ("score_variance", "variance_inter", "mean_norm_squared"):
        assert truth[name] == pytest.approx(getattr(slow, name).item(), rel=1e-4)
    assert truth["gradient_variance"] == pytest.approx(slow.variance.item(), rel=1e-4)


def test_the_head_alone_is_the_gradient_of_the_head(whole, tokenizer):
    model = load_policy("demo")
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())  # no longer the embedding's
    frame = groups_of_file(str(whole / "rollouts.jsonl"))[0]
    group = given_group(frame, tokenizer, 2048, torch.device("cpu"))
    advantages = standardised(torch.tensor([[row["reward"] for row in group.rows]]))
    exact = gradient_variance(model, group.tokens._asdict(), advantages, parameters="lm_head.weight", temperature=0.9)
    signals = lines_of(whole)[0]["signals"]
    assert signals["head_gradient_variance"] == pytest.approx(exact.variance.item(), rel=1e-3)
    assert signals["head_score_variance"] == pytest.approx(exact.score_variance.item(), rel=1e-3)


def test_an_entailment_model_makes_the_clusters(whole, tools, tokenizer):
    def matrix(groups):
        same = torch.tensor([[[a[:1] == b[:1] for b in group] for a in group] for group in groups])
        entails = torch.where(same, 0.5, 0.1)
        return torch.stack([0.5 - entails / 2, 0.5 - entails / 2, entails], dim=-1)

    frame = groups_of_file(str(whole / "rollouts.jsonl"))[1]
    group = given_group(frame, tokenizer, 2048, torch.device("cpu"))
    letters = [row["answer"][:1] for row in group.rows]
    judged = replace(tools, entailment=SimpleNamespace(matrix=matrix), entailment_threshold=0.4)
    line, rows = measure_group(0, group, judged)
    assert [row["cluster"] for row in rows] == [list(dict.fromkeys(letters)).index(letter) for letter in letters]
    assert line["clusters"] == len(set(letters))
    strict, _ = measure_group(0, group, replace(judged, entailment_threshold=0.6))
    assert strict["clusters"] == len(letters)
    assert strict["signals"]["kernel_language_entropy"] == line["signals"]["kernel_language_entropy"]
    assert strict["truth"]["variance_intra"] == pytest.approx(0.0, abs=1e-9 * strict["truth"]["gradient_variance"])
    assert line["truth"]["gradient_variance"] == strict["truth"]["gradient_variance"]


def test_without_a_linear_head_the_rest_is_measured(whole, tools, tokenizer, monkeypatch):
    capped = find_head(tools.model)._replace(softcap=30.0)
    monkeypatch.setattr("calibrant.analyze.measure.find_head", lambda _: capped)
    frame = groups_of_file(str(whole / "rollouts.jsonl"))[0]
    line, _ = measure_group(0, given_group(frame, tokenizer, 2048, torch.device("cpu")), tools)
    missing = {name for name, x in line["signals"].items() if x is None}
    assert missing == {
        "head_gradient_variance", "head_score_variance", "head_gradient_dispersion", "gradient_snr_weight",
    }  # fmt: skip
    assert line["truth"] == lines_of(whole)[0]["truth"]


def interrupt_after(monkeypatch, groups: int) -> None:
    """As Ctrl-C inside the next group."""
    done = 0

    def stopping(*arguments):
        nonlocal done
        done += 1
        if done > groups:
            raise KeyboardInterrupt
        return measure_group(*arguments)

    monkeypatch.setattr(collecting, "measure_group", stopping)


def test_an_interruption_loses_at_most_one_group_and_changes_nothing(whole, tmp_path, monkeypatch, capsys):
    path = tmp_path / "analysis"
    interrupt_after(monkeypatch, 3)
    assert main([*SMALL, "--out", str(path)]) == 130
    assert f"--out {path} goes on" in capsys.readouterr().err
    monkeypatch.undo()
    assert len(lines_of(path)) == 3 and not (path / "analysis.json").exists()
    with open(path / "groups.jsonl", "a") as file:  # as killed inside a write
        file.write('{"index": 3, "prompt_id": "tra')
    with open(path / "rollouts.jsonl", "a") as file:  # the rollouts of a group come before its line
        file.write(json.dumps(rollouts_of(whole)[12]) + '\n{"prompt_id": "tra')
    measuring = []
    monkeypatch.setattr(collecting, "measure_group", lambda *a: measuring.append(a[0]) or measure_group(*a))
    assert main([*SMALL, "--out", str(path)]) == 0
    assert measuring == [3, 4, 5]
    for name in KEPT:
        assert (path / name).read_bytes() == (whole / name).read_bytes(), name


def test_a_finished_analysis_measures_nothing_again(whole, tmp_path, monkeypatch):
    path = tmp_path / "analysis"
    shutil.copytree(whole, path)
    monkeypatch.setattr(collecting, "measure_group", None)
    assert main([*SMALL, "--out", str(path)]) == 0
    for name in KEPT:
        assert (path / name).read_bytes() == (whole / name).read_bytes(), name


def test_more_queries_go_on_where_fewer_ended(whole, tmp_path):
    path = tmp_path / "analysis"
    assert main(["analyze", "--queries", "2", "--rollouts", "4", "--out", str(path)]) == 0
    results = json.loads((path / "analysis.json").read_text())
    assert results["counts"]["groups"] == 2 and results["tables"]["gradient_variance"] == {}
    assert results["recommendation"]["signal"] is None
    assert main([*SMALL, "--out", str(path)]) == 0
    for name in KEPT:
        assert (path / name).read_bytes() == (whole / name).read_bytes(), name


def test_a_group_depends_on_its_number_alone(tools, tokenizer):
    row = TASK.load("train", 3, 0)[2]
    sample = {"samples": 4, "temperature": 0.9, "length": 32}
    first = sampled_group(tools.model, tokenizer, TASK, row, **sample, seed=group_seed(0, 2))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    again = sampled_group(tools.model, tokenizer, TASK, row, **sample, seed=group_seed(0, 2))
    assert torch.equal(before, torch.get_rng_state())
    other = sampled_group(tools.model, tokenizer, TASK, row, **sample, seed=group_seed(0, 3))
    assert first.rows == again.rows != other.rows
    assert measure_group(2, first, tools) == measure_group(2, again, tools)


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_rollouts_of_a_file_give_what_sampling_gave(whole, tmp_path, ending):
    source = tmp_path / f"rollouts.{ending}"
    write_rollouts(source, rollouts_of(whole))
    path = tmp_path / "again"
    assert main(["analyze", "--from-rollouts", str(source), "--out", str(path)]) == 0
    assert (path / "groups.jsonl").read_bytes() == (whole / "groups.jsonl").read_bytes()
    assert not (path / "rollouts.jsonl").exists()
    first, second = (json.loads((p / "analysis.json").read_text()) for p in (path, whole))
    assert first == second


def test_texts_alone_give_the_same_up_to_how_they_are_split(whole, tmp_path, tools, tokenizer):
    needed = ("prompt_id", "prompt", "completion", "reward", "references")
    rows = [{name: row[name] for name in needed} for row in rollouts_of(whole)]
    source = write_rollouts(tmp_path / "texts.jsonl", rows)
    for index, frame in enumerate(groups_of_file(str(source))[:2]):
        group = given_group(frame, tokenizer, 2048, torch.device("cpu"))
        line, expected = measure_group(index, group, tools)[0], lines_of(whole)[index]
        assert line["signals"]["barycentric_transport"] == expected["signals"]["barycentric_transport"]
        assert line["success_rate"] == expected["success_rate"]
        assert line["truth"]["gradient_variance"] == pytest.approx(expected["truth"]["gradient_variance"], rel=0.05)


def test_an_answer_that_was_cut_gets_no_end(tmp_path, tokenizer):
    text = " Paris"
    count = len(tokenizer(text, add_special_tokens=False)["input_ids"])
    row = {"prompt_id": "a", "prompt": "Where?", "completion": text, "reward": 1.0}
    rows = [{**row, "num_tokens": count}, {**row, "num_tokens": count + 1}, row]
    (frame,) = groups_of_file(str(write_rollouts(tmp_path / "r.jsonl", rows)))
    group = given_group(frame, tokenizer, 100, torch.device("cpu"))
    assert group.tokens.completion_mask.sum(-1).tolist() == [count, count + 1, count + 1]
    assert group.tokens.completion_ids[1, -1] == tokenizer.eos_token_id


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_a_conversation_comes_back_from_a_file(tmp_path, tools, tokenizer, ending):
    chat = load_tokenizer("demo")
    chat.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}Answer:"
    turns = [{"role": "system", "content": "Be brief, don't guess"}, {"role": "user", "content": "Where?"}]
    row = {"prompt_id": "a", "prompt": "Where?", "references": ["Rome"], "messages": turns}
    first = sampled_group(tools.model, chat, TASK, row, samples=3, temperature=0.9, length=8, seed=1)
    lines = measure_group(0, first, tools)
    (frame,) = groups_of_file(str(write_rollouts(tmp_path / f"r.{ending}", lines[1])))
    again = given_group(frame, chat, 100, torch.device("cpu"))
    assert all(torch.equal(a, b) for a, b in zip(first.tokens, again.tokens, strict=True))
    assert measure_group(0, again, tools)[0] == lines[0]
    broken = frame.assign(messages="not a conversation")
    with pytest.raises(CalibrantError, match="holds no conversation"):
        given_group(broken, chat, 100, torch.device("cpu"))


def test_ids_of_another_tokenizer_are_not_taken(tmp_path, tokenizer):
    rows = [{"prompt_id": "a", "prompt": "Where?", "completion": " Rome", "reward": 1.0, "completion_ids": [1, 2, 3]}]
    (frame,) = groups_of_file(str(write_rollouts(tmp_path / "r.parquet", rows)))
    ids = given_group(frame, tokenizer, 100, torch.device("cpu")).tokens.completion_ids[0].tolist()
    assert tokenizer.decode(ids, skip_special_tokens=True) == " Rome"


def hostile_file(path: Path) -> Path:
    """Groups of one answer, without reward spread, with nothing scorable, with markup and empty texts."""
    script = "<script>alert(1)</script>"
    answers = {
        script: [(script, 2.0), ("Rome", 0.0), ("", 0.0)],
        "alone": [("Paris", 2.0)],
        "right": [("Paris", 2.0)] * 3,
        "wrong": [("Rome", 0.0)] * 3,
        "unscorable": [("Rome", None)] * 3,
        "one": [("Paris", 2.0), ("Rome", None), ("Oslo", None)],
    }
    rows = [
        {"prompt_id": name, "prompt": f"{name} What is the capital?\nAnswer:", "completion": text, "reward": reward,
         "correct": None if reward is None else reward > 1}
        for name, group in answers.items()
        for text, reward in group
    ]  # fmt: skip
    return write_rollouts(path, rows)


def test_groups_of_every_kind(tmp_path, capsys):
    path = tmp_path / "analysis"
    source = hostile_file(tmp_path / "rollouts.jsonl")
    assert main(["analyze", "--from-rollouts", str(source), "--out", str(path)]) == 0
    found = {line["prompt_id"]: line for line in lines_of(path)}
    outcomes = {name: line["outcome"] for name, line in found.items() if "script" not in name}
    assert outcomes == {
        "alone": "all_right", "right": "all_right", "wrong": "all_wrong", "unscorable": "equal", "one": "all_right",
    }  # fmt: skip
    for name in ("right", "wrong"):
        assert found[name]["truth"]["gradient_variance"] == 0.0
        assert found[name]["truth"]["score_variance"] == pytest.approx(0.0, abs=1e-3)
    assert found["unscorable"]["truth"] == found["one"]["truth"] == {}
    assert found["unscorable"]["success_rate"] is None
    results = json.loads((path / "analysis.json").read_text())
    assert results["counts"] == {
        "groups": 6, "informative": 1, "all_right": 1, "all_wrong": 1, "equal": 0, "unscorable": 3,
    }  # fmt: skip
    assert "1 of 6 have reward spread" in capsys.readouterr().out


class Tags(HTMLParser):
    """What a browser would take as elements."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attributes: list) -> None:
        self.found.append(tag)


def test_no_markup_of_a_text_survives(tmp_path):
    path = tmp_path / "analysis"
    source = hostile_file(tmp_path / "rollouts.jsonl")
    assert main(["analyze", "--from-rollouts", str(source), "--out", str(path)]) == 0
    page = (path / "report.html").read_text()
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    tags = Tags()
    tags.feed(page)
    assert "script" not in tags.found
    assert "default-src 'none'" in html.unescape(page)


def test_the_page_needs_nothing_from_elsewhere(whole):
    page = (whole / "report.html").read_text()
    assert not re.findall(r'(?:src|href)="(?!data:|#)[^"]*"', page)
    for title in ("(a) Rank", "(b) Finding", "(c) BoT minus", "(d) Predicting"):
        assert title in page
    assert page.count("<img ") == 4 + len(SIGNALS)


def test_the_report_is_drawn_again_from_files(whole, tmp_path, capsys):
    path = tmp_path / whole.name
    shutil.copytree(whole, path)
    before = (path / "report.html").read_bytes()
    (path / "report.html").unlink()
    assert main(["report", str(path)]) == 0
    assert (path / "report.html").read_bytes() == before
    (path / "analysis.json").unlink()
    assert "no analysis.json" in refused(capsys, "report", str(path))


def test_score_reads_the_rollouts(whole, capsys):
    assert main(["score", str(whole / "rollouts.jsonl"), "--task", "places"]) == 0
    assert "6 groups, 24 scorable rollouts" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--queries", "0"], "'queries' is 0"),
        (["--rollouts", "1"], "give at least 2"),
        (["--temperature", "nan"], "'temperature' is nan"),
        (["--seed", "-1"], "'seed' is -1"),
        (["--task", "placse"], "places"),
        (["--split", "tset"], "no split 'tset'"),
        (["--model", "/nowhere"], "model '/nowhere'"),
        (["--parameters", "model.layer.*"], "no parameter is named 'model.layer.*'"),
        (["--embedding-model", "/nowhere"], "embedding model '/nowhere'"),
        (["--entailment-model", "/nowhere"], "/nowhere"),
        (["--cluster-rule", "greedi"], "'cluster_rule' is 'greedi' (did you mean 'greedy'?)"),
        (["--from-rollouts", "/nowhere.jsonl"], "no rollout file at '/nowhere.jsonl'"),
        (["--max-prompt-length", "5"], "take"),
        (["--data-dir", "somewhere"], "leave out --data-dir"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(capsys, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    assert said in refused(capsys, "analyze", *arguments)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "holds no rollout"),
        ([{"prompt_id": "a", "completion": "b", "reward": 1.0}], "lacks prompts"),
        ([{"prompt_id": "a", "completion": "b", "prompt": "c"}], "lacks the column reward"),
    ],
)
def test_a_file_that_cannot_be_analysed(capsys, tmp_path, rows, said):
    columns = {"prompt_id": "x", "completion": "x", "reward": 0.0}
    source = write_rollouts(tmp_path / "r.jsonl", rows or [columns])
    if not rows:
        source = tmp_path / "r.parquet"
        write_rollouts(source, [columns])
        import pandas as pd

        pd.read_parquet(source).iloc[:0].to_parquet(source)
    assert said in refused(capsys, "analyze", "--from-rollouts", str(source), "--out", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rollouts", "5"], "rollouts = 4, not 5"),
        (["--rollouts", "4", "--seed", "1"], "seed = 0, not 1"),
        (["--rollouts", "4", "--parameters", "lm_head*"], "parameters = None, not"),
    ],
)
def test_other_options_are_refused(capsys, whole, tmp_path, arguments, said):
    path = tmp_path / "analysis"
    shutil.copytree(whole, path)
    line = refused(capsys, "analyze", "--queries", "6", *arguments, "--out", str(path))
    assert said in line and "give another --out" in line
    assert (path / "groups.jsonl").read_bytes() == (whole / "groups.jsonl").read_bytes()


def test_directories_that_hold_something_else(capsys, tmp_path, whole):
    (tmp_path / "notes.txt").write_text("mine")
    assert "holds other files" in refused(capsys, *SMALL, "--out", str(tmp_path))
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]
    assert "is a file" in refused(capsys, *SMALL, "--out", str(tmp_path / "notes.txt"))


def test_other_weights_under_the_same_name_are_refused(capsys, tmp_path, policy):
    model = tmp_path / "model"
    shutil.copytree(policy, model)
    few = ["analyze", "--queries", "1", "--rollouts", "2", "--model", str(model), "--out", str(tmp_path / "out")]
    assert main(few) == 0
    changed = load_policy(str(model))
    with torch.no_grad():
        changed.get_output_embeddings().weight[0, 0] += 1.0
    changed.save_pretrained(model)
    capsys.readouterr()
    assert "other weights under the same name" in refused(capsys, *few)


def test_a_damaged_line_is_named(capsys, whole, tmp_path):
    path = tmp_path / "analysis"
    shutil.copytree(whole, path)
    lines = (path / "groups.jsonl").read_text().splitlines(keepends=True)
    (path / "groups.jsonl").write_text("".join([lines[0], "not json\n", *lines[2:]]))
    assert "damaged at line 2" in refused(capsys, *SMALL, "--out", str(path))
    (path / "groups.jsonl").write_text("".join([lines[0], *lines[2:]]))
    assert "damaged at line 2" in refused(capsys, *SMALL, "--out", str(path))


def test_rollouts_that_were_lost_are_missed(capsys, whole, tmp_path):
    path = tmp_path / "analysis"
    shutil.copytree(whole, path)
    keep_lines(path / "rollouts.jsonl", 3)
    assert "3 of 24 lines" in refused(capsys, *SMALL, "--out", str(path))


def test_keeping_lines(tmp_path):
    path = tmp_path / "x"
    keep_lines(path)
    with pytest.raises(CalibrantError, match="missing"):
        keep_lines(path, 1)
    path.write_text("a\nb\nc")
    keep_lines(path)
    assert path.read_text() == "a\nb\n"
    keep_lines(path, 1)
    assert path.read_text() == "a\n"
    keep_lines(path, 0)
    assert path.read_text() == ""


def test_the_default_directory_is_found_again():
    settings = AnalyzeSettings(task="qasper", model="runs/mine", seed=3)
    assert default_path(settings).as_posix() == "runs/analyze-qasper-mine-seed3"
    assert default_path(settings) == default_path(AnalyzeSettings(task="qasper", model="runs/mine", seed=3, queries=7))
    assert default_path(AnalyzeSettings(from_rollouts="a/b.parquet")).as_posix() == "runs/analyze-places-demo-b"


def made_up(count: int, *, idle: int = 0) -> Iterator[dict]:
    """Groups whose V(q) is their cosine dispersion to the digit; the first `idle` have no spread."""
    generator = torch.Generator().manual_seed(1)
    for i in range(count):
        noise = torch.rand(len(SIGNALS), generator=generator, dtype=torch.float64).tolist()
        spread = i >= idle
        variance = noise[list(SIGNALS).index("cosine_dispersion")] if spread else 0.0
        yield {
            "index": i, "scorable": 4, "rollouts": 4, "outcome": "informative" if spread else "all_wrong",
            "signals": dict(zip(SIGNALS, noise, strict=True)), "success_rate": 1 - noise[0],
            "truth": {
                "gradient_variance": variance, "score_variance": noise[1], "mean_norm_squared": noise[2],
                "variance_intra": variance, "variance_inter": 0.0,
            },
        }  # fmt: skip


def test_tables_find_what_was_put_in():
    found = read_columns(made_up(120, idle=40))
    assert outcome_counts(found) == {
        "groups": 120, "informative": 80, "all_right": 0, "all_wrong": 40, "equal": 0, "unscorable": 0,
    }  # fmt: skip
    chosen = subsets(found)
    assert {name: int(where.sum()) for name, where in chosen.items()} == {
        "all": 120, "without_outliers": 118, "informative": 80,
    }  # fmt: skip
    largest = found.targets["gradient_variance"].topk(2).indices
    assert not chosen["without_outliers"][largest].any()
    made = association_tables(found)
    assert set(made["success_rate"]) == {"all", "informative"}
    row = made["gradient_variance"]["informative"]["rows"]["cosine_dispersion"]
    assert (row["rho"], row["low"], row["high"], row["auc"], row["precision"]) == (1.0, 1.0, 1.0, 1.0, 1.0)
    assert row["mae"] < 1e-9 and row["held_out"] == 1.0
    assert made["gradient_variance"]["all"]["rows"]["cosine_dispersion"]["rho"] < 0.9
    assert made["success_rate"]["all"]["rows"]["token_entropy"]["rho"] == -1.0
    difference = made["gradient_variance"]["informative"]["differences"]["cosine_dispersion"]["token_entropy"]
    assert difference[0] == pytest.approx(1 - made["gradient_variance"]["informative"]["rows"]["token_entropy"]["rho"])
    assert difference[1] > 0
    assert association_table(found, "gradient_variance", chosen["all"]) == made["gradient_variance"]["all"]


def test_confidences_are_negated_and_missing_numbers_are_out():
    lines = list(made_up(40))
    for i, line in enumerate(lines):
        line["signals"]["self_consistency"] = -line["truth"]["gradient_variance"]
        line["signals"]["head_gradient_variance"] = None
        line["signals"]["token_entropy"] = None if i < 3 else line["signals"]["token_entropy"]
    found = read_columns(lines)
    result = association_table(found, "gradient_variance", subsets(found)["all"])
    assert result["rows"]["self_consistency"]["rho"] == 1.0
    assert result["left_out"] == ["head_gradient_variance"]
    assert result["groups"] == 37
    assert association_table(found, "gradient_variance", torch.arange(40) < 4) is None


def test_how_many_outliers():
    assert [outliers(n) for n in (10, 50, 199, 200, 5000)] == [0, 1, 3, 20, 20]


def v_table(groups: int = 200, **rho: tuple[float, float, float]) -> dict:
    """A table with given rank correlations and intervals; differences are clear from 0.1 on."""
    rows = {name: {"rho": r, "low": low, "high": high, "auc": 0.5} for name, (r, low, high) in rho.items()}
    differences = {
        a: {b: [rho[a][0] - rho[b][0] + d for d in (0.0, -0.1, 0.1)] + [0.5] for b in rho if b != a} for a in rho
    }
    return {"groups": groups, "rows": rows, "differences": differences, "baseline_mae": 1.0, "left_out": []}


def around(rho: float) -> tuple[float, float, float]:
    return rho, rho - 0.05, rho + 0.05


ALL_SPREAD = {"groups": 200, "informative": 200, "all_right": 0, "all_wrong": 0, "equal": 0, "unscorable": 0}


def advice(table: dict | None, *, shares: dict = ALL_SPREAD, high: dict | None = None, methods=None, rollouts=16):
    known = {"informative": table, "without_outliers": table} if table else {}
    return recommend(Evidence(shares, known, high or {}, rollouts, METHODS if methods is None else methods))


def test_the_best_signal_and_its_method():
    found = advice(
        v_table(barycentric_transport=around(0.6), cosine_dispersion=around(0.55), token_entropy=around(0.2)),
        high={"barycentric_transport": 0.3, "reward_dispersion": 1.0},
    )
    assert found["signal"]["name"] == "barycentric_transport"
    assert found["signal"]["not_led"] == ["cosine_dispersion"]
    assert (found["method"]["name"], found["method"]["behind"]) == ("gcpo_bot", None)
    assert found["method"]["beside"] == ["gcpo_cd"]
    assert "the data do not tell it from gcpo_cd." in found["words"][1]
    assert "The data do not tell it from cosine dispersion (CD) (0.55)." in found["words"][0]
    alone = advice(v_table(cosine_dispersion=around(0.6), token_entropy=around(0.2)))
    assert "It leads every other signal." in alone["words"][0]
    assert alone["method"]["name"] == "gcpo_cd" and alone["method"]["beside"] == []
    assert "Every group has reward spread." in alone["words"]


def test_a_signal_that_no_method_reads():
    signals = {"token_entropy": around(0.8), "reward_dispersion": around(0.4), "reward_mean": around(0.9)}
    found = advice(v_table(**signals), high={"reward_dispersion": 1.0})
    assert found["signal"]["name"] == "token_entropy"
    assert found["method"]["name"] == "rd_only"
    assert found["method"]["behind"] == pytest.approx([0.4, 0.3, 0.5])
    assert "0.40 [0.30, 0.50] behind" in found["words"][1]


def test_methods_are_named_only_where_they_exist():
    signals = {"gradient_snr_weight": around(0.9), "semantic_entropy_discrete": around(0.5)}
    old = advice(v_table(**signals), methods=["grpo", "grpo_se"], high={"semantic_entropy_discrete": 2.0})
    assert old["method"]["name"] == "grpo_se"
    new = advice(v_table(**signals), methods=["grpo", "grpo_se", "gradient_snr"])
    assert (new["method"]["name"], new["alpha"]) == ("gradient_snr", None)


def test_without_a_signal_that_follows_it_is_plain_grpo():
    found = advice(v_table(cosine_dispersion=(0.1, -0.1, 0.3), barycentric_transport=(0.05, -0.1, 0.2)))
    assert not found["signal"]["follows"]
    assert (found["method"]["name"], found["alpha"]) == ("grpo", None)
    assert "its interval reaches 0" in found["words"][0]


def test_too_few_groups_get_no_recommendation():
    found = advice(v_table(ENOUGH - 1, cosine_dispersion=around(0.9)))
    assert found["signal"] is found["method"] is found["alpha"] is None
    assert "Give more --queries" in found["words"][0]
    assert advice(None, shares=dict.fromkeys(ALL_SPREAD, 0))["words"]


def test_how_strong_alpha_may_be():
    # damping: 1 - a / ln 16 * 0.5^2 = 1/4 at a = 0.75 ln 16 / 0.25; boost: 1 + a / ln 16 * 0.8 = 2 at a = ln 16 / 0.8
    high = {"cosine_dispersion": 0.5, "reward_dispersion": 0.8}
    evidence = Evidence(ALL_SPREAD, {}, high, 16, METHODS)
    found = strength({"name": "gcpo_cd", "reads": "cosine_dispersion"}, evidence)
    assert found["most"] == pytest.approx(math.log(16) / 0.8)
    assert found["suggested"] == found["default"] == 0.6
    assert found["lowest"] == pytest.approx(1 - 0.6 / math.log(16) * 0.25)
    assert found["highest"] == pytest.approx(1 + 0.6 / math.log(16) * 0.8)
    few = strength({"name": "gcpo_cd", "reads": "cosine_dispersion"}, evidence._replace(rollouts=2, high={
        "cosine_dispersion": 1.0, "reward_dispersion": 0.0,
    }))  # fmt: skip
    assert few["most"] == pytest.approx(0.75 * math.log(2)) and few["suggested"] == few["most"] < 0.6
    entropy = strength(
        {"name": "grpo_se", "reads": "semantic_entropy_discrete"},
        evidence._replace(high={"semantic_entropy_discrete": math.log(16)}),
    )
    assert entropy["most"] == pytest.approx(0.75 * math.log(16))
    assert strength({"name": "grpo", "reads": None}, evidence) is None


def test_the_bound_on_alpha_is_that_of_the_methods_weights():
    rewards = torch.tensor([[2.0] * 8 + [0.0] * 8])
    embeddings = torch.eye(16)[None]
    u = cosine_dispersion(embeddings).item()
    evidence = Evidence(ALL_SPREAD, {}, {"cosine_dispersion": u, "reward_dispersion": 1.0}, 16, METHODS)
    found = strength({"name": "gcpo_cd", "reads": "cosine_dispersion"}, evidence)
    scores = METHODS["gcpo_cd"](rewards, embeddings, None, alpha=found["most"]).scores
    assert scores["geometric_weight"].item() == pytest.approx(0.25, rel=1e-5)
    assert 1.5 < scores["reward_weight"].item() <= 2.0
    assert found["lowest"] == pytest.approx(
        METHODS["gcpo_cd"](rewards, embeddings, None).scores["geometric_weight"].item(), rel=1e-5
    )


@pytest.mark.parametrize(
    ("shares", "said"),
    [
        ({"all_right": 120, "all_wrong": 20}, "too easy"),
        ({"all_right": 20, "all_wrong": 120}, "too hard"),
        ({"unscorable": 140}, "fix the reward function"),
        ({"all_right": 40, "all_wrong": 20}, None),
    ],
)
def test_groups_that_teach_nothing(shares, said):
    counted = {**ALL_SPREAD, **shares, "informative": 200 - sum(shares.values())}
    found = advice(v_table(cosine_dispersion=around(0.6)), shares=counted)
    idle = next(words for words in found["words"] if words.startswith("Groups without reward spread"))
    assert f"{sum(shares.values()) / 200:.1%}" in idle
    more = [words for words in found["words"] if words.startswith("Most groups")]
    assert [said in words for words in more] == ([True] if said else [])


def test_the_order_of_the_paper():
    rho = dict(zip(PAPER_ORDER, (0.6, 0.45, 0.3, 0.1), strict=True))
    found = paper_order(v_table(**{name: around(r) for name, r in rho.items()}))
    assert found["holds"] and found["clear"]
    close = paper_order(v_table(**{name: around(r / 2) for name, r in rho.items()}))
    assert close["holds"] and not close["clear"]
    turned = paper_order(v_table(**{name: around(1 - r) for name, r in rho.items()}))
    assert not turned["holds"] and next(iter(turned["found"])) == "token_entropy"
    assert paper_order(v_table(token_entropy=around(0.5))) is None
    words = advice(v_table(**{name: around(1 - r) for name, r in rho.items()}))["words"][-1]
    assert "is not found here, and one step is significantly reversed: token entropy 0.90, semantic" in words
    words = advice(v_table(**{name: around(0.5 - r / 10) for name, r in rho.items()}))["words"][-1]
    assert "is not found here, but no step is significantly reversed: token entropy 0.49" in words


def test_a_page_without_a_finished_analysis_is_refused(tmp_path):
    with pytest.raises(CalibrantError, match="other files"):
        write_analysis_report(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{bro", b"[1]", b"{}", b"\xff\xfe"])
def test_a_page_from_damaged_tables_is_refused(tmp_path, capsys, content):
    (tmp_path / "config.yaml").write_text("command: analyze\nsettings: {}\n")
    (tmp_path / "groups.jsonl").write_text("")
    (tmp_path / "analysis.json").write_bytes(content)
    assert "analysis.json' is damaged" in refused(capsys, "report", str(tmp_path))
