"""The mixers that a block may have, by name; anybody may add one.

A mixer is a module, called with the normed hidden states x [B, T, D] of new tokens, the block's fast weights and cache
after the tokens before them (None at the start of a text, or where it keeps none), and by name with

    span     tokens that each token may look back on, itself included
    output   False: only the state is wanted

It returns y [B, T, D] (None without `output`), the new fast weights and the new cache, and changes nothing in place.
Fast weights are a tensor [B, …] in float32 at least. A cache is a named tuple of tensors [B, …] with a method
`newest(keep)`, as `KVCache` and `ConvTail`. The layer called `out_proj` starts at zero, so that a new block changes
nothing.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError
from torch import nn

from reverie.errors import UserError
from reverie.named import find_named, is_named


class MixerKind(NamedTuple):
    """A kind of mixer, and what a block makes of it."""

    module: Callable[..., nn.Module]
    settings: type[BaseModel] | None = None  # of its own
    fast_weights: bool = True  # it keeps a memory that outlives the window
    mlp: bool = True  # an MLP follows in the block

    def build(self, config: Any, settings: Any) -> nn.Module:
        """The module for a model's sizes.

        Args:
            config: `HybridConfig`.
            settings: values of the mixer's own settings.
        """
        return self.module(config) if self.settings is None else self.module(config, self.settings(**settings))


MIXERS: dict[str, MixerKind] = {}


def register_mixer(
    name: str, settings: type[BaseModel] | None, module: type[nn.Module], *, fast_weights: bool = True
) -> None:
    """Add a mixer, which layer patterns and `insert_fast_weights` then name.

    Args:
        settings: its own ones, a pydantic model; `model.mixers.NAME` of a recipe has their values. None: it has none.
        module: called with the model's `HybridConfig`, and with `settings` if there are any.
        fast_weights: False for one that keeps nothing but a cache.

    Raises:
        UserError: the name is taken, or `module` is no module.
    """
    if name in MIXERS:
        raise UserError(f"there is a mixer {name!r} already")
    if not (isinstance(module, type) and issubclass(module, nn.Module)):
        raise UserError(f"mixer {name} must be a class of torch.nn.Module, got {module!r}")
    if settings is not None and not (isinstance(settings, type) and issubclass(settings, BaseModel)):
        raise UserError(f"the settings of mixer {name} must be a pydantic model, got {settings!r}")
    MIXERS[name] = MixerKind(module, settings, fast_weights)


def mixer_kind(name: str) -> MixerKind:
    """The mixer of this name. One of "module:Class" is imported; its class may have settings, called `Config`.

    Raises:
        UserError: there is none.
    """
    if name not in MIXERS:
        if not is_named(name):
            raise UserError(f"there is no mixer {name!r}: use {', '.join(MIXERS)}, or module:Class")
        module = find_named(name, "a mixer")
        register_mixer(
            name, getattr(module, "Config", None), module, fast_weights=getattr(module, "fast_weights", True)
        )
    return MIXERS[name]


def check_settings(name: str, settings: dict[str, Any]) -> None:
    """Raise UserError where a mixer does not have these settings."""
    kind = mixer_kind(name)
    if kind.settings is None:
        if settings:
            raise UserError(f"mixer {name} has no settings, got {', '.join(settings)}")
        return
    try:
        kind.settings(**settings)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, (name, *first["loc"])))
        raise UserError(f"mixers.{where} is wrong: {first['msg']}") from None
