"""What /openapi.json says of answers, beside what requests hold (`schema`)."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel


class Fault(BaseModel):
    message: str
    type: Literal["invalid_request_error", "rate_limit_error", "server_error"]
    param: str | None
    code: str | None


class Refused(BaseModel):
    """Every error."""

    error: Fault


ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": Refused, "description": "refused: the message says why"},
    "503": {"model": Refused, "description": "the server is about to end"},
    "507": {"model": Refused, "description": "the disk is full, or cannot be written to"},
}


def gives(kind: str, *, status: int = 200, stream: bool = False) -> dict[int | str, dict[str, Any]]:
    """A JSON object that says what it is under "object"; with `stream` also events of them."""
    schema = {"type": "object", "required": ["object"], "properties": {"object": {"const": kind}}}
    content: dict[str, Any] = {"application/json": {"schema": schema}}
    return {status: {"description": kind, "content": content | ({"text/event-stream": {}} if stream else {})}}


def gives_bytes(media_type: str) -> dict[int | str, dict[str, Any]]:
    return {200: {"description": "as it is", "content": {media_type: {}}}}


def takes_bytes(media_type: str) -> dict[str, Any]:
    """The part of a route's description that says that its body is no JSON."""
    schema = {"type": "string", "format": "binary"}
    return {"requestBody": {"required": True, "content": {media_type: {"schema": schema}}}}
