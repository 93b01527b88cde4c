"""Values that know their token (`value_embedding`): the embedded tokens of a window are there in every pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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
    each_kind,
    gradients_of_rows,
    labels,
    tensors,
    text,
)
from torch import Tensor, nn

from reverie.memory import Memory, sleep_over
from reverie.model import HybridLM
from reverie.sleep import Context, SleepConfig, consolidate, read, rollout
from reverie.sleep.gradients import Backward

all_and_middle = pytest.mark.parametrize("loop", [None, (1, 3)], ids=["all", "middle"])


@each_kind
@each_eviction
@all_and_middle
@pytest.mark.parametrize("N", [1, 2, 3])
def test_one_call_pieces_and_single_tokens_are_algorithm_1(
    tiny_model: MakeModel, layers: Sequence[str], eviction: str, loop: tuple[int, int] | None, N: int
) -> None:
    model, tokens, config = tiny_model(*layers, value_embedding=True), text(), asleep(N, eviction, loop)
    wanted, S = algorithm_1(model, tokens, config, [True, True, True, False])
    for sizes in ([T], [3, 4, 9, 1], [1] * T):
        logits, context = [], Context.empty(model)
        for piece in tokens.split(sizes, 1):
            some, context = read(model, piece, context, config)
            logits.append(some)
        assert_same(torch.cat(logits, 1), wanted)
        assert_same(context.state.fast_weights, S)
        assert sum(x.shape[1] for x in context.embedded) == (context.length if N > 1 else 0)


@each_kind
@each_eviction
@all_and_middle
def test_each_row_of_a_rollout_and_its_gradient_are_algorithm_1(
    tiny_model: MakeModel, layers: Sequence[str], eviction: str, loop: tuple[int, int] | None
) -> None:
    """Rows that sleep over different windows; gradients reach what makes values of embedded tokens."""
    model = tiny_model(*layers, value_embedding=True)
    ours = gradients_of_rows(model, asleep(2, eviction, loop))
    found = {name: float(x.abs().sum()) for name, x in ours.items() if "value_embed" in name}
    assert len(found) == 2 * sum(kind != "attn" for kind in layers)
    assert min(found.values()) > 1e-6


class Sleepers(nn.Module):
    """The fast weights after two windows, as a function of a model's parameters."""

    def __init__(self, model: HybridLM, config: SleepConfig) -> None:
        super().__init__()
        self.model, self.config = model, config

    def forward(self, tokens: Tensor) -> Tensor:
        context = consolidate(self.model, tokens, Context.empty(self.model), self.config)
        return torch.cat([x.flatten() for x in tensors(context.state.fast_weights)])


@all_and_middle
def test_gradcheck_of_embedded_values_through_two_passes(tiny_model: MakeModel, loop: tuple[int, int] | None) -> None:
    wrapped = Sleepers(tiny_model(*LAYERS["gdn"], value_embedding=True), asleep(2, "hard", loop, window_size=3))
    names = [name for name, _ in wrapped.named_parameters() if "value_embed" in name or "embedding" in name]

    def fast_weights(*values: Tensor) -> Tensor:
        return torch.func.functional_call(wrapped, dict(zip(names, values, strict=True)), (text(6)[:1],))

    values = [wrapped.get_parameter(name).detach().requires_grad_() for name in names]
    assert torch.autograd.gradcheck(fast_weights, values, fast_mode=True)


@pytest.mark.slow
@pytest.mark.parametrize("checkpoint", ["pass", "window"])
@each_eviction
@all_and_middle
def test_activation_checkpointing_changes_no_bit(
    tiny_model: MakeModel, eviction: str, loop: tuple[int, int] | None, checkpoint: Any
) -> None:
    model, mask = tiny_model(*LAYERS["jet"], value_embedding=True), labels(2)

    def gradients(backward: Backward) -> list[Tensor]:
        logits, context = rollout(model, text(), mask, asleep(3, eviction, loop), backward=backward)
        loss = logits.square().sum() + sum(x.square().sum() for x in tensors(context.state.fast_weights))
        return list(torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True))

    for passes in (None, 2):
        kept, again = (
            gradients(Backward(activation_checkpoint=kind, bptt_passes=passes)) for kind in ("none", checkpoint)
        )
        assert all(map(torch.equal, kept, again))


@each_eviction
def test_a_memory_goes_on_from_its_file(tiny_model: MakeModel, eviction: str, tmp_path: Any) -> None:
    model, config = tiny_model(*LAYERS["gdn"], value_embedding=True, dtype=torch.float32), asleep(2, eviction)
    memory = sleep_over(model, text(12)[:1], config)
    memory.save(tmp_path / "m.memory")
    loaded = Memory.load(tmp_path / "m.memory", model)
    for one in (memory, loaded):
        assert not one.context.embedded
    question = text(T)[:1, 12:]
    ours, theirs = (read(model, question, one.context, config)[0] for one in (memory, loaded))
    assert torch.equal(ours, theirs)
    assert not torch.equal(ours, read(model, question, Context.empty(model), config)[0])


def test_the_token_matters(tiny_model: MakeModel) -> None:
    """With what comes of the hidden state taken out, fast weights still tell two texts apart."""
    model = tiny_model("gdn", value_embedding=True)
    mixer: Any = model.layers[0].mixer
    with torch.no_grad():
        mixer.qkv_proj.weight[2 * mixer.sizes[0] :] = 0
        mixer.qkv_proj.weight[: 2 * mixer.sizes[0]] = 0.1  # all addresses alike
    one, other = (
        tensors(consolidate(model, x, Context.empty(model), asleep(1)).state.fast_weights)[0]
        for x in (text(L)[:1], text(L)[1:])
    )
    assert (one - other).abs().max() > 1e-3
