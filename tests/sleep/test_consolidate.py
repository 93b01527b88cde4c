"""`consolidate`: a text read and slept over to its end, whatever its rows' lengths and wherever it went on from."""

from __future__ import annotations

import pytest
import torch
from algorithm_1 import (
    LAYERS,
    L,
    MakeModel,
    T,
    algorithm_1,
    asleep,
    assert_same,
    each_eviction,
    each_loop,
    some_passes,
    tensors,
    text,
)

from reverie.errors import UserError
from reverie.model import State, select_rows
from reverie.sleep import Context, SleepConfig, consolidate, plan, read, sleep


@each_eviction
@each_loop
@some_passes
def test_consolidation_is_algorithm_1(
    tiny_model: MakeModel, eviction: str, loop: tuple[int, int] | None, N: int
) -> None:
    """Sleep over every window, the ragged last one too; then no window is open."""
    model, config = tiny_model(*LAYERS["gdn"]), asleep(N, eviction, loop)
    _, S = algorithm_1(model, text(), config, [True] * 4)
    context = consolidate(model, text(), Context.empty(model), config)
    assert_same(context.state.fast_weights, S)
    assert (context.window, context.length, context.passes) == ((), 0, 4 * plan(model, config).passes)
    assert context.window_start is context.state


@each_eviction
def test_it_is_what_reading_leaves_once_the_last_window_is_slept_over(tiny_model: MakeModel, eviction: str) -> None:
    """Also from the middle of a window, and from a full one, which is slept over before the next token."""
    model, config = tiny_model(*LAYERS["jet"]), asleep(2, eviction)
    wanted = sleep(model, read(model, text(), Context.empty(model), config)[1], config)
    for begin in (3, L, L + 1):
        _, context = read(model, text()[:, :begin], Context.empty(model), config)
        assert_same(tensors(consolidate(model, text()[:, begin:], context, config)), tensors(wanted))


def test_every_window_is_told_of(tiny_model: MakeModel) -> None:
    """With what is known after it: that of the text up to there."""
    model, config, told = tiny_model(*LAYERS["gdn"]), asleep(2), list[tuple[int, Context]]()
    consolidate(
        model, text(), Context.empty(model), config, on_window=lambda windows, context: told.append((windows, context))
    )
    assert [windows for windows, _ in told] == [1, 2, 3, 4]
    for windows, context in told:
        wanted = consolidate(model, text()[:, : windows * L], Context.empty(model), config)
        assert_same(tensors(context), tensors(wanted), 0)


def test_every_pass_is_observed(tiny_model: MakeModel) -> None:
    model, seen = tiny_model(*LAYERS["gdn"]), list[int]()

    def observe(n: int, h: torch.Tensor, before: State, after: State) -> None:
        seen.append(n)

    consolidate(model, text(), Context.empty(model), asleep(3), observe=observe)
    assert seen == [1, 2, 3] * 4


@pytest.mark.parametrize("tolerance", [None, 0.3])
def test_rows_of_different_lengths_are_each_as_if_alone(tiny_model: MakeModel, tolerance: float | None) -> None:
    """What follows a row's end is not read: here no token that the model knows."""
    model, tokens, lengths = tiny_model(*LAYERS["gdn"]), text(rows=5), [T, 2, 7, L, 8]
    config, told = SleepConfig(window_size=L, num_sleep_passes=3, tolerance=tolerance), list[int]()
    padded = tokens.clone()
    for row, length in enumerate(lengths):
        padded[row, length:] = 99
    together = consolidate(
        model, padded, Context.empty(model), config, lengths=lengths, on_window=lambda n, context: told.append(n)
    )
    assert told == [1, 2, 3, 4]
    for row, length in enumerate(lengths):
        alone = consolidate(model, tokens[row : row + 1, :length], Context.empty(model), config)
        assert_same(select_rows(together.state.fast_weights, torch.tensor([row])), alone.state.fast_weights)
        assert int(torch.as_tensor(together.passes)[row]) == int(torch.as_tensor(alone.passes))


def test_what_cannot_be_slept_over_is_refused(tiny_model: MakeModel) -> None:
    model = tiny_model(*LAYERS["gdn"])
    with pytest.raises(UserError, match="under sliding eviction the texts of a batch must be equally long"):
        consolidate(model, text(), Context.empty(model), asleep(2, "sliding"), lengths=[3, 4])
    with pytest.raises(UserError, match="nothing to read"):
        consolidate(model, text(0), Context.empty(model), asleep(2))
