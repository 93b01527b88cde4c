"""What all routes share: whose a request is, what an error is answered by, and work that ends when its client goes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable
from typing import Any, TypeVar

from fastapi import Request
from fastapi.exceptions import RequestValidationError

from reverie.errors import UserError
from reverie.serve import shapes
from reverie.serve.refusal import Refusal
from reverie.serve.service import Account, Service

Value = TypeVar("Value")
_log = logging.getLogger("reverie.serve")


def service_of(request: Request) -> Service:
    return request.app.state.service


def account_of(request: Request) -> Account:
    """Of the key that came with the request; the guard has looked at it."""
    return service_of(request).account(request.state.owner)


def check_choices(service: Service, n: int) -> None:
    if n > service.limits.choices:
        raise Refusal(400, f"n is at most {service.limits.choices}", param="n")


async def answered(request: Request, work: Awaitable[Value]) -> Value:
    """What the work gives; it is cancelled if the client goes before."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise Refusal(499, "the client has gone", code="client_gone")
    finally:
        for left in (task, gone):
            left.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def unbroken(work: Awaitable[Value]) -> Value:
    """What the work gives, which goes on to its end even if the request is cancelled meanwhile."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({task})
        raise


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def refusal_of(error: Exception) -> Refusal:
    """What a client is told of an error."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, UserError):
        return Refusal(400, str(error))
    if isinstance(error, RequestValidationError):
        return _invalid(error)
    if isinstance(error, OSError):
        _log.error("the system refuses: %s", error.strerror)
        return Refusal(507, f"the server cannot store it: {error.strerror}", code="storage")
    return Refusal(500, "the server has failed", code="internal")


def error_event(error: Exception) -> str:
    """The last event of a stream that failed."""
    if not isinstance(error, Refusal | UserError):
        _log.exception("a stream failed")
    return shapes.event(refusal_of(error).body)


def _invalid(error: RequestValidationError) -> Refusal:
    """The first fault, in one sentence, without what the client sent."""
    fault: dict[str, Any] = min(error.errors(), key=lambda fault: fault["type"] != "extra_forbidden")
    place = _place(fault["loc"])
    kind, reason = fault["type"], str(fault["msg"])
    if kind == "json_invalid":
        return Refusal(400, "the body is no JSON", code="invalid_json")
    if kind in ("model_attributes_type", "model_type", "dict_type") and not place:
        return Refusal(400, "the body must be a JSON object, sent as application/json", code="invalid_json")
    if kind == "extra_forbidden":
        return Refusal(400, f"{place} is not supported", param=place, code="unsupported_parameter")
    if kind == "literal_error" and place.endswith("type"):
        return Refusal(400, f"{place}: only text is supported", param=place, code="unsupported_value")
    if kind == "missing":
        return Refusal(400, f"{place or 'the body'} is missing", param=place or None, code="missing_parameter")
    if kind == "value_error":
        return Refusal(400, str(fault["ctx"]["error"]), param=place or None, code="invalid_value")
    sentence = f"{place}: {reason[:1].lower()}{reason[1:]}" if place else reason
    return Refusal(400, sentence, param=place or None, code="invalid_value")


def _place(loc: tuple[int | str, ...]) -> str:
    """Such as "messages[0].content"; without the names of the alternatives that were tried."""
    place = ""
    for part in loc[1:] if loc and loc[0] in ("body", "path", "query") else loc:
        if isinstance(part, int):
            place += f"[{part}]"
        elif not ("[" in part or part in ("str", "TextPart", "MessageIn", "ConversationIn")):
            place += f".{part}" if place else part
    return place
