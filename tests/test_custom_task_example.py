"""examples/custom_task.py, run for a few steps as it stands, and its recipe by the command line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from outside import as_in_a_new_process

from reverie.recipe import load_recipe
from reverie.tasks import Split

EXAMPLE = Path(__file__).parents[1] / "examples" / "custom_task.py"


def test_its_answers_are_sums_of_what_was_evicted() -> None:
    with as_in_a_new_process(EXAMPLE.parent):
        task = load_recipe(EXAMPLE.with_suffix(".toml")).task
        cases: list[tuple[Split, int | None]] = [("test", None), ("train", None), ("train", 2)]
        for split, deepest in cases:
            batch = task.batch(split, 3, 4, range(5, 40), max_depth=deepest)
            terms, asked = batch.tokens[:, :3].numpy(), batch.tokens[:, 3:].numpy() - 4
            sums = np.stack([[row[:k].sum() % 5 for k in ks] for row, ks in zip(terms, asked, strict=True)])
            scored = asked <= (deepest or 3)
            assert np.array_equal(batch.loss_mask[:, 3:].numpy(), scored)
            assert np.array_equal(batch.targets[:, 3:].numpy(), np.where(scored, sums, 0))
            assert np.array_equal(batch.depth[:, 3:].numpy(), np.where(scored, asked, 0))
            assert not batch.loss_mask[:, :3].any()
            again = task.batch(split, 3, 4, range(6, 7), max_depth=deepest)
            assert all(torch.equal(one[0], all_[1]) for one, all_ in zip(again, batch, strict=True))
        assert {task.token_names()[i] for i in range(5, 8)} == {"+1?", "+2?", "+3?"}


@pytest.mark.slow
def test_it_runs() -> None:
    few = "train.steps=2", "train.eval_examples=8"
    done = subprocess.run([sys.executable, str(EXAMPLE), *few], capture_output=True, text=True, check=True)
    steps, results = done.stdout.splitlines()[:2], done.stdout.splitlines()[2:]
    assert [line.split(":")[0] for line in steps] == ["step 1", "step 2"]
    assert [line.split(":")[0] for line in results] == ["1 terms", "2 terms", "3 terms"]
    assert all(line.endswith("chance 20%") for line in results)
