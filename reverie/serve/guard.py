"""`Guard`: what a request has to pass before any route sees it, and what is written down of it."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Collection
from typing import Any
from urllib.parse import SplitResult, urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from reverie.serve.page import PAGE
from reverie.serve.refusal import Refusal
from reverie.serve.service import Service

LOOPBACK = ("localhost", "127.0.0.1", "::1")
OPEN = ("/healthz", *PAGE)  # for who has no key
_log = logging.getLogger("reverie.serve.requests")


class Guard:
    """ASGI middleware.

    Bodies are taken in whole, within limits of size and time, so that slow clients hold nothing but themselves up.

    Args:
        hosts: names by which the server may be called; any if empty. On loopback they keep out pages of other sites
            whose own name was made to lead here.
    """

    def __init__(self, app: ASGIApp, service: Service, hosts: Collection[str] = ()) -> None:
        self._app, self._service, self._hosts = app, service, hosts
        self._held = 0  # bytes of bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        begun, status = time.monotonic(), 499  # nothing was sent: the client had gone
        body = bytearray()

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            try:
                scope.setdefault("state", {})["owner"] = self._owner(scope)
                replayed = _Replayed(await self._take(body, scope, receive), receive)
            except Refusal as refusal:
                await refuse(refusal, noted)
            else:
                await self._app(scope, replayed, noted)
        finally:
            self._held -= len(body)
            route = getattr(scope.get("route"), "path", "other")
            self._service.metrics.request(route, status)
            line = {"method": scope["method"][:10], "route": route, "status": status}
            _log.info(json.dumps({**line, "seconds": round(time.monotonic() - begun, 3)}))

    def _owner(self, scope: Scope) -> str:
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        host, origin = headers.get("host", ""), headers.get("origin")
        called, asking = _split(f"//{host}"), None if origin is None else _split(origin)
        if self._hosts and (called is None or called.hostname not in self._hosts):
            raise Refusal(403, "the server is not known by that name", code="wrong_host")
        if origin is not None and (asking is None or asking.netloc != host):
            raise Refusal(403, "pages of other sites may not ask", code="wrong_origin")
        scheme, _, key = headers.get("authorization", "").partition(" ")
        owner = self._service.owner(key.strip() if scheme.lower() == "bearer" else None)
        if owner is None and scope["path"] not in OPEN:
            raise Refusal(401, "the API key is missing or wrong", code="invalid_api_key")
        return owner or ""

    async def _take(self, body: bytearray, scope: Scope, receive: Receive) -> bytearray:
        most = self._service.limits.body_bytes
        too_long = Refusal(413, f"the body has more than {most:,} bytes", code="too_long")
        announced = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if announced.isdigit() and int(announced) > most:
            raise too_long
        try:
            async with asyncio.timeout(self._service.limits.body_s):
                while True:
                    message = await receive()
                    part = message.get("body", b"")
                    body += part
                    self._held += len(part)
                    if len(body) > most:
                        raise too_long
                    if self._held > self._service.limits.bodies_bytes:
                        raise Refusal(429, "too much is being sent: try again", code="queue_full", retry_after_s=1)
                    if not message.get("more_body", False):
                        return body
        except TimeoutError:
            raise Refusal(408, "the body came too slowly", code="timeout") from None


class _Replayed:
    """The body once more, then what else comes."""

    def __init__(self, body: bytearray, receive: Receive) -> None:
        self._body: bytearray | None = body
        self._receive = receive

    async def __call__(self) -> Message:
        if self._body is None:
            return await self._receive()
        body, self._body = bytes(self._body), None
        return {"type": "http.request", "body": body, "more_body": False}


async def refuse(refusal: Refusal, send: Send) -> None:
    """Send an error."""
    body = json.dumps(refusal.body).encode()
    headers: list[Any] = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(name.encode(), value.encode()) for name, value in headers_of(refusal).items()]
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def headers_of(refusal: Refusal) -> dict[str, str]:
    """Headers that go with an error."""
    if refusal.status == 401:
        return {"www-authenticate": "Bearer"}
    return {} if refusal.retry_after_s is None else {"retry-after": str(refusal.retry_after_s)}


def _split(url: str) -> SplitResult | None:
    """The parts of a URL; None if it is none."""
    try:
        return urlsplit(url)
    except ValueError:
        return None
