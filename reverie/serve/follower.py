"""`Follower`: what is told of a session to who watches it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from reverie.memory.history import Window
from reverie.serve.service import Service
from reverie.talk.chat import UNFINISHED
from reverie.talk.heard import Heard

_MOST_BYTES = 4  # of a letter in UTF-8, each of which may be a token


class Follower:
    """Tells of a session as it goes on: each time what is new.

    Args:
        known: a session whose windows need not be told of, but for a newest one that was slept over while idle.
    """

    def __init__(self, service: Service, known: Heard | None = None) -> None:
        self._service, self._windows, self._awake = service, _windows(known), 0
        history = known.memory.history if known else None
        if known and history and history.windows and history.windows[-1].tokens < known.memory.config.window_size:
            self._windows -= 1

    def told(self, heard: Heard) -> dict[str, Any]:
        """A dict that is ready for JSON; `awake` goes on from token `first` of the window, or is of a new one."""
        memory, history, count = heard.memory, heard.memory.history, _windows(heard)
        config, tokens = memory.config, int(memory.tokens[0])
        first = 0 if count != self._windows else min(self._awake, len(heard.awake))
        new = history.windows[max(len(history.windows) - (count - self._windows), 0) :] if history else ()
        self._windows, self._awake = count, len(heard.awake)
        return {
            "object": "session",
            "window_size": config.window_size,
            "num_sleep_passes": config.num_sleep_passes,
            "blocks": list(self._service.sleeper.fast_weight_blocks),
            "tokens": tokens + len(heard.awake),
            "slept_over": tokens,
            "evicted": tokens if config.eviction == "hard" else max(tokens - config.window_size + 1, 0),
            "passes": int(memory.passes[0]),
            "memory_bytes": memory.nbytes,
            "cache_bytes_per_token": self._service.engine.cache_bytes,
            "first": first,
            "awake": texts_of(self._service.sleeper.decode, heard.awake, first),
            "windows": [_window(count - len(new) + i, window) for i, window in enumerate(new)],
        }


def texts_of(decode: Callable[[Sequence[int]], str], ids: Sequence[int], first: int = 0) -> list[str]:
    """What each token from `first` on adds to the text. A letter of several tokens is added by the last of them."""
    start = max(first - 2 * _MOST_BYTES, 0)
    texts, before, after = list[str](), start, start  # tokens [before, after) are told: the newest, which added letters
    for end in range(start + 1, len(ids) + 1):
        known, text = decode(ids[before:after]), decode(ids[before:end])
        if text.endswith(UNFINISHED) and end - after < _MOST_BYTES:
            texts.append("")
        else:
            texts.append(text[len(known) :])
            before, after = after if texts[-1] else before, end
    return texts[first - start :]


def _windows(heard: Heard | None) -> int:
    """Windows slept over, as far as was noted."""
    return 0 if heard is None or heard.memory.history is None else heard.memory.history.num_windows


def _window(number: int, window: Window) -> dict[str, Any]:
    """`change` is by pass and block."""
    told = {"number": number, "tokens": window.tokens, "passes": window.passes, "seconds": window.seconds}
    return {**told, "change": {n: dict(row) for n, row in window.change.items()}}
