"""Whatever lies in the folder of a store, no request fails but by a sentence that says what is wrong."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from server import Served, served
from tiny_sleeper import tiny_sleeper

from reverie.serve.files import remove_unfinished
from reverie.talk.sleeper import Sleeper

MODEL = "tiny-depo"
ASK = {"model": MODEL, "input": "k=1 3"}
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "k=1 3"}]}


@pytest.fixture(scope="module")
def sleeper(tmp_path_factory: pytest.TempPathFactory) -> Sleeper:
    return tiny_sleeper(tmp_path_factory.mktemp("run"), "depo")


def cut(path: Path, random: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: random.randrange(path.stat().st_size + 1)])


def flip(path: Path, random: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    path.write_bytes(data)


def swap(path: Path, random: random.Random) -> None:
    other = random.choice([other for other in path.parent.parent.rglob("*") if other.is_file()])
    path.write_bytes(other.read_bytes())


def broken_json(path: Path, random: random.Random) -> None:
    texts = ["[]", "{}", "null", '"x"', "1e999", "NaN", "[" * 9000 + "]" * 9000]
    texts += ['{"created": 1, "metadata": {}, "responses": [1]}']
    texts += ['{"created": 1, "metadata": {}, "responses": ["resp_../x"]}']
    path.write_text(random.choice(texts))


def link(path: Path, random: random.Random) -> None:
    path.unlink()
    path.symlink_to(random.choice(["/etc/passwd", path, "/nowhere", "/"]))


def pipe(path: Path, random: random.Random) -> None:
    path.unlink()
    os.mkfifo(path)


def folder(path: Path, random: random.Random) -> None:
    path.unlink()
    path.mkdir()


def unreadable(path: Path, random: random.Random) -> None:
    path.chmod(0)


@pytest.fixture(scope="module")
def filled(sleeper: Sleeper, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """A store with a file of every kind, and the ids of a response and a conversation."""
    store = tmp_path_factory.mktemp("store")
    with served(sleeper, store) as server, server.http() as http:
        id = http.post("/v1/responses", json=ASK).json()["id"]
        talk = http.post("/v1/conversations", json={}).json()["id"]
        http.post("/v1/responses", json={**ASK, "conversation": talk}).raise_for_status()
        http.post("/v1/memories", json={"name": "m", "source": id}).raise_for_status()
        for model in (MODEL, f"{MODEL}@m"):
            http.post("/v1/chat/completions", json={**CHAT, "model": model}).raise_for_status()
    (store / "everybody" / "readings").mkdir()
    (store / "everybody" / "readings" / "r.text").write_text("3 4 5")
    return store, id, talk


@pytest.mark.parametrize("running", [False, True])
@pytest.mark.parametrize("damage", [cut, flip, swap, broken_json, link, pipe, folder, unreadable])
def test_no_damage_is_the_servers_failure(
    sleeper: Sleeper,
    filled: tuple[Path, str, str],
    tmp_path: Path,
    damage: Callable[[Path, random.Random], None],
    running: bool,
) -> None:
    """Of any of the files, while the server runs or before it starts; and what is damaged can be deleted."""
    original, id, talk = filled
    for seed in range(2):
        store, draw = tmp_path / f"{seed}", random.Random(seed)
        shutil.copytree(original, store)

        def spoil(store: Path = store, draw: random.Random = draw) -> None:
            for path in sorted(path for path in store.rglob("*") if path.is_file() and path.stat().st_size):
                if draw.random() < 0.5:
                    with contextlib.suppress(FileNotFoundError):  # of a reading that is done by now
                        damage(path, draw)

        if not running:
            spoil()
        with served(sleeper, store) as server:
            if running:
                spoil()
            check(server, id, talk, "m")
            assert server.service is not None
            assert server.service.engine.alive


def check(server: Served, id: str, talk: str, name: str) -> None:
    requests: list[tuple[str, str, Any]] = [
        ("GET", f"/v1/responses/{id}", None),
        ("POST", "/v1/responses", {**ASK, "previous_response_id": id}),
        ("GET", f"/v1/conversations/{talk}", None),
        ("POST", "/v1/responses", {**ASK, "conversation": talk}),
        ("GET", "/v1/memories", None),
        ("GET", f"/v1/memories/{name}", None),
        ("GET", f"/v1/memories/{name}/file", None),
        ("POST", f"/v1/memories/{name}/ask", {"question": "k=1 3"}),
        ("POST", "/v1/chat/completions", {**CHAT, "model": f"{MODEL}@{name}"}),
        ("POST", "/v1/chat/completions", CHAT),
        ("DELETE", f"/v1/memories/{name}", None),
        ("DELETE", f"/v1/responses/{id}", None),
        ("DELETE", f"/v1/conversations/{talk}", None),
        ("DELETE", "/v1/cache", None),
    ]
    with server.http() as http:
        for method, path, body in requests:
            done = http.request(method, path, json=body, timeout=20)
            assert done.status_code in (200, 400, 404), (method, path, done.text)
            assert "/etc" not in done.text
            assert "root:" not in done.text


def test_a_text_that_cannot_be_read_is_told(sleeper: Sleeper, tmp_path: Path) -> None:
    readings = tmp_path / "everybody" / "readings"
    readings.mkdir(parents=True)
    (readings / "a.text").write_bytes(b"3 4 \xff")
    (readings / "b.text").write_text("nonsense")
    os.mkfifo(readings / "c.text")
    with served(sleeper, tmp_path) as server, server.http() as http:
        for name in "abc":
            told = http.get(f"/v1/memories/{name}").json()
            assert (told["status"], "delete it" in told["problem"]) == ("failed", True)
            http.delete(f"/v1/memories/{name}").raise_for_status()
        assert not list(readings.glob("*.text"))
        http.post("/v1/memories", json={"name": "a", "text": "3 4"}).raise_for_status()


def test_a_disk_that_takes_nothing(sleeper: Sleeper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was stored is served on; what would be stored is refused in one sentence, and nothing of it stays."""
    with served(sleeper, tmp_path) as server, server.http() as http:
        id = http.post("/v1/responses", json=ASK).json()["id"]
        talk = http.post("/v1/conversations", json={}).json()["id"]
        http.post("/v1/memories", json={"name": "m", "source": id}).raise_for_status()
        before = {path for path in tmp_path.rglob("*") if path.suffix != ".lock" and path.is_file()}
        opened = os.open

        def full(path: Any, flags: int, *more: Any, **options: Any) -> int:
            if flags & os.O_CREAT and str(tmp_path) in str(path):
                raise OSError(28, "No space left on device", path)
            return opened(path, flags, *more, **options)

        monkeypatch.setattr(os, "open", full)
        for path, body in (
            ("/v1/responses", ASK),
            ("/v1/responses", {**ASK, "conversation": talk}),
            ("/v1/conversations", {}),
            ("/v1/memories", {"name": "x", "text": "3 4"}),
            ("/v1/memories", {"name": "x", "source": id}),
        ):
            refused = http.post(path, json=body)
            assert (refused.status_code, refused.json()["error"]["code"]) == (507, "storage"), refused.text
            assert "No space left" in refused.json()["error"]["message"]
        assert http.get(f"/v1/responses/{id}").status_code == 200
        assert http.get(f"/v1/conversations/{talk}").status_code == 200
        assert http.post("/v1/responses", json={**ASK, "previous_response_id": id, "store": False}).status_code == 200
        assert http.post("/v1/chat/completions", json=CHAT).status_code == 200
        monkeypatch.undo()
        assert {path for path in tmp_path.rglob("*") if path.suffix != ".lock" and path.is_file()} == before
        http.post("/v1/responses", json={**ASK, "conversation": talk}).raise_for_status()


def test_what_a_killed_writer_left_goes(tmp_path: Path) -> None:
    """Not before it is clear that nobody writes it any more; and nothing else goes."""
    responses = tmp_path / "key" / "responses"
    responses.mkdir(parents=True)
    whole = {"whole.json", "whole.safetensors", "whole.idle.safetensors", "new.json"}
    for name in (*whole, "old.json", "old.idle.safetensors", ".old.1234.tmp.safetensors"):
        (responses / name).touch()
        if "new" not in name:
            os.utime(responses / name, (1, 1))
    remove_unfinished(tmp_path)
    assert {path.name for path in responses.iterdir()} == whole


def test_a_name_that_is_given_again_brings_nothing_back(sleeper: Sleeper, tmp_path: Path) -> None:
    """A chat with a memory that is deleted, while it goes on, leaves nothing, also where another takes the name."""
    with served(sleeper, tmp_path) as server, server.http() as http:
        http.post("/v1/memories", json={"name": "m", "text": "3 4 5"}).raise_for_status()
        while http.get("/v1/memories/m").json()["status"] == "reading":
            time.sleep(0.01)
        stream = http.stream(
            "POST", "/v1/completions", json={"model": f"{MODEL}@m", "prompt": "3 4", "max_tokens": 300, "stream": True}
        )
        with stream as lines:
            pieces = lines.iter_lines()
            next(pieces)
            with server.http() as other:
                other.delete("/v1/memories/m").raise_for_status()
                other.post("/v1/memories", json={"name": "m", "text": "6 7"}).raise_for_status()
                while other.get("/v1/memories/m").json()["status"] == "reading":
                    time.sleep(0.01)
            assert list(pieces)[-2] == "data: [DONE]"
        assert not list((tmp_path / "everybody" / "cache").rglob("*.safetensors"))


def test_a_memory_may_be_called_like_a_response(sleeper: Sleeper, tmp_path: Path) -> None:
    with served(sleeper, tmp_path) as server, server.http() as http:
        id = http.post("/v1/responses", json=ASK).json()["id"]
        http.post("/v1/memories", json={"name": "resp_x", "source": id}).raise_for_status()
        http.post("/v1/memories", json={"name": "y", "source": "resp_x"}).raise_for_status()


def test_the_clock_may_jump(sleeper: Sleeper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time
    with served(sleeper, tmp_path, cached_bytes=9000) as server, server.http() as http:
        previous = None
        for i, jump in enumerate((0, 1e6, -1e9, 3e9, 0)):
            monkeypatch.setattr(time, "time", lambda jump=jump: now() + jump)
            done = http.post("/v1/responses", json={**ASK, "previous_response_id": previous})
            previous = done.raise_for_status().json()["id"]
            http.post("/v1/chat/completions", json=CHAT).raise_for_status()
            http.post("/v1/memories", json={"name": f"m{i}", "source": previous}).raise_for_status()
            assert http.get("/v1/memories").status_code == 200


def test_conversations_take_turns(sleeper: Sleeper, tmp_path: Path) -> None:
    """Requests at one conversation at the same time come one after the other, each after the one before; so do
    two servers at one store, and a conversation that is deleted meanwhile is gone for those who wait."""
    with served(sleeper, tmp_path) as one, served(sleeper, tmp_path) as two, one.http() as http:
        talk = http.post("/v1/conversations", json={}).json()["id"]
        done = list[httpx.Response]()

        def ask(server: Served) -> None:
            with server.http() as own:
                done.append(own.post("/v1/responses", json={**ASK, "conversation": talk}))

        threads = [threading.Thread(target=ask, args=(server,)) for server in (one, two) * 5]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert {answer.status_code for answer in done} == {200}
        chain = {answer.json()["previous_response_id"]: answer.json()["id"] for answer in done}
        newest, count = chain[None], 1
        while newest in chain:
            newest, count = chain[newest], count + 1
        assert count == 10
        assert http.get(f"/v1/conversations/{talk}").json()["newest_response_id"] == newest
        http.delete(f"/v1/conversations/{talk}").raise_for_status()
        assert not [path for path in (tmp_path / "everybody").rglob("*") if path.is_file()]


def test_the_line_before_a_conversation_is_bounded(sleeper: Sleeper, tmp_path: Path) -> None:
    endless = {**ASK, "max_output_tokens": 4000, "stream": True}
    sleeper.language.end_ids = frozenset()
    with served(sleeper, tmp_path, waiting=1, answer_s=8) as server, server.http() as http:
        talk = http.post("/v1/conversations", json={}).json()["id"]
        with server.http() as own, own.stream("POST", "/v1/responses", json={**endless, "conversation": talk}) as first:
            lines = first.iter_lines()
            next(lines)
            answers = list[httpx.Response]()

            def wait() -> None:
                with server.http() as second:
                    answers.append(second.post("/v1/responses", json={**ASK, "conversation": talk}))

            waiting = threading.Thread(target=wait)
            waiting.start()
            assert server.service is not None
            queues = server.service.account("everybody").conversations._queues._turns
            until = time.monotonic() + 60
            while not any(len(turns) >= 3 for turns in list(queues.values())):
                assert time.monotonic() < until
                time.sleep(0.01)
            refused = http.post("/v1/responses", json={**ASK, "conversation": talk})
            assert (refused.status_code, refused.headers.get("retry-after")) == (429, "1"), refused.text
            assert "response.failed" in "".join(lines)  # it takes longer than an answer may
        waiting.join()
        assert answers[0].status_code in (200, 408)
        assert http.post("/v1/responses", json={**ASK, "conversation": talk}).status_code == 200
