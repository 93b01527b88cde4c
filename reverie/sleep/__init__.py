"""Sleep: N passes over a full window, the result in fast weights, then the window is forgotten."""

from reverie.sleep.algorithm import (
    Context,
    SleepConfig,
    forget,
    plan,
    read,
    rollout,
    rollout_hidden,
    sleep,
    wake,
)

__all__ = ["Context", "SleepConfig", "forget", "plan", "read", "rollout", "rollout_hidden", "sleep", "wake"]
