"""Whether two answers are mathematically equal, by math-verify: what runs in the worker processes of `workers.py`.

Run as a script, it answers one line of JSON with one line of JSON. It imports nothing of calibrant, and no torch. No
text is ever evaluated as code: math-verify's grammar of LaTeX reads it, and its reader of plain expressions, which
goes through `eval`, is not used.
"""

import json
import logging
import math
import os
import re
import signal
import sys
from typing import Any, TextIO

_SCIENTIFIC = re.compile(r"(?<![\w.])([0-9]+\.?[0-9]*|\.[0-9]+)[eE]([-+]?[0-9]+)(?![\w.])")


def equal(prediction: str, gold: str, tolerance: float | None = None) -> bool | None:
    r"""Whether a prediction equals a reference; without any limit of time or memory: `Verifier` sets these.

    Args:
        prediction: an answer, in LaTeX or plain, with or without dollar signs.
        gold: the reference.
        tolerance: largest absolute difference of numbers that still are equal; math-verify's own rule, equality at
            six decimals, when None.

    Returns:
        None if the reference cannot be read as mathematics, so that nothing can be compared with it; False for a
        prediction that cannot.

    Raises:
        Exception: whatever math-verify and sympy raise.

    >>> equal(r"\frac{2}{4}", "0.5"), equal("2, 1", "$1$ and $2$"), equal("4.3", r"4.2\%", tolerance=0.1)
    (True, True, True)
    """
    from math_verify import verify

    theirs, ours = _read(gold), _read(prediction)
    if not theirs:
        return None
    if tolerance is not None and ours:
        pair = _numbers(theirs[0]), _numbers(ours[0])
        if pair[0] is not None and pair[1] is not None:
            return _close(*pair, tolerance)
    return bool(ours) and bool(verify(theirs, ours, timeout_seconds=None, raise_on_error=True))


def _read(text: str) -> list[Any]:
    """What math-verify reads in an answer, as sympy objects: at most one."""
    from math_verify import LatexExtractionConfig, parse

    latex = _SCIENTIFIC.sub(r"\1 \\times 10^{\2}", text)
    found = parse(
        f"\\boxed{{{latex}}}",
        extraction_config=[LatexExtractionConfig()],
        parsing_timeout=None,  # type: ignore[arg-type]  # math-verify's way to say "no signals", which its hints lack
        raise_on_error=True,
    )
    return [expression for expression in found if not isinstance(expression, str)]


def _numbers(expression: Any) -> list[float] | None:
    """The numbers of a number, a tuple, or a set (in ascending order); None if something else is among them."""
    from sympy import Equality, FiniteSet, Tuple

    if isinstance(expression, Equality):
        expression = expression.rhs
    parts = expression.args if isinstance(expression, FiniteSet | Tuple) else [expression]
    values = [float(part.doit().evalf()) if getattr(part, "is_number", False) else math.nan for part in parts]
    if not all(map(math.isfinite, values)):
        return None
    return sorted(values) if isinstance(expression, FiniteSet) else values


def _close(gold: list[float], prediction: list[float], tolerance: float) -> bool:
    slack = tolerance * (1 + 1e-9)
    return len(gold) == len(prediction) and all(abs(a - b) <= slack for a, b in zip(gold, prediction, strict=True))


def serve(tasks: TextIO, replies: TextIO, memory: int, seconds: int) -> None:
    """Answers tasks until there are no more, within a limit of memory (bytes).

    The process that asks kills one that takes too long; should it have died itself, the system ends this one.
    """
    _limit_memory(memory)
    _say(replies, **_judged(r"\frac{1}{2}", "0.5", None))
    for line in tasks:
        if hasattr(signal, "alarm"):
            signal.alarm(seconds)
        reply = _judged(*json.loads(line))
        if hasattr(signal, "alarm"):
            signal.alarm(0)
        _say(replies, **reply)


def _judged(prediction: str, gold: str, tolerance: float | None) -> dict[str, Any]:
    try:
        return {"equal": equal(prediction, gold, tolerance)}
    except Exception as error:
        return {"equal": None, "error": f"{type(error).__name__}: {error}"[:200]}


def _say(replies: TextIO, **reply: Any) -> None:
    replies.write(json.dumps(reply) + "\n")
    replies.flush()


def _limit_memory(size: int) -> None:
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (size, size))
    except (ImportError, ValueError, OSError):
        logging.getLogger(__name__).debug("this system sets no limit of memory")


def main() -> None:
    """Serves on standard input and output; what libraries print goes nowhere."""
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)
    logging.disable()
    memory, seconds = map(int, sys.argv[1:])
    serve(sys.stdin, answers, memory, seconds)


if __name__ == "__main__":
    main()
