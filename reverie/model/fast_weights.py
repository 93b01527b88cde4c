"""The base of the fast-weight mixers: gates, normalised queries and keys, update rule, gated output norm.

    S_t = α_t S_{t−1} (I − β_t k_t k_tᵀ) + β_t v_t k_tᵀ ,   o_t = S_t q_t                  (paper, after equation 3)

The paper writes S as [V, K]; here fast weights are [B, H, K, V]. `GatedDeltaNet` and `JetLayer` differ in the
convolution before q, k and v alone.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from reverie import ops
from reverie.model.config import HybridConfig
from reverie.model.fused import normalise, rms_norm
from reverie.model.state import ConvTail

RULES = {"hebbian": ops.hebbian_rule, "delta": ops.delta_rule, "gated_delta": ops.gated_delta_rule}


class FastWeightMixer(nn.Module):
    """A layer with fast weights [B, H, K, V]; subclasses define `mix_qkv`."""

    def __init__(self, config: HybridConfig) -> None:
        super().__init__()
        H, K, V = config.fast_heads, config.key_size, config.value_size
        self.sizes = (H * K, H * K, H * V)
        self.heads, self.key_size, self.value_size = H, K, V
        self.conv_size = config.conv_size
        self.rule, self.backend = RULES[config.update_rule], config.backend
        self.qkv_proj = nn.Linear(config.width, sum(self.sizes), bias=False)
        self.gate_proj = nn.Linear(config.width, H * V, bias=False)
        self.ab_proj = nn.Linear(config.width, 2 * H, bias=False)
        # α = exp(−exp(A_log) · softplus(a + dt_bias)); steps log-uniform in 1e-3 … 1e-1: a fresh memory forgets slowly
        step = torch.exp(torch.empty(H).uniform_(math.log(1e-3), math.log(1e-1)))
        self.A_log = nn.Parameter(torch.zeros(H))
        self.dt_bias = nn.Parameter(step + torch.log(-torch.expm1(-step)))  # softplus⁻¹
        self.norm_eps = config.norm_eps
        self.out_proj = nn.Linear(H * V, config.width, bias=False)

    def mix_qkv(
        self, x: Float[Tensor, "B T D"], tail: ConvTail | None
    ) -> tuple[Float[Tensor, "B T HK"], Float[Tensor, "B T HK"], Float[Tensor, "B T HV"], ConvTail]:
        """Project x to q, k and v, convolve; also return the tail for the next call."""
        raise NotImplementedError

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        fast_weights: Float[Tensor, "B H K V"] | None,
        cache: ConvTail | None,
        *,
        span: int,  # read by attention alone
        output: bool = True,
    ) -> tuple[Float[Tensor, "B T D"] | None, Float[Tensor, "B H K V"], ConvTail]:
        """Write x into the fast weights, then read them, token by token.

        Returns y [B, T, D] (None without `output`), the new fast weights in float32, and the convolution's tail.
        """
        q, k, v, tail = self.mix_qkv(x, cache)
        q, k = (normalise(y.unflatten(-1, (self.heads, -1)), 1.0) for y in (q, k))
        v = v.unflatten(-1, (self.heads, -1))
        a, b = self.ab_proj(x).to(torch.promote_types(x.dtype, torch.float32)).chunk(2, dim=-1)
        g = -self.A_log.exp() * F.softplus(a + self.dt_bias)
        o, new_fast_weights = self.rule(
            q if output else None, k, v, g, b.sigmoid(), initial_state=fast_weights, backend=self.backend
        )
        if o is None:
            return None, new_fast_weights, tail
        gated = rms_norm(o, self.norm_eps).flatten(-2) * F.silu(self.gate_proj(x))
        return self.out_proj(gated), new_fast_weights, tail


def with_tail(
    x: Float[Tensor, "B T C"], tail: ConvTail | None, conv_size: int
) -> tuple[Float[Tensor, "B T+{conv_size}-1 C"], ConvTail]:
    """Prepend the conv_size − 1 inputs before x, zeros at the start of a text; also return the next call's tail."""
    before = x.new_zeros(x.shape[0], conv_size - 1, x.shape[2]) if tail is None else tail.x
    extended = torch.cat([before, x], dim=1)
    return extended, ConvTail(extended[:, x.shape[1] :].clone())  # a view would hold the whole window in memory
