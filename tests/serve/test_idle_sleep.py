"""Sleep over a window that is not full: its place is told, and sleep at the same places leaves the same memory."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from answers import weights
from server import Served, served
from tiny_sleeper import tiny_sleeper

from reverie.memory.memory import Memory, sleep_over
from reverie.talk.heard import Heard
from reverie.talk.sleeper import Sleeper

AFTER_S = 0.2
TURNS = ["k=1 3", "3 4 5 6 7 8 3 4 5", "k=2 4", "k=3 1"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Sleeper:
    """Windows of 8 tokens."""
    return tiny_sleeper(tmp_path_factory.mktemp("run"), "depo")


def said(server: Served, text: str, previous: str | None) -> Any:
    return server.client().responses.create(model="tiny-depo", input=text, previous_response_id=previous or openai.omit)


def session(server: Served, id: str) -> dict[str, Any]:
    with server.http() as http:
        return http.get(f"/v1/responses/{id}/session").raise_for_status().json()


def asleep(server: Served, id: str) -> dict[str, Any]:
    deadline = time.monotonic() + 60
    while (told := session(server, id))["awake"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return told


def test_its_place_is_stored_and_leads_to_the_same_memory(tiny: Sleeper, tmp_path: Path) -> None:
    tokens, id, told = list[int](), None, dict[str, Any]()
    with served(tiny, tmp_path / "store", idle_sleep_s=AFTER_S) as server:
        for turn in TURNS:
            done = said(server, turn, id)
            assert done.usage.input_tokens_details.cached_tokens == len(tokens)
            tokens += [*tiny.encode(turn), *tiny.encode(done.output_text)]
            id = done.id
            told = asleep(server, id)
            assert told["slept_over"] == told["tokens"] == len(tokens)
        places = [window["tokens"] for window in told["windows"]]
        heard = Heard.of(server.memory(str(id), tiny, tmp_path / "m.safetensors"))
        assert watched(server, str(id))[0] == told["windows"][-1]  # who watches learns of it
    assert sum(places) == len(tokens)
    assert sum(place < 8 for place in places) >= len(TURNS) - 1
    memory = Memory.empty(tiny)
    for window in torch.tensor([tokens]).split(places, dim=1):
        memory = sleep_over(tiny, window, memory=memory)
    assert all(map(torch.equal, weights(heard), weights(Heard(memory))))
    assert not all(map(torch.equal, weights(heard), weights(Heard(sleep_over(tiny, torch.tensor([tokens]))))))

    with served(tiny, tmp_path / "store") as server:  # a server that never is idle goes on from there
        assert session(server, str(id))["windows"][-1]["tokens"] == places[-1]
        with server.http() as http:
            http.delete(f"/v1/responses/{id}").raise_for_status()
        left = [path.name for path in (tmp_path / "store").rglob("*") if str(id).removeprefix("resp_") in path.name]
        assert left == []


def watched(server: Served, id: str) -> list[dict[str, Any]]:
    """The windows that a stream tells of which goes on from a response."""
    asked: Any = {"model": "tiny-depo", "input": "3", "previous_response_id": id, "include": ["reverie.session"]}
    stream = server.client().responses.create(**asked, store=False, stream=True)
    events: list[Any] = [event for event in stream if str(event.type) == "reverie.session"]
    return [window for event in events for window in event.session["windows"]]


def test_what_is_gone_on_from_in_time_is_not_slept_over(tiny: Sleeper, tmp_path: Path) -> None:
    with served(tiny, tmp_path / "store", idle_sleep_s=5.0) as server:
        first = said(server, TURNS[0], None)
        second = said(server, TURNS[2], first.id)
        asleep(server, second.id)
        assert len(session(server, first.id)["awake"]) == session(server, first.id)["tokens"]
    assert len(list((tmp_path / "store").rglob("*.idle.safetensors"))) == 1


def test_off_by_default(tiny: Sleeper, tmp_path: Path) -> None:
    with served(tiny, tmp_path / "store") as server:
        first = said(server, TURNS[0], None)
        time.sleep(3 * AFTER_S)
        assert session(server, first.id)["slept_over"] == 0
