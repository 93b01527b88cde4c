"""Batches made on the device are those made by the CPU, with the same counts of labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_recipe import tiny_recipe

import reverie.train.ready
from reverie.recipe import Recipe
from reverie.sleep.labels import count_labels
from reverie.tasks import DeviceTask
from reverie.train.batches import make_batch
from reverie.train.ready import Ready, made_there, ready_batches


def assert_those_of_the_steps(made: list[Ready], recipe: Recipe, first: int, examples: range | None = None) -> None:
    assert len(made) == recipe.train.steps - first
    for step, (batch, labels) in enumerate(made, start=first):
        expected = make_batch(recipe, step, examples)
        assert all(torch.equal(a, b) for a, b in zip(batch, expected, strict=True))
        assert torch.equal(labels, count_labels(expected.loss_mask, recipe.sleep.window_size))


@pytest.mark.parametrize("first", [0, 4])
@pytest.mark.parametrize("examples", [None, range(2, 5)])
def test_on_the_cpu(first: int, examples: range | None):
    recipe = tiny_recipe(train={"depth_curriculum": 0.8})
    with ready_batches(recipe, first, examples) as made:
        assert_those_of_the_steps(list(made), recipe, first, examples)


@pytest.mark.parametrize("stretch", [1, 4, 64])
@pytest.mark.parametrize("first", [0, 3])
@pytest.mark.parametrize("examples", [None, range(2, 5)])
def test_by_the_task_on_a_device(stretch: int, first: int, examples: range | None, monkeypatch: pytest.MonkeyPatch):
    """Any device: here the CPU."""
    monkeypatch.setattr(reverie.train.ready, "STRETCH", stretch)
    recipe = tiny_recipe(train={"depth_curriculum": 0.8, "seed": 7})
    made = made_there(recipe, first, examples, torch.device("cpu"))
    assert_those_of_the_steps(list(made), recipe, first, examples)


def test_a_gpu_makes_them_itself_if_the_task_can(monkeypatch: pytest.MonkeyPatch):
    called: list[Any] = []
    monkeypatch.setattr(reverie.train.ready, "made_there", lambda *arguments: iter(called.append(arguments) or ()))
    recipe = tiny_recipe()
    assert isinstance(recipe.task, DeviceTask)
    with ready_batches(recipe, 2, None, "cuda") as made:
        assert list(made) == []
    assert called == [(recipe, 2, None, torch.device("cuda"), None)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("by_the_task", [True, False])
def test_on_cuda(by_the_task: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    if not by_the_task:
        monkeypatch.setattr(reverie.train.ready, "DeviceTask", int)
    recipe = tiny_recipe(train={"depth_curriculum": 0.8})
    with ready_batches(recipe, 1, None, "cuda") as made:
        there = list(made)
    assert all(x.is_cuda for batch, _ in there for x in batch)
    here = [Ready(type(batch)(*(x.cpu() for x in batch)), labels) for batch, labels in there]
    assert_those_of_the_steps(here, recipe, 1)
