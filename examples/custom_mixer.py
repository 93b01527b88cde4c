"""A mixer of one's own: a decayed Hebbian memory with second-order keys.

    S_t = α_t S_{t−1} + φ(k_t) v_tᵀ ,   o_t = S_tᵀ φ(q_t) ,   φ(x) = x ⊗ x

Keys of size d so have d² places. φ(q)·φ(k) = (q·k)², so the products of a window need no outer product.

    reverie train examples/custom_mixer.toml
    python examples/custom_mixer.py          # the same from Python

The recipe names it custom_mixer:SecondOrder, and its settings under model.mixers. Other ways to the same:
`reverie.register_mixer("second-order", SecondOrder.Config, SecondOrder)`, then layers = ["attn", "second-order"];
`insert_fast_weights(model, [4], "custom_mixer:SecondOrder")` in a model of transformers.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field
from torch import Tensor, nn

from reverie.model import HybridConfig


class SecondOrder(nn.Module):
    """Fast weights [B, H, d², V]; nothing is cached."""

    class Config(BaseModel):
        """What `model.mixers` of a recipe sets."""

        size: int = Field(default=8, ge=1, description="d")

    def __init__(self, config: HybridConfig, settings: Config) -> None:
        super().__init__()
        self.heads, self.sizes = config.fast_heads, (settings.size, settings.size, config.value_size)
        self.qkv_proj = nn.Linear(config.width, self.heads * sum(self.sizes), bias=False)
        self.decay_proj = nn.Linear(config.width, self.heads)
        self.out_proj = nn.Linear(self.heads * config.value_size, config.width, bias=False)

    def forward(
        self, x: Tensor, fast_weights: Tensor | None, cache: None, *, span: int, output: bool = True
    ) -> tuple[Tensor | None, Tensor, None]:
        """y [B, T, D], the fast weights after x, and no cache."""
        projected = self.qkv_proj(x).float() if x.dtype != torch.float64 else self.qkv_proj(x)
        q, k, v = projected.unflatten(-1, (self.heads, -1)).transpose(1, 2).split(self.sizes, dim=-1)  # [B, H, T, …]
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        g = F.logsigmoid(self.decay_proj(x).to(v.dtype) + 4).mT.cumsum(-1)  # log of all decay up to a token
        before = v.new_zeros(*v.shape[:2], k.shape[-1] ** 2, v.shape[-1]) if fast_weights is None else fast_weights
        kept = (g[..., -1:] - g).exp()[..., None]  # of what a token writes, at the end
        after = g[..., -1, None, None].exp() * before + (kept * second(k)).mT @ v
        if not output:
            return None, after, None
        within = (g[..., :, None] - g[..., None, :]).tril().exp().tril() * (q @ k.mT).square()
        o = within @ v + g.exp()[..., None] * (second(q) @ before)
        return self.out_proj(o.transpose(1, 2).flatten(-2).to(x.dtype)), after, None


def second(x: Tensor) -> Tensor:
    """x ⊗ x, flattened."""
    return (x[..., :, None] * x[..., None, :]).flatten(-2)


def main() -> None:
    from reverie.recipe import load_recipe
    from reverie.train.run import train

    card = train(load_recipe(Path(__file__).with_suffix(".toml")), Path("runs/custom_mixer"))
    print(f"{card.score['token_accuracy']:.0%} of the bits are right")


if __name__ == "__main__":
    main()
