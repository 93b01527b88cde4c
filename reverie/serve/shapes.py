"""The objects that OpenAI's clients expect, as dicts that are ready for JSON."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from typing import Any

from reverie.serve.writer import Reason, Shown
from reverie.talk.chat import UNFINISHED

Decode = Callable[[Sequence[int]], str]


def event(data: object, name: str | None = None) -> str:
    """One event of a stream."""
    head = "" if name is None else f"event: {name}\n"
    return f"{head}data: {json.dumps(data, ensure_ascii=False) if not isinstance(data, str) else data}\n\n"


DONE = event("[DONE]")


def usage(prompt: int, cached: int, written: int) -> dict[str, Any]:
    """Tokens of a completion: of the prompt, those of it that were not read anew, and those of the answers."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": written,
        "total_tokens": prompt + written,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def response_usage(prompt: int, cached: int, written: int) -> dict[str, Any]:
    """The same of a response."""
    return {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": cached},
        "output_tokens": written,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": prompt + written,
    }


def chat_logprobs(tokens: Sequence[Shown], decode: Decode) -> dict[str, Any]:
    """Log probabilities as chat completions have them."""

    def one(token: int, logprob: float) -> dict[str, Any]:
        text = decode([token])
        whole = UNFINISHED not in text  # else it is a part of a letter, of which nobody knows the bytes
        return {"token": text, "logprob": logprob, "bytes": list(text.encode()) if whole else None}

    content = [
        {**one(shown.token, shown.logprob), "top_logprobs": [one(*likely) for likely in shown.likeliest]}
        for shown in tokens
    ]
    return {"content": content, "refusal": None}


def text_logprobs(tokens: Sequence[Shown], decode: Decode) -> dict[str, Any]:
    """Log probabilities as completions have them."""
    likeliest = [{decode([token]): logprob for token, logprob in shown.likeliest} for shown in tokens]
    return {
        "tokens": [decode([shown.token]) for shown in tokens],
        "token_logprobs": [shown.logprob for shown in tokens],
        "top_logprobs": likeliest,
        "text_offset": [shown.offset for shown in tokens],
    }


def model(id: str, created: int) -> dict[str, Any]:
    return {"id": id, "object": "model", "created": created, "owned_by": "reverie"}


def response(
    id: str,
    *,
    name: str,
    status: str,
    text: str | None,
    item: str,
    request: dict[str, Any],
    usage: dict[str, Any] | None = None,
    error: dict[str, Any] | None = None,
    created: int | None = None,
) -> dict[str, Any]:
    """A response; `request` has what is told again of it."""
    cut = {"reason": "max_output_tokens"} if status == "incomplete" else None
    return {
        "id": id,
        "object": "response",
        "created_at": int(time.time()) if created is None else created,
        "status": status,
        "model": name,
        "output": [] if text is None else [output_message(item, text, status)],
        "usage": usage,
        "error": error,
        "incomplete_details": cut,
        "parallel_tool_calls": False,
        "tool_choice": "none",
        "tools": [],
        "text": {"format": {"type": "text"}},
        "truncation": "disabled",
        **request,
    }


def output_message(item: str, text: str, status: str) -> dict[str, Any]:
    """The one item of a response's output."""
    return {"type": "message", "id": item, "status": status, "role": "assistant", "content": [output_text(text)]}


def output_text(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": []}


def status_of(reason: Reason) -> str:
    """Of a response, by why it ended."""
    return "incomplete" if reason == "length" else "completed"
