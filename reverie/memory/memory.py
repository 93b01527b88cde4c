"""`Memory`: what sleep made of a text, as a thing to keep, copy, share and ask.

    memory = sleep_over(model, tokens, config)                       # once
    logits, context = read(model, question, memory.context, config)  # as often as wanted: the memory stays as it is
    memory.save("book.safetensors")
    memory = Memory.load("book.safetensors", model)

Under hard eviction a memory is the fast weights and nothing else, so its size does not depend on the text's.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from reverie.errors import UserError
from reverie.files import write_atomic
from reverie.memory.file import Content, Header, MemoryInfo, read_bytes, read_file, to_bytes
from reverie.memory.fingerprint import fingerprint, module_of
from reverie.memory.history import History
from reverie.model import SleepingModel, State, select_rows
from reverie.settling import in_order
from reverie.sleep import Context, SleepConfig, sleep, wake

Report = Callable[[int, int, int, Context], None]
"""Windows done, all of them, tokens done, and what is known by then."""


@dataclass(frozen=True, eq=False)
class Memory:
    """What a model knows of a text, or of B texts, that it has slept over; nothing of a window that is still open.

    `tokens` counts what was consolidated by row, `notes` say where it came from, `history` what each window changed.
    """

    context: Context
    tokens: Int[Tensor, " B"]
    config: SleepConfig
    fingerprint: str  # of the model
    notes: Mapping[str, str] = field(default_factory=dict)
    history: History | None = None

    @property
    def batch_size(self) -> int:
        return len(self.tokens)

    @property
    def passes(self) -> Int[Tensor, " B"]:
        """Spent on all windows, by row; the waking pass over each counts."""
        return torch.as_tensor(self.context.passes, device=self.tokens.device).expand(self.batch_size)

    @property
    def nbytes(self) -> int:
        """Of the fast weights, and of what sliding eviction keeps."""
        return sum(x.nbytes for x in tree_leaves(self.context.state) if isinstance(x, Tensor))

    def branch(self, n: int) -> Memory:
        """Each row n times in a row: n questions about one text as one batch."""
        if n < 1:
            raise UserError(f"a memory branches into 1 or more, got {n}")
        return self.rows(torch.arange(self.batch_size, device=self.tokens.device).repeat_interleave(n))

    def rows(self, indices: Int[Tensor, " rows"]) -> Memory:
        """These rows, in this order; one may come several times."""
        context = self.context._replace(passes=self.passes)
        return replace(self, context=select_rows(context, indices), tokens=self.tokens[indices])

    def to(self, target: torch.device | torch.dtype | str) -> Memory:
        """On another device; or with floats of another dtype, which takes less memory and rounds."""
        if isinstance(target, torch.dtype):
            if not target.is_floating_point:
                raise UserError(f"fast weights are floating-point numbers, so {target} cannot hold them")
            state = _map(lambda x: x.to(target) if x.is_floating_point() else x, self.context.state)
            return replace(self, context=_at_rest(state, self.passes))
        move: Callable[[Tensor], Tensor] = lambda x: x.to(target)  # noqa: E731
        return replace(
            self, context=_at_rest(_map(move, self.context.state), move(self.passes)), tokens=move(self.tokens)
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """As a safetensors file, put in its place in one move. Raises UserError where it cannot be written."""
        write_atomic(path, self.to_bytes())

    def to_bytes(self) -> bytes:
        """What `save` writes."""
        info = MemoryInfo(
            tokens=self.tokens.tolist(),
            passes=self.passes.tolist(),
            config=self.config,
            fingerprint=self.fingerprint,
            notes=dict(self.notes),
            nbytes=self.nbytes + sum(x.nbytes for x in self._history().values()),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        return to_bytes(info, self.context.state, self._history() if self.history else None)

    @classmethod
    def load(cls, path: str | os.PathLike[str], model: object, config: SleepConfig | None = None) -> Memory:
        """The memory in a file, on the model's device.

        Args:
            model: what `sleep_over` was given.
            config: how the model sleeps from now on, if it does not say so itself; the number of passes may be another.

        Raises UserError, in one sentence, for a file that is missing, cut short, changed, or no memory at all, and for
        a memory of another model, or of other windows.
        """
        return _loaded(model, config, str(path), partial(read_file, Path(path)))

    @classmethod
    def from_bytes(
        cls, data: bytes, model: object, config: SleepConfig | None = None, *, where: str = "this"
    ) -> Memory:
        """As `load`, from the bytes of a file, which sentences call `where`."""
        return _loaded(model, config, where, partial(read_bytes, data, where))

    @classmethod
    def empty(cls, model: object, config: SleepConfig | None = None, batch_size: int = 1) -> Memory:
        """Of nothing yet."""
        sleeping, config = sleeping_part(model, config)
        tokens = torch.zeros(batch_size, dtype=torch.long, device=device_of(model))
        state = State.empty(sleeping.num_blocks)
        return cls(_at_rest(state, torch.zeros_like(tokens)), tokens, config, fingerprint(model))

    def _history(self) -> dict[str, Tensor]:
        return self.history.tensors() if self.history else {}


@torch.no_grad()
def sleep_over(
    model: object,
    tokens: Int[Tensor, "B T"] | Sequence[Int[Tensor, " T"]],
    config: SleepConfig | None = None,
    *,
    memory: Memory | None = None,
    history: History | None = None,
    report: Report | None = None,
) -> Memory:
    """Read texts window by window and sleep over each window, the last and shorter one too.

    Texts of a batch may differ in length; each is consolidated as if it were alone (under sliding eviction all must be
    equally long).

    Args:
        model: a `SleepingModel`; or what has one as `sleeping`, and a `sleep_config` that is used if `config` is
            absent: a Hugging Face model after `add_sleep`.
        memory: what the texts continue, by row. It stays as it is.
        history: notes what every window changed; that of `memory` goes on if absent.
        report: called before the first window and after every one.

    Raises UserError for an empty text, and where memory and texts do not fit.
    """
    sleeping, config = sleeping_part(model, config or (memory and memory.config))
    device = device_of(model)
    texts = [row.to(device) for row in tokens]
    lengths = torch.tensor([len(row) for row in texts], device=device)
    before = memory or Memory.empty(model, config, len(texts))
    _check_texts(lengths, config, before, fingerprint(model), history)
    if history is None and before.history is not None:
        history = before.history.copy()
    L, longest = config.window_size, int(lengths.max())
    rows, context = torch.arange(len(texts), device=device), before.context._replace(passes=before.passes)
    parts, of_rows = list[Context](), list[Tensor | None]()
    for start in range(0, longest, L):
        _tell(report, start, L, lengths, context)
        context = _window(sleeping, [texts[row][start : start + L] for row in rows.tolist()], context, config, history)
        ended = lengths[rows] <= start + L
        if bool(ended.any()):
            parts.append(select_rows(context, ended.nonzero()[:, 0]))
            of_rows.append(rows[ended])
            rows, context = rows[~ended], select_rows(context, (~ended).nonzero()[:, 0])
    after = in_order(parts, of_rows)
    _tell(report, longest, L, lengths, after)
    return Memory(after, before.tokens + lengths, config, before.fingerprint, before.notes, history)


def sleeping_part(model: object, config: SleepConfig | None = None) -> tuple[SleepingModel, SleepConfig]:
    """What `sleep.py` runs of a model, and how it sleeps.

    Raises UserError where the model cannot sleep, or nothing says how.
    """
    part = getattr(model, "sleeping", model)
    if not isinstance(part, SleepingModel):
        raise UserError(f"a {type(model).__name__} cannot sleep: give one of reverie's models, or one after add_sleep")
    config = config or getattr(model, "sleep_config", None)
    if config is None:
        raise UserError(f"a {type(model).__name__} does not say how it sleeps: give a SleepConfig")
    return part, config


def device_of(model: object) -> torch.device:
    """Where a model's weights are."""
    return next(module_of(model).parameters()).device


def _check_texts(
    lengths: Tensor, config: SleepConfig, before: Memory, own_fingerprint: str, history: History | None
) -> None:
    if bool((lengths == 0).any()):
        raise UserError(
            f"text {int((lengths == 0).int().argmax())} of the batch is empty: there is nothing to sleep over"
        )
    if len(lengths) != before.batch_size:
        raise UserError(
            f"{len(lengths)} texts cannot continue a memory of {before.batch_size}: branch it, or pick rows of it"
        )
    if before.fingerprint != own_fingerprint:
        raise UserError("the memory is of another model: its fast weights mean nothing to this one")
    _check_settings(before.config, config, "the memory")
    if len(lengths.unique()) > 1 and config.eviction == "sliding":
        raise UserError("under sliding eviction the texts of a batch must be equally long: sleep over them one by one")
    if len(lengths.unique()) > 1 and history is not None:
        raise UserError("a history is of one text, or of several of one length: sleep over these one by one")


def _window(
    model: SleepingModel, pieces: list[Tensor], context: Context, config: SleepConfig, history: History | None
) -> Context:
    """One window of each row, of one length or another, slept over."""
    sizes = torch.tensor([len(piece) for piece in pieces], device=pieces[0].device)
    parts, of_rows = list[Context](), list[Tensor | None]()
    observe, begun = history and history.observe, time.perf_counter()
    for size in sizes.unique().tolist():
        here = (sizes == size).nonzero()[:, 0]
        tokens = torch.stack([pieces[i] for i in here.tolist()])
        part = context if len(here) == len(sizes) else select_rows(context, here)
        _, part = wake(model, tokens, part, config, output=False, observe=observe)
        parts.append(sleep(model, part, config, observe=observe))
        of_rows.append(here)
    after = in_order(parts, of_rows)
    if history is not None:
        if pieces[0].is_cuda:
            torch.cuda.synchronize(pieces[0].device)  # else it would have noted how long the launches took
        spent = torch.as_tensor(after.passes - context.passes)
        history.close(int(sizes[0]), spent.double().mean().item(), time.perf_counter() - begun)
    return after


def _tell(report: Report | None, start: int, L: int, lengths: Tensor, context: Context) -> None:
    if report is not None:
        report(-(-start // L), -(-int(lengths.max()) // L), int(lengths.clamp(max=start).sum()), context)


def _loaded(model: object, config: SleepConfig | None, where: str, read: Callable[..., Content]) -> Memory:
    config = config or getattr(model, "sleep_config", None)
    sleeping, _ = sleeping_part(model, config or SleepConfig(window_size=1))
    like = _one_token(sleeping, device_of(model))

    def check(header: Header) -> None:
        if header.info.fingerprint != fingerprint(model):
            raise UserError(f"{where} is a memory of another model: its fast weights mean nothing to this one")
        if config is not None:
            _check_settings(header.info.config, config, where)
        _check_shapes(header, like, where)

    content = read(check)
    info, device = content.info, device_of(model)
    _check_structure(content.state, like, len(info.tokens), where)
    try:
        history = None if content.history is None else History.from_tensors(content.history)
    except ValueError as error:
        raise UserError(f"{where} is not a memory: {error}") from None
    passes, tokens = (torch.tensor(counts, device=device) for counts in (info.passes, info.tokens))
    state = _map(lambda x: x.to(device), content.state)
    return Memory(_at_rest(state, passes), tokens, info.config, info.fingerprint, info.notes, history)


def _check_settings(made: SleepConfig, wanted: SleepConfig, where: str) -> None:
    """Passes and tolerance may be any: they are spent anew on every window."""
    for name in ("window_size", "looped_blocks", "eviction"):
        if getattr(made, name) != getattr(wanted, name):
            raise UserError(
                f"{where} was made with {name} {_shown(getattr(made, name))}, and the model sleeps with "
                f"{_shown(getattr(wanted, name))}: it cannot go on with that memory"
            )


def _check_shapes(header: Header, like: State, where: str) -> None:
    """Of the fast weights, before any is read: a file must not decide how much is read."""
    rows = len(header.info.tokens)
    wanted = {f"fast_weights.{i}": (rows, *x.shape[1:]) for i, x in enumerate(like.fast_weights) if x is not None}
    found = {name: shape for name, shape in header.shapes.items() if name.startswith("fast_weights.")}
    if len(header.content.parts) != len(like.cache) or (found and found != wanted):
        raise UserError(f"{where} does not fit this model: its fast weights have other shapes")


def _check_structure(state: State, like: State, rows: int, where: str) -> None:
    """Of what was read: the model's own kinds of cache, and one row a text in every tensor."""
    for entry, own in zip(state.cache, like.cache, strict=True):
        if entry is not None and [type(x) for x in _leaves(entry)] != [type(x) for x in _leaves(own)]:
            raise UserError(f"{where} does not fit this model: it kept other things of its newest tokens")
    tensors = [x for x in tree_leaves(state) if isinstance(x, Tensor)]
    if any(x.ndim == 0 or len(x) != rows or not x.is_floating_point() for x in tensors):
        raise UserError(f"{where} is not a memory: its tensors do not have a row for each of its {rows} texts")


def _leaves(entry: Any) -> list[Any]:
    return [type(entry), *tree_leaves(entry)]


def _one_token(model: SleepingModel, device: torch.device) -> State:
    """The state behind a single token: which tensors this model's has."""
    with torch.no_grad():
        token = torch.zeros(1, 1, dtype=torch.long, device=device)
        return wake(model, token, Context.empty(model), SleepConfig(window_size=1))[1].state


def _at_rest(state: State, passes: Tensor) -> Context:
    """Between two windows."""
    return Context(state, state, passes=passes)


def _map(change: Callable[[Tensor], Tensor], state: State) -> State:
    return tree_map_only(Tensor, change, state)


def _shown(value: object) -> str:
    return "all blocks" if value is None else str(list(value) if isinstance(value, tuple) else value)
