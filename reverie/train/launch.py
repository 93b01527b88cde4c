"""`reverie train --nproc N`: N processes of `python -m reverie.train` under PyTorch's elastic agent, as by torchrun.

A process that fails leaves a sentence in the file that the agent gives it for that; all are told here, once.
"""

import json
import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from reverie.errors import ProcessDied, UserError
from reverie.results.checkpoint import checkpoint_step, find_checkpoint
from reverie.train.distributed import check_batch, check_gpus
from reverie.train.torchrun import LAUNCHER

USER_ERROR = 2  # exit codes of a process
STOPPED = {128 + signal.SIGINT: signal.SIGINT, 128 + signal.SIGTERM: signal.SIGTERM}
_PATIENCE_S = 3.0
_STOPPING_S = 300  # for the step that is going, and the checkpoint


def launch(
    arguments: Sequence[str], processes: int, out: Path, device: torch.device, *, batch_size: int, max_restarts: int = 0
) -> None:
    """Train by that many processes, each `python -m reverie.train` with these arguments, until they are done.

    SIGTERM and Ctrl-C go to them, which end as one process would.

    Args:
        out, device, batch_size: what the arguments say: the folder of the run, and what the processes share out.
        max_restarts: how many times all processes start again, from the checkpoint, when one has died.

    Raises:
        UserError: there are too few examples or GPUs for them, or one of them met such an error.
        ProcessDied: one of them was killed, or failed.
        SystemExit: they have stopped on a signal, as its exit code says.
    """
    check_batch(batch_size, processes)
    if device.type == "cuda":
        check_gpus(processes)
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logger = logging.getLogger("torch.distributed.elastic")  # about what is told here in a sentence
    logger.addHandler(logging.NullHandler())
    logger.propagate = False
    os.environ[LAUNCHER] = str(os.getpid())
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(_STOPPING_S))
    try:
        with tempfile.TemporaryDirectory() as words:
            config = LaunchConfig(
                min_nodes=1,
                max_nodes=1,
                nproc_per_node=processes,
                logs_specs=DefaultLogsSpecs(log_dir=words),
                run_id="reverie",
                rdzv_backend="c10d",
                rdzv_endpoint="localhost:0",
                local_addr="localhost",
                max_restarts=max_restarts,
            )
            elastic_launch(config, sys.executable)("-m", "reverie.train", *arguments)
    except SignalException as interruption:
        sys.exit(128 + interruption.sigval)
    except ChildFailedError as error:
        rank, failure = _first(error.failures)
        if failure.exitcode in STOPPED:
            sys.exit(failure.exitcode)
        if failure.exitcode == USER_ERROR and isinstance(failure.message, dict):
            raise UserError(failure.message["message"]) from None
        raise ProcessDied(_how_it_died(rank, processes, failure.exitcode, out)) from None


def report_error(sentence: str) -> bool:
    """Leave the reason why this process fails where its launcher looks for it; false if it has no launcher."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path is None:
        return False
    extra = {"py_callstack": f"error: {sentence}", "timestamp": str(int(time.time()))}
    Path(path).write_text(json.dumps({"message": {"message": sentence, "extraInfo": extra}}), encoding="utf-8")
    return True


def wait_for_the_cause() -> None:
    """Wait before failing: most errors of a process come from another that has died, and that one is the news.

    The launcher ends this process as soon as it has seen the other.
    """
    time.sleep(_PATIENCE_S)


def _first(failures: dict[int, Any]) -> tuple[int, Any]:
    """The process that failed by itself: the others fail by the SIGTERM that its death brings them."""
    ended = {-signal.SIGTERM, 128 + signal.SIGTERM}
    return min(failures.items(), key=lambda item: (item[1].exitcode in ended, item[1].timestamp))


def _how_it_died(rank: int, processes: int, exit_code: int, out: Path) -> str:
    how = f"was killed by {signal.Signals(-exit_code).name}" if exit_code < 0 else f"ended with exit code {exit_code}"
    place = find_checkpoint(out)
    if place is None:
        return f"rank {rank} of {processes} {how}, before there was a checkpoint in {out}"
    step = checkpoint_step(place)
    return f"rank {rank} of {processes} {how}: the checkpoint of step {step} in {out} can be resumed"
