"""Prompts and completions as text: conversations, pictures, tool calls."""

import json
from collections.abc import Mapping
from typing import Any


def as_text(prompt: Any) -> str:
    """A prompt or completion as one string: a text, the content of a single answer, or messages with their roles.

    >>> as_text([{"role": "assistant", "content": "4"}])
    '4'
    >>> as_text([{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}])
    'user: <image>What?'
    """
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1 and prompt[0]["role"] == "assistant":
        return _message(prompt[0])
    return "\n".join(f"{message['role']}: {_message(message)}" for message in prompt)


def _message(message: Mapping[str, Any]) -> str:
    """The content of a message, then its tool calls as `name({"argument": value})`."""
    calls = [_call(call) for call in message.get("tool_calls") or []]
    return "\n".join(part for part in (_content(message.get("content")), *calls) if part)


def _content(content: object) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(map(_part, content)) if isinstance(content, (list, tuple)) else _json(content)


def _part(part: object) -> str:
    """A text as it is; a picture, a sound or a film as `<image>`, `<audio>` or `<video>`."""
    if not isinstance(part, Mapping):
        return part if isinstance(part, str) else f"<{type(part).__name__}>"
    kind = str(part.get("type", "text"))
    if kind == "text":
        return str(part.get("text") or "")
    return f"<{next((known for known in ('image', 'audio', 'video') if known in kind), kind)}>"


def _call(call: Mapping[str, Any]) -> str:
    function = call.get("function", call)
    arguments = function.get("arguments", {})
    return f"{function.get('name', '')}({arguments if isinstance(arguments, str) else _json(arguments)})"


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, default=lambda x: f"<{type(x).__name__}>")
