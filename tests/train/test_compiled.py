"""`train.compile` changes the speed: losses, gradients and steps are those of the plain blocks, to rounding."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_recipe import tiny_recipe

from reverie.errors import UserError
from reverie.model import new_model
from reverie.train.compiled import compile_blocks

pytestmark = pytest.mark.slow

# In a process of its own: the annotations that are checked here cannot be compiled. All of what compiling does but the
# last part, PyTorch's making of machine code, which would take a minute; `reverie bench train` checks its loss curve.
SCRIPT = """
import sys
import torch
from tiny_recipe import tiny_recipe
from reverie.results.evaluate import evaluate
from reverie.model import new_model
from reverie.train.data import make_batch
from reverie.train import compiled as compiling
from reverie.train.compiled import compile_blocks, uncompiled
from reverie.train.optim import build_optimizers
from reverie.train.schedule import Schedule
from reverie.train.step import take_step

compiling.BACKEND = "aot_eager"
recipe = tiny_recipe(model={"layers": ["attn", "gdn"]}, sleep={"num_sleep_passes": 2})
again = tiny_recipe(
    model={"layers": ["attn", "gdn"]}, sleep={"num_sleep_passes": 2}, train={"activation_checkpoint": "window"}
)
plain, compiled = new_model(recipe.model, 0), new_model(recipe.model, 0)
compile_blocks(compiled)
sides = [(model, build_optimizers(model, recipe.optim)) for model in (plain, compiled)]
for step in range(3):
    how = again if step == 2 else recipe
    batch, schedule = make_batch(how.task, how.train, step), Schedule.of(how)
    ours, theirs = (take_step(schedule, model, optimizers, step, batch) for model, optimizers in sides)
    assert abs(ours.loss - theirs.loss) < 1e-5 * abs(theirs.loss), (step, ours, theirs)
    assert abs(ours.gradient_norm - theirs.gradient_norm) < 1e-3 * theirs.gradient_norm, (step, ours, theirs)
assert torch._dynamo.utils.counters["frames"]["ok"] > 2
assert not torch._dynamo.utils.counters["graph_break"], torch._dynamo.utils.counters["graph_break"]
for (name, p), q in zip(plain.named_parameters(), compiled.parameters(), strict=True):
    assert torch.allclose(p, q, rtol=1e-2, atol=1e-4), name
assert [name for name, _ in compiled.named_parameters()] == list(plain.state_dict())
frames = torch._dynamo.utils.counters["frames"]["total"]
with uncompiled(), torch.no_grad():
    evaluate(compiled, recipe.task, recipe.sleep, 8)
assert torch._dynamo.utils.counters["frames"]["total"] == frames
"""


def test_the_same_steps():
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr[-3000:]


def test_no_compiler_is_said_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    model = new_model(tiny_recipe().hybrid, 0)
    with pytest.raises(UserError, match=r"^train\.compile needs a C\+\+ compiler, and there is no no-such-compiler: "):
        compile_blocks(model)
    with torch.no_grad():
        model(torch.zeros(1, 2, dtype=torch.long))  # as it was
