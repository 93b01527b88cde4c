"""Update rules of the fast weights: one specification, several backends."""

from reverie.ops.dispatch import BACKENDS, delta_rule, gated_delta_rule, hebbian_rule

__all__ = ["BACKENDS", "delta_rule", "gated_delta_rule", "hebbian_rule"]
