"""Adapters that have tensors of the base of their own: trained blocks, and low-rank updates merged into them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from sleeping_models import L, asleep
from tiny import text, tiny
from torch import Tensor
from transformers import AutoModelForCausalLM

from reverie.errors import UserError
from reverie.hf import add_sleep, insert_fast_weights, load
from reverie.hf.adapt import adapter_settings, pretrained_lm
from reverie.hf.add import set_injection
from reverie.hf.blocks import inserted_parameters
from reverie.hf.lora import add_lora, merged_state
from reverie.pretrained.config import PretrainedModelConfig
from reverie.sleep import Context, SleepConfig, read

pytestmark = pytest.mark.hf

TRAINED = "model.layers.3.mlp.up_proj.weight"


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(text(3 * L)).logits


def base_in(folder: Path, kind: str = "llama", **changes: Any) -> Path:
    tiny(kind, **changes).save_pretrained(folder)
    return folder


def trained(base: Path, *names: str, **kwargs: Any) -> Any:
    """An adapter in which these tensors of the base are others."""
    model = AutoModelForCausalLM.from_pretrained(base, experts_implementation="eager", **kwargs)
    if model.config.model_type == "llama":
        insert_fast_weights(model, [1], "gdn", fast_heads=2, key_size=4, value_size=4)
    add_sleep(model, asleep(2))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in names or name.endswith("mixer.out_proj.weight"):
                parameter[..., 0] += 0.1 if parameter.ndim > 1 else 1.0
    return model


def saved(model: Any, folder: Path) -> dict[str, Any]:
    model.save_pretrained(folder)
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("tied", [False, True], ids=["", "tied"])
@pytest.mark.parametrize("name", [TRAINED, "model.norm.weight"])
def test_trained_tensors_of_the_base_are_saved_beside_the_new_layers(name: str, tied: bool, tmp_path: Path) -> None:
    base = base_in(tmp_path / "base", tie_word_embeddings=tied)
    before = (base / "model.safetensors").read_bytes()
    model = trained(base, name)
    config = saved(model, tmp_path / "adapter")
    assert (config["weights"], config["trained"]) == ("adapter", [name])
    assert load_file(tmp_path / "adapter" / "model.safetensors").keys() == {name, *inserted_parameters(model)}
    loaded: Any = load(tmp_path / "adapter")
    assert torch.equal(logits(loaded), logits(model))
    again = saved(loaded, tmp_path / "again")
    assert (again["weights"], again["trained"]) == ("adapter", [name])
    assert torch.equal(logits(load(tmp_path / "again")), logits(model))
    assert (base / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("row", [7, 60])
def test_one_trained_row_of_a_tied_embedding_is_noticed(row: int, tmp_path: Path) -> None:
    """Of two names for one tensor both are others, and are one tensor again."""
    model = trained(base_in(tmp_path / "base", tie_word_embeddings=True))
    with torch.no_grad():
        model.get_input_embeddings().weight[row] += 1e-3
    config = saved(model, tmp_path / "adapter")
    assert config["trained"] == ["model.embed_tokens.weight", "lm_head.weight"]
    loaded: Any = load(tmp_path / "adapter")
    assert torch.equal(logits(loaded), logits(model))
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


def test_where_most_of_it_is_trained_all_of_it_is_saved(tmp_path: Path) -> None:
    model = trained(base_in(tmp_path / "base"))
    for block in model.model.layers:
        for parameter in block.parameters():
            parameter.data.mul_(1.01)
    config = saved(model, tmp_path / "whole")
    assert (config["weights"], config["trained"]) == ("whole", [])
    assert torch.equal(logits(load(tmp_path / "whole")), logits(model))


def test_a_base_that_was_trained_meanwhile_is_refused(tmp_path: Path) -> None:
    base = base_in(tmp_path / "base")
    saved(trained(base, TRAINED), tmp_path / "adapter")
    other = tiny("llama", seed=1)
    other.save_pretrained(base)
    with pytest.raises(UserError, match=r"is not the model that .* is an adapter of: its weights are others"):
        load(tmp_path / "adapter")


@pytest.mark.parametrize("names", [[], ["model.norm.weight"], [TRAINED, "model.norm.weight"], ["xyz", TRAINED], "all"])
def test_other_names_than_those_in_the_file_are_refused(names: Any, tmp_path: Path) -> None:
    config = saved(trained(base_in(tmp_path / "base"), TRAINED), tmp_path / "adapter")
    if names != ["xyz", TRAINED]:
        (tmp_path / "adapter" / "config.json").write_text(json.dumps(config | {"trained": names}))
        with pytest.raises(UserError) as caught:
            load(tmp_path / "adapter")
        assert "\n" not in str(caught.value)
        assert "adapter" in str(caught.value)


def test_a_model_with_fast_weights_of_its_own_needs_no_new_layers(tmp_path: Path) -> None:
    model = trained(base_in(tmp_path / "base", "qwen3_next"), "model.norm.weight")
    config = saved(model, tmp_path / "adapter")
    assert (config["weights"], config["trained"], config["inserted"]) == ("adapter", ["model.norm.weight"], [])
    loaded: Any = load(tmp_path / "adapter", experts_implementation="eager")
    assert torch.equal(logits(loaded), logits(model))
    assert saved(loaded, tmp_path / "again")["weights"] == "adapter"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_base_in_another_type_that_was_trained_in_float32(dtype: str, tmp_path: Path) -> None:
    """As recipes load it: it is still its base, with what was trained."""
    base = base_in(tmp_path / "base", dtype=getattr(torch, dtype))
    config = PretrainedModelConfig(vocab_size=61, pretrained=str(base), after=(1,), kind="gdn", key_size=4)
    model: Any = pretrained_lm(config, seed=0).lm
    add_sleep(model, asleep(1))
    assert model.dtype == torch.float32
    with torch.no_grad():
        model.get_parameter(TRAINED)[0] += 0.01
    content = saved(model, tmp_path / "adapter")
    assert (content["weights"], content["trained"]) == ("adapter", [TRAINED])
    loaded: Any = load(tmp_path / "adapter")
    assert torch.equal(logits(loaded), logits(model))


# Low-rank updates


def test_a_merged_model_computes_what_it_did_with_updates(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    base = base_in(tmp_path / "base", dtype=torch.float32)
    config = {"vocab_size": 61, "pretrained": str(base), "after": (1,), "kind": "gdn", "key_size": 4}
    lora: Any = {"lora_rank": 2, "lora_blocks": ((2, 4),)}
    model = pretrained_lm(PretrainedModelConfig(**config, **lora), seed=0)
    plain = pretrained_lm(PretrainedModelConfig(**config), seed=0)

    def read_by(one: Any) -> Tensor:
        with torch.no_grad():
            return read(one, text(3 * L), Context.empty(one), asleep(2))[0]

    assert torch.equal(read_by(model), read_by(plain))  # updates are zero at first
    updates = {name: p for name, p in model.lm.named_parameters() if ".lora_" in name}
    assert {name.split(".")[2] for name in updates} == {"2", "3"}
    assert not any("fast_weight_mixer" in name for name in updates)
    for parameter in updates.values():
        parameter.data.normal_(std=0.3)
    assert not torch.allclose(read_by(model), read_by(plain), atol=1e-2)
    merged = merged_state(model.lm)
    assert merged.keys() == plain.lm.state_dict().keys()
    plain.lm.load_state_dict(merged)
    torch.testing.assert_close(read_by(plain), read_by(model), rtol=1e-4, atol=1e-4)
    add_sleep(model.lm, asleep(2))
    lm: Any = model.lm
    lm.save_pretrained(tmp_path / "adapter", state_dict=merged)
    assert torch.equal(logits(load(tmp_path / "adapter")), logits(add_sleep(plain.lm, asleep(2))))


def test_updates_of_no_blocks_are_refused() -> None:
    pytest.importorskip("peft")
    model = tiny("llama")
    insert_fast_weights(model, [1])
    with pytest.raises(UserError, match=r"lora_blocks has \[7, 9\], but the model has 4 blocks"):
        add_lora(model, [(7, 9)], 2)


# What a recipe does for other models


def test_settings_for_a_model_without_fast_weights(tmp_path: Path) -> None:
    base = str(base_in(tmp_path / "base", num_hidden_layers=6))
    assert adapter_settings(base) == {
        "model.pretrained": base,
        "task.tokenizer": base,
        "adapt.trained_blocks": [],
        "model.lora_rank": 64,
        "model.lora_blocks": [[0, 6]],
        "model.after": [3],
        "sleep.looped_blocks": [3, 4],
        "model.key_size": 14,
        "model.value_size": 16,
    }


@pytest.mark.parametrize("kind", ["qwen3_next", "converted"])
def test_settings_for_a_model_with_fast_weights(kind: str, tmp_path: Path) -> None:
    base = base_in(tmp_path / "base", "llama" if kind == "converted" else kind)
    if kind == "converted":
        saved(trained(base), tmp_path / "converted")
        base = tmp_path / "converted"
    settings = adapter_settings(str(base))
    assert (settings["adapt.trained_blocks"], settings["model.lora_blocks"]) == ([[2, 4]], [])
    assert settings["adapt.loss.address"] == settings["adapt.loss.address_alone"] == 0
    passes = 2 if kind == "converted" else 1
    assert (settings["sleep.num_sleep_passes"], settings["sleep.looped_blocks"]) == (passes, [0, 4])
    assert (settings["model.after"], settings["adapt.start"]) == ([], False)
    config = PretrainedModelConfig(vocab_size=61, pretrained=str(base))
    assert pretrained_lm(config, seed=0).fast_weight_blocks


def test_a_model_that_sleeps_goes_on_sleeping_as_it_does(tmp_path: Path) -> None:
    model = trained(base_in(tmp_path / "base"))
    config = SleepConfig(window_size=32, num_sleep_passes=3, looped_blocks=(1, 3), bidirectional_sleep=True)
    add_sleep(model, config)
    set_injection(model, "gate")
    saved(model, tmp_path / "sleeping")
    settings = adapter_settings(str(tmp_path / "sleeping"))
    kept = {"window_size": 32, "num_sleep_passes": 3, "looped_blocks": [1, 3], "bidirectional_sleep": True}
    assert {key: settings[f"sleep.{key}"] for key in kept} == kept
    assert (settings["task.window_tokens"], settings["model.injection"]) == (32, "gate")
    asked = {"vocab_size": 61, "pretrained": str(tmp_path / "sleeping")}
    state = pretrained_lm(PretrainedModelConfig(**asked, injection="gate"), seed=0).lm.state_dict()
    gates = {key: x for key, x in model.state_dict().items() if "sleep_injection" in key}
    assert gates
    assert all(torch.equal(state[key], x) for key, x in gates.items())
    with pytest.raises(UserError, match=r'was trained with injection "gate": set model\.injection to it'):
        pretrained_lm(PretrainedModelConfig(**asked), seed=0)
    add_sleep(model, config.model_copy(update={"eviction": "sliding"}))
    saved(model, tmp_path / "sliding")
    with pytest.raises(UserError, match="sleeps with sliding eviction, and an adapter is trained with hard eviction"):
        adapter_settings(str(tmp_path / "sliding"))


def test_a_hybrid_that_sleeps_is_a_model_with_fast_weights(tmp_path: Path) -> None:
    hybrid: Any = tiny("qwen3_next")
    add_sleep(hybrid, asleep(2))
    hybrid.save_pretrained(tmp_path)
    settings = adapter_settings(str(tmp_path))
    assert (settings["adapt.trained_blocks"], settings["model.after"]) == ([[2, 4]], [])
    assert settings["sleep.num_sleep_passes"] == 2


@pytest.mark.parametrize(
    ("blocks", "sentence"),
    [
        ([[-2, -1]], r"ranges \[a, b\) with 0 <= a < b, got \[-2, -1\]"),
        ([[1, 2], [2, 1]], r"0 <= a < b, got \[2, 1\]"),
        ([[2, 9]], r"lora_blocks has \[2, 9\], but the model has 4 blocks"),
    ],
)
def test_blocks_that_are_not_there_have_no_updates(blocks: Any, sentence: str, tmp_path: Path) -> None:
    base = str(base_in(tmp_path / "base"))
    asked = {"vocab_size": 61, "pretrained": base, "after": (1,), "kind": "gdn", "lora_rank": 2, "lora_blocks": blocks}
    with pytest.raises((UserError, ValueError), match=sentence):
        pretrained_lm(PretrainedModelConfig.model_validate(asked), seed=0)
    with pytest.raises(ValueError, match="lora_blocks need lora_rank"):
        PretrainedModelConfig(vocab_size=61, pretrained=base, lora_blocks=((0, 1),))


def test_settings_for_no_model(tmp_path: Path) -> None:
    for name in ("nowhere", str(tmp_path)):
        with pytest.raises(UserError) as caught:
            adapter_settings(name)
        assert "\n" not in str(caught.value)
