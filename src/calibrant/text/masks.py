"""Which tokens of a completion spell its answer."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from calibrant.text.extract import answer_span, completion_offsets, token_span


def answer_masks(tokenizer: Any, ids: Tensor, mask: Tensor, answers: Sequence[str]) -> Tensor:
    """Which tokens of each completion spell its answer: the last place where the extracted text stands.

    Interpretation (c): GRPO-CARE marks what stands between answer tags; question answering without tags has none.

    Args:
        tokenizer: decodes the completions.
        ids: `[B, T]`.
        mask: `[B, T]`, 0 and 1.
        answers: the answer that was extracted from each completion.

    Returns:
        `[B, T]`, boolean; a row is all False where its answer is empty or not there.
    """
    found = torch.zeros_like(mask, dtype=torch.bool)
    for row, (tokens, counts, answer) in enumerate(zip(ids.tolist(), mask.bool().tolist(), answers, strict=True)):
        kept = [i for i, keep in enumerate(counts) if keep]
        own = [tokens[i] for i in kept]
        text = tokenizer.decode(own, skip_special_tokens=True)
        span = answer_span(text, answer)
        if span is not None:
            found[row, kept] = torch.tensor(token_span(completion_offsets(tokenizer, own), span), device=found.device)
    return found
