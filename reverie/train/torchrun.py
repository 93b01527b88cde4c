"""Environment variables by which torchrun, or `reverie train --nproc`, tells its processes who they are."""

import os


def started_by_torchrun() -> bool:
    """True if this is one of several processes that train together."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_first() -> bool:
    """True if this process is alone, or the one of them that talks to the user."""
    return not started_by_torchrun() or os.environ["RANK"] == "0"


def restarted() -> bool:
    """True if the processes were started again after one of them had died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
