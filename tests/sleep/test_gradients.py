"""Gradients through windows and passes are exact: those of Algorithm 1 written out, and of finite differences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
    each_loop,
    labels,
    some_passes,
    tensors,
    text,
)
from torch import Tensor, nn
from truncated import COTANGENT, gradients

from reverie.model import HybridLM, State
from reverie.sleep import Context, SleepConfig, consolidate, forget, rollout, sleep, wake


@pytest.mark.slow
@each_eviction
@each_loop
@pytest.mark.parametrize("N", [1, 3])
def test_logits_and_the_last_fast_weights_have_the_gradients_of_algorithm_1(
    tiny_model: MakeModel, eviction: str, loop: tuple[int, int] | None, N: int
) -> None:
    """Though nobody predicts after the last label, what sleep leaves there may still be asked for its gradient."""
    model, mask, config = tiny_model(*LAYERS["jet"]), labels(1), asleep(N, eviction, loop)
    logits, context = rollout(model, text(), mask, config)
    wanted, S = algorithm_1(model, text(), config, [True, False, True, True])

    def gradients_of(logits: Tensor, fast_weights: Sequence[Tensor | None]) -> list[Tensor]:
        random = torch.Generator().manual_seed(5)
        loss = (logits * COTANGENT[mask]).sum()
        for x in tensors(tuple(fast_weights)):
            loss = loss + (x * torch.randn(x.shape, dtype=x.dtype, generator=random)).sum()
        return list(torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True))

    assert_same(gradients_of(logits, context.state.fast_weights), gradients_of(wanted[mask], S))


@each_eviction
def test_consolidation_has_the_gradient_of_algorithm_1(tiny_model: MakeModel, eviction: str) -> None:
    model, config = tiny_model(*LAYERS["gdn"]), asleep(3, eviction)
    _, S = algorithm_1(model, text(), config, [True] * 4)
    ends = consolidate(model, text(), Context.empty(model), config).state.fast_weights, S
    ours, theirs = (
        torch.autograd.grad(
            torch.stack([x.square().sum() for x in tensors(end)]).sum(),
            list(model.parameters()),
            materialize_grads=True,
        )
        for end in ends
    )
    assert_same(ours, theirs)


def cut(context: Context) -> Context:
    """The same, with no gradient through the fast weights."""

    def detached(state: State) -> State:
        return state._replace(fast_weights=tuple(None if S is None else S.detach() for S in state.fast_weights))

    return context._replace(state=detached(context.state), window_start=detached(context.window_start))


@contextmanager
def recorded(model: HybridLM, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Tensor]]:
    """Collects the h that each run of the blocks starts from."""
    hs: list[Tensor] = []
    blocks = model.blocks

    def recording(h: Tensor, state: State, start: int, stop: int, **options: Any) -> tuple[Tensor, State]:
        if start < stop:
            hs.append(h)
        return blocks(h, state, start, stop, **options)

    with monkeypatch.context() as patch:
        patch.setattr(model, "blocks", recording)
        yield hs


@each_kind
@some_passes
def test_gradients_reach_every_pass_and_only_through_the_fast_weights(
    tiny_model: MakeModel, layers: Sequence[str], N: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an evicted window, a later loss sees nothing (no path at all) once the fast weights are cut."""
    model, config = tiny_model(*layers), asleep(N)
    first, second = text().split([L, T - L], 1)
    with recorded(model, monkeypatch) as hs:
        _, context = wake(model, first, Context.empty(model), config, output=False)
        context = sleep(model, context, config)
    assert len(hs) == N
    for through in (True, False):
        h, _ = wake(model, second[:, :L], context if through else cut(context), config)
        gradients = torch.autograd.grad(model.head(h).square().sum(), hs, allow_unused=True, retain_graph=True)
        for gradient in gradients:
            assert (gradient is not None) == through
            assert gradient is None or (gradient.abs().sum((0, 2)) > 1e-9).all()


def test_sliding_eviction_leaves_a_path_to_the_kept_tokens_alone(tiny_model: MakeModel) -> None:
    """In one attention block the first token of the next window sees L − 1 tokens of this one."""
    model, config = tiny_model("attn"), asleep(1, "sliding")
    embedded = model.embed(text(L))
    h, state = model.blocks(embedded, State.empty(1), 0, 1, span=L)
    context = forget(Context(state, State.empty(1), length=L), config)
    h, _ = wake(model, text(1), context, config)
    (gradient,) = torch.autograd.grad(h.square().sum(), [embedded])
    assert (gradient.abs().sum((0, 2)) > 0).tolist() == [False, True, True, True, True]


class Rollout(nn.Module):
    """`rollout` as a function of a model's parameters."""

    def __init__(self, model: HybridLM, config: SleepConfig) -> None:
        super().__init__()
        self.model, self.config = model, config

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        return rollout(self.model, tokens, mask, self.config)[0]


@pytest.mark.slow
@each_kind
@each_eviction
@pytest.mark.parametrize("loop", [None, (1, 3)], ids=["all", "middle"])
def test_gradcheck_through_two_passes_over_two_windows(
    tiny_model: MakeModel, layers: Sequence[str], eviction: str, loop: tuple[int, int] | None
) -> None:
    """Along a random direction of all parameters."""
    wrapped = Rollout(tiny_model(*layers), asleep(2, eviction, loop, window_size=3))
    shapes = {name: parameter.shape for name, parameter in wrapped.named_parameters()}
    tokens, mask = text(8)[:1], torch.arange(8)[None] > 5

    def logits(values: Tensor) -> Tensor:
        parts = values.split([shape.numel() for shape in shapes.values()])
        parameters = {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
        return torch.func.functional_call(wrapped, parameters, (tokens, mask))

    values = nn.utils.parameters_to_vector(wrapped.parameters()).detach().requires_grad_()
    assert torch.autograd.gradcheck(logits, [values], fast_mode=True)


@each_eviction
@each_loop
@some_passes
def test_every_parameter_learns(tiny_model: MakeModel, eviction: str, loop: tuple[int, int] | None, N: int) -> None:
    """Backward over three windows asleep and one awake works: nothing that it needs is overwritten."""
    model = tiny_model(*LAYERS["gdn"], dtype=torch.float32)
    logits, _ = rollout(model, text(), labels(3), asleep(N, eviction, loop))
    logits.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize(("eviction", "loop"), [("hard", None), ("sliding", (1, 3))])
def test_the_exact_gradient_is_that_of_finite_differences(
    tiny_model: MakeModel, eviction: str, loop: tuple[int, int] | None
) -> None:
    """Through three passes over two windows; of each parameter along a random direction."""
    model, mask, config = (
        tiny_model("gdn", "attn", "jet", "gdn"),
        labels(2, length=2 * L + 2),
        asleep(3, eviction, loop),
    )
    exact = dict(zip([name for name, _ in model.named_parameters()], gradients(model, mask, config)[1:], strict=True))
    random, step = torch.Generator().manual_seed(3), 2e-6

    @torch.no_grad()
    def loss_at(parameter: Tensor, shift: Tensor) -> float:
        parameter.add_(shift)
        logits, _ = rollout(model, text(2 * L + 2), mask, config)
        parameter.sub_(shift)
        return float((logits * COTANGENT[:, : 2 * L + 2][mask]).sum())

    for name in ("embedding.weight", "layers.0.mixer.A_log", "layers.1.mixer.q_gain", "layers.2.mlp.in_proj.weight"):
        parameter = model.get_parameter(name)
        direction = torch.randn(parameter.shape, dtype=torch.float64, generator=random)
        near, far = (
            loss_at(parameter, n * step * direction) - loss_at(parameter, -n * step * direction) for n in (1, 2)
        )
        slope = (8 * near - far) / (12 * step)
        assert float((exact[name] * direction).sum()) == pytest.approx(slope, rel=1e-6), name
