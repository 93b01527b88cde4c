"""`Memory`: what a model knows of a text after sleep, to save, branch, share and ask questions of.

    memory = sleep_over(model, tokens, config)                       # once
    logits, context = read(model, question, memory.context, config)  # any number of times: the memory is not changed
    memory.save("book.safetensors")
    memory = Memory.load("book.safetensors", model)

Under hard eviction a memory is the fast weights alone, so its size does not depend on the length of the text.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import torch
from jaxtyping import Int
from pydantic import ValidationError
from rich.filesize import decimal
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils._pytree import tree_leaves, tree_map_only

from reverie.errors import UserError, plain
from reverie.files import write_atomic
from reverie.memory.file import Fetch, Header, MemoryInfo, file_reader, read_memory, to_bytes
from reverie.memory.fingerprint import Identity, identify, module_of
from reverie.memory.fits import as_of, check_fits, check_identity, check_settings, token_ids
from reverie.memory.function import refuse_chance
from reverie.memory.history import History
from reverie.model import SleepingModel, State, select_rows, warn_if_untrained
from reverie.sleep import Context, SleepConfig, consolidate
from reverie.sleep.context import passes_in_words, summed

REMEMBERS = "remembers"  # among the notes, as "no", of a memory that no answer can depend on

WindowReport = Callable[[int, int, int, Context], None]
"""Called with the windows done, the total of windows, the tokens done, and the context by then."""


@dataclass(frozen=True, eq=False)
class Memory:
    """State of a model that has slept over a text, or B texts, to their end: no window is open.

    `tokens` counts the tokens consolidated, by row; `history` has what each window changed. `notes` are the
    caller's, but for "remembers". Reading on from `context` does not change it.
    """

    context: Context
    tokens: Int[Tensor, " B"]
    config: SleepConfig
    fingerprint: str  # of the model
    notes: Mapping[str, str] = field(default_factory=dict)
    history: History | None = None
    made_with: Mapping[str, str] = field(default_factory=dict)  # what the model computed besides, as `function_of` says
    accepted: tuple[str, ...] = ()  # what differed in models that it was accepted for with approximate=True

    def __repr__(self) -> str:
        """One line, such as "Memory(2 texts, 16+16 tokens, 3 passes each, 16.4 kB, of demo sleep-3-seed-0)"."""
        texts = "1 text" if self.batch_size == 1 else f"{self.batch_size:,} texts"
        counts = f"{summed(self.tokens)} tokens, {passes_in_words(self.passes)}, {decimal(self.nbytes)}"
        return f"Memory({texts}, {counts}, of {plain(self.notes.get('model', self.fingerprint[:8]))[:40]})"

    @property
    def batch_size(self) -> int:
        """B, the number of texts."""
        return len(self.tokens)

    @property
    def passes(self) -> Int[Tensor, " B"]:
        """Number of passes over all windows, by row, the waking pass included."""
        return torch.as_tensor(self.context.passes, device=self.tokens.device).expand(self.batch_size)

    @property
    def nbytes(self) -> int:
        """Bytes of the fast weights and of the cache that sliding eviction keeps."""
        return sum(x.nbytes for x in tree_leaves(self.context.state) if isinstance(x, Tensor))

    def branch(self, n: int) -> Memory:
        """Repeat each row n times, for a batch of n questions about each text. Raises UserError for n < 1."""
        if n < 1:
            raise UserError(f"a memory branches into 1 or more, got {n}")
        return self.rows(torch.arange(self.batch_size, device=self.tokens.device).repeat_interleave(n))

    def rows(self, indices: Int[Tensor, " rows"]) -> Memory:
        """Select rows, in this order; a row may be selected several times. Raises UserError for other indices."""
        if bool(((indices < 0) | (indices >= self.batch_size)).any()):
            raise UserError(f"the memory holds {self.batch_size} texts, counted from 0: there is no row beyond them")
        context = self.context._replace(passes=self.passes)
        return replace(self, context=select_rows(context, indices), tokens=self.tokens[indices])

    def to(self, target: torch.device | torch.dtype | str) -> Memory:
        """Move to another device, or convert floats to another dtype, which rounds.

        Raises UserError for an unknown device, or a dtype that is not of floats.
        """
        if isinstance(target, torch.dtype):
            if not target.is_floating_point:
                raise UserError(f"fast weights are floating-point numbers, so {target} cannot hold them")
            state = _map(lambda x: x.to(target) if x.is_floating_point() else x, self.context.state)
            return replace(self, context=_at_rest(state, self.passes))
        try:
            device = torch.device(target)
        except RuntimeError:
            raise UserError(f"there is no device {str(target)!r}: give one such as cpu or cuda, or a dtype") from None
        state = _map(lambda x: x.to(device), self.context.state)
        return replace(self, context=_at_rest(state, self.passes.to(device)), tokens=self.tokens.to(device))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file atomically. Raises UserError if it cannot be written."""
        write_atomic(path, self.to_bytes())

    def to_bytes(self) -> bytes:
        """Bytes of the file that `save` writes. Raises UserError for notes that a file cannot hold."""
        history = None if self.history is None else self.history.tensors()
        try:
            info = MemoryInfo(
                tokens=self.tokens.tolist(),
                passes=self.passes.tolist(),
                config=self.config,
                fingerprint=self.fingerprint,
                notes=dict(self.notes),
                nbytes=self.nbytes + sum(x.nbytes for x in (history or {}).values()),
                created=datetime.now(UTC).isoformat(timespec="seconds"),
                made_with=dict(self.made_with),
                accepted=list(self.accepted),
            )
        except ValidationError as error:
            fault = error.errors()[0]
            place = ".".join(map(str, fault["loc"]))
            raise UserError(f"the memory cannot be saved: its {place} is wrong ({fault['msg']:.80})") from None
        return to_bytes(info, self.context.state, history)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        model: object,
        config: SleepConfig | None = None,
        *,
        approximate: bool = False,
    ) -> Memory:
        """Load a memory from a file, to the model's device.

        Args:
            model: the model that it was made with, as for `sleep_over`.
            config: how the model sleeps from now on; if absent the model's `sleep_config`, else that of the file. The
                number of passes and the tolerance may differ from those of the file.
            approximate: accept that the same model computes in other numbers than the one that made the memory: its
                weights in another dtype or quantised, or attention with other kernels. What differs is kept in
                `accepted`. Between float64, float32 and bfloat16 it is checked that the weights are the same in
                bfloat16; of others it is taken on your word.

        Raises:
            UserError: the file is missing, cut short, changed, or not a memory; or the memory is of another model, or
                of other windows.
        """
        return cls.fetch(file_reader(Path(path)), model, config, where=str(path), approximate=approximate)

    @classmethod
    def fetch(
        cls, fetch: Fetch, model: object, config: SleepConfig | None = None, *, where: str, approximate: bool = False
    ) -> Memory:
        """Load as `load` does, from `fetch(n)`: the first n bytes of a file, or all if there are fewer."""
        config = config or getattr(model, "sleep_config", None)
        sleeping, _ = sleeping_part(model, config or SleepConfig(window_size=1))
        device, now = device_of(model), identify(model)
        accepted: str | None = None

        def check(header: Header) -> None:
            nonlocal accepted
            info = header.info
            made = Identity(info.fingerprint, info.made_with)
            accepted = check_identity(made, now, f"{where} is a memory", approximate=approximate)
            if config is not None:
                check_settings(info.config, config, where, sleeping.num_blocks)
            check_fits(header, sleeping, device, where)

        content = read_memory(fetch, where, check)
        info = content.info
        if not all(bool(x.isfinite().all()) for x in tree_leaves(content.state) if isinstance(x, Tensor)):
            raise UserError(f"{where} is not a memory that can be gone on with: it holds numbers that are not finite")
        history = content.recorded(where)
        passes, tokens = (torch.tensor(counts, device=device) for counts in (info.passes, info.tokens))
        state = _map(lambda x: x.to(device), content.state)
        state = as_of(sleeping, state, device, fast_weights=bool(accepted))
        known = (*info.accepted, *([accepted] if accepted else []))
        config, context = config or info.config, _at_rest(state, passes)
        return cls(context, tokens, config, now.fingerprint, info.notes, history, now.made_with, known)

    @classmethod
    def empty(cls, model: object, config: SleepConfig | None = None, batch_size: int = 1) -> Memory:
        """The memory before the first token. Raises UserError if the model cannot sleep."""
        sleeping, config = sleeping_part(model, config)
        tokens = torch.zeros(batch_size, dtype=torch.long, device=device_of(model))
        state = State.empty(sleeping.num_blocks)
        fingerprint, made_with = identify(model)
        name = getattr(model, "name", None)  # of a model that has one
        notes = {"model": plain(name)} if isinstance(name, str) else {}
        return cls(_at_rest(state, torch.zeros_like(tokens)), tokens, config, fingerprint, notes, made_with=made_with)

    def check(self, model: object, config: SleepConfig | None = None) -> None:
        """Check that it is a memory of this model as it is now, with the windows that it sleeps over; UserError if not.

        All weights are read, at the speed of the machine's memory.
        """
        sleeping, config = sleeping_part(model, config or getattr(model, "sleep_config", None) or self.config)
        check_identity(Identity(self.fingerprint, self.made_with), identify(model), "the memory is")
        check_settings(self.config, config, "the memory", sleeping.num_blocks)


@torch.no_grad()
def sleep_over(
    model: object,
    tokens: Int[Tensor, "B T"] | Sequence[Int[Tensor, " T"]],
    config: SleepConfig | None = None,
    *,
    memory: Memory | None = None,
    history: History | None = None,
    report: WindowReport | None = None,
) -> Memory:
    """Read texts window by window, sleep over each window, the last and shorter one too, and return the memory.

    Texts of a batch may differ in length, except under sliding eviction; each is consolidated as if it were alone.

    Args:
        model: a `SleepingModel`; or an object that has one as `sleeping`, such as a model of transformers after
            `add_sleep`.
        config: the model's `sleep_config` if absent, else that of `memory`.
        memory: its rows are continued by the texts; it is not changed.
        history: records what every window changes; a copy of that of `memory` if absent.
        report: called before the first window and after each.

    Raises:
        UserError: a text is empty or has unknown token ids, the texts or `memory` do not fit each other or the model,
            the model would drop something at random (training mode), or there is no config.
    """
    sleeping, config = sleeping_part(
        model, config or getattr(model, "sleep_config", None) or (memory and memory.config)
    )
    refuse_chance(module_of(model))
    device = device_of(model)
    texts = [token_ids(row, i).to(device) for i, row in enumerate(tokens)]
    lengths = torch.tensor([len(row) for row in texts], device=device)
    before = memory or Memory.empty(model, config, len(texts))
    if history is None and before.history is not None:
        history = before.history.copy()
    if memory is not None:
        memory.check(model, config)
    _check_texts(lengths, before, history)
    untrained = warn_if_untrained(sleeping, stacklevel=3)  # 2 is a line of torch.no_grad
    note = _Notes(config.window_size, lengths.tolist(), history, report)
    context = before.context._replace(passes=before.passes)
    note(0, context)
    try:
        after = consolidate(
            sleeping,
            pad_sequence(texts, batch_first=True),
            context,
            config,
            lengths=lengths.tolist(),
            on_window=note,
            observe=history and history.observe,
        )
    except IndexError:
        least, most = (int(of(map(of, texts))) for of in (min, max))
        raise UserError(
            f"the texts hold token ids that the model does not know: they go from {least} to {most}"
        ) from None
    notes = {**before.notes, REMEMBERS: "no"} if untrained else before.notes
    tokens_by_now = before.tokens + lengths
    return replace(before, context=after, tokens=tokens_by_now, config=config, notes=notes, history=history)


class _Notes:
    """Hook for `consolidate` that closes the window in the history and reports; call it with 0 before the first."""

    def __init__(
        self, window_size: int, lengths: list[int], history: History | None, report: WindowReport | None
    ) -> None:
        self._L, self._lengths, self._history, self._report = window_size, lengths, history, report
        self._passes, self._begun = torch.zeros(()), 0.0

    def __call__(self, windows: int, context: Context) -> None:
        total, passes = -(-max(self._lengths) // self._L), torch.as_tensor(context.passes)
        if self._history is not None and windows:
            if passes.is_cuda:
                torch.cuda.synchronize(passes.device)  # else it would record how long the launches took
            size = min(max(self._lengths) - (windows - 1) * self._L, self._L)
            spent = (passes - self._passes).cpu().double().mean().item()
            self._history.close(size, spent, time.perf_counter() - self._begun)
        if self._report is not None:
            self._report(windows, total, sum(min(n, windows * self._L) for n in self._lengths), context)
        self._passes, self._begun = passes, time.perf_counter()


def sleeping_part(model: object, config: SleepConfig | None = None) -> tuple[SleepingModel, SleepConfig]:
    """Return the `SleepingModel` in a model, and how it sleeps: `config`, else the model's `sleep_config`.

    Raises:
        UserError: the model cannot sleep, or there is no config.
    """
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        raise UserError("a prompt that peft puts before a text is not a part of what sleeps: give the model without it")
    part = getattr(model, "sleeping", model)
    if not isinstance(part, SleepingModel):
        raise UserError(f"a {type(model).__name__} cannot sleep: give one of reverie's models, or one after add_sleep")
    config = config or getattr(model, "sleep_config", None)
    if config is None:
        raise UserError(f"a {type(model).__name__} does not say how it sleeps: give a SleepConfig")
    return part, config


def device_of(model: object) -> torch.device:
    """Device of a model's weights."""
    return next(module_of(model).parameters()).device


def _check_texts(lengths: Tensor, before: Memory, history: History | None) -> None:
    if len(lengths) == 0:
        raise UserError("there is nothing to sleep over: the batch holds no text")
    if len(lengths) != before.batch_size:
        raise UserError(
            f"{len(lengths)} texts cannot continue a memory of {before.batch_size}: branch it, or pick rows of it"
        )
    if len(lengths.unique()) > 1 and history is not None:
        raise UserError("a history is of one text, or of several of one length: sleep over these one by one")


def _at_rest(state: State, passes: Tensor) -> Context:
    return Context(state, state, passes=passes)


def _map(change: Callable[[Tensor], Tensor], state: State) -> State:
    return tree_map_only(Tensor, change, state)
