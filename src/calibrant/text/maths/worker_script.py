"""The script of the worker processes of `workers.py`: mathematical equality of two answers, by math-verify.

It reads and writes one line of JSON per task, and imports neither calibrant nor torch. No text is evaluated as code:
math-verify's LaTeX grammar parses it, and its parser of plain expressions, which uses `eval`, is off.
"""

import json
import logging
import math
import os
import re
import signal
import sys
from typing import TextIO

_SIGNS = str.maketrans(
    {"∞": r"\infty ", "√": r"\sqrt ", "π": r"\pi ", "°": r"^{\circ}", "²": "^2", "³": "^3", "½": r"\frac{1}{2}"}
    | {"−": "-", "×": r"\times ", "·": r"\cdot ", "÷": "/", "≤": r"\le ", "≥": r"\ge ", "∪": r"\cup ", "±": r"\pm "}
)
_POWER = re.compile(r"\*\*\s*(-?[0-9]+(?:\.[0-9]+)?)")
_PI = re.compile(r"(?<![\\A-Za-z])pi(?![A-Za-z])")
_SCIENTIFIC = re.compile(r"(?<![\w.])([0-9]+\.?[0-9]*|\.[0-9]+)[eE]([-+]?[0-9]+)(?![\w.])")


def equal(prediction: str, gold: str, tolerance: float | None = None) -> bool | None:
    r"""Whether a prediction equals a reference, without limits of time or memory, which `Verifier` sets.

    Both are in LaTeX or plain, with or without dollar signs. None if the reference cannot be parsed, False if the
    prediction cannot; raises whatever math-verify and sympy raise. `tolerance` is the largest absolute difference of
    equal numbers; math-verify's rule, six decimals, when None.

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


def _read(text: str) -> list[object]:
    """What math-verify parses in an answer: at most one sympy object, and the normalised text."""
    from math_verify import LatexExtractionConfig, parse

    options = {"extraction_config": [LatexExtractionConfig()], "parsing_timeout": None, "raise_on_error": True}
    parsed: list[object] = parse(f"\\boxed{{{_latex(text)}}}", **options)
    if parsed and not _expressions(parsed):
        _reraise_resource_errors(str(parsed[0]))
    return parsed


def _expressions(parsed: list[object]) -> list[object]:
    return [expression for expression in parsed if not isinstance(expression, str)]


def _reraise_resource_errors(latex: str) -> None:
    """Parses again what math-verify failed on: an answer too deep or too large is unscorable, not wrong."""
    from math_verify.parser import parse_latex_cached

    try:
        parse_latex_cached(latex)
    except (RecursionError, MemoryError):
        raise
    except Exception:
        return


def _latex(text: str) -> str:
    """LaTeX of Unicode signs, and of powers and numbers in the notation of programs."""
    text = text.translate(_SIGNS).lstrip(" \n\t$").rstrip(" \n\t$.,;").removesuffix("\\")
    text = _SCIENTIFIC.sub(r"\1 \\times 10^{\2}", text)
    return _PI.sub(r"\\pi ", _POWER.sub(r"^{\1}", text).replace("**", "^"))


def _numbers(parsed: list[object]) -> tuple[str, list[float]] | None:
    """Brackets and numbers of a number, tuple, interval or set; None if an element is no number."""
    from sympy import Equality, FiniteSet, Interval, Tuple

    expression = next(iter(_expressions(parsed)), None)
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
    """Answers tasks until the input ends, within `memory` bytes.

    The parent kills a worker that takes too long; if the parent has died, an alarm after `seconds` ends this process.
    """
    alarm = getattr(signal, "alarm", lambda seconds: None)
    _limit_memory(memory)
    _write(replies, **_reply(r"\frac{1}{2}", "0.5", None))
    for line in tasks:
        alarm(seconds)
        reply = _reply(*json.loads(line))
        alarm(0)
        _write(replies, **reply)


def _reply(prediction: str, gold: str, tolerance: float | None) -> dict[str, object]:
    try:
        return {"equal": equal(prediction, gold, tolerance)}
    except Exception as error:
        return {"equal": None, "error": f"{type(error).__name__}: {error}"[:200]}


def _write(replies: TextIO, **reply: object) -> None:
    replies.write(json.dumps(reply) + "\n")
    replies.flush()


def _limit_memory(size: int) -> None:
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (size, size))
    except (ImportError, ValueError, OSError):
        logging.getLogger(__name__).debug("this system cannot limit memory")


def main() -> None:
    """Serves on standard input and output; output of libraries is redirected to standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)
    logging.disable()
    memory, seconds = map(int, sys.argv[1:])
    serve(sys.stdin, answers, memory, seconds)


if __name__ == "__main__":
    main()
