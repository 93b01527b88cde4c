"""/v1/responses and /v1/conversations: an id is a session that never changes; going on from one makes another."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from reverie.serve import shapes
from reverie.serve.asked import account_of, answered, refusal_of, service_of, unbroken
from reverie.serve.described import gives
from reverie.serve.files import new_id
from reverie.serve.follower import Follower
from reverie.serve.job import Ended, Wrote
from reverie.serve.refusal import Refusal
from reverie.serve.responses import RESPONSE
from reverie.serve.schema import ConversationRequest, ResponseRequest
from reverie.serve.service import Account, Service, seed_or_any
from reverie.serve.sessions import Live
from reverie.serve.turns import Turns
from reverie.serve.writer import Sampling
from reverie.talk.heard import Heard

router = APIRouter()


@dataclass
class Asked:
    """A request for a response."""

    service: Service
    account: Account
    body: ResponseRequest
    previous: str | None
    live: Live
    turns: Turns  # what is new
    cached: int  # tokens of all that was said that are not
    id: str = field(default_factory=lambda: RESPONSE + new_id())
    item: str = field(default_factory=lambda: f"msg_{new_id()}")
    created: int = field(default_factory=lambda: int(time.time()))

    def object(self, status: str, text: str | None = None, **more: Any) -> dict[str, Any]:
        """The response as it is now."""
        body, conversation = self.body, self.body.conversation_id
        told = {
            "previous_response_id": self.previous,
            "conversation": None if conversation is None else {"id": conversation},
            "instructions": body.instructions,
            "metadata": body.metadata,
            "temperature": body.temperature,
            "top_p": body.top_p,
            "max_output_tokens": body.max_output_tokens,
            "store": body.store,
        }
        return shapes.response(
            self.id,
            name=body.model,
            status=status,
            text=text,
            item=self.item,
            request=told,
            created=self.created,
            **more,
        )

    def events(self) -> AsyncGenerator[Wrote | Ended]:
        body = self.body
        most = body.max_output_tokens if self.turns.asks else 0
        sampling = Sampling(most, body.temperature, body.top_p, seed_or_any(body.seed))
        return self.service.events(self.live, self.turns.ids, self.turns.turns, sampling, watched=bool(body.include))

    async def finish(self, ended: Ended) -> dict[str, Any]:
        """The response when all is written; with `store` it is acknowledged."""
        usage = shapes.response_usage(self.cached + len(self.turns.ids), self.cached, ended.tokens)
        done = self.object(shapes.status_of(ended.reason), ended.text, usage=usage)
        if self.body.store:
            self.service.engine.settle(await unbroken(asyncio.to_thread(self._acknowledge, ended.heard, done)))
            self.service.idle.rest(self.account.responses, self.id)
        return done

    def _acknowledge(self, heard: Heard, done: dict[str, Any]) -> Live:
        live = self.account.responses.put(self.id, heard, done)
        if self.body.conversation_id is not None:
            try:
                self.account.conversations.add(self.body.conversation_id, self.id)
            except Refusal:  # a full disk
                self.account.responses.delete(self.id)
                raise
        return live


@router.post("/v1/responses", responses=gives("response", stream=True))
async def create_response(request: Request, body: ResponseRequest) -> Response:
    """Answer, going on from an earlier response, a conversation, or from the beginning."""
    account, conversation = account_of(request), body.conversation_id
    if body.store:
        await asyncio.to_thread(account.responses.check_room)
    async with contextlib.AsyncExitStack() as held:
        if conversation is not None:
            if not body.store:
                raise Refusal(400, "a response of a conversation is stored", param="store", code="invalid_value")
            await answered(request, held.enter_async_context(account.conversations.alone(conversation)))
        asked = await _asked(request, body)
        events = asked.events()
        if body.stream:
            first = await answered(request, anext(events))  # what is refused is no stream
            stream = _streamed(asked, first, events, held.pop_all())
            return StreamingResponse(stream, media_type="text/event-stream")
        return JSONResponse(await answered(request, _whole(asked, events)))


async def _asked(request: Request, body: ResponseRequest) -> Asked:
    """Find where to go on from, and what is new."""
    service, account = service_of(request), account_of(request)
    base = await service.base(account, body.model)
    previous, live = body.previous_response_id, base.live
    if body.conversation_id is not None:
        previous = await asyncio.to_thread(account.conversations.newest, body.conversation_id)
    if previous is not None:
        service.idle.stir(previous)
        live = await service.fetched(partial(account.responses.get, previous, "previous_response_id"))
        record = await asyncio.to_thread(account.responses.record, previous)
        body = body.model_copy(update={"model": _model_of(body.model, previous, record)})
    turns = await service.turns(body.messages(), live.heard.turns, "input")
    cached = live.heard.num_tokens
    if previous is None:
        live, known = await service.find(account, base, turns.ids)
        turns, cached = Turns(turns.ids[known:], turns.turns, turns.asks), cached + known
    return Asked(service, account, body, previous, live, turns, cached)


def _model_of(asked: str, previous: str, record: dict[str, Any]) -> str:
    """The model, with its memory, that a response stands on which goes on from an earlier one."""
    known = str(record.get("model", asked))
    if "@" in asked and asked != known:
        raise Refusal(
            400,
            f"{previous} goes on from {known}, so model must be that, or be without a memory",
            param="model",
            code="invalid_value",
        )
    return known


async def _whole(asked: Asked, events: AsyncGenerator[Wrote | Ended]) -> dict[str, Any]:
    async with contextlib.aclosing(events):
        async for event in events:
            if isinstance(event, Ended):
                return await asked.finish(event)
    raise AssertionError("an answer has an end")


async def _streamed(
    asked: Asked, first: Wrote | Ended, events: AsyncGenerator[Wrote | Ended], held: contextlib.AsyncExitStack
) -> AsyncIterator[str]:
    number = 0

    def tell(kind: str, **more: Any) -> str:
        nonlocal number
        number += 1
        return shapes.event({"type": kind, "sequence_number": number - 1, **more}, kind)

    item = {"item_id": asked.item, "output_index": 0, "content_index": 0}
    follower = Follower(asked.service, asked.live.heard)
    async with held, contextlib.aclosing(events):
        try:
            yield tell("response.created", response=asked.object("in_progress"))
            yield tell("response.in_progress", response=asked.object("in_progress"))
            message = {**shapes.output_message(asked.item, "", "in_progress"), "content": []}
            yield tell("response.output_item.added", output_index=0, item=message)
            yield tell("response.content_part.added", **item, part=shapes.output_text(""))
            event: Wrote | Ended | None = first
            while isinstance(event, Wrote):
                if event.stands is not None:
                    yield tell("reverie.session", session=follower.told(event.stands))
                if event.piece.text:
                    yield tell("response.output_text.delta", **item, delta=event.piece.text, logprobs=[])
                event = await anext(events, None)
            assert event is not None
            done = await asked.finish(event)
            yield tell("response.output_text.done", **item, text=event.text, logprobs=[])
            yield tell("response.content_part.done", **item, part=shapes.output_text(event.text))
            yield tell("response.output_item.done", output_index=0, item=done["output"][0])
            yield tell(f"response.{done['status']}", response=done)
        except Exception as error:
            told = refusal_of(error).body["error"]
            failed = asked.object("failed", error={"code": "server_error", "message": told["message"]})
            yield tell("error", **{key: told[key] for key in ("code", "message", "param")})
            yield tell("response.failed", response=failed)


@router.get("/v1/responses/{id}", responses=gives("response"))
async def get_response(request: Request, id: str) -> Response:
    """A response as it was given."""
    return JSONResponse(await asyncio.to_thread(account_of(request).responses.record, id))


@router.get("/v1/responses/{id}/session", responses=gives("session"))
async def get_response_session(request: Request, id: str) -> Response:
    """What was heard until a response, and what sleep did."""
    service, account = service_of(request), account_of(request)
    live = await service.fetched(partial(account.responses.get, id))
    heard, _ = live.settled or (live.heard, None)
    return JSONResponse(Follower(service).told(heard))


@router.delete("/v1/responses/{id}", responses=gives("response"))
async def delete_response(request: Request, id: str) -> Response:
    """Delete a response and what was heard until it; those that went on from it stay."""
    await asyncio.to_thread(account_of(request).responses.delete, id)
    return JSONResponse({"id": id, "object": "response", "deleted": True})


@router.post("/v1/conversations", responses=gives("conversation"))
async def create_conversation(request: Request, body: ConversationRequest) -> Response:
    """A name for the newest of a chain of responses."""
    conversations = account_of(request).conversations
    return JSONResponse(await asyncio.to_thread(conversations.new, int(time.time()), body.metadata))


@router.get("/v1/conversations/{id}", responses=gives("conversation"))
async def get_conversation(request: Request, id: str) -> Response:
    """A conversation, and its newest response."""
    return JSONResponse(await asyncio.to_thread(account_of(request).conversations.info, id))


@router.delete("/v1/conversations/{id}", responses=gives("conversation.deleted"))
async def delete_conversation(request: Request, id: str) -> Response:
    """Delete a conversation with its responses."""
    conversations = account_of(request).conversations
    async with conversations.alone(id):
        await asyncio.to_thread(conversations.delete, id)
    return JSONResponse({"id": id, "object": "conversation.deleted", "deleted": True})
