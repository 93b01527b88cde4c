"""A session whose jobs run in the test's own process, with kernels and failures of the test's choosing."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

FOLDER = Path(__file__).parents[2] / "benchmarks" / "gpu"
sys.path.insert(0, str(FOLDER))
child, export, plan, record, session, worker = (
    importlib.import_module(name) for name in ("child", "export", "plan", "record", "session", "worker")
)
LIMITS = export.Limits(15, 60, 8)
CEILINGS = {"bfloat16_tflops": 790.0, "copy_tb_per_s": 4.3, "launch_us": 5.0}

SMALL = """
name = "small"
[[groups]]
name = "only"
recipe = "rule110/nano"
set = [
  "task.width=4", "task.rollout_steps=1", "task.held_out_fraction=0.0", "sleep.window_size=4",
  "model.width=8", "model.mlp_width=8", "model.num_heads=2", "model.key_size=4", "model.value_size=4",
  "train.batch_size=4", "train.eval_examples=8", "train.depth_curriculum=0.0",
]
variants = [{ name = "n1" }]
steps = 4
"""

Fail = Callable[[str, dict[str, Any]], None]


class Inline:
    """As `Child`, without a process. `fail` may raise in the place of a job."""

    pid = None

    def __init__(self, fail: Fail) -> None:
        self.fail = fail
        self.done: list[str] = []

    def do(self, job: str, *, limit: float, on_event: Any = lambda event: None, **arguments: Any) -> dict[str, Any]:
        self.done.append(job)

        def run(device: torch.device, tell: Any, **arguments: Any) -> dict[str, Any]:
            self.fail(job, arguments)
            if arguments.get("profile"):
                raise RuntimeError("a profile takes a second")
            if job == "time_way":
                arguments["seconds"] = 0.0
            if job == "ceilings":
                return CEILINGS
            return worker.JOBS[job](device, tell, **arguments)

        outcome = worker._outcome(run, torch.device("cpu"), on_event, arguments)
        if "result" not in outcome:
            raise child.JobFailed(outcome["kind"], outcome["error"])
        return {**outcome["result"], "job_s": 0.0}

    def close(self) -> None:
        pass


def small_session(folder: Path, fail: Fail = lambda job, arguments: None, text: str = SMALL) -> Any:
    """Not run yet; `.child.done` lists the jobs."""
    folder.mkdir(exist_ok=True)
    (folder / "small.toml").write_text(text, encoding="utf-8")
    made = session.Session(plan.load_plan(folder / "small.toml"), folder / "state", "cpu", record.Budget(300), [])
    made.child = Inline(fail)
    return made
