"""`convert`: what lies in the folder computes what the model did, and sleeps."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from tiny import text
from tiny_folder import tiny_folder, tiny_tokenizer
from torch import nn

from reverie.errors import UserError
from reverie.hf import convert as module
from reverie.hf.add import insert_fast_weights
from reverie.hf.bases import load_base, load_tokenizer
from reverie.hf.blocks import inserted_mixer
from reverie.hf.convert import SAMPLE, Conversion, conversion_table, convert, spread
from reverie.hf.decoders import decoder_of
from reverie.hf.load import load
from reverie.sleep import SleepConfig

pytestmark = pytest.mark.hf

CONFIG = SleepConfig(window_size=16, num_sleep_passes=2, looped_blocks=(1, 3))


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return tiny_folder(tmp_path / "llama")


def test_the_folder_holds_the_same_model_asleep(llama: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    done = convert(str(llama), out, CONFIG, kind="gdn", layers=2)
    model = load(out)
    assert model.sleep_config == CONFIG
    decoder: Any = decoder_of(model)
    assert [i for i, layer in enumerate(decoder.layers) if inserted_mixer(layer)] == [1, 3]
    with torch.no_grad():
        assert torch.equal(model(text(16)).logits, load_base(llama)(text(16)).logits)
    assert load_tokenizer(out)(SAMPLE).input_ids == tiny_tokenizer()(SAMPLE).input_ids
    assert (done.after, done.kind, done.num_blocks, done.checked_tokens) == ((1, 3), "gdn", 4, 16)
    assert done.parameters + done.added_parameters == sum(p.numel() for p in model.parameters())
    assert done.files_bytes == sum(file.stat().st_size for file in out.iterdir())
    assert [path.name for path in out.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("kind", ["qwen3_next", "olmo_hybrid"])
def test_a_model_with_fast_weights_of_its_own(kind: str, tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "hybrid", kind)
    done = convert(str(folder), tmp_path / "out", CONFIG)
    assert (done.kind, done.after, done.added_parameters) == (None, (), 0)
    assert load(tmp_path / "out").sleep_config == CONFIG


def test_again_to_sleep_in_another_way(llama: Path, tmp_path: Path) -> None:
    """Of a folder that it made; what was inserted stays, and the file is an adapter of the same base."""
    convert(str(llama), tmp_path / "first", CONFIG, kind="jet", layers=2)
    other = SleepConfig(window_size=32, num_sleep_passes=3)
    done = convert(str(tmp_path / "first"), tmp_path / "second", other)
    assert (done.added_parameters, done.checked_tokens) == (0, 16)
    first, second = load(tmp_path / "first"), load(tmp_path / "second")
    assert second.sleep_config == other
    weights = second.state_dict()
    assert all(torch.equal(x, weights[name]) for name, x in first.state_dict().items())
    assert (tmp_path / "second/model.safetensors").stat().st_size < (llama / "model.safetensors").stat().st_size


def test_layers_by_name(llama: Path, tmp_path: Path) -> None:
    done = convert(str(llama), tmp_path / "out", CONFIG, kind="jet", after=[2, 0])
    assert done.after == (2, 0)


def test_spread() -> None:
    assert spread(6, 30) == (4, 9, 14, 19, 24, 29)
    assert spread(1, 7) == (6,)
    for num_blocks in range(1, 12):
        for count in range(1, num_blocks + 1):
            places = spread(count, num_blocks)
            assert len(set(places)) == count
            assert places[-1] == num_blocks - 1
            gaps = [b - a for a, b in zip((-1, *places), places, strict=False)]
            assert max(gaps) - min(gaps) <= 1


def test_what_cannot_be_converted_leaves_nothing(llama: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(UserError, match="has no fast weights: insert layers of kind jet or gdn"):
        convert(str(llama), out, CONFIG)
    for count in (0, 5):
        with pytest.raises(UserError, match=f"layers must be 1 to 4, the number of blocks, got {count}"):
            convert(str(llama), out, CONFIG, kind="jet", layers=count)
    with pytest.raises(UserError, match="so nothing can be inserted after block 4"):
        convert(str(llama), out, CONFIG, kind="jet", after=[4])
    with pytest.raises(UserError, match="looped_blocks"):
        convert(str(llama), out, CONFIG.model_copy(update={"looped_blocks": (0, 5)}), kind="jet", after=[1])
    (llama / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="cannot load the tokenizer"):
        convert(str(llama), out, CONFIG, kind="jet", layers=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["llama"]


def test_a_folder_in_use_is_left_alone(llama: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in llama.iterdir()}
    for out in (llama, llama / "config.json"):
        with pytest.raises(UserError, match=f"{out} is there already; choose a new folder"):
            convert(str(llama), out, CONFIG, kind="jet", layers=2)
    assert {path.name: path.read_bytes() for path in llama.iterdir()} == before
    (tmp_path / "out").mkdir()
    convert(str(llama), tmp_path / "out", CONFIG, kind="jet", layers=2)


def test_a_model_that_computes_something_else_is_not_saved(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def insert(model: nn.Module, *args: object) -> None:
        insert_fast_weights(model, *args)  # type: ignore[arg-type]
        nn.init.normal_(inserted_mixer(decoder_of(model).layers[3]).mixer.out_proj.weight)  # type: ignore[union-attr]

    monkeypatch.setattr(module, "insert_fast_weights", insert)
    with pytest.raises(UserError, match="the logits of LlamaForCausalLM are not what they were: off by up to "):
        convert(str(llama), tmp_path / "out", CONFIG, kind="jet", layers=2)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_a_broken_off_conversion_leaves_nothing(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    """The model is saved already, the tokenizer is not."""

    class Breaks(type(tiny_tokenizer())):
        def save_pretrained(self, *args: object, **kwargs: object) -> tuple[str, ...]:
            raise error(28, "No space left on device")

    tokenizer = tiny_tokenizer()
    tokenizer.__class__ = Breaks
    monkeypatch.setattr(module, "load_tokenizer", lambda source: tokenizer)
    with pytest.raises(UserError if error is OSError else error, match="No space left"):
        convert(str(llama), tmp_path / "out", CONFIG, kind="jet", layers=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["llama"]


def test_table() -> None:
    done = Conversion(
        "org/m", "LlamaForCausalLM", "out", 3 << 20, 30, 1000, 145, "jet", (4, 9), 512, 2, "hard", (8, 22), 24, False
    )
    console = Console(width=120, record=True, file=io.StringIO())
    for made in (done, done.__class__(**{**done.__dict__, "kind": None, "looped_blocks": None})):
        console.print(conversion_table(made))
    inserted, own = console.export_text().split("converted")[1:]
    for part in ("1,000 + 145 (14.5%) = 1,145", "2 jet layers, after blocks 4, 9", "blocks 8 to 22", "3.0 MiB"):
        assert part in inserted
    assert "all blocks" in own
    assert "inserted" not in own
