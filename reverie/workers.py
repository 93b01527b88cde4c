"""Prefetching: worker processes compute results ahead of time, which come back in order."""

import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from multiprocessing import get_context, parent_process, resource_tracker
from multiprocessing.context import BaseContext
from typing import Any, TypeVar

import torch

from reverie.errors import UserError
from reverie.quiet import quietly

AHEAD = 2  # results that are prefetched, per worker

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@contextmanager
def made_ahead(
    make: Callable[[_Item], _Result],
    items: Sequence[_Item],
    workers: int,
    *,
    if_killed: str,
    context: BaseContext | None = None,
) -> Iterator[Iterator[_Result]]:
    """Yield an iterator over `make(item)` in order, computed by `workers` processes, which end with the context.

    Each runs one thread, ignores Ctrl-C, and ends when this process is gone, however that came about.

    Args:
        make: picklable; it is sent to each process once.
        if_killed: the error's sentence if a worker is killed.
        context: how processes start; "spawn" if absent, which is safe beside threads.

    Raises:
        UserError: a worker was killed. What `make` raises is raised as it is.
    """
    context = context or get_context("spawn")
    if sys.platform != "win32" and context.get_start_method() != "fork":
        resource_tracker.ensure_running()  # else the first worker would start it, and unblock Ctrl-C afterwards
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin_worker, initargs=(make,))
    try:
        yield _in_order(pool, items, AHEAD * workers)
    except BrokenProcessPool as error:
        raise UserError(if_killed) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _in_order(pool: Executor, items: Sequence[Any], ahead: int) -> Iterator[Any]:
    """Results in the order of `items`, of which `ahead` are submitted but not yet yielded."""
    with _interrupts_blocked():
        waiting = deque(pool.submit(_make_one, item) for item in items[:ahead])
    for i in range(len(items)):
        result = waiting.popleft().result()
        if i + ahead < len(items):
            with _interrupts_blocked():
                waiting.append(pool.submit(_make_one, items[i + ahead]))
        yield result


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Block Ctrl-C in this process, and for good in those started here, even while they are still importing."""
    if sys.platform == "win32":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# In a worker process.

_make: Callable[[Any], Any]


_until_its_end = ExitStack()


def _begin_worker(make: Callable[[Any], Any]) -> None:
    """Set up a worker process, which will run `make`."""
    global _make
    _make = make
    torch.set_num_threads(1)  # else threads of several workers would fight for the cores
    _until_its_end.enter_context(quietly())  # bars of several processes would overwrite each other
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a fork has its parent's handler
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _make_one(item: Any) -> Any:
    return _make(item)


def _end_with_parent() -> None:
    """End this process when its parent is gone; run in a thread."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
