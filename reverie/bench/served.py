"""Servers in processes of their own, and how long their streams take."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from reverie.errors import UserError


@dataclass
class Timed:
    """Seconds to the first piece of a stream, between pieces, and its end."""

    first: float
    gaps: list[float]
    response: dict[str, Any]


class Server:
    """A server of the OpenAI interface in a process of its own."""

    def __init__(self, name: str, model: str, port: int, command: Sequence[str], health: str = "/healthz") -> None:
        self.name, self.model, self.port = name, model, port
        self.process = subprocess.Popen(
            [sys.executable, *command, "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while self.process.poll() is None:
            with contextlib.suppress(OSError, http.client.HTTPException):
                if self.ask("GET", health)[0] == 200:
                    return
            time.sleep(0.1)
        raise UserError(f"{name} has ended: see what it says when it is started by itself")

    @classmethod
    def of_reverie(cls, model: str, store: Path, port: int) -> Server:
        """`reverie serve`, over a store that outlives it."""
        return cls("reverie serve", Path(model).name, port, ["-m", "reverie", "serve", model, "--store", str(store)])

    @classmethod
    def of_transformers(cls, folder: Path, port: int) -> Server:
        """`transformers serve`, with one model in float32 that is there from the start."""
        run = "from transformers.cli.transformers import main; main()"
        command = ["-c", run, "serve", str(folder), "--device", "cpu", "--dtype", "float32"]
        return cls("transformers serve", str(folder), port, command, "/health")

    @property
    def rss_mib(self) -> float:
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    def ask(self, method: str, path: str, body: object = None) -> tuple[int, bytes]:
        with contextlib.closing(self._connected()) as connection:
            answer = self._asked(connection, method, path, body)
            return answer.status, answer.read()

    def stream(self, body: dict[str, Any], path: str = "/v1/responses") -> Timed:
        """Raises OSError or HTTPException if the server goes meanwhile, ValueError for a refusal."""
        with contextlib.closing(self._connected()) as connection:
            begun, times, told = time.perf_counter(), list[float](), dict[str, Any]()
            answer = self._asked(connection, "POST", path, {"model": self.model, "stream": True, **body})
            if answer.status != 200:
                raise ValueError(f"{answer.status}: {answer.read().decode()}")
            for line in answer:
                if line.startswith(b"data: {"):
                    told = json.loads(line[6:])
                    if _is_text(told):
                        times.append(time.perf_counter())
        if path == "/v1/responses" and told.get("type") not in ("response.completed", "response.incomplete"):
            raise http.client.IncompleteRead(json.dumps(told).encode())
        if "error" in told:
            raise http.client.IncompleteRead(json.dumps(told).encode())
        gaps = [after - before for before, after in pairwise(times)]
        return Timed((times or [time.perf_counter()])[0] - begun, gaps, told.get("response", told))

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *error: object) -> None:
        if self.process.poll() is None:
            self.stop()

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        self.process.send_signal(how)
        self.process.wait()

    def _connected(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)

    @staticmethod
    def _asked(
        connection: http.client.HTTPConnection, method: str, path: str, body: object
    ) -> http.client.HTTPResponse:
        data = None if body is None else json.dumps(body)
        connection.request(method, path, data, {"content-type": "application/json"})
        return connection.getresponse()


def _is_text(event: dict[str, Any]) -> bool:
    """True for a piece of an answer, of responses or of chats."""
    if event.get("type") == "response.output_text.delta":
        return True
    return any((choice.get("delta") or {}).get("content") for choice in event.get("choices") or [])
