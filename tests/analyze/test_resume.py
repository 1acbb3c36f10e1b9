"""Interrupted and resumed analyses, and rollouts from files."""

import json
import shutil

import pytest
import torch
from builders_analyze import SMALL, lines_of, rollouts_of

from calibrant.analyze import collect as collecting
from calibrant.analyze.groups import given_group, group_seed, groups_of_file, sampled_group
from calibrant.analyze.measure import measure_group
from calibrant.cli.main import main
from calibrant.errors import CalibrantError
from calibrant.policy.generation import Sampling
from calibrant.policy.models import load_tokenizer
from calibrant.rollouts import write_rollouts
from calibrant.tasks.places import TASK

KEPT = ("groups.jsonl", "rollouts.jsonl", "analysis.json")


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
    assert f"continue with the same command and --out {path}" in capsys.readouterr().err
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


def test_an_analysis_from_before_an_option_had_its_default(whole, tmp_path, capsys):
    path = shutil.copytree(whole, tmp_path / "analysis")
    kept = (path / "config.yaml").read_text()
    assert "\n  use_peft: false\n" in kept
    (path / "config.yaml").write_text(kept.replace("\n  use_peft: false\n", "\n"))
    assert main([*SMALL, "--out", str(path)]) == 0
    assert main([*SMALL, "--out", str(path), "--use-peft"]) == 2
    assert "an analysis with use_peft = False, not True" in capsys.readouterr().err


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
    sample = Sampling(samples=4, temperature=0.9, max_new_tokens=32)
    first = sampled_group(tools.model, tokenizer, TASK, row, sample._replace(seed=group_seed(0, 2)))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    again = sampled_group(tools.model, tokenizer, TASK, row, sample._replace(seed=group_seed(0, 2)))
    assert torch.equal(before, torch.get_rng_state())
    other = sampled_group(tools.model, tokenizer, TASK, row, sample._replace(seed=group_seed(0, 3)))
    assert first.rows == again.rows != other.rows
    assert measure_group(2, first, tools) == measure_group(2, again, tools)


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_rollouts_of_a_file_give_what_sampling_gave(whole, tmp_path, ending):
    source = tmp_path / f"rollouts.{ending}"
    write_rollouts(source, rollouts_of(whole))
    path = tmp_path / "again"
    assert main(["analyze", "--from-rollouts", str(source), "--out", str(path)]) == 0
    assert not (path / "rollouts.jsonl").exists()
    again, first = lines_of(path), lines_of(whole)
    for line, expected in zip(again, first, strict=True):
        for part in ("signals", "truth", "weights"):  # one forward pass rounds in another way than decoding
            found, before = line.pop(part), expected.pop(part)
            assert found.keys() == before.keys()
            known = {name: value for name, value in before.items() if value is not None}
            assert {name: found[name] for name in known} == pytest.approx(known, rel=1e-4, abs=1e-6)
    assert again == first


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
    first = sampled_group(tools.model, chat, TASK, row, Sampling(3, 0.9, 8, seed=1))
    lines = measure_group(0, first._replace(read=None), tools)
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
