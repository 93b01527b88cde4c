"""Stores in a local folder and in memory, and memories to put into them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from store_files import CONFIG, NUMBERS, Files

from reverie.memory.memory import Memory, sleep_over


@pytest.fixture(params=["local", "memory"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> Files:
    number = next(NUMBERS)
    return Files(str(tmp_path / "deep" / "store") if request.param == "local" else f"memory://test/{number}")


@pytest.fixture(scope="session")
def store_model(tiny_model: Callable[..., Any]) -> Any:
    return tiny_model("attn", "gdn", dtype=torch.float32)


@pytest.fixture(scope="session")
def memories(store_model: Any) -> list[Memory]:
    """That differ, in equally large files."""
    torch.manual_seed(0)
    made = [sleep_over(store_model, torch.randint(11, (1, 9)), CONFIG) for _ in range(4)]
    return [replace(memory, notes={"source": f"{i}.txt"}) for i, memory in enumerate(made)]


@pytest.fixture(scope="session")
def size(memories: list[Memory]) -> int:
    (nbytes,) = {len(memory.to_bytes()) for memory in memories}
    return nbytes
