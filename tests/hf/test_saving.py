"""What `save_pretrained` leaves of a model that sleeps, what `load` makes of it, and what it says where it cannot."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from sleeping_models import L, asleep, insert
from tiny import text, tiny
from tiny_folder import without_sums
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

import reverie.hf.save
from reverie.errors import UserError
from reverie.hf import SleepConfig, add_sleep, insert_fast_weights, load
from reverie.hf.blocks import inserted_parameters

pytestmark = [pytest.mark.slow, pytest.mark.hf]

KINDS = ["llama", "qwen3_next", "olmo_hybrid"]
EAGER = {"experts_implementation": "eager"}  # the other one takes no float64
CONFIG = asleep(2, loop=(1, 3))
FILES = {"config.json", "generation_config.json", "model.safetensors", "README.md", "reverie_model.py"}


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A pretrained model in a folder."""

    def make(kind: str = "llama", seed: int = 0, **changes: Any) -> Path:
        folder = tmp_path_factory.getbasetemp() / f"{kind}-{seed}-{'-'.join(changes)}"
        if not folder.exists():
            tiny(kind, seed, **changes).save_pretrained(folder)
        return folder

    return make


def pretrained(folder: Path, **kwargs: Any) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, **EAGER, **kwargs)


def sleeping(folder: Path, **kwargs: Any) -> PreTrainedModel:
    """A model from there that sleeps, with inserted layers that do something where it has no fast weights."""
    model = insert(folder.name.split("-")[0], pretrained(folder, **kwargs))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in inserted_parameters(model).values():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return add_sleep(model, CONFIG)


def saved(model: PreTrainedModel, folder: Path, **kwargs: Any) -> dict[str, Any]:
    """Its config.json."""
    model.save_pretrained(folder, **kwargs)
    return json.loads((folder / "config.json").read_text())


def logits(model: Any) -> Tensor:
    """Of three windows."""
    with torch.no_grad():
        return model(text(3 * L)).logits


def written(model: Any) -> Tensor:
    return model.generate(text(L + 3), max_new_tokens=2 * L, do_sample=False, eos_token_id=None)


def train(model: PreTrainedModel) -> None:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    model(text(2 * L), labels=text(2 * L)).loss.backward()
    optimizer.step()


def assert_same(loaded: Any, model: Any) -> None:
    assert type(loaded).__name__ == type(model).__name__
    assert loaded.sleep_config == model.sleep_config
    assert not any(module.training for module in loaded.modules())
    assert torch.equal(logits(loaded), logits(model))


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_is_the_same_model(kind: str, bases: Callable[..., Path], tmp_path: Path) -> None:
    model = sleeping(bases(kind))
    config = saved(model, tmp_path)
    assert (config["model_type"], config["weights"]) == ("reverie_sleep", "adapter")
    assert config["base_model"] == str(bases(kind))
    assert load_file(tmp_path / "model.safetensors").keys() == inserted_parameters(model).keys()
    loaded = load(tmp_path, **EAGER)
    assert_same(loaded, model)
    assert torch.equal(written(loaded), written(model))
    assert_same(pretrained(tmp_path), model)
    assert {path.name for path in tmp_path.iterdir()} == FILES


@pytest.mark.parametrize(("kind", "size"), [("llama", "40KB"), ("qwen3_next", "40KB"), ("bamba", "1GB")])
def test_a_trained_model_is_saved_whole(kind: str, size: str, bases: Callable[..., Path], tmp_path: Path) -> None:
    model = sleeping(bases(kind))
    train(model)
    config = saved(model, tmp_path, max_shard_size=size)
    assert (config["weights"], config["base_model"]) == ("whole", None)
    assert (len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 2) == (size == "40KB")
    loaded = load(tmp_path, **EAGER)
    assert_same(loaded, model)
    assert torch.equal(written(loaded), written(model))
    assert saved(loaded, tmp_path / "again")["weights"] == "whole"
    assert_same(pretrained(tmp_path / "again"), model)


def test_training_inserted_layers_alone_leaves_an_adapter(bases: Callable[..., Path], tmp_path: Path) -> None:
    model = sleeping(bases())
    reverie.hf.freeze_pretrained(model)
    train(model)
    saved(model, tmp_path)
    loaded = load(tmp_path)
    assert_same(loaded, model)
    for each in (model, loaded):
        reverie.hf.freeze_pretrained(each)
        each.zero_grad()
        train(each)
    again = saved(loaded, tmp_path / "again")
    assert (again["weights"], again["base_model"]) == ("adapter", str(bases()))
    assert_same(load(tmp_path / "again"), model)


def test_trainer_goes_on_from_an_adapter(bases: Callable[..., Path], tmp_path: Path) -> None:
    """It puts model.safetensors into the model that it has."""
    model = sleeping(bases())
    saved(model, tmp_path)
    other = add_sleep(insert("llama", pretrained(bases())), CONFIG)
    assert not torch.equal(logits(other), logits(model))
    other.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=False)
    assert torch.equal(logits(other), logits(model))


@pytest.mark.parametrize("whole", [False, True], ids=["adapter", "whole"])
def test_several_kinds_of_layers_and_tied_embeddings(whole: bool, bases: Callable[..., Path], tmp_path: Path) -> None:
    model = pretrained(bases(tie_word_embeddings=True))
    insert_fast_weights(model, [0], "gdn", fast_heads=2, key_size=5, value_size=7)
    insert_fast_weights(model, [3, 1], "jet")
    if whole:
        train(model)
    inserted = saved(model, tmp_path)["inserted"]
    sizes = {"kind": "gdn", "heads": 2, "key_size": 5, "value_size": 7, "conv_size": 4, "value_embedding": False}
    assert inserted[0] == {"layers": [0], **sizes}  # the names of the first version
    loaded = load(tmp_path)
    assert_same(loaded, model)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert loaded.sleep_config == model.sleep_config != CONFIG


def test_what_was_changed_before_it_slept_is_saved_whole(bases: Callable[..., Path], tmp_path: Path) -> None:
    trained, resized, new = pretrained(bases()), pretrained(bases()), tiny("llama")
    train(trained)
    resized.resize_token_embeddings(70, mean_resizing=False)
    for model in (trained, resized, new):
        insert("llama", model)
        assert saved(model, tmp_path)["weights"] == "whole"
        assert_same(load(tmp_path), model)


def test_a_folder_holds_what_was_saved_last(bases: Callable[..., Path], tmp_path: Path) -> None:
    model = sleeping(bases())
    (tmp_path / "tokenizer.json").touch()
    for size, change in (("40KB", 1.0), ("1GB", 1.0), ("1GB", -2.0)):
        with torch.no_grad():
            model.lm_head.weight.add_(change)
        saved(model, tmp_path, max_shard_size=size)
        assert_same(load(tmp_path), model)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {*FILES, "tokenizer.json"}


def test_an_adapter_does_not_take_the_place_of_its_base(bases: Callable[..., Path], tmp_path: Path) -> None:
    shutil.copytree(bases(), tmp_path / "llama-here")
    model = sleeping(tmp_path / "llama-here")
    assert saved(model, tmp_path / "llama-here")["weights"] == "whole"
    assert_same(load(tmp_path / "llama-here"), model)


@pytest.mark.parametrize("first", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_base_may_come_in_another_type(first: torch.dtype, bases: Callable[..., Path], tmp_path: Path) -> None:
    saved(sleeping(bases(), dtype=first), tmp_path)
    assert load(tmp_path).dtype == first
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert {p.dtype for p in load(tmp_path, dtype=dtype).parameters()} == {dtype}


def test_arguments_reach_transformers(bases: Callable[..., Path], tmp_path: Path) -> None:
    model = sleeping(bases())
    assert model.generation_config is not None
    model.generation_config.max_new_tokens = 3
    saved(model, tmp_path)
    for load_it in (load, AutoModelForCausalLM.from_pretrained):
        loaded: Any = load_it(tmp_path, attn_implementation="eager", dtype=torch.float32, device_map="cpu")
        assert (loaded.config._attn_implementation, loaded.dtype) == ("eager", torch.float32)
        assert loaded.generate(text(4)).shape == (2, 7)


def test_a_base_that_moved(bases: Callable[..., Path], tmp_path: Path) -> None:
    model = sleeping(Path(shutil.copytree(bases(), tmp_path / "llama-1")))
    saved(model, tmp_path / "out")
    (tmp_path / "llama-1").rename(tmp_path / "llama-2")
    with pytest.raises(UserError, match=r"there is no folder .*llama-1.*out is an adapter of it"):
        load(tmp_path / "out")
    for load_it in (load, AutoModelForCausalLM.from_pretrained):
        assert_same(load_it(tmp_path / "out", base=tmp_path / "llama-2"), model)


def test_a_save_that_fails_leaves_what_was_there(
    bases: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = sleeping(bases())
    saved(model, tmp_path)
    before = logits(model)

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(reverie.hf.save, "save_file", full)
    monkeypatch.setattr("transformers.modeling_utils.safe_save_file", full)
    for _ in ("adapter", "whole"):
        with pytest.raises(UserError, match=r"cannot write .*: No space left on device"):
            model.save_pretrained(tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == FILES
        assert torch.equal(logits(load(tmp_path)), before)
        with torch.no_grad():
            model.lm_head.weight.add_(1.0)


@pytest.fixture(scope="module")
def folders(bases: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One model as an adapter, whole, and in shards."""
    root, model = tmp_path_factory.mktemp("folders"), sleeping(bases())
    saved(model, root / "adapter")
    train(model)
    saved(model, root / "whole")
    saved(model, root / "shards", max_shard_size="40KB")
    return {path.name: path for path in root.iterdir()}


def test_another_base(bases: Callable[..., Path], folders: dict[str, Path]) -> None:
    for other in (bases(seed=1), bases("qwen2"), bases(hidden_size=48), folders["adapter"]):
        with pytest.raises(UserError, match=rf"{other} is not the model that .*adapter is an adapter of"):
            load(folders["adapter"], base=other)
    with pytest.raises(UserError, match="holds a whole model and not an adapter: leave out base"):
        load(folders["whole"], base=bases())


@pytest.mark.parametrize("base", ["nobody/nothing", "/nowhere", "no such model"])
def test_no_base(base: str, folders: dict[str, Path]) -> None:
    with pytest.raises(UserError, match=rf"{base}.*; .*adapter is an adapter of it"):
        load(folders["adapter"], base=base, local_files_only=True)


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        (
            "adapter",
            {"format_version": 2},
            "was written by a newer reverie, in version 2 of the format: this one reads up to 1",
        ),
        ("whole", {"model_type": "llama"}, "holds a model of type llama, saved without sleep"),
        ("whole", {"base_config": {"model_type": "dream"}}, "holds a model of type dream, which this version of tran"),
        ("adapter", {"weights": "half"}, "config.json is not as save_pretrained wrote it: weights: Input should be"),
        ("adapter", {"sleep": {"window_size": 0}}, "sleep.window_size: Input should be greater than or equal to 1"),
        ("adapter", {"inserted": [{"layers": [0]}]}, "inserted.0.kind: Field required"),
        ("adapter", {"inserted": []}, "model.safetensors does not hold the layers that config.json says were inserted"),
        ("whole", {"inserted": []}, "are not those of its config.json: model.layers.0.fast_weight_mixer"),
    ],
)
def test_a_config_that_does_not_fit(
    kind: str, change: dict[str, Any], message: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(folders[kind], tmp_path / "out")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(UserError, match=message):
        load(folder)


@pytest.mark.parametrize("kind", ["adapter", "whole", "shards"])
@pytest.mark.parametrize("size", [None, 0, 5, 900, -100], ids=["gone", "empty", "5", "900", "end"])
def test_files_cut_short(kind: str, size: int | None, folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders[kind], tmp_path / "out")
    path = sorted(folder.glob("model*.safetensors"))[0]
    content = path.read_bytes()
    path.unlink()
    if size is not None:
        path.write_bytes(content[:size])
        with pytest.raises(UserError, match=rf"{path} was changed after it was saved, or damaged"):
            load(folder)
        without_sums(folder)  # as folders of earlier have none
    with pytest.raises(UserError, match=rf"cannot load the (adapter|model) of {folder}: "):
        load(folder)


@pytest.mark.parametrize("content", [None, "{", "[]", "{}"])
def test_no_config(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=str(tmp_path)):
        load(tmp_path)
    with pytest.raises(UserError, match="there is no folder"):
        load(tmp_path / "nothing")


def test_pushing_is_asked_for_by_name(bases: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="push_to_hub"):
        sleeping(bases()).save_pretrained(tmp_path, push_to_hub=True)


def test_peft(bases: Callable[..., Path], tmp_path: Path) -> None:
    """LoRA on a model that sleeps; its own adapter stands on ours."""
    peft = pytest.importorskip("peft")
    saved(sleeping(bases()), tmp_path / "ours")
    lora = peft.LoraConfig(target_modules=["q_proj", "v_proj"], modules_to_save=["fast_weight_mixer"])
    model = peft.get_peft_model(load(tmp_path / "ours"), lora)
    before = logits(model)
    train(model)
    assert not torch.equal(logits(model), before)
    model.eval().save_pretrained(tmp_path / "lora")
    assert_same(peft.PeftModel.from_pretrained(load(tmp_path / "ours"), tmp_path / "lora"), model)
    stated = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert stated["base_model_name_or_path"] == str(tmp_path / "ours")
    merged = model.merge_and_unload()
    config = saved(merged, tmp_path / "merged")
    assert config["weights"] == "adapter"
    assert {name.split(".")[-2] for name in config["trained"]} == {"q_proj", "v_proj"}
    assert_same(load(tmp_path / "merged"), merged)


def test_the_config_of_sleep_is_kept_to_the_letter(bases: Callable[..., Path], tmp_path: Path) -> None:
    config = SleepConfig(window_size=5, num_sleep_passes=3, looped_blocks=(1, 2), eviction="sliding")
    model = add_sleep(sleeping(bases()), config)
    assert saved(model, tmp_path)["sleep"] == config.model_dump(mode="json")
    assert_same(load(tmp_path), model)
