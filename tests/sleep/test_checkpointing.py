"""Activation checkpointing changes no bit, and keeps no more than it should."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from algorithm_1 import L, MakeModel, asleep, labels, text
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from truncated import LAYERS, LOOPS, Checkpoint, equal, gradients, loss_and_gradients

import reverie.sleep.algorithm
from reverie.model import HybridLM
from reverie.sleep import SleepConfig, rollout, rollout_hidden
from reverie.sleep.gradients import EXACT, Backward
from reverie.sleep.labels import labelled_windows


def assert_the_same_however_much_is_kept(take: Callable[[Backward], list[Tensor]], backward: Backward) -> None:
    everything_kept = take(backward)
    for checkpoint in ("pass", "window"):
        assert equal(take(backward.model_copy(update={"activation_checkpoint": checkpoint})), everything_kept), (
            checkpoint
        )


@pytest.mark.slow
@pytest.mark.parametrize("eviction", ["hard", "sliding"])
@pytest.mark.parametrize(
    ("loop", "N", "backward"),
    [
        (None, 1, EXACT),
        *(
            (loop, 3, backward)
            for loop in LOOPS.values()
            for backward in (EXACT, Backward(bptt_passes=2, bptt_windows=1))
        ),
    ],
    ids=str,
)
def test_activation_checkpointing_changes_no_bit(
    tiny_model: MakeModel, eviction: str, loop: tuple[int, int] | None, N: int, backward: Backward
) -> None:
    model, config, mask = tiny_model(*LAYERS), asleep(N, eviction, loop), labels(2, length=2 * L + 2)
    assert_the_same_however_much_is_kept(lambda kept: gradients(model, mask, config, kept), backward)


@pytest.mark.slow
@pytest.mark.parametrize("windows", [(0,), (1,), (0, 2), (1, 2, 3)], ids=str)
def test_activation_checkpointing_changes_no_bit_wherever_the_labels_are(
    tiny_model: MakeModel, windows: tuple[int, ...]
) -> None:
    model, config, mask = tiny_model(*LAYERS), asleep(2, "sliding", (1, 3)), labels(*windows)
    for backward in (EXACT, Backward(bptt_passes=1, bptt_windows=1)):
        assert_the_same_however_much_is_kept(lambda kept: gradients(model, mask, config, kept), backward)


@pytest.mark.parametrize(("eviction", "loop"), [("hard", None), ("sliding", (1, 3))])
def test_activation_checkpointing_changes_no_bit_under_autocast(
    tiny_model: MakeModel, eviction: str, loop: tuple[int, int] | None
) -> None:
    """Though the backward, in which passes run again, is outside of it."""
    model, config, mask = tiny_model(*LAYERS, dtype=torch.float32), asleep(3, eviction, loop), labels(0, 3)

    def in_bfloat16(backward: Backward) -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            logits, _ = rollout(model, text(), mask, config, backward=backward)
        assert logits.dtype == torch.bfloat16
        return loss_and_gradients(model, logits, mask)

    assert_the_same_however_much_is_kept(in_bfloat16, Backward(bptt_passes=2))


class Made(TorchDispatchMode):
    """Notes the memory that operations allocate."""

    def __init__(self) -> None:
        super().__init__()
        self._bytes: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self._bytes[StorageWeakRef(storage)] = storage.nbytes()
        return result

    def alive(self) -> int:
        """The bytes of it that somebody still holds."""
        return sum(number for storage, number in self._bytes.items() if not storage.expired())


def bytes_kept(model: HybridLM, windows: int, config: SleepConfig, checkpoint: Checkpoint) -> int:
    """What is alive after a forward pass of so many windows asleep and one token with a label, text included."""
    length = windows * L + 1
    with Made() as made:
        mask = labels(windows, length=length + 1)[:, :length]
        backward = Backward(activation_checkpoint=checkpoint)
        _logits = rollout(model, text(length), mask, config, backward=backward)[0]
    return made.alive()


@pytest.mark.slow
@pytest.mark.parametrize("loop", [None, (1, 3)], ids=["all", "middle"])
def test_memory_grows_with_windows_and_passes_only_as_far_as_wanted(
    tiny_model: MakeModel, loop: tuple[int, int] | None
) -> None:
    model = tiny_model(*LAYERS)
    kept = {
        (checkpoint, windows, N): bytes_kept(model, windows, asleep(N, "hard", loop), checkpoint)
        for checkpoint in ("none", "pass", "window")
        for windows in (2, 4)
        for N in (1, 3)
    }
    h, S = 2 * L * 8 * 8, 3 * 2 * 2 * 3 * 5 * 8  # bytes of [B, L, D], and of the fast weights of three blocks
    window_of_text = 2 * L * (8 + 1)  # tokens and mask

    def a_window(checkpoint: str, N: int) -> float:
        return (kept[checkpoint, 4, N] - kept[checkpoint, 2, N]) / 2 - window_of_text

    for N in (1, 3):
        runs = N + (loop is not None and N > 1)  # of some blocks: the last pass goes on after the loop
        assert a_window("window", N) <= S
        assert a_window("pass", N) <= runs * (h + S)
        # A pass keeps more than ten such h: the MLP alone has four of width 12 in each block, q, k and v are of 22.
        assert a_window("none", N) > N * 10 * h
    for windows in (2, 4):
        assert kept["window", windows, 3] == kept["window", windows, 1]
        assert kept["none", windows, 3] - kept["none", windows, 1] > windows * 2 * 10 * h


class Kept(saved_tensors_hooks):
    """Notes in which windows of a rollout anything is kept for the backward pass."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        super().__init__(self._pack, lambda tensor: tensor)
        self.windows, self._now = set[int](), -1
        step = reverie.sleep.algorithm.step

        def next_window(*arguments: Any, **options: Any) -> Any:
            self._now += 1
            return step(*arguments, **options)

        patch.setattr("reverie.sleep.rollouts.step", next_window)

    def _pack(self, tensor: Tensor) -> Tensor:
        self.windows.add(self._now)
        return tensor


@pytest.mark.slow
@pytest.mark.parametrize("checkpoint", ["none", "pass", "window"])
@pytest.mark.parametrize(
    ("windows", "m", "to_end", "reached"),
    [
        ((1,), None, False, {0, 1}),
        ((1,), None, True, {0, 1, 2, 3}),
        ((0,), 1, True, {0, 3}),
        ((3,), 1, True, {2, 3}),
        ((0, 3), 1, False, {0, 2, 3}),
        ((0, 2), 0, True, {0, 2}),
    ],
)
def test_windows_out_of_reach_keep_nothing(
    tiny_model: MakeModel,
    checkpoint: Checkpoint,
    windows: tuple[int, ...],
    m: int | None,
    to_end: bool,
    reached: set[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those after the last label too if nobody asks for the context at the end; without gradients all of them."""
    model, backward = tiny_model(*LAYERS), Backward(activation_checkpoint=checkpoint, bptt_windows=m)
    for enabled in (True, False):
        with torch.set_grad_enabled(enabled), monkeypatch.context() as patch:
            kept = Kept(patch)
            with kept:
                labelled = labelled_windows(labels(*windows), L)
                h, _ = rollout_hidden(model, text(), asleep(2, "sliding"), labelled, to_end=to_end, backward=backward)
        assert h.requires_grad == enabled
        assert kept.windows == (reached if enabled else set())
