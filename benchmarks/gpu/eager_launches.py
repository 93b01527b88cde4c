"""How many kernels an eager step launches: counted on a model of the same blocks, windows and passes, made tiny.

The number does not depend on widths or the batch. What is counted are operations on a CPU that make or change a tensor;
on a GPU some of them are two kernels, and some are none.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from scaling_formulas import Work
from scaling_measured import loss_of
from torch.utils._python_dispatch import TorchDispatchMode

from reverie.model import new_model


class _Launches(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # A view is an alias that is not written to.
        view = any(out.alias_info and not out.alias_info.is_write for out in func._schema.returns)
        self.number += not view
        return func(*args, **(kwargs or {}))


def eager_launches(work: Work, dtype: Literal["float32", "bfloat16"]) -> int:
    """Forward and backward of a step on the "chunked" backend."""
    tiny = work.model.model_copy(
        update={
            "width": 4,
            "mlp_width": 2,
            "num_heads": 1,
            "num_kv_heads": 1,
            "fast_heads": 1,
            "key_size": 2,
            "value_size": 2,
            "backend": "chunked",
        }
    )
    small = work._replace(model=tiny, batch=1, scored=sum(work.labelled))
    model = new_model(tiny, 0)
    loss_of(small, model)  # rotary tables are made once
    with _Launches() as launches:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = loss_of(small, model)
        loss.backward()
    return launches.number
