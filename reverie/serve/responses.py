"""`Responses` and `Conversations`: what one API key has of them on disk.

responses/HEX.json           the object that a client got
responses/HEX.safetensors    what was heard until then; written last, so with it the id is acknowledged
responses/HEX.idle.safetensors    the same after sleep over its unfinished window, from where it is gone on with
conversations/HEX.json       the responses of a conversation, in order
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field

from reverie.serve.files import (
    ASLEEP,
    MEMORY,
    Held,
    bytes_in,
    hex_of,
    new_id,
    read_stored,
    remove,
    stat_stored,
    write_private,
)
from reverie.serve.limits import Limits
from reverie.serve.queues import Queues
from reverie.serve.refusal import Refusal, not_found
from reverie.serve.sessions import Live, Sessions
from reverie.talk.heard import Heard

RESPONSE, CONVERSATION = "resp_", "conv_"


class Responses:
    """Safe to use from several threads and processes.

    Args:
        folder: of this key.
        most_bytes: of the files of sessions.
    """

    def __init__(self, folder: Path, sessions: Sessions, most_bytes: int) -> None:
        self._folder, self._sessions, self._most_bytes = folder / "responses", sessions, most_bytes
        self._held = Held(lambda: bytes_in(self._folder))

    def check_room(self) -> None:
        """Raises Refusal if no more fits; a client's own sessions are never removed for others."""
        if self._held.bytes >= self._most_bytes:
            raise Refusal(429, "the responses take all the room there is: delete some", code="storage_full")

    def put(self, id: str, heard: Heard, record: dict[str, Any]) -> Live:
        """Acknowledge a response."""
        path = self._path(id)
        write_private(path.with_suffix(".json"), json.dumps(record).encode())
        try:
            live = self._sessions.put(path, heard)
        except Refusal:
            remove(path.with_suffix(".json"))
            raise
        self._held.add(live.file_bytes)
        return live

    def get(self, id: str, param: str = "response_id", *, load: bool = True) -> Live:
        """What was heard until a response; `load` as for `Sessions.get`. Raises Refusal if it is not there."""
        path = self._path(id, param)
        asleep = self._sessions.get(_asleep(path), load=load) if path.exists() else None
        live = asleep or self._sessions.get(path, load=load)
        if live is None:
            raise not_found(f"response {id}", param=param)
        return live

    def put_asleep(self, id: str, heard: Heard) -> None:
        """Let a response be gone on with from here, which is after sleep."""
        path = self._path(id)
        live = self._sessions.put(_asleep(path), heard)
        self._held.add(live.file_bytes)
        if not path.exists():  # deleted while it was written
            self._sessions.delete(_asleep(path))

    def record(self, id: str) -> dict[str, Any]:
        """The object that the client got. Raises Refusal if it is not there."""
        path = self._path(id)
        with contextlib.suppress(OSError, ValueError, RecursionError):
            stat_stored(path)
            record = json.loads(read_stored(path.with_suffix(".json")))
            json.dumps(record, allow_nan=False)  # or else nobody could be sent it
            if isinstance(record, dict) and record.get("id") == id:
                return record
        raise not_found(f"response {id}", param="response_id")

    def __contains__(self, id: str) -> bool:
        return self._path(id).exists()

    def delete(self, id: str) -> None:
        """Raises Refusal if it is not there."""
        path = self._path(id)
        found = self._sessions.delete(path)
        self._sessions.delete(_asleep(path))
        self._held.forget()
        if not remove(path.with_suffix(".json")) and not found:
            raise not_found(f"response {id}", param="response_id")

    def _path(self, id: str, param: str = "response_id") -> Path:
        digits = hex_of(id, RESPONSE)
        if digits is None:
            raise not_found("response of that id", param=param)
        return self._folder / f"{digits}{MEMORY}"


def _asleep(path: Path) -> Path:
    return path.with_suffix(ASLEEP)


class Conversation(BaseModel):
    """What is kept of one."""

    created: int
    metadata: dict[str, str]
    responses: list[Annotated[str, Field(pattern=r"^resp_[0-9a-f]{32}$")]]


class Conversations:
    """Named pointers to the newest response of a chain."""

    def __init__(self, folder: Path, responses: Responses, limits: Limits) -> None:
        self._folder, self._responses, self._queues = folder / "conversations", responses, Queues(limits)

    def new(self, created: int, metadata: dict[str, str]) -> dict[str, Any]:
        """Make one; the object that the client gets."""
        id = CONVERSATION + new_id()
        self._write(id, Conversation(created=created, metadata=metadata, responses=[]))
        return self.info(id)

    def info(self, id: str) -> dict[str, Any]:
        """Raises Refusal if it is not there."""
        content = self._content(id)
        own = {"id": id, "object": "conversation", "created_at": content.created, "metadata": content.metadata}
        return {**own, "newest_response_id": self._newest(content)}

    def newest(self, id: str) -> str | None:
        """The id of its newest response that was not deleted; None if there is none."""
        return self._newest(self._content(id))

    @contextlib.asynccontextmanager
    async def alone(self, id: str) -> AsyncIterator[None]:
        """Hold a conversation, which one request at a time can add to; the others wait for their turn.

        Raises Refusal if there is none, also where it is deleted meanwhile, and as `Queues.turn` does.
        """
        self._content(id)
        path = self._path(id)
        async with self._queues.turn(lock := path.with_suffix(".lock"), "conversation"):
            try:
                self._content(id)
                yield
            finally:
                if not path.exists():
                    remove(lock)

    def add(self, id: str, response: str) -> None:
        """Add a response; to be called in `alone`."""
        content = self._content(id)
        content.responses.append(response)
        self._write(id, content)

    def delete(self, id: str) -> None:
        """Delete it with all its responses; to be called in `alone`."""
        for response in self._content(id).responses:
            with contextlib.suppress(Refusal):  # deleted before
                self._responses.delete(response)
        remove(self._path(id))

    def _newest(self, content: Conversation) -> str | None:
        return next((id for id in reversed(content.responses) if id in self._responses), None)

    def _write(self, id: str, content: Conversation) -> None:
        write_private(self._path(id), content.model_dump_json().encode())

    def _content(self, id: str) -> Conversation:
        try:
            return Conversation.model_validate_json(read_stored(self._path(id)))
        except (OSError, ValueError):
            raise not_found(f"conversation {id}", param="conversation") from None

    def _path(self, id: str) -> Path:
        digits = hex_of(id, CONVERSATION)
        if digits is None:
            raise not_found("conversation of that id", param="conversation")
        return self._folder / f"{digits}.json"
