"""Sleep: N passes over a full window, the result in fast weights, then the window is forgotten."""

from reverie.sleep.algorithm import consolidate, forget, read, sleep, wake
from reverie.sleep.config import MOST_PASSES, SleepConfig, plan
from reverie.sleep.context import Context
from reverie.sleep.rollouts import rollout, rollout_hidden

__all__ = [
    "MOST_PASSES",
    "Context",
    "SleepConfig",
    "consolidate",
    "forget",
    "plan",
    "read",
    "rollout",
    "rollout_hidden",
    "sleep",
    "wake",
]
