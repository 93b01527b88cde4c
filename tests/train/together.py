"""A function in several processes that form a group, as under torchrun, at the price of importing everything once."""

from __future__ import annotations

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

import pytest
import torch

from reverie.train.distributed import Processes, joined

_forked = multiprocessing.get_context("forkserver")
_forked.set_forkserver_preload(
    ["pytest", "reverie.train.loop", "torch.distributed.checkpoint", "torch.distributed.fsdp", "torch.distributed.tensor"]
)
_LIMIT_S = 100


def together(world_size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """function(processes, *arguments) of every process, in order of ranks. The function is one of a module."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    children: dict[Any, Any] = {}
    for rank in range(world_size):
        ours, theirs = _forked.Pipe(duplex=False)
        child = _forked.Process(target=_join, args=(theirs, rank, world_size, port, function, arguments))
        child.start()
        theirs.close()
        children[ours] = child
    try:
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
    torch.set_num_threads(1)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    try:
        with joined("ddp", torch.device("cpu")) as (processes, _):
            assert processes == Processes(rank, world_size, "ddp")
            pipe.send((function(processes, *arguments), None))
    except BaseException:
        pipe.send((None, traceback.format_exc()))
