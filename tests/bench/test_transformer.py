"""The transformer beside a sleeping model: the same logits as `HybridLM`, over a cache that is there from the start."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from reverie.bench.transformer import FullCache, cache_bytes, check_full_cache
from reverie.errors import UserError
from reverie.model import HybridConfig, HybridLM


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_it_decodes_what_one_forward_pass_finds(tiny_config: Callable[..., HybridConfig], kv_heads: int) -> None:
    check_full_cache(tiny_config("attn", "attn", num_kv_heads=kv_heads), tokens=70)


def test_a_token_sees_all_before_it_and_nothing_after(tiny_model: Callable[..., HybridLM]) -> None:
    cache, token = FullCache(tiny_model("attn", "attn"), 40), torch.tensor([[3]])
    right = cache.decode(token, 30)
    for tensor in (cache.k, cache.v):
        tensor[..., 31:, :] += 1  # what no token has written yet
    assert torch.equal(cache.decode(token, 30), right)
    cache.v[..., 0, :] += 1
    assert not torch.allclose(cache.decode(token, 30), right)


def test_the_size_of_the_cache(tiny_model: Callable[..., HybridLM]) -> None:
    model = tiny_model("attn", "attn", dtype=torch.float32)
    cache = FullCache(model, 40)
    assert cache.k.nbytes + cache.v.nbytes == cache_bytes(model.config, 40) == 40 * cache_bytes(model.config, 1)


def test_wrong_logits_are_refused(tiny_config: Callable[..., HybridConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    right = FullCache.decode

    def decode(self: FullCache, token: Tensor, position: int) -> Tensor:
        return right(self, token, max(position - 1, 0))

    monkeypatch.setattr(FullCache, "decode", decode)
    with pytest.raises(UserError, match=r"^nothing is measured: the transformer, of the logits the worst is off by"):
        check_full_cache(tiny_config("attn", "attn"))
