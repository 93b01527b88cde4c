"""Rows of a batch go their own ways: each sleeps over its own windows without labels, as if it were alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from algorithm_1 import LAYERS, L, MakeModel, T, algorithm_1, asleep, assert_same, each_eviction, labels, tensors, text
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from truncated import equal

from reverie.errors import UserError
from reverie.model import State, select_rows
from reverie.sleep import Context, consolidate, forget, rollout, rollout_hidden, sleep, wake
from reverie.sleep.gradients import Backward
from reverie.sleep.labels import in_labelled, labelled_windows

B = 3
any_mask = st.lists(st.sets(st.integers(0, T - 1), max_size=4), min_size=B, max_size=B).filter(any)
each_way = pytest.mark.parametrize(
    ("eviction", "loop"), [("hard", None), ("hard", (1, 3)), ("sliding", (1, 3))], ids=str
)
some_examples = settings(max_examples=3, deadline=None, database=None, derandomize=True)


def mask_of(places: list[set[int]]) -> Tensor:
    mask = torch.zeros(B, T, dtype=torch.bool)
    for row, own in enumerate(places):
        mask[row, list(own)] = True
    return mask


def random_weights(like: Tensor, seed: int) -> Tensor:
    return torch.randn(like.shape, dtype=like.dtype, generator=torch.Generator().manual_seed(seed))


def loss_of(logits: Tensor, mask: Tensor, context: Context, rows: list[int]) -> Tensor:
    """Of these rows of the batch: a loss on logits and on the context at the end."""
    cotangent = random_weights(torch.empty(B, T, 11, dtype=torch.float64), 3)[rows]
    loss = (logits * cotangent[mask]).sum()
    for i, S in enumerate(context.state.fast_weights):
        if S is not None:
            loss = loss + (S * random_weights(S.new_empty(B, *S.shape[1:]), i)[rows]).sum()
    return loss


@pytest.mark.slow
@pytest.mark.parametrize(
    ("eviction", "loop", "N"),
    [("hard", None, 3), ("hard", (1, 3), 3), ("sliding", (1, 3), 1), ("sliding", (1, 3), 3)],
    ids=str,
)
@some_examples
@given(places=any_mask)
def test_each_row_is_algorithm_1_by_itself(
    tiny_model: MakeModel, eviction: str, loop: tuple[int, int] | None, N: int, places: list[set[int]]
) -> None:
    """Logits, fast weights, and the passes spent, wherever other rows have their labels."""
    model, tokens, mask, config = tiny_model(*LAYERS["gdn"]), text(rows=B), mask_of(places), asleep(N, eviction, loop)
    logits, context = rollout(model, tokens, mask, config)
    sleeps = ~labelled_windows(mask, L)
    alone = [algorithm_1(model, tokens[i : i + 1], config, sleeps[i].tolist()) for i in range(B)]
    assert_same(logits, torch.cat([row[mask[i : i + 1]] for i, (row, _) in enumerate(alone)]))
    for i, (_, S) in enumerate(alone):
        assert_same(select_rows(context.state.fast_weights, torch.tensor([i])), S)
    assert torch.as_tensor(context.passes).expand(B).tolist() == (N * sleeps.sum(1)).tolist()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("eviction", "changes"),
    [
        ("hard", {"activation_checkpoint": "pass"}),
        ("hard", {"bptt_passes": 2, "bptt_windows": 2}),
        ("sliding", {"activation_checkpoint": "window", "bptt_windows": 1}),
    ],
    ids=str,
)
@some_examples
@given(places=any_mask)
def test_gradients_of_a_batch_are_those_of_its_rows(
    tiny_model: MakeModel, eviction: str, changes: dict[str, Any], places: list[set[int]]
) -> None:
    """Of the logits and of the context at the end; truncation cuts each row where it would be cut alone."""
    model, tokens, mask = tiny_model("gdn", "attn", "jet"), text(rows=B), mask_of(places)
    config, backward = asleep(3, eviction, (1, 3)), Backward.model_validate(changes)

    def gradients(rows: list[int]) -> list[Tensor]:
        if mask[rows].any():
            logits, context = rollout(model, tokens[rows], mask[rows], config, backward=backward)
        else:  # nothing is predicted, but the context at the end has a gradient
            labelled = torch.zeros(2, 4, dtype=torch.bool)
            labelled[1] = True
            both = rollout_hidden(model, tokens[rows * 2], config, labelled, backward=backward)[1]
            logits, context = torch.empty(0, 11), select_rows(both, torch.tensor([0]))
        loss = loss_of(logits, mask[rows], context, rows)
        if not loss.requires_grad:
            return [torch.zeros_like(p) for p in model.parameters()]
        return list(torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True))

    together, alone = gradients(list(range(B))), [gradients([i]) for i in range(B)]
    assert_same(together, [sum(parts) for parts in zip(*alone, strict=True)])


@each_way
def test_rows_that_agree_are_one_batch_bit_for_bit(
    tiny_model: MakeModel, eviction: str, loop: tuple[int, int] | None
) -> None:
    """As if there were no rows: the loop over windows written out."""
    model, tokens, config = tiny_model(*LAYERS["gdn"], dtype=torch.float32), text(), asleep(2, eviction, loop)
    mask, context, hs = labels(1, 3), Context.empty(model), []
    for i, window in enumerate(tokens.split(L, 1)):
        h, context = wake(model, window, context, config, output=i in (1, 3))
        hs += [h] if i in (1, 3) else []
        context = forget(context, config) if i in (1, 3) else sleep(model, context, config)
    logits, end = rollout(model, tokens, mask, config)
    labelled = labelled_windows(mask, L)
    assert torch.equal(logits, model.head(torch.cat(hs, 1)[in_labelled(mask, L, labelled)]))
    assert equal(tensors(end.state), tensors(context.state))
    assert end.passes == context.passes == 4


def test_a_row_may_be_predicted_in_a_window_without_its_label(tiny_model: MakeModel) -> None:
    """`labelled` decides, not the mask: then that row does not sleep over it."""
    model, tokens, mask, config = tiny_model(*LAYERS["gdn"]), text(), labels(3), asleep(3)
    labelled = labelled_windows(mask, L)
    labelled[1, 1] = True
    _, context = rollout(model, tokens, mask, config, labelled=labelled)
    for row in (0, 1):
        _, S = algorithm_1(model, tokens[row : row + 1], config, (~labelled[row]).tolist())
        assert_same(select_rows(context.state.fast_weights, torch.tensor([row])), S)


@each_eviction
def test_a_rollout_goes_on_from_a_context(tiny_model: MakeModel, eviction: str) -> None:
    """Between two windows, each row with its own count of passes; in the middle of one it is refused."""
    model, tokens, config = tiny_model(*LAYERS["gdn"]), text(rows=B), asleep(2, eviction)
    mask = mask_of([{11}, {16}, {11, 16}])
    wanted, end = rollout(model, tokens, mask, config)
    begun = consolidate(model, tokens[:, :L], Context.empty(model), config)
    logits, context = rollout(model, tokens[:, L:], mask[:, L:], config, context=begun)
    assert_same(logits, wanted)
    assert_same(tensors(context), tensors(end))
    _, awake = wake(model, tokens[:, :3], Context.empty(model), config)
    with pytest.raises(UserError, match="a rollout begins with a new window, but 3 tokens of one are awake"):
        rollout(model, tokens[:, 3:], mask[:, 3:], config, context=awake)


def test_passes_asleep_alone_are_observed(tiny_model: MakeModel) -> None:
    """Of the rows that sleep, with the window's index."""
    model, mask, seen = tiny_model(*LAYERS["gdn"]), mask_of([{0}, {6}, {0, 6}]), list[tuple[int, int, int]]()

    def observe(window: int, n: int, h: Tensor, before: State, after: State) -> None:
        seen.append((window, n, len(h)))

    rollout_hidden(model, text(rows=B), asleep(2), labelled_windows(mask, L), observe=observe)
    assert seen == [(0, 1, 1), (0, 2, 1), (1, 1, 1), (1, 2, 1), *[(w, n, B) for w in (2, 3) for n in (1, 2)]]
