import gzip
import json
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from calibrant.errors import CalibrantError
from calibrant.text.maths import worker_script, workers
from calibrant.text.maths.clusters import symbolic_clusters
from calibrant.text.maths.verify import Verifier
from calibrant.text.maths.workers import Pool

TOWER = "9^{9^{9^9}}"
HANGS = (TOWER, r"\pi")
"""A pair that sympy computes for longer than anybody waits."""

EQUAL = [
    ("2", "2.0"),
    ("1,000", "1000"),
    ("4.5e33", r"4.5 \times 10^{33}"),
    ("0.333333", "1/3"),
    (r"\frac{1}{3}", "0.333333"),
    (r"\frac{2}{4}", r"\frac12"),
    (r"3\sqrt{13}", r"\sqrt{117}"),
    ("sqrt(2)", r"\sqrt{2}"),
    ("√2/2", r"\frac{1}{\sqrt{2}}"),
    ("pi/2", r"\frac{\pi}{2}"),
    ("2**10", "1024"),
    ("x**2 + 1", "1 + x^2"),
    ("2(n-1)", "2n-2"),
    (r"\binom{2n}{n}", r"\frac{(2n)!}{n!n!}"),
    ("y=2x+3", "2x+3"),
    ("x=5", "5"),
    ("3, 1 and 2", "1,2,3"),
    ("$3$, $1$, and $2$", "1,2,3"),
    ("x=1 \\text{ or } x=2", "2, 1"),
    (r"\{2, 1\}", "1,2"),
    (r"1 \pm \sqrt{19}", r"1-\sqrt{19},1+\sqrt{19}"),
    ("$69$,$84$", "84, 69"),
    ("(4,5,7), (1,8,19)", "$(1,8,19),(4,5,7)$"),
    ("(0,2),(0,-2)", "(0,-2),(0,2)"),
    (r"\left(3, \frac{\pi}{2}\right)", r"(3, \pi/2)"),
    (r"x \in [-2,7]", "[-2, 7]"),
    (r"(-∞, 5)", r"(-\infty,5)"),
    (r"(9,36) \cup (0,9)", r"(0,9)\cup(9,36)"),
    (r"\begin{pmatrix} 1/5 \\ -18/5 \end{pmatrix}", r"\begin{pmatrix} 0.2 \\ -3.6 \end{pmatrix}"),
    (r"45\text{ min}", "45"),
    (r"90^\circ", "90"),
    ("90°", r"90^{\circ}"),
    (r"50\%", "0.5"),
    ("50%", "50"),
    (r"\text{(B)}", "B"),
    ("evelyn", r"\text{Evelyn}"),
    (r"\boxed{2n}", "$2n$"),
    (r"2n.", "2n"),
    (".5\\sqrt{2}", r"\frac{\sqrt{2}}{2}"),
]
DIFFERENT = [
    ("3", "4"),
    ("0.33", "1/3"),
    ("333333/1000000", "1/3"),  # no decimal
    ("1.39e-10", "3.61e-10"),  # equal at six decimals
    ("0.00000001", "0.00000002"),
    ("2**10", "2"),
    ("5", "5, 15"),
    ("1, 2", "1, 2, 3"),
    ("(2,1)", "(1,2)"),
    ("(1,2)", "[1,2]"),
    ("(1,2]", "[1,2)"),
    ("(3,5)", "(3,5,7)"),
    ("(4,5,7), (1,8,19)", "(1,8,19),(4,7,5)"),
    ("x+1", "x-1"),
    ("g(x)=x", "f(x)=x"),
    (r"\text{odd}", r"\text{even}"),
    ("I do not know", "5"),
    ("", "5"),
    ("  ", "5"),
    ("__import__('os').system('echo')", "5"),
]


@pytest.fixture(scope="module")
def verifier():
    with Verifier(workers=2, timeout=60) as shared:
        yield shared


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not state.exists() or state.read_text().rpartition(")")[2].split()[0] != "Z"


def wait_until(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


def pids(verifier):
    return {worker.process.pid for worker in verifier._pool.workers}


def test_equal_and_different_answers(verifier):
    assert verifier.verify(EQUAL + DIFFERENT) == [True] * len(EQUAL) + [False] * len(DIFFERENT)


def test_equal_to_any_reference(verifier):
    assert verifier.verify([("x+1", ["x", "1+x"]), ("x+1", ["x", "2x"]), ("x+1", [])]) == [True, False, None]
    assert verifier.verify([("2", ["", "2"]), ("3", ["", "2"]), ("3", ("3",))]) == [True, None, True]


def test_what_is_certain_needs_no_worker():
    long = "9" * 100_000
    with Verifier() as verifier:
        assert verifier.verify([]) == []
        pairs = [(TOWER, TOWER), (long, f" {long} "), ("1/2", "0.5"), ("1/2", "0.4"), ("", "x"), ("x", ""), (long, "x")]
        assert verifier.verify(pairs) == [True, True, True, False, False, None, None]
        assert pids(verifier) == set()


def test_a_reference_that_is_no_mathematics_compares_with_its_own_text_alone(verifier):
    prose = "np.arcsin(10/13)"
    assert verifier.verify([(prose, prose), (f"${prose}$", prose), ("5", prose)]) == [True, True, None]


def test_agreement_with_math_verify_called_directly(verifier):
    from math_verify import parse, verify

    words = ["x+1", "1+x", r"\frac{1}{2}", "0.5", r"\sqrt{8}", r"2\sqrt{2}", "(1,2)", "[1,2]", "2,1", "x=3", "3"]
    pairs = [(a, b) for a in words for b in words]
    direct = [verify(parse(f"${b}$"), parse(f"${a}$")) for a, b in pairs]
    assert verifier.verify(pairs) == direct
    assert 18 < sum(direct) < 30


def test_a_thousand_ordinary_pairs_lose_none(verifier):
    rng = random.Random(0)
    numbers = [f"{rng.randrange(-99, 9999)}" for _ in range(200)] + [f"{rng.randrange(999)}/{k}" for k in range(2, 50)]
    forms = ["{a}x + {b}", r"\frac{{{a}\pi}}{{{b}}}", r"{a}\sqrt{{{b}}}", "({a}, {b}]", "x = {a}.{b}", "{a}, {b}"]
    others = [form.format(a=a, b=b) for form in forms for a in range(2, 6) for b in range(2, 6)]
    pairs = [(rng.choice(numbers), rng.choice(numbers)) for _ in range(600)]
    pairs += [(rng.choice(others), rng.choice(others)) for _ in range(150)]
    pairs += [(answer, f"${answer}$") for answer in rng.choices(numbers + others, k=250)]
    verdicts = verifier.verify(pairs)
    assert None not in verdicts
    assert all(verdicts[750:])
    assert verdicts[:750].count(False) > 700


@pytest.mark.parametrize(
    ("prediction", "gold", "tolerance", "equal"),
    [
        ("4.3", "4.2", 0.1, True),
        ("4.1", "4.2", 0.1, True),
        ("4.31", "4.2", 0.1, False),
        ("4.3%", "4.2", 0.1, True),
        (r"\sqrt{2}", "1.41", 0.01, True),
        (r"\sqrt{2}", "1.41", 0.001, False),
        (r"x=\pi", "3.14", 0.01, True),
        (r"\sqrt{4}, 1.01", "1, 2", 0.05, True),
        ("1.01, 2, 3", "1, 2", 0.05, False),
        ("(1, 2.01)", "(1, 2)", 0.1, True),
        ("(2, 1.01)", "(2, 1)", 0.1, True),
        ("(1.01, 2)", "(2, 1)", 0.1, False),
        ("[1, 2]", "(1, 2)", 0.1, False),
        ("x+1", "1+x", 0.1, True),
        ("x+1", "x+1.01", 0.1, False),
        (r"(-\infty, 5)", r"(-\infty, 5)", 0.1, True),
        ("1.0000001", "1", 0, False),
        ("1.0000001", "1", None, True),
    ],
)
def test_tolerance(verifier, prediction, gold, tolerance, equal):
    assert verifier.verify([(prediction, gold)], tolerance) == [equal]


def test_one_tolerance_a_pair(verifier):
    assert verifier.verify([("4.3", "4.2")] * 3, [0.1, None, 0.01]) == [True, False, False]


def test_symbolic_clusters(verifier):
    groups = [
        ["x+1", "1+x", "2", r"\sqrt{4}", "", "2.0", "", "x"],
        [r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}", "1,2", "2,1", "(1,2)", "Paris", "paris", "0.5"],
    ]
    assert symbolic_clusters(groups, verifier).tolist() == [[0, 0, 1, 1, 2, 1, 3, 4], [0, 0, 1, 1, 1, 2, 2, 3]]


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


FAKE = """
import json, os, sys, time
if os.path.exists(sys.argv[0] + ".broken"):
    os._exit(3)
print(json.dumps({"equal": True}), flush=True)
for line in sys.stdin:
    task = json.loads(line)
    if task == "die":
        os._exit(1)
    if task == "sleep":
        time.sleep(60)
    if task == "half":
        sys.stdout.write('{"equal": '); sys.stdout.flush(); time.sleep(0.3); print("true}", flush=True); continue
    error = {"error": "MemoryError: "} if task == "memory" else {}
    print(json.dumps({"equal": None if error else task, "pid": os.getpid()} | error), flush=True)
"""


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "fake.py"
    path.write_text(FAKE)
    return path


@pytest.fixture
def pool(script):
    pool = Pool(2, 1.0, 2**31, script)
    yield pool
    pool.close()


def test_a_pool_answers_in_order_whatever_becomes_of_its_workers(pool):
    tasks = [1, "die", 2, "sleep", "half", 3, "memory", "die", *range(10, 60)]
    replies = pool.run(tasks)
    assert [reply["equal"] for reply in replies] == [1, None, 2, None, True, 3, None, None, *range(10, 60)]
    assert [replies[i]["error"] for i in (1, 3, 6)] == ["it died", "more than 1 s", "MemoryError: "]
    assert len(pool.workers) <= 2


def test_workers_survive_and_close_leaves_none(pool):
    first = pool.run([1])[0]["pid"]
    later = {reply["pid"] for reply in pool.run([*range(200)])}
    assert first in later
    assert {worker.process.pid for worker in pool.workers} >= later
    pool.close()
    assert not any(map(alive, later))
    assert pool.run([1])[0]["pid"] not in later  # it starts again
    pool.close()
    pool.close()


def test_a_worker_that_is_killed_while_idle_is_replaced(pool):
    pid = pool.run([1])[0]["pid"]
    os.kill(pid, signal.SIGKILL)
    assert wait_until(lambda: not alive(pid))
    assert [reply["equal"] for reply in pool.run([1, 2, 3])] == [1, 2, 3]


def test_an_interrupt_leaves_nothing_half_done(pool, monkeypatch):
    (idle,) = {reply["pid"] for reply in pool.run([1])}
    real, calls = workers.wait, []

    def interrupted(*arguments):
        calls.append(arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(workers, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pool.run([7, 8, 9])
    assert len(calls) == 1
    monkeypatch.setattr(workers, "wait", real)
    assert not alive(idle)  # it was at 7: its reply would have been taken for another's
    assert [reply["equal"] for reply in pool.run([1, 2, 3])] == [1, 2, 3]


def test_a_worker_without_memory_is_replaced(pool):
    (reply,) = pool.run(["memory"])
    assert not alive(reply["pid"])
    assert pool.workers == []


def test_both_workers_work(pool):
    started = time.monotonic()
    replies = pool.run(["sleep", "sleep", "sleep", "sleep"])
    assert [reply["error"] for reply in replies] == ["more than 1 s"] * 4
    assert time.monotonic() - started < 3.9  # two rounds of a second and four starts, not four rounds


def test_only_the_workers_that_are_needed_start(script):
    pool = Pool(8, 5.0, 2**31, script)
    pool.run([1, 2, 3])
    assert 1 <= len(pool.workers) <= 3
    pool.close()


def test_workers_that_never_start_are_an_error_not_a_loop(script, pool):
    Path(f"{script}.broken").touch()
    with pytest.raises(CalibrantError, match="fail to start"):
        pool.run([1, 2, 3])
    Path(f"{script}.broken").unlink()
    assert [reply["equal"] for reply in pool.run([1, 2, 3])] == [1, 2, 3]


def test_a_late_start_counts_against_no_task(script, monkeypatch):
    script.write_text(FAKE.replace("print(json.dumps", "time.sleep(1.0); print(json.dumps", 1))
    pool = Pool(1, 0.9, 2**31, script)
    assert pool.run([1]) == [{"equal": 1, "pid": pool.workers[0].process.pid}]
    pool.close()
    monkeypatch.setattr(workers, "STARTUP", 0.2)
    with pytest.raises(CalibrantError, match=r"0\.2 s passed|fail to start"):
        pool.run([1])
    pool.close()


def test_a_long_task_fits_through_the_pipe(pool):
    text = "\ud800" * 300_000
    assert pool.run([text, "x"])[0]["equal"] == text


ORPHAN = f"""
import threading, time
from calibrant.text.maths.workers import Pool
pool = Pool(1, 1.0, 2**31)
threading.Thread(target=pool.run, args=([(*{HANGS!r}, None)],), daemon=True).start()
while not any(worker.task is not None for worker in pool.workers):
    time.sleep(0.01)
print(pool.workers[0].process.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(not hasattr(signal, "alarm"), reason="the system has no alarm")
def test_a_hanging_worker_does_not_outlive_its_parent_for_long():
    parent = subprocess.Popen([sys.executable, "-c", ORPHAN], stdout=subprocess.PIPE, text=True)
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    assert wait_until(lambda: not alive(pid), 15.0)


DATA = os.environ.get("CALIBRANT_DATA")


@pytest.mark.skipif(not DATA, reason="CALIBRANT_DATA names no folder of real rows")
@pytest.mark.parametrize("name", ["math/math500", "olympiadbench/test", "minerva_math/test", "aime24/test"])
def test_real_references_equal_themselves_in_other_forms(verifier, name):
    with gzip.open(f"{DATA}/{name}.jsonl.gz", "rt", encoding="utf-8") as file:
        golds = [json.loads(line)["answers"][0].strip() for line in file]
    bare = [gold if r"\$" in gold else gold.replace("$", "") for gold in golds]
    for form in ("${}$", "${}$.", r"\boxed{{{}}}"):
        verdicts = verifier.verify([(form.format(answer), gold) for answer, gold in zip(bare, golds, strict=True)])
        assert verdicts.count(True) >= len(golds) - 1
