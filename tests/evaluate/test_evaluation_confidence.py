"""Evaluations: confidence, votes and comparisons, from answers that exist already."""

import json

import pandas as pd
import pytest
import sacrebleu
import torch
from sklearn.metrics import roc_auc_score

from calibrant.cli.main import main
from calibrant.errors import CalibrantError
from calibrant.evaluate.confidence import calibration, measure
from calibrant.evaluate.evaluation import differences, evaluate_rollouts
from calibrant.policy.generation import written
from calibrant.rollouts import write_rollouts
from calibrant.tasks import TASKS
from calibrant.tasks.places import TASK
from calibrant.text.bleu import sentence_bleu


def rows(count=30, samples=8, seed=0):
    """Answers whose likelihood says something of whether they are right."""
    draw = torch.Generator().manual_seed(seed)
    for n in range(count):
        for g in range(samples):
            right = torch.rand((), generator=draw) < 0.5
            mean = -0.5 * torch.rand((), generator=draw) - (0.0 if right else 0.2)
            answer = "Paris" if right else ("Rome", "Lyon")[g % 2]
            yield dict(
                prompt_id=f"q{n}", completion=f" {answer}", references=["Paris"], num_tokens=3, logprob=3 * mean.item()
            )


def test_calibration_of_answers_that_exist_already():
    results, judged = evaluate_rollouts(pd.DataFrame(rows()), TASK)
    right = [row["correct"] for row in judged]
    means = [row["logprob"] / 3 for row in judged]
    assert results["calibration"]["correctness_auc"]["mean"] == pytest.approx(roc_auc_score(right, means), abs=1e-6)
    accuracy = results["sampled"]["accuracy"]
    assert accuracy["mean"] == pytest.approx(sum(right) / len(right)) and accuracy["low"] < accuracy["high"]
    assert results["selection"]["pass_at_k"]["1"]["mean"] == pytest.approx(accuracy["mean"], abs=1e-6)
    assert list(results["selection"]["majority_vote"]) == ["1", "2", "4", "8"]
    assert results["prompts"] == 30 and results["samples"] == 8
    figures = [x for row in results["selection"].values() for x in row.values()] + list(results["calibration"].values())
    assert all(0 <= x["low"] <= x["mean"] <= x["high"] <= 1 for x in figures)


def test_a_sure_majority_is_believed_and_confidence_can_overrule_it():
    correct = torch.tensor([[1.0, 0.0, 0.0]])
    clusters, texts = torch.tensor([[0, 1, 1]]), torch.tensor([[0, 1, 1]])
    unsure = measure(torch.tensor([[-0.01, -3.0, -3.0]]), correct, clusters, texts)["selection"]
    assert unsure["majority_vote"]["2"]["mean"] == 0.5  # one each: they share
    assert unsure["confidence_weighted_vote"]["2"]["mean"] == 1.0
    assert unsure["best_of_n"]["2"]["mean"] == pytest.approx(2 / 3)  # 1, 1 and 0 over the three pairs


def test_without_likelihoods_it_says_so():
    frame = pd.DataFrame(rows()).drop(columns="logprob").assign(correct=True)
    assert "logprob" in calibration(frame, str)["calibration_missing"]


def test_without_anything_that_says_what_is_right():
    frame = pd.DataFrame(rows()).drop(columns="references")
    with pytest.raises(CalibrantError, match="no value in references or correct"):
        evaluate_rollouts(frame, TASK)


def test_prompts_of_different_sizes():
    frame = pd.DataFrame(rows()).iloc[:-5]
    results, judged = evaluate_rollouts(frame, TASK)
    assert len(judged) == len(frame)
    assert 0 < results["calibration"]["brier"]["mean"] < 1


def test_a_difference_is_paired_by_prompt():
    _, before = evaluate_rollouts(pd.DataFrame(rows(seed=0)), TASK)
    same = differences(TASK, before, before)
    assert same["f1"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    better = [row | {"answer": "Paris", "correct": True} for row in before]
    gain = differences(TASK, before, better)["accuracy"]
    assert gain["low"] > 0.3 and gain["high"] < 0.7


def test_the_command_judges_a_file(tmp_path, capsys):
    source = write_rollouts(tmp_path / "r.parquet", rows())
    assert main(["evaluate", "--from-rollouts", str(source), "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "perplexity_consistency" in said and "correctness_auc" in said
    assert set(json.loads((tmp_path / "out" / "evaluation.json").read_text())) >= {"calibration", "selection", "curves"}


@pytest.mark.parametrize("arguments", [[], ["demo", "demo", "demo"], ["demo", "--from-rollouts", "x.jsonl"]])
def test_what_to_judge_has_to_be_said_once(capsys, arguments):
    assert main(["evaluate", *arguments]) == 2
    assert "give one MODEL, or two" in capsys.readouterr().err


def test_two_models_of_one_name_are_not_written_over_each_other(tmp_path, capsys):
    assert main(["evaluate", "a/mine", "b/mine", "--out", str(tmp_path)]) == 2
    assert "one folder 'mine'" in capsys.readouterr().err
    assert main(["evaluate", "demo", "demo"]) == 2
    assert "'demo' is given twice" in capsys.readouterr().err


def test_several_tokens_may_end_a_text():
    ids = torch.tensor([[5, 2, 9, 1], [5, 6, 1, 1], [1, 1, 1, 1]])
    assert written(ids, [1, 2]).tolist() == [[1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 0, 0]]
    assert written(ids, None).tolist() == [[1] * 4] * 3


READING = TASKS["narrativeqa"]


def test_bleu_of_a_corpus_is_pooled_over_all_answers():
    answers = [row | {"answer": row["completion"].strip()} for row in rows(count=12, samples=4)]
    for row in answers:
        row["references"] = ["the city of Paris in France", "Paris"]
        row["answer"] = f"the city of {row['answer']}"
    results, judged = evaluate_rollouts(pd.DataFrame(answers), READING)
    found = results["sampled"]
    texts, golds = [row["answer"] for row in judged], [row["references"] for row in judged]
    corpus = sacrebleu.corpus_bleu(texts, [list(stream) for stream in zip(*golds, strict=True)]).score
    assert found["corpus_bleu"]["mean"] == pytest.approx(corpus / 100)
    assert found["sentence_bleu"]["mean"] == pytest.approx(sum(map(sentence_bleu, texts, golds)) / len(texts))
    assert found["corpus_bleu"]["low"] < found["corpus_bleu"]["mean"] < found["corpus_bleu"]["high"]
    same = differences(READING, judged, judged)
    assert same["corpus_bleu"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    better = [row | {"answer": row["references"][0]} for row in judged]
    change = differences(READING, judged, better)["corpus_bleu"]
    assert change["mean"] == pytest.approx(1 - found["corpus_bleu"]["mean"]) and change["low"] > 0


def test_references_alone_say_what_is_right(tmp_path, capsys):
    file = write_rollouts(tmp_path / "rollouts.parquet", list(rows(count=4, samples=2)))
    assert main(["evaluate", "--from-rollouts", str(file)]) == 0
    assert "accuracy" in capsys.readouterr().out
    file = tmp_path / "rollouts.jsonl"
    file.write_text("".join(json.dumps(row | {"references": None}) + "\n" for row in rows(count=4, samples=2)))
    file.write_text(file.read_text().replace(', "references": null', ""))
    assert main(["evaluate", "--from-rollouts", str(file)]) == 2
    assert "lacks the column references (or correct)" in capsys.readouterr().err
