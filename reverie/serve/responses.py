"""`Responses` and `Conversations`: what one API key has of them on disk.

responses/HEX.json           the object that a client got
responses/HEX.safetensors    what was heard until then; written last, so with it the id is acknowledged
conversations/HEX.json       the responses of a conversation, in order
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from reverie.serve.files import MEMORY, Held, bytes_in, hex_of, make_folder, new_id, remove, write_private
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
        live = self._sessions.get(self._path(id, param), load=load)
        if live is None:
            raise not_found(f"response {id}", param=param)
        return live

    def record(self, id: str) -> dict[str, Any]:
        """The object that the client got. Raises Refusal if it is not there."""
        path = self._path(id)
        if path.exists():
            with contextlib.suppress(OSError, ValueError):
                return json.loads(path.with_suffix(".json").read_bytes())
        raise not_found(f"response {id}", param="response_id")

    def __contains__(self, id: str) -> bool:
        return self._path(id).exists()

    def delete(self, id: str) -> None:
        """Raises Refusal if it is not there."""
        path = self._path(id)
        found = self._sessions.delete(path)
        self._held.forget()
        if not remove(path.with_suffix(".json")) and not found:
            raise not_found(f"response {id}", param="response_id")

    def _path(self, id: str, param: str = "response_id") -> Path:
        digits = hex_of(id, RESPONSE)
        if digits is None:
            raise not_found("response of that id", param=param)
        return self._folder / f"{digits}{MEMORY}"


class Conversations:
    """Named pointers to the newest response of a chain."""

    def __init__(self, folder: Path, responses: Responses) -> None:
        self._folder, self._responses = folder / "conversations", responses

    def new(self, created: int, metadata: dict[str, str]) -> dict[str, Any]:
        """Make one; the object that the client gets."""
        id = CONVERSATION + new_id()
        write_private(self._path(id), json.dumps({"created": created, "metadata": metadata, "responses": []}).encode())
        return self.info(id)

    def info(self, id: str) -> dict[str, Any]:
        """Raises Refusal if it is not there."""
        content = self._content(id)
        newest = self._newest(content)
        own = {"id": id, "object": "conversation", "created_at": content["created"], "metadata": content["metadata"]}
        return {**own, "newest_response_id": newest}

    def newest(self, id: str) -> str | None:
        """The id of its newest response that was not deleted; None if there is none."""
        return self._newest(self._content(id))

    @contextlib.contextmanager
    def alone(self, id: str) -> Iterator[None]:
        """Hold a conversation, which one request at a time can add to. Raises Refusal if another does."""
        self._content(id)
        lock = FileLock(self._path(id).with_suffix(".lock"), mode=0o600, thread_local=False)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            sentence = "another response of this conversation is being written"
            raise Refusal(409, sentence, param="conversation", code="conversation_locked") from None
        try:
            self._content(id)  # it may have been deleted meanwhile
            yield
        finally:
            if not self._path(id).exists():
                remove(Path(lock.lock_file))
            lock.release()

    def add(self, id: str, response: str) -> None:
        """Add a response; to be called in `alone`."""
        content = self._content(id)
        content["responses"].append(response)
        write_private(self._path(id), json.dumps(content).encode())

    def delete(self, id: str) -> None:
        """Delete it with all its responses. Raises Refusal if it is not there, or is in use."""
        with self.alone(id):
            for response in self._content(id)["responses"]:
                with contextlib.suppress(Refusal):  # deleted before
                    self._responses.delete(response)
            remove(self._path(id))

    def _newest(self, content: dict[str, Any]) -> str | None:
        return next((id for id in reversed(content["responses"]) if id in self._responses), None)

    def _content(self, id: str) -> dict[str, Any]:
        try:
            return json.loads(self._path(id).read_bytes())
        except (OSError, ValueError):
            raise not_found(f"conversation {id}", param="conversation") from None

    def _path(self, id: str) -> Path:
        digits = hex_of(id, CONVERSATION)
        if digits is None:
            raise not_found("conversation of that id", param="conversation")
        make_folder(self._folder)
        return self._folder / f"{digits}.json"
