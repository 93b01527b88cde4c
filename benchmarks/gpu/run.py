"""A plan of runs on one GPU, in calls of limited time, on a machine that may have no network.

    python benchmarks/gpu/run.py benchmarks/gpu/plans/rule110.toml --state state --out out --seconds 570
    python benchmarks/gpu/run.py benchmarks/gpu/plans/rule110.toml --state state --out out --resume-from carried

checks the kernels, measures the ways to run, trains in the fastest one that is right until the time is up, and leaves
cards, curves, figures and the state, in parts, in --out. The next call goes on: from the state folder, or from the
parts. docs/GPU.md has more.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 2 where the user is told, in one sentence, what is wrong."""
    begun = time.monotonic()  # wheels that are unpacked and libraries that are imported count as well
    given = _arguments(arguments)
    paths = [str(ROOT)]
    if given.wheels is not None:
        try:
            paths.insert(0, str(install(given.wheels, given.state / "site")))
        except (OSError, ValueError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    sys.path[:0] = [path for path in paths if path not in sys.path]
    # Only now: reverie needs what the wheels may have brought.
    errors: Any = importlib.import_module("reverie.errors")
    try:
        _run(given, paths, begun)
    except errors.UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        print(f"error: {error.name} is not installed: put its wheel into the folder for --wheels", file=sys.stderr)
        return 2
    return 0


def install(wheels: Path, site: Path) -> Path:
    """Unpack the wheels of a folder, once, into a folder of their own. Raises ValueError in one sentence."""
    found = sorted(wheels.glob("*.whl"))
    if not found:
        raise ValueError(f"--wheels: there is no wheel in {wheels}")
    names = "\n".join(f"{path.name} {path.stat().st_size}" for path in found)
    target = site / hashlib.sha256(names.encode()).hexdigest()[:12]
    done = target / ".complete"
    if not done.is_file():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
        command += ["--no-cache-dir", "--upgrade", "--target", str(target), *map(str, found)]
        finished = subprocess.run(command, capture_output=True, text=True)
        if finished.returncode != 0:
            reason = (finished.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
            raise ValueError(f"--wheels: pip could not install them: {reason}")
        done.touch()
    return target


def _run(given: argparse.Namespace, paths: list[str], begun: float) -> None:
    errors, plan, record, session, export = (
        importlib.import_module(name) for name in ("reverie.errors", "plan", "record", "session", "export")
    )
    budget = record.Budget(given.seconds, begun)
    limits = export.Limits(given.part_mib, given.total_mib, given.max_files)
    limits.check()
    device = given.device or ("cuda" if importlib.import_module("torch").cuda.is_available() else "cpu")
    loaded = plan.load_plan(given.plan)
    if given.seconds <= 0:
        raise errors.UserError(f"--seconds must be above 0, got {given.seconds:g}")
    if given.resume_from is not None:
        export.restore(given.resume_from, given.state)
    session.Session(loaded, given.state, device, budget, paths).run(given.out, limits, check_only=given.check_only)


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", metavar="PLAN.toml", type=Path)
    parser.add_argument("--state", type=Path, required=True, help="folder that calls go on from: runs, caches, results")
    parser.add_argument("--out", type=Path, required=True, help="folder for what is to be carried away")
    parser.add_argument("--seconds", type=float, default=570, help="of this call, everything included")
    parser.add_argument("--wheels", type=Path, help="folder of wheels to use, installed without network")
    parser.add_argument("--device", choices=("cuda", "cpu"), help="cuda if there is one")
    parser.add_argument("--resume-from", type=Path, help="folder with what an earlier call left in --out")
    parser.add_argument(
        "--check-only", action="store_true", help="check kernels and model; train nothing, time nothing"
    )
    parser.add_argument("--part-mib", type=float, default=15, help="of a file in --out, at most")
    parser.add_argument("--total-mib", type=float, default=60, help="of all files in --out, at most")
    parser.add_argument("--max-files", type=int, default=8, help="in --out, at most")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
