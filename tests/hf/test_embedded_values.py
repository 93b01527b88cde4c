"""Inserted layers whose values know their token: every way to read, to write and to save gives the same model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from sleeping_models import L, asleep
from tiny import text, tiny
from torch import Tensor
from transformers import AutoModelForCausalLM

from reverie.hf import add_sleep, cache_of, freeze_pretrained, insert_fast_weights, load
from reverie.hf.blocks import inserted_parameters
from reverie.memory import sleep_over
from reverie.sleep import Context, SleepConfig, read
from reverie.sleep.gradients import Backward

pytestmark = [pytest.mark.hf, pytest.mark.slow]

CONFIGS = {
    "hard": asleep(1),
    "hard-2": asleep(2),
    "hard-loop": asleep(3, loop=(1, 4)),
    "sliding": asleep(2, "sliding", (1, 3)),
}
each_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def inserted(model: Any, kind: Any = "gdn") -> Any:
    """With layers that do something, one of them inside the loops above."""
    insert_fast_weights(model, [0, 2], kind, fast_heads=2, key_size=5, value_size=6, value_embedding=True)
    torch.manual_seed(5)
    for parameter in inserted_parameters(model).values():
        parameter.data.add_(0.2 * torch.randn(parameter.shape))
    return model


def sleeper(config: SleepConfig, kind: Any = "gdn", **changes: Any) -> Any:
    return add_sleep(inserted(tiny("llama", **changes), kind), config)


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@each_config
@pytest.mark.parametrize("kind", ["gdn", "jet"])
@torch.no_grad()
def test_pieces_embeddings_and_padding_change_nothing(config: SleepConfig, kind: str) -> None:
    model, x = sleeper(config, kind), text(3 * L + 3)
    wanted = model(x).logits
    assert_close(model(inputs_embeds=model.get_input_embeddings()(x)).logits, wanted)
    assert_close(read(model.sleeping, x, Context.empty(model.sleeping), config)[0], wanted)
    for sizes in ([3, 9, len(x[0]) - 12], [1] * len(x[0])):
        cache, logits = None, []
        for piece in x.split(sizes, 1):
            out = model(piece, past_key_values=cache)
            cache, logits = out.past_key_values, [*logits, out.logits]
        assert_close(torch.cat(logits, 1), wanted)
    padded = torch.cat([torch.zeros_like(x[:, :3]), x], 1)
    mask = torch.ones_like(padded)
    mask[0, :3] = 0
    padded[1], mask[1, -3:] = torch.cat([x[1], x[1, :3] * 0]), 0
    logits = model(padded, attention_mask=mask).logits
    assert_close(torch.stack([logits[0, 3:], logits[1, :-3]]), wanted)
    assert not torch.allclose(model(x[:, L:]).logits, wanted[:, L:], atol=1e-3)  # the memory matters


@each_config
@torch.no_grad()
def test_generating_is_reading_again(config: SleepConfig) -> None:
    model, x = sleeper(config), text(L + 3)
    written = model.generate(x, max_new_tokens=2 * L, do_sample=False, eos_token_id=None, pad_token_id=0)
    greedy = model(written[:, :-1]).logits[:, len(x[0]) - 1 :].argmax(-1)
    assert torch.equal(written[:, len(x[0]) :], greedy)
    memory = sleep_over(model, x)
    asked = model(x[:, :4], past_key_values=cache_of(memory)).logits
    assert not torch.allclose(asked, model(x[:, :4]).logits, atol=1e-3)
    beams = model.generate(x, max_new_tokens=L, num_beams=2, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert beams.shape == (2, 2 * L + 3)


@pytest.mark.parametrize("config", [CONFIGS["hard-2"], CONFIGS["hard-loop"]], ids=["all", "loop"])
def test_gradients_are_those_of_finite_differences(config: SleepConfig) -> None:
    model, x = sleeper(config), text(2 * L + 2, batch=1)

    def loss() -> Tensor:
        return model(x).logits.square().mean()  # a loss of transformers is in float32

    def of(backward: Backward) -> list[Tensor]:
        model.backward_config = backward
        return list(torch.autograd.grad(loss(), list(named.values())))

    named = {name: p for name, p in model.named_parameters() if "value_embed" in name or "embed_tokens" in name}
    exact = of(Backward())
    for kind in ("pass", "window"):
        assert all(map(torch.equal, of(Backward(activation_checkpoint=kind)), exact))
    model.backward_config, step = Backward(), 3e-4  # its norms are in float32
    generator = torch.Generator().manual_seed(0)
    for (name, parameter), gradient in zip(named.items(), exact, strict=True):
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            parameter.add_(step * direction)
            up = loss()
            parameter.sub_(2 * step * direction)
            down = loss()
            parameter.add_(step * direction)
        assert float((gradient * direction).sum()) == pytest.approx(
            float(up - down) / (2 * step), rel=5e-3, abs=5e-4
        ), name


@pytest.mark.parametrize("whole", [False, True], ids=["adapter", "whole"])
@torch.no_grad()
def test_a_saved_model_is_the_same(whole: bool, tmp_path: Path) -> None:
    tiny("llama").save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    model = add_sleep(inserted(base), CONFIGS["hard-loop"])
    if whole:
        for parameter in model.parameters():
            parameter.mul_(1.01)
    model.save_pretrained(tmp_path / "saved")
    loaded: Any = load(tmp_path / "saved")
    assert torch.equal(loaded(text(20)).logits, model(text(20)).logits)
    assert (tmp_path / "saved" / "model.safetensors").stat().st_size < 500_000 or whole


def test_at_first_the_model_is_what_it_was_and_old_adapters_load(tmp_path: Path) -> None:
    """config.json without the key is that of a layer without it."""
    tiny("llama").save_pretrained(tmp_path / "base")
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    before = model(text(L)).logits
    insert_fast_weights(model, [1], "gdn", value_embedding=True)
    assert torch.equal(model(text(L)).logits, before)
    old: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    insert_fast_weights(old, [1], "gdn")
    freeze_pretrained(old)
    old.save_pretrained(tmp_path / "old")
    place = tmp_path / "old" / "config.json"
    content = place.read_text().replace(',\n      "value_embedding": false', "")
    assert "value_embedding" not in content
    place.write_text(content)
    loaded = load(tmp_path / "old")
    assert inserted_parameters(loaded).keys() == inserted_parameters(old).keys()
    assert not any("value_embed" in name for name in inserted_parameters(loaded))
