"""Truncated gradients, against windows and passes written out; and how recipes ask for them."""

from __future__ import annotations

import pytest
import torch
from algorithm_1 import L, MakeModel, T, asleep, labels, tensors
from truncated import LAYERS, LOOPS, Checkpoint, assert_cut_as_by_hand, equal, gradients

from reverie.errors import UserError
from reverie.recipe import load_recipe
from reverie.sleep import rollout
from reverie.sleep.gradients import EXACT, Backward

each_loop = pytest.mark.parametrize("loop", LOOPS.values(), ids=LOOPS)


@pytest.mark.slow
@each_loop
@pytest.mark.parametrize("windows", [(1,), (3,), (0, 3)], ids=str)
@pytest.mark.parametrize(("k", "m"), [(None, 1), (1, 0), (2, 1)])
def test_gradients_end_where_they_are_cut(
    tiny_model: MakeModel, loop: tuple[int, int] | None, windows: tuple[int, ...], k: int | None, m: int
) -> None:
    """Those of a label in window w before window w − m, and in each window before the last k passes."""
    backward = Backward(bptt_passes=k, bptt_windows=m)
    assert_cut_as_by_hand(tiny_model(*LAYERS), labels(*windows), asleep(3, "hard", loop), backward, lambda w: w - m)


@pytest.mark.slow
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


@pytest.mark.slow
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
    # The end of the text counts as a label after the last window; window 0 has a label of its own.
    for m in range(5):
        backward = Backward(activation_checkpoint=checkpoint, bptt_windows=m)
        _, context = rollout(model, tokens, labels(0), asleep(3, eviction), backward=backward)
        end = torch.stack([x.square().sum() for x in tensors(context.state.fast_weights)]).sum()
        rows = torch.zeros(T) if not m else torch.autograd.grad(end, [model.embedding.weight])[0].abs().sum(1)
        assert [bool(window.any()) for window in rows.split(L)] == [
            i >= 4 - m or m == 3 for i in range(4)
        ]  # window 0 has a label of its own
        assert end.requires_grad == (m > 0)
    # Tokens go into the first pass alone, and only what they made of the fast weights goes on from there.
    assert windows_reached(Backward(activation_checkpoint=checkpoint, bptt_passes=2)) == [False, False, False, True]


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
