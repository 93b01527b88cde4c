"""A function in several processes that form a group, as under torchrun; forked, so that they import nothing."""

from __future__ import annotations

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

import pytest
import torch.distributed.checkpoint
import torch.distributed.fsdp
import torch.distributed.tensor  # what the processes would import, each

from reverie.train.distributed import Processes, joined

_fork = multiprocessing.get_context("fork")
_LIMIT_S = 100


def together(world_size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What function(processes, *arguments) returns in every process, in order of ranks."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    children: dict[Any, Any] = {}
    try:
        for rank in range(world_size):
            ours, theirs = _fork.Pipe(duplex=False)
            child = _fork.Process(target=_join, args=(theirs, rank, world_size, port, function, arguments))
            child.start()
            theirs.close()
            children[ours] = child
        return _results(list(children))
    finally:
        for child in children.values():
            child.kill()
            child.join()


def _results(pipes: list[Connection]) -> list[Any]:
    results, waiting = {}, set(pipes)
    while waiting:
        ready = wait(waiting, timeout=_LIMIT_S)
        if not ready:
            pytest.fail(f"after {_LIMIT_S} s ranks {[pipes.index(pipe) for pipe in waiting]} are not done")
        for pipe in ready:
            assert isinstance(pipe, Connection)
            results[pipe], error = pipe.recv()
            if error:
                pytest.fail(f"rank {pipes.index(pipe)}: {error}")
        waiting -= set(ready)
    return [results[pipe] for pipe in pipes]


def _join(
    pipe: Connection, rank: int, world_size: int, port: int, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    place = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": world_size,
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": port,
    }
    os.environ.update({name: str(value) for name, value in place.items()})
    try:
        with joined("ddp", torch.device("cpu")) as (processes, _):
            assert processes == Processes(rank, world_size, "ddp")
            result = function(processes, *arguments)
        pipe.send((result, None))
    except BaseException:
        pipe.send((None, traceback.format_exc()))
