"""An injection of one's own: what passes of sleep read beside h fades with the pass, at a rate of each channel's own.

    pass n reads  h + rⁿ⁻² ⊙ strength ⊙ embedded ,   r = sigmoid(rate)

Pass 1 never asks, so N = 1 is what it was; `strength` starts at zero, so N > 1 starts as without an injection.

    reverie compare examples/custom_injection.toml --vary model.injection=none,add,gate,custom_injection:Fading
    python examples/custom_injection.py

In a model of transformers: `add_sleep(model, config, injection="custom_injection:Fading")`.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from reverie.model import Injection


class Fading(Injection):
    """Made with the model's width; its parameters are the model's, and saved with it."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.strength = nn.Parameter(torch.zeros(width))
        self.rate = nn.Parameter(torch.zeros(width))

    def forward(self, n: int, h: Tensor, embedded: Tensor) -> Tensor:
        return h + self.rate.sigmoid() ** (n - 2) * self.strength * embedded


def main() -> None:
    from reverie.recipe import load_recipe
    from reverie.train.run import train

    card = train(load_recipe(Path(__file__).with_suffix(".toml")), Path("runs/custom_injection"))
    print(f"{card.score['token_accuracy']:.0%} of the bits are right")


if __name__ == "__main__":
    main()
