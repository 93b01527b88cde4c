"""What a call of a sleeping model is given: honoured, or refused by name, and never dropped.

transformers' models take any keyword, and leave out of account what they do not know. Here each has to be in
`BY_DECODER` or `BY_CAUSAL_LM`, and its value has to say something that a model can do that reads window by window.
`docs/huggingface.md` has the table.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache, DynamicCache

from reverie.errors import UserError
from reverie.hf.cache import SleepCache
from reverie.hf.group import Group
from reverie.model import SleepingModel
from reverie.sleep import Context

BY_DECODER = frozenset(
    ("input_ids", "inputs_embeds", "attention_mask", "position_ids", "past_key_values", "use_cache", "return_dict")
)
BY_CAUSAL_LM = BY_DECODER | {"labels", "shift_labels", "num_items_in_batch", "logits_to_keep"}
RECORDINGS = ("output_hidden_states", "output_attentions", "output_router_logits")
PACKING = ("seq_idx", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "block_sequence_ids")


class Request(Cache):
    """One call, checked. A causal LM hands it to its decoder in the place of a cache.

    Attributes:
        cache: what the tokens go on from, which the call moves on.
        text: [B, T], False on padding; None: there is none.
        newest: the number of columns whose logits are wanted, of the newest; 0: all of them.
        labels: [B, T] as transformers' loss takes them, if there are any.
    """

    def __init__(self, cache: SleepCache, text: Bool[Tensor, "B T"] | None, newest: int, labels: Tensor | None) -> None:
        super().__init__(layers=[])
        self.cache, self.text, self.newest, self.labels = cache, text, newest, labels


def by_name(forward: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments by the names that `forward` of the model's own class gives them."""
    if not args:
        return dict(kwargs)
    bound = inspect.signature(forward).bind_partial(None, *args, **kwargs)
    own, rest = next(iter(bound.signature.parameters)), {}
    for name, parameter in bound.signature.parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            rest = bound.arguments.pop(name, {})
    return {name: value for name, value in bound.arguments.items() if name != own} | rest


def requested(
    model: SleepingModel, config: PreTrainedConfig, given: Mapping[str, Any], honoured: frozenset[str]
) -> Request:
    """A call of a model of transformers, by its arguments.

    Raises:
        UserError: one of them is not among those `honoured`, or they ask for what a sleeping model cannot do. The cache
            is then as it was.
    """
    refuse_unknown(config, given, honoured)
    tokens = tokens_of(given)
    cache = cache_for(given.get("past_key_values"), tokens)
    if cache.origin is not None and honoured == BY_DECODER:
        raise UserError("a memory is checked by the whole model: give it to that, and not to its decoder alone")
    known = cache.groups
    cache.groups = known or [Group(torch.arange(len(tokens), device=tokens.device), 0, Context.empty(model))]
    try:
        text = _text(given.get("attention_mask"), tokens, cache)
        labels = _scored(given, text)
        _check_positions(given.get("position_ids"), text, tokens, cache)
    except UserError:
        cache.groups = known
        raise
    return Request(cache, text, _newest(given), labels)


def refuse_unknown(config: PreTrainedConfig, given: Mapping[str, Any], honoured: frozenset[str]) -> None:
    """Raises UserError if a call, or the config, asks for what is not honoured; None asks for nothing."""
    for name in RECORDINGS:
        wanted = given.get(name)
        if getattr(config, name, False) if wanted is None else wanted:
            raise UserError(f"a model that sleeps runs its blocks in several passes, so there is no single {name[7:]}")
    for name, value in given.items():
        if value is None or name in honoured or name in RECORDINGS:
            continue
        if name in PACKING:
            raise UserError(f"{name} packs several texts into one row, which sleep cannot tell apart: give each a row")
        raise UserError(f"a sleeping model has no argument {name}: it takes {', '.join(sorted(honoured))}")


def tokens_of(given: Mapping[str, Any]) -> Tensor:
    """input_ids [B, T] or inputs_embeds [B, T, D], whichever there are."""
    ids, embedded = given.get("input_ids"), given.get("inputs_embeds")
    if (ids is None) == (embedded is None):
        raise UserError("give either input_ids or inputs_embeds")
    tokens: Any = embedded if ids is None else ids
    dimensions = 3 if ids is None else 2
    if tokens.ndim != dimensions or tokens.is_floating_point() != (ids is None):
        raise UserError(
            "input_ids must be whole numbers [batch, tokens], and inputs_embeds floats [batch, tokens, width]; "
            f"got {tokens.dtype} {list(tokens.shape)}"
        )
    if not tokens.shape[0] or not tokens.shape[1]:
        raise UserError(f"there is nothing to read: the tokens have shape {list(tokens.shape)}")
    return tokens


def cache_for(past: Any, tokens: Tensor) -> SleepCache:
    """The cache that these tokens go on from; an empty one of transformers becomes it, and stays the caller's.

    Raises UserError if it is of another kind, or of other rows.
    """
    if type(past) is DynamicCache:
        past = _converted(past)
    cache = SleepCache() if past is None else past
    if not isinstance(cache, SleepCache):
        raise UserError(f"a sleeping model goes on from the cache that it returned, not from a {type(past).__name__}")
    if cache.groups and cache.batch_size != len(tokens):
        what, remedy = ("cache", "") if cache.seen else ("memory", ": branch it")
        raise UserError(f"the {what} holds {cache.batch_size} texts, but these are tokens of {len(tokens)}{remedy}")
    return cache


def _converted(past: DynamicCache) -> SleepCache:
    """The caller's own object, which goes on holding the text: nobody looks at a cache that is returned."""
    kept = [x for layer in past.layers for x in tree_leaves(vars(layer)) if isinstance(x, Tensor) and x.ndim > 2]
    if past.offloading or kept:
        raise UserError(
            "a sleeping model goes on from the cache that it returned, not from a DynamicCache that "
            + ("is offloaded" if past.offloading else "holds tokens")
        )
    cache: Any = past
    cache.__class__ = SleepCache
    SleepCache.__init__(cache)
    return cache


def _text(mask: Any, tokens: Tensor, cache: SleepCache) -> Bool[Tensor, "B T"] | None:
    """Which of the tokens are text, where not all are; the mask is of all tokens since the cache began."""
    if mask is None:
        return None
    B, T = tokens.shape[:2]
    wanted = f"[{B}, {cache.seen + T}]"
    if not isinstance(mask, Tensor) or list(mask.shape) != [B, cache.seen + T]:
        got = list(mask.shape) if isinstance(mask, Tensor) else f"a {type(mask).__name__}"
        raise UserError(f"attention_mask must be {wanted}, 1 on text and 0 on padding, got {got}")
    least, most = mask.aminmax()
    if bool(least == 1) and bool(most == 1):
        cache.check_earlier(None)
        return None
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise UserError(f"attention_mask must be 1 on text and 0 on padding, got values from {least} to {most}")
    mask = mask.to(tokens.device).bool()
    cache.check_earlier(mask[:, : cache.seen])
    text = mask[:, cache.seen :]
    if not bool(text.any()):
        raise UserError("attention_mask leaves nothing to read: no row has a token to read among these")
    return None if bool(text.all()) else text


def _check_positions(positions: Any, text: Tensor | None, tokens: Tensor, cache: SleepCache) -> None:
    """Positions must be those of a text: its own tokens counted, or all columns if padding stands before it alone."""
    if positions is None:
        return
    B, T = tokens.shape[:2]
    if not isinstance(positions, Tensor) or positions.ndim not in (2, 3) or positions.is_floating_point():
        raise UserError(f"position_ids must be whole numbers [{B}, {T}], one for each token")
    planes = positions if positions.ndim == 3 else positions[None]  # several where images have positions too
    if planes.shape[1] not in (1, B) or planes.shape[2] != T:
        raise UserError(f"position_ids must be [{B}, {T}] as the tokens are, got {list(positions.shape)}")
    planes = planes.to(tokens.device)
    shown = torch.ones(B, T, dtype=torch.bool, device=tokens.device) if text is None else text
    by_token = cache.read_before(tokens.device)[:, None] + shown.cumsum(1) - 1
    by_column = by_token + cache.lead_with(text, tokens)[:, None]  # the columns, unless padding parts the text
    columns = torch.arange(cache.seen, cache.seen + T, device=tokens.device)
    found = {
        name: bool(((planes == wanted) & valid | ~shown).all())
        for name, wanted, valid in (("token", by_token, shown), ("column", by_column, by_column == columns))
    }
    if not (found["token"] or found["column"]) or not found.get(cache.positions, True):
        raise UserError(
            "position_ids must count up, token by token from the first of a text, and go on where the call before "
            "ended: several texts in one row cannot be told apart asleep"
        )
    if found["token"] != found["column"]:
        cache.positions = "token" if found["token"] else "column"


def _newest(given: Mapping[str, Any]) -> int:
    """How many of the newest columns' logits are asked for, which spares the head for all other windows; 0: all."""
    kept = given.get("logits_to_keep")
    return kept if given.get("labels") is None and isinstance(kept, int) and kept > 0 else 0


def _scored(given: Mapping[str, Any], text: Tensor | None) -> Tensor | None:
    """Labels [B, T] as transformers' loss takes them, without that of a text's first token, which nothing predicts.

    Raises UserError if padding has a label, or stands between tokens of a text.
    """
    labels, shifted = given.get("labels"), given.get("shift_labels")
    if shifted is not None and (labels is None or text is not None):
        raise UserError("shift_labels are read beside labels, in a batch without padding: give labels alone")
    if labels is None or text is None:
        return labels
    text = text.to(labels.device)
    if labels.shape != text.shape:
        raise UserError(f"labels must be {list(text.shape)} as the tokens are, got {list(labels.shape)}")
    if bool((labels[~text] != -100).any()):
        raise UserError("labels must be -100 on padding, which attention_mask marks with 0")
    begins = text & ~text.roll(1, 1)
    begins[:, 0] = text[:, 0]
    if bool((begins.sum(1) > 1).any()):
        raise UserError("a row with labels must be one text: padding belongs before it or after it")
    return labels.masked_fill(begins, -100)
