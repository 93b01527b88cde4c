"""Small memories of one model, and folders for stores of them, local and in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from store_files import CONFIG, Files, new_folder

from reverie import Memory, sleep_over


@pytest.fixture(params=["local", "memory"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> Files:
    return Files(str(tmp_path / "deep" / "store") if request.param == "local" else new_folder())


@pytest.fixture(scope="session")
def model(tiny_model: Callable[..., Any]) -> Any:
    return tiny_model("attn", "gdn", dtype=torch.float32)


@pytest.fixture(scope="session")
def memories(model: Any) -> list[Memory]:
    """Four different memories, in equally large files."""
    torch.manual_seed(0)
    made = [sleep_over(model, torch.randint(11, (1, 9)), CONFIG) for _ in range(4)]
    return [replace(memory, notes={"source": f"{i}.txt"}) for i, memory in enumerate(made)]


@pytest.fixture(scope="session")
def size(memories: list[Memory]) -> int:
    """Bytes of each memory's file."""
    (nbytes,) = {len(memory.to_bytes()) for memory in memories}
    return nbytes
