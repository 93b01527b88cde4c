"""`reverie bench serve`: many sessions at once, killed servers, and the first token after a long history."""

from __future__ import annotations

import contextlib
import http.client
import random
import signal
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reverie.bench.card import Details, Findings, Row, at_most
from reverie.bench.machine import Peak
from reverie.bench.served import Server, Timed
from reverie.errors import UserError
from reverie.memory.memory import Memory
from reverie.results.card import Report
from reverie.talk.chat import Chat
from reverie.talk.heard import Heard
from reverie.talk.sleeper import Sleeper, load_model

TARGET = 1.1
MODEL, BESIDE = "example", "smollm2-notes"
PLACES = ("Gull Island", "Larch Hollow")
BIRDS = ("heron", "curlew")
_THINK_S = (0.5, 4.0)
_TURNS = 20
_HISTORY = 8000  # tokens before the last of them
_HISTORY_BESIDE = 7500  # with what a chat template adds, as much as SmolLM2's context holds


@dataclass
class Session:
    """A chain of responses: what was said, and what came of it."""

    said: list[str] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    id: str | None = None


def measure(
    peak: Peak,
    report: Report,
    sessions: int = 32,
    seconds: float = 120.0,
    kills: int = 20,
    repeats: int = 40,
    beside: int = 3,
) -> Findings:
    """Load, then SIGKILLs under load, then the first token of turn 20, and the same beside `transformers serve`.

    Args:
        repeats, beside: times that a first token is waited for, of the packaged model and of SmolLM2.

    Raises:
        UserError: a request failed, or a session does not remember what it heard, to the last bit; or SmolLM2 is not
            there.
    """
    sleeper, smollm2 = load_model(MODEL), load_model(BESIDE)
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        store = Path(folder)
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        report(0, 4, f"{sessions} sessions")
        with Server.of_reverie(MODEL, store / "load", port) as server:
            load = _load(server, sleeper, sessions, seconds)
        report(1, 4, f"{kills} SIGKILLs")
        faults = _kill(store / "kills", port, sleeper, kills)
        report(2, 4, f"turn {_TURNS}")
        with Server.of_reverie(MODEL, store / "long", port) as server:
            ratio, turns = _long(server, sleeper, repeats)
        report(3, 4, "transformers serve")
        rival = _beside(store, port, smollm2, beside)
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
                "beside transformers serve": rival,
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
                f"Beside transformers serve: SmolLM2, of which {BESIDE} goes on from the newest response, and the "
                "untouched model is sent the whole chat; one question at a time, medians. A window of the first is "
                "read again where it sleeps.",
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
        server = Server.of_reverie(MODEL, store, port)

        def live(i: int, server: Server = server, kill: int = kill) -> None:
            number = i + 31 * kill
            with contextlib.suppress(OSError, http.client.HTTPException):
                while True:
                    say(server, sessions[i], turn(sessions[i], number, random.Random(number)))
                    number += 1

        with _threads(live, len(sessions)):
            time.sleep(draw.uniform(0.3, 2.0))
            server.stop(signal.SIGKILL)
    with Server.of_reverie(MODEL, store, port) as server:
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


def _beside(store: Path, port: int, sleeper: Sleeper, repeats: int) -> list[Row]:
    """The first token of turn 1 and of turn 20 of SmolLM2, with a memory and with the whole chat in its context."""
    from reverie.hf.bases import load_base, load_tokenizer

    line, question = "On day {} the old ferry took {} people over to Gull Island. ", "How many people went on day 7?"
    each = _HISTORY_BESIDE // (_TURNS - 1) // len(sleeper.encode(line.format(100, 100)))
    days = [[(turn * each + i, (turn * each + i) * 37 % 90 + 10) for i in range(each)] for turn in range(_TURNS - 1)]
    history = ["".join(line.format(*day) for day in turn) for turn in days]
    (base := store / "smollm2").mkdir()
    untouched: Any = load_base("smollm2")
    untouched.save_pretrained(base)
    load_tokenizer("smollm2").save_pretrained(base)
    chat = [
        {"role": role, "content": text} for said in history for role, text in (("user", said), ("assistant", "Yes."))
    ]
    asked: dict[str, Any] = {"input": question, "store": False, "max_output_tokens": 2}
    rows, length = list[Row](), sum(len(sleeper.encode(text)) for text in history)
    with Server.of_reverie(BESIDE, store / "beside", port) as server:
        long = Session()
        for text in history:
            timed = server.stream({"input": text, "previous_response_id": long.id, "max_output_tokens": 2})
            long.id = timed.response["id"]
        newest = {**asked, "previous_response_id": long.id}
        rows += _first_tokens(server, "/v1/responses", {1: asked, _TURNS: newest}, length, repeats)
    with Server.of_transformers(base, port) as server:
        last = [{"role": "user", "content": question}]
        sides = {1: {"messages": last, "max_tokens": 2}, _TURNS: {"messages": [*chat, *last], "max_tokens": 2}}
        return [*rows, *_first_tokens(server, "/v1/chat/completions", sides, length, repeats)]


def _first_tokens(
    server: Server, path: str, sides: Mapping[int, dict[str, Any]], length: int, repeats: int
) -> list[Row]:
    """A row for each turn, after a warm-up."""
    times = {number: list[float]() for number in sides}
    for i in range(repeats + 1):
        for number, body in sides.items():
            first = server.stream(body, path).first
            times[number] += [first] if i else []
    base = statistics.median(times[1])
    return [
        {
            "server": server.name,
            "turn": number,
            "history_tokens": 0 if number == 1 else length,
            "first_token_ms": 1e3 * (median := statistics.median(taken)),
            "over_turn_1": median / base,
        }
        for number, taken in times.items()
    ]


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
