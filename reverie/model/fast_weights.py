"""The base of the fast-weight mixers: gates, normalised queries and keys, update rule, gated output norm.

    S_t = α_t S_{t−1} (I − β_t k_t k_tᵀ) + β_t v_t k_tᵀ ,   o_t = S_t q_t                  (paper, after equation 3)

The paper writes S as [V, K]; here fast weights are [B, H, K, V]. `GatedDeltaNet` and `JetLayer` differ in the
convolution before q, k and v alone.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from reverie import ops
from reverie.model.config import HybridConfig
from reverie.model.fused import normalise, rms_norm
from reverie.model.linear import linear
from reverie.model.state import ConvTail


class Projected(NamedTuple):
    """What a mixer writes into its fast weights, and reads them with."""

    q: Float[Tensor, "B T H K"]
    k: Float[Tensor, "B T H K"]
    v: Float[Tensor, "B T H V"]
    g: Float[Tensor, "B T H"]  # log decay
    beta: Float[Tensor, "B T H"]
    tail: ConvTail  # of the convolution


class FastWeightMixer(nn.Module):
    """A layer with fast weights [B, H, K, V]; subclasses define `mix_qkv`."""

    def __init__(self, config: HybridConfig) -> None:
        super().__init__()
        H, K, V = config.fast_heads, config.key_size, config.value_size
        self.sizes = (2 * H * K, H * V)  # of q and k, and of v
        self.heads, self.key_size, self.value_size = H, K, V
        self.conv_size = config.conv_size
        self.rule: Callable[..., tuple[Tensor | None, Tensor]] = partial(ops.run_rule, config.update_rule)
        self.backend = config.backend
        self.qkv_proj = nn.Linear(config.width, sum(self.sizes), bias=False)
        self.gate_proj = nn.Linear(config.width, H * V, bias=False)
        self.ab_proj = nn.Linear(config.width, 2 * H, bias=False)
        # α = exp(−exp(A_log) · softplus(a + dt_bias)); steps log-uniform in 1e-3 … 1e-1: a fresh memory forgets slowly
        step = torch.exp(torch.empty(H).uniform_(math.log(1e-3), math.log(1e-1)))
        self.A_log = nn.Parameter(torch.zeros(H))
        self.dt_bias = nn.Parameter(step + torch.log(-torch.expm1(-step)))  # softplus⁻¹
        self.norm_eps = config.norm_eps
        self.value_embed = nn.Linear(config.width, H * V) if config.value_embedding else None
        self.out_proj = nn.Linear(H * V, config.width, bias=False)

    def mix_qkv(
        self, x: Float[Tensor, "B T D"], tail: ConvTail | None
    ) -> tuple[Float[Tensor, "B T 2HK"], Float[Tensor, "B T HV"], ConvTail]:
        """Project x to q and k, which are one tensor, and v; convolve; also return the tail for the next call."""
        raise NotImplementedError

    def _normalised(self, qk: Float[Tensor, "B T 2HK"]) -> tuple[Float[Tensor, "B T H K"], Float[Tensor, "B T H K"]]:
        """q and k of every head, of norm 1."""
        qk = normalise(qk.unflatten(-1, (2 * self.heads, -1)), 1.0)
        q, k = qk.split_with_sizes((self.heads, self.heads), dim=2)
        return q, k

    def addresses(self, x: Float[Tensor, "B T D"]) -> tuple[Float[Tensor, "B T H K"], Float[Tensor, "B T H K"]]:
        """q and β k of tokens that begin a window: where they read, and where they write and how strongly."""
        q, k = self._normalised(self.mix_qkv(x, None)[0])
        return q, k * self.ab_proj(x)[..., self.heads :].sigmoid()[..., None]

    def project(
        self, x: Float[Tensor, "B T D"], tail: ConvTail | None, embedded: Float[Tensor, "B T D"] | None = None
    ) -> Projected:
        """What the update rule takes of x."""
        ab = linear(self.ab_proj, x)
        qk, v, tail = self.mix_qkv(x, tail)
        q, k = self._normalised(qk)
        if self.value_embed is not None:
            assert embedded is not None, "values are wanted from the embedded tokens too"
            v = v + F.silu(self.value_embed(rms_norm(embedded.to(x.dtype), self.norm_eps)))
        v = v.unflatten(-1, (self.heads, -1))
        ab = ab if ab.dtype == torch.float32 else ab.to(torch.promote_types(x.dtype, torch.float32))
        a, b = ab.split_with_sizes((self.heads, self.heads), dim=-1)
        g = -self.A_log.exp() * F.softplus(a + self.dt_bias)
        return Projected(q, k, v, g, b.sigmoid(), tail)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        fast_weights: Float[Tensor, "B H K V"] | None,
        cache: ConvTail | None,
        *,
        span: int,  # read by attention alone
        output: bool = True,
        embedded: Float[Tensor, "B T D"] | None = None,
        windows: int = 1,
    ) -> tuple[Float[Tensor, "B T D"] | None, Float[Tensor, "B H K V"], ConvTail]:
        """Write x into the fast weights, then read them, token by token.

        Args:
            embedded: the tokens as the model embeds them, from which values know their token (`value_embedding`): late
                in a deep model a hidden state no longer does.
            windows: rows of x that follow each other in a text, each from the fast weights that the one before left;
                `fast_weights` are then of texts, and those returned of rows.

        Returns y [B, T, D] (None without `output`), the new fast weights in float32, and the convolution's tail.
        """
        gate = linear(self.gate_proj, x) if output else None  # products one after the other find more in the caches
        q, k, v, g, beta, tail = self.project(x, cache, embedded)
        written = (q if output else None, k, v, g, beta)
        if windows == 1:
            o, new_fast_weights = self.rule(*written, initial_state=fast_weights, backend=self.backend)
        else:
            o, new_fast_weights = self._window_by_window(written, fast_weights, windows)
        if o is None or gate is None:
            return None, new_fast_weights, tail
        gated = rms_norm(o, self.norm_eps).flatten(-2) * F.silu(gate)
        return linear(self.out_proj, gated), new_fast_weights, tail

    def _window_by_window(
        self, written: Sequence[Tensor | None], fast_weights: Tensor | None, windows: int
    ) -> tuple[Tensor | None, Tensor]:
        """The rule over rows, of which each begins with the fast weights that the one before it left."""
        os, after = list[Tensor](), list[Tensor]()
        rows = [[x] * windows if x is None else x.unflatten(0, (-1, windows)).unbind(1) for x in written]
        for row in zip(*rows, strict=True):
            o, fast_weights = self.rule(*row, initial_state=fast_weights, backend=self.backend)
            os += [] if o is None else [o]
            after.append(fast_weights)
        return torch.stack(os, dim=1).flatten(0, 1) if os else None, torch.stack(after, dim=1).flatten(0, 1)


def window_bytes(mixers: Iterable[object]) -> int | None:
    """Bytes of the fast weights of these layers, of one text; None if one cannot take several windows in one call."""
    held = 0
    for mixer in mixers:
        if not isinstance(mixer, FastWeightMixer) or "forward" in vars(mixer):
            return None
        if type(mixer).forward is not FastWeightMixer.forward:
            return None
        held += 4 * mixer.heads * mixer.key_size * mixer.value_size
    return held


def with_tail(
    x: Float[Tensor, "B T C"], tail: ConvTail | None, conv_size: int
) -> tuple[Float[Tensor, "B T+{conv_size}-1 C"], ConvTail]:
    """Prepend the conv_size − 1 inputs before x, zeros at the start of a text; also return the next call's tail."""
    before = x.new_zeros(x.shape[0], conv_size - 1, x.shape[2]) if tail is None else tail.x
    before = before if before.dtype == x.dtype else before.to(x.dtype)
    extended = torch.cat([before, x], dim=1)
    newest = extended.narrow(1, x.shape[1], conv_size - 1)
    return extended, ConvTail(newest if x.shape[1] == 1 else newest.clone())  # a view would hold a window in memory
