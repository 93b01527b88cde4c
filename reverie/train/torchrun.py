"""Environment variables by which torchrun, or `reverie train --nproc`, tells its processes who they are."""

import os
import signal
import threading
import time

LAUNCHER = "REVERIE_LAUNCHER"
"""Environment variable: the process that `reverie train --nproc` is."""

_LOOK_S = 0.5
_STOPPING_S = 300  # for the step that is going, and the checkpoint


def started_by_torchrun() -> bool:
    """True if this is one of several processes that train together."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_first() -> bool:
    """True if this process is alone, or the one of them that talks to the user."""
    return not started_by_torchrun() or os.environ["RANK"] == "0"


def restarted() -> bool:
    """True if the processes were started again after one of them had died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def end_with_launcher() -> None:
    """From now on, end as by SIGTERM when the process that has started this one is gone: nobody else would end it."""
    launcher = int(os.environ.get(LAUNCHER, os.getppid()))  # which may be gone already

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(_LOOK_S)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_STOPPING_S)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="end with launcher", daemon=True).start()
