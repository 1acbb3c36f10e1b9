"""Prompts in the form that a policy expects, with contexts truncated to fit."""

import logging
from collections.abc import Callable, Iterable
from functools import cache
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from calibrant.errors import CalibrantError, reason, shortened
from calibrant.tasks.base import Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)


class TooLong(CalibrantError):
    """A question takes too many tokens even without its context."""


def prompt_for(row: Row, tokenizer: "PreTrainedTokenizerBase") -> Any:
    """The prompt of a question: messages for a policy with a chat template, else plain text.

    If the template refuses or drops a system message, its text is prepended to the first user message.
    """
    if not tokenizer.chat_template:
        return row["prompt"]
    messages = row.get("messages") or [{"role": "user", "content": row["prompt"]}]
    if messages[0]["role"] != "system" or len(messages) == 1 or _shows_system(messages, tokenizer):
        return messages
    _warn_once("the model's chat template takes no system message: its text is put before the question")
    system, user, *rest = messages
    return [{**user, "content": f"{system['content']}\n\n{user['content']}"}, *rest]


def _shows_system(messages: list[dict[str, str]], tokenizer: "PreTrainedTokenizerBase") -> bool:
    try:
        return messages[0]["content"].strip() in tokenizer.apply_chat_template(messages, tokenize=False)
    except Exception:  # a template is a program of the model's authors, and may raise any type
        return False


def prompt_text(row: Row, tokenizer: "PreTrainedTokenizerBase") -> str:
    """The text that the policy completes, in its chat template if it has one."""
    prompt = prompt_for(row, tokenizer)
    return prompt if isinstance(prompt, str) else _render(prompt, tokenizer)


def prompt_tokens(row: Row, tokenizer: "PreTrainedTokenizerBase") -> int:
    """The length of a question in tokens, chat template and special tokens counted."""
    prompt = prompt_for(row, tokenizer)
    if isinstance(prompt, str):
        return len(tokenizer(prompt)["input_ids"])
    return len(tokenizer(_render(prompt, tokenizer), add_special_tokens=False)["input_ids"])


def _render(messages: list[dict[str, str]], tokenizer: "PreTrainedTokenizerBase") -> str:
    """Messages as the text that the policy completes, by its chat template; raises if that fails or is empty."""
    try:
        text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    except Exception as error:  # a template is a program of the model's authors, and may raise any type
        raise _faulty_template(f"cannot render a prompt ({reason(error)})") from None
    if not text.strip():
        raise _faulty_template("renders a prompt as an empty text")
    return text


def _faulty_template(problem: str) -> CalibrantError:
    return CalibrantError(
        f"the model's chat template {problem}; correct it in chat_template.jinja or tokenizer_config.json, or delete "
        "it to give the model plain text"
    )


def truncate(row: Row, tokenizer: "PreTrainedTokenizerBase", max_prompt_tokens: int) -> tuple[Row, bool]:
    """A copy of a question whose prompt has at most `max_prompt_tokens`, and whether its context was truncated.

    Instruction and question stay whole; the end of the context is cut off, between words. Raises `TooLong` if that is
    not enough.
    """
    excess = prompt_tokens(row, tokenizer) - max_prompt_tokens
    if excess <= 0:
        return row, False
    context = row.get("context", "")
    starts = _token_starts(context, tokenizer)
    kept = len(starts)
    while excess > 0 and kept > 0:
        kept = max(0, kept - excess)
        shorter = _with_context(row, _whole_words(context, starts[kept] if kept else 0))
        excess = prompt_tokens(shorter, tokenizer) - max_prompt_tokens
    if excess > 0:
        raise TooLong(
            f"the question '{row['prompt_id']}' takes {max_prompt_tokens + excess} tokens without its context, more "
            f"than max_prompt_tokens = {max_prompt_tokens}; raise it"
        )
    return shorter, True


def truncate_all(
    rows: Iterable[Row], tokenizer: "PreTrainedTokenizerBase", max_prompt_tokens: int
) -> tuple[list[Row], int, list[str]]:
    """Questions that fit, how many of them were truncated, and the ids of those too long without their context."""
    fitted, cut, left_out = [], 0, []
    for row in tqdm(rows, desc="checking prompt lengths", delay=2, leave=False):
        try:
            shorter, was_cut = truncate(row, tokenizer, max_prompt_tokens)
        except TooLong:
            left_out.append(row["prompt_id"])
        else:
            fitted.append(shorter)
            cut += was_cut
    return fitted, cut, left_out


def truncate_for_policy(
    rows: Iterable[Row], tokenizer: "PreTrainedTokenizerBase", max_prompt_length: int, max_completion_length: int
) -> list[Row]:
    """Questions, truncated so that prompt and completion fit into the context length of the policy.

    Warns how many were truncated or left out, and once if a policy without a chat template gets plain text in place of
    messages.
    """
    limit = min(max_prompt_length, tokenizer.model_max_length - max_completion_length)
    if limit < 1:
        raise CalibrantError(
            f"max_completion_length is {max_completion_length}, but the model takes {tokenizer.model_max_length} "
            "tokens in all; lower --max-completion-length"
        )
    rows = list(rows)
    if not tokenizer.chat_template and any("messages" in row for row in rows):
        _warn_once("the model has no chat template: its prompts are plain text")
    _check_template(rows[:2], tokenizer)
    fitted, cut, left_out = truncate_all(rows, tokenizer, limit)
    if cut:
        log.warning("%d of %d prompts were truncated to %d tokens (--max-prompt-length)", cut, len(rows), limit)
    if left_out:
        text = f"{len(left_out)} of {len(rows)} questions take more than {limit} tokens without a context to truncate"
        named = shortened(left_out, 3)
        if not fitted:
            raise CalibrantError(f"{text} ({named}); raise --max-prompt-length")
        log.warning("%s and are left out (%s); --max-prompt-length allows more", text, named)
    return fitted


def _check_template(rows: list[Row], tokenizer: "PreTrainedTokenizerBase") -> None:
    """Raises if a chat template renders two different questions as the same text."""
    if not tokenizer.chat_template or len({row["prompt"] for row in rows}) < 2:
        return
    if len({_render(prompt_for(row, tokenizer), tokenizer) for row in rows}) < 2:
        raise _faulty_template("leaves the question out")


@cache
def _warn_once(message: str) -> None:
    log.warning(message)


def _token_starts(text: str, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """The first character of each token; of each word for a slow tokenizer."""
    if not text:
        return []
    if not tokenizer.is_fast:
        return [i for i, letter in enumerate(text) if not letter.isspace() and (i == 0 or text[i - 1].isspace())]
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return [start for start, _ in encoded["offset_mapping"]]


def _whole_words(text: str, end: int) -> str:
    """The first `end` characters of a text, without a word that this divides.

    >>> _whole_words("born in 1987, he", 10), _whole_words("born in 1987, he", 7)
    ('born in', 'born in')
    """
    divides = 0 < end < len(text) and not text[end].isspace() and not text[end - 1].isspace()
    head = text[:end].rstrip()
    return head[: len(head.rsplit(maxsplit=1)[0])].rstrip() if divides and len(head.split()) > 1 else head


def _with_context(row: Row, context: str) -> Row:
    cut: Callable[[str], str] = lambda text: text.replace(row["context"], context, 1)  # noqa: E731
    shorter: Row = {**row, "prompt": cut(row["prompt"]), "context": context}
    if "messages" in row:
        shorter["messages"] = [{**message, "content": cut(message["content"])} for message in row["messages"]]
    return shorter
