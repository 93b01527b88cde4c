"""What each key has is its own, what is deleted is gone, and a restart loses nothing that was acknowledged."""

from __future__ import annotations

import os
import signal
import stat
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
from answers import files, read, same, weights
from server import Served, process, served
from tiny_sleeper import tiny_run, tiny_sleeper

from reverie.memory.memory import Memory
from reverie.talk.chat import Chat
from reverie.talk.heard import Heard
from reverie.talk.sleeper import Sleeper, load_model


@pytest.fixture(scope="module")
def sleeper(tmp_path_factory: pytest.TempPathFactory) -> Sleeper:
    return tiny_sleeper(tmp_path_factory.mktemp("run"), "depo")


def respond(server: Served, text: str, key: str = "none", **options: Any) -> Any:
    return server.client(key).responses.create(model="tiny-depo", input=text, **options)


def ask(http: httpx.Client, name: str) -> dict[str, Any]:
    return http.post(f"/v1/memories/{name}/ask", json={"question": "k=2 4"}).raise_for_status().json()


def test_keys_do_not_see_each_other(sleeper: Sleeper, tmp_path: Path) -> None:
    with served(sleeper, tmp_path, "one", "two") as server:
        done = respond(server, "k=1 3", "one")
        conversation = server.client("one").conversations.create()
        with server.http("one") as one, server.http("two") as two:
            read(one, "mine")
            assert [model.id for model in server.client("one").models.list()] == ["tiny-depo", "tiny-depo@mine"]
            assert [model.id for model in server.client("two").models.list()] == ["tiny-depo"]
            unseen: list[tuple[str, str, Any]] = [
                ("get", f"/v1/responses/{done.id}", None),
                ("delete", f"/v1/responses/{done.id}", None),
                ("get", f"/v1/conversations/{conversation.id}", None),
                ("delete", f"/v1/conversations/{conversation.id}", None),
                ("get", "/v1/models/tiny-depo@mine", None),
                ("get", "/v1/memories/mine", None),
                ("get", "/v1/memories/mine/file", None),
                ("delete", "/v1/memories/mine", None),
                ("post", "/v1/memories/mine/ask", {"question": "k=2 4"}),
                ("post", "/v1/memories", {"name": "copy", "source": "mine"}),
                ("post", "/v1/memories", {"name": "copy", "source": done.id}),
                ("post", "/v1/responses", {"model": "tiny-depo", "input": "k=1 3", "previous_response_id": done.id}),
                ("post", "/v1/responses", {"model": "tiny-depo", "input": "k=1 3", "conversation": conversation.id}),
                ("post", "/v1/responses", {"model": "tiny-depo@mine", "input": "k=1 3"}),
            ]
            for method, path, body in unseen:
                assert two.request(method, path, json=body).status_code == 404, path
                nobody = httpx.request(method, f"{server.url}{path}", json=body)
                assert nobody.status_code == 401
                assert nobody.headers["www-authenticate"] == "Bearer"
            assert two.delete("/v1/cache").status_code == 200
            read(two, "mine", "7 7 3")  # a name of one's own
            assert ask(two, "mine") != ask(one, "mine")
        history = [{"role": "user", "content": "k=1 5"}]
        for key, cached in (("one", 0), ("two", 0), ("one", 2)):
            chat: Any = server.client(key).chat.completions.create(model="tiny-depo", messages=history, max_tokens=1)  # type: ignore[arg-type]
            asked = [*history, {"role": "assistant", "content": chat.choices[0].message.content}]
            more = [*asked, {"role": "user", "content": "3 4"}] if cached else history
            again: Any = server.client(key).chat.completions.create(model="tiny-depo", messages=more)  # type: ignore[arg-type]
            assert again.usage.prompt_tokens_details.cached_tokens >= cached
        for key in ("none", "onE", "onex", "two, one"):
            with pytest.raises(openai.AuthenticationError):
                server.client(key).models.list()
        assert httpx.get(f"{server.url}/metrics").status_code == 401
        assert httpx.get(f"{server.url}/healthz").json() == {"status": "ok"}


def test_files_are_for_the_server_alone(sleeper: Sleeper, tmp_path: Path) -> None:
    with served(sleeper, tmp_path / "store") as server:
        conversation = server.client().conversations.create()
        respond(server, "k=1 3", conversation=conversation.id)
        server.client().completions.create(model="tiny-depo", prompt="3 4")
        with server.http() as http:
            read(http, "mine")
            http.post("/v1/memories", json={"name": "long", "text": " ".join(["3 4"] * 3000)})
        for path in (tmp_path / "store").rglob("*"):
            assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_what_is_deleted_is_gone(sleeper: Sleeper, tmp_path: Path) -> None:
    """From the disk, from memory, and from the cache of chats that went on from it."""
    with served(sleeper, tmp_path) as server, server.http() as http:
        assert server.service is not None
        done = respond(server, "k=1 3")
        read(http, "mine")
        kept = [{"role": "user", "content": "k=1 3"}]
        for model in ("tiny-depo@mine", "tiny-depo"):
            server.client().chat.completions.create(model=model, messages=kept)  # type: ignore[arg-type]
        http.post("/v1/memories", json={"name": "copy", "source": done.id}).raise_for_status()
        http.delete(f"/v1/responses/{done.id}").raise_for_status()
        with pytest.raises(openai.NotFoundError):
            respond(server, "k=1 3", previous_response_id=done.id)
        assert not list(tmp_path.rglob(f"*{done.id[5:]}*"))
        http.delete("/v1/memories/mine").raise_for_status()
        assert http.delete("/v1/memories/mine").status_code == 404
        assert len(list(tmp_path.rglob("*.safetensors"))) == 2  # the copy, and the chat without that memory
        http.delete("/v1/memories/copy").raise_for_status()
        http.delete("/v1/cache").raise_for_status()
        assert files(tmp_path) == []
        assert server.service.sessions.num_live == 0


def test_a_restart_changes_no_bit(sleeper: Sleeper, tmp_path: Path) -> None:
    """Nor does it where the model was asked before, in a batch or not, or where sleep had come behind the scenes."""
    ids, before, probabilities = list[str](), list[Heard](), list[dict[str, Any]]()
    with served(sleeper, tmp_path / "store", live=3) as server, server.http() as http:
        previous = openai.omit
        for i in range(6):
            done = respond(server, f"k=1 {i % 4 + 3} 4 5"[: 5 + 2 * (i % 3)], previous_response_id=previous)
            ids.append(done.id)
            previous = done.id
            http.post("/v1/memories", json={"name": f"copy{i}", "source": done.id}).raise_for_status()
            before.append(Heard.of(server.memory(done.id, sleeper, tmp_path / "m")))
            probabilities.append(ask(http, f"copy{i}"))
    with served(sleeper, tmp_path / "store", live=3) as server, server.http() as http:
        for i, id in reversed([*enumerate(ids)]):
            heard = Heard.of(server.memory(id, sleeper, tmp_path / "m"))
            assert heard.awake == before[i].awake
            assert all(map(torch.equal, weights(heard), weights(before[i])))
            assert ask(http, f"copy{i}") == probabilities[i]
            assert server.client().responses.retrieve(id).id == id


def test_files_go_to_reverie_chat_and_back(sleeper: Sleeper, tmp_path: Path) -> None:
    with served(sleeper, tmp_path / "store") as server, server.http() as http:
        done = respond(server, "k=1 3")
        memory = server.memory(done.id, sleeper, tmp_path / "chat.safetensors")
        chat = Chat(sleeper, memory)
        answer = chat.say("k=2 4")
        chat.save(tmp_path / "chat.safetensors")
        assert respond(server, "k=2 4", previous_response_id=done.id).output_text == answer
        data = (tmp_path / "chat.safetensors").read_bytes()
        assert http.put("/v1/memories/chat/file", content=data).status_code == 201
        assert http.get("/v1/memories/chat").json()["turns"] == 2
        assert http.put("/v1/memories/chat/file", content=data).status_code == 409  # never written over
        gone_on = server.client().responses.create(model="tiny-depo@chat", input="k=3 5")
        assert gone_on.output_text == chat.say("k=3 5")


@pytest.mark.parametrize("damage", ["cut", "flipped", "other", "rows", "passes", "awake"])
def test_files_are_checked(sleeper: Sleeper, tmp_path: Path, damage: str) -> None:
    memory = Memory.empty(sleeper)
    if damage == "rows":
        memory = Memory.empty(sleeper, batch_size=2)
    if damage == "passes":
        memory = replace(memory, config=memory.config.with_(num_sleep_passes=5000))
    if damage == "awake":
        memory = replace(memory, notes={"awake": "[99999]"})
    data = memory.to_bytes()
    if damage == "other":
        data = Memory.empty(load_model("example")).to_bytes()
    data = {"cut": data[:-3], "flipped": data[:200] + bytes([data[200] ^ 1]) + data[201:]}.get(damage, data)
    with served(sleeper, tmp_path / "store") as server, server.http() as http:
        refused = http.put("/v1/memories/x/file", content=data)
        assert refused.status_code == 400, refused.text
        assert refused.json()["error"]["code"] == "bad_memory"
        assert str(tmp_path) not in refused.text
        assert files(tmp_path / "store") == []


def test_a_damaged_file_in_the_store_is_refused(sleeper: Sleeper, tmp_path: Path) -> None:
    with served(sleeper, tmp_path / "store") as server, server.http() as http:
        done = respond(server, "k=1 3")
        read(http, "mine")
    for path in (tmp_path / "store").rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-5])
    with served(sleeper, tmp_path / "store") as server, server.http() as http:
        with pytest.raises(openai.BadRequestError, match="cut short"):
            respond(server, "k=1 3", previous_response_id=done.id)
        assert [one["status"] for one in http.get("/v1/memories").json()["data"]] == ["failed"]
        assert server.client().models.list().data
        http.delete("/v1/memories/mine").raise_for_status()
        http.delete(f"/v1/responses/{done.id}").raise_for_status()
        assert files(tmp_path / "store") == []


@pytest.mark.slow
def test_two_processes_share_a_store(tmp_path: Path) -> None:
    run, store = tiny_run(tmp_path / "depo", "depo"), tmp_path / "store"
    with process(run, store) as (one, _), process(run, store) as (two, _):
        name = one.client().models.list().data[0].id
        conversation = one.client().conversations.create().id
        problems, locked = list[str](), list[str | None]()

        def talk(server: Served, seed: int) -> None:
            try:
                id: Any = openai.omit
                for i in range(7):
                    done = server.client().responses.create(model=name, input=f"k=1 {seed}", previous_response_id=id)
                    other = (two if server is one else one).client()
                    assert other.responses.retrieve(done.id).output_text == done.output_text
                    id = done.id
                    if i % 3 == 0:
                        with server.http() as http:
                            http.post("/v1/memories", json={"name": f"m{seed}", "source": id})
                            other.responses.create(model=f"{name}@m{seed}", input="k=2 4")
                            http.delete(f"/v1/memories/m{seed}").raise_for_status()
                    try:
                        server.client().responses.create(model=name, input="k=2 3", conversation=conversation)
                    except openai.ConflictError as error:
                        locked.append(error.code)
            except BaseException as error:
                problems.append(repr(error))

        threads = [
            threading.Thread(target=talk, args=(server, seed)) for seed, server in ((3, one), (4, two), (5, one))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not problems
        assert set(locked) <= {"conversation_locked"}
        one.client().conversations.delete(conversation)
        assert not (list((store / "everybody" / "conversations").iterdir()))


@pytest.mark.slow
def test_workers_share_a_store(tmp_path: Path) -> None:
    """A request goes to any of them, and each goes on with what another has written."""
    run, store = tiny_run(tmp_path / "depo", "depo"), tmp_path / "store"
    with process(run, store, "--workers", "2", REVERIE_API_KEYS="one two") as (server, _):
        name = server.client("one").models.list().data[0].id
        with pytest.raises(openai.AuthenticationError):
            server.client("three").models.list()
        answers, previous = list[str](), openai.omit
        for _ in range(6):
            client = server.client("one")  # with a connection of its own
            done = client.responses.create(model=name, input="k=1 3", previous_response_id=previous)
            answers.append(done.output_text)
            previous = done.id
        chat = Chat(load_model(run), Memory.empty(load_model(run)))
        assert answers == [chat.say("k=1 3") for _ in range(6)]


@pytest.mark.slow
def test_what_was_acknowledged_survives_sigkill(tmp_path: Path) -> None:
    """Killed again and again in the midst of writing: every id that a client was given is there, to the last bit."""
    run, store = tiny_run(tmp_path / "depo", "depo"), tmp_path / "store"
    sleeper, chains = load_model(run), list[tuple[str, list[tuple[str, str]]]]()
    text = " ".join(f"{i * i % 7 + 2}" for i in range(2000))
    for round in range(3):
        with process(run, store) as (server, running):
            name = server.client().models.list().data[0].id
            if round == 0:
                with server.http() as http:
                    http.post("/v1/memories", json={"name": "long", "text": text}).raise_for_status()

            def talk(seed: int, server: Served = server, name: str = name) -> None:
                previous, client, chain = openai.omit, server.client(), list[tuple[str, str]]()
                chains.append((f"k=1 {seed}", chain))
                while True:
                    try:
                        done = client.responses.create(model=name, input=f"k=1 {seed}", previous_response_id=previous)
                    except openai.APIConnectionError:
                        return
                    chain.append((done.id, done.output_text))
                    previous = done.id

            threads = [threading.Thread(target=talk, args=(seed,)) for seed in (3, 4, 5)]
            for thread in threads:
                thread.start()
            time.sleep(3)
            os.kill(running.pid, signal.SIGKILL)
            for thread in threads:
                thread.join()
    assert sum(len(chain) for _, chain in chains) > 8
    with served(sleeper, store) as server, server.http() as http:
        for question, chain in chains:
            chat = Chat(sleeper, Memory.empty(sleeper))
            for id, answer in chain:
                assert chat.say(question) == answer
                assert server.client().responses.retrieve(id).output_text == answer
                heard = Heard.of(server.memory(id, sleeper, tmp_path / "m"))
                assert same(heard, Heard(chat.memory, tuple(chat.awake), chat.turns))
        while http.get("/v1/memories/long").json()["status"] == "reading":
            time.sleep(0.05)
        assert http.get("/v1/memories/long").json()["tokens"] == 2000
