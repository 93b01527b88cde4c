"""The quantities of `reverie.bench.account` and scaling_traffic.py, counted while small models really train."""

from __future__ import annotations

import gc
import json
import os
import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.multiprocessing.spawn import spawn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from reverie.bench.account import Work
from reverie.bench.count import LiveBytes, count_flops, flop_counter
from reverie.model import LanguageModel, new_model
from reverie.recipe import OptimConfig
from reverie.sleep import rollout
from reverie.train.distributed import Parallel, ParallelModel, Processes
from reverie.train.optim import build_optimizers

OPTIM = OptimConfig(muon_lr=1e-3, adamw_lr=1e-3)
WHOLE = {  # of collectives: where their full tensor stands among the arguments
    "_allgather_base_": ("gathered", 0),
    "_reduce_scatter_base_": ("scattered", 1),
    "allreduce_": ("reduced", 0),
    "alltoall_base_": ("exchanged", 1),
}


def batch_of(work: Work) -> tuple[Tensor, Tensor]:
    """Tokens and loss mask: the labels stand at the end of labelled windows, the same number in each."""
    random, L = torch.Generator().manual_seed(0), work.sleep.window_size
    length = work.tokens or L * len(work.labelled)
    tokens = torch.randint(work.model.vocab_size, (work.batch, length), generator=random)
    mask = torch.zeros_like(tokens, dtype=torch.bool)
    each = work.scored // (work.batch * sum(work.labelled))
    for window, labelled in enumerate(work.labelled):
        end = window * L + work.length(window)
        mask[:, end - each : end] = labelled
    return tokens, mask


def loss_of(work: Work, model: LanguageModel) -> Tensor:
    tokens, mask = batch_of(work)
    logits, _ = rollout(model, tokens, mask, work.sleep, backward=work.backward)
    return F.cross_entropy(logits.float(), tokens[mask])


def operations(work: Work) -> tuple[int, int]:
    """Operations of the forward, and of the backward with what it makes again."""
    model, counter = new_model(work.model, 0), flop_counter()
    with counter:
        loss = loss_of(work, model)
        forward = counter.get_total_flops()
        loss.backward()
    return forward, counter.get_total_flops() - forward


def optimisers(work: Work) -> tuple[int, int]:
    """Bytes of the optimisers' states, and operations of Muon in a step."""
    model = new_model(work.model, 0)
    muon, adamw = build_optimizers(model, OPTIM)
    loss_of(work, model).backward()
    flops = count_flops(muon.step)
    adamw.step()
    states = tree_leaves([optimizer.state_dict()["state"] for optimizer in (muon, adamw)])
    return sum(x.nbytes for x in states if isinstance(x, Tensor)), flops


def live_bytes(work: Work, dtype: torch.dtype | None = None) -> tuple[int, int]:
    """Bytes alive between forward and backward, and the most alive in the backward, gradients with it.

    With a `dtype` under autocast to it, the casts of parameters left out.
    """
    model = new_model(work.model, 0)
    loss_of(work, model)  # rotary tables are made once
    with LiveBytes() as live:
        with nullcontext() if dtype is None else torch.autocast("cpu", dtype):
            loss = loss_of(work, model)
        gc.collect()
        kept = live.bytes
        live.peak = 0
        loss.backward()
    casts = 0 if dtype is None else sum(p.numel() * dtype.itemsize for p in model.parameters() if p.ndim == 2)
    return kept - casts, live.peak


class _Payload(TorchDispatchMode):
    """Bytes that go through collectives."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d" and func._opname in WHOLE:
            name, place = WHOLE[func._opname]
            self.bytes[name] += sum(x.nbytes for x in tree_leaves(args[place]))
        return func(*args, **(kwargs or {}))


def traffic(cases: Sequence[tuple[Work, Parallel, bool]]) -> list[dict[str, int]]:
    """Two processes train one step of each: (work, how, whether every run gathers its blocks anew).

    Returns payloads in bytes, "gathered", "scattered" and "reduced" of one process, "exchanged" of both together; and
    the most alive in one of them as "peak", gathered parameters left out.
    """
    with tempfile.TemporaryDirectory() as folder:
        spawn(_train_two, args=(folder, cases), nprocs=2)
        first, second = (json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(2))
    return [
        mine | {"exchanged": mine["exchanged"] + other["exchanged"]} for mine, other in zip(first, second, strict=True)
    ]


def _train_two(rank: int, folder: str, cases: Sequence[tuple[Work, Parallel, bool]]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found = [_payload(Processes(rank, 2, parallel), work, every_run) for work, parallel, every_run in cases]
    (Path(folder) / f"{rank}.json").write_text(json.dumps(found))
    dist.barrier()
    os._exit(0)  # all is written: taking down gloo's threads at exit now and then aborts the process


def _payload(processes: Processes, work: Work, every_run: bool) -> dict[str, int]:
    model = new_model(work.model, 0)
    parallel = ParallelModel(model, processes=processes)
    if every_run:
        for block in model.layers:
            block.set_reshard_after_forward(True)  # type: ignore[operator]
            block.set_reshard_after_backward(True)  # type: ignore[operator]
    muon, _ = build_optimizers(model, OPTIM)
    _counted_step(parallel, muon, work)  # the first step of DDP arranges what later ones do
    payload, live = _counted_step(parallel, muon, work)
    return {name: payload.bytes[name] for name, _ in WHOLE.values()} | {"peak": live.peak}


def _counted_step(parallel: ParallelModel, muon: torch.optim.Optimizer, work: Work) -> tuple[_Payload, LiveBytes]:
    payload, live = _Payload(), LiveBytes()
    with payload:
        with live:
            parallel.backward(lambda model: loss_of(work, model))
        muon.step()
    muon.zero_grad()
    return payload, live
