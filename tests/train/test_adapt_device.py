"""Training an adapter elsewhere than on the CPU: what the losses need is where the model is.

There need be no such device here: a mode of torch's computes shapes and devices alone, and refuses to mix devices.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from test_adapt_loss import L, batch_of, remembering
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from reverie.recipe.adapt import LossConfig
from reverie.sleep import SleepConfig
from reverie.train import adapt_loss as adapt_loss_module
from reverie.train.adapt_loss import adapt_loss
from reverie.train.texts import TextBatch

pytestmark = pytest.mark.hf

THERE = torch.device("meta")


@pytest.fixture
def mode(monkeypatch: pytest.MonkeyPatch) -> FakeTensorMode:
    """With what it cannot do: subclasses, autocast there, moving there, and decisions that hang on a tensor."""
    stay = torch.Tensor.to

    def to(self: Tensor, *given: Any, **named: Any) -> Tensor:
        moves = any(isinstance(x, torch.device) and x == THERE for x in given)
        return torch.ops.aten._to_copy(self, device=THERE) if moves else stay(self, *given, **named)

    def consolidate(after: Any, x: Tensor, context: Any, config: SleepConfig) -> Any:
        h, embedded = x.chunk(2, dim=-1)
        state = after.blocks(h, context.state, 0, after.num_blocks, span=L, embedded=embedded)[1]
        return context._replace(state=state)

    monkeypatch.setattr(torch.Tensor, "to", to)
    monkeypatch.setattr(torch.Tensor, "as_subclass", lambda self, kind: self)
    monkeypatch.setattr(torch, "autocast", lambda *given, **named: nullcontext())
    monkeypatch.setattr(adapt_loss_module, "consolidate", consolidate)
    return FakeTensorMode(shape_env=ShapeEnv(allow_scalar_outputs=True, allow_dynamic_output_shape_ops=True))


@pytest.mark.parametrize("sampled", [0, 5])
@pytest.mark.parametrize("alone", [True, False])
def test_a_batch_is_learnt_from_where_the_model_is(mode: FakeTensorMode, alone: bool, sampled: int) -> None:
    def fake(x: Tensor) -> Tensor:
        return mode.from_tensor(x.detach(), static_shapes=True)

    model = remembering()
    tables = [table for part in model.lm.modules() for table in (part._parameters, part._buffers)]
    weights = {id(x): fake(x) for table in tables for x in table.values() if x is not None}
    known = batch_of(model, 1)
    asked = [one._replace(states=fake(one.states), taught=None) for one in known.asked]
    batch = TextBatch(fake(known.tokens), fake(known.states), asked)
    config = LossConfig(sampled_vocabulary=sampled)
    with mode:
        for table in tables:
            for name, x in table.items():
                if x is not None:
                    moved = torch.ops.aten._to_copy(weights[id(x)], device=THERE)
                    table[name] = nn.Parameter(moved) if isinstance(x, nn.Parameter) else moved
        loss, told = adapt_loss(
            model,
            0,
            batch,
            None,
            SleepConfig(window_size=L),
            config,
            alone=alone,
            count=1.0,
            generator=torch.Generator().manual_seed(0),
        )
        loss.backward()
    assert {x.device for x in (loss, *told.values())} == {THERE}
    assert all(p.grad is None or p.grad.device == THERE for p in model.parameters())
