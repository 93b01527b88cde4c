"""Ways to compute a step: in which order they are tried, and what each falls back to."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from reverie.recipe import Recipe, load_recipe

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "gpu"))
ways: Any = importlib.import_module("ways")


def recipe() -> Recipe:
    return load_recipe("rule110/paper-t32")


def test_on_a_gpu_graphs_come_behind_the_same_way_without() -> None:
    """The first backend's eager ones lead."""
    long = load_recipe("rule110/paper-t32", ["sleep.window_size=65"])
    names = [way.name for way in ways.ways_of(long, torch.device("cuda"), ["chunked", "fla", "triton"])]
    assert names[:3] == ["triton, eager", "triton, eager CUDA graph", "triton, compiled"]
    assert len(names) == 12
    for name in names:
        if name.endswith("CUDA graph"):
            plain = name.replace("compiled CUDA graph", "compiled").replace("eager CUDA graph", "eager")
            assert names.index(plain) < names.index(name)


@pytest.mark.parametrize(
    ("window", "passed", "tried"),
    [
        (24, ["chunked", "fla", "triton"], {"fla", "triton"}),
        (24, ["chunked", "fla"], {"chunked", "fla"}),
        (100, ["chunked", "triton"], {"chunked", "triton"}),
        (2000, ["chunked", "triton"], {"triton"}),
        (2000, ["chunked"], {"chunked"}),
        (24, [], set()),
    ],
)
def test_chunked_is_tried_where_it_may_win(window: int, passed: list[str], tried: set[str]) -> None:
    found = ways.ways_of(
        load_recipe("rule110/paper-t32", [f"sleep.window_size={window}"]), torch.device("cuda"), passed
    )
    assert {way.backend for way in found} == tried


def test_every_way_is_the_same_run() -> None:
    for way in ways.ways_of(recipe(), torch.device("cuda"), ["chunked", "fla"]):
        computed = way.applied(recipe())
        assert ways.way_of(computed) == way
        assert ways.same_run(computed, recipe())
        assert ways.same_run(recipe(), computed)
    other = load_recipe("rule110/paper-t32", ["optim.muon_lr=1e-3"])
    assert not ways.same_run(other, recipe())


def test_a_way_falls_back_to_the_end() -> None:
    way, names = ways.Way("fla", True, True), []
    while way is not None:
        names.append(way.name)
        way = way.simpler
    assert names == ["fla, compiled CUDA graph", "fla, compiled", "fla, eager"]
