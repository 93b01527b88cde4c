"""A server of a test, on a free port of loopback, in this process or in one of its own."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import uvicorn

from reverie.memory.memory import Memory
from reverie.serve.app import create_app
from reverie.serve.guard import LOOPBACK
from reverie.serve.limits import Limits
from reverie.serve.run import _ALWAYS, _bound
from reverie.serve.service import Service
from reverie.talk.sleeper import Sleeper


@dataclass
class Served:
    """A server that runs."""

    url: str
    service: Service | None = None

    def client(self, key: str = "none", **options: Any) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=60, **options)

    def http(self, key: str = "none") -> httpx.Client:
        return httpx.Client(base_url=self.url, headers={"authorization": f"Bearer {key}"}, timeout=60)

    def memory(self, id: str, sleeper: Sleeper, path: Path, key: str = "none") -> Memory:
        """What was heard until a response, through a file that is downloaded to `path`."""
        with self.http(key) as http:
            name = f"copy-{id[-8:]}"
            http.post("/v1/memories", json={"name": name, "source": id}).raise_for_status()
            path.write_bytes(http.get(f"/v1/memories/{name}/file").raise_for_status().content)
            http.delete(f"/v1/memories/{name}").raise_for_status()
        return Memory.load(path, sleeper)


@contextlib.contextmanager
def served(
    sleeper: Sleeper, store: Path, *keys: str, idle_sleep_s: float | None = None, **limits: Any
) -> Iterator[Served]:
    """A server in this process."""
    service = Service(sleeper, store, keys, Limits(**limits), idle_sleep_s=idle_sleep_s)
    sock = _bound("127.0.0.1", 0)
    config = uvicorn.Config(create_app(service, LOOPBACK), **{**_ALWAYS, "timeout_graceful_shutdown": 1})
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield Served(f"http://127.0.0.1:{sock.getsockname()[1]}", service)
    finally:
        server.should_exit = True
        thread.join(30)
        sock.close()


def unused_port() -> int:
    with _bound("127.0.0.1", 0) as sock:
        return sock.getsockname()[1]


@contextlib.contextmanager
def process(model: str | Path, store: Path, *options: str, **environment: str) -> Iterator[tuple[Served, Any]]:
    """`reverie serve` in a process of its own, which is ended after that; and that process."""
    port = unused_port()
    command = [sys.executable, "-m", "reverie", "serve", str(model), "--store", str(store), "--port", str(port)]
    running = subprocess.Popen(
        [*command, *options],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stderr=subprocess.DEVNULL,  # a pipe that nobody reads would fill up
        stdout=subprocess.DEVNULL,
    )
    try:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 180
        while True:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{url}/healthz").status_code == 200:
                    break
            assert running.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield Served(url), running
    finally:
        running.terminate()  # its workers too, if it has any
        try:
            running.wait(20)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()
