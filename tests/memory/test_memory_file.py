"""Files that are cut, changed, foreign or hostile are refused with one sentence, before much of them is read."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import Tensor

from reverie import Memory, sleep_over
from reverie.errors import UserError
from reverie.memory.file import MOST_HEADER_BYTES, header_size, read_info
from reverie.model import HybridLM
from reverie.sleep import SleepConfig

CONFIG = SleepConfig(window_size=4, num_sleep_passes=2, eviction="sliding")


class File(NamedTuple):
    model: HybridLM
    memory: Memory
    data: bytes

    def refusal(self, data: bytes) -> str:
        with pytest.raises(UserError) as caught:
            Memory.fetch(lambda end: data[:end], self.model, CONFIG, where="a.safetensors")
        sentence = str(caught.value)
        assert sentence.startswith("a.safetensors ")
        assert "\n" not in sentence
        assert len(sentence) < 300
        return sentence


@pytest.fixture(scope="module")
def file(tiny_model: Callable[..., HybridLM]) -> File:
    model = tiny_model("attn", "gdn", dtype=torch.float32)
    memory = sleep_over(model, torch.arange(22).reshape(2, 11) % 11, CONFIG)
    memory = Memory(memory.context, memory.tokens, memory.config, memory.fingerprint, {"source": "a tale"})
    return File(model, memory, memory.to_bytes())


def metadata(data: bytes) -> dict[str, Any]:
    return json.loads(data[8 : header_size(data, "")])["__metadata__"]


def rewritten(data: bytes, *, tensors: dict[str, Tensor] | None = None, **changes: Any) -> bytes:
    """The file with other metadata, or other tensors."""
    return save(load(data) if tensors is None else tensors, {**metadata(data), **changes})


def described(data: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    """The file with a changed description, and the checksum of the old one."""
    content = json.loads(metadata(data)["memory"])
    change(content)
    return rewritten(data, memory=json.dumps(content))


def test_the_header_alone_says_what_a_memory_is(file: File, tmp_path: Path):
    start = file.data[: header_size(file.data, "")]
    file.memory.save(tmp_path / "a.safetensors")
    for info in (read_info(start), read_info(tmp_path / "a.safetensors")):
        assert info.tokens == [11, 11]
        assert info.passes == [6, 6]
        assert info.config == CONFIG
        assert info.fingerprint == file.memory.fingerprint
        assert info.notes == {"source": "a tale"}
        assert info.nbytes == file.memory.nbytes
    assert len(start) < len(file.data)
    with pytest.raises(UserError, match="is cut short"):
        read_info(start, "a", size=len(file.data) - 1)


@settings(deadline=None, max_examples=40)
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_file_cut_anywhere_is_refused(file: File, share: float):
    file.refusal(file.data[: int(share * len(file.data))])


@settings(deadline=None, max_examples=80)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_anywhere_is_refused(file: File, place: float, bit: int):
    data = bytearray(file.data)
    data[int(place * len(data))] ^= 1 << bit
    file.refusal(bytes(data))


@settings(deadline=None, max_examples=40)
@given(junk=st.binary(max_size=200))
def test_junk_is_refused(file: File, junk: bytes):
    file.refusal(junk)
    file.refusal(len(junk).to_bytes(8, "little") + junk)


def test_bytes_after_the_end_are_refused(file: File):
    assert "is too long: it holds" in file.refusal(file.data + b"x")


@pytest.mark.parametrize("length", [0, 1, MOST_HEADER_BYTES + 1, 2**40, 2**64 - 1])
def test_a_huge_header_is_refused_unread(file: File, length: int):
    assert "does not begin like one" in file.refusal(length.to_bytes(8, "little") + file.data[8:])


def test_a_deep_header_is_refused(file: File):
    nested = b"[" * 100_000
    assert "its header is not one" in file.refusal(len(nested).to_bytes(8, "little") + nested)


def test_a_claim_of_more_than_there_is_is_refused_unread(file: File):
    """The header says 1 TB."""
    header = json.loads(file.data[8 : header_size(file.data, "")])
    name = "fast_weights.1"
    header[name]["shape"][0] = 2**34
    header[name]["data_offsets"][1] = 2**40
    text = json.dumps(header).encode()
    assert "does not agree with itself" in file.refusal(len(text).to_bytes(8, "little") + text)


def test_a_pickle_or_another_models_weights_are_no_memory(file: File):
    assert "does not begin like one" in file.refusal(pickle.dumps({"fast_weights": [1.0]}))
    assert "its header is not one" in file.refusal(save({"weight": torch.zeros(3)}))
    assert "not a memory of this version" in file.refusal(rewritten(file.data, format="reverie memory 999"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.pop("info"), "its description is wrong at info"),
        (lambda content: content["info"].update(tokens=[]), "its description is wrong at info.tokens"),
        (lambda content: content["info"].update(tokens=[-1, 2]), "its description is wrong at info.tokens.0"),
        (lambda content: content["info"].update(passes=[1]), "different numbers of rows"),
        (lambda content: content["info"].update(evil=1), "its description is wrong at info.evil"),
        (lambda content: content["info"].update(nbytes=7), "does not agree with itself"),
        (lambda content: content["info"].update(fingerprint="0" * 64), "is a memory of another model"),
        (lambda content: content["info"]["config"].update(window_size=5), "was made with window_size 5"),
        (lambda content: content["info"].update(tokens=[11, 12]), "was changed after it was written"),
        (lambda content: content["info"].update(tokens=[1] * 3, passes=[1] * 3), "is none that a memory of it has"),
        (lambda content: content["info"]["notes"].update(source="another"), "was changed after it was written"),
        (lambda content: content["parts"].pop(), "does not fit this model"),
    ],
)
def test_a_changed_description_is_refused(file: File, change: Callable[[dict[str, Any]], object], message: str):
    assert message in file.refusal(described(file.data, change))


def forged(file: File, change: Callable[[dict[str, Any], dict[str, Tensor]], object]) -> bytes:
    """The file with changed description or tensors, and the right checksum."""
    from reverie.memory.file import _checksum

    tensors, content = load(file.data), json.loads(metadata(file.data)["memory"])
    change(content, tensors)
    content["info"]["nbytes"] = sum(x.nbytes for x in tensors.values())
    text = json.dumps(content)
    return rewritten(file.data, tensors=tensors, memory=text, sha256=_checksum(text, tensors))


def rename(content: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    tensors["../../etc/passwd"] = tensors.pop("cache.0.k")
    content["parts"][0]["fields"]["k"]["tensor"] = "../../../other"


def without_fast_weights(content: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    content["parts"][1].update(fast_weights=False)
    del tensors["fast_weights.1"]


def longer(content: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """More tokens than sliding eviction keeps."""
    for name in ("cache.0.k", "cache.0.v"):
        tensors[name] = torch.zeros(2, CONFIG.window_size, *tensors[name].shape[2:])


FORGERIES: dict[str, Callable[[dict[str, Any], dict[str, Tensor]], object]] = {
    "another class": lambda c, t: c["parts"][0].update(cache="Popen"),
    "no class": lambda c, t: c["parts"][0].update(cache="__import__"),
    "one field more": lambda c, t: c["parts"][0]["fields"].update(evil=1),
    "one field less": lambda c, t: c["parts"][0]["fields"].pop("v"),
    "a number for a tensor": lambda c, t: c["parts"][0]["fields"].update(k=3),
    "a word for a number": lambda c, t: c["parts"][0]["fields"].update(rope_base="x"),
    "another number": lambda c, t: c["parts"][0]["fields"].update(rope_base=0.0),
    "fast weights not described": lambda c, t: c["parts"][1].update(fast_weights=False),
    "no fast weights": without_fast_weights,
    "paths for names": rename,
    "a tensor more": lambda c, t: t.update({"/etc/passwd": torch.zeros(2)}),
    "other fast weights": lambda c, t: t.update({"fast_weights.1": torch.zeros(2, 9, 9, 9)}),
    "fast weights of no block": lambda c, t: t.update({"fast_weights.7": torch.zeros(2, 2, 3, 5)}),
    "other rows": lambda c, t: t.update({"cache.0.k": torch.zeros(5, 3, 1, 4)}),
    "other heads": lambda c, t: t.update({"cache.0.k": torch.zeros(2, 3, 7, 4)}),
    "more tokens": longer,
    "integers": lambda c, t: t.update({"fast_weights.1": torch.zeros(2, 2, 3, 5, dtype=torch.int64)}),
    "no numbers": lambda c, t: t["fast_weights.1"].fill_(float("nan")),
    "a history not described": lambda c, t: t.update({"history.counts": torch.zeros(2)}),
    "no history": lambda c, t: (c.update(history=True), t.update({"history.x": torch.zeros(2)})),
    "passes without end": lambda c, t: c["info"]["config"].update(num_sleep_passes=10**9),
    "commands for a terminal": lambda c, t: c["info"]["notes"].update(source="\x1b[2J"),
}


@pytest.mark.parametrize("change", FORGERIES.values(), ids=FORGERIES)
def test_a_forged_file_is_refused(file: File, change: Callable[[dict[str, Any], dict[str, Tensor]], object]):
    assert re.match(r"a\.safetensors (is not a memory|does not fit this model)", file.refusal(forged(file, change)))


def test_a_file_with_more_than_a_memory_is_not_read(file: File, tmp_path: Path):
    """A sparse file of 1 TB."""
    header = json.loads(file.data[8 : header_size(file.data, "")])
    content = json.loads(header["__metadata__"]["memory"])
    end = content["info"]["nbytes"]
    content["info"]["nbytes"] = 2**40
    header["__metadata__"]["memory"] = json.dumps(content)
    header["junk"] = {"dtype": "U8", "shape": [2**40 - end], "data_offsets": [end, 2**40]}
    text = json.dumps(header).encode()
    path = tmp_path / "large.safetensors"
    with path.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        out.truncate(8 + len(text) + 2**40)
    with pytest.raises(UserError, match="its tensor 'junk' is none that a memory of it has"):
        Memory.load(path, file.model, CONFIG)


def test_a_sentence_holds_no_commands_for_a_terminal(file: File):
    message = file.refusal(described(file.data, lambda content: content["info"].update({"\x1b[2J\n" + "x" * 5000: 1})))
    assert message.isprintable()


def test_a_forgery_that_changes_nothing_is_the_memory(file: File):
    """So the tests above are refused for what they change."""
    data = forged(file, lambda content, tensors: None)
    again = Memory.fetch(lambda end: data[:end], file.model, CONFIG, where="this")
    assert again.to_bytes()[-again.nbytes :] == file.data[-file.memory.nbytes :]


def test_notes_are_bounded(file: File):
    memory = Memory(file.memory.context, file.memory.tokens, CONFIG, file.memory.fingerprint, {"x": "y" * 2**16})
    with pytest.raises(UserError, match="the notes of a memory must fit into 64 KiB"):
        memory.to_bytes()


def test_what_is_no_file_is_one_sentence(file: File, tmp_path: Path):
    with pytest.raises(UserError, match=r"there is no memory at .*none\.safetensors"):
        Memory.load(tmp_path / "none.safetensors", file.model)
    with pytest.raises(UserError, match="cannot read"):
        Memory.load(tmp_path, file.model)


def test_a_disk_that_refuses_leaves_the_old_memory(file: File, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "a.safetensors"
    file.memory.save(path)

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("reverie.files.os.replace", refuse)
    with pytest.raises(UserError, match="No space left"):
        file.memory.branch(2).save(path)
    assert path.read_bytes()[-file.memory.nbytes :] == file.data[-file.memory.nbytes :]
    assert len(list(tmp_path.iterdir())) == 1
