"""Blocks that were moved, repeated or put in after `add_sleep`: the model is what a new one of them would be, or the
call is refused by name."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sleeping_models import L, asleep, own, sleeping
from tiny import text, tiny
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from reverie import sleep_over
from reverie.errors import UserError
from reverie.hf import add_sleep, cache_of, insert_fast_weights, load
from reverie.hf.blocks import is_inserted
from reverie.hf.decoder import sleeping_decoder

pytestmark = pytest.mark.hf

KINDS = ["llama", "qwen3_next", "bamba", "smollm3", "gemma2"]
INSERTED = ("llama", "smollm3", "gemma2")


def model_of(kind: str, N: int = 2, eviction: str = "hard", loop: tuple[int, int] | None = None) -> Any:
    if kind not in INSERTED or kind == "llama":
        return sleeping(kind, asleep(N, eviction, loop))
    model = tiny(kind)
    insert_fast_weights(model, [0, 2], "gdn")
    for name, parameter in model.named_parameters():
        if name.endswith("fast_weight_mixer.mixer.out_proj.weight"):
            nn.init.normal_(parameter, std=0.3)
    return add_sleep(model, asleep(N, eviction, loop))


def rearrange(model: Any, order: Sequence[int]) -> None:
    """Put the blocks in this order; one that comes twice is copied. The config says so where it can."""
    layers, config, taken = model.model.layers, model.config, set[int]()
    blocks = []
    for i in order:
        blocks.append(copy.deepcopy(layers[i]) if i in taken else layers[i])
        taken.add(i)
    model.model.layers = nn.ModuleList(blocks)
    for name in ("layer_types", "no_rope_layers"):
        if isinstance(vars(config).get(name), list):
            setattr(config, name, [getattr(config, name)[i] for i in order])
    config.num_hidden_layers = len(order)


def made_anew(model: Any) -> PreTrainedModel:
    """A model of its config, with its tensors by their names, to which nobody did anything."""
    config = copy.deepcopy(model.config)
    new = AutoModelForCausalLM.from_config(config, dtype=torch.float32, experts_implementation="eager").eval()
    for one in sleeping_decoder(model).inserted_configs:
        sizes: Any = {"fast_heads": one.fast_heads, "key_size": one.key_size, "value_size": one.value_size}
        insert_fast_weights(new, one.after, one.kind, **sizes)
    new.to(torch.float64).load_state_dict(model.state_dict())
    return add_sleep(new, model.sleep_config)


def refused(kind: str, order: list[int], loop: tuple[int, int] | None) -> str | None:
    """What is said of blocks in this order, if they cannot run."""
    if loop is not None and loop[1] > len(order):
        return "looped_blocks"
    if kind == "bamba" and [i % 2 for i in order] != [int(i in (1, 3)) for i in range(len(order))]:  # its config
        return "config"
    return None if any(i in (0, 2) for i in order) else "no block holds fast weights"


@settings(max_examples=8, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    order=st.lists(st.integers(0, 3), min_size=1, max_size=6),
    N=st.integers(1, 3),
    eviction=st.sampled_from(["hard", "sliding"]),
    loop=st.sampled_from([None, (0, 1), (1, 3)]),
)
def test_a_model_is_what_its_blocks_are(
    kind: str, order: list[int], N: int, eviction: str, loop: tuple[int, int] | None
) -> None:
    model, tokens = model_of(kind, N, eviction, loop), text(2 * L + 3)
    with torch.no_grad():
        before = model(tokens).logits
        rearrange(model, order)
        if (refusal := refused(kind, order, loop)) is not None:
            with pytest.raises(UserError, match=refusal):
                model(tokens)
            return
        found = model(tokens).logits
        assert torch.equal(found, made_anew(model)(tokens).logits)
        assert torch.equal(found, before) == (order == [0, 1, 2, 3])
        pieces = model(tokens[:, :5]).past_key_values
        assert torch.allclose(model(tokens[:, 5:], past_key_values=pieces).logits, found[:, 5:], atol=1e-2)


def appended(model: Any) -> None:
    model.model.layers.append(copy.deepcopy(model.model.layers[0]))


def stock_block(model: Any) -> None:
    model.model.layers[1] = tiny("llama").model.layers[1]  # type: ignore[union-attr, index]


def stock_decoder(model: Any) -> None:
    model.model = tiny("llama").model


def cut_below_the_loop(model: Any) -> None:
    model.model.layers = model.model.layers[:2]


def no_fast_weights(model: Any) -> None:
    model.model.layers = model.model.layers[3:]


def fewer_in_the_config(model: Any) -> None:
    model.config.num_hidden_layers = 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (appended, "has 5 blocks, and its config.num_hidden_layers is 4"),
        (stock_block, "block 1 of LlamaModel cannot sleep"),
        (stock_decoder, "the decoder of LlamaForCausalLM was replaced"),
        (cut_below_the_loop, r"looped_blocks \[1, 3\] must end at or before 2"),
        (no_fast_weights, "no block holds fast weights any more|looped_blocks"),
        (fewer_in_the_config, "has 4 blocks, and its config.num_hidden_layers is 2"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(change: Callable[[Any], None], message: str) -> None:
    model = sleeping("llama", asleep(2, loop=(1, 3)))
    change(model)
    for call in (model, partial(sleep_over, model), partial(model.generate, max_new_tokens=1)):
        with pytest.raises(UserError, match=message):
            call(text(2 * L))


def test_what_was_read_with_other_blocks_does_not_go_on() -> None:
    model, tokens = sleeping("llama", asleep(2)), text(L + 2)
    cache, memory = model(tokens).past_key_values, sleep_over(model, tokens)
    del model.model.layers[3]
    with pytest.raises(UserError, match="the model has changed since this cache was begun"):
        model(tokens, past_key_values=cache)
    with pytest.raises(UserError, match="read with 4 blocks, and now there are 3"):
        model.train()(tokens, past_key_values=cache)  # while it trains, other changes are the trainer's
    model.eval()
    with pytest.raises(UserError, match="another model"):
        model(tokens, past_key_values=cache_of(memory))


@pytest.mark.parametrize("kind", ["llama", "qwen3_next"])
def test_blocks_that_were_moved_before_must_fit_the_config(kind: str) -> None:
    cut, swapped = tiny(kind), tiny(kind)
    decoder: Any = cut.model
    decoder.layers = decoder.layers[:3]
    with pytest.raises(UserError, match=r"has 3 blocks, and its config\.num_hidden_layers is 4"):
        insert_fast_weights(cut, [0])
    layers: Any = swapped.model.layers  # type: ignore[union-attr]
    layers[0], layers[1] = layers[1], layers[0]
    if kind == "qwen3_next":
        with pytest.raises(UserError, match=r"block 0 of .* is another than its config.layer_types say"):
            add_sleep(swapped, asleep(2))
    else:
        insert_fast_weights(swapped, [0])
        tokens, like = text(L), tiny(kind)
        like.load_state_dict({key: x for key, x in swapped.state_dict().items() if not is_inserted(key)})
        with torch.no_grad():
            assert torch.equal(swapped(tokens).logits, like(tokens).logits)


def test_moved_blocks_are_saved_where_they_are(tmp_path: Path) -> None:
    model = sleeping("llama", asleep(2))
    rearrange(model, [2, 1, 1])
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(load(tmp_path)(text(2 * L)).logits, model(text(2 * L)).logits)
    model.config.num_hidden_layers = 4
    with pytest.raises(UserError, match="cannot be saved such that it loads"):
        model.save_pretrained(tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_blocks_of_our_own_hybrid(tmp_path: Path) -> None:
    model, tokens = own(asleep(2)), text(2 * L)
    model.lm.layers = model.lm.layers[2:]
    assert model.lm.fast_weight_blocks == [1]
    with torch.no_grad():
        assert model(tokens).logits.isfinite().all()
    with pytest.raises(UserError, match="cannot be saved such that it loads"):
        model.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()
