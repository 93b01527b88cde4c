"""Every type of model: what sleep leaves as it was, and what it changes."""

from __future__ import annotations

import pytest
import torch
from tiny import CONFIGS, text, tiny
from torch import Tensor
from transformers import PreTrainedModel

from reverie.hf.insert import insert_fast_weights
from reverie.hf.models import HYBRIDS, decoder_of
from reverie.hf.sleeping import add_sleep
from reverie.sleep import SleepConfig

L = 8
TRANSFORMERS = ["llama", "qwen2", "qwen3"]
HYBRID_KINDS = [kind for kind in CONFIGS if kind not in TRANSFORMERS]
each_kind = pytest.mark.parametrize("kind", [*HYBRID_KINDS, *TRANSFORMERS])


def asleep(
    N: int = 1, eviction: str = "hard", loop: tuple[int, int] | None = None, window_size: int = L
) -> SleepConfig:
    return SleepConfig.model_validate(
        {"window_size": window_size, "num_sleep_passes": N, "eviction": eviction, "looped_blocks": loop}
    )


def sleeping(kind: str, config: SleepConfig, **changes: object) -> PreTrainedModel:
    """With fast weights of its own, or with inserted ones that do something."""
    model = tiny(kind, **changes)
    if kind in TRANSFORMERS:
        insert_fast_weights(model, [0, 2], "jet" if kind == "llama" else "gdn")
        torch.manual_seed(5)
        for name, parameter in model.named_parameters():
            if name.endswith("out_proj.weight"):
                torch.nn.init.normal_(parameter, std=0.3)
    return add_sleep(model, config)


def assert_alike(given: Tensor, wanted: Tensor) -> None:
    """transformers' recurrent layers compute in float32, whatever the model's own type."""
    assert (given - wanted).abs().max() < 1e-3 * wanted.abs().max()


def test_the_table_of_types_is_tested() -> None:
    assert set(HYBRIDS) - {"jet_nemotron"} == set(HYBRID_KINDS)


@each_kind
def test_one_window_is_the_model_as_it_was(kind: str) -> None:
    tokens = text(L)
    for T in (L, L - 3):
        wanted = tiny(kind)(tokens[:, :T]).logits
        model = tiny(kind)
        if kind in TRANSFORMERS:
            insert_fast_weights(model, [0, 2], "jet" if kind == "llama" else "gdn")
        for N in (1, 3):
            assert torch.equal(add_sleep(model, asleep(N))(tokens[:, :T]).logits, wanted)


@each_kind
@pytest.mark.parametrize("N", [1, 2])
def test_only_fast_weights_cross_a_window(kind: str, N: int) -> None:
    """The gradient of a later loss with respect to evicted tokens is zero where they are cut, and only there."""
    model = sleeping(kind, asleep(N))
    blocks = decoder_of(model).sleeping
    tokens = text(2 * L)

    def gradient(cut: bool) -> Tensor:
        x = model.get_input_embeddings()(tokens).detach().requires_grad_()
        if cut:
            first = model(inputs_embeds=x[:, :L])
            [group] = first.past_key_values.groups
            nothing = tuple(None if s is None else s.detach() for s in group.context.state.fast_weights)
            del first
            state = group.context.state._replace(fast_weights=nothing)
            from reverie.sleep import Context, sleep

            context = sleep(blocks, group.context._replace(state=state), asleep(1))
            context = Context(*(s._replace(fast_weights=nothing) for s in (context.state, context.window_start)))
            cache = model(inputs_embeds=x[:, :L]).past_key_values
            cache.groups = [group._replace(context=context)]
            logits = model(inputs_embeds=x[:, L:], past_key_values=cache).logits
        else:
            logits = model(inputs_embeds=x).logits[:, L:]
        logits.square().sum().backward()
        assert x.grad is not None
        return x.grad[:, :L]

    assert gradient(cut=True).abs().max() == 0
    assert (gradient(cut=False).abs().amax(-1) > 0).all()


@each_kind
@pytest.mark.parametrize("eviction", ["hard", "sliding"])
@pytest.mark.parametrize("cuts", [[3, 8, 9, 15], [1] * 19 + [0]], ids=["pieces", "tokens"])
def test_pieces_are_one_call(kind: str, eviction: str, cuts: list[int]) -> None:
    model, tokens = sleeping(kind, asleep(2, eviction)), text(2 * L + 4)
    edges = [0, *(cuts if 1 not in cuts else range(1, 20)), 2 * L + 4]
    with torch.no_grad():
        wanted = model(tokens).logits
        logits, cache = [], None
        for start, stop in zip(edges, edges[1:], strict=False):
            output = model(tokens[:, start:stop], past_key_values=cache)
            cache = output.past_key_values
            logits.append(output.logits)
        assert cache.get_seq_length() == 2 * L + 4
    assert_alike(torch.cat(logits, 1), wanted)


@each_kind
def test_passes_change_what_comes_later(kind: str) -> None:
    tokens = text(2 * L)
    one, two = (sleeping(kind, asleep(N))(tokens).logits for N in (1, 2))
    assert torch.equal(one[:, :L], two[:, :L])
    assert (one[:, L:] - two[:, L:]).abs().amax(-1).min() > 1e-6
