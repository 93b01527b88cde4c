"""Adaptive sleep: every text wakes by itself, exactly as if it had been told that number of passes alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.utils._pytree import tree_leaves

from reverie.errors import UserError
from reverie.model import HybridLM, State, fast_weight_change, select_rows
from reverie.recipe import load_recipe
from reverie.sleep import Context, SleepConfig, read, rollout, sleep, wake
from reverie.sleep.context import in_order
from reverie.sleep.gradients import Backward

MakeModel = Callable[..., HybridLM]

L, B, MOST = 6, 5, 6
LAYERS = ("attn", "gdn", "attn", "jet", "attn")
each_eviction = pytest.mark.parametrize("eviction", ["hard", "sliding"])
each_loop = pytest.mark.parametrize("loop", [None, (0, 2), (1, 4), (3, 5)], ids=str)


def text(length: int = L, rows: int = B) -> Tensor:
    return torch.randint(11, (rows, length), generator=torch.Generator().manual_seed(0))


def asleep(N: int, tolerance: float | None, eviction: str, loop: tuple[int, int] | None = None) -> SleepConfig:
    return SleepConfig.model_validate(
        {"window_size": L, "num_sleep_passes": N, "tolerance": tolerance, "eviction": eviction, "looped_blocks": loop}
    )


def slept(model: HybridLM, tokens: Tensor, config: SleepConfig, context: Context | None = None) -> Context:
    _, full = wake(model, tokens, context or Context.empty(model), config)
    return sleep(model, full, config)


def largest_change(before: State, after: State) -> Tensor:
    return torch.stack(list(fast_weight_change(before, after).values())).amax(dim=0)


def changes(model: HybridLM, tokens: Tensor, eviction: str, loop: tuple[int, int] | None) -> list[Tensor]:
    """[B] by pass, from pass 2 on: how much it changes the looped blocks' fast weights, none settling before."""
    found: dict[int, Tensor] = {}

    def observe(n: int, h: Tensor, before: State, after: State) -> None:
        if n > 1 and n not in found:  # the blocks behind the loop come later as the same pass
            found[n] = largest_change(before, after)

    config = asleep(MOST, None, eviction, loop)
    _, full = wake(model, tokens, Context.empty(model), config)
    sleep(model, full, config, observe=observe)
    return [found[n] for n in sorted(found)]


def middle_tolerance(by_pass: list[Tensor]) -> tuple[float, list[int]]:
    """One at which rows wake behind different passes, and behind which."""
    seen = torch.cat(by_pass).sort().values
    for tolerance in ((seen[1:] + seen[:-1]) / 2).tolist():  # between two, so that rounding decides nothing
        passes = [next((n for n, c in enumerate(by_pass[:-1], 2) if c[row] < tolerance), MOST) for row in range(B)]
        if len(set(passes)) > 1:
            return tolerance, passes
    raise AssertionError("all rows settle alike")


def assert_same(got: Any, wanted: Any, within: float = 1e-9) -> None:
    got, wanted = ([x for x in tree_leaves(tree) if isinstance(x, Tensor)] for tree in (got, wanted))
    torch.testing.assert_close(got, wanted, rtol=within, atol=within)


@pytest.mark.slow
@each_eviction
@each_loop
def test_every_row_wakes_behind_its_own_pass_with_what_that_many_passes_leave(
    tiny_model: MakeModel, eviction: str, loop: tuple[int, int] | None
):
    model, tokens = tiny_model(*LAYERS), text()
    by_pass = changes(model, tokens, eviction, loop)
    tolerance, wanted = middle_tolerance(by_pass)
    after = slept(model, tokens, asleep(MOST, tolerance, eviction, loop))
    assert torch.as_tensor(after.passes).tolist() == wanted
    for row, N in enumerate(wanted):
        alone = slept(model, tokens[row : row + 1], asleep(N, None, eviction, loop))
        assert alone.passes == N
        assert_same(select_rows(after.state, torch.tensor([row])), alone.state)


@each_eviction
def test_tolerances_at_the_ends_are_two_passes_and_all_of_them(tiny_model: MakeModel, eviction: str):
    model, tokens = tiny_model(*LAYERS), text()
    for tolerance, N in [(1e9, 2), (1e-300, MOST)]:
        after = slept(model, tokens, asleep(MOST, tolerance, eviction))
        assert torch.as_tensor(after.passes).tolist() == [N] * B
        assert_same(after.state, slept(model, tokens, asleep(N, None, eviction)).state)


@pytest.mark.slow
@each_eviction
def test_it_goes_on_over_many_windows_each_row_as_if_alone(tiny_model: MakeModel, eviction: str):
    model, tokens = tiny_model(*LAYERS), text(4 * L + 2)
    tolerance, _ = middle_tolerance(changes(model, tokens[:, :L], eviction, None))
    config = asleep(MOST, tolerance, eviction)
    logits, context = read(model, tokens, Context.empty(model), config)
    spent = torch.as_tensor(context.passes)
    assert len(set(spent.tolist())) > 1
    for row in range(B):
        alone, context = read(model, tokens[row : row + 1], Context.empty(model), config)
        assert int(torch.as_tensor(context.passes)) == spent[row]
        assert_same(alone, logits[row : row + 1], within=1e-5)  # six passes a window make of 1e-14 up to 1e-6


def test_rows_that_are_awake_are_computed_no_more(tiny_model: MakeModel):
    model, tokens = tiny_model(*LAYERS), text()
    tolerance, wanted = middle_tolerance(changes(model, tokens, "hard", None))
    rows: dict[int, int] = {}

    def observe(n: int, h: Tensor, before: State, after: State) -> None:
        rows[n] = len(next(x for x in after.fast_weights if x is not None))

    config = asleep(MOST, tolerance, "hard")
    _, full = wake(model, tokens, Context.empty(model), config, observe=observe)
    sleep(model, full, config, observe=observe)
    assert rows == {n: sum(n <= N for N in wanted) for n in range(1, max(wanted) + 1)}


def test_gradients_go_through_as_many_passes_as_each_row_took(tiny_model: MakeModel):
    model, tokens = tiny_model(*LAYERS), text(2 * L)
    tolerance, wanted = middle_tolerance(changes(model, tokens[:, :L], "hard", None))
    mask = torch.zeros_like(tokens, dtype=torch.bool)
    mask[:, L:] = True

    def gradients(config: SleepConfig, rows: slice) -> list[Tensor]:
        model.zero_grad()
        logits, _ = rollout(model, tokens[rows], mask[rows], config)
        logits.square().sum().backward()
        return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]

    together = gradients(asleep(MOST, tolerance, "hard"), slice(None))
    alone = [gradients(asleep(N, None, "hard"), slice(row, row + 1)) for row, N in enumerate(wanted)]
    assert_same(together, [sum(parts) for parts in zip(*alone, strict=True)])


def test_the_change_is_relative_and_that_of_all_heads_together():
    before, after = torch.zeros(2, 3, 4, 5), torch.ones(2, 3, 4, 5)
    after[1] = 2
    old, same = State((before, None, after), (None,) * 3), State((after, None, after), (None,) * 3)
    assert {block: x.tolist() for block, x in fast_weight_change(old, same).items()} == {0: [1.0, 1.0]}
    half = State((after * 0.75, None, after), (None,) * 3)
    assert largest_change(half, same).tolist() == pytest.approx([0.25, 0.25])


def test_parts_of_a_batch_come_back_in_order():
    x = torch.arange(5.0)[:, None]
    rows = [torch.tensor([3, 0]), torch.tensor([4]), torch.tensor([1, 2])]
    parts = []
    for row in rows:
        state = State((select_rows(x, row),), (None,))
        parts.append(Context(state, state))
    [together] = in_order(parts, rows).state.fast_weights
    assert together is not None
    assert torch.equal(together, x)


@each_eviction
def test_a_loop_without_fast_weights_is_over_behind_its_second_pass(tiny_model: MakeModel, eviction: str):
    """Its passes change h alone, and no tolerance can see that."""
    model, tokens = tiny_model("attn", "gdn", "attn", "gdn"), text()
    after = slept(model, tokens, asleep(MOST, 0.3, eviction, (0, 1)))
    assert_same(after.state, slept(model, tokens, asleep(2, None, eviction, (0, 1))).state)
    assert torch.as_tensor(after.passes).tolist() == [2] * B


def test_gradients_cannot_be_cut_off_before_a_pass_that_is_not_known(tiny_model: MakeModel):
    model, tokens = tiny_model(*LAYERS), text(2 * L)
    mask = torch.zeros_like(tokens, dtype=torch.bool)
    mask[:, L:] = True
    with pytest.raises(UserError, match="bptt_passes counts from the last pass"):
        rollout(model, tokens, mask, asleep(MOST, 0.3, "hard"), backward=Backward(bptt_passes=1))


@pytest.mark.parametrize("tolerance", [0, -0.1, float("inf"), float("nan")])
def test_a_tolerance_is_above_zero(tolerance: float):
    with pytest.raises(ValidationError):
        asleep(3, tolerance, "hard")


def test_recipes_do_not_train_with_a_tolerance():
    with pytest.raises(UserError, match=r"^sleep\.tolerance .* leave it out"):
        load_recipe("depo/nano", ["sleep.tolerance=0.1"])
