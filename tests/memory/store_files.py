"""The folder of a store, seen past the store, and what is said about it."""

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
FOREIGN = save({"weight": torch.zeros(3)})
NUMBERS = itertools.count()  # of folders in memory, which all tests share


class Files:
    """The folder of a store, seen past the store."""

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
        used = (datetime.now(UTC) - timedelta(hours=hours_ago)).isoformat()
        self[f".used/{name}"] = f"{used} {self.fs.size(f'{self.path}/{name}.safetensors')}".encode()


def names(store: MemoryStore) -> list[str]:
    return [entry.name for entry in store.list()]


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)
