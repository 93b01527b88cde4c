"""The mixers that a block may have, by name; anybody may add one.

A mixer is a module, called with the normed hidden states x [B, T, D] of new tokens, the block's fast weights and cache
after the tokens before them (None at the start of a text, or where it keeps none), and by name with

    span     tokens that each token may look back on, itself included
    output   False: only the state is wanted

It returns y [B, T, D] (None without `output`), the new fast weights and the new cache, and changes nothing in place.
Fast weights are a tensor [B, …] in float32 at least. A cache is a named tuple of tensors [B, …] with a method
`newest(keep)`, as `KVCache` and `ConvTail`; a class of one's own is named to `register_mixer`, or is the attribute
`Cache` of the mixer's class. The linear layer called `out_proj` is set to zero, so that a new block changes nothing;
all else starts as the mixer makes it. With an attribute `looks_both_ways` that is true it is also given
`bidirectional=True` in sleep, where `SleepConfig.bidirectional_sleep` asks for that.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError
from torch import nn

from reverie.errors import UserError
from reverie.model.state import CACHE_ENTRIES
from reverie.named import find_named, is_named


class MixerKind(NamedTuple):
    """A kind of mixer, and what a block makes of it."""

    module: Callable[..., nn.Module]
    settings: type[BaseModel] | None = None  # of its own
    fast_weights: bool = True  # it keeps a memory that outlives the window
    mlp: bool = True  # an MLP follows in the block


MIXERS: dict[str, MixerKind] = {}


def register_mixer(
    name: str,
    settings: type[BaseModel] | None,
    module: type[nn.Module],
    *,
    fast_weights: bool = True,
    cache: type[Any] | None = None,
) -> None:
    """Add a mixer, which layer patterns and `insert_fast_weights` then name.

    Args:
        settings: its own ones, a pydantic model; `model.mixers.NAME` of a recipe has their values. None: it has none.
        module: called with the model's `HybridConfig`, and with `settings` if there are any.
        fast_weights: False for one that keeps nothing but a cache.
        cache: the class of its cache, if that is its own; files of memories know it by its name.

    Raises:
        UserError: the name is taken, or `module` is no module.
    """
    if name in MIXERS:
        raise UserError(f"there is a mixer {name!r} already")
    if not (isinstance(module, type) and issubclass(module, nn.Module)):
        raise UserError(f"mixer {name} must be a class of torch.nn.Module, got {module!r}")
    if settings is not None and not (isinstance(settings, type) and issubclass(settings, BaseModel)):
        raise UserError(f"the settings of mixer {name} must be a pydantic model, got {settings!r}")
    if cache is not None and CACHE_ENTRIES.setdefault(cache.__name__, cache) is not cache:
        raise UserError(f"the cache of mixer {name} needs another name than {cache.__name__}, which is taken")
    MIXERS[name] = MixerKind(module, settings, fast_weights)


def known_mixers() -> list[str]:
    """The names of registered mixers."""
    return [name for name in MIXERS if not is_named(name)]


def mixer_kind(name: str) -> MixerKind:
    """The mixer of this name. "module:Class" is imported, with the settings `Config` and the `Cache` of its class.

    Raises:
        UserError: there is none.
    """
    if name not in MIXERS:
        if not is_named(name):
            raise UserError(f"there is no mixer {name!r}: use {', '.join(known_mixers())}, or module:Class")
        module = find_named(name, "a mixer")
        settings, cache = getattr(module, "Config", None), getattr(module, "Cache", None)
        register_mixer(name, settings, module, fast_weights=getattr(module, "fast_weights", True), cache=cache)
    return MIXERS[name]


def settings_of(name: str, values: Mapping[str, Any]) -> BaseModel | None:
    """The settings of a mixer with these values, taken as JSON is: nothing is quietly converted. None: it has none.

    Raises:
        UserError: it does not have these settings.
    """
    settings = mixer_kind(name).settings
    known = settings.model_fields if settings else {}
    if unknown := values.keys() - known.keys():
        has = f"it has {', '.join(known)}" if known else "it has none"
        raise UserError(f"mixers.{name}.{min(unknown)} is not a setting of this mixer; {has}")
    try:
        return settings and settings.model_validate_json(json.dumps(dict(values), default=str), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, (name, *first["loc"])))
        raise UserError(f"mixers.{where} is wrong: {first['msg']}") from None


def check_inserted(kind: str, settings: Mapping[str, Any], *, value_embedding: bool) -> None:
    """Raise UserError unless this is a mixer with fast weights and these settings, which can follow a block."""
    known = [name for name in known_mixers() if MIXERS[name].fast_weights and MIXERS[name].mlp]
    if kind not in known and not is_named(kind):
        raise UserError(f"kind must be {' or '.join(known)}, or module:Class, got {kind}")
    if not mixer_kind(kind).fast_weights:
        raise UserError(f"kind must be a mixer with fast weights, and {kind} has none that would outlive the window")
    settings_of(kind, settings)
    if value_embedding and kind not in ("jet", "gdn"):
        raise UserError(f"value_embedding is for jet and gdn, and mixer {kind} does not read it")


def new_mixer(name: str, config: Any, values: Mapping[str, Any]) -> nn.Module:
    """The module for a model's sizes.

    Args:
        config: `HybridConfig`.
        values: of the mixer's own settings.

    Raises:
        UserError: it cannot be made, or has no linear layer `out_proj`.
    """
    settings = settings_of(name, values)
    try:
        made = mixer_kind(name).module(*((config,) if settings is None else (config, settings)))
    except Exception as error:  # of a class from outside
        raise UserError(f"mixer {name} cannot be made: {error}") from error
    if not isinstance(getattr(made, "out_proj", None), nn.Linear):
        raise UserError(f"mixer {name} lacks a linear layer called out_proj, which is to start at zero")
    return made
