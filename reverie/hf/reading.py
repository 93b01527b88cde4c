"""Read a batch through `reverie.sleep.read`, in rows that begin, wait and end at different tokens."""

import copy
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from reverie.errors import UserError
from reverie.hf.arguments import Request
from reverie.hf.cache import SleepCache
from reverie.hf.group import Group
from reverie.memory.fingerprint import mark_of
from reverie.model import SleepingModel, select_rows
from reverie.sleep import SleepConfig, read
from reverie.sleep.gradients import EXACT, Backward

AWAKE = SleepConfig(window_size=sys.maxsize)
"""A window that is never full: a model that could sleep, but does not."""


class SleepingMixin:
    """What a causal LM that sleeps has in the place of transformers': gradient checkpointing is of whole windows, since
    block by block would lose their states; texts cannot share a row."""

    _is_stateful = False  # to transformers this means that tokens cannot be taken back

    backward_config: Any  # a Backward; a property of models that keep it in their decoder
    sleep_config: Any  # a SleepConfig; a property

    def gradient_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:
        """Let windows and passes run again in the backward pass."""
        self.backward_config = Backward(activation_checkpoint="window")

    def gradient_checkpointing_disable(self) -> None:
        self.backward_config = EXACT

    activation_checkpointing_enable = gradient_checkpointing_enable  # their names from transformers 6 on
    activation_checkpointing_disable = gradient_checkpointing_disable

    def _prefill(self, input_ids: Tensor, generation_config: GenerationConfig, *args: Any, **kwargs: Any) -> Any:
        """What `generate` does with a prompt: in one call where `prefill_chunk_size` is a window or more.

        A call goes window by window anyway, and spares what nobody reads of windows that other tokens follow.
        """
        if (generation_config.prefill_chunk_size or 0) >= self.sleep_config.window_size:
            generation_config = copy.copy(generation_config)
            generation_config.prefill_chunk_size = None
        prefill: Any = super()._prefill  # pyright: ignore[reportAttributeAccessIssue]
        return prefill(input_ids, generation_config, *args, **kwargs)

    def _get_candidate_generator(self, generation_config: GenerationConfig, *args: Any, **kwargs: Any) -> Any:
        """What guesses tokens for assisted decoding. Raises UserError where it is to be the model's first blocks."""
        if generation_config.assistant_early_exit is not None:
            raise UserError(
                "a sleeping model has no assistant_early_exit, since its blocks are looped: give an assistant_model or "
                "prompt_lookup_num_tokens"
            )
        make: Any = super()._get_candidate_generator  # pyright: ignore[reportAttributeAccessIssue]
        return make(generation_config, *args, **kwargs)

    def init_continuous_batching(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raises UserError: it packs texts into one row (`generate_batch`, `cache_implementation="paged"`)."""
        raise UserError("a sleeping model has no continuous batching: several texts in one row cannot be told apart")

    @property
    def is_gradient_checkpointing(self) -> bool:
        return self.backward_config != EXACT


def read_batch(
    model: SleepingModel, tokens: Tensor, request: Request, config: SleepConfig, *, backward: Backward = EXACT
) -> Tensor:
    """Read tokens [B, T] or embeddings [B, T, D] of a request and move its cache on; every row reads its own text.

    Returns what the model's head makes of the tokens [B, T, …], or without padding among them of the newest columns
    alone, as many as are wanted; 0 on padding.
    """
    groups, outputs = list[Group](), list[tuple[Tensor, Tensor, Tensor]]()
    (B, T), L, newest_only = tokens.shape[:2], config.window_size, request.newest == 1
    wanted = request.newest if request.text is None and 1 < request.newest < T else T

    all_of, newest_of = (partial(read, model, config=config, newest_only=x, backward=backward) for x in (False, True))

    for group in request.cache.groups:
        for part, columns in _alike(group, request.text, T):
            rows, n, places = part.rows, columns.shape[1], columns + request.cache.seen
            if n:
                new = tokens if n == T and len(rows) == B else tokens[rows[:, None], columns]
                if wanted < T:
                    _, part = part.read_on(new[:, :-wanted], places[:, :-wanted], L, newest_of)
                y, part = part.read_on(new[:, -wanted:], places[:, -wanted:], L, newest_of if newest_only else all_of)
                outputs.append((y, rows, columns[:, -wanted:] - (T - wanted)))
            groups.append(part)
    request.cache.move_on(request.text, tokens, groups)
    return _joined(outputs, B, wanted, newest_only=newest_only)


def _alike(group: Group, text: Tensor | None, T: int) -> Iterator[tuple[Group, Tensor]]:
    """Rows of a group that read equally many of the next T columns, with these columns [rows, n]."""
    rows = group.rows
    if text is None:
        yield group, torch.arange(T, device=rows.device).expand(len(rows), T)
        return
    shown = text[rows]
    counts = shown.sum(1)
    for n in (found := counts.unique().tolist()):
        own = (counts == n).nonzero()[:, 0]
        part = group if len(found) == 1 else select_rows(group, own)
        yield part, shown[own].nonzero()[:, 1].view(len(own), n)


def _joined(outputs: Sequence[tuple[Tensor, Tensor, Tensor]], B: int, T: int, *, newest_only: bool) -> Tensor:
    """Outputs of rows in the order of the batch: [B, T, …], or [B, 1, …] of the newest column; 0 on padding."""
    y, rows, columns = outputs[0]
    if len(outputs) == 1 and (len(rows), columns.shape[1]) == (B, T):
        return y
    joined = y.new_zeros(B, 1 if newest_only else T, y.shape[-1])
    for y, rows, columns in outputs:
        if newest_only:
            there = columns[:, -1] == T - 1
            y, rows, columns = y[there], rows[there], columns.new_zeros(int(there.sum()), 1)
        joined = joined.index_put((rows[:, None], columns), y)
    return joined


def take_up(past: Any, model: object) -> None:
    """Check a cache that was made of a memory. Raises UserError if the memory is not this model's."""
    if isinstance(past, SleepCache) and past.origin is not None:
        past.origin.check(model)


def check_unchanged(cache: SleepCache, decoder: nn.Module) -> None:
    """Check that the decoder is as it was in the call before, as far as torch sees; while it trains, it may change.

    Raises UserError if a weight, an adapter or a setting has changed since the call before.
    """
    if decoder.training or torch.compiler.is_compiling():
        return
    now = mark_of(decoder)
    if cache.mark is not None and cache.mark != now:
        raise UserError(
            "the model has changed since this cache was begun, its weights, adapters or settings: begin a new one"
        )
    cache.mark = now
