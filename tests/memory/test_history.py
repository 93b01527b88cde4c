"""A history's records equal changes worked out by hand; it is bounded, and survives conversion to tensors."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from reverie.memory.history import MOST_WINDOWS, History, Window
from reverie.model import HybridLM, State
from reverie.sleep import Context, SleepConfig, sleep, wake

MakeModel = Callable[..., HybridLM]

L, N = 5, 3
LAYERS = ("attn", "gdn", "attn", "gdn", "gdn")
LOOPS = {"all": None, "start": (0, 2), "middle": (1, 4), "end": (3, 5)}


def text() -> Tensor:
    return torch.randint(11, (2, 3 * L), generator=torch.Generator().manual_seed(0))


def slept_over(model: HybridLM, config: SleepConfig, *, output: bool) -> History:
    """A history of three windows."""
    history, context = History(), Context.empty(model)
    for i, window in enumerate(text().split(L, dim=1)):
        _, context = wake(model, window, context, config, output=output, observe=history.observe)
        context = sleep(model, context, config, observe=history.observe)
        history.close(L, N, 0.5 + i)
    return history


def by_hand(model: HybridLM, loop: tuple[int, int] | None) -> list[dict[int, dict[int, float]]]:
    """Changes by window, pass and block, from running the blocks one by one."""
    S: list[Tensor | None] = [None] * len(LAYERS)
    a, b = loop or (0, len(LAYERS))
    windows = []

    def run(h: Tensor, blocks: range, begin: list[Tensor | None]) -> Tensor:
        for i in blocks:
            slots = [begin[j] if j == i else None for j in range(len(LAYERS))]
            h, state = model.blocks(h, State(tuple(slots), (None,) * len(LAYERS)), i, i + 1, span=L)
            if LAYERS[i] == "gdn":
                new = state.fast_weights[i]
                assert new is not None
                old = torch.zeros_like(new) if begin[i] is None else begin[i]
                assert old is not None
                rows = [float((new[r] - old[r]).square().sum().sqrt() / new[r].square().sum().sqrt()) for r in (0, 1)]
                change.setdefault(n, {})[i] = sum(rows) / 2
                S[i] = new
        return h

    for window in text().split(L, dim=1):
        change: dict[int, dict[int, float]] = {}
        found, n = list(S), 1
        h = run(model.embed(window), range(b), list(S))
        for n in range(2, N + 1):  # noqa: B007 (run reads it)
            h = run(h, range(a, b), list(S))
        run(h, range(b, len(LAYERS)), found)
        windows.append(change)
    return windows


@pytest.mark.parametrize("loop", LOOPS.values(), ids=LOOPS)
@torch.no_grad()
def test_notes_what_every_pass_changed(tiny_model: MakeModel, loop: tuple[int, int] | None) -> None:
    model = tiny_model(*LAYERS)
    config = SleepConfig(window_size=L, num_sleep_passes=N, looped_blocks=loop)
    history = slept_over(model, config, output=False)
    assert [(w.start, w.tokens, w.passes, w.seconds) for w in history.windows] == [
        (0, L, N, 0.5),
        (L, L, N, 1.5),
        (2 * L, L, N, 2.5),
    ]
    for noted, wanted in zip(history.windows, by_hand(model, loop), strict=True):
        assert {n: list(row) for n, row in noted.change.items()} == {n: [*sorted(row)] for n, row in wanted.items()}
        for n, row in wanted.items():
            assert noted.change[n] == pytest.approx(row, rel=1e-6)


@torch.no_grad()
def test_first_pass_into_empty_fast_weights_changes_all_of_them(tiny_model: MakeModel) -> None:
    history = slept_over(tiny_model(*LAYERS), SleepConfig(window_size=L, num_sleep_passes=N), output=False)
    assert history.windows[0].change[1] == {1: 1.0, 3: 1.0, 4: 1.0}


@torch.no_grad()
def test_of_blocks_after_the_loop_the_last_change_counts(tiny_model: MakeModel) -> None:
    """Awake they run as pass 1, asleep again as pass N, from the fast weights that the window found."""
    model, config = tiny_model(*LAYERS), SleepConfig(window_size=L, num_sleep_passes=N, looped_blocks=(0, 2))
    awake, asleep = slept_over(model, config, output=True), slept_over(model, config, output=False)
    for with_output, without in zip(awake.windows, asleep.windows, strict=True):
        assert set(with_output.change[1]) == {1, 3, 4}
        assert set(without.change[1]) == {1}
        assert with_output.change[N] == without.change[N]


def test_a_pass_that_some_rows_slept_through_counts_those_rows() -> None:
    history = History()
    old = torch.tensor([[3.0], [4.0]]).reshape(2, 1, 1, 1)
    new = torch.tensor([[6.0], [16.0]]).reshape(2, 1, 1, 1)
    h = torch.zeros(2, 1, 1)
    history.observe(1, h, State((old,), (None,)), State((new,), (None,)))
    history.observe(2, h[1:], State((new[1:],), (None,)), State((2 * new[1:],), (None,)))
    history.close(7, 1.5, 0.1)
    assert history.windows == (Window(0, 7, 1.5, 0.1, {1: {0: (0.5 + 0.75) / 2}, 2: {0: 0.5}}),)


def noted(windows: int) -> History:
    """A history of made-up windows, with different numbers of passes."""
    history, random = History(), torch.Generator().manual_seed(0)
    for i in range(windows):
        for n in range(1, 2 + i % 3):
            before, after = (torch.rand(1, 1, 2, 2, generator=random) for _ in range(2))
            history.observe(n, before, State((None, before), (None,) * 2), State((None, after), (None,) * 2))
        history.close(2 + i % 2, 1 + i % 3, 0.25)
    return history


def test_keeps_the_newest_windows_and_counts_all() -> None:
    history = noted(MOST_WINDOWS + 5)
    assert len(history.windows) == MOST_WINDOWS
    assert (history.num_windows, history.seconds) == (MOST_WINDOWS + 5, (MOST_WINDOWS + 5) / 4)
    assert history.windows[0].start == 2 + 3 + 2 + 3 + 2
    assert history.windows[-1].start + history.windows[-1].tokens == history.num_tokens


@pytest.mark.parametrize("windows", [0, 1, 7, MOST_WINDOWS + 1])
def test_tensors_and_back(windows: int) -> None:
    history = noted(windows)
    again = History.from_tensors(history.tensors())
    assert again.windows == history.windows
    for name in ("num_windows", "num_tokens", "passes", "seconds", "fast_weight_blocks"):
        assert getattr(again, name) == getattr(history, name)


def test_a_copy_goes_on_alone() -> None:
    history = noted(2)
    other = history.copy()
    other.close(9, 1, 1.0)
    assert (len(history.windows), len(other.windows)) == (2, 3)
    assert other.windows[-1].start == history.num_tokens == 5


def test_a_history_whose_memory_overflowed_can_be_kept() -> None:
    history = History()
    infinite = torch.full((1, 1, 1, 1), torch.inf)
    history.observe(1, infinite, State((None,), (None,)), State((infinite,), (None,)))
    history.close(1, 1, 0.0)
    assert History.from_tensors(history.tensors()).windows == history.windows


BROKEN = {
    "a tensor less": {"spent": None},
    "one too many": {"more": torch.zeros(1)},
    "another type": {"tokens": torch.ones(7)},
    "another shape": {"change": torch.zeros(7, 3)},
    "windows missing": {"tokens": torch.tensor([2, 3])},
    "counts that are not two": {"counts": torch.tensor([7])},
    "more windows than there are": {"counts": torch.tensor([8, 17])},
    "fewer tokens than there are": {"counts": torch.tensor([7, 16])},
    "an empty window": {"tokens": torch.tensor([0, 5, 2, 3, 2, 3, 2])},
    "time that ran back": {"totals": torch.tensor([13.0, -1.0], dtype=torch.float64)},
    "passes without number": {"spent": torch.full((7, 2), torch.nan, dtype=torch.float64)},
    "a block before the first": {"blocks": torch.tensor([-1])},
    "a change below zero": {"change": torch.full((7, 3, 1), -0.5)},
    "a change without end": {"change": torch.full((7, 3, 1), torch.inf)},
    "passes over no block": {"change": torch.zeros(7, 3, 0), "blocks": torch.zeros(0, dtype=torch.int64)},
}


@pytest.mark.parametrize("edit", BROKEN.values(), ids=BROKEN)
def test_refuses_what_no_history_gave(edit: dict[str, Tensor | None]) -> None:
    tensors = {**noted(7).tensors(), **edit}
    with pytest.raises(ValueError, match="histor"):
        History.from_tensors({name: tensor for name, tensor in tensors.items() if tensor is not None})


def test_refuses_counts_that_wrap_around() -> None:
    tensors = noted(2).tensors() | {"tokens": torch.tensor([2**62, 2**62]), "counts": torch.tensor([2, -(2**63)])}
    with pytest.raises(ValueError, match="histor"):
        History.from_tensors(tensors)
