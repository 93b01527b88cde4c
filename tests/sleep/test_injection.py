"""What passes of sleep read beside h, and attention that looks both ways in them, against Algorithm 1 written out."""

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
    gradients_of_rows,
    labels,
    tensors,
    text,
)
from torch import Tensor

from reverie.errors import UserError
from reverie.memory import Memory, sleep_over
from reverie.model import HybridLM, select_rows
from reverie.model.injection import INJECTIONS
from reverie.sleep import Context, SleepConfig, consolidate, read, rollout
from reverie.sleep.gradients import Backward

all_and_middle = pytest.mark.parametrize("loop", [None, (1, 3)], ids=["all", "middle"])
WAYS: dict[str, tuple[str, bool]] = {"add": ("add", False), "gate": ("gate", False), "both ways": ("none", True)}
WAYS |= {"gate, both ways": ("gate", True)}
each_way = pytest.mark.parametrize("way", WAYS)


def of_this_way(
    make: MakeModel, way: str, layers: Sequence[str], config: SleepConfig, **changes: Any
) -> tuple[HybridLM, SleepConfig]:
    """A model whose injection is open, and how it sleeps."""
    injection, both_ways = WAYS[way]
    model = make(*layers, injection=injection, **changes)
    if injection == "gate":
        gate: Any = model.injection
        torch.nn.init.normal_(gate.out, generator=torch.Generator().manual_seed(3))
    return model, config.model_copy(update={"bidirectional_sleep": both_ways})


@pytest.mark.parametrize(
    "layers", [LAYERS["gdn"], pytest.param(LAYERS["jet"], marks=pytest.mark.slow)], ids=["gdn", "jet"]
)
@each_eviction
@all_and_middle
@each_way
def test_one_call_pieces_and_single_tokens_are_algorithm_1(
    tiny_model: MakeModel, layers: Sequence[str], eviction: str, loop: tuple[int, int] | None, way: str
) -> None:
    model, config = of_this_way(tiny_model, way, layers, asleep(3, eviction, loop))
    tokens, injects = text(), WAYS[way][0] != "none"
    wanted, S = algorithm_1(model, tokens, config, [True, True, True, False])
    for sizes in ([T], [3, 4, 9, 1], [1] * T):
        logits, context = [], Context.empty(model)
        for piece in tokens.split(sizes, 1):
            some, context = read(model, piece, context, config)
            logits.append(some)
        assert_same(torch.cat(logits, 1), wanted)
        assert_same(context.state.fast_weights, S)
        assert sum(x.shape[1] for x in context.entered) == (context.length if injects else 0)
        assert not context.embedded
    plain = tiny_model(*layers)
    plain.load_state_dict(model.state_dict(), strict=False)
    other, _ = algorithm_1(plain, tokens, asleep(3, eviction, loop), [True, True, True, False])
    assert not torch.allclose(other, wanted)
    assert_same(other[:, :L], wanted[:, :L])


@each_way
@each_eviction
def test_one_pass_is_what_it_was(tiny_model: MakeModel, eviction: str, way: str, monkeypatch: Any) -> None:
    """Bit for bit, and nothing is injected."""
    model, config = of_this_way(tiny_model, way, LAYERS["gdn"], asleep(1, eviction))
    monkeypatch.setattr(HybridLM, "inject", None)
    plain = tiny_model(*LAYERS["gdn"])
    plain.load_state_dict(model.state_dict(), strict=False)
    ours = read(model, text(), Context.empty(model), config)[0]
    assert torch.equal(ours, read(plain, text(), Context.empty(plain), asleep(1, eviction))[0])


def test_a_gate_starts_closed(tiny_model: MakeModel) -> None:
    torch.manual_seed(0)
    model = HybridLM(tiny_model(*LAYERS["gdn"], injection="gate").config).double()
    h, embedded = torch.randn(2, 1, L, 8, dtype=torch.float64)
    assert torch.equal(model.inject(2, h, embedded), h)
    assert torch.autograd.grad(model.inject(2, h, embedded).sum(), list(model.parameters()), allow_unused=True)


@each_eviction
@all_and_middle
@each_way
def test_each_row_of_a_rollout_and_its_gradient_are_algorithm_1(
    tiny_model: MakeModel, eviction: str, loop: tuple[int, int] | None, way: str
) -> None:
    model, config = of_this_way(tiny_model, way, LAYERS["gdn"], asleep(2, eviction, loop))
    ours = gradients_of_rows(model, config)
    assert all(float(x.abs().sum()) > 0 for name, x in ours.items() if "injection" in name)


@pytest.mark.slow
@each_way
@pytest.mark.parametrize("value_embedding", [False, True])
def test_rows_that_halt_are_as_if_alone(tiny_model: MakeModel, way: str, value_embedding: bool) -> None:
    """Rows that have stopped leave the batch, and what passes read beside h with them."""
    model, config = of_this_way(tiny_model, way, LAYERS["gdn"], asleep(6), value_embedding=value_embedding)
    tokens = text(2 * L, rows=6)
    for tolerance in (0.02, 0.1, 0.3):
        halting = config.model_copy(update={"tolerance": tolerance})
        together = consolidate(model, tokens, Context.empty(model), halting)
        passes = torch.as_tensor(together.passes)
        for i in range(6):
            alone = consolidate(model, tokens[i : i + 1], Context.empty(model), halting)
            assert int(torch.as_tensor(alone.passes)) == int(passes[i])
            assert_same(select_rows(together.state.fast_weights, torch.tensor([i])), alone.state.fast_weights)


@pytest.mark.slow
@pytest.mark.parametrize("checkpoint", ["pass", "window"])
@all_and_middle
@each_way
def test_activation_checkpointing_changes_no_bit(
    tiny_model: MakeModel, loop: tuple[int, int] | None, checkpoint: Any, way: str
) -> None:
    model, config = of_this_way(tiny_model, way, LAYERS["gdn"], asleep(3, "hard", loop))

    def gradients(backward: Backward) -> list[Tensor]:
        logits, context = rollout(model, text(), labels(2), config, backward=backward)
        loss = logits.square().sum() + sum(x.square().sum() for x in tensors(context.state.fast_weights))
        return list(torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True))

    kept, again = (gradients(Backward(activation_checkpoint=kind)) for kind in ("none", checkpoint))
    assert all(map(torch.equal, kept, again))


@each_way
@each_eviction
def test_a_memory_goes_on_from_its_file(tiny_model: MakeModel, eviction: str, way: str, tmp_path: Any) -> None:
    model, config = of_this_way(tiny_model, way, LAYERS["gdn"], asleep(2, eviction), dtype=torch.float32)
    memory = sleep_over(model, text(12)[:1], config)
    memory.save(tmp_path / "m.memory")
    loaded = Memory.load(tmp_path / "m.memory", model)
    assert loaded.config == config
    question = text(T)[:1, 12:]
    ours, theirs = (read(model, question, one.context, config)[0] for one in (memory, loaded))
    assert torch.equal(ours, theirs)


def test_the_names_of_injections() -> None:
    assert list(INJECTIONS) == ["none", "add", "gate"]


def test_without_attention_nothing_can_look_both_ways(tiny_model: MakeModel) -> None:
    config = asleep(2).model_copy(update={"bidirectional_sleep": True})
    with pytest.raises(UserError, match="needs a block whose attention can look both ways, and the model has none"):
        sleep_over(tiny_model("gdn", "jet"), text(), config)
