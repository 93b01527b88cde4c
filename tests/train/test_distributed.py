"""Several processes train as one does: same losses, same weights, to rounding; and each goes on from the other's state."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from tiny_recipe import tiny_recipe
from together import together

from reverie.recipe import Recipe
from reverie.train.distributed import ALONE, Parallel, Processes
from reverie.train.loop import train
from reverie.train.stop import Stopped


class Job(NamedTuple):
    recipe: Recipe
    out: Path
    parallel: Parallel | None
    stop_at: int | None = None
    resume: bool = False


def run(processes: Processes, job: Job) -> list[float]:
    """The losses of the steps, where they are reported."""
    losses: list[float] = []

    def report(progress: Any, loss: float) -> None:
        losses.append(loss)
        if progress.step == job.stop_at:
            signal.raise_signal(signal.SIGTERM)

    try:
        train(job.recipe, job.out, resume=job.resume, report=report, processes=replace(processes, parallel=job.parallel))
    except Stopped as stopped:
        assert stopped.step == job.stop_at
    return losses


def run_all(processes: Processes, jobs: list[Job]) -> list[list[float]]:
    return [run(processes, job) for job in jobs]


def test_spike(tmp_path: Path):
    recipe = tiny_recipe()
    alone = run(ALONE, Job(recipe, tmp_path/"alone", None))
    jobs = [Job(recipe, tmp_path/"ddp", "ddp"), Job(recipe, tmp_path/"fsdp", "fsdp"), Job(recipe, tmp_path/"half", "fsdp", 3)]
    import time
    t=time.time()
    first, *others = together(2, run_all, jobs)
    print(time.time()-t)
    print(alone); print(first); print(others)
    print([sorted(p.name for p in (tmp_path/n).iterdir()) for n in ("ddp","fsdp","half")])
    t=time.time()
    import shutil
    shutil.copytree(tmp_path/"half", tmp_path/"half2")
    shutil.copytree(tmp_path/"half", tmp_path/"half1")
    jobs = [Job(recipe, tmp_path/"half2", "ddp", None, True), Job(recipe, tmp_path/"half", "fsdp", None, True)]
    print(together(4, run_all, jobs)[0])
    print(time.time()-t)
    print(run(ALONE, Job(recipe, tmp_path/"half1", None, None, True)))
    assert 0
