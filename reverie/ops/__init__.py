"""Update rules of the fast weights: one specification, several backends."""

from reverie.ops.dispatch import (
    BACKENDS,
    RULES,
    delta_rule,
    find_rule,
    gated_delta_rule,
    hebbian_rule,
    register_rule,
    run_rule,
)

__all__ = [
    "BACKENDS",
    "RULES",
    "delta_rule",
    "find_rule",
    "gated_delta_rule",
    "hebbian_rule",
    "register_rule",
    "run_rule",
]
