"""Products in int8: near those of float32 where a row is alone, the same everywhere else, and refused by name."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sleeping_models import L, asleep, own, sleeping
from tiny import tiny
from torch import Tensor, nn
from torch.nn.utils import prune

from reverie.errors import UserError
from reverie.hf import cache_of, load, quantize_awake
from reverie.hf.int8 import _REDUCED, Int8Linear
from reverie.memory.memory import Memory, sleep_over
from reverie.model import model_remembers

pytestmark = pytest.mark.hf

FLOAT = torch.float32
TEXT = torch.randint(3, 61, (1, 3 * L + 2), generator=torch.Generator().manual_seed(0))
NEAR = 0.1  # of the norm of the logits: weights of 8 bits and rows of 7 or 8


@pytest.fixture(autouse=True)
def _no_gradients() -> Any:
    with torch.no_grad():
        yield


def both(kind: str = "llama", **changes: Any) -> tuple[Any, Any]:
    model = sleeping(kind, asleep(2), dtype=FLOAT, **changes)
    return model, quantize_awake(copy.deepcopy(model))


def by_token(model: Any, text: Tensor, past: Any = None) -> Tensor:
    logits = list[Tensor]()
    for token in text.split(1, dim=1):
        done = model(input_ids=token, past_key_values=past)
        logits.append(done.logits)
        past = done.past_key_values
    return torch.cat(logits, dim=1)


def distance(x: Tensor, y: Tensor) -> float:
    return float((x - y).norm() / y.norm())


@pytest.mark.parametrize("kind", ["llama", "qwen2", "falcon_h1", "bamba"])
def test_a_token_alone_is_near_and_several_are_the_same(kind: str) -> None:
    model, int8 = both(kind)
    near = 2 * NEAR if _REDUCED and kind in ("falcon_h1", "bamba") else NEAR  # whose scans lead errors of 7 bits on
    assert 0 < distance(by_token(int8, TEXT), by_token(model, TEXT)) < near
    for text in (TEXT, TEXT.repeat(2, 1)):
        assert torch.equal(int8(input_ids=text).logits, model(input_ids=text).logits)
    batch = TEXT[:, :5].repeat(3, 1)
    assert torch.equal(by_token(int8, batch), by_token(model, batch))


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 70), st.integers(1, 70), st.booleans(), st.integers(0, 99), st.floats(-3, 3))
def test_a_product_is_within_the_steps_of_8_bits(width: int, outputs: int, bias: bool, seed: int, shift: float) -> None:
    torch.manual_seed(seed)
    layer = nn.Linear(width, outputs, bias=bias)
    x = torch.randn(1, width) + shift
    wanted = layer(x)
    model = tiny("llama", dtype=FLOAT)
    model.model.layers[0].mlp.up_proj = layer
    quantize_awake(model)
    # half a step of each weight, and a whole one of the row, whose zero is rounded too, of 127 or more
    weight, span = layer.weight.abs(), x.clamp(min=0).amax() - x.clamp(max=0).amin()
    bound = x.abs().sum() * weight.amax(1) / 254 + (weight.sum(1) + width * weight.amax(1) / 254) * span / 127
    assert bool(((layer(x) - wanted).abs() <= bound * 1.001 + 1e-6).all())


def test_nothing_but_these_layers_changes() -> None:
    model, int8 = both(tie_word_embeddings=True)
    before, after = dict(model.named_modules()), dict(int8.named_modules())
    assert before.keys() == after.keys()
    changed = {name for name in before if type(before[name]) is not type(after[name])}
    linear = {name for name, x in before.items() if type(x) is nn.Linear and "fast_weight_mixer" not in name}
    assert changed == linear
    assert "lm_head" in changed
    assert all(isinstance(after[name], Int8Linear) for name in changed)
    assert int8.lm_head.weight is int8.model.embed_tokens.weight
    assert all(torch.equal(x, int8.state_dict()[name]) for name, x in model.state_dict().items())
    embed = model.model.embed_tokens
    assert torch.equal(int8.model.embed_tokens(TEXT[:, :1]), embed(TEXT[:, :1]))


def test_weights_that_change_are_rounded_anew() -> None:
    model, int8 = both()
    for one in (model, int8):
        one.lm_head.weight.mul_(-2)
    assert distance(by_token(int8, TEXT), by_token(model, TEXT)) < NEAR
    as_double = copy.deepcopy(int8).double()
    assert torch.equal(by_token(as_double, TEXT), by_token(copy.deepcopy(model).double(), TEXT))


def replaced(x: Tensor) -> nn.Parameter:
    return nn.Parameter(x + 0.5)


@pytest.mark.parametrize("name", ["weight", "bias"])
@pytest.mark.parametrize("way", ["in place", "through data", "replaced", "other data"])
def test_no_product_is_of_what_a_layer_was_before(name: str, way: str) -> None:
    """However its weights are changed as a whole."""
    model = tiny("llama", dtype=FLOAT)
    model.model.layers[0].mlp.up_proj = layer = nn.Linear(32, 48)
    quantize_awake(model)
    x = torch.randn(1, 32, generator=torch.Generator().manual_seed(0))
    layer(x)
    held: Any = getattr(layer, name)
    if way == "in place":
        held.add_(0.5)
    elif way == "through data":
        held.data += 0.5
    elif way == "replaced":
        setattr(layer, name, replaced(held))
    else:
        held.data = held.data + 0.5
    wanted = nn.functional.linear(x, layer.weight, layer.bias)
    assert (layer(x) - wanted).abs().max() < 0.1


@pytest.mark.parametrize("shape", [(48, 32), (61, 128), (128, 7), (3, 40)])
@pytest.mark.parametrize("part", ["first", "middle", "last", "lower left", "upper right"])
@pytest.mark.parametrize("side", ["rows", "columns"])
def test_a_block_that_is_written_past_versions_is_seen(shape: tuple[int, int], part: str, side: str) -> None:
    """As a third of fused projections may be."""
    model = tiny("llama", dtype=FLOAT)
    model.model.layers[0].mlp.up_proj = layer = nn.Linear(*reversed(shape), bias=False)
    quantize_awake(model)
    x = torch.randn(1, shape[1], generator=torch.Generator().manual_seed(0))
    before = layer(x)
    weight, (rows, columns) = layer.weight.data, shape
    if part == "lower left":
        weight = weight[rows - rows // 2 :, : columns // 2]
    elif part == "upper right":
        weight = weight[: rows // 2, columns - columns // 2 :]
    else:
        weight = weight.tensor_split(3, dim=("rows", "columns").index(side))[("first", "middle", "last").index(part)]
    weight += 3.0
    assert torch.equal(layer(x), copy.deepcopy(layer)(x))  # which packs its own
    assert not torch.equal(layer(x), before)


@pytest.mark.parametrize("change", [lambda x: prune.l1_unstructured(x, "weight", 0.5), nn.utils.spectral_norm])
def test_weights_that_are_made_at_each_call(change: Any) -> None:
    model = tiny("llama", dtype=FLOAT)
    quantize_awake(model)
    change(model.lm_head)
    x = torch.randn(1, 32, generator=torch.Generator().manual_seed(0))
    got = model.lm_head(x)
    assert distance(got, nn.functional.linear(x, model.lm_head.weight)) < NEAR


def test_an_adapter_of_peft_is_merged_into_what_is_multiplied() -> None:
    peft: Any = pytest.importorskip("peft")
    lora = peft.LoraConfig(r=2, lora_alpha=64, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
    model = peft.get_peft_model(sleeping("llama", asleep(1), dtype=FLOAT), lora).eval()
    token = TEXT[:, :1]
    quantize_awake(model.get_base_model())
    apart = model(input_ids=token).logits
    for change in (model.merge_adapter, model.unmerge_adapter):
        change()
        assert distance(model(input_ids=token).logits, apart) < NEAR
    with model.disable_adapter():
        assert distance(model(input_ids=token).logits, apart) > NEAR  # or nothing would be seen here


def test_a_row_that_is_not_finite_gives_no_number() -> None:
    """As in float32, so that whoever looks at the logits says so."""
    model = tiny("llama", dtype=FLOAT)
    layer = quantize_awake(model).model.layers[0].mlp.up_proj
    for value in (torch.nan, torch.inf):
        row = torch.ones(1, layer.in_features)
        row[0, 3] = value
        assert not layer(row).isfinite().any()


def test_a_row_that_was_finite_is_looked_at_again() -> None:
    """Layers that read the same row ask once, until it is written to."""
    layer = quantize_awake(tiny("llama", dtype=FLOAT)).model.layers[0].mlp.up_proj
    row = torch.ones(1, layer.in_features)
    assert layer(row).isfinite().all()
    row[0, 3] = torch.nan
    assert not layer(row).isfinite().any()


def test_a_model_of_inference_mode() -> None:
    with torch.inference_mode():
        model = quantize_awake(tiny("llama", dtype=FLOAT))
        layer = model.model.layers[0].mlp.up_proj
        row = torch.ones(1, layer.in_features)
        assert isinstance(layer, Int8Linear)
        assert distance(layer(row), nn.functional.linear(row, layer.weight)) < NEAR


def test_copies_compute_the_same(tmp_path: Path) -> None:
    model, int8 = both()
    wanted = by_token(int8, TEXT)
    for copied in (copy.deepcopy(int8), pickle.loads(pickle.dumps(int8))):
        assert torch.equal(by_token(copied, TEXT), wanted)
    int8.save_pretrained(tmp_path)
    assert torch.equal(by_token(load(tmp_path), TEXT), by_token(model, TEXT))  # what is saved is float32


def test_quantised_again_it_stays_as_it_is() -> None:
    _, int8 = both()
    wanted = by_token(int8, TEXT)
    assert torch.equal(by_token(quantize_awake(int8), TEXT), wanted)


def test_generate_and_a_memory_read_in_float32(tmp_path: Path) -> None:
    model, int8 = both()
    assert model_remembers(int8)
    memory, file = sleep_over(model, TEXT), tmp_path / "m.safetensors"
    memory.save(file)
    with pytest.raises(UserError, match="kernels sdpa, and the model computes with int8 products, sdpa; approximate"):
        Memory.load(file, int8)
    known = Memory.load(file, int8, approximate=True)
    assert known.accepted == ("made with float32 and sdpa, accepted with float32 and int8 products, sdpa",)
    question = TEXT[:, :3]
    answer, wanted = (by_token(*x) for x in ((int8, question, cache_of(known)), (model, question, cache_of(memory))))
    empty = by_token(model, question)
    assert distance(answer, wanted) < NEAR < distance(empty, wanted)
    own_memory = sleep_over(int8, TEXT)
    for now, before in zip(*(x.context.state.fast_weights for x in (own_memory, memory)), strict=True):
        assert now is before is None or torch.equal(now, before)  # pyright: ignore  # it was read as before
    own_memory.save(file)
    with pytest.raises(UserError, match="with the kernels int8 products, sdpa, and the model computes with sdpa"):
        Memory.load(file, model)
    written = int8.generate(question, past_key_values=cache_of(own_memory), max_new_tokens=2 * L, min_new_tokens=2 * L)
    assert written.shape == (1, 3 + 2 * L)


def test_no_gradients() -> None:
    _, int8 = both()
    with torch.enable_grad():
        with pytest.raises(UserError, match=r"products in int8 have no gradients: call the model under torch.no_grad"):
            int8(input_ids=TEXT[:, :1])
        int8(input_ids=TEXT, labels=TEXT).loss.backward()  # several rows, as in training
    assert int8.lm_head.weight.grad is not None


def test_refused_by_name() -> None:
    for lm in (own(asleep(), dtype=FLOAT), nn.Linear(3, 3)):
        with pytest.raises(UserError, match="int8 is for models of transformers, whose weights are large, and this is"):
            quantize_awake(lm)  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match="int8 products are of a model in float32, and this one is in bfloat16"):
        quantize_awake(tiny("llama", dtype=torch.bfloat16))
    elsewhere: Any = nn.Module.to(tiny("llama", dtype=FLOAT), "meta")
    with pytest.raises(UserError, match="on the CPU alone, and the model is on meta"):
        quantize_awake(elsewhere)
    compiled = sleeping("llama", asleep(), dtype=FLOAT)
    compiled.sleeping.compile_blocks("eager")
    with pytest.raises(UserError, match="the model is compiled, which does not go with int8"):
        quantize_awake(compiled)
    spread = tiny("llama", dtype=FLOAT)
    spread.lm_head.forward = spread.lm_head.forward
    with pytest.raises(UserError, match="the model is spread over devices, which does not go with int8"):
        quantize_awake(spread)
    without = tiny("llama", dtype=FLOAT)
    for name, module in [*without.named_modules()]:
        if type(module) is nn.Linear:
            parent, _, child = name.rpartition(".")
            setattr(without.get_submodule(parent), child, nn.Identity())
    with pytest.raises(UserError, match="there is no linear layer in LlamaForCausalLM"):
        quantize_awake(without)


def test_without_such_kernels_nothing_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reverie.hf.int8._packed", _no_kernel)
    model = tiny("llama", dtype=FLOAT)
    with pytest.raises(UserError, match="has no int8 products here"):
        quantize_awake(model)
    assert not any(isinstance(module, Int8Linear) for module in model.modules())


def _no_kernel(*_: Any) -> None:
    raise RuntimeError("no engine")
