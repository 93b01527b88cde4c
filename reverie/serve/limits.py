"""`Limits`: how much a server takes on, so that no client can take all of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Counts are of one process, bytes on disk of one API key."""

    running: int = 8  # requests that are worked on at the same time
    waiting: int = 64  # requests behind these; more are answered by 429
    live: int = 64  # contexts in memory, the least recently used go
    stored_bytes: int = 2**34  # responses, and memories, of a key each: more are refused
    cached_bytes: int = 2**31  # beginnings of chats: the least recently used go
    memories: int = 1000
    readings: int = 8  # texts of a key that are being read
    body_bytes: int = 2**24  # of a request
    bodies_bytes: int = 2**28  # of all requests that are here
    body_s: float = 30.0  # for a request to arrive: its head, and then its body
    answer_s: float = 600.0  # for an answer to be written
    prompt_tokens: int = 2**17  # new ones, of a request
    answer_tokens: int = 4096
    choices: int = 8
    passes: int = 64  # of a sleep, in files that are uploaded
