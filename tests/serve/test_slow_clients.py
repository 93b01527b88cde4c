"""Clients that are slow, or many, hold up nobody but themselves."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from server import Served, served
from tiny_sleeper import endless_sleeper

from reverie.serve.connection import Connection

CHAT = {"model": "tiny-depo", "messages": [{"role": "user", "content": "k=1 3"}]}
_BEAT_S = 0.05


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setattr(Connection, "patience_s", 1.0)
    with served(endless_sleeper(tmp_path / "run"), tmp_path / "store", body_s=1.0, bodies_bytes=2**16) as server:
        yield server


def connected(server: Served, room: int | None = None) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    sock = socket.socket()
    if room is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
    sock.settimeout(20)
    sock.connect((host, int(port)))
    return sock


def request(body: dict[str, Any], path: str = "/v1/chat/completions") -> bytes:
    data = json.dumps(body).encode()
    return b"POST %b HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
        path.encode(),
        len(data),
        data,
    )


def closed_within(sock: socket.socket, drip: bytes) -> float:
    """Seconds until the server closes, while these bytes are sent again and again."""
    begun = time.monotonic()
    sock.settimeout(_BEAT_S)
    try:
        while time.monotonic() - begun < 10:
            if drip:
                sock.sendall(drip)
            try:
                if not sock.recv(4096):
                    break
            except TimeoutError:
                continue
    except OSError:  # it was reset
        pass
    return time.monotonic() - begun


@pytest.mark.parametrize(
    ("first", "drip"),
    [
        (b"", b""),  # who says nothing
        (b"GET /healthz HTTP/1.1\r\n", b"a: b\r\n"),  # headers without end
        (b"GET /hea", b"l"),
        (b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n", b"G"),  # the second request of a connection
    ],
)
def test_the_head_of_a_request_has_to_come(server: Served, first: bytes, drip: bytes) -> None:
    with connected(server) as sock:
        sock.sendall(first)
        assert 0.5 < closed_within(sock, drip) < 5


def test_what_comes_after_a_refusal_is_not_taken_for_ever(server: Served) -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000000000\r\n\r\n"
    with connected(server) as sock:
        sock.sendall(head)
        assert closed_within(sock, b"x" * 1000) < 5


def test_answers_that_take_longer_than_patience_are_sent(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Connection, "patience_s", 0.1)
    with connected(server) as sock:
        sock.sendall(request({**CHAT, "max_tokens": 100, "stream": True}))
        got = b""
        while not got.endswith(b"[DONE]\n\n\r\n0\r\n\r\n"):
            part = sock.recv(2**16)
            assert part
            got += part


@pytest.mark.parametrize("reads", [True, False])
def test_who_does_not_read_is_let_go(server: Served, monkeypatch: pytest.MonkeyPatch, reads: bool) -> None:
    """And frees the conversation; who reads, however large the answer is, gets it."""
    made = Connection.connection_made

    def with_little_room(self: Connection, transport: asyncio.Transport) -> None:
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        transport.set_write_buffer_limits(4096)
        made(self, transport)

    with server.http() as http:
        talk = http.post("/v1/conversations", json={}).json()["id"]
        monkeypatch.setattr(Connection, "connection_made", with_little_room)
        long = {"model": "tiny-depo", "input": "k=1 3", "max_output_tokens": 150, "conversation": talk, "stream": True}
        with connected(server, room=4096) as sock:
            sock.sendall(request(long, "/v1/responses"))
            got = b""
            while reads and not got.endswith(b"\r\n0\r\n\r\n"):
                got += sock.recv(2**16)
            told = http.post("/v1/responses", json={"model": "tiny-depo", "input": "k=1 3", "conversation": talk})
            assert told.status_code == 200
            if reads:  # else it may have been let go before the last of its answer was made, or after
                assert told.json()["previous_response_id"] is not None
            assert (b"response.incomplete" in got) == reads


def test_bodies_of_all_requests_are_bounded(server: Served) -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 50000\r\n\r\n"
    with connected(server) as one, server.http() as http:
        one.sendall(head + b"x" * 49000)
        time.sleep(0.3)
        big = http.post("/v1/completions", content=b"x" * 49000)
        assert (big.status_code, big.headers["retry-after"]) == (429, "1")
        assert http.post("/v1/chat/completions", json=CHAT).status_code == 200
        one.sendall(b"x" * 1000)
        assert b" 400 " in one.recv(4096)
        assert http.post("/v1/completions", content=b"x" * 49000).status_code == 400
