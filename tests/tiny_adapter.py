"""An adapter that trains in seconds: of a random llama of three blocks, on short pages of notes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tiny import tiny

from reverie.recipe import Recipe, changed, load_recipe

W = 48  # tokens of a window


def tiny_base(folder: Path, kind: str = "llama", **changes: Any) -> Path:
    """With SmolLM2's vocabulary."""
    tiny(kind, dtype=torch.float32, vocab_size=49152, num_hidden_layers=3, **changes).save_pretrained(folder)
    return folder


def tiny_adapter(base: Path, **sections: dict[str, Any]) -> Recipe:
    """A recipe of notes, with other values in some sections."""
    small = {
        "task": {"window_tokens": W},
        "model": {
            "pretrained": str(base),
            "after": [1],
            "key_size": 8,
            "value_size": 12,
            "lora_rank": None,
            "lora_blocks": [],
        },
        "sleep": {"window_size": W, "num_sleep_passes": 1, "looped_blocks": None},
        "optim": {"warmup_steps": 0},
        "train": {"steps": 6, "batch_size": 4, "eval_every": 3, "eval_examples": 3, "checkpoint_every": 2},
        "adapt": {"trained_blocks": [[2, 3]], "pool": 20, "pages": [1, 2], "start": {"pages": 16}},
    }
    return changed(changed(load_recipe("notes/smollm2"), **small), **sections)
