"""Several processes train as one does, to rounding: same losses, gradients and weights, whoever has which examples."""

from __future__ import annotations

import contextlib
import functools
import gc
import operator
import signal
import socket
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from same_run import assert_close
from tiny_recipe import tiny_recipe
from together import together
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from reverie.errors import UserError
from reverie.interrupts import Stopped
from reverie.model import HybridLM, LanguageModel, new_model
from reverie.recipe import Recipe
from reverie.results import evaluate
from reverie.sleep import rollout
from reverie.tasks import Batch
from reverie.train import distributed
from reverie.train.data import make_batch, ready_batches
from reverie.train.distributed import ALONE, Parallel, ParallelModel, Processes, joined, whole
from reverie.train.optim import Muon, ShardedMuon
from reverie.train.run import train
from reverie.train.schedule import Schedule
from reverie.train.step import take_step

pytestmark = pytest.mark.slow

BOTH: tuple[Parallel, ...] = ("ddp", "fsdp")


# -- one step, with weights of any size and labels in any place


class Kept(torch.optim.SGD):
    """Leaves the gradients where they are."""

    def step(self, closure: None = None) -> None:
        pass

    def zero_grad(self, set_to_none: bool = True) -> None:
        pass


class Collectives(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        if function.namespace == "c10d":
            self.counts[function.__name__.removeprefix("_").split("_")[0]] += 1
        return function(*arguments, **(options or {}))


def awake(recipe: Recipe) -> HybridLM:
    """A model of random parameters: a new one is the identity with a head of zeros."""
    model = new_model(recipe.hybrid, 0)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=random))
    return model


def scattered_labels(recipe: Recipe, rows: range) -> Batch:
    """In window 0 of rows 6 and 7, all that one of 4 processes has; in window 1 of rows 4 to 7; in none of 0 to 3."""
    batch = make_batch(recipe.task, recipe.train, 0)
    mask = batch.loss_mask.clone()
    mask[:4] = False
    mask[6, 2] = mask[7, 3:6] = True
    batch = batch._replace(loss_mask=mask, targets=batch.tokens.roll(-1, dims=1))
    return Batch(*(x[rows.start : rows.stop] for x in batch))


def gradients(recipe: Recipe, processes: Processes, batch: Callable[[Recipe, range], Batch]) -> dict[str, Tensor]:
    """Of one step, its loss, and what was measured of its passes."""
    model = awake(recipe)
    parallel = ParallelModel(model, "cpu", processes)
    optimizers: list[torch.optim.Optimizer] = [Kept([{"params": model.parameters(), "peak": 0.0}], lr=0.0)]
    own = batch(recipe, processes.share(recipe.train.batch_size))
    step = take_step(Schedule.of(recipe), model, optimizers, 0, own, parallel, watch=True)
    assert step.passes is not None
    passes = {f"passes: {name}": torch.tensor(numbers) for name, numbers in step.passes.model_dump().items()}
    found = {name: whole(p.grad) for name, p in model.named_parameters() if p.grad is not None}
    return {**found, **passes, "loss": torch.tensor(step.loss)}


def as_made(recipe: Recipe, rows: range) -> Batch:
    return make_batch(recipe.task, recipe.train, 0, rows)


def one_step(activation_checkpoint: str, train: dict[str, Any] | None = None, **sleep: Any) -> Recipe:
    return tiny_recipe(
        model={"layers": ["gdn", "attn", "jet"]},
        sleep={"num_sleep_passes": 3, **sleep},
        optim={"grad_clip": 1e9},
        train={"activation_checkpoint": activation_checkpoint, **(train or {})},
    )


STEPS = {
    "as made": (one_step("none"), as_made),
    "passes again": (one_step("pass", looped_blocks=(0, 2)), as_made),
    "windows again": (one_step("window", eviction="sliding"), as_made),
    "labels here and there": (one_step("none"), scattered_labels),
    "small windows": (one_step("window", window_size=5), scattered_labels),
    "cut off": (one_step("none", looped_blocks=(1, 3), train={"bptt_passes": 1}), scattered_labels),
}


def all_steps(processes: Processes) -> dict[str, dict[str, Tensor]]:
    found = {}
    for name, (recipe, batch) in STEPS.items():
        found[name] = gradients(recipe, ALONE, batch)
        for how in BOTH:
            found[f"{name} {how}"] = gradients(recipe, replace(processes, parallel=how), batch)
    return {name: {key: x.numpy() for key, x in tensors.items()} for name, tensors in found.items()}  # type: ignore[misc]


@pytest.fixture(scope="module")
def steps() -> list[dict[str, dict[str, Any]]]:
    return together(4, all_steps)


@pytest.mark.parametrize("how", BOTH)
@pytest.mark.parametrize("name", STEPS)
def test_gradients_are_those_of_one_process(steps: list[dict[str, Any]], name: str, how: str):
    for rank in steps:
        assert rank[f"{name} {how}"].keys() == rank[name].keys()
        for key, expected in rank[name].items():
            difference = abs(rank[f"{name} {how}"][key] - expected)
            assert difference.max() <= 5e-4 * abs(expected).max(), key


def collectives_of_a_step(processes: Processes, passes: int) -> Counter[str]:
    recipe = tiny_recipe(model={"layers": ["gdn", "attn", "jet"]}, sleep={"num_sleep_passes": passes, "window_size": 7})
    parallel = ParallelModel(awake(recipe), "cpu", replace(processes, parallel="fsdp"))
    batch = make_batch(recipe.task, recipe.train, 0, processes.share(8))
    with Collectives() as seen:
        parallel.backward(lambda model: model_loss(recipe, model, batch))
    return seen.counts


def model_loss(recipe: Recipe, model: LanguageModel, batch: Batch) -> Tensor:
    return rollout(model, batch.tokens, batch.loss_mask, recipe.sleep)[0].square().mean()


def collectives(processes: Processes) -> list[Counter[str]]:
    return [collectives_of_a_step(processes, passes) for passes in (1, 4)]


def test_parameters_are_gathered_once_a_step_however_many_passes_and_windows():
    for counts in together(2, collectives)[0]:
        assert counts["allgather"] == 4  # three blocks, and the rest
        assert counts["reduce"] <= 8  # what a window without labels leaves out has its gradient before the others


# -- Muon


SHAPES = [(5, 3), (3, 5), (16, 16), (1, 4), (9, 2), (2, 9), (7, 7)]  # more than processes, rows for some of them


def muon_steps(processes: Processes) -> float:
    """How far whole and sharded matrices are apart, after steps with the same gradients."""
    mesh, random = init_device_mesh("cpu", (processes.world_size,)), torch.Generator().manual_seed(0)
    matrices = [nn.Parameter(torch.randn(shape, generator=random)) for shape in SHAPES]
    sharded = [nn.Parameter(distribute_tensor(m.detach().clone(), mesh, [Shard(0)])) for m in matrices]
    options: dict[str, Any] = {"lr": 0.1, "weight_decay": 0.2}
    theirs, ours = Muon(matrices, **options), ShardedMuon(sharded, **options)
    for step in range(3):
        for i, (m, s) in enumerate(zip(matrices, sharded, strict=True)):
            gradient = torch.randn(m.shape, generator=random)
            m.grad = None if (i + step) % 4 == 0 else gradient  # frozen in that step
            s.grad = None if m.grad is None else distribute_tensor(gradient, mesh, [Shard(0)])
        theirs.step()
        ours.step()
    found = [torch.cat([whole(s) - m, whole(ours.state[s]["momentum_buffer"]) - theirs.state[m]["momentum_buffer"]])
             for m, s in zip(matrices, sharded, strict=True)]  # fmt: skip
    return max(float(x.detach().abs().max()) for x in found)


@pytest.mark.parametrize("world_size", [2, 4])
def test_sharded_muon_takes_the_steps_of_muon(world_size: int):
    assert max(together(world_size, muon_steps)) < 1e-6


# -- what needs no group


def test_shares_are_the_whole_batch_in_order_and_even():
    for count, world_size in [(8, 3), (7, 4), (4, 4), (129, 8)]:
        shares = [Processes(rank, world_size, "ddp").share(count) for rank in range(world_size)]
        assert [i for share in shares for i in share] == list(range(count))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1 <= min(map(len, shares))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_share_of_the_batches(workers: int):
    recipe = tiny_recipe(train={"data_workers": workers})
    deepest = recipe.task.depths()[-1]
    with ready_batches(recipe.task, recipe.train, 4, 3, range(2, 5), "cpu", lambda step: deepest) as made:
        for step, ready in zip(range(3, 6), made, strict=True):
            expected = make_batch(recipe.task, recipe.train, step)
            assert all(torch.equal(ours, theirs[2:5]) for ours, theirs in zip(ready.batch, expected, strict=True))


def test_scores_of_shares_add_up(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(evaluate, "LARGEST_BATCH", 5)
    recipe = tiny_recipe()
    model = awake(recipe)
    parts = [evaluate.evaluate(model, recipe.task, recipe.sleep, 24, share=(i, 3)).score for i in range(3)]
    assert [part.examples for part in parts] == [10, 9, 5]
    total = evaluate.evaluate(model, recipe.task, recipe.sleep, 24).score
    assert_close(functools.reduce(operator.add, parts).summary(), total.summary())


def test_alone_there_is_no_group():
    with joined("fsdp", torch.device("cpu")) as (processes, device):
        assert (processes, device) == (ALONE, torch.device("cpu"))
    assert not torch.distributed.is_initialized()


def reducers() -> int:
    return sum(type(item) is DistributedDataParallel for item in gc.get_objects())


@pytest.mark.parametrize("stops", [False, True])
def test_nothing_of_ddp_outlives_the_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stops: bool):
    """Else its reducers could be the last to hold the group, and wait for ever for a thread that waits for the GIL."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        place = {"RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "localhost", "MASTER_PORT": free.getsockname()[1]}
    for name, value in place.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(distributed, "started_by_torchrun", lambda: True)
    destroy, counts = torch.distributed.destroy_process_group, list[int]()

    def leave() -> None:
        counts.append(reducers())
        destroy()

    def report(progress: Any, loss: float) -> None:
        if progress.step == 2:
            counts.append(reducers())
            if stops:
                signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(torch.distributed, "destroy_process_group", leave)
    gc.disable()  # by chance it might come in time
    try:
        with (
            pytest.raises(Stopped) if stops else contextlib.nullcontext(),
            joined("ddp", torch.device("cpu")) as (processes, _),
        ):
            train(tiny_recipe(), tmp_path, report=report, processes=processes)
    finally:
        gc.enable()
    assert counts == [1, 0]
    assert not torch.distributed.is_initialized()


def other_folders(processes: Processes, outs: list[Path]) -> str:
    try:
        train(tiny_recipe(), outs[processes.rank], resume=True, processes=replace(processes, parallel="ddp"))
    except UserError as error:
        return str(error)
    return "trained"


def test_processes_that_see_other_folders_do_not_train(tmp_path: Path):
    """Else their data and optimisers would be of different steps, and nothing would show it."""

    def stop(progress: Any, loss: float) -> None:
        if progress.step == 2:
            signal.raise_signal(signal.SIGTERM)

    outs = [tmp_path / "finished", tmp_path / "stopped"]
    train(tiny_recipe(), outs[0])
    with pytest.raises(Stopped):
        train(tiny_recipe(), outs[1], report=stop)
    for out, said in zip(outs, together(2, other_folders, outs), strict=True):
        assert said.startswith(f"the processes found checkpoints of different steps in {out}, 2 and 6: the folder of")


def test_what_was_broken_off_is_removed(tmp_path: Path):
    unfinished = tmp_path / ".checkpoint-4.tmp"
    unfinished.mkdir()
    (unfinished / "shard").write_bytes(b"half")
    train(tiny_recipe(train={"steps": 2}), tmp_path)
    assert not unfinished.exists()


def test_too_few_examples(tmp_path: Path):
    with pytest.raises(
        UserError, match=r"^train\.batch_size is 8, but it must be at least 9, the number of processes,"
    ):
        train(tiny_recipe(), tmp_path / "out", processes=Processes(3, 9, "ddp"))
    assert not (tmp_path / "out").exists()


def test_too_few_gpus(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "2")
    with (
        pytest.raises(UserError, match=r"^2 processes need a GPU each, and there are 1: "),
        joined("ddp", torch.device("cuda")),
    ):
        pass
