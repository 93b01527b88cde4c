"""Every type of model: what sleep leaves as it was, and what it changes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from accelerate import dispatch_model
from sleeping_models import HYBRIDS, TRANSFORMERS, L, asleep, insert, sleeping
from tiny import text, tiny
from torch import Tensor
from torch.utils._pytree import tree_map_only
from transformers import LlamaForCausalLM, PreTrainedModel

import reverie.hf.decoders
from reverie.errors import UserError
from reverie.hf.add import add_sleep
from reverie.hf.cache import SleepCache
from reverie.hf.decoder import sleeping_decoder
from reverie.model import State
from reverie.sleep import Context

pytestmark = pytest.mark.hf

each_kind = pytest.mark.parametrize("kind", [*HYBRIDS, *TRANSFORMERS])


def assert_alike(given: Tensor, wanted: Tensor) -> None:
    """transformers' recurrent layers compute in float32, whatever the model's own type."""
    assert (given - wanted).abs().max() < 1e-3 * wanted.abs().max()


def test_the_types_said_to_work_are_tested() -> None:
    assert set(reverie.hf.decoders.HYBRIDS) == set(HYBRIDS)
    assert set(reverie.hf.decoders.TRANSFORMERS) == set(TRANSFORMERS)


@each_kind
def test_one_window_is_the_model_as_it_was(kind: str) -> None:
    tokens = text(L)
    for T in (L, L - 3):
        wanted = tiny(kind)(tokens[:, :T]).logits
        model = insert(kind, tiny(kind))
        for N in (1, 3):
            assert torch.equal(add_sleep(model, asleep(N))(tokens[:, :T]).logits, wanted)


@pytest.mark.slow
@each_kind
@pytest.mark.parametrize("N", [1, 2])
def test_only_fast_weights_cross_a_window(kind: str, N: int) -> None:
    """The gradient of a later loss with respect to evicted tokens is zero where they are cut, and only there."""
    model, tokens = sleeping(kind, asleep(N)), text(2 * L)
    embeddings = model.get_input_embeddings()(tokens).detach()

    def gradient(cut: Callable[[Tensor], Tensor]) -> Tensor:
        x = embeddings.clone().requires_grad_()
        # Two tokens further than the window, so that it is slept over. (Of one, Mamba-2 layers have no gradient.)
        first = model(inputs_embeds=x[:, : L + 2]).past_key_values
        change_fast_weights(first, cut)
        logits = model(inputs_embeds=x[:, L + 2 :], past_key_values=first).logits
        logits.square().sum().backward()
        assert x.grad is not None
        return x.grad[:, :L]

    assert gradient(lambda fast_weights: fast_weights.detach()).abs().max() == 0
    assert (gradient(lambda fast_weights: fast_weights).abs().amax(-1) > 0).all()


def change_fast_weights(cache: SleepCache, change: Callable[[Tensor], Tensor]) -> None:
    """Of what went before the window that is open, whose own keys and values go on from them."""

    def changed(state: State) -> State:
        fast_weights = tuple(None if x is None else change(x) for x in state.fast_weights)
        cache: Any = tree_map_only(Tensor, change, state.cache)
        return State(fast_weights, cache)

    for i, group in enumerate(cache.groups):
        context = group.context
        window = tuple(change(h) for h in context.window)
        changed_context = Context(changed(context.state), changed(context.window_start), window, context.length)
        cache.groups[i] = group._replace(context=changed_context)


@pytest.mark.slow
@each_kind
@pytest.mark.parametrize(
    ("eviction", "edges"), [("hard", [0, 3, 8, 9, 15, 20]), ("sliding", list(range(21)))], ids=["pieces", "tokens"]
)
def test_pieces_are_one_call(kind: str, eviction: str, edges: list[int]) -> None:
    model, tokens, cache = sleeping(kind, asleep(2, eviction)), text(2 * L + 4), SleepCache()
    with torch.no_grad():
        wanted = model(tokens).logits
        pieces = [tokens[:, start:stop] for start, stop in pairwise(edges)]
        logits = [model(piece, past_key_values=cache).logits for piece in pieces]
    assert cache.get_seq_length() == 2 * L + 4
    assert_alike(torch.cat(logits, 1), wanted)


@each_kind
def test_passes_change_what_comes_later_alone(kind: str) -> None:
    tokens = text(2 * L)
    one, two = (sleeping(kind, asleep(N))(tokens).logits for N in (1, 2))
    assert torch.equal(one[:, :L], two[:, :L])
    assert (one[:, L:] - two[:, L:]).abs().amax(-1).min() > 1e-6


@each_kind
def test_blocks_around_the_loop_run_once(kind: str) -> None:
    """Two windows, of which the first is slept over in 3 passes."""
    model, calls = sleeping(kind, asleep(3, loop=(1, 3))), dict[int, int]()
    layers = sleeping_decoder(model).sleeping.layers
    for i, layer in enumerate(layers):
        part = next(child for name, child in layer.named_children() if "norm" in name)

        def count(module: object, args: object, output: object, i: int = i) -> None:
            calls[i] = calls.get(i, 0) + 1

        part.register_forward_hook(count)
    with torch.no_grad():
        model(text(2 * L))
    once, looped = calls[0], calls[1]
    assert once == 2
    assert looped == 2 + 2
    assert calls[2] == looped


def test_sliding_eviction_is_attention_in_a_band() -> None:
    """With one pass and fast weights that do nothing, stock sliding attention of the same reach."""
    tokens = text(3 * L)
    stock = tiny("qwen2", use_sliding_window=True, sliding_window=L, layer_types=["sliding_attention"] * 4)
    model = add_sleep(insert("qwen2", tiny("qwen2")), asleep(1, "sliding"))
    for attention in ("sdpa", "eager"):
        model.set_attn_implementation(attention)
        torch.testing.assert_close(model(tokens).logits, stock(tokens).logits, rtol=1e-3, atol=1e-4)


def test_hand_written_passes() -> None:
    """llama's own layers, called by hand: two passes over a window, then one over the next."""
    model = sleeping("llama", asleep(2))
    tokens = text(2 * L)
    decoder, layers = sleeping_decoder(model), sleeping_decoder(model).sleeping.layers
    fast_weights: list[Tensor | None] = [None] * 4

    def run(h: Tensor) -> Tensor:
        angles = decoder.get_submodule("rotary_emb")(h, torch.arange(L)[None])
        for i, layer in enumerate(layers):
            h = plain.forward(layer, h, position_embeddings=angles)
            mixer = getattr(layer, "fast_weight_mixer", None)
            if mixer is not None:
                normed = torch.nn.functional.rms_norm(h, h.shape[-1:], eps=1e-6) * mixer.norm_weight
                y, fast_weights[i], _ = mixer.mixer(normed, fast_weights[i], None, span=L)
                h = h + y
        return h

    plain = type(layers[0]).__mro__[2]
    h = run(run(model.get_input_embeddings()(tokens[:, :L])))
    del h  # all that goes on is in the fast weights
    h = run(model.get_input_embeddings()(tokens[:, L:]))
    logits = model.get_submodule("lm_head")(decoder.get_submodule("norm")(h))
    torch.testing.assert_close(model(tokens).logits[:, L:], logits, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("when", ["before", "after"])
def test_checkpointed_windows_give_the_same_gradients(when: str) -> None:
    """Switched on before the model could sleep or after it; with dropout, whose draws must come again."""
    tokens, gradients = text(3 * L + 1), list[dict[str, Tensor]]()
    for checkpointing in (False, True):
        model = insert("llama", tiny("llama", attention_dropout=0.3)).train()
        if checkpointing and when == "before":
            model = tiny("llama", attention_dropout=0.3).train()
            model.gradient_checkpointing_enable()
            model = insert("llama", model)
        model = add_sleep(model, asleep(2))
        for name, parameter in model.named_parameters():
            if name.endswith("out_proj.weight"):
                torch.nn.init.constant_(parameter, 0.1)
        if checkpointing and when == "after":
            model.gradient_checkpointing_enable()
        torch.manual_seed(4)
        model(tokens, labels=tokens).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


@pytest.mark.parametrize(
    ("make", "config", "sentence"),
    [
        (lambda: tiny("llama"), asleep(), "has no fast weights, so nothing would outlive its window"),
        (lambda: tiny("qwen3_next"), asleep(loop=(1, 9)), r"looped_blocks \[1, 9\] must end at or before 4"),
        (lambda: tiny("mamba2", num_heads=4, head_dim=16), asleep(), "cannot sleep: it has no attention"),
        (lambda: tiny("gpt2", n_embd=32, n_layer=2, n_head=2), asleep(), "its decoder has no plain list of blocks"),
        (lambda: tiny("biogpt"), asleep(), "it adds learned positions before its blocks"),
        (lambda: tiny("gpt_neox"), asleep(), "its blocks do not take the cache as past_key_values"),
        (lambda: tiny("llama").model, asleep(), "it takes a decoder with a language-modelling head"),
    ],
)
def test_what_cannot_sleep(make: Callable[[], PreTrainedModel], config: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        add_sleep(make(), config)


def test_blocks_that_accelerate_has_dispatched() -> None:
    """Its hooks stand around forward; the model sleeps all the same."""
    tokens = text(3 * L)
    wanted = sleeping("llama", asleep(2), dtype=torch.float32)(tokens)
    model = insert("llama", tiny("llama", dtype=torch.float32))
    dispatched: Any = dispatch_model(tiny("llama", dtype=torch.float32), {"": "cpu"}, force_hooks=True)
    model = add_sleep(insert("llama", dispatched), asleep(2))
    torch.manual_seed(5)
    for name, parameter in model.named_parameters():
        if name.endswith("out_proj.weight"):
            torch.nn.init.normal_(parameter, std=0.3)
    output = model(tokens)
    assert isinstance(output.past_key_values, SleepCache)
    torch.testing.assert_close(output.logits, wanted.logits)


def test_a_replica_reads_through_its_own_blocks() -> None:
    """As nn.DataParallel makes it: with other parameters, the original's are not touched."""
    model = sleeping("llama", asleep(2), dtype=torch.float32)
    other = sleeping("llama", asleep(2), dtype=torch.float32, seed=3)
    replica = copy.copy(sleeping_decoder(model))
    replica.__dict__ = sleeping_decoder(model).__dict__.copy()
    replica._modules = sleeping_decoder(other)._modules
    tokens = text(2 * L)
    wanted = sleeping_decoder(other)(input_ids=tokens).last_hidden_state
    torch.testing.assert_close(replica(input_ids=tokens).last_hidden_state, wanted)


def test_the_class_keeps_its_name() -> None:
    """transformers writes it into config.json, and looks blocks up by it."""
    model = sleeping("llama", asleep())
    assert type(model).__name__ == "LlamaForCausalLM"
    assert isinstance(model, LlamaForCausalLM)
    assert {type(layer).__name__ for layer in sleeping_decoder(model).sleeping.layers} == {"LlamaDecoderLayer"}
