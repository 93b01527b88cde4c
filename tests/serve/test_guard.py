"""Limits hold, and what is no proper request is refused in one sentence."""

from __future__ import annotations

import errno
import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from server import Served, served
from tiny_sleeper import endless_sleeper

import reverie.serve.files as files
from reverie.errors import UserError
from reverie.talk.sleeper import Sleeper

CHAT = {"model": "tiny-depo", "messages": [{"role": "user", "content": "k=1 3"}]}


@pytest.fixture(scope="module")
def sleeper(tmp_path_factory: pytest.TempPathFactory) -> Sleeper:
    return endless_sleeper(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def small(sleeper: Sleeper, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    limits: dict[str, Any] = {"running": 1, "waiting": 1, "body_bytes": 10**6, "body_s": 0.5, "prompt_tokens": 100}
    with served(sleeper, tmp_path_factory.mktemp("store"), **limits, memories=2, readings=1) as server:
        yield server


def idle(server: Served) -> bool:
    assert server.service is not None
    return server.service.engine.num_running == server.service.engine.num_waiting == 0


def wait_until(holds: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def endless(server: Served) -> Any:
    stream = server.client().completions.create(model="tiny-depo", prompt="k=1 3", max_tokens=4000, stream=True)
    next(stream)
    return stream


def test_a_client_that_goes_frees_its_place(small: Served) -> None:
    for _ in range(3):
        endless(small).close()
        wait_until(lambda: idle(small))


def test_a_client_that_does_not_wait_for_the_whole_frees_its_place(small: Served) -> None:
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(
            f"{small.url}/v1/completions", json={"model": "tiny-depo", "prompt": "3", "max_tokens": 4000}, timeout=0.3
        )
    wait_until(lambda: idle(small))


def test_a_full_queue_says_when_to_try_again(small: Served) -> None:
    stream = endless(small)
    waiting = threading.Thread(target=lambda: small.client().chat.completions.create(**CHAT))  # type: ignore[arg-type]
    waiting.start()
    service = small.service
    assert service is not None
    wait_until(lambda: service.engine.num_waiting == 1)
    with pytest.raises(openai.RateLimitError) as refused:
        small.client().chat.completions.create(**CHAT)  # type: ignore[arg-type]
    assert int(refused.value.response.headers["retry-after"]) >= 1
    assert refused.value.code == "queue_full"
    streamed = httpx.post(f"{small.url}/v1/responses", json={"model": "tiny-depo", "input": "k=1 3", "stream": True})
    assert streamed.status_code == 429
    stream.close()
    waiting.join(30)
    assert not waiting.is_alive()
    wait_until(lambda: idle(small))


def test_too_much_is_refused(small: Served) -> None:
    with small.http() as http:
        long = http.post("/v1/completions", json={"model": "tiny-depo", "prompt": [3] * 101})
        assert (long.status_code, long.json()["error"]["code"]) == (413, "too_many_tokens")
        body = http.post("/v1/completions", content=b"x" * (10**6 + 1))
        assert (body.status_code, body.json()["error"]["code"]) == (413, "too_long")
        unknown = http.post("/v1/completions", json={"model": "tiny-depo", "prompt": [10**6]})
        assert (unknown.status_code, unknown.json()["error"]["param"]) == (400, "prompt")
        for name in ("a", "b"):
            while (made := http.post("/v1/memories", json={"name": name, "text": "3 4"})).status_code == 429:
                assert made.json()["error"]["code"] == "too_many_readings"
            assert made.status_code == 202
        assert http.post("/v1/memories", json={"name": "c", "text": "3"}).json()["error"]["code"] == "too_many_memories"


def chunked(count: int) -> Iterator[bytes]:
    for _ in range(count):
        yield b"x" * 1000


def test_a_body_of_unknown_length_is_counted(small: Served) -> None:
    done = httpx.post(f"{small.url}/v1/completions", content=chunked(1001))
    assert done.status_code == 413


def test_a_hundred_megabytes_are_not_taken_in(small: Served) -> None:
    with raw(small, b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100000000\r\n\r\n") as answer:
        assert answer.startswith(b"HTTP/1.1 413")


def test_a_body_that_does_not_come_is_not_waited_for(small: Served) -> None:
    begun = time.monotonic()
    with raw(small, b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 10\r\n\r\n{") as answer:
        assert answer.startswith(b"HTTP/1.1 408")
    assert time.monotonic() - begun < 5


class raw:
    """What the server answers to these bytes."""

    def __init__(self, server: Served, data: bytes) -> None:
        host, port = server.url.removeprefix("http://").split(":")
        self._socket, self._data = socket.create_connection((host, int(port)), timeout=20), data

    def __enter__(self) -> bytes:
        self._socket.sendall(self._data)
        return self._socket.recv(4096)

    def __exit__(self, *error: object) -> None:
        self._socket.close()


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b"1", b'"x"', b"\xff\xfe", b'{"model": 1}', b"[" * 3000, b'{"a":' * 900, b"NaN"]
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/memories"])
def test_what_is_no_request_is_refused(small: Served, path: str, body: bytes) -> None:
    for kind in ("application/json", "text/plain"):
        done = httpx.post(f"{small.url}{path}", content=body, headers={"content-type": kind})
        assert done.status_code == 400, done.text
        assert set(done.json()["error"]) == {"message", "type", "param", "code"}
        assert "Input should" not in done.json()["error"]["message"]


@pytest.mark.parametrize(
    "path",
    [
        "/v1/responses/resp_../../x",
        "/v1/responses/resp_..%2f..%2fx",
        "/v1/responses/%2e%2e%2f%2e%2e",
        "/v1/responses/resp_" + "0" * 32,
        "/v1/responses/x",
        "/v1/conversations/conv_..%2fx",
        "/v1/conversations/conv_" + "f" * 32,
        "/v1/memories/..%2f..%2fetc%2fpasswd/file",
        "/v1/memories/.lock",
        "/v1/memories/a%00b",
        "/v1/memories/a%0ab/file",
        "/v1/models/tiny-depo@../x",
        "/v1/models/x",
        "/v1/nothing",
    ],
)
def test_paths_lead_nowhere(small: Served, path: str) -> None:
    for method in ("get", "delete"):
        done = httpx.request(method, f"{small.url}{path}")
        assert done.status_code in (400, 404, 405), done.text
        assert done.json()["error"]["type"] == "invalid_request_error"
        assert "/tmp" not in done.text


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {**CHAT, "messages": [{"role": "user", "content": "k=1 \ud800"}]}),
        ("/v1/chat/completions", {**CHAT, "stop": "\ud800"}),
        ("/v1/chat/completions", {**CHAT, "model": "\ud800"}),
        ("/v1/chat/completions", {**CHAT, "temperature": 1e400}),
        ("/v1/chat/completions", {**CHAT, "seed": 2**64}),
        ("/v1/chat/completions", {**CHAT, "seed": 1.5}),
        ("/v1/chat/completions", {**CHAT, "max_tokens": 2**70}),
        ("/v1/completions", {"model": "tiny-depo", "prompt": [2**63]}),
        ("/v1/completions", {"model": "tiny-depo", "prompt": [-1]}),
        ("/v1/completions", {"model": "tiny-depo", "prompt": [True]}),
        ("/v1/responses", {"model": "tiny-depo", "input": "k=1 3", "metadata": {"\ud800": "x"}}),
        ("/v1/conversations", {"metadata": {"a": "\ud800"}}),
        ("/v1/responses", {"model": "tiny-depo", "input": "k=1 3", "user": "\ud800"}),
        ("/v1/responses", {"model": "tiny-depo", "input": "k=1 3", "max_output_tokens": 4097}),
        ("/v1/completions", {"model": "tiny-depo", "prompt": "k=1 3", "max_tokens": 4097}),
        ("/v1/memories", {"name": "x", "text": "k=1 \ud800"}),
        ("/v1/memories", {"name": "x", "text": "\ud800"}),
        ("/v1/memories", {"name": "\ud800", "text": "3"}),
        ("/v1/memories", {"name": "x", "source": "\ud800"}),
        ("/v1/memories", {"name": "x"}),
        ("/v1/completions", {"model": "tiny-depo", "prompt": [3] * (2**17 + 1)}),
        ("/v1/chat/completions", {**CHAT, "messages": CHAT["messages"] * (2**14 + 1)}),
        ("/v1/responses", {"model": "tiny-depo", "input": CHAT["messages"] * (2**14 + 1)}),
        ("/v1/responses", {f"{i}": i for i in range(10**4)}),
    ],
)
def test_odd_values_are_refused(small: Served, path: str, body: Any) -> None:
    done = httpx.post(
        f"{small.url}{path}", content=json.dumps(body).encode(), headers={"content-type": "application/json"}
    )
    assert done.status_code in (400, 404), done.text
    assert done.json()["error"]["code"] != "invalid_json"  # it has been read


@pytest.mark.parametrize("depth", [100, 900, 2000])
def test_what_is_nested_deep_is_refused(small: Served, depth: int) -> None:
    body = '{"model": "tiny-depo", "input": ' + "[" * depth + "]" * depth + "}"
    done = httpx.post(f"{small.url}/v1/responses", content=body.encode(), headers={"content-type": "application/json"})
    assert done.status_code == 400, done.text


def test_pages_of_others_may_not_ask(small: Served) -> None:
    own = small.url
    for headers, status in (
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://[::1"}, 403),
        ({"origin": "http://a]b"}, 403),
        ({"host": "[::1"}, 403),
        ({"host": "evil.example"}, 403),
        ({"host": "evil.example", "origin": "http://evil.example"}, 403),
        ({"origin": own}, 200),
        ({"host": f"localhost:{own.rpartition(':')[2]}"}, 200),
    ):
        done = httpx.get(f"{own}/v1/models", headers=headers)
        assert done.status_code == status, headers
        assert not [name for name in done.headers if name.startswith("access-control")]


def test_logs_and_metrics_hold_no_words(small: Served, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="reverie.serve"), small.http("secret-key") as http:
        words = "k=1 3 4 5 6 7"
        done = http.post("/v1/responses", json={"model": "tiny-depo", "input": words}).json()
        http.get(f"/v1/responses/{done['id']}")
        http.post("/v1/responses", json={"model": "tiny-depo", "input": "nonsense-word"})
        http.get("/v1/memories/my-diary")
        told = http.get("/metrics").text
    lines = [record.getMessage() for record in caplog.records if record.name == "reverie.serve.requests"]
    requests = [json.loads(line) for line in lines]  # before them perhaps one of an earlier test, after them the last
    first = next(
        i for i in range(len(requests)) if [one["status"] for one in requests[i : i + 4]] == [200, 200, 400, 404]
    )
    assert requests[first + 1]["route"] == "/v1/responses/{id}"
    for text in (caplog.text, told):
        for word in (words, "nonsense-word", "my-diary", done["id"], "secret-key"):
            assert word not in text
    assert 'reverie_requests_total{route="/v1/responses",status="200"}' in told
    assert "reverie_first_piece_seconds_count" in told


def test_a_full_disk_is_told(sleeper: Sleeper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: object) -> None:
        raise UserError(f"cannot write {path}: it is full") from OSError(errno.ENOSPC, "it is full")

    with served(sleeper, tmp_path) as server, server.http() as http:
        monkeypatch.setattr(files, "write_atomic", full)
        done = http.post("/v1/responses", json={"model": "tiny-depo", "input": "k=1 3"})
        assert (done.status_code, done.json()["error"]["code"]) == (507, "storage")
        assert str(tmp_path) not in done.text
        with http.stream(
            "POST", "/v1/responses", json={"model": "tiny-depo", "input": "k=1 3", "stream": True}
        ) as lines:
            assert "response.failed" in lines.read().decode()
        assert http.post("/v1/chat/completions", json=CHAT).status_code == 200  # a cache may stay empty
        assert http.post("/v1/memories", json={"name": "x", "text": "3 4"}).status_code == 507
        monkeypatch.undo()
        assert http.post("/v1/responses", json={"model": "tiny-depo", "input": "k=1 3"}).status_code == 200
        assert idle(server)


def test_a_full_store_refuses_new_responses_alone(sleeper: Sleeper, tmp_path: Path) -> None:
    with served(sleeper, tmp_path, stored_bytes=6000) as server, server.http() as http:
        ask = {"model": "tiny-depo", "input": "k=1 3"}
        ids = list[str]()
        while (done := http.post("/v1/responses", json=ask)).status_code == 200:
            ids.append(done.json()["id"])
        assert done.json()["error"]["code"] == "storage_full"
        assert http.post("/v1/responses", json={**ask, "store": False}).status_code == 200
        assert http.get(f"/v1/responses/{ids[0]}").status_code == 200
        for id in ids:
            http.delete(f"/v1/responses/{id}").raise_for_status()
        assert http.post("/v1/responses", json=ask).status_code == 200
