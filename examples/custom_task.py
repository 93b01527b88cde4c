"""A task of one's own, in one file: `reverie train examples/custom_task.toml`, or `python examples/custom_task.py`.

A window of numbers is evicted; then come the questions "+k?": what is the sum of the first k of them, modulo 5? The
recipe beside this file names the class. Arguments are overrides of it, such as train.steps=100; it takes half a minute.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar

import numpy as np
from pydantic import Field

from reverie.tasks import Batch, Section, Split, TaskSettings, as_batch, draw


class ModularAddition(TaskSettings):
    depth_name: ClassVar[str] = "terms k"  # as plots and tables say it

    modulus: int = Field(default=5, ge=2)
    num_terms: int = Field(default=3, ge=1)

    @property
    def vocab_size(self) -> int:
        return self.modulus + self.num_terms

    def batch(self, split: Split, seed: int, step: int, examples: range, max_depth: int | None = None) -> Batch:
        n = self.num_terms
        words = draw(split, seed, step, examples, 2 * n)  # random: of each example its own, whoever makes it
        terms = (words[:, :n] % np.uint64(self.modulus)).astype(np.int64)
        k = words[:, n:].argsort(axis=1) + 1  # each once, in random order
        sums = np.take_along_axis(terms.cumsum(axis=1) % self.modulus, k - 1, axis=1)
        asked = k <= (max_depth if split == "train" and max_depth else n)
        blank = np.zeros_like(terms)
        return as_batch(
            tokens=np.concatenate([terms, self.modulus + k - 1], axis=1),
            targets=np.concatenate([blank, np.where(asked, sums, 0)], axis=1),
            depth=np.concatenate([blank, np.where(asked, k, 0)], axis=1),
            question=np.concatenate([blank - 1, np.where(asked, np.arange(n), -1)], axis=1),
        )

    def depths(self) -> range:
        return range(1, self.num_terms + 1)

    def chance(self) -> dict[int, float]:
        return dict.fromkeys(self.depths(), 1 / self.modulus)

    def chance_exact(self) -> float:
        return self.modulus**-self.num_terms

    def token_names(self) -> list[str]:
        return [*map(str, range(self.modulus)), *(f"+{k}?" for k in self.depths())]

    def sections(self) -> list[Section]:
        return [Section("terms", self.num_terms), Section("questions", self.num_terms)]


if __name__ == "__main__":
    from reverie.recipe import load_recipe
    from reverie.train.run import train

    recipe = load_recipe(Path(__file__).with_suffix(".toml"), sys.argv[1:])
    with TemporaryDirectory() as out:
        card = train(recipe, Path(out), report=lambda progress, loss: print(f"step {progress.step}: {loss:.3f}"))
    for depth, part in card.score["by_depth"].items():
        print(f"{depth} terms: {part['accuracy']:.0%}, chance {card.chance.by_depth[depth]:.0%}")
