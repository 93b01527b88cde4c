"""`reverie bench serve`: many sessions at once, killed servers, and the first token after a long history."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from reverie.bench.card import Details, Findings, Row, at_most
from reverie.bench.machine import Peak
from reverie.errors import UserError
from reverie.memory.memory import Memory
from reverie.results.card import Report
from reverie.talk.chat import Chat
from reverie.talk.heard import Heard
from reverie.talk.sleeper import Sleeper, load_model

TARGET = 1.1
MODEL = "example"
PLACES = ("Gull Island", "Larch Hollow")
BIRDS = ("heron", "curlew")
_THINK_S = (0.5, 4.0)
_TURNS = 20
_HISTORY = 8000  # tokens before the last of them


@dataclass
class Session:
    """A chain of responses: what was said, and what came of it."""

    said: list[str] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    id: str | None = None


@dataclass
class Timed:
    """Seconds to the first piece of a stream, between pieces, and its end."""

    first: float
    gaps: list[float]
    response: dict[str, Any]


class Server:
    """`reverie serve` in a process of its own, over a store that outlives it."""

    def __init__(self, store: Path, port: int) -> None:
        self.port = port
        command = [sys.executable, "-m", "reverie", "serve", MODEL, "--store", str(store), "--port", str(port)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while self.process.poll() is None:
            with contextlib.suppress(OSError, http.client.HTTPException):
                if self.ask("GET", "/healthz")[0] == 200:
                    return
            time.sleep(0.1)
        raise UserError("reverie serve has ended: see what it says when it is started by itself")

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
            begun, times, last = time.perf_counter(), list[float](), ""
            answer = self._asked(connection, "POST", path, {"model": MODEL, "stream": True, **body})
            if answer.status != 200:
                raise ValueError(f"{answer.status}: {answer.read().decode()}")
            for line in answer:
                if line.startswith(b"data: {"):
                    last = line[6:].decode()
                    if '"response.output_text.delta"' in last or '"delta": {"content"' in last:
                        times.append(time.perf_counter())
        told = json.loads(last or "{}")
        if path == "/v1/responses" and told.get("type") != "response.completed":
            raise http.client.IncompleteRead(last.encode())
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


def measure(
    peak: Peak, report: Report, sessions: int = 32, seconds: float = 120.0, kills: int = 20, repeats: int = 40
) -> Findings:
    """Load, then SIGKILLs under load, then the first token of turn 20.

    Raises:
        UserError: a request failed, or a session does not remember what it heard, to the last bit.
    """
    sleeper = load_model(MODEL)
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        store = Path(folder)
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        report(0, 3, f"{sessions} sessions")
        with Server(store / "load", port) as server:
            load = _load(server, sleeper, sessions, seconds)
        report(1, 3, f"{kills} SIGKILLs")
        faults = _kill(store / "kills", port, sleeper, kills)
        report(2, 3, f"turn {_TURNS}")
        with Server(store / "long", port) as server:
            ratio, turns = _long(server, sleeper, repeats)
    return Findings(
        name="serve",
        ratio=ratio,
        target=TARGET,
        better="lower",
        details=Details(
            tables={
                "load": load,
                "SIGKILL": faults,
                "first token": turns,
                "targets": [at_most("turn 20", ratio, TARGET)],
            },
            notes=[
                "The packaged model, in a server of its own process on the same machine; each session says where birds "
                f"are and asks, with {_THINK_S[0]} to {_THINK_S[1]} s between; every one is a chain of responses, "
                "streamed. Afterwards each is compared with a chat that hears the same alone: the memories are the "
                "same to the last bit, and so are the answers.",
                "SIGKILL: four sessions that never wait. After the last start every session is compared in the same "
                "way; each went on from the newest id that it was given before the server was killed.",
                f"The headline is the first token of a question on turn {_TURNS}, after {_HISTORY:,} tokens, over "
                "that of the same question as turn 1; both in turn, medians, unstored. Lower is better. A chat sends "
                "its history again, which has to be encoded and looked up.",
            ],
        ),
    )


def turn(session: Session, number: int, draw: random.Random) -> list[str]:
    """What a session says next: where so many of a bird are, and then a question after what it said before."""
    bird, place = draw.choice(BIRDS), draw.choice(PLACES)
    fact = f"The number of grown {bird} in {place} equals {number % 7 + 1}."
    return [fact, f"How many grown {bird} does {place} have?"]


def say(server: Server, session: Session, texts: Sequence[str]) -> Timed:
    messages = [{"role": "user", "content": text} for text in texts]
    timed = server.stream({"input": messages, "previous_response_id": session.id})
    session.id = timed.response["id"]
    session.said.append("\n".join(texts))
    session.answers.append("".join(part["text"] for item in timed.response["output"] for part in item["content"]))
    return timed


def require_remembered(server: Server, sleeper: Sleeper, sessions: Sequence[Session]) -> int:
    """The number of turns, of which each was answered, and is remembered, as by a chat that was alone."""
    turns = 0
    for i, session in enumerate(sessions):
        chat = Chat(sleeper, Memory.empty(sleeper))
        for said, answer in zip(session.said, session.answers, strict=True):
            heard = [chat.say(text) for text in said.split("\n")]
            if heard[-1] != answer:
                raise UserError(f"session {i} was answered {answer!r}, and alone it would be {heard[-1]!r}")
            turns += 1
        if session.id is None:
            continue
        name = f"copy-{i}-{turns}"
        server.ask("POST", "/v1/memories", {"name": name, "source": session.id})
        with tempfile.NamedTemporaryFile(suffix=".safetensors") as file:
            Path(file.name).write_bytes(server.ask("GET", f"/v1/memories/{name}/file")[1])
            found = Heard.of(Memory.load(Path(file.name), sleeper))
        server.ask("DELETE", f"/v1/memories/{name}")
        own = chat.memory.context.state.fast_weights, found.memory.context.state.fast_weights
        same = all(a is b or (a is not None and b is not None and a.equal(b)) for a, b in zip(*own, strict=True))
        if not same or found.awake != tuple(chat.awake):
            raise UserError(f"session {i} remembers something else than it would alone")
    return turns


def _load(server: Server, sleeper: Sleeper, count: int, seconds: float) -> list[Row]:
    sessions, firsts, gaps, problems = [Session() for _ in range(count)], list[float](), list[float](), list[str]()
    rss, end = list[float](), time.monotonic() + seconds

    def live(i: int) -> None:
        draw, number = random.Random(i), i
        try:
            while time.monotonic() < end:
                timed = say(server, sessions[i], turn(sessions[i], number, draw))
                firsts.append(timed.first)
                gaps.extend(timed.gaps)
                number += 1
                time.sleep(draw.uniform(*_THINK_S))
        except Exception as error:
            problems.append(repr(error))

    with _threads(live, count):
        while time.monotonic() < end:
            time.sleep(min(1.0, seconds / 20))
            rss.append(server.rss_mib)
    if problems:
        raise UserError(f"{len(problems)} of {count} sessions failed, the first by {problems[0]}")
    turns = require_remembered(server, sleeper, sessions)
    half = len(rss) // 2
    times: Row = {"sessions": count, "seconds": seconds, "turns": turns, "errors": 0, "mixed_up": 0}
    times |= {"first_p50_ms": _ms(firsts, 0.5), "first_p95_ms": _ms(firsts, 0.95)}
    times |= {"token_p50_ms": _ms(gaps, 0.5), "token_p95_ms": _ms(gaps, 0.95)}
    return [{**times, "rss_at_half_MiB": rss[half], "rss_at_end_MiB": rss[-1], "rss_most_MiB": max(rss)}]


def _kill(store: Path, port: int, sleeper: Sleeper, kills: int) -> list[Row]:
    sessions, draw = [Session() for _ in range(4)], random.Random(0)
    for kill in range(kills):
        server = Server(store, port)

        def live(i: int, server: Server = server, kill: int = kill) -> None:
            number = i + 31 * kill
            with contextlib.suppress(OSError, http.client.HTTPException):
                while True:
                    say(server, sessions[i], turn(sessions[i], number, random.Random(number)))
                    number += 1

        with _threads(live, len(sessions)):
            time.sleep(draw.uniform(0.3, 2.0))
            server.stop(signal.SIGKILL)
    with Server(store, port) as server:
        turns = require_remembered(server, sleeper, sessions)
    return [{"kills": kills, "turns_acknowledged": turns, "lost": 0, "changed": 0}]


def _long(server: Server, sleeper: Sleeper, repeats: int) -> tuple[float, list[Row]]:
    draw, long, question = random.Random(1), Session(), f"How many grown {BIRDS[0]} does {PLACES[0]} have?"
    fact = f"The number of grown {BIRDS[0]} in {PLACES[0]} equals {{}}. "
    each = _HISTORY // (_TURNS - 1) // len(sleeper.encode(fact.format(1)))
    history = [" ".join(fact.format(draw.randrange(1, 8)) for _ in range(each)) for _ in range(_TURNS - 1)]
    for text in history:
        say(server, long, [text])
    chat: dict[str, Any] = {"messages": [{"role": "user", "content": text} for text in (*history, question)]}
    alone: dict[str, Any] = {"messages": chat["messages"][-1:]}
    server.stream({"messages": chat["messages"][:-1]}, "/v1/chat/completions")
    asked = {"input": question, "store": False}
    sides: dict[str, tuple[dict[str, Any], str]] = {
        "turn 1": (asked, "/v1/responses"),
        f"turn {_TURNS}": ({**asked, "previous_response_id": long.id}, "/v1/responses"),
        "turn 1 as a chat": ({**alone, "store": False}, "/v1/chat/completions"),
        f"turn {_TURNS} as a chat": ({**chat, "store": False}, "/v1/chat/completions"),
    }
    times = {side: list[float]() for side in sides}
    for i in range(repeats + 2):
        for side, (body, path) in sides.items():
            first = server.stream(body, path).first
            if i >= 2:  # after a warm-up
                times[side].append(first)
    tokens = sum(len(sleeper.encode(text)) for text in history)
    base = statistics.median(times["turn 1"])
    rows: list[Row] = [
        {
            "side": side,
            "history_tokens": tokens if str(_TURNS) in side else 0,
            "first_token_ms": 1e3 * (median := statistics.median(taken)),
            "over_turn_1": median / base,
        }
        for side, taken in times.items()
    ]
    return statistics.median(times[f"turn {_TURNS}"]) / base, rows


@contextlib.contextmanager
def _threads(live: Any, count: int) -> Iterator[None]:
    threads = [threading.Thread(target=live, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    yield
    for thread in threads:
        thread.join()


def _ms(times: Sequence[float], share: float) -> float | None:
    """The time that this share of all stays under, in milliseconds."""
    return 1e3 * sorted(times)[min(len(times) - 1, int(share * len(times)))] if times else None
