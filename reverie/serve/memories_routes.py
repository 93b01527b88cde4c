"""/v1/memories: what was read or uploaded under a name, which MODEL@NAME goes on from; and the cache of chats."""

from __future__ import annotations

import asyncio
import contextlib
import math
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from reverie.errors import UserError
from reverie.serve.asked import account_of, answered, service_of
from reverie.serve.described import gives, gives_bytes, takes_bytes
from reverie.serve.files import checked_name, hex_of
from reverie.serve.follower import Follower
from reverie.serve.job import Ended, Wrote
from reverie.serve.refusal import Refusal
from reverie.serve.responses import RESPONSE
from reverie.serve.schema import MemoryRequest, QuestionRequest
from reverie.serve.service import Account, Service, memory_root
from reverie.serve.sessions import Live
from reverie.serve.turns import Message, Turns
from reverie.serve.writer import Sampling

router = APIRouter()
_FILE = "application/octet-stream"


@router.post("/v1/memories", status_code=201, responses=gives("memory", status=201) | gives("memory", status=202))
async def create_memory(request: Request, body: MemoryRequest) -> Response:
    """Read a text in the background, or branch: keep a memory or a response under another name."""
    service, account, name = service_of(request), account_of(request), checked_name(body.name)
    if body.text is not None:
        text = body.text
        try:
            tokens = await service.text(text)
        except UserError as error:
            raise Refusal(400, str(error), param="text") from None
        await asyncio.to_thread(account.memories.read, name, text, tokens)
        return JSONResponse(_told(service, account.memories.info(name)), 202)
    live = await _source(service, account, body.source or "")
    await asyncio.to_thread(account.memories.put, name, live.heard)
    return JSONResponse(_told(service, account.memories.info(name)), 201)


@router.get("/v1/memories", responses=gives("list"))
async def list_memories(request: Request) -> Response:
    """All memories, those that are being read too."""
    service, account = service_of(request), account_of(request)

    def infos() -> list[dict[str, Any]]:
        found = list[dict[str, Any]]()
        for name in account.memories.names():
            try:
                found.append(_told(service, account.memories.info(name)))
            except Refusal as refusal:
                if refusal.status != 404:  # else it was deleted meanwhile
                    found.append({"object": "memory", "name": name, "status": "failed", "problem": refusal.message})
        return found

    return JSONResponse({"object": "list", "data": await asyncio.to_thread(infos)})


@router.get("/v1/memories/{name}", responses=gives("memory"))
async def get_memory(request: Request, name: str) -> Response:
    """What a memory holds, or how far it is."""
    return JSONResponse(_told(service_of(request), account_of(request).memories.info(name)))


@router.get("/v1/memories/{name}/session", responses=gives("session"))
async def get_memory_session(request: Request, name: str) -> Response:
    """What its sleep did, also while it is being read."""
    service, memories = service_of(request), account_of(request).memories
    return JSONResponse(await service.at_rest(lambda: Follower(service).told(memories.heard(name))))


@router.delete("/v1/memories/{name}", responses=gives("memory"))
async def delete_memory(request: Request, name: str) -> Response:
    """Delete a memory, or end its reading, with what the cache of chats has of it."""
    service, account = service_of(request), account_of(request)
    digest = await service.at_rest(lambda: account.memories.delete(name))
    if digest is not None:
        await asyncio.to_thread(account.prefixes.forget, memory_root(digest))
    return JSONResponse({"name": name, "object": "memory", "deleted": True})


@router.get("/v1/memories/{name}/file", response_class=Response, responses=gives_bytes(_FILE))
async def download_memory(request: Request, name: str) -> Response:
    """Its file, which `reverie ask` and `reverie chat` open."""
    data = await asyncio.to_thread(account_of(request).memories.data, name)
    headers = {"content-disposition": f'attachment; filename="{name}.safetensors"'}
    return Response(data, media_type=_FILE, headers=headers)


@router.put(
    "/v1/memories/{name}/file", status_code=201, responses=gives("memory", status=201), openapi_extra=takes_bytes(_FILE)
)
async def upload_memory(request: Request, name: str) -> Response:
    """Take a file of a memory or a chat, which is checked first."""
    service, account, data = service_of(request), account_of(request), await request.body()
    checked_name(name)
    await service.at_rest(lambda: account.memories.upload(name, data))
    return JSONResponse(_told(service, account.memories.info(name)), 201)


@router.post("/v1/memories/{name}/ask", responses=gives("answer"))
async def ask_memory(request: Request, name: str, body: QuestionRequest) -> Response:
    """The likeliest answer to a question, from the memory, which stays as it is; and from an empty one."""
    service, account = service_of(request), account_of(request)
    live = await service.fetched(partial(account.memories.get, name))
    empty = (await service.base(account, service.name)).live
    asked = [live, empty] if body.against_empty else [live]
    told = list[dict[str, Any]]()
    for known in asked:
        turns = await service.turns([Message("user", body.question)], known.heard.turns, "question")
        if not turns.asks:
            raise Refusal(400, "this model takes it for a text and no question", param="question")
        told.append(await answered(request, _answer(service, known, turns, body.max_tokens)))
    more = {"empty": told[1]} if body.against_empty else {}
    return JSONResponse({"object": "answer", "memory": name, **told[0], **more})


@router.delete("/v1/cache", responses=gives("cache"))
async def delete_cache(request: Request) -> Response:
    """Forget all chats that came by /v1/chat/completions and /v1/completions."""
    await asyncio.to_thread(account_of(request).prefixes.forget)
    return JSONResponse({"object": "cache", "deleted": True})


async def _answer(service: Service, live: Live, turns: Turns, max_tokens: int | None) -> dict[str, Any]:
    logprobs, sampling = list[float](), Sampling(max_tokens, 0.0, logprobs=0)
    async with contextlib.aclosing(service.events(live, turns.ids, turns.turns, sampling)) as events:
        async for event in events:
            if isinstance(event, Wrote):
                logprobs += [shown.logprob for shown in event.piece.tokens]
            else:
                return _summary(event, logprobs)
    raise AssertionError("an answer has an end")


def _summary(ended: Ended, logprobs: list[float]) -> dict[str, Any]:
    return {"text": ended.text, "probability": math.exp(sum(logprobs)), "finish_reason": ended.reason}


async def _source(service: Service, account: Account, source: str) -> Live:
    if hex_of(source, RESPONSE) is not None and source in account.responses:
        return await service.fetched(partial(account.responses.get, source, "source"))
    return await service.fetched(partial(account.memories.get, source))


def _told(service: Service, info: dict[str, Any]) -> dict[str, Any]:
    return {"id": f"{service.name}@{info['name']}", **info}
