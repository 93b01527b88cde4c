"""What passes of sleep read beside h, and attention that looks both ways in them, in models of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from sleeping_models import OWN, L, asleep, sleeping
from tiny import text, tiny
from torch import Tensor

from reverie.errors import UserError
from reverie.hf import add_sleep, freeze_pretrained, insert_fast_weights, load
from reverie.hf.blocks import inserted_parameters
from reverie.memory import sleep_over
from reverie.memory.fingerprint import fingerprint
from reverie.model import State
from reverie.sleep import Context, SleepConfig, consolidate, read

pytestmark = [pytest.mark.hf, pytest.mark.slow]

OTHERS = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("qwen3", "bamba", "ouro")]
each_kind = pytest.mark.parametrize("kind", ["llama", "qwen3_next", *OTHERS])
CONFIGS = {"hard": asleep(3), "hard-loop": asleep(2, loop=(1, 3)), "sliding": asleep(2, "sliding", (1, 4))}
each_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def injecting(kind: str, config: SleepConfig, injection: str, *, both_ways: bool = False, **changes: Any) -> Any:
    """With an injection that is open."""
    model = sleeping(kind, config, **changes)
    add_sleep(model, config.model_copy(update={"bidirectional_sleep": both_ways}), injection=injection)
    torch.manual_seed(3)
    for name, parameter in model.named_parameters():
        if "sleep_injection" in name:
            parameter.data.add_(0.3 * torch.randn(parameter.shape))
    return model


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=2e-4)  # some models' own states are in float32


def written_out(lm: Any, tokens: Tensor, config: SleepConfig) -> tuple[Tensor | None, ...]:
    """The fast weights after one window, block by block and pass by pass."""
    n = lm.num_blocks
    a, b = config.looped_blocks or (0, n)
    more: Any = {"bidirectional": True} if config.bidirectional_sleep else {}
    h, state = lm.embed(tokens), State.empty(n)
    if a:
        h, state = lm.blocks(h, state, 0, a, span=L)
    entered = h
    for k in range(1, config.num_sleep_passes + 1):
        h = lm.inject(k, h, entered) if k > 1 else h
        empty = State(state.fast_weights, (None,) * n)
        h, state = lm.blocks(h, empty, a, b, span=L, **(more if k > 1 else {}))
    if b < n:
        empty = State(state.fast_weights, (None,) * n)
        h, state = lm.blocks(h, empty, b, n, span=L, **more)
    return state.fast_weights


@each_kind
@each_config
@pytest.mark.parametrize(("injection", "both_ways"), [("add", False), ("gate", False), ("none", True), ("gate", True)])
@torch.no_grad()
def test_pieces_tokens_and_one_call_are_the_same(
    kind: str, config: SleepConfig, injection: str, both_ways: bool
) -> None:
    model, x = injecting(kind, config, injection, both_ways=both_ways), text(2 * L + 3)
    wanted = model(x).logits
    for sizes in ([3, 9, len(x[0]) - 12], [1] * len(x[0])):
        cache, logits = None, []
        for piece in x.split(sizes, 1):
            out = model(piece, past_key_values=cache)
            cache = out.past_key_values
            logits.append(out.logits)
        assert_close(torch.cat(logits, 1), wanted)
    assert_close(model(x[:1]).logits, wanted[:1])
    if config.eviction == "hard":
        lm, own = model.sleeping, model.sleep_config
        S = consolidate(lm, x[:, :L], Context.empty(lm), own).state.fast_weights
        for ours, theirs in zip(S, written_out(lm, x[:, :L], own), strict=True):
            assert (ours is None) == (theirs is None)
            if ours is not None and theirs is not None:
                assert_close(ours, theirs)
    before = sleeping(kind, config)(x).logits
    assert not torch.allclose(before, wanted)
    assert_close(before[:, :L], wanted[:, :L])


@pytest.mark.parametrize(
    ("kind", "attention"), [("llama", "eager"), ("llama", "sdpa"), ("qwen2", "sdpa"), ("gemma2", "eager")]
)
@torch.no_grad()
def test_both_ways_is_attention_without_a_causal_mask(kind: str, attention: str) -> None:
    """Against the stock block with a mask that hides nothing, but for what lies outside of its own sliding window."""
    changes: Any = {"sliding_window": 3} if kind == "gemma2" else {}
    model = tiny(kind, attn_implementation=attention, **changes)
    insert_fast_weights(model, [0])
    x = text(L)
    lm: Any = add_sleep(model, asleep(2)).sleeping
    stock, h = tiny(kind, attn_implementation="eager", **changes), lm.embed(x)
    decoder: Any = stock.model
    positions = torch.arange(L)[None]
    for i, layer in enumerate(decoder.layers):
        ours, _ = lm.blocks(h, State.empty(lm.num_blocks), i, i + 1, span=L, bidirectional=True)
        sliding = kind == "gemma2" and stock.config.layer_types[i] == "sliding_attention"
        apart = (positions.T - positions).abs() >= (3 if sliding else L)
        mask = torch.zeros(1, 1, L, L, dtype=h.dtype).masked_fill(apart, torch.finfo(h.dtype).min)
        made = layer(
            h, attention_mask=mask, position_ids=positions, position_embeddings=decoder.rotary_emb(h, positions)
        )
        h = made[0] if isinstance(made, tuple) else made
        torch.testing.assert_close(ours, h, rtol=1e-4, atol=1e-4)  # eager attention has its softmax in float32


def test_attention_that_cannot_is_refused() -> None:
    model = tiny("llama")
    insert_fast_weights(model, [0])
    model.model.config._attn_implementation = "flex_attention"  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(UserError, match='bidirectional_sleep needs attn_implementation "sdpa" or "eager"'):
        add_sleep(model, asleep(2).model_copy(update={"bidirectional_sleep": True}))


@pytest.mark.parametrize("kind", ["llama", "qwen3_next"])
@pytest.mark.parametrize("injection", ["add", "gate"])
@torch.no_grad()
def test_it_is_saved_with_the_model(kind: str, injection: str, tmp_path: Path) -> None:
    model, x = injecting(kind, asleep(2), injection, dtype=torch.float32), text(2 * L + 1)
    model.save_pretrained(tmp_path / "whole")
    again: Any = load(tmp_path / "whole")
    torch.testing.assert_close(again(x).logits, model(x).logits, rtol=1e-5, atol=1e-5)
    assert fingerprint(again) == fingerprint(model)
    assert fingerprint(model) != fingerprint(sleeping(kind, asleep(2), dtype=torch.float32))


@torch.no_grad()
def test_an_adapter_holds_it(tmp_path: Path) -> None:
    tiny("llama", dtype=torch.float32).save_pretrained(tmp_path / "base")
    model: Any = load_base_of(tmp_path / "base")
    insert_fast_weights(model, [0])
    add_sleep(model, asleep(2), injection="gate")
    for parameter in inserted_parameters(model).values():
        parameter.data.add_(0.2 * torch.randn(parameter.shape))
    model.save_pretrained(tmp_path / "adapter")
    again: Any = load(tmp_path / "adapter")
    x = text(2 * L + 1)
    torch.testing.assert_close(again(x).logits, model(x).logits, rtol=1e-5, atol=1e-5)
    size = (tmp_path / "adapter" / "model.safetensors").stat().st_size
    assert size < (tmp_path / "base" / "model.safetensors").stat().st_size


def load_base_of(folder: Path) -> Any:
    from reverie.hf.bases import load_base

    return load_base(folder, dtype=torch.float32)


def test_it_trains_beside_inserted_layers() -> None:
    model = injecting("llama", asleep(3), "gate")
    freeze_pretrained(model)
    logits = model(text(2 * L + 2)).logits
    names = [name for name, p in model.named_parameters() if p.requires_grad and "sleep_injection" in name]
    assert names
    gradients = torch.autograd.grad(logits.square().sum(), [model.get_parameter(name) for name in names])
    assert all(x.abs().sum() > 0 for x in gradients)


@torch.no_grad()
def test_one_pass_never_injects() -> None:
    model, plain, x = injecting("llama", asleep(1), "add", both_ways=True), sleeping("llama", asleep(1)), text(3 * L)
    assert torch.equal(model(x).logits, plain(x).logits)


@torch.no_grad()
def test_a_hybrid_of_ours_as_a_model_of_transformers(tmp_path: Path) -> None:
    from reverie.hf import ReverieHybridForCausalLM
    from reverie.model import HybridLM

    plain = sleeping(OWN, asleep(2), dtype=torch.float32)
    lm = HybridLM(plain.lm.config.model_copy(update={"injection": "gate"}))
    lm.load_state_dict(plain.lm.state_dict(), strict=False)
    torch.nn.init.normal_(lm.get_parameter("injection.out"))
    model = ReverieHybridForCausalLM.from_lm(lm.eval(), asleep(2).model_copy(update={"bidirectional_sleep": True}))
    x = text(2 * L + 1)
    model.save_pretrained(tmp_path)
    again: Any = ReverieHybridForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(again(x).logits, model(x).logits, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(plain(x).logits, model(x).logits)
    memory = sleep_over(model, x, model.sleep_config)
    wanted = read(lm, x[:, :1], memory.context, model.sleep_config)[0]
    assert torch.equal(model(x[:, :1], past_key_values=cache(memory)).logits, wanted)


def cache(memory: Any) -> Any:
    from reverie.hf import cache_of

    return cache_of(memory)
