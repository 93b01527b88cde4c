"""Whether the memory of a model can matter, or its fast-weight layers were never trained."""

from __future__ import annotations

import warnings
from typing import Any
from weakref import WeakSet

from torch import nn

from reverie.errors import UNTRAINED, UntrainedWarning
from reverie.model.fast_weights import FastWeightMixer

_warned_of: WeakSet[Any] = WeakSet()  # Python's own "once" forgets whenever somebody touches its filters


def model_remembers(model: object) -> bool:
    """Whether what the fast weights keep of a text can change what the model says.

    False while the output projections of all fast-weight layers are zero, as they start: in a new `HybridLM`, and in
    layers that `insert_fast_weights` has just inserted; and in a model without fast weights. Fast weights that a model
    of transformers has of its own are taken for trained, and so is a projection that something is wrapped around.

    Args:
        model: a `SleepingModel`, or an object that has one as `sleeping`.
    """
    part: Any = getattr(model, "sleeping", model)
    layers = getattr(part, "layers", None)
    return any(layers is None or _speaks(layers[i]) for i in part.fast_weight_blocks)


def _speaks(block: nn.Module) -> bool:
    mixers = [module for module in block.modules() if isinstance(module, FastWeightMixer)]
    projections = [[*mixer.out_proj.parameters()] for mixer in mixers]
    if not projections or not all(projections):  # a mixer of transformers; one that was quantised
        return True
    weights = (weight for projection in projections for weight in projection)
    return any(weight.is_meta or bool(weight.any()) for weight in weights)  # meta: they are elsewhere


def warn_if_untrained(model: object, *, stacklevel: int) -> bool:
    """Warn once of a model with fast weights that cannot matter, and return whether it is one.

    Args:
        stacklevel: as in `warnings.warn`: 1 for the line that calls this.
    """
    part: Any = getattr(model, "sleeping", model)
    untrained = bool(part.fast_weight_blocks) and not model_remembers(part)
    if untrained and part not in _warned_of:
        _warned_of.add(part)
        warnings.warn(UNTRAINED, UntrainedWarning, stacklevel=stacklevel + 1)
    return untrained
