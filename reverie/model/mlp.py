"""The gated MLP of every block: SwiGLU (arXiv 2002.05202)."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from reverie.model.config import HybridConfig
from reverie.model.linear import linear


class SwiGLU(nn.Module):
    """y = out_proj(silu(gate) · up), with gate and up from one projection."""

    def __init__(self, config: HybridConfig) -> None:
        super().__init__()
        self.in_proj = nn.Linear(config.width, 2 * config.mlp_width, bias=False)
        self.out_proj = nn.Linear(config.mlp_width, config.width, bias=False)

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        both = linear(self.in_proj, x)
        gate, up = both.split_with_sizes((both.shape[-1] // 2,) * 2, dim=-1)
        return linear(self.out_proj, F.silu(gate) * up)
