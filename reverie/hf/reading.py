"""Read a batch through `reverie.sleep.read`, called as models of transformers are: padding, caches, logits."""

import copy
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedConfig
from transformers.cache_utils import DynamicCache

from reverie.errors import UserError
from reverie.hf.cache import Group, SleepCache, begin
from reverie.model import SleepingModel
from reverie.sleep import Context, SleepConfig, read
from reverie.sleep.gradients import EXACT, Backward

AWAKE = SleepConfig(window_size=sys.maxsize)
"""A window that is never full: a model that could sleep, but does not."""


class Checkpointed:
    """Gradient checkpointing as Trainer asks for it, of whole windows: block by block would lose their states."""

    backward_config: Any  # a Backward; a property of models that keep it in their decoder

    def gradient_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:
        """Let windows and passes run again in the backward pass."""
        self.backward_config = Backward(activation_checkpoint="window")

    def gradient_checkpointing_disable(self) -> None:
        self.backward_config = EXACT

    activation_checkpointing_enable = gradient_checkpointing_enable  # their names from transformers 6 on
    activation_checkpointing_disable = gradient_checkpointing_disable

    @property
    def is_gradient_checkpointing(self) -> bool:
        return self.backward_config != EXACT


def read_batch(
    model: SleepingModel,
    tokens: Tensor,
    cache: SleepCache,
    config: SleepConfig,
    *,
    newest_only: bool,
    backward: Backward = EXACT,
) -> Tensor:
    """Read tokens and move the cache on.

    Returns what the model's head makes of the tokens [B, T, …], or of the newest [B, 1, …]; 0 on padding before a text.
    """
    outputs, groups = list[Tensor](), list[Group]()
    for rows, padding, context in cache.groups:
        new = tokens[:, max(padding - cache.seen, 0) :]
        y, context = read(
            model,
            new if len(rows) == len(tokens) else new.index_select(0, rows),
            context,
            config,
            newest_only=newest_only,
            backward=backward,
        )
        outputs.append(y)
        groups.append(Group(rows, padding, context))
    cache.groups, cache.seen = groups, cache.seen + tokens.shape[1]
    T = 1 if newest_only else tokens.shape[1]
    padded = [nn.functional.pad(y, (0, 0, T - y.shape[1], 0)) for y in outputs]
    if len(padded) == 1:
        return padded[0]
    return torch.cat(padded)[torch.cat([group.rows for group in groups]).argsort()]


def cache_for(
    past: Any, mask: Tensor | None, tokens: Tensor, model: SleepingModel, positions: Tensor | None
) -> SleepCache:
    """The cache that these tokens [B, T], or embeddings, go on from; arguments as models of transformers take them.

    Raises:
        UserError: they do not fit together, or ask for what a sleeping model cannot do.
    """
    if isinstance(past, SleepCache) and past.seen:
        _check_goes_on(past, mask, tokens)
        return past
    if (
        past is not None
        and not isinstance(past, SleepCache)
        and (type(past) is not DynamicCache or past.get_seq_length())
    ):
        raise UserError(f"a sleeping model goes on from the cache that it returned, not from a {type(past).__name__}")
    if mask is not None and mask.ndim != 2:
        raise UserError(f"attention_mask must be [batch, tokens], 0 on padding; got {mask.ndim} dimensions")
    known = Context.empty(model)
    if isinstance(past, SleepCache) and past.groups:  # `cache_of` took them from a memory
        if past.batch_size != len(tokens):
            raise UserError(
                f"the memory holds {past.batch_size} texts, but these are tokens of {len(tokens)}: branch it"
            )
        known = past.groups[0].context
    cache = begin(mask, tokens, known)
    _refuse_packing(positions, cache)
    if isinstance(past, SleepCache):  # the caller's own, which has read nothing yet
        past.groups, past.complete = cache.groups, cache.complete
        return past
    return cache


def take_up(past: Any, model: object) -> None:
    """Check a cache that was made of a memory. Raises UserError if the memory is not this model's."""
    if isinstance(past, SleepCache) and past.origin is not None:
        past.origin.check(model)
        past.origin = None


def _check_goes_on(past: SleepCache, mask: Tensor | None, tokens: Tensor) -> None:
    if past.batch_size != len(tokens):
        raise UserError(f"the cache holds {past.batch_size} texts, but these are tokens of {len(tokens)}")
    if not past.complete:
        raise UserError("texts with padding after them cannot go on: put the padding before them (padding_side left)")
    if mask is not None and tokens.shape[1] > 1 and not bool(mask[:, -tokens.shape[1] :].all()):
        raise UserError("texts that go on must have new tokens in every row: padding belongs before the first token")


def _refuse_packing(positions: Tensor | None, cache: SleepCache) -> None:
    if positions is None or positions.ndim != 2:
        return
    for rows, padding, _ in cache.groups:
        own = positions[rows if len(positions) > 1 else slice(None), padding:]
        if cache.complete and bool((own.diff(dim=1) != 1).any()):
            raise UserError("position_ids must count up: several texts in one row cannot be told apart asleep")


def reads_newest_only(labels: Tensor | None, logits_to_keep: Any) -> bool:
    """True if only the logits of the newest token are asked for, which spares the head for all other windows."""
    return labels is None and isinstance(logits_to_keep, int) and logits_to_keep == 1


def prefill_config(generation_config: GenerationConfig, config: SleepConfig) -> GenerationConfig:
    """How `generate` reads a prompt: in one call where its pieces would hold a window or more.

    A call goes window by window anyway, and spares what nobody reads of those that other tokens follow.
    """
    size = generation_config.prefill_chunk_size
    if size is None or size < config.window_size:
        return generation_config
    generation_config = copy.copy(generation_config)
    generation_config.prefill_chunk_size = None
    return generation_config


def refuse_recording(config: PreTrainedConfig, kwargs: Mapping[str, Any]) -> None:
    """Raises UserError if a call, or the config, asks for hidden states, attentions or router logits."""
    for name in ("output_hidden_states", "output_attentions", "output_router_logits"):
        wanted = kwargs.get(name)
        if getattr(config, name, False) if wanted is None else wanted:
            raise UserError(f"a model that sleeps runs its blocks in several passes, so there is no single {name[7:]}")
