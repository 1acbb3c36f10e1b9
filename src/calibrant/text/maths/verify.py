"""Mathematical verification of answers that nothing can freeze: no expression, no exception, no dying process."""

import importlib.util
import logging
import reprlib
import threading
from collections import Counter, OrderedDict
from collections.abc import Sequence
from fractions import Fraction
from types import TracebackType
from typing import Any, Self

from calibrant.checks import check_non_negative
from calibrant.errors import CalibrantError
from calibrant.text.keys import as_number
from calibrant.text.maths.workers import Pool

Pair = tuple[str, str | Sequence[str]]
Question = tuple[str, str, float | None]

DECIMALS = 6
"""Digits after the point at which decimals are compared: `float_rounding` of math-verify."""

_LOG = logging.getLogger(__name__)


class Verifier:
    r"""Verifies predictions against references with math-verify, in processes that are killed when they take too long.

    What needs no mathematics is decided at once: equal texts, empty ones, and pairs of numbers, which are compared
    exactly, and as decimals at six digits after the point (math-verify's rule) of which three have to be significant
    (c). The rest goes to worker processes, each pair once. A worker that takes longer than `timeout` seconds of wall
    clock for a pair is killed and replaced; its pair is unscorable and named in the log, and all others are scored.
    What was found is kept from call to call, what is unscorable too: a pair that hangs costs its time once.

    Several answers ("1, 2 and 3", "x=1 or x=2", `1 \pm \sqrt{2}`) are sets, whose order and repetitions do not
    matter; in brackets they are tuples or intervals, whose order does. Units after a number are dropped.

    It works in any thread, calls from several threads take turns, and no signal handler is used. Use it as a context
    manager, or call `close`.

    Args:
        workers: processes at a time, started when they are needed.
        timeout: seconds a pair, above 0.
        cache_size: pairs whose verdict is kept, the latest ones; 0 keeps none.
        max_length: characters of a prediction or a reference; longer ones are unscorable without being read (the
            longest reference of MATH500, OlympiadBench and Minerva has 210).
        memory: GiB of address space a worker (where the system can limit it); what needs more is unscorable.

    Attributes:
        unscorable: how many pairs were unscorable, by reason, cached ones not counted again.

    Raises:
        CalibrantError: math-verify is not installed, or an argument is out of its range.

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
        _check(workers, timeout, cache_size, max_length, memory)
        if importlib.util.find_spec("math_verify") is None:
            raise CalibrantError("math-verify is not installed; install math-verify to verify mathematics")
        self.cache_size, self.max_length = cache_size, max_length
        self.unscorable: Counter[str] = Counter()
        self._cache: OrderedDict[Question, bool | None] = OrderedDict()
        self._pool = Pool(workers, timeout, int(memory * 2**30))
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends all workers. A later call of `verify` starts new ones."""
        with self._lock:
            self._pool.close()

    def verify(
        self, pairs: Sequence[Pair], tolerance: float | Sequence[float | None] | None = None
    ) -> list[bool | None]:
        """Whether each prediction equals one of its references.

        Args:
            pairs: (prediction, reference) or (prediction, references).
            tolerance: largest absolute difference of equal numbers, for all pairs or one a pair; None: see the class.

        Returns:
            In order: True if it equals any reference; else None if any comparison was unscorable (too long, too slow,
            too large, an exception, a worker's death, a reference that is empty or no mathematics), or there is no
            reference; else False. An empty prediction is False.

        Raises:
            CalibrantError: something that is not text, a tolerance that is negative, or workers that do not start.
        """
        asked = [_questions(*item) for item in zip(pairs, _tolerances(tolerance, len(pairs)), strict=True)]
        with self._lock:
            verdicts = self._verdicts(list(dict.fromkeys(question for questions in asked for question in questions)))
        return [_any([verdicts[question] for question in questions]) for questions in asked]

    def _verdicts(self, questions: Sequence[Question]) -> dict[Question, bool | None]:
        """The verdict of each question: known, certain, or from the workers."""
        verdicts: dict[Question, bool | None] = {}
        for question in questions:
            if question in self._cache:
                self._cache.move_to_end(question)
                verdicts[question] = self._cache[question]
            else:
                verdicts.update((question, verdict) for verdict in self._certain(*question))
        hard = [question for question in questions if question not in verdicts]
        for question, reply in zip(hard, self._pool.run(hard), strict=True):
            verdicts[question] = self._noted(question, reply)
        return verdicts

    def _certain(self, prediction: str, gold: str, tolerance: float | None) -> list[bool | None]:
        """The verdict, where no mathematics is needed for it; else nothing."""
        if not gold:
            return self._counted("empty reference")
        if not prediction:
            return [False]
        if prediction == gold:
            return [True]
        if max(len(prediction), len(gold)) > self.max_length:
            return self._counted("too long")
        return _compared(prediction, gold, tolerance)

    def _counted(self, reason: str) -> list[bool | None]:
        self.unscorable[reason] += 1
        return [None]

    def _noted(self, question: Question, reply: dict[str, Any]) -> bool | None:
        """The verdict of a reply, kept; what is unscorable is counted and named in the log."""
        verdict = reply["equal"]
        if verdict is None:
            reason = reply.get("error", "the reference is no mathematics")
            self.unscorable[reason.partition(":")[0]] += 1
            prediction, gold, _ = map(reprlib.repr, question)
            _LOG.warning("unscorable, %s: prediction %s, reference %s", reason, prediction, gold)
        self._cache[question] = verdict
        while len(self._cache) > self.cache_size:
            self._cache.popitem(last=False)
        return None if verdict is None else bool(verdict)


def _compared(prediction: str, gold: str, tolerance: float | None) -> list[bool | None]:
    """The verdict on two numbers; nothing if one is none, or a percentage, which may mean its hundredth."""
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
    """True if any is, else None if any is or there is none, else False."""
    if True in verdicts:
        return True
    return None if None in verdicts or not verdicts else False


def _questions(pair: Pair, tolerance: float | None) -> list[Question]:
    """What a pair asks, one question a reference."""
    prediction, golds = pair
    references = [golds] if isinstance(golds, str) else list(golds)
    for text in (prediction, *references):
        if not isinstance(text, str):
            raise CalibrantError(f"verify: expected pairs of texts, got a {type(text).__name__}; give '' for no answer")
    return [(prediction.strip(), reference.strip(), tolerance) for reference in references]


def _tolerances(tolerance: float | Sequence[float | None] | None, count: int) -> list[float | None]:
    """One tolerance a pair."""
    each = list(tolerance) if isinstance(tolerance, Sequence) else [tolerance] * count
    if len(each) != count:
        raise CalibrantError(f"verify: expected one tolerance a pair, {count}, got {len(each)}")
    for value in each:
        if value is not None:
            check_non_negative("verify", tolerance=value)
    return each


def _check(workers: int, timeout: float, cache_size: int, max_length: int, memory: float) -> None:
    for name, count, least in (("workers", workers, 1), ("cache_size", cache_size, 0), ("max_length", max_length, 1)):
        if not isinstance(count, int) or isinstance(count, bool) or count < least:
            raise CalibrantError(f"Verifier: {name} has to be an integer of at least {least}, got {count!r}")
    check_non_negative("Verifier", timeout=timeout, memory=memory)
    if not timeout or not memory:
        raise CalibrantError(f"Verifier: timeout and memory have to be above 0, got {timeout!r} and {memory!r}")
