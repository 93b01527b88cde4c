"""The fast-weight layers against their formulas, written out token by token from the layers' parameters."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from reverie.model import ConvTail, HybridLM
from reverie.model.fast_weights import FastWeightMixer
from reverie.model.gated_deltanet import GatedDeltaNet
from reverie.model.jet import JetLayer
from reverie.ops import RULES

T = 7
each_rule = pytest.mark.parametrize("rule", RULES)


@pytest.fixture(params=["gdn", "jet"])
def make(request: pytest.FixtureRequest, tiny_model: Callable[..., HybridLM]) -> Callable[..., FastWeightMixer]:
    def one(**changes: object) -> FastWeightMixer:
        mixer = tiny_model(request.param, **changes).layers[0].mixer
        assert isinstance(mixer, FastWeightMixer)
        return mixer

    return one


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def three(layer: FastWeightMixer) -> list[int]:
    """Widths of q, k and v."""
    return [layer.heads * size for size in (layer.key_size, layer.key_size, layer.value_size)]


def slow_gated_deltanet_qkv(layer: GatedDeltaNet, x: Tensor) -> list[Tensor]:
    """One row [T, D]: silu(Σ_i w_i u_{t − conv_size + 1 + i}) for q, k and v, u = 0 before the first token."""
    u, taps = x @ layer.qkv_proj.weight.T, len(layer.conv_weight)
    mixed = torch.zeros_like(u)
    for t in range(len(x)):
        for i in range(taps):
            if t - taps + 1 + i >= 0:
                mixed[t] += layer.conv_weight[i] * u[t - taps + 1 + i]
    return list(F.silu(mixed).split(three(layer), -1))


def slow_jet_qkv(layer: JetLayer, x: Tensor) -> list[Tensor]:
    """One row [T, D]: SiLU for q and k; v convolved with kernels of its own for each token, made from the token's x."""
    q, k, u = (x @ layer.qkv_proj.weight.T).split(three(layer), -1)
    taps, mixed = layer.conv_size, torch.zeros_like(u)
    for t in range(len(x)):
        hidden = F.silu(layer.kernel_in.weight @ x[t])
        kernels = (layer.kernel_out.weight @ hidden + layer.kernel_out.bias).unflatten(0, (taps, -1))
        for i in range(taps):
            if t - taps + 1 + i >= 0:
                mixed[t] += kernels[i] * u[t - taps + 1 + i]
    return [F.silu(q), F.silu(k), F.silu(mixed)]


def slow_layer(layer: FastWeightMixer, x: Tensor, S_0: Tensor, rule: str) -> tuple[Tensor, Tensor]:
    """S_t = α_t S_{t−1} (I − β_t k_t k_tᵀ) + β_t v_t k_tᵀ, o_t = S_t q_t / √K, then the gated norm and W_o."""
    H, K, V = layer.heads, layer.key_size, layer.value_size
    ys, states = [], []
    for row, S_row in zip(x, S_0, strict=True):
        qkv = slow_gated_deltanet_qkv(layer, row) if isinstance(layer, GatedDeltaNet) else None
        if isinstance(layer, JetLayer):
            qkv = slow_jet_qkv(layer, row)
        assert qkv is not None
        q, k, v = (y.unflatten(-1, (H, -1)) for y in qkv)
        a, b = (row @ layer.ab_proj.weight.T).split(H, -1)
        alpha = torch.exp(-torch.exp(layer.A_log) * F.softplus(a + layer.dt_bias))
        beta = torch.sigmoid(b)
        S = [S_row[head].T for head in range(H)]  # [V, K], as the paper writes it
        o = torch.zeros(len(row), H, V, dtype=x.dtype)
        for t in range(len(row)):
            for head in range(H):
                k_t, q_t = (y[t, head] / (y[t, head].square().sum() + 1e-6).sqrt() for y in (k, q))
                kept = torch.eye(K) - beta[t, head] * torch.outer(k_t, k_t) if rule != "hebbian" else torch.eye(K)
                decay = alpha[t, head] if rule != "delta" else 1.0
                S[head] = decay * S[head] @ kept.to(x.dtype) + beta[t, head] * torch.outer(v[t, head], k_t)
                o[t, head] = S[head] @ q_t / K**0.5
        normed = F.rms_norm(o, (V,), eps=layer.norm_eps).flatten(-2)
        ys.append((normed * F.silu(row @ layer.gate_proj.weight.T)) @ layer.out_proj.weight.T)
        states.append(torch.stack([S_head.T for S_head in S]))
    return torch.stack(ys), torch.stack(states)


@each_rule
@pytest.mark.parametrize("conv_size", [1, 4])
def test_layers_are_their_formulas(make: Callable[..., FastWeightMixer], rule: str, conv_size: int) -> None:
    layer = make(update_rule=rule, conv_size=conv_size)
    x, S_0 = normal(2, T, 8), normal(2, 2, 3, 5, seed=1)
    y, S, tail = layer(x, S_0, None, span=T)
    wanted_y, wanted_S = slow_layer(layer, x, S_0, rule)
    torch.testing.assert_close(y, wanted_y)
    torch.testing.assert_close(S, wanted_S)
    assert tail.x.shape[1] == conv_size - 1


@each_rule
@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("sizes", [[3, 4], [1, 2, 1, 3], [1] * T])
def test_pieces_are_one_call(
    make: Callable[..., FastWeightMixer], rule: str, sizes: list[int], gradients: bool
) -> None:
    """Without gradients too, where a single token goes another way."""
    layer = make(update_rule=rule)
    x = normal(2, T, 8)
    whole, whole_S, whole_tail = layer(x, None, None, span=T)
    ys, S, tail = [], None, None
    with torch.set_grad_enabled(gradients):
        for piece in x.split(sizes, 1):
            y, S, tail = layer(piece, S, tail, span=T)
            ys.append(y)
    torch.testing.assert_close(torch.cat(ys, 1), whole)
    assert isinstance(tail, ConvTail)
    torch.testing.assert_close((S, tail.x), (whole_S, whole_tail.x))


def test_without_output_the_state_is_the_same(make: Callable[..., FastWeightMixer]) -> None:
    layer, x = make(), normal(2, T, 8)
    _, S, tail = layer(x[:, :3], None, None, span=T)
    _, wanted_S, wanted_tail = layer(x[:, 3:], S, tail, span=T)
    y, got_S, got_tail = layer(x[:, 3:], S, tail, span=T, output=False)
    assert y is None
    torch.testing.assert_close((got_S, got_tail.x), (wanted_S, wanted_tail.x), rtol=0, atol=0)


def test_the_state_passed_in_is_left_alone(make: Callable[..., FastWeightMixer]) -> None:
    layer, x = make(), normal(2, T, 8)
    _, S, tail = layer(x[:, :3], None, None, span=T)
    before = S.clone(), tail.x.clone()
    layer(x[:, 3:], S, tail, span=T)
    torch.testing.assert_close((S, tail.x), before, rtol=0, atol=0)


def test_backends_agree(make: Callable[..., FastWeightMixer]) -> None:
    x = normal(2, T, 8)
    chunked, reference = (make(backend=backend)(x, None, None, span=T)[:2] for backend in ("chunked", "reference"))
    torch.testing.assert_close(chunked, reference)


@each_rule
def test_gradients(make: Callable[..., FastWeightMixer], rule: str) -> None:
    """gradcheck through two calls, in x, the fast weights and every parameter."""
    layer = make(update_rule=rule)
    parameters = dict(layer.named_parameters())

    def two_calls(x: Tensor, S: Tensor, *values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        given = dict(zip(parameters, values, strict=True))
        y_1, S, tail = torch.func.functional_call(layer, given, (x[:, :3], S, None), {"span": T})
        y_2, S, _ = torch.func.functional_call(layer, given, (x[:, 3:], S, tail), {"span": T})
        return y_1, y_2, S

    leaves = [normal(1, 5, 8).requires_grad_(), normal(1, 2, 3, 5, seed=1).requires_grad_(), *parameters.values()]
    assert torch.autograd.gradcheck(two_calls, leaves, fast_mode=True)


@pytest.mark.parametrize("autocast", [False, True], ids=["bfloat16 model", "autocast"])
def test_fast_weights_are_float32_in_bfloat16(make: Callable[..., FastWeightMixer], autocast: bool) -> None:
    """Whatever the type of the tokens; and the result is that of float32 to bfloat16's precision."""
    exact = make(dtype=torch.float32)
    x = normal(2, T, 8).float()
    wanted, _, _ = exact(x, None, None, span=T)
    layer = exact if autocast else make(dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y, S, _ = layer(x if autocast else x.bfloat16(), None, None, span=T)
    assert (y.dtype, S.dtype) == (torch.bfloat16, torch.float32)
    assert (y.float() - wanted).norm() < 0.05 * wanted.norm()


def test_values_of_embedded_tokens(make: Callable[..., FastWeightMixer]) -> None:
    """v + silu(W e / rms(e) + b), where asked for; else the layer has no such parameters."""
    x, e = normal(2, T, 8), normal(2, T, 8, seed=1)
    with_them, without = make(value_embedding=True), make()
    names = {name for name, _ in with_them.named_parameters()} - {name for name, _ in without.named_parameters()}
    assert names == {"value_embed.weight", "value_embed.bias"}
    without.load_state_dict({name: p for name, p in with_them.state_dict().items() if name not in names})
    ours, plain = with_them.project(x, None, e), without.project(x, None)
    normed = e / (e.square().mean(-1, keepdim=True) + without.norm_eps).sqrt()
    assert with_them.value_embed is not None
    added = F.silu(normed @ with_them.value_embed.weight.T + with_them.value_embed.bias)
    torch.testing.assert_close(ours.v.flatten(-2), plain.v.flatten(-2) + added, rtol=1e-9, atol=1e-9)
    for name in ("q", "k", "g", "beta"):
        assert torch.equal(getattr(ours, name), getattr(plain, name))


def test_addresses_are_the_queries_and_keys_of_the_layer(make: Callable[..., FastWeightMixer]) -> None:
    """q, and β k as it is written, of tokens that begin a window."""
    mixer, x = make(), normal(2, T, 8)
    q, key = mixer.addresses(x)
    projected = mixer.project(x, None)
    assert torch.equal(q, projected.q)
    torch.testing.assert_close(key, projected.k * projected.beta[..., None])
