"""POST /v1/chat/completions and /v1/completions: the whole history comes every time, and only what is new is read."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from reverie.serve import shapes
from reverie.serve.asked import account_of, answered, check_choices, error_event, service_of
from reverie.serve.described import gives
from reverie.serve.files import new_id
from reverie.serve.job import Ended, Wrote
from reverie.serve.refusal import Refusal
from reverie.serve.schema import ChatRequest, CompletionRequest
from reverie.serve.service import Account, Base, Service, seed_or_any
from reverie.serve.sessions import Live
from reverie.serve.writer import Sampling, Shown

router = APIRouter()


@dataclass
class Completion:
    """A request for answers to tokens that come after what a model's name stands for."""

    service: Service
    account: Account
    model: str
    base: Base
    ids: list[int]
    turns: int
    sampling: Sampling
    n: int
    store: bool
    id: str
    live: Live = field(init=False)
    cached: int = 0  # tokens that were not read anew
    written: int = 0
    created: int = field(default_factory=lambda: int(time.time()))

    async def find(self) -> None:
        """Find where to go on from."""
        self.live, self.cached = await self.service.find(self.account, self.base, self.ids)

    async def events(self) -> AsyncGenerator[Wrote | Ended]:
        """What is written; at the end of every answer the session is kept, so that the next request finds it."""
        new = self.ids[self.cached :]
        events = self.service.events(self.live, new, self.turns, self.sampling, self.n)
        async with contextlib.aclosing(events):
            async for event in events:
                if isinstance(event, Ended):
                    self.written += event.tokens
                    if self.store:
                        await self._keep(event)
                yield event
                if self.sampling.max_tokens == 0 and isinstance(event, Ended):  # nothing was asked
                    for index in range(1, self.n):
                        yield replace(event, index=index)

    async def _keep(self, ended: Ended) -> None:
        """Under the tokens that were said, and under those that a client who sends the text again will be taken for."""
        keys = {(*self.ids, *ended.said)}
        with contextlib.suppress(ValueError):  # a UserError: an answer that is no text that the model knows
            keys.add((*self.ids, *await self.service.encode_answer(ended.text)))
        for key in keys:
            await self.service.keep(self.account, self.base, key, ended.heard)

    def usage(self) -> dict[str, Any]:
        return shapes.usage(len(self.ids), self.cached, self.written)


@router.post("/v1/chat/completions", responses=gives("chat.completion", stream=True))
async def chat_completions(request: Request, body: ChatRequest) -> Response:
    """Answer a chat."""
    service, account = service_of(request), account_of(request)
    check_choices(service, body.n)
    base = await service.base(account, body.model)
    heard = base.live.heard
    turns = await service.turns([message.message() for message in body.messages], heard.turns, "messages")
    most = body.max_completion_tokens if body.max_tokens is None else body.max_tokens
    sampling = Sampling(
        most if turns.asks else 0,
        body.temperature,
        body.top_p,
        seed_or_any(body.seed),
        tuple(body.stop),
        body.top_logprobs if body.logprobs else None,
    )
    id = f"chatcmpl-{new_id()}"
    asked = Completion(service, account, body.model, base, turns.ids, turns.turns, sampling, body.n, body.store, id)
    return await _respond(request, asked, ChatShape(asked), body.stream, body.stream_options.include_usage)


@router.post("/v1/completions", responses=gives("text_completion", stream=True))
async def completions(request: Request, body: CompletionRequest) -> Response:
    """Go on with a text, or with tokens."""
    service, account = service_of(request), account_of(request)
    check_choices(service, body.n)
    base = await service.base(account, body.model)
    ids = await service.encode(body.prompt) if isinstance(body.prompt, str) else body.prompt
    if not ids:
        raise Refusal(400, "the prompt is empty", param="prompt")
    if max(ids) >= service.engine.vocab_size:
        raise Refusal(400, f"the model knows {service.engine.vocab_size:,} tokens", param="prompt")
    sampling = Sampling(
        body.max_tokens, body.temperature, body.top_p, seed_or_any(body.seed), tuple(body.stop), body.logprobs
    )
    turns, id = base.live.heard.turns + 1, f"cmpl-{new_id()}"
    asked = Completion(service, account, body.model, base, list(ids), turns, sampling, body.n, body.store, id)
    return await _respond(request, asked, TextShape(asked), body.stream, body.stream_options.include_usage)


class ChatShape:
    """The objects of a chat completion."""

    kind, stream_kind = "chat.completion", "chat.completion.chunk"

    def __init__(self, asked: Completion) -> None:
        self._decode, self._logprobs = asked.service.sleeper.decode, asked.sampling.logprobs is not None

    def first(self, index: int) -> dict[str, Any] | None:
        return {"index": index, "delta": {"role": "assistant", "content": ""}, "finish_reason": None, "logprobs": None}

    def piece(self, index: int, text: str, tokens: Sequence[Shown]) -> dict[str, Any]:
        return {"index": index, "delta": {"content": text}, "finish_reason": None, "logprobs": self._shown(tokens)}

    def last(self, ended: Ended) -> dict[str, Any]:
        return {"index": ended.index, "delta": {}, "finish_reason": ended.reason, "logprobs": None}

    def whole(self, ended: Ended, tokens: Sequence[Shown]) -> dict[str, Any]:
        message = {"role": "assistant", "content": ended.text, "refusal": None}
        logprobs = self._shown(tokens)
        return {"index": ended.index, "message": message, "finish_reason": ended.reason, "logprobs": logprobs}

    def _shown(self, tokens: Sequence[Shown]) -> dict[str, Any] | None:
        return shapes.chat_logprobs(tokens, self._decode) if self._logprobs else None


class TextShape:
    """The objects of a completion."""

    kind = stream_kind = "text_completion"

    def __init__(self, asked: Completion) -> None:
        self._decode, self._logprobs = asked.service.sleeper.decode, asked.sampling.logprobs is not None

    def first(self, index: int) -> dict[str, Any] | None:
        return None

    def piece(self, index: int, text: str, tokens: Sequence[Shown]) -> dict[str, Any]:
        logprobs = shapes.text_logprobs(tokens, self._decode) if self._logprobs else None
        return {"index": index, "text": text, "finish_reason": None, "logprobs": logprobs}

    def last(self, ended: Ended) -> dict[str, Any]:
        return {"index": ended.index, "text": "", "finish_reason": ended.reason, "logprobs": None}

    def whole(self, ended: Ended, tokens: Sequence[Shown]) -> dict[str, Any]:
        return {**self.piece(ended.index, ended.text, tokens), "finish_reason": ended.reason}


async def _respond(
    request: Request, asked: Completion, shape: ChatShape | TextShape, stream: bool, with_usage: bool
) -> Response:
    await asked.find()

    def head(kind: str) -> dict[str, Any]:
        return {"id": asked.id, "object": kind, "created": asked.created, "model": asked.model}

    if not stream:
        choices = await answered(request, _whole(asked, shape))
        ordered = sorted(choices, key=lambda choice: choice["index"])
        return JSONResponse({**head(shape.kind), "choices": ordered, "usage": asked.usage()})

    def chunk(*choices: dict[str, Any], **more: Any) -> str:
        usage = {"usage": None} if with_usage else {}
        return shapes.event({**head(shape.stream_kind), "choices": choices, **usage, **more})

    events = asked.events()
    first = await answered(request, anext(events))  # what is refused is no stream
    return StreamingResponse(_streamed(asked, shape, first, events, chunk, with_usage), media_type="text/event-stream")


async def _whole(asked: Completion, shape: ChatShape | TextShape) -> list[dict[str, Any]]:
    tokens, choices = [list[Shown]() for _ in range(asked.n)], list[dict[str, Any]]()
    async for event in asked.events():
        if isinstance(event, Wrote):
            tokens[event.index].extend(event.piece.tokens)
        else:
            choices.append(shape.whole(event, tokens[event.index]))
    return choices


async def _streamed(
    asked: Completion,
    shape: ChatShape | TextShape,
    first: Wrote | Ended,
    events: AsyncGenerator[Wrote | Ended],
    chunk: Callable[..., str],
    with_usage: bool,
) -> AsyncIterator[str]:
    event: Wrote | Ended | None = first
    try:
        for index in range(asked.n):
            if (begun := shape.first(index)) is not None:
                yield chunk(begun)
        while event is not None:
            if isinstance(event, Wrote):
                yield chunk(shape.piece(event.index, event.piece.text, event.piece.tokens))
            else:
                yield chunk(shape.last(event))
            event = await anext(events, None)
        if with_usage:
            yield chunk(usage=asked.usage())
        yield shapes.DONE
    except Exception as error:
        yield error_event(error)
    finally:
        await events.aclose()
