"""What the throughput benchmark measures: a model of Ouro 1.4B's sizes, its texts, and the ways of training on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from reverie.errors import UserError
from reverie.model import Eviction, HybridConfig, HybridLM
from reverie.model.config import BlockKind
from reverie.sleep import SleepConfig

Way = Literal["parallel", "sliding", "hard", "asleep"]
WAYS: dict[Way, str] = {
    "parallel": "one forward over the whole text, attention to the newest L tokens, fast weights over all of it",
    "sliding": "window by window, N = 1, the newest L − 1 tokens kept: the same function as parallel",
    "hard": "window by window, N = 1, nothing kept but fast weights: another function",
    "asleep": "N passes over every window but the last, whose tokens are the labels; hard eviction",
}
Checkpoint = Literal["none", "pass", "window"]

BLOCKS, JET_EVERY = 24, 4  # six Jet layers, behind blocks 3, 7, … 23


def ouro(backend: Literal["fla", "chunked", "triton"] = "chunked") -> HybridConfig:
    """Ouro 1.4B's sizes with Jet layers inserted, each 19.4M parameters: 8.1 % more than without them.

    Their values are as wide as Jet-Nemotron 2B's, 256 a head; keys are 128, as wide as a tile of the kernels, where
    Jet-Nemotron's 96 would fill it to three quarters. Of its 12 heads (at width 1,536) 8 stay below 10 %.
    """
    pattern: list[BlockKind] = []
    for block in range(BLOCKS):
        pattern.append("attn")
        if (block + 1) % JET_EVERY == 0:
            pattern.append("jet-only")
    return HybridConfig(
        vocab_size=49_152,
        width=2048,
        layers=tuple(pattern),
        mlp_width=5632,
        num_heads=16,
        fast_heads=8,
        key_size=128,
        value_size=256,
        backend=backend,
    )


class Configuration(NamedTuple):
    """One way of training at one window size."""

    way: Way
    window: int
    passes: int = 1

    @property
    def name(self) -> str:
        return f"{self.way}-{self.window}" + (f"-N{self.passes}" if self.way == "asleep" else "")

    @property
    def sleep(self) -> SleepConfig:
        eviction: Eviction = "sliding" if self.way == "sliding" else "hard"
        return SleepConfig(window_size=self.window, num_sleep_passes=self.passes, eviction=eviction)

    def labelled(self, length: int) -> list[bool]:
        """By window. A last one may be shorter; where labels stand in the last alone, they are as many fewer."""
        windows = -(-length // self.window)
        return [self.way != "asleep"] * (windows - 1) + [True]


class Study(NamedTuple):
    """The model, the texts of an optimiser step, and what is measured with them."""

    model: HybridConfig
    text: int = 12_000  # tokens
    texts: int = 8  # of an optimiser step
    windows: tuple[int, ...] = (2000, 1000, 4000)  # tokens; the paper's own first
    passes: tuple[int, ...] = (1, 2, 4)
    at_once: tuple[int, ...] = (4, 2, 1)  # texts in one backward pass: the most that fit
    checkpoints: tuple[Checkpoint, ...] = ("none", "pass", "window")  # the first that fits
    dtype: torch.dtype = torch.bfloat16

    def configurations(self) -> list[Configuration]:
        """By window, so that what was compiled for one serves the next."""
        return [
            configuration
            for window in self.windows
            for configuration in (
                Configuration("parallel", window),
                Configuration("sliding", window),
                Configuration("hard", window),
                *(Configuration("asleep", window, n) for n in self.passes),
            )
        ]

    def chosen(self, only: Sequence[str]) -> list[Configuration]:
        """Those whose names hold one of these words; all if there are none.

        Raises UserError where a word is in no name.
        """
        everything = self.configurations()
        for word in only:
            if not any(word in configuration.name for configuration in everything):
                raise UserError(
                    f"--only {word} fits none of the configurations: {', '.join(c.name for c in everything)}"
                )
        return [c for c in everything if not only or any(word in c.name for word in only)]

    def batch(self, seed: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Random tokens [texts, text] and the token behind each."""
        random = torch.Generator().manual_seed(seed)
        tokens = torch.randint(self.model.vocab_size, (self.texts, self.text + 1), generator=random).to(device)
        return tokens[:, :-1], tokens[:, 1:]


def random_model(config: HybridConfig, device: torch.device, seed: int = 0) -> HybridLM:
    """No parameter zero, as some are in a new model: products of zeros run faster."""
    with torch.device(device), torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        model = HybridLM(config)
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear) and name.rsplit(".", 1)[-1] in ("out_proj", "lm_head"):
                scale = 0.1 if name.endswith("out_proj") else 1.0  # or h would grow from block to block
                nn.init.normal_(module.weight, std=scale * module.in_features**-0.5)
    return model
