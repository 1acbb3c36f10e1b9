"""Mathematical verification of answers in worker processes, with limits of time and memory."""

import importlib.util
import logging
import reprlib
import threading
from collections import Counter, OrderedDict
from collections.abc import Sequence
from fractions import Fraction
from typing import Self

from calibrant.checks import check_non_negative, check_positive
from calibrant.errors import CalibrantError
from calibrant.files import JsonObject
from calibrant.statistics.counted import check_count
from calibrant.text.keys import as_number
from calibrant.text.maths.workers import WorkerPool
from calibrant.text.metrics import reference_list

Pair = tuple[str, str | Sequence[str]]
Question = tuple[str, str, float | None]

DECIMALS = 6  # digits after the point when comparing decimals: `float_rounding` of math-verify
_LOG = logging.getLogger(__name__)


class Verifier:
    r"""Verifies predictions against references with math-verify, in worker processes.

    Equal texts, empty ones and pairs of numbers are decided without a worker: numbers are compared exactly, and as
    decimals at six digits after the point (math-verify's rule) of which three have to be significant (c). Other pairs
    go to worker processes, each once. A worker that takes longer than `timeout` for a pair is killed and replaced;
    the pair is unscorable and logged, and all others are scored. Verdicts are cached across calls, unscorable pairs
    included.

    Several answers ("1, 2 and 3", "x=1 or x=2", `1 \pm \sqrt{2}`) are sets, without order and repetition; in brackets
    they are tuples or intervals, with order. Units after a number are dropped.

    Thread-safe; calls from several threads are serialised, and no signal handler is used. Use it as a context manager,
    or call `close`.

    Args:
        workers: maximum number of processes, started on demand.
        timeout: seconds of wall clock per pair.
        cache_size: number of cached verdicts, the latest ones.
        max_length: characters of a prediction or a reference; longer ones are unscorable (the longest reference of
            MATH500, OlympiadBench and Minerva has 210).
        memory: GiB of address space per worker, where the system can limit it; a pair that needs more is unscorable.

    Attributes:
        unscorable: reason -> number of unscorable pairs, without cached ones.

    >>> with Verifier(workers=1) as verifier:
    ...     verifier.verify([(r"\frac{\sqrt{4}}{4}", "1/2"), ("2x+1", ["2x", "1+2x"]), ("3", "4"), ("3", "")])
    [True, True, False, None]
    """

    def __init__(
        self,
        workers: int = 2,
        timeout: float = 5.0,
        cache_size: int = 65536,
        *,
        max_length: int = 2_000,
        memory: float = 2.0,
    ):
        check_count("Verifier", workers=workers, max_length=max_length)
        check_count("Verifier", 0, cache_size=cache_size)
        check_positive("Verifier", timeout=timeout, memory=memory)
        if importlib.util.find_spec("math_verify") is None:
            raise CalibrantError("math-verify is not installed; install math-verify to verify mathematics")
        self.cache_size, self.max_length = cache_size, max_length
        self.unscorable: Counter[str] = Counter()
        self._cache: OrderedDict[Question, bool | None] = OrderedDict()
        self._pool = WorkerPool(workers, timeout, int(memory * 2**30))
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Kills all workers; a later call of `verify` starts new ones."""
        with self._lock:
            self._pool.close()

    def verify(
        self, pairs: Sequence[Pair], tolerance: float | Sequence[float | None] | None = None
    ) -> list[bool | None]:
        """Whether each prediction equals its reference, or one of its references.

        True if it equals any; else None if any comparison was unscorable (too long, too slow, too large, an exception,
        a worker's death, an empty or unparsable reference), or there is no reference; else False. An empty prediction
        is False.

        `tolerance` is the largest absolute difference of equal numbers, for all pairs or one per pair; when None, see
        the class.
        """
        questions = [_questions(*item) for item in zip(pairs, _tolerances(tolerance, len(pairs)), strict=True)]
        with self._lock:
            verdicts = self._verdicts(list(dict.fromkeys(question for row in questions for question in row)))
        return [_any([verdicts[question] for question in row]) for row in questions]

    def _verdicts(self, questions: Sequence[Question]) -> dict[Question, bool | None]:
        """The verdict of each question: from the cache, without mathematics, or from the workers."""
        verdicts: dict[Question, bool | None] = {}
        for question in questions:
            if question in self._cache:
                self._cache.move_to_end(question)
                verdicts[question] = self._cache[question]
            else:
                verdicts.update((question, verdict) for verdict in self._without_workers(*question))
        hard = [question for question in questions if question not in verdicts]
        for question, reply in zip(hard, self._pool.run(hard), strict=True):
            verdicts[question] = self._record(question, reply)
        return verdicts

    def _without_workers(self, prediction: str, gold: str, tolerance: float | None) -> list[bool | None]:
        """The verdict as a list of one; [] if it needs a worker."""
        if gold and (not prediction or prediction == gold):
            return [prediction == gold]
        if gold and max(len(prediction), len(gold)) <= self.max_length:
            return _compared(prediction, gold, tolerance)
        self.unscorable["too long" if gold else "empty reference"] += 1
        return [None]

    def _record(self, question: Question, reply: JsonObject) -> bool | None:
        """The verdict of a reply, cached; an unscorable pair is counted and logged."""
        verdict = reply["equal"]
        if verdict is None:
            reason = reply.get("error", "the reference cannot be parsed")
            self.unscorable[reason.partition(":")[0]] += 1
            prediction, gold, _ = map(reprlib.repr, question)
            _LOG.warning("unscorable, %s: prediction %s, reference %s", reason, prediction, gold)
        self._cache[question] = verdict
        while len(self._cache) > self.cache_size:
            self._cache.popitem(last=False)
        return None if verdict is None else bool(verdict)


def _compared(prediction: str, gold: str, tolerance: float | None) -> list[bool | None]:
    """The verdict on two numbers; [] if one is no number, or a percentage, which may mean its hundredth."""
    ours, theirs = as_number(prediction), as_number(gold)
    if ours is None or theirs is None:
        return []
    if tolerance is not None:
        return [abs(ours - theirs) <= Fraction(str(tolerance))]
    if ours == theirs:
        return [True]
    if "%" in prediction or "%" in gold:
        return []
    alike = round(ours, DECIMALS) == round(theirs, DECIMALS) and abs(ours - theirs) <= abs(theirs) / 1000
    return [alike and ("." in prediction or "." in gold)]


def _any(verdicts: Sequence[bool | None]) -> bool | None:
    """True if any is True, else None if any is None or there is none, else False."""
    return True if True in verdicts else None if None in verdicts or not verdicts else False


def _questions(pair: Pair, tolerance: float | None) -> list[Question]:
    prediction, references = pair[0], reference_list(pair[1])
    for text in (prediction, *references):
        if not isinstance(text, str):
            raise CalibrantError(f"verify: expected pairs of texts, got a {type(text).__name__}; give '' for no answer")
    return [(prediction.strip(), reference.strip(), tolerance) for reference in references]


def _tolerances(tolerance: float | Sequence[float | None] | None, count: int) -> list[float | None]:
    tolerances = list(tolerance) if isinstance(tolerance, Sequence) else [tolerance] * count
    if len(tolerances) != count:
        raise CalibrantError(f"verify: expected one tolerance per pair, {count}, got {len(tolerances)}")
    for value in tolerances:
        if value is not None:
            check_non_negative("verify", tolerance=value)
    return tolerances
