"""Masks of the tokens that spell the answer of a completion."""

from collections.abc import Sequence

import torch
from torch import Tensor

from calibrant.text.extract import Decoder, answer_span, completion_offsets, token_span


def answer_masks(tokenizer: Decoder, ids: Tensor, mask: Tensor, answers: Sequence[str]) -> Tensor:
    """Tokens `[B, T]` of the last occurrence of the extracted answer, boolean; all False where it does not occur.

    GRPO-CARE marks the text between answer tags, which answers without tags do not have (c). `ids` and `mask` (0 and
    1) are `[B, T]`; `answers` are B extracted answers.
    """
    answer_tokens = torch.zeros_like(mask, dtype=torch.bool)
    for row, (tokens, counts, answer) in enumerate(zip(ids.tolist(), mask.bool().tolist(), answers, strict=True)):
        kept = [i for i, keep in enumerate(counts) if keep]
        completion = [tokens[i] for i in kept]
        text = tokenizer.decode(completion, skip_special_tokens=True)
        span = answer_span(text, answer)
        if span is not None:
            inside = token_span(completion_offsets(tokenizer, completion), span)
            answer_tokens[row, kept] = torch.tensor(inside, device=ids.device)
    return answer_tokens
