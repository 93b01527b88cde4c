"""Gradients through windows and passes: the same however much is kept, cut where `Backward` says, and right.

Small models of random parameters in float64, so that "the same up to rounding" can mean 1e-10.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from reverie.errors import UserError
from reverie.model import HybridLM, State
from reverie.recipe import load_recipe
from reverie.sleep import SleepConfig, rollout
from reverie.sleep.gradients import EXACT, Backward

MakeModel = Callable[..., HybridLM]
FastWeights = list[Tensor | None]
Checkpoint = Literal["none", "pass", "window"]

L, T = 4, 14  # three full windows and one of two tokens
LAYERS = ("gdn", "attn", "jet", "gdn")  # in the middle loop, fast weights in front of it, inside and behind
LOOPS = {"all": None, "first": (0, 2), "middle": (1, 3), "last": (2, 4)}
COTANGENT = torch.randn(2, T, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

each_loop = pytest.mark.parametrize("loop", LOOPS.values(), ids=LOOPS)


def asleep(N: int, eviction: str = "hard", loop: tuple[int, int] | None = None) -> SleepConfig:
    return SleepConfig.model_validate(
        {"window_size": L, "num_sleep_passes": N, "looped_blocks": loop, "eviction": eviction}
    )


def text(length: int = T) -> Tensor:
    return torch.randint(11, (2, length), generator=torch.Generator().manual_seed(0))


def labels(*windows: int, length: int = T) -> Tensor:
    """Labels in these windows: of row 0 on the first token; of row 1 on the second, not in the first of them."""
    mask = torch.zeros(2, length, dtype=torch.bool)
    for window in windows:
        mask[0, window * L] = True
        mask[1, window * L + 1] = window != windows[0]
    return mask


def loss_and_gradients(model: HybridLM, logits: Tensor, mask: Tensor) -> list[Tensor]:
    """A loss, and its gradient with respect to every parameter."""
    loss = (logits.double() * COTANGENT[:, : mask.shape[1]][mask]).sum()
    return [loss.detach(), *torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True)]


def gradients(model: HybridLM, mask: Tensor, config: SleepConfig, backward: Backward = EXACT) -> list[Tensor]:
    return loss_and_gradients(model, rollout(model, text(mask.shape[1]), mask, config, backward=backward)[0], mask)


def equal(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> bool:
    """To the last bit."""
    return all(map(torch.equal, ours, theirs))


# What is kept does not matter


def assert_the_same_however_much_is_kept(take: Callable[[Backward], list[Tensor]], backward: Backward) -> None:
    everything_kept = take(backward)
    for checkpoint in ("pass", "window"):
        assert equal(take(backward.model_copy(update={"activation_checkpoint": checkpoint})), everything_kept), (
            checkpoint
        )


@pytest.mark.parametrize("eviction", ["hard", "sliding"])
@each_loop
@pytest.mark.parametrize(("N", "backward"), [(1, EXACT), (3, EXACT), (3, Backward(bptt_passes=2, bptt_windows=1))])
def test_activation_checkpointing_changes_no_bit(
    tiny_model: MakeModel, eviction: str, loop: tuple[int, int] | None, N: int, backward: Backward
) -> None:
    model, config, mask = tiny_model(*LAYERS), asleep(N, eviction, loop), labels(2, length=10)
    assert_the_same_however_much_is_kept(lambda kept: gradients(model, mask, config, kept), backward)


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


# Truncation, against windows and passes written out


def one_pass(model: HybridLM, h: Tensor, S: FastWeights, start: int, stop: int) -> tuple[Tensor, FastWeights]:
    h, state = model.blocks(h, State(tuple(S), (None,) * len(S)), start, stop, span=L)
    return h, list(state.fast_weights)


def asleep_by_hand(model: HybridLM, window: Tensor, S: FastWeights, config: SleepConfig, cut: int) -> FastWeights:
    """N passes under hard eviction: `cut` of them without gradients, and behind those S plus what they added to it."""
    a, b = config.looped_blocks or (0, model.num_blocks)
    h, now = model.embed(window), S
    for n in range(1, config.num_sleep_passes + 1):
        with torch.set_grad_enabled(torch.is_grad_enabled() and n > cut):
            h, now = one_pass(model, h, now, 0 if n == 1 else a, b)
        if n == cut:
            now = [y if x is None or y is None else x + (y - x).detach() for x, y in zip(S, now, strict=True)]
    return one_pass(model, h, [*now[:b], *S[b:]], b, model.num_blocks)[1]


def gradients_by_hand(
    model: HybridLM, mask: Tensor, config: SleepConfig, k: int, first: Callable[[int], int]
) -> list[Tensor]:
    """The sum over windows w with labels, whose gradients go back into windows first(w) … w, k passes of each."""
    labelled = [bool(part.any()) for part in mask.split(L, 1)]
    total = [torch.zeros((), dtype=torch.float64), *map(torch.zeros_like, model.parameters())]
    for w in [i for i, has_label in enumerate(labelled) if has_label]:
        S: FastWeights = [None] * model.num_blocks
        h = torch.empty(0)
        for i, window in enumerate(text().split(L, 1)[: w + 1]):
            with torch.set_grad_enabled(i >= first(w)):
                if labelled[i]:
                    h, S = one_pass(model, model.embed(window), S, 0, model.num_blocks)
                else:
                    S = asleep_by_hand(model, window, S, config, max(config.num_sleep_passes - k, 0))
        here = torch.zeros_like(mask)
        here[:, w * L : (w + 1) * L] = mask[:, w * L : (w + 1) * L]
        parts = loss_and_gradients(model, model.head(h)[mask[:, w * L : (w + 1) * L]], here)
        total = [x + y for x, y in zip(total, parts, strict=True)]
    return total


def assert_cut_as_by_hand(
    model: HybridLM, mask: Tensor, config: SleepConfig, backward: Backward, first: Callable[[int], int]
) -> None:
    ours = gradients(model, mask, config, backward)
    by_hand = gradients_by_hand(model, mask, config, backward.bptt_passes or config.num_sleep_passes, first)
    torch.testing.assert_close(ours, by_hand, rtol=1e-10, atol=1e-10)


@each_loop
@pytest.mark.parametrize("windows", [(1,), (3,), (0, 3)], ids=str)
@pytest.mark.parametrize(("k", "m"), [(None, 1), (1, 0), (2, 1)])
def test_gradients_end_where_they_are_cut(
    tiny_model: MakeModel, loop: tuple[int, int] | None, windows: tuple[int, ...], k: int | None, m: int
) -> None:
    """Those of a label in window w before window w − m, and in each window before the last k passes."""
    backward = Backward(bptt_passes=k, bptt_windows=m)
    assert_cut_as_by_hand(tiny_model(*LAYERS), labels(*windows), asleep(3, "hard", loop), backward, lambda w: w - m)


@each_loop
@pytest.mark.parametrize("k", [1, 2, None])
def test_cut_passes_leave_gradients_the_way_to_the_windows_before(
    tiny_model: MakeModel, loop: tuple[int, int] | None, k: int | None
) -> None:
    """Through what they made of the fast weights, in all blocks; here to a window with labels, run as a whole."""
    model, mask, config = tiny_model(*LAYERS), labels(0, 3), asleep(3, "hard", loop)
    assert_cut_as_by_hand(model, mask, config, Backward(bptt_passes=k), lambda w: 0)


@pytest.mark.parametrize(
    ("windows", "m", "first"),
    [((0, 3), 2, {0: 0, 3: 0}), ((1, 2), 0, {1: 1, 2: 1}), ((1, 3), 1, {1: 0, 3: 0}), ((2, 3), 1, {2: 1, 3: 1})],
)
def test_labels_close_together_share_the_windows_that_they_reach(
    tiny_model: MakeModel, windows: tuple[int, ...], m: int, first: dict[int, int]
) -> None:
    """More than m windows before its own, gradients of a label go on where those of an earlier label do."""
    model, mask, config = tiny_model(*LAYERS), labels(*windows), asleep(2)
    assert_cut_as_by_hand(model, mask, config, Backward(bptt_windows=m), lambda w: first[w])


@pytest.mark.parametrize("eviction", ["hard", "sliding"])
def test_truncation_that_cuts_nothing_changes_no_bit(tiny_model: MakeModel, eviction: str) -> None:
    model, mask, config = tiny_model(*LAYERS), labels(3), asleep(2, eviction, (1, 3))
    exact = gradients(model, mask, config)
    for whole in (Backward(bptt_passes=2), Backward(bptt_passes=9, bptt_windows=9), Backward(bptt_windows=3)):
        assert equal(gradients(model, mask, config, whole), exact)
    for cut in (Backward(bptt_passes=1), Backward(bptt_windows=2), Backward(bptt_windows=0)):
        loss, *truncated = gradients(model, mask, config, cut)
        assert torch.equal(loss, exact[0])
        assert not equal(truncated, exact[1:])


@pytest.mark.parametrize(("eviction", "checkpoint"), [("hard", "none"), ("hard", "pass"), ("sliding", "window")])
def test_of_windows_out_of_reach_no_token_gets_a_gradient(
    tiny_model: MakeModel, eviction: str, checkpoint: Checkpoint
) -> None:
    """Each token of the text is another one, so that each has a row of the embedding's gradient to itself."""
    model, tokens = tiny_model(*LAYERS, vocab_size=T), torch.arange(T).expand(2, -1)

    def windows_reached(backward: Backward) -> list[bool]:
        logits, _ = rollout(model, tokens, labels(3), asleep(3, eviction), backward=backward)
        (gradient,) = torch.autograd.grad(logits.square().sum(), [model.embedding.weight])
        return [bool(rows.any()) for rows in gradient.split(L)]

    for m in range(4):
        backward = Backward(activation_checkpoint=checkpoint, bptt_windows=m)
        assert windows_reached(backward) == [i >= 3 - m for i in range(4)]
    # Tokens go into the first pass alone, and only what they made of the fast weights goes on from there.
    assert windows_reached(Backward(activation_checkpoint=checkpoint, bptt_passes=2)) == [False, False, False, True]


# The exact gradient


@pytest.mark.parametrize(("eviction", "loop"), [("hard", None), ("sliding", (1, 3))])
def test_the_exact_gradient_is_that_of_finite_differences(
    tiny_model: MakeModel, eviction: str, loop: tuple[int, int] | None
) -> None:
    """Through three passes over three windows; of each parameter along a random direction."""
    model, mask, config = tiny_model(*LAYERS), labels(3), asleep(3, eviction, loop)
    exact = dict(zip([name for name, _ in model.named_parameters()], gradients(model, mask, config)[1:], strict=True))
    random, step = torch.Generator().manual_seed(3), 1e-5

    @torch.no_grad()
    def loss_at(parameter: Tensor, shift: Tensor) -> float:
        parameter.add_(shift)
        logits, _ = rollout(model, text(), mask, config)
        parameter.sub_(shift)
        return float((logits * COTANGENT[mask]).sum())

    for name in ("embedding.weight", "layers.0.mixer.A_log", "layers.1.mixer.q_gain", "layers.2.mlp.in_proj.weight"):
        parameter = model.get_parameter(name)
        direction = torch.randn(parameter.shape, dtype=torch.float64, generator=random)
        near, far = (
            loss_at(parameter, n * step * direction) - loss_at(parameter, -n * step * direction) for n in (1, 2)
        )
        slope = (8 * near - far) / (12 * step)
        assert float((exact[name] * direction).sum()) == pytest.approx(slope, rel=1e-6), name


# What is kept


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
    """What is alive behind a forward pass of so many windows asleep and one token with a label, text included."""
    length = windows * L + 1
    with Made() as made:
        mask = labels(windows, length=length + 1)[:, :length]
        backward = Backward(activation_checkpoint=checkpoint)
        _logits = rollout(model, text(length), mask, config, backward=backward)[0]
    return made.alive()


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
        runs = N + (loop is not None and N > 1)  # of some blocks: the last pass goes on behind the loop
        assert a_window("window", N) <= S
        assert a_window("pass", N) <= runs * (h + S)
        # A pass keeps more than ten such h: the MLP alone has four of width 12 in each block, q, k and v are of 22.
        assert a_window("none", N) > N * 10 * h
    for windows in (2, 4):
        assert kept["window", windows, 3] == kept["window", windows, 1]
        assert kept["none", windows, 3] - kept["none", windows, 1] > windows * 2 * 10 * h


class Kept(saved_tensors_hooks):
    """Notes in which windows of a rollout anything is kept for the backward pass."""

    def __init__(self, model: HybridLM, patch: pytest.MonkeyPatch) -> None:
        super().__init__(self._pack, lambda tensor: tensor)
        self.windows, self._now = set[int](), -1
        reaches, head = Backward.reaches, model.head

        def next_window(backward: Backward, window: int, labelled: Sequence[bool]) -> bool:
            self._now = window
            return reaches(backward, window, labelled)

        def behind_all(h: Tensor) -> Tensor:
            self._now = -1
            return head(h)

        patch.setattr(Backward, "reaches", next_window)
        patch.setattr(model, "head", behind_all)

    def _pack(self, tensor: Tensor) -> Tensor:
        # not the places of the labels, which are kept for the head
        if tensor.dtype != torch.bool and (
            tensor.is_floating_point() or tensor.ndim > 1
        ):  # not the places of the logits
            self.windows.add(self._now)
        return tensor


@pytest.mark.parametrize("checkpoint", ["none", "pass", "window"])
@pytest.mark.parametrize(
    ("windows", "m", "reached"),
    [((1,), None, {0, 1}), ((3,), 1, {2, 3}), ((0, 3), 1, {0, 2, 3}), ((0, 2), 0, {0, 2})],
)
def test_windows_out_of_reach_keep_nothing(
    tiny_model: MakeModel,
    checkpoint: Checkpoint,
    windows: tuple[int, ...],
    m: int | None,
    reached: set[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those behind the last label too, and without gradients all of them."""
    model, backward = tiny_model(*LAYERS), Backward(activation_checkpoint=checkpoint, bptt_windows=m)
    for enabled in (True, False):
        with torch.set_grad_enabled(enabled), monkeypatch.context() as patch:
            kept = Kept(model, patch)
            with kept:
                logits, _ = rollout(model, text(), labels(*windows), asleep(2, "sliding"), backward=backward)
        assert logits.requires_grad == enabled
        assert kept.windows == (reached | {-1} if enabled else set())


# In recipes

BAD_OVERRIDES = {
    "train.activation_checkpoint=all": 'train.activation_checkpoint must be "none", "pass" or "window", got "all"',
    "train.activation_checkpoint=true": 'train.activation_checkpoint must be "none", "pass" or "window", got true',
    "train.bptt_passes=0": "train.bptt_passes must be at least 1, got 0",
    "train.bptt_windows=-1": "train.bptt_windows must be at least 0, got -1",
    "train.bptt_windows=1.5": "train.bptt_windows must be an integer, got 1.5",
    "train.bptt_pases=1": "train.bptt_pases is not a known key; did you mean train.bptt_passes?",
}


@pytest.mark.parametrize("override", BAD_OVERRIDES)
def test_a_bad_value_in_a_recipe_is_one_sentence(override: str) -> None:
    with pytest.raises(UserError) as caught:
        load_recipe("rule110/base", [override])
    assert str(caught.value) == BAD_OVERRIDES[override]


def test_a_recipe_is_exact_unless_it_says_otherwise() -> None:
    assert load_recipe("rule110/base").train.backward == EXACT
    overrides = ["train.activation_checkpoint=window", "train.bptt_passes=2", "train.bptt_windows=0"]
    wanted = Backward(activation_checkpoint="window", bptt_passes=2, bptt_windows=0)
    assert load_recipe("rule110/base", overrides).train.backward == wanted
