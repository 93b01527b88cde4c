"""`Writer`: the tokens of an answer, chosen one by one, and what is shown of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from reverie.errors import UserError
from reverie.talk.chat import LEAST_TEMPERATURE, UNFINISHED
from reverie.talk.draw import PROSE_TEMPERATURE, choose
from reverie.tasks.language import Language

Reason = Literal["stop", "length"]


@dataclass(frozen=True)
class Sampling:
    """How an answer is written."""

    max_tokens: int | None = None  # the language's own if None; 0 writes none
    temperature: float | None = None  # as of `Chat` if None
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    logprobs: int | None = None  # how many of the likeliest tokens are told at each place


@dataclass(frozen=True)
class Shown:
    """A token, its log probability in nats before temperature and penalties, and the likeliest ones at its place."""

    token: int
    offset: int  # letters of the answer before it
    logprob: float
    likeliest: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Piece:
    """What came to be seen of an answer, and its tokens; both may be empty."""

    text: str
    tokens: tuple[Shown, ...] = ()


class Writer:
    """One answer.

    Args:
        most: tokens of an answer, whatever is asked for.
    """

    def __init__(self, language: Language, sampling: Sampling, most: int, device: torch.device) -> None:
        self._language, self._prose = language, getattr(language, "prose", False)
        temperature = sampling.temperature
        if temperature is None:
            temperature = PROSE_TEMPERATURE if self._prose else 0.0
        self._sampling = replace(sampling, temperature=0.0 if temperature < LEAST_TEMPERATURE else temperature)
        own = language.max_answer_tokens if sampling.max_tokens is None else sampling.max_tokens
        self.max_tokens = min(own, most)
        self._random = torch.Generator(device).manual_seed(sampling.seed)
        self.said = list[int]()
        self.text = ""  # that was shown
        self._length = 0  # of all text, shown or not
        self.finished: Reason | None = None
        self._unseen = list[Shown]()  # tokens whose text was not shown yet

    def take(self, logits: Float[Tensor, " vocab"]) -> Piece:
        """Choose the next token; what can be shown now. `finished` says whether it was the last."""
        sampling, language = self._sampling, self._language
        assert sampling.temperature is not None
        if bool(logits.isnan().any()):
            raise UserError("the memory holds numbers that this model cannot answer with: they overflow")
        token = choose(logits, self.said, sampling.temperature, self._random, prose=self._prose, top_p=sampling.top_p)
        self.said.append(token)
        if sampling.logprobs is not None:
            self._unseen.append(_shown(logits, token, self._length, sampling.logprobs))
        so_far = language.decode(self.said)
        self._length = len(so_far)
        stop = min((i for word in sampling.stop if (i := so_far.find(word)) >= 0), default=None)
        if stop is not None:
            so_far, self.finished = so_far[:stop], "stop"
        elif token in language.end_ids:
            self.finished = "stop"
        elif len(self.said) >= self.max_tokens:
            # What a task's answer is at its longest is all of it; prose is cut off.
            self.finished = "stop" if sampling.max_tokens is None and not self._prose else "length"
        return self._show(so_far)

    def kept(self) -> list[int]:
        """The tokens that count as said: without an end that is no word, and what a stop word begins in."""
        said, decode = self.said, self._language.decode
        if self._sampling.stop:
            while said and len(decode(said)) > len(self.text):
                said = said[:-1]
        if said and said[-1] in self._language.end_ids and not decode(said[-1:]):
            said = said[:-1]
        return list(said)

    def _show(self, so_far: str) -> Piece:
        if self.finished is None:
            held = max((_overlap(so_far, word) for word in self._sampling.stop), default=0)
            so_far = so_far[: len(so_far) - held]
            if so_far.endswith(UNFINISHED) or not so_far.startswith(self.text):
                return Piece("")
        else:
            so_far = so_far.rstrip(UNFINISHED)
        new, self.text = so_far[len(self.text) :], so_far if len(so_far) >= len(self.text) else self.text
        tokens, self._unseen = tuple(self._unseen), []
        return Piece(new, tokens)


def _overlap(text: str, word: str) -> int:
    """Letters at the end of a text that may become the beginning of this word."""
    return next((n for n in range(min(len(word) - 1, len(text)), 0, -1) if text.endswith(word[:n])), 0)


def _shown(logits: Tensor, token: int, offset: int, most: int) -> Shown:
    shares = logits.float().log_softmax(-1)
    best: tuple[Sequence[float], Sequence[int]] = ((), ())
    if most:
        top = shares.topk(min(most, len(shares)))
        best = top.values.tolist(), top.indices.tolist()
    return Shown(token, offset, float(shares[token]), tuple(zip(best[1], best[0], strict=True)))
