"""A store's folder seen from outside, small memories, and what tests of stores share."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import fsspec
import pytest
import torch
from safetensors.torch import save

from reverie.errors import UserError
from reverie.memory.store import MemoryStore
from reverie.sleep import SleepConfig

CONFIG = SleepConfig(window_size=4, num_sleep_passes=2)
FOREIGN = save({"weight": torch.zeros(3)})  # a file of safetensors that is not a memory
_numbers = itertools.count()  # of folders in memory, which all tests share


class Files:
    """The files of a store's folder, read and written without the store."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.fs, self.path = fsspec.url_to_fs(url)

    def __getitem__(self, file: str) -> bytes:
        return self.fs.cat_file(f"{self.path}/{file}")

    def __setitem__(self, file: str, data: bytes) -> None:
        self.fs.makedirs(self.fs._parent(f"{self.path}/{file}"), exist_ok=True)
        self.fs.pipe_file(f"{self.path}/{file}", data)

    def __delitem__(self, file: str) -> None:
        self.fs.rm_file(f"{self.path}/{file}")

    def names(self) -> set[str]:
        files = self.fs.find(self.path) if self.fs.exists(self.path) else []
        return {file.removeprefix(f"{self.path}/") for file in files} - {".lock"}

    def stamp(self, name: str, hours_ago: float) -> None:
        """Write the marker of a memory that was used so long ago."""
        used = (datetime.now(UTC) - timedelta(hours=hours_ago)).isoformat()
        self[f".used/{name}"] = f"{used} {self.fs.size(f'{self.path}/{name}.safetensors')}".encode()


def new_folder() -> str:
    """URL of a folder in memory that no other test uses."""
    return f"memory://test/{next(_numbers)}"


def names(store: MemoryStore) -> list[str]:
    return [entry.name for entry in store.list()]


def refused(call: Callable[[], object]) -> str:
    """The sentence of the error that a call raises."""
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)
