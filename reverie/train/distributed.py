"""Training by several processes: who they are, what they tell each other, and one model among all of them.

DDP and FSDP2 are PyTorch's own. Both act where a module's forward begins and ends, and both average gradients over the
processes; so the rollout with its loss is one forward here, and losses are weighted such that the average is the
gradient of the whole batch.
"""

import contextlib
import gc
import os
import signal
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from reverie.errors import UserError
from reverie.interrupts import Stopped, ended_by_signals
from reverie.model import LanguageModel
from reverie.train.torchrun import started_by_torchrun

Parallel = Literal["ddp", "fsdp"]
Result = TypeVar("Result")


@dataclass(frozen=True)
class Processes:
    """This process among those that train one model together. Alone it is all of them, and nothing is communicated.

    What takes part in a collective is called by all of them, in the same order.
    """

    rank: int = 0
    world_size: int = 1
    parallel: Parallel | None = None  # None: alone

    @property
    def is_first(self) -> bool:
        """True if it is the one that reports and writes."""
        return self.rank == 0

    def share(self, count: int) -> range:
        """This process's part of range(count): in order of ranks, as even as can be."""
        return range(count * self.rank // self.world_size, count * (self.rank + 1) // self.world_size)

    def sum(self, values: Sequence[float]) -> list[float]:
        """The sum over the processes, entry by entry."""
        return self._reduced(values, dist.ReduceOp.SUM) if self.parallel else list(values)

    def agree(self, request: signal.Signals | None, *, lacking: bool) -> tuple[signal.Signals | None, int | None]:
        """The signal that any of them was asked to stop by, and the rank of one that lacks what the next step needs."""
        mine = [request or 0, self.rank + 1 if lacking else 0]
        number, rank = self._reduced(mine, dist.ReduceOp.MAX) if self.parallel else mine
        return signal.Signals(int(number)) if number else None, int(rank) - 1 if rank else None

    def gather(self, item: Result) -> list[Result]:
        """The item of every process, in order of ranks."""
        if not self.parallel:
            return [item]
        items: list[Any] = [None] * self.world_size
        dist.all_gather_object(items, item)
        return items

    def wait(self) -> None:
        """Until all have come here."""
        self.sum([0])  # not `barrier`, which with CUDA would go through the GPU

    def _reduced(self, values: Sequence[float], operation: dist.ReduceOp.RedOpType) -> list[float]:
        # On the CPU, by gloo: these numbers steer the CPU, and would otherwise wait for the GPU to come by.
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total, operation)
        return total.tolist()


ALONE = Processes()


@contextlib.contextmanager
def joined(parallel: Parallel, device: torch.device) -> Iterator[tuple[Processes, torch.device]]:
    """This process among those that torchrun has started, as its environment variables say, and the device it uses.

    Raises:
        UserError: there are more processes than GPUs.
    """
    if not started_by_torchrun():
        yield ALONE, device
        return
    if device.type == "cuda":
        check_gpus(int(os.environ["LOCAL_WORLD_SIZE"]))
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    with ended_by_signals():  # which would otherwise be heard once the others have come; they may have died
        _enter_group(backend)
    try:
        yield Processes(dist.get_rank(), dist.get_world_size(), parallel), device
    except Stopped as stopped:
        traceback.clear_frames(stopped.__traceback__)  # in which the model still is
        _leave_group()
        raise
    # After another error not at all: the others may be in a collective that this process will never enter.
    _leave_group()


def _enter_group(backend: str) -> None:
    """Wait for the others, and connect with them."""
    store, rank, world_size = next(rendezvous("env://"))
    if os.environ.get("GROUP_WORLD_SIZE", "1") == "1":
        # The store may be the one from before a restart, with the addresses of dead processes (PyTorch issue 135712).
        # On several nodes the number of restarts is no way to tell, since each node counts its own.
        store = PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size)


def _leave_group() -> None:
    """Once nothing of DDP is left. Its reducers must not be the last to hold the group.

    They let go of it with the GIL in hand. The group's destructor then waits for its threads, and one of them may wait
    for the GIL, to free a tensor that was reduced: this process would never end.
    """
    gc.collect()  # modules of DDP are in cycles
    dist.destroy_process_group()


def check_gpus(processes: int) -> None:
    """Raises UserError if they do not have a GPU each."""
    if processes > torch.cuda.device_count():
        raise UserError(
            f"{processes} processes need a GPU each, and there are {torch.cuda.device_count()}: start as many, or "
            "train on the CPU"
        )


def check_batch(batch_size: int, processes: int) -> None:
    """Raises UserError if they do not have an example each."""
    if batch_size < processes:
        raise UserError(
            f"train.batch_size is {batch_size}, but it must be at least {processes}, the number of "
            "processes, which share out the examples of each step"
        )


class ParallelModel:
    """A model that the processes train together: whole in each of them (DDP), or its parameters shared out (FSDP).

    Under FSDP each block, and what is outside the blocks, is gathered when a step first needs it and stays until the
    gradients are there, which are then reduced once. To let go of a block after use, as is usual, would gather it anew
    for every pass over every window, and again for their backward: about 2 · W · N times a step, not once. It would not
    help with the gradients either, which autograd sums over all passes before anyone sees them. So parameters and
    gradients are whole on each device during a step; optimiser states never are, nor anything between steps.
    """

    def __init__(self, model: LanguageModel, device: torch.device | str = "cpu", processes: Processes = ALONE) -> None:
        self.model, self.processes = model, processes
        self._module: nn.Module = _Applied(model)
        self._trainable: list[bool] = []
        if processes.parallel == "fsdp":
            _shard(self._module, model, torch.device(device).type)
        else:
            model.to(device)

    def backward(self, loss: Callable[[LanguageModel], Tensor], *, alike: bool = True) -> float:
        """Leave in the parameters the gradients of loss(model), averaged over the processes; returns the own loss.

        Args:
            alike: whether all processes run the same blocks in the same order. Then FSDP reduces gradients while others
                are still computed; else when all are there, since processes would not agree on which come first.
        """
        if self.processes.parallel == "ddp":
            self._replicate()
        late = self.processes.parallel == "fsdp" and not alike
        module: Any = self._module
        if late:
            module.set_requires_gradient_sync(False)
        value = module(loss)
        value.backward()
        if late:
            module.set_requires_gradient_sync(True)
            module(_nothing).backward()
        self._let_go()
        return value.item()

    @torch.no_grad()
    def run(self, function: Callable[[LanguageModel], Result]) -> Result:
        """function(model) without gradients; in it, no process waits for what the others do."""
        if self.processes.parallel != "fsdp":
            return function(self.model)

        def gathered(model: LanguageModel) -> Result:
            for part in self._shards():
                part.unshard()
            return function(model)

        result = self._module(gathered)
        self._let_go()
        return result

    def _replicate(self) -> None:
        """DDP takes note of the parameters that train when it is made, so every training stage has its own."""
        trainable = [parameter.requires_grad for parameter in self.model.parameters()]
        if trainable != self._trainable:
            self._module = DistributedDataParallel(_Applied(self.model), gradient_as_bucket_view=True)
            self._trainable = trainable

    def _shards(self) -> list[Any]:
        """The modules with parameters of their own under FSDP."""
        return [module for module in self._module.modules() if hasattr(module, "reshard")]

    def _let_go(self) -> None:
        for part in self._shards():
            part.reshard()


class _Applied(nn.Module):
    """A module whose forward is any function of a model: for engines that know nothing but forward."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[[LanguageModel], Result]) -> Result:
        return function(self.model)


def _nothing(model: LanguageModel) -> Tensor:
    """A loss whose backward pass computes nothing: FSDP reduces the gradients that it finds."""
    return torch.zeros((), requires_grad=True)


def _shard(root: nn.Module, model: LanguageModel, device_type: str) -> None:
    from torch.distributed.device_mesh import init_device_mesh  # a second that no other run need wait
    from torch.distributed.fsdp import fully_shard

    # It warns of views in what blocks return, which must not be written in place; nothing here ever is.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
    mesh = init_device_mesh(device_type, (dist.get_world_size(),))
    for block in model.layers:
        fully_shard(block, mesh=mesh, reshard_after_forward=False)
    fully_shard(root, mesh=mesh, reshard_after_forward=False).set_reshard_after_backward(False)


def whole(tensor: Tensor) -> Tensor:
    """A tensor, put together if it is shared out among the processes."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor  # type: ignore[operator]
