"""Attention is softmax over the band of the `span` newest tokens, whole or in pieces."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.attention import flex_attention as flex

from reverie.model import HybridConfig, HybridLM, KVCache
from reverie.model import attention as attention_module
from reverie.model.attention import Attention
from reverie.model.rotary import rotate

T = 9


@pytest.fixture(params=[1, 2], ids=["grouped heads", "all heads"])
def attention(request: pytest.FixtureRequest, tiny_model: Callable[..., HybridLM]) -> Attention:
    mixer = tiny_model("attn", num_kv_heads=request.param).layers[0].mixer
    assert isinstance(mixer, Attention)
    return mixer


@pytest.fixture
def x() -> Tensor:
    return torch.randn((2, T, 8), generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def slow_attention(attention: Attention, x: Tensor, span: int, window: int | None = None) -> Tensor:
    """o_t = V_tᵀ softmax(K_t q_t / √d) for each row, token and head by itself.

    Args:
        window: tokens from this one on see each other both ways.
    """
    H, Hkv = attention.heads
    d = attention.head_size
    projected = (x @ attention.qkv_proj.weight.T).unflatten(-1, (H + 2 * Hkv, d))
    q, k, v = projected[:, :, :H], projected[:, :, H : H + Hkv], projected[:, :, H + Hkv :]
    q, k = (F.rms_norm(y, (d,), eps=attention.norm_eps) for y in (q, k))
    q, k = rotate(q * attention.q_gain, 0, attention.rope_base), rotate(k, 0, attention.rope_base)
    o = torch.zeros_like(q)
    for b in range(x.shape[0]):
        for t in range(x.shape[1]):
            both_ways = window is not None and t >= window
            band = slice(max(t - span + 1, 0), min(t + span, x.shape[1]) if both_ways else t + 1)
            for head in range(H):
                group = head // (H // Hkv)
                weights = (k[b, band, group] @ q[b, t, head] / d**0.5).softmax(0)
                o[b, t, head] = weights @ v[b, band, group]
    return o.flatten(-2) @ attention.out_proj.weight.T


@pytest.mark.parametrize("span", [1, 2, 5, T, 100])
def test_it_is_softmax_over_a_band(attention: Attention, x: Tensor, span: int) -> None:
    y, fast_weights, _ = attention(x, None, None, span=span)
    torch.testing.assert_close(y, slow_attention(attention, x, span))
    assert fast_weights is None


@pytest.mark.parametrize("span", [1, 2, 5, T, 100])
@pytest.mark.parametrize("before", [0, 1, 4, T - 1])
def test_both_ways_it_is_softmax_over_the_window_and_the_band_before_it(
    attention: Attention, x: Tensor, span: int, before: int
) -> None:
    cache = attention(x[:, :before], None, None, span=span)[2] if before else None
    y, _, ours = attention(x[:, before:], None, cache, span=span, bidirectional=True)
    torch.testing.assert_close(y, slow_attention(attention, x, span, before)[:, before:])
    _, _, whole = attention(x, None, None, span=span)
    torch.testing.assert_close((ours.k, ours.v), (whole.k, whole.v))


@pytest.mark.parametrize("span", [1, 2, 5, T, 100])
@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("sizes", [[4, 5], [8, 1], [1, 3, 1, 4], [1] * T])
def test_pieces_are_one_call(attention: Attention, x: Tensor, sizes: list[int], gradients: bool, span: int) -> None:
    """Without gradients too, where the cache grows in place."""
    whole, _, whole_cache = attention(x, None, None, span=span)
    ys, cache = [], None
    with torch.set_grad_enabled(gradients):
        for piece in x.split(sizes, 1):
            y, _, cache = attention(piece, None, cache, span=span)
            ys.append(y)
    torch.testing.assert_close(torch.cat(ys, 1), whole)
    assert isinstance(cache, KVCache)
    torch.testing.assert_close((cache.k, cache.v), (whole_cache.k, whole_cache.v))


def test_without_output_the_cache_is_the_same(attention: Attention, x: Tensor) -> None:
    _, _, cache = attention(x[:, :4], None, None, span=5)
    _, _, wanted = attention(x[:, 4:], None, cache, span=5)
    y, _, got = attention(x[:, 4:], None, cache, span=5, output=False)
    assert y is None
    torch.testing.assert_close((got.k, got.v), (wanted.k, wanted.v), rtol=0, atol=0)


def test_the_cache_passed_in_is_left_alone(attention: Attention, x: Tensor) -> None:
    _, _, cache = attention(x[:, :4], None, None, span=5)
    before = cache.k.clone(), cache.v.clone()
    attention(x[:, 4:], None, cache, span=5)
    torch.testing.assert_close((cache.k, cache.v), before, rtol=0, atol=0)


def test_tokens_out_of_the_band_get_no_gradient(attention: Attention, x: Tensor) -> None:
    """Exactly zero, not small."""
    x.requires_grad_()
    y, _, _ = attention(x, None, None, span=3)
    (gradient,) = torch.autograd.grad(y[:, 6].square().sum(), [x])
    reached = gradient.abs().sum((0, 2)) > 0
    assert reached.nonzero().flatten().tolist() == [4, 5, 6]


def test_gradients(tiny_config: Callable[..., HybridConfig], attention: Attention, x: Tensor) -> None:
    """gradcheck through two calls, in x and in every parameter."""
    parameters = dict(attention.named_parameters())

    def two_calls(x: Tensor, *values: Tensor) -> Tensor:
        given = dict(zip(parameters, values, strict=True))
        y_1, _, cache = torch.func.functional_call(attention, given, (x[:, :2], None, None), {"span": 3})
        y_2, _, _ = torch.func.functional_call(attention, given, (x[:, 2:5], None, cache), {"span": 3})
        return torch.cat([y_1, y_2], 1)

    assert torch.autograd.gradcheck(two_calls, [x.requires_grad_(), *parameters.values()], fast_mode=True)


@pytest.mark.slow
@pytest.mark.parametrize("attention", [1], indirect=True, ids=["grouped heads"])
def test_a_compiled_band_is_the_same(
    tiny_model: Callable[..., HybridLM], attention: Attention, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What runs on CUDA, traced with its gradient; and compiled once for each of two shapes that take turns."""
    monkeypatch.setattr(attention_module, "FLEX_DEVICES", {"cpu"})
    monkeypatch.setattr(attention_module, "FLEX_SCORES", 0)
    monkeypatch.setattr(flex, "_validate_device", lambda *_: None)  # it refuses gradients on CPU, for speed alone
    x = torch.randn((2, 300, 8), generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    compiled, count = compiled_attention(attention)
    for _ in range(2):
        for cached, T in ((0, 300), (99, 150)):
            with torch.no_grad():
                cache = attention(x[:, :cached], None, None, span=100)[2] if cached else None
            results = [call(x[:, :T], None, cache, span=100)[0] for call in (attention, compiled)]
            gradients = [torch.autograd.grad(y.square().sum(), [x, *attention.parameters()]) for y in results]
            torch.testing.assert_close(results[1], results[0])
            torch.testing.assert_close(gradients[1], gradients[0])
    assert count() == 2


def compiled_attention(attention: Attention) -> tuple[Callable[..., Any], Callable[[], int]]:
    """Without code generation, and how often it has been compiled."""
    counter = CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()
    return torch.compile(attention, backend=counter, fullgraph=True, dynamic=False), lambda: counter.frame_count


@pytest.mark.parametrize(("T", "S", "span"), [(300, 300, 70), (150, 249, 100), (256, 511, 256)])
def test_tiles_of_a_band_are_those_that_hold_any_of_it(T: int, S: int, span: int) -> None:
    """And those on whose scores no mask is laid are full."""
    device = torch.device("cpu")
    attention_module._make_band(T, S, span, device)
    tiles = attention_module._bands[T, S, span, device]
    distance = torch.arange(S - T, S)[:, None] - torch.arange(S)
    band = F.pad((distance >= 0) & (distance < span), (0, -S % 128, 0, -T % 128))
    counts = band.unflatten(1, (-1, 128)).unflatten(0, (-1, 128)).sum((1, 3))
    assert torch.equal(tiles.to_dense()[0, 0].bool(), counts > 0)
    full = tiles.full_kv_num_blocks
    assert full is not None
    assert torch.equal(full[0, 0].long(), (counts == 128 * 128).sum(1))
