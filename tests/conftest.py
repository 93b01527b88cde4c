"""Runtime checks of the annotations, one thread, and small models to test."""

from __future__ import annotations

import torch
from jaxtyping import install_import_hook

install_import_hook(["reverie.ops", "reverie.model", "reverie.sleep"], "beartype.beartype")
torch.set_num_threads(1)
