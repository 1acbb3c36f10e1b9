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

_SIGNS = str.maketrans(
    {"∞": r"\infty ", "√": r"\sqrt ", "π": r"\pi ", "°": r"^{\circ}", "²": "^2", "³": "^3", "½": r"\frac{1}{2}"}
    | {"−": "-", "×": r"\times ", "·": r"\cdot ", "÷": "/", "≤": r"\le ", "≥": r"\ge ", "∪": r"\cup ", "±": r"\pm "}
)
_POWER = re.compile(r"\*\*\s*(-?[0-9]+(?:\.[0-9]+)?)")
_PI = re.compile(r"(?<![\\A-Za-z])pi(?![A-Za-z])")
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

    if tolerance is not None:  # of percentage points
        gold, prediction = (re.sub(r"\\?%", "", text) for text in (gold, prediction))
    theirs, ours = _read(gold), _read(prediction)
    if tolerance is not None:
        left, right = _numbers(theirs), _numbers(ours)
        if left is not None and right is not None:
            return _close(left, right, tolerance)
    if verify(theirs, ours, timeout_seconds=None, raise_on_error=True):
        return True
    return False if _expressions(theirs) else None


def _read(text: str) -> list[Any]:
    """What math-verify reads in an answer: at most one sympy object, and the normalised text."""
    from math_verify import LatexExtractionConfig, parse

    found: list[Any] = parse(
        f"\\boxed{{{_latex(text)}}}",
        extraction_config=[LatexExtractionConfig()],
        parsing_timeout=None,
        raise_on_error=True,
    )
    if found and not _expressions(found):
        _raise_what_was_swallowed(found[0])
    return found


def _expressions(found: list[Any]) -> list[Any]:
    return [expression for expression in found if not isinstance(expression, str)]


def _raise_what_was_swallowed(latex: str) -> None:
    """Reads again what math-verify could not: an answer too deep or too large is no wrong answer."""
    from math_verify.parser import parse_latex_cached

    try:
        parse_latex_cached(latex)
    except (RecursionError, MemoryError):
        raise
    except Exception:
        return


def _latex(text: str) -> str:
    """LaTeX of what is written without it: signs, powers and numbers of programs."""
    text = text.translate(_SIGNS).lstrip(" \n\t$").rstrip(" \n\t$.,;").removesuffix("\\")
    text = _SCIENTIFIC.sub(r"\1 \\times 10^{\2}", text)
    return _PI.sub(r"\\pi ", _POWER.sub(r"^{\1}", text).replace("**", "^"))


def _numbers(found: list[Any]) -> tuple[str, list[float]] | None:
    """The brackets and the numbers of a number, a tuple, an interval, or a set; None if something else is in it."""
    from sympy import Equality, FiniteSet, Interval, Tuple

    expression = next(iter(_expressions(found)), None)
    if isinstance(expression, Equality):
        expression = expression.rhs
    if expression is None:
        return None
    if isinstance(expression, Interval):  # math-verify reads (1, 2) as an open one, (2, 1) as a tuple
        parts, brackets = expression.args[:2], "[("[bool(expression.left_open)] + "])"[bool(expression.right_open)]
    elif isinstance(expression, FiniteSet | Tuple):
        parts, brackets = expression.args, "{}" if isinstance(expression, FiniteSet) else "()"
    else:
        parts, brackets = [expression], ""
    values = [float(part.doit().evalf()) if part.is_number and part.is_real else math.nan for part in parts]
    if not all(map(math.isfinite, values)):
        return None
    return brackets, sorted(values) if brackets == "{}" else values


def _close(gold: tuple[str, list[float]], prediction: tuple[str, list[float]], tolerance: float) -> bool:
    slack = tolerance * (1 + 1e-9)
    same_form = gold[0] == prediction[0] and len(gold[1]) == len(prediction[1])
    return same_form and all(abs(a - b) <= slack for a, b in zip(gold[1], prediction[1], strict=True))


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
