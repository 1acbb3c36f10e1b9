"""Verification of mathematics"""

import logging
import os
import subprocess
import sys
import threading
import time

import pytest
from builders_verify import HANGS, TOWER, alive, pids

from calibrant.errors import CalibrantError
from calibrant.text.maths import worker_script, workers
from calibrant.text.maths.verify import Verifier

HOSTILE = [
    TOWER,
    "(" * 100 + "2" + ")" * 100,
    "}" * 2000,
    r"\frac{" * 30,
    "9" * 100_000,
    "9" * 2000,
    "a" * 300,
    "9**9**9**9",
    "1/0",
    r"\boxed{" * 28,
    "$" * 1999,
    "__import__('os').system('touch pwned')",
    "exec('raise SystemExit')",
    "\0",
    "1\0 2",
    "\ud800 x",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢",
    "٣",
    "\n\r\u2028",
]


def test_hostile_answers_end_in_time_and_spare_the_others(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    innocent = [(r"\sqrt{8}", r"2\sqrt{2}"), ("x+1", "x+2")]
    pairs = [pair for text in HOSTILE for pair in ((text, r"\pi"), *innocent)]
    with Verifier(workers=2, timeout=1.5, cache_size=0) as verifier, caplog.at_level(logging.WARNING):
        started = time.monotonic()
        verdicts = verifier.verify(pairs)
        took = time.monotonic() - started
        unscorable = sum(verifier.unscorable.values())
    assert verdicts[1::3] == [True] * len(HOSTILE)
    assert verdicts[2::3] == [False] * len(HOSTILE)
    assert True not in verdicts[::3]
    assert verdicts[0] is None  # the tower
    assert verdicts[HOSTILE.index("9" * 100_000) * 3] is None
    assert verdicts[HOSTILE.index("\0") * 3] is False
    assert unscorable == verdicts.count(None) < len(HOSTILE)
    assert took < 2.0 * workers.STARTUP
    assert f"prediction '{TOWER}', reference '\\\\pi'" in caplog.text
    assert all(len(record.getMessage()) < 300 for record in caplog.records)
    assert list(tmp_path.iterdir()) == []


def test_a_hanging_pair_costs_its_time_once_and_close_leaves_no_process():
    asked = [HANGS, HANGS, (r"\pi", ["3", TOWER]), ("x", "9" * 100_000), ("x", "}{"), ("x", ""), (*HANGS[:1], [*HANGS])]
    with Verifier(workers=1, timeout=1.0) as verifier:
        assert pids(verifier) == set()
        assert verifier.verify(asked) == [None] * 6 + [True]
        before = pids(verifier)
        assert len(before) == 1
        started = time.monotonic()
        assert verifier.verify([HANGS]) == [None]
        assert time.monotonic() - started < 0.9
        assert verifier.unscorable == {
            "more than 1 s": 2,
            "too long": 1,
            "the reference cannot be parsed": 1,
            "empty reference": 1,
        }
        assert verifier.verify([("1+x", "x+1")]) == [True]
        assert pids(verifier) == before
    assert pids(verifier) == set()
    assert not any(map(alive, before))
    verifier.close()


def test_the_cache_keeps_the_latest_pairs(monkeypatch):
    asked = []

    def run(tasks):
        asked.append([prediction for prediction, *_ in tasks])
        return [{"equal": False} for _ in tasks]

    verifier = Verifier(cache_size=2)
    monkeypatch.setattr(verifier._pool, "run", run)
    for answer in ("a", "b", "a", "c", "b", "a"):
        verifier.verify([(answer, "x")])
    assert [row[0] for row in asked if row] == ["a", "b", "c", "b", "a"]
    asked.clear()
    verifier.verify([("a", "x")], 0.5)  # another tolerance, another question
    verifier.verify([(" a ", "x\n")])
    assert asked == [["a"], []]
    assert len(verifier._cache) == 2


def test_off_the_main_thread_and_from_several_at_once(verifier):
    results = {}

    def work(n):
        pairs = [(f"{n}x + {k}", f"{k} + {n} x") for k in range(3)] + [(f"{n}x", f"{n}y")]
        results[n] = verifier.verify(pairs)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(2, 6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {n: [True, True, True, False] for n in range(2, 6)}


def test_workers_are_out_of_reach_of_the_keyboard(verifier):
    verifier.verify([("x+9", "9+x")])
    assert all(os.getsid(pid) == pid for pid in pids(verifier))


def test_the_worker_imports_neither_torch_nor_calibrant():
    program = (
        f"import runpy, sys; judge = runpy.run_path({worker_script.__file__!r}); print(judge['equal']('x+1', '1+x'));"
        "print(sorted({'torch', 'calibrant', 'numpy', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["True", "[]"]


def test_text_is_never_evaluated_as_code(monkeypatch):
    import builtins

    worker_script.equal("2", "x")  # what is compiled on first use is compiled now
    from sympy.parsing import sympy_parser

    def caught(*_):
        raise AssertionError("evaluated")

    monkeypatch.setattr(sympy_parser, "eval_expr", caught)
    monkeypatch.setattr(builtins, "eval", caught)
    monkeypatch.setattr(builtins, "exec", caught)
    for text in ("2**3", "(1+2)*3", "1/2+1/3", "__import__('os').getpid()", "x.__class__"):
        worker_script.equal(text, "x+7")
        worker_script.equal("x+7", text)


def test_the_limit_of_memory_holds_in_a_worker():
    program = (
        f"import runpy; judge = runpy.run_path({worker_script.__file__!r}); judge['_limit_memory'](2**29)\n"
        "try: bytearray(2**30); print('unlimited')\n"
        "except MemoryError: print('limited')"
    )
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ("limited" if sys.platform == "linux" else done.stdout.strip())


def test_too_little_memory_to_start_is_an_error():
    with Verifier(workers=1, memory=0.02) as verifier, pytest.raises(CalibrantError, match="more memory"):
        verifier.verify([("x+1", "1+x")])
    assert pids(verifier) == set()


def test_what_math_verify_swallows_is_raised_again():
    with pytest.raises(RecursionError):
        worker_script.equal("|" * 300 + "2" + "|" * 300, "1")


@pytest.mark.parametrize(
    "arguments",
    [
        {"workers": 0},
        {"workers": 1.5},
        {"workers": True},
        {"timeout": 0},
        {"timeout": -1},
        {"timeout": float("nan")},
        {"cache_size": -1},
        {"max_length": 0},
        {"memory": 0},
    ],
)
def test_arguments_out_of_range(arguments):
    with pytest.raises(CalibrantError, match=next(iter(arguments))):
        Verifier(**arguments)


@pytest.mark.parametrize(
    ("pairs", "tolerance"),
    [
        ([(1, "1")], None),
        ([("1", [1])], None),
        ([(None, "1")], None),
        ([("1", "1")], -0.1),
        ([("1", "1")], [0.1, 0.1]),
        ([("1", "1")], float("nan")),
    ],
)
def test_bad_input(verifier, pairs, tolerance):
    with pytest.raises(CalibrantError):
        verifier.verify(pairs, tolerance)


def test_math_verify_may_be_missing(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(CalibrantError, match=r"math-verify"):
        Verifier()
