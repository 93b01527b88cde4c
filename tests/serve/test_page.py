"""The page's files are served to everybody under a strict policy, and what it is told of sessions is true."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
from answers import weights
from server import Served, served
from tiny_sleeper import endless_sleeper

from reverie.serve.page import FILES, PAGE
from reverie.talk.heard import Heard
from reverie.talk.sleeper import Sleeper

WATCHED = ["reverie.session"]
MODEL = "tiny-depo"
TURNS = ["3 4 5 6 3", "k=1 3", "5 6 3 4 5 6 4 3 5 6 4 3 5 6 4 3 3 5 3 6 4 3", "k=2 4", "4 5", "k=1 5"]


@pytest.fixture(scope="module")
def sleeper(tmp_path_factory: pytest.TempPathFactory) -> Sleeper:
    return endless_sleeper(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def server(sleeper: Sleeper, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(sleeper, tmp_path_factory.mktemp("store")) as running:
        yield running


def test_the_page_is_for_who_has_no_key_and_all_else_is_not(sleeper: Sleeper, tmp_path: Path) -> None:
    with served(sleeper, tmp_path, "secret") as running:
        for path in PAGE:
            done = httpx.get(f"{running.url}{path}")
            assert done.status_code == 200
            policy = done.headers["content-security-policy"].split("; ")
            assert "default-src 'self'" in policy
            assert "frame-ancestors 'none'" in policy
            assert "unsafe" not in done.headers["content-security-policy"]
            assert done.headers["x-content-type-options"] == "nosniff"
        for path in (
            "/v1/models",
            "/page/",
            "/page/x.js",
            "/page/..%2f__init__.py",
            "/page/__init__.py",
            "//",
            "/page.js",
        ):
            assert httpx.get(f"{running.url}{path}").status_code == 401, path
        assert httpx.get(running.url, headers={"origin": "http://evil.example"}).status_code == 403
        assert httpx.get(running.url, headers={"host": "evil.example"}).status_code == 403
        with running.http("secret") as http:
            assert http.get("/page/__init__.py").status_code == 404
            assert http.post("/").status_code == 405


def test_the_page_names_its_own_files_alone(server: Served) -> None:
    """Nothing is asked of other servers, and no script or style stands in the page itself."""
    named = set[str]()
    for path, file in FILES.items():
        text = file.read_text(encoding="utf-8")
        urls = re.findall(r"""(?:src|href)="([^"]+)"|from "([^"]+)"|import\("([^"]+)"|url\(([^)]+)\)""", text)
        named |= {
            str(httpx.URL(server.url + ("/" if path.endswith("html") else path)).join("".join(url))) for url in urls
        }
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|@import", text), path
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", text), (
            path
        )
    assert named == {server.url + path for path in FILES if not path.endswith("html")}
    assert all(httpx.get(url).status_code == 200 for url in named)
    page = httpx.get(server.url).text
    assert not re.search(r"<style|style=|<script(?![^>]* src=)|\bon\w+=", page)


def streamed(server: Served, turn: str, previous: str | None, include: list[str]) -> Iterator[dict[str, Any]]:
    """The events of a response, through OpenAI's client."""
    stream: Any = server.client().responses.create(
        model=MODEL, input=turn, previous_response_id=previous, stream=True, extra_body={"include": include}
    )
    return (event.model_dump() for event in stream)


class Follower:
    """What a client knows who heeds the events as docs/serving.md says."""

    def __init__(self) -> None:
        self.awake, self.windows = list[str](), dict[int, Any]()

    def take(self, session: dict[str, Any]) -> None:
        self.awake = [*self.awake[: session["first"]], *session["awake"]]
        self.windows |= {window["number"]: window for window in session["windows"]}
        assert session["tokens"] == session["slept_over"] + len(self.awake)
        assert len(self.awake) <= session["window_size"]
        assert session["slept_over"] == sum(window["tokens"] for window in self.windows.values())


def test_what_is_told_on_the_way_is_what_is_there_at_the_end(server: Served) -> None:
    """Over windows of 8 tokens, at every event."""
    follower, previous, whole = Follower(), None, dict[str, Any]()
    for turn in TURNS:
        told, last = 0, ""
        for event in streamed(server, turn, previous, WATCHED):
            if event["type"] == "reverie.session":
                follower.take(event["session"])
                told += 1
            elif "response" in event:
                last = event["response"]["id"]
        previous = last
        assert told
        whole = httpx.get(f"{server.url}/v1/responses/{previous}/session").json()
        follower.take(whole)
        assert whole["first"] == 0
        assert whole["awake"] == follower.awake
    assert {window["number"]: window for window in whole["windows"]} == follower.windows
    assert whole["windows"][0]["change"].keys() == {"1", "2"}
    assert whole["evicted"] == whole["slept_over"] > 8
    named = server.client().responses.create(model=MODEL, input="3", previous_response_id=previous)
    assert named.usage is not None
    assert named.usage.input_tokens == whole["tokens"] + 1


def test_watching_changes_nothing(server: Served, sleeper: Sleeper, tmp_path: Path) -> None:
    found = list[Heard]()
    for include in ([], WATCHED):
        previous = None
        for turn in TURNS:
            previous = [*streamed(server, turn, previous, include)][-1]["response"]["id"]
        found.append(Heard.of(server.memory(str(previous), sleeper, tmp_path / f"{len(include)}.safetensors")))
    plain, watched = found
    assert plain.awake == watched.awake
    assert all(map(torch.equal, weights(plain), weights(watched)))


def test_only_streams_are_watched(server: Served) -> None:
    for include, stream in (["reverie.session"], False), (["reasoning.encrypted_content"], True):
        with pytest.raises(openai.BadRequestError, match="include"):
            server.client().responses.create(model=MODEL, input="3", stream=stream, extra_body={"include": include})
    assert not [event for event in streamed(server, "k=1 3", None, []) if event["type"].startswith("reverie")]


def test_bytes_are_those_of_the_memory_and_of_keys_and_values(server: Served, sleeper: Sleeper, tmp_path: Path) -> None:
    done = server.client().responses.create(model=MODEL, input="3 4 5 6 3 4 5 6 3 4")
    told = httpx.get(f"{server.url}/v1/responses/{done.id}/session").json()
    memory = server.memory(done.id, sleeper, tmp_path / "x.safetensors")
    assert told["memory_bytes"] == memory.nbytes
    assert told["blocks"] == list(sleeper.fast_weight_blocks) == [1]
    assert told["cache_bytes_per_token"] == 2 * 16 * 4  # keys and values, of width 16, in float32, in one block


def test_a_memory_tells_of_its_sleep_also_while_it_is_read(server: Served) -> None:
    text = "3 4 5 6 " * 400
    with server.http() as http:
        http.post("/v1/memories", json={"name": "long", "text": text}).raise_for_status()
        seen = set[int]()
        while True:
            ready = http.get("/v1/memories/long").json()["status"] == "ready"
            session = http.get("/v1/memories/long/session").raise_for_status().json()
            seen.add(session["slept_over"])
            assert not session["awake"]
            if ready:
                break
        assert sorted(seen)[-1] == 1600
        assert session["windows"][-1]["number"] == 199
        assert http.get("/v1/memories/none/session").status_code == 404
        assert http.get(f"/v1/responses/resp_{'0' * 32}/session").status_code == 404
