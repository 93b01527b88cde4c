"""Our kernels are the reference: on CPU in Triton's interpreter (`make test-triton`), on CUDA as they are compiled."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import pytest
import torch
from random_inputs import RULES, Inputs, Rule, assert_same, call, outcome, random_inputs
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from reverie.errors import UserError
from reverie.ops import gated_delta_rule, triton

each_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
HAS_TRITON = importlib.util.find_spec("triton") is not None
INTERPRETED = HAS_TRITON and os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
runs = pytest.mark.skipif(
    not INTERPRETED and not (HAS_TRITON and torch.cuda.is_available()),
    reason="needs CUDA and triton, or TRITON_INTERPRET=1: make test-triton",
)


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "PRECISION", "ieee")


def on_device(rule: Rule, inputs: Inputs, **options: Any) -> dict[str, Tensor | None]:
    moved: list[Any] = [None if x is None else x.to(DEVICE) for x in inputs]
    got = outcome(rule, Inputs(*moved), backend="triton", **options)
    return {name: None if x is None else x.cpu() for name, x in got.items()}


def compare(rule: Rule, inputs: Inputs, tolerance: float = 2e-4, **options: Any) -> None:
    got = on_device(rule, inputs, **options)
    for name, x in got.items():
        assert x is None or x.isfinite().all(), name
    assert_same(got, outcome(rule, inputs, backend="reference"), tolerance)


@pytest.fixture
def small() -> Inputs:
    return random_inputs(7, B=1, dtype=torch.float32)


@each_rule
def test_without_triton_the_error_says_how_to_install_it(rule: Rule, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "installed", lambda: False)
    with pytest.raises(UserError, match="pip install triton"):
        call(rule, random_inputs(2), backend="triton")


def test_off_cuda_the_error_names_the_device_and_a_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "installed", lambda: True)
    monkeypatch.setattr(triton, "interpreted", lambda: False)
    with pytest.raises(UserError, match="needs CUDA tensors, got cpu: use 'chunked'"):
        call(gated_delta_rule, random_inputs(2), backend="triton")


@pytest.mark.parametrize(
    ("sizes", "dtype", "message"),
    [
        ({"T": 2, "K": 257}, torch.float32, "keys of size 256 at most, got 257"),
        ({"T": 2}, torch.float64, "the memory in float32, got float64: use 'chunked'"),
    ],
)
def test_what_the_kernels_do_not_take_is_refused(
    sizes: dict[str, Any], dtype: torch.dtype, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton, "installed", lambda: True)
    monkeypatch.setattr(triton, "interpreted", lambda: True)
    with pytest.raises(UserError, match=message):
        call(gated_delta_rule, random_inputs(**sizes, B=1, dtype=dtype), backend="triton")


@runs
@each_rule
@pytest.mark.parametrize("state", [False, True], ids=["from zero", "from a state"])
@pytest.mark.parametrize("T", [1, 7, 33, 64])
def test_values_and_gradients(rule: Rule, T: int, state: bool) -> None:
    compare(rule, random_inputs(T, state=state, dtype=torch.float32))


@runs
@each_rule
@pytest.mark.parametrize("with_q", [False, True])
@pytest.mark.parametrize(("T", "chunk_size"), [(75, None), (9, 4), (8, 1)])
def test_more_tokens_than_a_kernel_takes_go_through_several(
    rule: Rule, T: int, chunk_size: int | None, with_q: bool
) -> None:
    inputs = random_inputs(T, B=1, dtype=torch.float32)
    compare(rule, inputs if with_q else inputs._replace(q=None), chunk_size=chunk_size)


def test_the_gradient_of_many_chunks_costs_as_much_as_its_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers that its operations write, without the kernels: twice as many for twice as many tokens."""
    monkeypatch.setattr(triton, "installed", lambda: True)
    monkeypatch.setattr(triton, "interpreted", lambda: True)
    monkeypatch.setattr(triton, "_launch", lambda *_: None)

    class Written(TorchDispatchMode):
        numbers = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            self.numbers += sum(x.numel() for x in tree_leaves(result) if isinstance(x, Tensor))
            return result

    def numbers(T: int) -> int:
        leaves = Inputs(*(x.requires_grad_() for x in random_inputs(T, B=1, H=1, dtype=torch.float32)))
        o, S = call(gated_delta_rule, leaves, backend="triton")
        with Written() as written:
            torch.autograd.grad(o.sum() + S.sum(), list(leaves))
        return written.numbers

    assert numbers(4096) < 2.2 * numbers(2048)


def test_a_chunk_has_64_tokens_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "installed", lambda: True)
    monkeypatch.setattr(triton, "interpreted", lambda: True)
    with pytest.raises(UserError, match="chunks of at most 64 tokens, got chunk_size = 65"):
        call(gated_delta_rule, random_inputs(70, dtype=torch.float32), backend="triton", chunk_size=65)


@runs
@each_rule
@pytest.mark.parametrize(("K", "V"), [(1, 1), (96, 192), (33, 50)])
def test_any_shape_of_the_memory(rule: Rule, K: int, V: int) -> None:
    """Of one block, of several, of parts of some; the first in the sizes of Rule 110."""
    compare(rule, random_inputs(24, B=1, H=1, K=K, V=V, dtype=torch.float32))


@runs
@each_rule
def test_the_largest_key(rule: Rule) -> None:
    compare(rule, random_inputs(5, B=1, H=1, K=256, V=16, dtype=torch.float32))


@runs
@each_rule
@pytest.mark.parametrize("state", [False, True], ids=["from zero", "from a state"])
def test_without_q_the_state_and_its_gradients_are_the_same(rule: Rule, state: bool) -> None:
    compare(rule, random_inputs(9, state=state, dtype=torch.float32)._replace(q=None))


@runs
@each_rule
@pytest.mark.parametrize("part", [0, 1], ids=["o", "S"])
def test_gradients_of_one_result_alone(rule: Rule, part: int, small: Inputs) -> None:
    """Where nobody reads the other one, its gradient is no tensor at all."""
    gradients = []
    for backend, device in (("triton", DEVICE), ("reference", "cpu")):
        leaves = Inputs(*(x.to(device).requires_grad_() for x in small))
        result = call(rule, leaves, backend=backend)[part]
        weights = torch.randn(result.shape, generator=torch.Generator().manual_seed(0)).to(device)
        used = [x for x in leaves if not (rule is RULES["delta"] and x is leaves.g) and not (part and x is leaves.q)]
        gradients.append([x.cpu() for x in torch.autograd.grad((result * weights).sum(), used)])
    torch.testing.assert_close(*gradients, rtol=2e-4, atol=2e-4)


@runs
@each_rule
@pytest.mark.parametrize("share", [0.3, 1.0], ids=["some", "all"])
def test_strong_decay(rule: Rule, share: float) -> None:
    """g = −20, alone or among tiny decays."""
    inputs = random_inputs(64, dtype=torch.float32)
    strong = torch.rand(inputs.g.shape, generator=torch.Generator().manual_seed(0)) < share
    compare(rule, inputs._replace(g=torch.where(strong, -20.0, 1e-3 * inputs.g)), 1e-3)


@runs
def test_small_decays_survive_behind_strong_ones() -> None:
    """Differences of long sums of g would lose them in float32."""
    inputs = random_inputs(64, dtype=torch.float32)
    g = torch.full(inputs.g.shape, -1e-3)
    g[:, :48] = -20.3
    inputs = inputs._replace(g=g)
    double = [x.double() for x in inputs]
    _, wanted = call(gated_delta_rule, Inputs(*double), backend="reference")
    S = on_device(gated_delta_rule, inputs)["S"]
    assert S is not None
    torch.testing.assert_close(S.double(), wanted, rtol=0, atol=1e-6)


@runs
@each_rule
@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_step_sizes_at_the_ends(rule: Rule, beta: float) -> None:
    inputs = random_inputs(40, dtype=torch.float32)
    compare(rule, inputs._replace(beta=torch.full_like(inputs.beta, beta)), 1e-3)


@runs
@each_rule
@pytest.mark.parametrize("T", [24, 64])
def test_one_key_again_and_again(rule: Rule, T: int) -> None:
    """The hardest triangular system: all k equal, β = 1."""
    inputs = random_inputs(T, dtype=torch.float32)
    k, beta = inputs.k[:, :1].expand_as(inputs.k), torch.ones_like(inputs.beta)
    compare(rule, inputs._replace(k=k, beta=beta), 1e-3)


@runs
@each_rule
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_inputs(rule: Rule, dtype: torch.dtype) -> None:
    """The memory stays float32; products are of the short type, but for bfloat16 in the interpreter."""
    inputs = random_inputs(40, K=16, V=16, dtype=torch.float32)
    rounded = inputs._replace(q=inputs.q.to(dtype), k=inputs.k.to(dtype), v=inputs.v.to(dtype))
    got, wanted = on_device(rule, rounded), outcome(rule, rounded, backend="reference")
    assert got["S"] is not None
    assert got["S"].dtype == torch.float32
    for name, x in wanted.items():
        y = got[name]
        if x is None or y is None:
            assert x is y, name
            continue
        assert y.dtype == x.dtype, name
        assert (y.float() - x.float()).norm() < 2e-2 * x.float().norm(), name


@runs
@each_rule
def test_a_slice_of_a_projection(rule: Rule) -> None:
    """v, q and k as `split` leaves them, and a gradient that is a view."""
    inputs = random_inputs(7, dtype=torch.float32)
    wide = torch.cat([inputs.q, inputs.k, inputs.v], -1).flatten(2).repeat(1, 1, 2)
    *_, H, V = inputs.v.shape
    sliced = inputs._replace(v=wide[..., 3 : 3 + H * V].unflatten(-1, (H, V)), q=inputs.q.mT.contiguous().mT)
    compare(rule, sliced)
    o, S = call(rule, Inputs(*(x.to(DEVICE) for x in sliced)), backend="triton")
    wanted = call(rule, sliced, backend="reference")
    torch.testing.assert_close((o.cpu(), S.cpu()), wanted, rtol=2e-4, atol=2e-4)


@runs
@each_rule
def test_the_operators_keep_what_they_declare(rule: Rule, small: Inputs) -> None:
    """Shapes on fake tensors, gradients under autograd: what torch.compile believes without looking."""
    q, k, v, g, beta, S = (x.to(DEVICE) for x in small)
    erase, g = rule is not RULES["hebbian"], None if rule is RULES["delta"] else g
    arguments = (q, k, v, g, beta, S, 0.5, erase)
    torch.library.opcheck(triton._forward, arguments, test_utils=("test_schema", "test_faketensor"))
    o, S_end, inverse = triton._forward(*arguments)
    torch.library.opcheck(
        triton._backward, (o, S_end, *arguments[:6], inverse, 0.5, erase), test_utils=("test_schema", "test_faketensor")
    )


@runs
@pytest.mark.parametrize("erase", [True, False])
@pytest.mark.parametrize("with_q", [True, False])
def test_compiled_as_one_graph(erase: bool, with_q: bool, small: Inputs) -> None:
    inputs = small if with_q else small._replace(q=None)

    def rule(*args: Any, backend: str, **options: Any) -> tuple[Any, Tensor]:
        return triton.recurrence(*args, scale=0.5, erase=erase, **options)

    torch._dynamo.reset()
    compiled = torch.compile(rule, backend="aot_eager", fullgraph=True)
    assert_same(on_device(compiled, inputs), on_device(rule, inputs), 1e-6)


@runs
@each_rule
def test_under_activation_checkpointing(rule: Rule, small: Inputs) -> None:
    def replayed(*args: Any, **options: Any) -> Any:
        return checkpoint(rule, *args, use_reentrant=False, **options)

    assert_same(on_device(replayed, small), on_device(rule, small), 0.0)


@runs
def test_two_chained_calls(small: Inputs) -> None:
    """The gradient of the second call reaches the inputs of the first through the state."""

    def chained(*args: Any, initial_state: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        whole = Inputs(*args, initial_state=initial_state)
        o, S = call(gated_delta_rule, whole.cut(0, 3)._replace(initial_state=initial_state), **options)
        o_2, S = call(gated_delta_rule, whole.cut(3, 7)._replace(initial_state=S), **options)
        return torch.cat([o, o_2], 1), S

    assert_same(on_device(chained, small), outcome(gated_delta_rule, small, backend="reference"), 2e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_TRITON or INTERPRETED or not torch.cuda.is_available(), reason="needs CUDA and triton")
@each_rule
@pytest.mark.parametrize("state", [False, True])
@pytest.mark.parametrize(("T", "K", "V"), [(24, 96, 192), (64, 128, 256)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 5e-3), (torch.bfloat16, 2e-2)])
def test_on_tensor_cores(
    rule: Rule, T: int, K: int, V: int, state: bool, dtype: torch.dtype, tolerance: float, monkeypatch: Any
) -> None:
    """In the precision that models run in: every gradient as a whole, since single entries are small."""
    monkeypatch.setattr(triton, "PRECISION", "tf32")
    inputs = random_inputs(T, K=K, V=V, state=state, dtype=torch.float32)
    inputs = inputs._replace(q=inputs.q.to(dtype), k=inputs.k.to(dtype), v=inputs.v.to(dtype))
    got, wanted = on_device(rule, inputs), outcome(rule, inputs, backend="reference")
    for name, x in wanted.items():
        y = got[name]
        if x is not None and y is not None:
            assert (y.float() - x.float()).norm() < tolerance * x.float().norm(), name


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_TRITON or INTERPRETED or not torch.cuda.is_available(), reason="needs CUDA and triton")
def test_captured_in_a_cuda_graph(small: Inputs) -> None:
    leaves = Inputs(*(x.cuda().requires_grad_() for x in small))

    def step() -> tuple[Tensor, ...]:
        o, S = call(gated_delta_rule, leaves, backend="triton")
        return o, S, *torch.autograd.grad(o.square().sum() + S.square().sum(), list(leaves))

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        wanted = step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    graph.replay()
    torch.testing.assert_close(captured, wanted, rtol=0, atol=0)
