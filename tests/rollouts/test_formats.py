"""Files of other tools, written by hand in their schemas, and the refusals of what is in none."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from calibrant.errors import CalibrantError
from calibrant.rollouts.formats import layout_of, rollouts_of
from calibrant.rollouts.sources import find_sources

VERL = [
    {"input": "user\nCapital?\nassistant\n", "output": text, "gts": "Paris", "score": score, "step": 3, "acc": score}
    for text, score in (("Paris", 1.0), ("Rome", 0.0))
]
OPENRLHF = [{"prompt": "Capital?", "response": text, "reward": reward} for text, reward in (("Paris", 1.0), ("x", 0.5))]
TRL = [
    {
        "step": 1,
        "prompt": [{"role": "user", "content": "Capital?"}],
        "completion": [{"role": "assistant", "content": text}],
        "accuracy": accuracy,
        "format": form,
        "solution": "Paris",
        "advantage": 0.7,
    }
    for text, accuracy, form in (("Paris", 1.0, 0.5), ("Rome", 0.0, None), ("", None, None))
]


def sample(doc, filtered, responses, **more):
    """A row of `samples_*.jsonl` of lm-evaluation-harness."""
    arguments = {"gen_args_0": {"arg_0": f"Question {doc}", "arg_1": {"until": ["\n"]}}}
    row = {"doc_id": doc, "doc": {"question": f"Question {doc}"}, "target": "Paris", "arguments": arguments}
    row |= {"resps": [responses], "filtered_resps": filtered, "filter": "none", "metrics": ["exact_match"]}
    return row | {"doc_hash": "abcdef0123456789", "prompt_hash": "p", "target_hash": "t", "exact_match": 1.0} | more


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path, format="auto", columns=None, chosen=None):
    """The rows of a file, and how it was read."""
    rows = []
    (source,) = find_sources(str(path))
    layout = None
    for block in source.blocks():
        layout = layout or layout_of(block, source.origin, format, columns or {}, chosen)
        rows += rollouts_of(block, layout, source.origin).to_pylist()
    return rows, layout


def test_verl(tmp_path):
    rows, layout = read(lines(tmp_path / "3.jsonl", VERL))
    assert layout.format == "verl"
    assert [row["completion"] for row in rows] == ["Paris", "Rome"]
    assert [row["reward"] for row in rows] == [1.0, 0.0]
    assert [row["references"] for row in rows] == [["Paris"], ["Paris"]]
    assert {row["prompt_id"] for row in rows} == {rows[0]["prompt_id"]}
    assert rows[0]["step"] == 3 and rows[0]["acc"] == 1.0
    assert "no ids of prompts" in layout.notes[0]


def test_openrlhf_and_its_older_names(tmp_path):
    rows, layout = read(lines(tmp_path / "r.jsonl", OPENRLHF))
    assert layout.format == "openrlhf"
    assert [(row["prompt"], row["completion"], row["reward"]) for row in rows] == [
        ("Capital?", "Paris", 1.0),
        ("Capital?", "x", 0.5),
    ]
    older = [{"input": row["prompt"], "output": row["response"], "reward": row["reward"]} for row in OPENRLHF]
    assert read(lines(tmp_path / "o.jsonl", older))[0] == rows


@pytest.mark.parametrize("name", ["r.jsonl", "r.parquet"])
def test_trl_sums_the_columns_of_its_reward_functions(tmp_path, name):
    path = tmp_path / name
    lines(path, TRL) if path.suffix == ".jsonl" else pq.write_table(pa.Table.from_pylist(TRL), path)
    rows, layout = read(path)
    assert layout.format == "trl"
    assert [row["completion"] for row in rows] == ["Paris", "Rome", ""]
    assert [row["reward"] for row in rows] == [1.5, 0.0, None]
    assert rows[0]["prompt"] == "user: Capital?" and rows[0]["solution"] == "Paris" and rows[0]["accuracy"] == 1.0
    assert "sum of accuracy, format" in layout.notes[1]
    chosen, _ = read(path, columns={"reward": "format"})
    assert [row["reward"] for row in chosen] == [0.5, None, None]


def test_lm_eval_one_response_and_the_filter_that_is_asked_for(tmp_path):
    rows = [sample(0, ["paris"], ["Paris."]), sample(0, ["Par"], ["Paris."], filter="short", exact_match=0.0)]
    path = lines(tmp_path / "samples_x.jsonl", [*rows, sample(1, ["rome"], ["Rome."], exact_match=0.0)])
    found, layout = read(path)
    assert layout.format == "lm-eval" and "the filter 'none'" in layout.notes[-1]
    assert [(row["prompt_id"], row["completion"], row["answer"], row["reward"]) for row in found] == [
        ("0-abcdef01", "Paris.", "paris", 1.0),
        ("1-abcdef01", "Rome.", "rome", 0.0),
    ]
    assert found[0]["prompt"] == "Question 0" and found[0]["references"] == ["Paris"]
    (short,) = read(path, chosen="short")[0]
    assert (short["answer"], short["reward"]) == ("Par", 0.0)


def test_lm_eval_several_responses_have_no_metric_of_their_own_unless_it_is_a_list(tmp_path):
    path = lines(tmp_path / "s.jsonl", [sample(0, ["a"], ["a", "b"]), sample(1, ["a"], ["a", "b"], exact_match=[1, 0])])
    rows, _ = read(path)
    assert [row["completion"] for row in rows] == ["a", "b", "a", "b"]
    assert [row["reward"] for row in rows] == [None, None, 1.0, 0.0]


def test_lm_eval_of_likelihoods_is_refused(tmp_path):
    path = lines(tmp_path / "s.jsonl", [sample(0, [[-1.5, False]], [[-1.5, False]])])
    with pytest.raises(CalibrantError, match=r"s\.jsonl', row 1: the responses are no generated texts"):
        read(path)


ENDINGS = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".json", ".json.zst", ".csv", ".csv.gz", ".csv.zst", ".parquet")


@pytest.mark.parametrize("ending", ENDINGS)
def test_columns_of_ones_own_in_every_kind_of_file(tmp_path, ending):
    rows = [{"uid": "7", "output": text, "points": p, "ok": p > 0} for text, p in (("Paris", 0.5), ("a,b", 0.0))]
    path = tmp_path / f"mine{ending}"
    if ending == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif ".csv" in ending:
        text = 'uid,output,points,ok\n7,Paris,0.5,True\n7,"a,b",0.0,false\n'
        with pa.output_stream(str(path), compression="detect") as opened:
            opened.write(text.encode())
    else:
        text = json.dumps(rows) if ".jsonl" not in ending else "".join(json.dumps(row) + "\n" for row in rows)
        opened = pa.output_stream(str(path), compression="detect")
        opened.write(text.encode())
        opened.close()
    columns = {"prompt_id": "uid", "completion": "output", "reward": "points", "correct": "ok"}
    found, _ = read(path, columns=columns)
    assert [row["completion"] for row in found] == ["Paris", "a,b"]
    assert [row["reward"] for row in found] == [0.5, 0.0]
    assert [row["correct"] for row in found] == [True, False]
    assert found[0]["prompt_id"] == "7"


def test_nested_columns_and_sums(tmp_path):
    rows = [{"prompt": "q", "out": {"text": "x"}, "a": 1, "b": 0.5}, {"prompt": "q", "out": {"text": "y"}, "a": None}]
    found, _ = read(lines(tmp_path / "r.jsonl", rows), columns={"completion": "out.text", "reward": "a+b"})
    assert [(row["completion"], row["reward"]) for row in found] == [("x", 1.5), ("y", None)]


def test_numbers_as_ids_are_the_same_in_every_block(tmp_path, monkeypatch):
    monkeypatch.setattr("calibrant.rollouts.tables.BLOCK", 10)
    values = [7, 7.0, 0.5, 2**60 + 1, "x", "7"]
    for order in (values, values[::-1]):
        rows = [{"prompt_id": value, "completion": "x", "reward": 1} for value in order]
        for block in (10, 10**6):
            monkeypatch.setattr("calibrant.rollouts.tables.BLOCK", block)
            for count in (4, 6):
                found = [row["prompt_id"] for row in read(lines(tmp_path / "r.jsonl", rows[:count]))[0]]
                assert found == [{7: "7", 0.5: "0.5"}.get(x, str(x)) for x in order[:count]]


def test_ids_of_equal_prompts_are_equal_and_of_others_not(tmp_path):
    rows = [{"prompt": prompt, "completion": "x", "reward": 1} for prompt in ("a", "b", "a")]
    ids = [row["prompt_id"] for row in read(lines(tmp_path / "r.jsonl", rows))[0]]
    assert ids[0] == ids[2] != ids[1]


@pytest.mark.parametrize(
    ("row", "columns", "said"),
    [
        ({"text": "x"}, {}, r"lacks completion, prompt_id \(or prompt\), reward \(or correct\); it has text; name its"),
        ({"prompt": "p", "completion": "x", "reward": 1}, {"rewards": "x"}, r"'rewards' \(did you mean 'reward'\?\)"),
        ({"prompt": "p", "completion": "x", "reward": 1}, {"reward": "scor"}, "has no column 'scor'"),
        ({"prompt": None, "completion": "x", "reward": 1}, {}, "neither an id nor a prompt in row 2"),
        ({"prompt_id": None, "completion": "x", "reward": 1}, {}, "no prompt_id in row 2"),
        ({"prompt": "p", "completion": "x", "reward": "high"}, {}, "'high' in the column 'reward', row 2, where a num"),
        ({"prompt": "p", "completion": ["x"], "reward": 1}, {}, "no conversation in the column 'completion', row 2"),
        ({"prompt": "p", "completion": "x", "reward": 1, "references": [["x"]]}, {}, "'references', row 2, a value "),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_row(tmp_path, row, columns, said):
    good = {name: value for name, value in row.items() if name == "text"} or {
        "prompt": "p", "completion": "x", "reward": 0.5, **({"prompt_id": "a"} if "prompt_id" in row else {}),
    }  # fmt: skip
    path = lines(tmp_path / "r.jsonl", [good, row])
    with pytest.raises(CalibrantError, match=rf"r\.jsonl'.*{said}|--columns: {said}"):
        read(path, columns=columns)


def test_folders_patterns_and_names_that_are_nothing(tmp_path):
    for name in ("run/rollouts/step-000002.parquet", "run/rollouts/step-000001.parquet", "run/metrics.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    names = [source.path.name for source in find_sources(str(tmp_path / "run"))]
    assert names == ["step-000001.parquet", "step-000002.parquet"]
    assert len(find_sources(str(tmp_path / "run" / "**" / "*2.parquet"))) == 1
    for given, said in [
        (tmp_path, "holds no rollouts: looked for"),
        (tmp_path / "*.csv", "no file matches"),
        (tmp_path / "missing.jsonl", "no rollout file at"),
        (__file__, "none of the formats that are read"),
    ]:
        with pytest.raises(CalibrantError, match=said):
            find_sources(str(given))


def test_a_data_set_of_the_hub(tmp_path, monkeypatch):
    import datasets

    from calibrant import hub

    found = datasets.DatasetDict({"train": datasets.Dataset.from_list(OPENRLHF)})
    monkeypatch.setattr(hub, "reachable", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset", lambda name, config: found if name == "me/rollouts" else None)
    (source,) = find_sources("me/rollouts")
    assert source.origin == "'me/rollouts, train'"
    (block,) = source.blocks()
    rows = rollouts_of(block, layout_of(block, source.origin, "auto", {}), source.origin).to_pylist()
    assert [row["completion"] for row in rows] == ["Paris", "x"]


def test_the_hub_out_of_reach_is_said_of_the_file(monkeypatch):
    with pytest.raises(CalibrantError, match=r"^FILE 'me/none' is no file or folder, is not in the hub's cache"):
        find_sources("me/none")


LM_EVAL = Path(__file__).parents[1] / "fixtures" / "lm_eval"


@pytest.mark.parametrize(("repeats", "rewards"), [(1, [0.0] * 3), (4, [None] * 12)])
def test_what_lm_eval_itself_has_written(repeats, rewards):
    rows, layout = read(LM_EVAL / f"samples_places_{repeats}.jsonl")
    assert (layout.format, layout.filter) == ("lm-eval", "first")
    assert [row["reward"] for row in rows] == rewards
    assert len({row["prompt_id"] for row in rows}) == 3
    assert rows[0]["prompt"] == "Question: What is the capital of France?\nAnswer:"
    assert rows[0]["references"] == ["Paris"] and rows[0]["completion"].strip()
    words, _ = read(LM_EVAL / f"samples_places_{repeats}.jsonl", chosen="word")
    assert [row["completion"] for row in words] == [row["completion"] for row in rows]
