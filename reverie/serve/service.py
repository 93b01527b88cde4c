"""`Service`: a model that is served, and what each API key has."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hmac
import secrets
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from reverie.errors import plain
from reverie.memory.fingerprint import identify
from reverie.memory.memory import Memory
from reverie.serve.engine import Engine
from reverie.serve.files import make_folder, owner_of, remove_unfinished
from reverie.serve.idle import Idle
from reverie.serve.job import Ended, Event, Failed, Job, Wrote
from reverie.serve.limits import Limits
from reverie.serve.memories import Memories
from reverie.serve.metrics import Metrics
from reverie.serve.prefixes import Prefixes, root_of
from reverie.serve.refusal import Refusal, not_found
from reverie.serve.responses import Conversations, Responses
from reverie.serve.sessions import Live, OnDisk, Sessions
from reverie.serve.turns import Message, Turns, turns_of
from reverie.serve.writer import Sampling
from reverie.talk.heard import Heard
from reverie.talk.sleeper import Sleeper

Value = TypeVar("Value")


@dataclass(frozen=True)
class Base:
    """What a name of a model stands for: what was heard before a conversation, and the root of its prefixes."""

    live: Live
    root: str
    memory: str | None = None  # its name, if it is one


class Account:
    """What one API key has."""

    def __init__(self, folder: Path, engine: Engine, sessions: Sessions) -> None:
        limits = engine.limits
        self.prefixes = Prefixes(folder / "cache", sessions, limits.cached_bytes)
        self.responses = Responses(folder, sessions, limits.stored_bytes)
        self.conversations = Conversations(folder, self.responses, limits)
        self.memories = Memories(folder, engine, sessions)


class Service:
    """Starts with `start`, ends with `stop`.

    Args:
        store: a folder, made if absent, in which each key has one of its own.
        keys: who gives one of these may use it; anybody may if there are none.
        idle_sleep_s: as for `Idle`.
    """

    def __init__(
        self,
        sleeper: Sleeper,
        store: Path,
        keys: Sequence[str] = (),
        limits: Limits | None = None,
        *,
        idle_sleep_s: float | None = None,
    ) -> None:
        self.sleeper, self.limits = sleeper, limits or Limits()
        self.name = plain(sleeper.name).replace(" ", "-").replace("@", "-")
        self.engine, self.sessions = Engine(sleeper, self.limits), Sessions(sleeper, self.limits.live)
        self.idle = Idle(self.engine, idle_sleep_s)
        self.metrics = Metrics(self.engine, self.sessions)
        self._store = store
        self._owners = {key.encode(): owner_of(key) for key in keys}
        self._accounts = dict[str, Account]()
        self._encoding = threading.Lock()  # a tokenizer is for one thread at a time
        identity = identify(sleeper)
        made_with = [f"{key}={value}" for key, value in sorted(identity.made_with.items())]
        root = root_of("model", identity.fingerprint, *made_with, sleeper.sleep_config.model_dump_json())
        self._blank = Base(Live(Heard(Memory.empty(sleeper))), root)

    @property
    def needs_key(self) -> bool:
        return bool(self._owners)

    def start(self) -> None:
        """Start the engine; texts that were being read go on."""
        make_folder(self._store)
        remove_unfinished(self._store)
        self.engine.start()
        for owner in self._owners.values() if self._owners else [owner_of(None)]:
            self.account(owner).memories.resume()

    def stop(self) -> None:
        self.engine.stop()

    def owner(self, key: str | None) -> str | None:
        """Whose a key is; None if it is nobody's. Takes equally long for all wrong keys of a length."""
        if not self._owners:
            return owner_of(None)
        given, found = (key or "").encode(), None
        for known, owner in self._owners.items():
            if hmac.compare_digest(known, given):
                found = owner
        return found

    def account(self, owner: str) -> Account:
        if owner not in self._accounts:
            self._accounts[owner] = Account(self._store / owner, self.engine, self.sessions)
        return self._accounts[owner]

    async def at_rest(self, function: Callable[[], Value]) -> Value:
        """Call a function while the model is at rest."""
        return await asyncio.wrap_future(self.engine.call(function))

    async def fetched(self, get: Callable[..., Value]) -> Value:
        """What `get(load=…)` gives: at once if it is in memory, else when the model is at rest."""
        try:
            return await asyncio.to_thread(get, load=False)
        except OnDisk:
            return await self.at_rest(functools.partial(get, load=True))

    async def base(self, account: Account, model: str) -> Base:
        """What MODEL or MODEL@MEMORY stands for. Raises Refusal for any other name."""
        name, at, memory = model.rpartition("@") if "@" in model else (model, "", "")
        if name != self.name:
            raise not_found(f"model {plain(model)[:200]}: this is {self.name}", "model_not_found", "model")
        if not at:
            return self._blank
        try:
            live = await self.fetched(functools.partial(account.memories.get, memory))
        except Refusal as refusal:
            code = "model_not_found" if refusal.status == 404 else refusal.code
            raise Refusal(refusal.status, refusal.message, param="model", code=code) from None
        return Base(live, memory_root(live.digest), memory)

    async def turns(self, messages: Sequence[Message], turns: int, param: str) -> Turns:
        """Messages as tokens."""
        return await asyncio.to_thread(self._locked(functools.partial(turns_of, self.sleeper, messages, turns, param)))

    async def encode(self, text: str) -> list[int]:
        return await asyncio.to_thread(self._locked(functools.partial(self.sleeper.encode, text)))

    async def text(self, text: str) -> Tensor:
        """A text that is to be read, as tokens."""
        return await asyncio.to_thread(self._locked(functools.partial(self.sleeper.text, text)))

    async def encode_answer(self, text: str) -> list[int]:
        return await asyncio.to_thread(self._locked(functools.partial(self.sleeper.language.answer, text)))

    async def find(self, account: Account, base: Base, ids: Sequence[int]) -> tuple[Live, int]:
        """The session of the longest prefix of these tokens that is known, and its length."""
        known = await asyncio.to_thread(account.prefixes.known, base.root, ids)
        live = await self.fetched(functools.partial(account.prefixes.get, known[0])) if known else None
        return (live, known[1]) if live and known else (base.live, 0)

    async def keep(self, account: Account, base: Base, ids: Sequence[int], heard: Heard) -> None:
        """Let a session be found by the tokens that led to it."""
        live = await asyncio.to_thread(account.prefixes.put, base.root, ids, heard)
        # It may have been deleted meanwhile, with all of its chats.
        if base.memory is not None and not await self._is_there(account, base.memory, base.live.digest):
            return await asyncio.to_thread(account.prefixes.forget, base.root)
        if live is not None:
            self.engine.settle(live)

    async def _is_there(self, account: Account, memory: str, digest: str) -> bool:
        """True if a name still stands for the same memory."""
        try:
            return (await self.fetched(functools.partial(account.memories.get, memory))).digest == digest
        except Refusal:
            return False

    async def events(
        self, live: Live, ids: Sequence[int], turns: int, sampling: Sampling, n: int = 1, *, watched: bool = False
    ) -> AsyncGenerator[Wrote | Ended]:
        """Hear tokens after a session and write answers; what comes of it. Leaving the loop early ends the work.

        Args:
            watched: as for `Job`.

        Raises:
            Refusal, UserError: before the first event, or in their midst.
        """
        if len(ids) > self.limits.prompt_tokens:
            what = f"{len(ids):,} new tokens are too many: at most {self.limits.prompt_tokens:,}"
            raise Refusal(413, what, code="too_many_tokens")
        if (sampling.max_tokens or 0) > self.limits.answer_tokens:
            what = f"an answer has at most {self.limits.answer_tokens:,} tokens: ask for no more"
            raise Refusal(400, what, code="too_many_tokens")
        loop, events = asyncio.get_running_loop(), asyncio.Queue[Event]()

        def emit(event: Event) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens
                loop.call_soon_threadsafe(events.put_nowait, event)

        job = Job(live, ids, turns, sampling, n, emit, watched)
        self.engine.submit(job)
        left, watch = n if sampling.max_tokens != 0 else 1, self.metrics.stopwatch()
        try:
            while left:
                event = await events.get()
                if isinstance(event, Failed):
                    raise event.error
                left -= isinstance(event, Ended)
                if isinstance(event, Wrote) and event.stands is None:
                    watch.piece()
                yield event
        finally:
            self.engine.cancel(job)

    def _locked(self, function: Callable[[], Value]) -> Callable[[], Value]:
        def call() -> Value:
            with self._encoding:
                return function()

        return call


def memory_root(digest: str) -> str:
    """The root of prefixes that begin with a memory, by the digest of its file."""
    return root_of("memory", digest)


def seed_or_any(seed: int | None) -> int:
    """A seed; a fresh one for who gave none."""
    return secrets.randbits(62) if seed is None else seed
