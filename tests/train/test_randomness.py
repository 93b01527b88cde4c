"""What draws within a step, such as dropout, draws the same in the same run, whether that was broken off or not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from same_run import Killed, assert_same_run, kill_at
from tiny_recipe import tiny_recipe

from reverie.model import register_mixer
from reverie.model.gated_deltanet import GatedDeltaNet
from reverie.model.mixers import MIXERS
from reverie.results.checkpoint import FILE_NAME, load_checkpoint
from reverie.train.run import train


class Dropping(GatedDeltaNet):
    """Gated DeltaNet that sees half of its input in training."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return super().forward(F.dropout(x, 0.5, self.training), *args, **kwargs)


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    register_mixer("dropping", None, Dropping)
    yield
    del MIXERS["dropping"]


def test_a_model_with_dropout_trains_to_the_same_curve_twice_and_with_a_break(tmp_path: Path) -> None:
    recipe = tiny_recipe(model={"layers": ["attn", "dropping"]})
    for name in ("once", "again"):
        torch.rand(len(name))  # whatever the process has drawn before
        train(recipe, tmp_path / name)
    assert_same_run(tmp_path / "again", tmp_path / "once")
    with pytest.raises(Killed):
        train(recipe, tmp_path / "broken", report=kill_at(3))
    train(recipe, tmp_path / "broken", resume=True)
    assert_same_run(tmp_path / "broken", tmp_path / "once")


def test_dropout_is_on_in_training(tmp_path: Path) -> None:
    weights = []
    for layers in (["attn", "dropping"], ["attn", "gdn"]):
        train(tiny_recipe(model={"layers": layers}), tmp_path / layers[1])
        weights.append(load_checkpoint(tmp_path / layers[1] / FILE_NAME).tensors)
    assert not torch.equal(*(x["model.layers.0.mixer.out_proj.weight"] for x in weights))
