"""A start that already looks up: before any training, a question's last token finds the token after its like."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import text, tiny

from reverie.errors import UserError
from reverie.hf.add import insert_fast_weights
from reverie.hf.blocks import inserted_mixer
from reverie.hf.causal_lm import PretrainedLM
from reverie.hf.start import look_up
from reverie.model import State
from reverie.sleep import Context, SleepConfig, consolidate, wake

pytestmark = pytest.mark.hf

VOCAB = 40


def pretrained(kind: Any = "gdn", after: tuple[int, ...] = (1,), **sizes: Any) -> Any:
    """Blocks that change little, so that states tell tokens apart."""
    lm = tiny("llama", dtype=torch.float32, vocab_size=VOCAB, hidden_size=32)
    for block in lm.model.layers:
        for parameter in block.parameters():
            parameter.data.mul_(0.2 if parameter.ndim > 1 else 1.0)
    sizes = {"fast_heads": 2, "key_size": 48, "value_size": 32, "value_embedding": True} | sizes
    insert_fast_weights(lm, after, kind, **sizes)
    return PretrainedLM(lm)


def started(model: Any, **options: Any) -> Any:
    tokens = text(16, batch=60, vocab_size=VOCAB)
    with torch.no_grad():
        states, _ = model.blocks(model.embed(tokens), State.empty(model.num_blocks), 0, 1, span=16)
    look_up(model, states, tokens, 1, **options)
    return model


@torch.no_grad()
def found(model: Any, count: int = 100) -> tuple[float, float]:
    """How often the likeliest token after x is the one after x in a page that was slept over; and from no memory."""
    L = 12
    pages = torch.stack([torch.randperm(VOCAB - 3)[:L] + 3 for _ in range(count)])
    at = torch.randint(1, L - 1, (count,))
    asked = torch.stack([row[i - 1 : i + 1] for row, i in zip(pages, at, strict=True)])
    wanted = pages[torch.arange(count), at + 1]
    config = SleepConfig(window_size=L)
    rates = []
    for context in (consolidate(model, pages, Context.empty(model), config), Context.empty(model)):
        h, _ = wake(model, asked, context, config)
        rates.append(float((model.head(h)[:, -1].argmax(-1) == wanted).float().mean()))
    return rates[0], rates[1]


@pytest.mark.parametrize("value_embedding", [True, False])
def test_it_finds_what_came_after(value_embedding: bool) -> None:
    torch.manual_seed(0)
    model = pretrained(value_embedding=value_embedding)
    assert max(found(model)) < 0.1
    remembered, empty = found(started(model, strength=(5.0,)))
    assert remembered > 0.25
    assert empty < 0.1


def test_it_is_a_function_of_its_seed() -> None:
    """Whatever was drawn before; the global random state stays as it was."""
    parameters = []
    for seed in (0, 0, 1):
        model = pretrained(after=(1, 2))
        torch.manual_seed(len(parameters))
        before = torch.get_rng_state()
        started(model, seed=seed)
        assert torch.equal(torch.get_rng_state(), before)
        parameters.append([p.detach() for p in model.fast_weight_parameters()])
    assert all(map(torch.equal, parameters[0], parameters[1]))
    assert not all(map(torch.equal, parameters[0], parameters[2]))


def test_the_pretrained_part_is_untouched_and_all_numbers_are_finite() -> None:
    model, before = pretrained(after=(1, 2)), pretrained(after=(1, 2))
    started(model, read_out=("head", "state"), keys_early=3, query_tokens=2)
    inserted = {id(p) for p in model.fast_weight_parameters()}
    for (name, ours), theirs in zip(model.named_parameters(), before.parameters(), strict=True):
        assert ours.isfinite().all(), name
        assert id(ours) in inserted or torch.equal(ours, theirs), name
    for i in (1, 2):
        layer: Any = inserted_mixer(model.layers[i])
        assert layer.mixer.out_proj.weight.abs().sum() > 0


@pytest.mark.parametrize(
    ("kind", "options", "sentence"),
    [
        ("jet", {}, "the layer after block 1 is no Gated DeltaNet"),
        ("gdn", {"keys_early": 4}, "keys and queries reach 4 tokens back, but the convolution has 4 taps"),
        ("gdn", {"query_tokens": 5}, "keys and queries reach 4 tokens back, but the convolution has 4 taps"),
    ],
)
def test_what_it_cannot_start_is_refused(kind: str, options: dict[str, int], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        started(pretrained(kind), **options)
