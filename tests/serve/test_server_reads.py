"""A text that the server reads in the background: it can be ended, and goes on after a restart."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
import torch
from answers import files, read, weights
from server import served
from tiny_sleeper import tiny_sleeper

from reverie.memory.memory import Memory
from reverie.talk.heard import Heard
from reverie.talk.reading import Reading
from reverie.talk.sleeper import Sleeper


@pytest.fixture(scope="module")
def sleeper(tmp_path_factory: pytest.TempPathFactory) -> Sleeper:
    return tiny_sleeper(tmp_path_factory.mktemp("run"), "depo")


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """While it is set, nothing is read beyond 500 tokens."""
    event, step = threading.Event(), Reading.step
    event.set()
    monkeypatch.setattr(
        Reading, "step", lambda self: time.sleep(0.01) if self.done >= 500 and event.is_set() else step(self)
    )
    return event


def test_a_reading_can_be_ended(sleeper: Sleeper, tmp_path: Path, held: threading.Event) -> None:
    with served(sleeper, tmp_path) as server, server.http() as http:
        body = {"name": "long", "text": " ".join(["3 4 5"] * 5000)}
        for _ in range(3):
            assert http.post("/v1/memories", json=body).status_code == 202
            assert http.post("/v1/memories", json=body).status_code == 409
            asked = http.post("/v1/memories/long/ask", json={"question": "k=2 4"})
            assert (asked.status_code, asked.json()["error"]["code"]) == (409, "not_ready")
            while not http.get("/v1/memories/long").json()["tokens_read"]:
                time.sleep(0.05)
            http.delete("/v1/memories/long").raise_for_status()
            assert http.get("/v1/memories/long").status_code == 404
        assert files(tmp_path) == []


def test_a_reading_goes_on_after_a_restart(sleeper: Sleeper, tmp_path: Path, held: threading.Event) -> None:
    """To the bits of one that was never broken off."""
    text = " ".join(f"{i * i % 7 + 2}" for i in range(6400))
    with served(sleeper, tmp_path / "a") as server, server.http() as http:
        http.post("/v1/memories", json={"name": "long", "text": text}).raise_for_status()
        while http.get("/v1/memories/long").json()["tokens_read"] < 500:
            time.sleep(0.005)
    with served(sleeper, tmp_path / "a") as server, server.http() as http:
        now = http.get("/v1/memories/long").json()
        assert (now["status"], now["tokens"]) == ("reading", 6400)
        assert now["tokens_read"] >= 500
        held.clear()
        while http.get("/v1/memories/long").json()["status"] == "reading":
            time.sleep(0.05)
        broken = http.get("/v1/memories/long/file").content
    with served(sleeper, tmp_path / "b") as server, server.http() as http:
        read(http, "long", text)
        whole = http.get("/v1/memories/long/file").content
    (tmp_path / "x").write_bytes(broken)
    (tmp_path / "y").write_bytes(whole)
    one, other = (Heard(Memory.load(tmp_path / name, sleeper)) for name in "xy")
    assert all(map(torch.equal, weights(one), weights(other)))
    assert int(one.memory.tokens[0]) == 6400
