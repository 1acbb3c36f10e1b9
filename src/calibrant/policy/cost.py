"""What the routes cost, in forward passes of one token, and whether sharing pays.

A token costs 1 for the weights and `L / (6 D)` for attending to L columns, with D the width of the model: a layer of
a transformer multiplies `24 D^2` numbers a token, and its attention `4 L D`. Attention is counted as computed, with
the columns that the mask hides.
"""

from calibrant.errors import CalibrantError

PASS_TOKENS = 64.0
"""What a further forward pass costs beside its tokens."""

COPY = 0.03
"""What it costs to repeat the keys and values of one prompt token for one row."""

MARGIN = 0.9
"""Sharing has to cost less than this share of the plain forward: the estimate has errors."""


def plain_cost(prompt_length: int, rows: int, completion_length: int, width: int) -> float:
    """Every row with its own copy of the prompt."""
    length = prompt_length + completion_length
    return PASS_TOKENS + rows * _cost(length, length, width)


def cached_cost(prompt_length: int, num_distinct: int, rows: int, completion_length: int, width: int) -> float:
    """Prompts once, then completions without their last tokens on the repeated cache."""
    suffix = completion_length - 1
    if suffix <= 0:
        return PASS_TOKENS + num_distinct * _cost(prompt_length, prompt_length, width)
    prefix = num_distinct * _cost(prompt_length, prompt_length, width) + COPY * rows * prompt_length
    return 2 * PASS_TOKENS + prefix + rows * _cost(suffix, prompt_length + suffix, width)


def packed_cost(prompt_length: int, num_distinct: int, longest_suffix: int, width: int) -> float:
    """One row a prompt, followed by all of its completions, in which all attend to all columns."""
    length = prompt_length + longest_suffix
    return PASS_TOKENS + num_distinct * _cost(length, length, width)


def _cost(tokens: int, columns: int, width: int) -> float:
    return tokens * (1.0 + columns / (6.0 * width))


def worthwhile(
    prompt_length: int, num_distinct: int, rows: int, completion_length: int, *, width: int = 1024, packed: bool = False
) -> bool:
    """Whether sharing prompts is cheaper than a plain forward, estimated from lengths.

    Token passes, with `c(n, L) = n (1 + L / (6 width))`:
    `plain = rows c(P + T, P + T)`,
    `cached = num_distinct c(P, P) + rows c(T - 1, P + T - 1) + 0.03 rows P + 64`,
    `packed = num_distinct c(P + S, P + S)` with `S = rows (T - 1) / num_distinct`;
    sharing pays if it costs less than 0.9 of plain.

    Args:
        prompt_length: P, columns of the prompts.
        num_distinct: distinct prompts among the rows.
        rows: rows of the micro-batch.
        completion_length: T, columns of the completions.
        width: hidden size of the model.
        packed: whether the packed route is meant; the cached one otherwise.

    Returns:
        Whether sharing pays; never for rows that all have their own prompt.

    Raises:
        CalibrantError: numbers that no batch has.

    Reference: counted and calibrated by measurement (c), see benchmarks/prefix.py.

    >>> worthwhile(80, 8, 128, 8), worthwhile(80, 128, 128, 8)
    (True, False)
    """
    if not (1 <= num_distinct <= rows and prompt_length >= 1 and completion_length >= 0 and width >= 1):
        raise CalibrantError(
            "worthwhile: expected 1 <= num_distinct <= rows, prompt_length >= 1, completion_length >= 0 and "
            f"width >= 1, got num_distinct={num_distinct}, rows={rows}, prompt_length={prompt_length}, "
            f"completion_length={completion_length} and width={width}"
        )
    if num_distinct == rows:
        return False
    plain = plain_cost(prompt_length, rows, completion_length, width)
    if packed:
        suffix = -(-rows * max(completion_length - 1, 0) // num_distinct)
        return packed_cost(prompt_length, num_distinct, suffix, width) < MARGIN * plain
    return cached_cost(prompt_length, num_distinct, rows, completion_length, width) < MARGIN * plain
