"""Sessions on disk and in memory: an id never changes, a restart finds it bit for bit, and prefixes are the longest."""

from __future__ import annotations

import os
import stat
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_sleeper import tiny_sleeper

from reverie.memory.memory import Memory, sleep_over
from reverie.serve.files import checked_name, hex_of, new_id, owner_of
from reverie.serve.prefixes import Prefixes, chain, root_of
from reverie.serve.refusal import Refusal
from reverie.serve.sessions import Live, Sessions
from reverie.talk.chat import Chat
from reverie.talk.heard import Heard
from reverie.talk.sleeper import Sleeper

ROOT = root_of("a model")


@pytest.fixture(scope="module")
def sleeper(tmp_path_factory: pytest.TempPathFactory) -> Sleeper:
    return tiny_sleeper(tmp_path_factory.mktemp("run"), "depo")


def heard_after(sleeper: Sleeper, ids: list[int], awake: tuple[int, ...] = (3, 4)) -> Heard:
    return Heard(sleep_over(sleeper, torch.tensor([ids])), awake, 2)


def weights(heard: Heard) -> list[torch.Tensor]:
    return [x for x in heard.memory.context.state.fast_weights if x is not None]


def alike(a: Heard, b: Heard) -> bool:
    return (a.awake, a.turns) == (b.awake, b.turns) and all(map(torch.equal, weights(a), weights(b)))


def test_a_restart_finds_the_same(sleeper: Sleeper, tmp_path: Path) -> None:
    path, heard = tmp_path / "a" / "x.safetensors", heard_after(sleeper, [1, 2, 3, 4, 5])
    live = Sessions(sleeper, 4).put(path, heard)
    again = Sessions(sleeper, 4).get(path)
    assert again is not None
    assert alike(again.heard, heard)
    assert again.digest == live.digest
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_chat_goes_on_with_a_session_and_back(sleeper: Sleeper, tmp_path: Path) -> None:
    path, heard = tmp_path / "x.safetensors", heard_after(sleeper, [1, 2, 3, 4, 5])
    sessions = Sessions(sleeper, 4)
    sessions.put(path, heard)
    chat = Chat(sleeper, Memory.empty(sleeper))
    chat.load(path)
    assert (chat.awake, chat.turns) == ([3, 4], 2)
    chat.save(tmp_path / "chat.safetensors")
    live = sessions.get(tmp_path / "chat.safetensors")
    assert live is not None
    assert alike(live.heard, heard)


def test_only_the_newest_are_in_memory(sleeper: Sleeper, tmp_path: Path) -> None:
    sessions, heard = Sessions(sleeper, 2), heard_after(sleeper, [1, 2])
    paths = [tmp_path / f"{i}.safetensors" for i in range(3)]
    lives = [sessions.put(path, heard) for path in paths]
    assert sessions.num_live == 2
    assert sessions.get(paths[2]) is lives[2]
    assert sessions.get(paths[0]) is not lives[0]
    assert sessions.num_live == 2


def test_what_another_process_deletes_or_replaces_is_not_served(sleeper: Sleeper, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    ours, theirs = Sessions(sleeper, 4), Sessions(sleeper, 4)
    ours.put(path, heard_after(sleeper, [1, 2]))
    assert theirs.delete(path)
    assert not theirs.delete(path)
    assert ours.get(path) is None
    other = heard_after(sleeper, [2, 1])
    theirs.put(path, other)
    found = ours.get(path)
    assert found is not None
    assert alike(found.heard, other)


def test_damage_is_refused(sleeper: Sleeper, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    Sessions(sleeper, 4).put(path, heard_after(sleeper, [1, 2]))
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(Refusal, match="checksum is wrong") as refused:
        Sessions(sleeper, 4).get(path)
    assert str(tmp_path) not in refused.value.message


def test_many_threads_agree(sleeper: Sleeper, tmp_path: Path) -> None:
    sessions, heard = Sessions(sleeper, 3), heard_after(sleeper, [1, 2])
    failed = list[BaseException]()

    def work(k: int) -> None:
        try:
            for i in range(10):
                path = tmp_path / f"{k}-{i}.safetensors"
                sessions.put(path, replace(heard, turns=10 * k + i))
                live = sessions.get(path)
                assert live is not None
                assert live.heard.turns == 10 * k + i
                assert sessions.delete(path)
                assert sessions.get(path) is None
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert not os.listdir(tmp_path)


def longest(prefixes: Prefixes, root: str, ids: list[int]) -> tuple[Live, int] | None:
    known = prefixes.known(root, ids)
    live = known and prefixes.get(known[0])
    return (live, known[1]) if live and known else None


def test_the_longest_prefix_is_found(sleeper: Sleeper, tmp_path: Path) -> None:
    prefixes = Prefixes(tmp_path / "cache", Sessions(sleeper, 4), 10**9)
    assert longest(prefixes, ROOT, [1, 2, 3]) is None
    for ids in ([1, 2], [1, 2, 3, 4], [1, 2, 9]):
        prefixes.put(ROOT, ids, replace(heard_after(sleeper, ids), turns=len(ids)))
    again = Prefixes(tmp_path / "cache", Sessions(sleeper, 4), 10**9)  # after a restart

    def found(root: str, ids: list[int]) -> tuple[int, int] | None:
        hit = longest(again, root, ids)
        return hit and (hit[1], hit[0].heard.turns)

    assert found(ROOT, [1, 2, 3, 4, 5]) == (4, 4)
    assert found(ROOT, [1, 2, 3, 4]) == (2, 2)  # proper: one token must be left to hear
    assert found(ROOT, [1, 2, 3, 5, 4]) == (2, 2)
    assert found(ROOT, [1, 2, 9, 9]) == (3, 3)
    assert found(ROOT, [2, 1, 3, 4, 5]) is None
    assert found(root_of("another"), [1, 2, 3, 4, 5]) is None
    again.forget(root_of("another"))
    assert found(ROOT, [1, 2, 3]) == (2, 2)
    again.forget(ROOT)
    assert found(ROOT, [1, 2, 3]) is None
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_the_least_recently_used_prefixes_go(sleeper: Sleeper, tmp_path: Path) -> None:
    heard = heard_after(sleeper, [1, 2])
    size = len(heard.as_memory(sleeper.name).to_bytes())
    prefixes = Prefixes(tmp_path / "cache", Sessions(sleeper, 4), 3 * size + size // 2)
    for token in (1, 2, 3):
        prefixes.put(ROOT, [token], heard)
    assert longest(prefixes, ROOT, [1, 0]) is not None  # so that 2 is the one that was used longest ago
    prefixes.put(ROOT, [4], heard)
    assert [longest(prefixes, ROOT, [token, 0]) is not None for token in (1, 2, 3, 4)] == [True, False, True, True]
    none = Prefixes(tmp_path / "none", Sessions(sleeper, 4), 0)
    none.put(ROOT, [1], heard)
    assert longest(none, ROOT, [1, 2]) is None
    assert not (tmp_path / "none").exists()


def test_chains_depend_on_all_tokens_in_order() -> None:
    assert chain(ROOT, [1, 2, 3])[:2] == chain(ROOT, [1, 2])
    ends = [chain(ROOT, ids)[-1] for ids in ([1, 2, 3], [1, 3, 2], [2, 3], [1, 2, 3, 0], [258, 3], [1, 2, 2**40])]
    assert len({*ends, chain(root_of("b"), [1, 2, 3])[-1]}) == 7
    assert root_of("ab", "c") != root_of("a", "bc")


@pytest.mark.parametrize("name", ["", "..", ".x", "-x", "a/b", "../a", "a\\b", "a\0b", "x" * 101, "ä", "a b", "a\n"])
def test_names_are_no_paths(name: str) -> None:
    with pytest.raises(Refusal, match="a name is"):
        checked_name(name)
    assert hex_of(f"resp_{name}", "resp_") is None


def test_ids_and_owners() -> None:
    digits = new_id()
    assert hex_of(f"resp_{digits}", "resp_") == digits
    assert hex_of(digits, "resp_") is None
    assert hex_of(f"resp_{digits}\n", "resp_") is None
    assert len({owner_of(None), owner_of("a"), owner_of("b"), owner_of("")}) == 4
    assert owner_of("a") == owner_of("a")


def test_a_damaged_prefix_is_as_if_it_were_not_there(sleeper: Sleeper, tmp_path: Path) -> None:
    prefixes = Prefixes(tmp_path / "cache", Sessions(sleeper, 0), 10**9)
    for ids in ([1, 2], [1, 2, 3]):
        prefixes.put(ROOT, ids, heard_after(sleeper, ids))
    known = prefixes.known(ROOT, [1, 2, 3, 4])
    assert known is not None
    known[0].write_bytes(b"x")
    assert longest(prefixes, ROOT, [1, 2, 3, 4]) is None
    hit = longest(prefixes, ROOT, [1, 2, 3, 4])  # from now on the one before is found
    assert hit is not None
    assert hit[1] == 2
