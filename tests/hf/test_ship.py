"""Small copies of adapters: in float16, with low-rank updates as their factors, and their base's tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from sleeping_models import L, asleep
from tiny import text
from tiny_folder import tiny_folder, without_sums
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from reverie.errors import UserError
from reverie.hf import add_sleep, insert_fast_weights, load
from reverie.hf.adapt import adapter_settings
from reverie.hf.bases import load_base, load_tokenizer
from reverie.hf.low_rank import factored, unfactored
from reverie.hf.ship import export_adapter
from reverie.pretrained.shipped import SHIPPED
from reverie.pretrained.speaker import speaker_of
from reverie.talk.sleeper import load_model

pytestmark = pytest.mark.hf

LOW, FULL, NORM = (
    f"model.layers.3.{name}.weight" for name in ("mlp.up_proj", "self_attn.q_proj", "post_attention_layernorm")
)


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(text(3 * L)).logits


def adapter(folder: Path, **scales: float) -> Path:
    """One in which a matrix has an update of rank 2, another of full rank, and a norm other numbers."""
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_folder(folder / "base"))
    insert_fast_weights(model, [1], "gdn", fast_heads=2, key_size=4, value_size=4)
    add_sleep(model, asleep(2))
    torch.manual_seed(0)
    with torch.no_grad():
        for name, x in model.named_parameters():
            if name == LOW:
                x += torch.randn(len(x), 2) @ torch.randn(2, x.shape[1]) / 4
            elif name in (FULL, NORM):
                x += torch.randn_like(x) / 4
            elif name.endswith("mixer.out_proj.weight"):
                x.normal_().mul_(scales.get("out_proj", 0.3))
    model.save_pretrained(folder / "adapter")
    return folder / "adapter"


def test_a_small_copy_computes_the_same_in_a_part_of_the_bytes(tmp_path: Path) -> None:
    whole = adapter(tmp_path)
    export_adapter(whole, tmp_path / "small")
    torch.testing.assert_close(logits(load(tmp_path / "small")), logits(load(whole)), rtol=0.02, atol=0.02)
    own, small = load_file(whole / "model.safetensors"), load_file(tmp_path / "small" / "model.safetensors")
    assert {x.dtype for x in small.values()} == {torch.float16}
    assert {name for name in small if name not in own} == {f"{LOW}.low_rank_{way}" for way in ("up", "down")}
    assert [small[f"{LOW}.low_rank_up"].shape, small[f"{LOW}.low_rank_down"].shape] == [(48, 2), (2, 32)]
    torch.testing.assert_close(load(tmp_path / "small").get_parameter(LOW), own[LOW], rtol=1e-3, atol=1e-3)
    left = {path.name for path in (tmp_path / "small").iterdir()}
    assert left == {"config.json", "generation_config.json", "model.safetensors"}


def test_an_adapter_without_tokenizer_takes_its_bases(tmp_path: Path) -> None:
    whole = adapter(tmp_path)
    export_adapter(whole, tmp_path / "small")
    assert load_tokenizer(tmp_path / "small").get_vocab() == load_tokenizer(tmp_path / "base").get_vocab()
    assert load_model(tmp_path / "small").encode("abc") == AutoTokenizer.from_pretrained(whole)("abc").input_ids


def test_its_name_stands_for_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export_adapter(adapter(tmp_path), tmp_path / "small")
    monkeypatch.setitem(SHIPPED, "tiny-notes", tmp_path / "small")
    model = load("tiny-notes")
    assert torch.equal(logits(model), logits(load(tmp_path / "small")))
    assert model.config._name_or_path == "tiny-notes"
    assert load_model("tiny-notes").encode("abc") == load_model(tmp_path / "small").encode("abc")
    assert load_base("tiny-notes").config._name_or_path == "tiny-notes"  # what is trained from it names it so
    assert adapter_settings("tiny-notes")["model.pretrained"] == "tiny-notes"
    assert speaker_of("tiny-notes").encode("abc")[0] == load_tokenizer(tmp_path / "base")("abc").input_ids


def test_what_cannot_be_shipped_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"mixer\.out_proj\.weight has numbers beyond it"):
        export_adapter(adapter(tmp_path, out_proj=1e6), tmp_path / "small")
    assert not list((tmp_path / "small").glob("*"))
    whole: Any = load(tmp_path / "adapter")
    whole.origin = None
    whole.save_pretrained(tmp_path / "whole")
    with pytest.raises(UserError, match="holds a whole model: only adapters are shipped small"):
        export_adapter(tmp_path / "whole", tmp_path / "small")


@pytest.mark.parametrize("damage", ["no down", "no up", "another rank", "another shape", "of what was never trained"])
def test_factors_that_do_not_fit_are_refused(damage: str, tmp_path: Path) -> None:
    export_adapter(adapter(tmp_path), tmp_path / "small")
    path = tmp_path / "small" / "model.safetensors"
    tensors = load_file(path)
    up, down = (f"{LOW}.low_rank_{way}" for way in ("up", "down"))
    if damage.startswith("no "):
        del tensors[up if damage == "no up" else down]
    elif damage == "another rank":
        tensors[up] = tensors[up][:, :1].contiguous()
    elif damage == "another shape":
        tensors[down] = tensors[down][:, 1:].contiguous()
    else:
        tensors |= {key.replace("layers.3", "layers.0"): tensors.pop(key) for key in (up, down)}
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match="was changed after it was saved"):
        load(tmp_path / "small")
    without_sums(tmp_path / "small")
    with pytest.raises(UserError, match=r"the update of model\.layers\.[03]\.mlp\.up_proj\.weight does not fit"):
        load(tmp_path / "small")


@pytest.mark.parametrize("rank", [0, 1, 5, 7, 12])
def test_factors_give_back_a_matrix_or_are_not_made(rank: int) -> None:
    generator = torch.Generator().manual_seed(rank)
    base = torch.randn(12, 20, generator=generator)
    change = torch.randn(12, rank, generator=generator) @ torch.randn(rank, 20, generator=generator)
    factors = factored("x", change)
    if rank * 32 >= 240:
        assert factors is None
    else:
        assert factors is not None
        assert factors["x.low_rank_up"].shape == (12, rank)
        whole = unfactored("here", factors | {"y": base}, {"x": base})
        torch.testing.assert_close(whole, {"x": base + change, "y": base})
