"""New layers look things up as the next block's attention does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny import text, tiny

from reverie.errors import UserError
from reverie.hf.add import Heads, InsertedMixer, insert_fast_weights
from reverie.hf.blocks import inserted_mixer
from reverie.hf.decoder import sleeping_decoder
from reverie.model.fast_weights import FastWeightMixer
from reverie.model.fused import rms_norm

pytestmark = pytest.mark.hf

H, D = 4, 8  # heads of queries and their size; 2 heads of keys


def inserted(kind: str, after: int, **sizes: int) -> tuple[InsertedMixer, torch.nn.Module]:
    """A new layer, and the block whose attention it begins with."""
    model = tiny("llama", dtype=torch.float32)
    for name, p in model.named_parameters():
        if "layernorm" in name:
            torch.nn.init.uniform_(p, 0.5, 2.0)
    insert_fast_weights(model, [after], kind, **sizes)  # pyright: ignore[reportArgumentType]
    layers = sleeping_decoder(model).sleeping.layers
    mixer = inserted_mixer(layers[after])
    assert isinstance(mixer, InsertedMixer)
    return mixer, layers[min(after + 1, 3)]


@pytest.mark.parametrize("kind", ["jet", "gdn"])
@pytest.mark.parametrize("after", [1, 3], ids=["between", "last"])
def test_queries_keys_and_values_are_those_of_attention(kind: str, after: int) -> None:
    new, block = inserted(kind, after)
    attention, norm = block.get_submodule("self_attn"), block.get_submodule("input_layernorm")
    h = torch.randn(2, 5, 32)
    x = norm(h)
    wanted = [attention.get_submodule(f"{name}_proj")(x).unflatten(-1, (-1, D)) for name in "qkv"]
    wanted = [y if y.shape[2] == H else y.repeat_interleave(H // y.shape[2], dim=2) for y in wanted]
    assert isinstance(new.mixer, FastWeightMixer)
    qk, v, _ = new.mixer.mix_qkv(rms_norm(h, new.norm_eps) * new.norm_weight, None)
    q, k = qk.chunk(2, dim=-1)
    for given, of_attention in zip((q, k, v), wanted, strict=True):
        torch.testing.assert_close(given.unflatten(-1, (H, D)), F.silu(of_attention), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["gemma", "olmo2", "qwen3_next"])
def test_new_layers_can_learn(kind: str) -> None:
    """Whatever the model's norms keep (gemma: their factor less one), what goes into a new layer is not zero."""
    model = tiny(kind, dtype=torch.float32, head_dim=8)
    insert_fast_weights(model, [1])
    tokens = text(9)
    model(tokens, labels=tokens).loss.backward()
    mixer = inserted_mixer(sleeping_decoder(model).sleeping.layers[1])
    assert isinstance(mixer, InsertedMixer)
    assert mixer.mixer.out_proj.weight.grad is not None
    assert mixer.mixer.out_proj.weight.grad.abs().max() > 0
    assert mixer.norm_weight.abs().mean() > 0.1


def test_sizes_that_are_given_begin_at_random() -> None:
    new, block = inserted("jet", 1, heads=4, key_size=8, value_size=8)
    heads = Heads.of(block)
    assert heads is not None
    assert not torch.equal(new.mixer.qkv_proj.weight[: H * D], heads.q.flatten(0, 1))
    assert torch.equal(new.norm_weight, torch.ones(32))


def test_attention_of_another_form_is_not_inherited() -> None:
    """Compressed keys and values (Kimi), or no attention at all (Mamba-2)."""
    assert Heads.of(sleeping_layers("kimi_linear")[1]) is None
    assert Heads.of(sleeping_layers("bamba")[0]) is None


def sleeping_layers(kind: str) -> torch.nn.ModuleList:
    from reverie.hf.decoders import decoder_of

    layers = decoder_of(tiny(kind, dtype=torch.float32)).layers
    assert isinstance(layers, torch.nn.ModuleList)
    return layers


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"kind": "gsa"}, "kind must be gdn or jet, or module:Class, got gsa"),
        ({"fast_heads": 0}, "fast_heads must be at least 1"),
    ],
)
def test_what_cannot_be_inserted(options: dict[str, Any], sentence: str) -> None:
    model = tiny("llama", dtype=torch.float32)
    with pytest.raises(UserError, match=sentence):
        insert_fast_weights(model, [1], **options)


def test_earlier_names() -> None:
    """Code that was written with `layers` and `heads` goes on working, and adds the same."""
    models = [tiny("llama", dtype=torch.float32) for _ in range(2)]
    old = insert_fast_weights(models[0], layers=[0, 2], heads=2)
    new = insert_fast_weights(models[1], after=[0, 2], fast_heads=2)
    assert old == new
    state = models[1].state_dict()
    assert all(torch.equal(x, state[name]) for name, x in models[0].state_dict().items())
    with pytest.raises(UserError, match=r"^after must name different blocks of LlamaForCausalLM, got \[\]"):
        insert_fast_weights(models[0])


def test_all_or_none() -> None:
    """Layers of one call have one size, so where one cannot inherit all begin at random."""
    model = tiny("llama", dtype=torch.float32)
    layers = model.get_submodule("model.layers")
    assert isinstance(layers, torch.nn.ModuleList)
    layers[2].self_attn.k_proj = torch.nn.Identity()  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
    insert_fast_weights(model, [0, 1])
    first = inserted_mixer(layers[0])
    assert isinstance(first, InsertedMixer)
    assert torch.equal(first.norm_weight, torch.ones(32))


def test_what_it_adds_to_smollm2() -> None:
    """Six layers are less than a tenth, as the paper has it for Ouro. On the meta device: sizes alone."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30}
    heads = {"num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True}
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**sizes, **heads))
    assert 0.05 < insert_fast_weights(model, [4, 9, 14, 19, 24, 29]).share < 0.1


def test_the_logits_are_bit_for_bit_what_they_were() -> None:
    tokens = text(9)
    for kind in ("jet", "gdn"):
        model = tiny("llama", dtype=torch.float32)
        wanted = model(tokens).logits
        insert_fast_weights(model, [0, 3], kind)  # pyright: ignore[reportArgumentType]
        assert torch.equal(model(tokens).logits, wanted)
