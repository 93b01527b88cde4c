"""Controls of sleep: each is what a few lines by hand make of it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_recipe import tiny_recipe
from torch import Tensor

from reverie.errors import UserError
from reverie.model import HybridLM, State
from reverie.recipe import Recipe
from reverie.sleep import SleepConfig, rollout
from reverie.train.data import make_batch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
models: Any = importlib.import_module("controls.models")
cells: Any = importlib.import_module("controls.cells")

L = 4
LAYERS = ("attn", "gdn", "attn", "gdn")
TOKENS = torch.randint(11, (3, 5 * L), generator=torch.Generator().manual_seed(0))
LABELLED = (False, False, True, False, True)  # windows of TOKENS
MASK = torch.tensor(LABELLED).repeat_interleave(L).expand(3, -1)
PLAIN = SleepConfig(window_size=L)


def other(kind: Any, plain: HybridLM, passes: int) -> Any:
    model = kind(plain.config, passes).double()
    model.load_state_dict(plain.state_dict())
    return model


def logits(model: Any, tokens: Tensor = TOKENS, mask: Tensor = MASK, sleep: SleepConfig = PLAIN) -> Tensor:
    with torch.no_grad():
        return rollout(model, tokens, mask, sleep)[0]


@torch.no_grad()
def by_hand(model: HybridLM, asleep: Sequence[int], awake: int) -> Tensor:
    """Logits of TOKENS, window by window.

    Args:
        asleep: for each pass over a window without labels, the pass whose fast weights it starts from; 0 is none of
            them.
        awake: passes over windows with labels, all from the fast weights that the window found.
    """
    fast, nothing, found = State.empty(4).fast_weights, (None,) * 4, []
    for window, labelled in zip(TOKENS.split(L, dim=1), LABELLED, strict=True):
        h, left = model.embed(window), [fast]
        for start in [0] * awake if labelled else asleep:
            h, new = model.blocks(h, State(left[start], nothing), 0, 4, span=L)
            left.append(new.fast_weights)
        fast = left[-1]
        found += [model.head(h)] if labelled else []
    return torch.cat(found, dim=1).flatten(0, 1)


@pytest.fixture
def model(tiny_model: Callable[..., HybridLM]) -> HybridLM:
    return tiny_model(*LAYERS)


def test_the_reference_by_hand_is_sleep(model: HybridLM) -> None:
    for N in (1, 2, 4):
        sleep = SleepConfig(window_size=L, num_sleep_passes=N)
        torch.testing.assert_close(logits(model, sleep=sleep), by_hand(model, range(N), 1))


def test_one_pass_awake_is_the_plain_hybrid(model: HybridLM) -> None:
    assert torch.equal(logits(other(models.LoopedAwake, model, 1)), logits(model))


def test_passes_awake_are_made_on_labelled_windows_alone(model: HybridLM) -> None:
    looped = logits(other(models.LoopedAwake, model, 3))
    torch.testing.assert_close(looped, by_hand(model, [0], 3))
    assert (looped - logits(model)).abs().max() > 1e-3


def test_no_token_awake_knows_a_later_one(model: HybridLM) -> None:
    """As it would if a pass started from the fast weights that the pass before left."""
    later = TOKENS.clone()
    later[:, 3 * L - 1] = (later[:, 3 * L - 1] + 1) % 11  # the last token of a labelled window
    before, after = (logits(other(models.LoopedAwake, model, 3), x).view(3, 2 * L, -1) for x in (TOKENS, later))
    torch.testing.assert_close(before[:, : L - 1], after[:, : L - 1], rtol=0, atol=0)
    assert (before[:, L - 1] - after[:, L - 1]).abs().max() > 1e-3


@pytest.mark.parametrize("passes", [1, 2])
def test_a_last_pass_from_pass_1_is_sleep_while_there_are_no_passes_between(model: HybridLM, passes: int) -> None:
    sleep = SleepConfig(window_size=L, num_sleep_passes=passes)
    assert torch.equal(logits(other(models.LastPassFromFirst, model, passes)), logits(model, sleep=sleep))


def test_a_last_pass_starts_from_what_pass_1_left_and_h_goes_on(model: HybridLM) -> None:
    found = logits(other(models.LastPassFromFirst, model, 4))
    torch.testing.assert_close(found, by_hand(model, [0, 1, 2, 1], 1))
    assert (found - logits(model, sleep=SleepConfig(window_size=L, num_sleep_passes=4))).abs().max() > 1e-3


def test_gradients_of_other_passes_are_those_by_hand(model: HybridLM) -> None:
    """With the middle passes' own fast weights in them, through h."""
    made = other(models.LastPassFromFirst, model, 3)
    text, asked = TOKENS[:, :L], TOKENS[:, L : 2 * L]
    mask = torch.tensor([False, True]).repeat_interleave(L).expand(3, -1)
    rollout(made, TOKENS[:, : 2 * L], mask, PLAIN)[0].square().sum().backward()
    h, S1 = model.blocks(model.embed(text), State.empty(4), 0, 4, span=L)
    h, _ = model.blocks(h, State(S1.fast_weights, (None,) * 4), 0, 4, span=L)
    _, S3 = model.blocks(h, State(S1.fast_weights, (None,) * 4), 0, 4, span=L)
    h, _ = model.blocks(model.embed(asked), State(S3.fast_weights, (None,) * 4), 0, 4, span=L)
    model.head(h).square().sum().backward()
    for (name, ours), theirs in zip(made.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, msg=lambda text, name=name: f"{name}: {text}")


def test_other_passes_refuse_a_window_in_pieces(model: HybridLM) -> None:
    made = other(models.LoopedAwake, model, 2)
    _, state = made.blocks(model.embed(TOKENS[:, :2]), State.empty(4), 0, 4, span=L)
    with pytest.raises(UserError, match="whole windows"):
        made.blocks(model.embed(TOKENS[:, 2:L]), state, 0, 4, span=L)


def test_zeroed_is_an_empty_context(model: HybridLM) -> None:
    sleep = SleepConfig(window_size=L, num_sleep_passes=4)
    zeroed = logits(cells.as_tested(cells.CONTROLS["zeroed"], model), sleep=sleep).view(3, 2, L, -1)
    for i, window in enumerate((2, 4)):
        alone = TOKENS[:, window * L : (window + 1) * L]
        expected = logits(model, alone, torch.ones_like(alone, dtype=torch.bool), sleep).view(3, L, -1)
        torch.testing.assert_close(zeroed[:, i], expected)


def cell_of(name: str, recipe: Recipe, runs: Path = Path(), steps: int = 6) -> Any:
    return cells.cell_of(recipe, name, 0, runs, lambda what: steps)


def own_model(cell: Any, random: Callable[..., HybridLM]) -> HybridLM:
    """The model of a cell with parameters that all matter."""
    plain = cells.build(cell.control, cell.recipe.hybrid, 0)
    sizes = cell.recipe.hybrid.model_dump(exclude={"layers"})
    plain.load_state_dict(random(*cell.recipe.hybrid.layers, **sizes, dtype=torch.float32).state_dict())
    return plain


def reached(name: str, random: Callable[..., HybridLM]) -> list[bool]:
    """For each window of the task's recipe, whether gradients of the labels come to all of its tokens."""
    task = {"num_states": 3, "rollout_steps": [1, 9]}
    recipe = tiny_recipe(task=task, sleep={"window_size": 7}, train={"batch_size": 1})
    cell = cell_of(name, recipe)
    made = own_model(cell, random)
    batch = cell.recipe.task.batch("test", 0, 0, range(1))
    embedded = made.embed(batch.tokens).detach().requires_grad_()
    rollout(made, embedded, batch.loss_mask, cell.recipe.sleep)[0].square().sum().backward()
    assert embedded.grad is not None
    return [bool((window.abs().amax(-1) > 0).all()) for window in embedded.grad.split(7, dim=1)]


def test_gradients_reach_all_windows_of_a_transformer_from_which_nothing_is_evicted(
    tiny_model: Callable[..., HybridLM],
) -> None:
    assert reached("full-context", tiny_model) == [True] * 4
    assert "gdn" not in cell_of("full-context", tiny_recipe()).recipe.hybrid.layers


def test_four_times_the_blocks_are_as_deep_as_four_passes_and_untied(tiny_model: Callable[..., HybridLM]) -> None:
    """With equal parameters in all four, they are four passes of which each keeps fast weights of its own."""
    few = own_model(cell_of("n1", tiny_recipe()), tiny_model)
    cell = cell_of("deep", tiny_recipe())
    deep = cells.build(cell.control, cell.recipe.hybrid, 0)
    assert len({p.data_ptr() for p in deep.parameters()}) == 4 * len([*few.layers.parameters()]) + 2
    for i, block in enumerate(deep.layers):
        block.load_state_dict(few.layers[i % 2].state_dict())
    h = start = torch.randn(2, 5, 16)
    with torch.no_grad():
        for _ in range(4):
            h, _ = few.blocks(h, State.empty(2), 0, 2, span=5)
        torch.testing.assert_close(deep.blocks(start, State.empty(8), 0, 8, span=5)[0], h)
    assert cell.recipe.sleep.num_sleep_passes == 1


def test_all_controls_have_the_same_examples_and_start_alike() -> None:
    recipe = tiny_recipe(train={"curriculum": 0.5})
    made = {name: cell_of(name, recipe) for name in cells.CONTROLS}
    start = cells.build(made["n4"].control, made["n4"].recipe.hybrid, 0).state_dict()
    for name, cell in made.items():
        for step in (0, 3, 5):
            ours, theirs = (make_batch(one.task, one.train, step) for one in (cell.recipe, recipe))
            assert all(map(torch.equal, ours, theirs))
        if name not in ("deep", "full-context"):
            own = cells.build(cell.control, cell.recipe.hybrid, 0).state_dict()
            assert own.keys() == start.keys()
            assert all(torch.equal(own[key], start[key]) for key in own)
