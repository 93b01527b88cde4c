"""Vocabularies that grow and shrink, and embeddings that are replaced: function, config and files agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from sleeping_models import OWN, L, asleep, insert, own, sleeping
from tiny import text, tiny
from torch import nn
from torch.nn.utils import parametrize
from transformers import AutoModelForCausalLM

from reverie import sleep_over
from reverie.errors import UserError
from reverie.hf import ReverieHybridConfig, add_sleep

pytestmark = [pytest.mark.hf, pytest.mark.slow]

EAGER = {"experts_implementation": "eager"}
CASES = [
    (OWN, {}),
    ("llama", {}),
    ("llama", {"tie_word_embeddings": True}),
    ("qwen3_next", {}),
    ("bamba", {"tie_word_embeddings": True}),
]


def loaded(folder: Path, kind: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, **({} if kind == OWN else EAGER))


@torch.no_grad()
@pytest.mark.parametrize("size", [50, 70])
@pytest.mark.parametrize("origin", ["made", "loaded"])
@pytest.mark.parametrize(("kind", "changes"), CASES, ids=str)
def test_resized(kind: str, changes: dict[str, Any], origin: str, size: int, tmp_path: Path) -> None:
    if origin == "made" or kind == OWN:
        model: Any = sleeping(kind, asleep(2), **changes)
    else:
        tiny(kind, **changes).save_pretrained(tmp_path / "base")
        model = add_sleep(insert(kind, loaded(tmp_path / "base", kind)), asleep(2))
    tokens = text(2 * L + 1, vocab_size=45)
    before = model(tokens).logits
    model.resize_token_embeddings(size)
    after, kept = model(tokens).logits, min(size, 61)
    assert after.shape[-1] == size == model.config.vocab_size
    torch.testing.assert_close(after[..., :kept], before[..., :kept])  # in another order on some CPUs
    sleep_over(model, torch.full((1, 3), size - 1))
    with pytest.raises((UserError, IndexError)):
        sleep_over(model, torch.full((1, 3), size))
    model.save_pretrained(tmp_path / "out")
    again = loaded(tmp_path / "out", kind)
    torch.testing.assert_close(again(tokens).logits, after)
    tied = again.get_input_embeddings().weight is again.get_output_embeddings().weight
    assert tied == changes.get("tie_word_embeddings", False)
    if kind == OWN:
        assert again.lm.config.vocab_size == model.lm.config.vocab_size == size


@torch.no_grad()
@pytest.mark.parametrize("kind", ["llama", "bamba", OWN])
def test_replaced(kind: str, tmp_path: Path) -> None:
    model, tokens = sleeping(kind, asleep(2)), text(2 * L)
    width, before = model.config.hidden_size, model(tokens).logits
    head, embedding = nn.Linear(width, 61, bias=False).double(), nn.Embedding(61, width).double()
    model.set_output_embeddings(head)
    assert model.get_output_embeddings() is head
    assert not torch.equal(model(tokens).logits, before)
    model.set_input_embeddings(embedding)
    assert torch.equal(model.sleeping.embed(tokens), embedding(tokens))
    model.save_pretrained(tmp_path / "out")
    assert torch.equal(loaded(tmp_path / "out", kind)(tokens).logits, model(tokens).logits)
    model.set_input_embeddings(nn.Embedding(70, width).double())
    with pytest.raises(UserError, match=r"cannot be saved such that it loads: .*embed"):
        model.save_pretrained(tmp_path / "not")
    assert not (tmp_path / "not").exists()


class Twice(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return 2 * weight


@torch.no_grad()
@pytest.mark.parametrize("kind", ["llama", OWN])
def test_parametrized(kind: str, tmp_path: Path) -> None:
    model, tokens = sleeping(kind, asleep(2)), text(2 * L)
    before = model(tokens).logits
    parametrize.register_parametrization(model.get_output_embeddings(), "weight", Twice())
    assert torch.allclose(model(tokens).logits, 2 * before)
    with pytest.raises(UserError, match="cannot be saved such that it loads"):
        model.save_pretrained(tmp_path)
    parametrize.remove_parametrizations(model.get_output_embeddings(), "weight")
    model.save_pretrained(tmp_path)
    assert torch.allclose(loaded(tmp_path, kind)(tokens).logits, 2 * before)


def test_our_own_hybrid_has_no_tied_head() -> None:
    config: Any = ReverieHybridConfig
    with pytest.raises(UserError, match="tie_word_embeddings"):
        config(tie_word_embeddings=True)
    assert own(asleep(2)).config.vocab_size == 61


@torch.no_grad()
@pytest.mark.parametrize("kind", ["llama", "qwen3_next", OWN])
def test_no_cache_asked_for_by_the_config(kind: str) -> None:
    """The config's, a call's, and what `generate` needs."""
    model, tokens = sleeping(kind, asleep(2)), text(2 * L + 3)
    wanted = model(tokens)
    written = model.generate(tokens[:, :5], max_new_tokens=2 * L, do_sample=False, pad_token_id=0, eos_token_id=None)
    model.config.use_cache = False
    found = model(tokens)
    assert torch.equal(found.logits, wanted.logits)
    assert (found.past_key_values, wanted.past_key_values is None) == (None, False)
    assert model(tokens, use_cache=True).past_key_values is not None
    again = model.generate(tokens[:, :5], max_new_tokens=2 * L, do_sample=False, pad_token_id=0, eos_token_id=None)
    assert torch.equal(again, written)
