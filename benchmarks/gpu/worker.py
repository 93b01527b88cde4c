"""The process that computes: jobs as JSON lines on its standard input, events and results as JSON lines on its output.

One process does all jobs, so that CUDA starts and blocks compile once. It may die of any of them; `child.py` then
starts another one for the jobs that are left.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kernels
import machine
import model_check
import speed
import torch
import training

from reverie.errors import UserError
from reverie.interrupts import Stopped, sigterm_interrupts
from reverie.recipe import Recipe

Tell = Callable[[dict[str, Any]], None]
STEPS_COMPARED = 8  # of which a CUDA graph takes those behind its warm-up
_compiled_for: Any = None


def describe(device: torch.device, tell: Tell) -> dict[str, Any]:
    return {"machine": machine.describe(device)}


def ceilings(device: torch.device, tell: Tell) -> dict[str, Any]:
    return machine.ceilings(device)


def check_kernels(device: torch.device, tell: Tell, *, backend: str, recipes: list[dict[str, Any]]) -> dict[str, Any]:
    sizes = dict.fromkeys(kernels.sizes_of(_recipe(recipe)) for recipe in recipes)
    return kernels.check_backend(backend, list(sizes), device)


def truth(device: torch.device, tell: Tell, *, recipe: dict[str, Any], path: str) -> dict[str, Any]:
    return model_check.truth(_recipe(recipe), device, Path(path))


def check_way(device: torch.device, tell: Tell, *, recipe: dict[str, Any], path: str) -> dict[str, Any]:
    return model_check.check_way(_recipe(recipe), device, Path(path))


def check_graph(
    device: torch.device, tell: Tell, *, recipe: dict[str, Any], plain: dict[str, Any], folder: str
) -> dict[str, Any]:
    """A way with a CUDA graph against the same way without."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        folders = [Path(place) / name for name in ("graph", "plain")]
        both = zip((recipe, plain), folders, strict=True)
        losses = [model_check.first_steps(_recipe(which), device, out, STEPS_COMPARED) for which, out in both]
        return model_check.same_steps(_recipe(recipe), folders[0], folders[1], losses)


def time_way(
    device: torch.device, tell: Tell, *, recipe: dict[str, Any], folder: str, seconds: float, profile: bool
) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=folder) as place:
        return speed.time_steps(_recipe(recipe), device, Path(place) / "run", seconds, profile=profile)


def time_evaluation(device: torch.device, tell: Tell, *, recipe: dict[str, Any]) -> dict[str, Any]:
    return {"seconds": speed.evaluation_seconds(_recipe(recipe), device)}


def run(device: torch.device, tell: Tell, *, recipe: dict[str, Any], out: str, until: float) -> dict[str, Any]:
    return training.train_until(_recipe(recipe), Path(out), device, until - time.time(), tell)


JOBS: dict[str, Callable[..., dict[str, Any]]] = {
    job.__name__: job
    for job in (describe, ceilings, check_kernels, truth, check_way, check_graph, time_way, time_evaluation, run)
}


def main() -> None:
    """Until the input ends. Whatever libraries print goes to standard error."""
    device, answers = torch.device(sys.argv[1]), os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    tell = _teller(answers)
    if device.type == "cuda":
        torch.cuda.init()
    tell({"ready": True})
    for line in sys.stdin:
        job = json.loads(line)
        name = job.pop("do")
        begun = time.perf_counter()
        outcome = _outcome(JOBS[name], device, tell, job)
        tell(outcome | {"seconds": time.perf_counter() - begun})
        if outcome.get("kind") in ("memory", "failed") and not _usable(device):
            sys.exit("the device does not answer any more")


def _outcome(job: Callable[..., dict[str, Any]], device: torch.device, tell: Tell, arguments: dict) -> dict[str, Any]:
    """{"result": …}, or {"kind": how it failed, "error": a sentence}."""
    try:
        with sigterm_interrupts():
            return {"result": job(device, tell, **arguments)}
    except UserError as error:
        return {"kind": "refused", "error": str(error)}
    except KeyboardInterrupt as stop:
        return {"kind": "stopped", "error": str(stop) or "interrupted", "saved": isinstance(stop, Stopped)}
    except Exception as error:
        traceback.print_exc()
        memory = isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error)
        reason = (str(error).strip().splitlines() or [""])[0]
        return {"kind": "memory" if memory else "failed", "error": f"{type(error).__name__}: {reason}"[:500]}
    finally:
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _usable(device: torch.device) -> bool:
    """After an illegal access no call to CUDA succeeds in this process."""
    try:
        return bool((torch.ones(1, device=device) + 1).item() == 2)
    except Exception:
        return False


def _teller(answers: Any) -> Tell:
    def tell(event: dict[str, Any]) -> None:
        print(json.dumps(event), file=answers, flush=True)

    return tell


def _recipe(content: dict[str, Any]) -> Recipe:
    """A job's recipe. What was compiled for other shapes or kernels is forgotten: there is a limit to variants of one
    piece of code, beyond which it would silently run uncompiled. Numbers of passes share theirs. Products of float32
    are made as training makes them, so that what is checked and timed is what runs."""
    recipe = Recipe.model_validate(content)
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high" if recipe.train.dtype == "bfloat16" else "highest")
    if recipe.train.compile:
        global _compiled_for
        shapes = (recipe.model, recipe.train.batch_size, recipe.sleep.window_size, recipe.train.dtype)
        if _compiled_for not in (None, shapes):
            torch._dynamo.reset()
        _compiled_for = shapes
    return recipe


if __name__ == "__main__":
    main()
