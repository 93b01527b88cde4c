"""Every argument of saving and loading is honoured or refused by name, of adapters and whole models, by reverie and by
transformers' Auto classes."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sleeping_models import L, asleep, insert, own, sleeping
from tiny import text, tiny
from tiny_folder import without_sums
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    GenerationConfig,
    LlamaConfig,
    PreTrainedModel,
)

from reverie.errors import UserError
from reverie.hf import add_sleep, load, load_hybrid
from reverie.hf.blocks import inserted_parameters
from reverie.hf.saving_arguments import load_arguments, save_arguments

pytestmark = [pytest.mark.hf, pytest.mark.slow]

DOCS = Path(__file__).parents[2] / "docs" / "huggingface.md"
AUTO = AutoModelForCausalLM.from_pretrained
Made = tuple[Any, Path]


def adapter(folder: Path, **changes: Any) -> Any:
    """A model whose inserted layers do something, on a base in a folder."""
    tiny("llama", dtype=torch.float32, **changes).save_pretrained(folder / "base")
    model = insert("llama", AUTO(folder / "base"))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in inserted_parameters(model).values():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return add_sleep(model, asleep(2))


@pytest.fixture(scope="module", params=["adapter", "whole"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    root = tmp_path_factory.mktemp(request.param)
    model = adapter(root) if request.param == "adapter" else sleeping("llama", asleep(2), dtype=torch.float32)
    model.save_pretrained(root / "out")
    assert json.loads((root / "out" / "config.json").read_text())["weights"] == request.param
    return model, root / "out"


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(text(2 * L + 1)).logits


# Saving


@pytest.mark.parametrize("size", ["1GB", "20KB"])
@pytest.mark.parametrize("variant", ["fp16", *(pytest.param(x, marks=pytest.mark.slow) for x in (None, "my.own"))])
def test_variants_and_shards(made: Made, variant: str | None, size: str, tmp_path: Path) -> None:
    model, _ = made
    model.save_pretrained(tmp_path, variant=variant, max_shard_size=size)
    names = {path.name for path in tmp_path.glob("model*")}
    dotted = "" if variant is None else f".{variant}"
    if size == "1GB":
        assert names == {f"model{dotted}.safetensors"}
    else:
        assert f"model.safetensors.index{dotted}.json" in names
        assert len(names) > 2
        shard = re.compile(rf"model{re.escape(dotted)}-\d+-of-\d+\.safetensors")
        assert all(shard.fullmatch(name) for name in names if "index" not in name)
    for load_it in (load, AUTO):
        assert torch.equal(logits(load_it(tmp_path, variant=variant)), logits(model))
        with pytest.raises(UserError, match="cannot load"):
            load_it(tmp_path, variant="other")
        if variant is not None:
            with pytest.raises(UserError, match="cannot load"):
                load_it(tmp_path)


def test_variants_lie_beside_each_other(made: Made, tmp_path: Path) -> None:
    model, _ = made
    model.save_pretrained(tmp_path)
    for size in ("20KB", "1GB"):
        model.save_pretrained(tmp_path, variant="a", max_shard_size=size)
    assert {path.name for path in tmp_path.glob("model*")} == {"model.safetensors", "model.a.safetensors"}
    assert torch.equal(logits(load(tmp_path)), logits(load(tmp_path, variant="a")))


def test_positions_of_arguments_are_those_of_transformers(made: Made, tmp_path: Path) -> None:
    model, _ = made
    model.save_pretrained(tmp_path, True, None, False, "20KB", "fp16")
    assert (tmp_path / "model.safetensors.index.fp16.json").exists()
    with pytest.raises(UserError, match="was given is_main_process twice"):
        model.save_pretrained(tmp_path, True, is_main_process=True)
    with pytest.raises(UserError, match="takes at most"):
        model.save_pretrained(tmp_path, *range(99))


def test_another_state(made: Made, tmp_path: Path) -> None:
    model, _ = made
    state = {key: x + 1 if "fast_weight_mixer" in key else x for key, x in model.state_dict().items()}
    model.save_pretrained(tmp_path, state_dict=state)
    found = load(tmp_path).state_dict()
    assert all(torch.equal(found[key], x) for key, x in state.items())
    with pytest.raises(UserError, match="cannot be saved such that it loads"):
        model.save_pretrained(tmp_path, state_dict={key: x for key, x in state.items() if "embed" not in key})


def test_a_process_that_only_helped_leaves_nothing(made: Made, tmp_path: Path) -> None:
    made[0].save_pretrained(tmp_path, is_main_process=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("push_to_hub", True),
        ("safe_serialization", False),
        ("distributed_checkpoint", True),
        ("repo_id", "me/mine"),
        ("commit_message", "mine"),
        ("create_pr", True),
        ("private", True),
        ("something", None),
    ],
)
@pytest.mark.parametrize("kind", ["llama", "ours"])
def test_what_saving_does_not_honour(kind: str, name: str, value: Any, tmp_path: Path) -> None:
    model: Any = own(asleep(2)) if kind == "ours" else sleeping("llama", asleep(2))
    with pytest.raises(UserError, match=f"no (argument )?{name}"):
        model.save_pretrained(tmp_path / "out", **{name: value})
    assert not (tmp_path / "out").exists()


# Loading


@pytest.mark.slow
@pytest.mark.parametrize("load_it", [load, AUTO], ids=["reverie", "transformers"])
@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64", "auto", torch.bfloat16])
def test_dtypes(made: Made, load_it: Callable[..., Any], name: str, dtype: Any) -> None:
    wanted = torch.float32 if dtype == "auto" else getattr(torch, dtype) if isinstance(dtype, str) else dtype
    loaded = load_it(made[1], **{name: dtype})
    assert {parameter.dtype for parameter in loaded.parameters()} == {wanted}
    if wanted.itemsize >= 4:
        assert torch.allclose(logits(loaded).float(), logits(made[0]), atol=1e-4)


@pytest.mark.parametrize("load_it", [load, AUTO], ids=["reverie", "transformers"])
def test_what_loading_honours(made: Made, load_it: Callable[..., Any], tmp_path: Path) -> None:
    model, folder = made
    loaded = load_it(folder, attn_implementation="eager", device_map={"": "cpu"}, low_cpu_mem_usage=True)
    assert loaded.config._attn_implementation == "eager"
    assert torch.allclose(logits(loaded), logits(model), atol=1e-4)
    loaded = load_it(folder, generation_config=GenerationConfig(max_new_tokens=3))
    assert loaded.generate(text(4), eos_token_id=None, pad_token_id=0).shape == (2, 7)
    assert load_it(folder, use_cache=False).config.use_cache is False
    assert load_it(folder, attention_dropout=0.25).config.attention_dropout == 0.25
    model.save_pretrained(tmp_path / "inner" / "deep")
    loaded = load_it(tmp_path, subfolder="inner/deep")
    assert torch.equal(logits(loaded), logits(model))
    neutral = {"use_safetensors": True, "weights_only": True, "ignore_mismatched_sizes": False, "revision": "main"}
    assert torch.equal(logits(load_it(folder, **neutral, trust_remote_code=False, variant=None)), logits(model))


REFUSED = {
    "gguf_file": "x.gguf",
    "state_dict": {},
    "key_mapping": {"a": "b"},
    "ignore_mismatched_sizes": True,
    "output_loading_info": True,
    "use_safetensors": False,
    "weights_only": False,
    "tp_plan": "auto",
    "tp_size": 2,
    "distributed_config": object(),
    "adapter_name": "mine",
    "use_kernels": True,
    "kernel_config": object(),
    "allow_all_kernels": True,
    "fusion_config": {},
    "something_else": 1,
}


@pytest.mark.parametrize("name", [*REFUSED, "trust_remote_code", "config"])
def test_what_loading_does_not_honour(made: Made, name: str) -> None:
    given = {**REFUSED, "trust_remote_code": True, "config": LlamaConfig()}[name]
    with pytest.raises(UserError, match=f"no (argument )?{name}"):
        load(made[1], **{name: given})
    if name in REFUSED and name != "gguf_file":  # AutoConfig reads that one
        with pytest.raises(UserError, match=f"no (argument )?{name}"):
            AUTO(made[1], **{name: given})


def test_our_own_hybrid(tmp_path: Path) -> None:
    model = own(asleep(2), dtype=torch.float32)
    model.save_pretrained(tmp_path / "in" / "it", variant="a", max_shard_size="2KB")
    lm, config = load_hybrid(tmp_path, subfolder="in/it", variant="a", dtype="float64", use_cache=False)
    assert (config, next(lm.parameters()).dtype) == (asleep(2), torch.float64)
    for name in ("state_dict", "gguf_file", "something_else"):
        with pytest.raises(UserError, match=f"no (argument )?{name}"):
            load_hybrid(tmp_path / "in" / "it", **{name: {}})
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    save_file({key: x for key, x in weights.items() if "lm_head" not in key}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="was changed after it was saved"):
        load_hybrid(tmp_path)
    without_sums(tmp_path)
    with pytest.raises(UserError, match=r"lm_head\.weight does not fit"):
        load_hybrid(tmp_path)


def test_a_quantised_base(made: Made) -> None:
    """Without bitsandbytes: transformers says so of a whole model, to which it was handed on."""
    given = BitsAndBytesConfig(load_in_8bit=True)
    with pytest.raises(UserError, match=r"a quantised base cannot be compared|itsandbytes|ccelerat"):
        load(made[1], quantization_config=given)


def test_a_config_that_the_caller_changed(made: Made) -> None:
    model, folder = made
    config = AutoConfig.from_pretrained(folder)
    assert torch.equal(logits(AUTO(folder, config=config)), logits(model))
    config.use_cache = False
    assert AUTO(folder, config=config).config.use_cache is False
    config.sleep = {**config.sleep, "num_sleep_passes": 5}
    with pytest.raises(UserError, match=r"sleep is as .* was saved with it"):
        AUTO(folder, config=config)
    with pytest.raises(UserError, match=r"sleep is as .* was saved with it"):
        AUTO(folder, sleep={"window_size": 3})


@pytest.mark.slow
@pytest.mark.parametrize("saved", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("wanted", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_another_base_is_noticed_in_any_type(saved: torch.dtype, wanted: torch.dtype, tmp_path: Path) -> None:
    tiny("llama", dtype=torch.float32).save_pretrained(tmp_path / "base")
    tiny("llama", seed=1, dtype=torch.float32).save_pretrained(tmp_path / "other")
    add_sleep(insert("llama", AUTO(tmp_path / "base", dtype=saved)), asleep(2)).save_pretrained(tmp_path / "out")
    assert load(tmp_path / "out", dtype=wanted).dtype == wanted
    with pytest.raises(UserError, match="its weights are others"):
        load(tmp_path / "out", tmp_path / "other", dtype=wanted)


# The table


def test_every_argument_of_transformers_is_in_the_table_and_is_as_it_says() -> None:
    """What `save_pretrained` and `from_pretrained` name in their signatures and take out of their kwargs."""
    tables = DOCS.read_text().partition("## Saving and loading: arguments")[2].partition("\n## ")[0]
    save, read = PreTrainedModel.save_pretrained, PreTrainedModel.from_pretrained
    calls: list[tuple[Any, Any]] = [(save, save_arguments), (read, load_arguments)]
    for (function, known), table in zip(calls, tables.split("| argument of ")[1:], strict=True):
        rows = re.findall(r"^\| (`[^|]*`) \| ([^|]+) \|", table, re.MULTILINE)
        said = {name: what.strip() for names, what in rows for name in re.findall(r"`(\w+)`", names)}
        source = inspect.getsource(function)
        names = {*inspect.signature(function).parameters, *re.findall(r'kwargs\.pop\(\s*"(\w+)"', source)}
        names -= {"self", "cls", "save_directory", "pretrained_model_name_or_path", "model_args", "kwargs"}
        for name in names:
            if not name.startswith("_"):
                assert name in said, f"{function.__name__} takes {name}, of which the table says nothing"
                refuses = _refuses(known, name)
                assert refuses == said[name].startswith("refused"), f"{name}: {said[name]}"


def _refuses(known: Callable[..., Any], name: str) -> bool:
    class Other:
        def __ne__(self, other: object) -> bool:
            return True

    try:
        known((), {name: Other()}) if known is save_arguments else known({name: Other()}, LlamaConfig())
    except UserError:
        return True
    return False


def test_a_file_of_an_adapter_holds_what_safetensors_reads(tmp_path: Path) -> None:
    adapter(tmp_path).save_pretrained(tmp_path / "out")
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
