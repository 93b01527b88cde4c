"""A recipe that trains in a second: width 16, two blocks, Rule 110 on two states of 6 bits."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from reverie.recipe import Recipe, changed

TOML = """
[task]
name = "rule110"
num_states = 2
width = 6
rollout_steps = [1, 4]

[model]
layers = ["attn", "gdn"]
width = 16
mlp_width = 24
num_heads = 2
fast_heads = 2
key_size = 8
value_size = 8

[sleep]
window_size = 14
num_sleep_passes = 2

[optim]
matrices = { name = "muon", lr = 1e-2 }
rest = { name = "adamw", lr = 1e-2 }
warmup_steps = 3

[train]
steps = 6
batch_size = 8
eval_every = 3
eval_examples = 24
checkpoint_every = 2
"""


def tiny_recipe(**sections: dict[str, Any]) -> Recipe:
    """The recipe with other values in some sections."""
    return changed(Recipe.model_validate({**tomllib.loads(TOML), "name": "tiny"}), **sections)


def write_tiny(folder: Path) -> Path:
    """The recipe as a file, for the command line."""
    path = folder / "tiny.toml"
    path.write_text(TOML, encoding="utf-8")
    return path
