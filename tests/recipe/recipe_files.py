"""Recipe files for tests."""

from __future__ import annotations

from pathlib import Path

FULL = """
[task]
name = "rule110"
rollout_steps = 4
[model]
layers = ["attn", "gdn"]
width = 16
mlp_width = 32
num_heads = 2
fast_heads = 2
key_size = 8
value_size = 8
[sleep]
window_size = 24
[optim]
matrices = { name = "muon", lr = 1e-3 }
rest = { name = "adamw", lr = 1e-3 }
[train]
steps = 10
batch_size = 4
"""


def write(folder: Path, **files: str) -> Path:
    """Recipes of these names and contents; returns the path of the first."""
    for name, text in files.items():
        (folder / f"{name}.toml").write_text(text, encoding="utf-8")
    return folder / f"{next(iter(files))}.toml"


STAGED = (
    FULL.replace("[sleep]", '[sleep]\neviction = "sliding"').replace("steps = 10", "steps = 9")
    + """
[[train.stages]]
share = 1
parameters = "fast_weights"
eviction = "hard"
[[train.stages]]
share = 2
parameters = "all"
eviction = "sliding"
"""
)
