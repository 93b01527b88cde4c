"""Provenance of a result: the machine, and the commit of the code."""

import contextlib
import os
import platform
import subprocess
from collections import Counter
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict

COMMIT = "REVERIE_COMMIT"  # environment variable


class Hardware(BaseModel):
    """The machine that a run ran on, without the name of a person, a host or a folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cpu: str
    cores: int
    threads: int
    memory_gib: float | None
    gpu: str | None
    python: str
    torch: str
    platform: str


def hardware() -> Hardware:
    """This machine, as far as it bears on results and times."""
    gpus = Counter(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    names = [name if count == 1 else f"{count} × {name}" for name, count in gpus.items()]
    return Hardware(
        cpu=_cpu_name(),
        cores=os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        memory_gib=_memory_gib(),
        gpu=", ".join(names) or None,
        python=platform.python_version(),
        torch=torch.__version__,
        platform=f"{platform.system()} {platform.machine()}",
    )


def commit_id() -> str:
    """The commit of the checkout this package runs from, `-dirty` if the package differs from it.

    Where there is no checkout, what the environment variable REVERIE_COMMIT says; else "unknown".
    """
    package = Path(__file__).resolve().parents[1]
    commit = _git(package, "rev-parse", "--short=10", "HEAD")
    # A package installed below some other repository is not part of it.
    if commit is None or _git(package, "rev-parse", "--show-prefix") != f"{package.name}/":
        return os.environ.get(COMMIT, "unknown")
    return f"{commit}-dirty" if _git(package, "status", "--porcelain", "--", ".") else commit


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name") and (name := line.partition(":")[2].strip()):
                return name
    return platform.processor() or platform.machine() or "unknown"


def _memory_gib() -> float | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (AttributeError, ValueError, OSError):  # not on every system
        return None


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
