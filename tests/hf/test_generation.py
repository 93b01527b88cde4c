"""`generate()` as it comes, over windows: greedy, sampling, beams, padding, streams, and memory that stays flat."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from sleeping_models import HYBRIDS, OWN, TRANSFORMERS, L, asleep, sleeping
from tiny import text
from torch import Tensor
from transformers import TextStreamer
from transformers.cache_utils import DynamicCache

from reverie.errors import UserError
from reverie.hf.cache import SleepCache
from reverie.hf.group import LEAST, WHOLE

pytestmark = [pytest.mark.slow, pytest.mark.hf]

KINDS = ["llama", "qwen3_next", "bamba", OWN]
each_kind = pytest.mark.parametrize("kind", KINDS)
MODES: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "sampling": {"do_sample": True, "temperature": 0.7, "top_k": 9},
    "beams": {"do_sample": False, "num_beams": 3},
    "several": {"do_sample": True, "num_return_sequences": 2},
}


def generate(model: Any, tokens: Tensor, new: int = L + 2, **options: Any) -> Any:
    torch.manual_seed(3)
    options = {"max_new_tokens": new, "min_new_tokens": new, "pad_token_id": 0} | options
    return model.generate(tokens, **options)


@each_kind
@pytest.mark.parametrize(("mode", "eviction"), [*((mode, "hard") for mode in MODES), ("greedy", "sliding")])
def test_what_is_written_is_what_the_model_says_of_the_whole_text(kind: str, mode: str, eviction: str) -> None:
    """Without a cache every step reads everything anew: the same tokens."""
    model, prompt = sleeping(kind, asleep(2, eviction), dtype=torch.float32), text(2 * L + 3)
    torch.testing.assert_close(
        generate(model, prompt, **MODES[mode]), generate(model, prompt, use_cache=False, **MODES[mode])
    )


@each_kind
@pytest.mark.parametrize(("mode", "eviction"), [("greedy", "hard"), ("beams", "hard"), ("greedy", "sliding")])
def test_a_row_with_padding_is_the_row_alone(kind: str, mode: str, eviction: str) -> None:
    model, prompts = (
        sleeping(kind, asleep(2, eviction), dtype=torch.float32),
        [text(T, 1, T) for T in (3, L, 2 * L + 5, L)],
    )
    longest = max(prompt.shape[1] for prompt in prompts)
    padded = torch.cat([torch.nn.functional.pad(prompt, (longest - prompt.shape[1], 0)) for prompt in prompts])
    together = generate(model, padded, attention_mask=(padded != 0).long(), **MODES[mode])
    for row, prompt in zip(together, prompts, strict=True):
        alone = generate(model, prompt, **MODES[mode])[0]
        assert torch.equal(row[longest - prompt.shape[1] :], alone)


@each_kind
def test_padding_after_a_text_changes_no_logits_of_it(kind: str) -> None:
    model, tokens = sleeping(kind, asleep(2)), text(2 * L)
    mask = torch.ones_like(tokens)
    mask[1, L + 3 :] = 0
    logits = model(tokens, attention_mask=mask).logits
    far = 1e-5 if kind == "bamba" else 1e-7  # whose scan is in float32
    torch.testing.assert_close(logits[0], model(tokens).logits[0], rtol=10 * far, atol=far)
    torch.testing.assert_close(logits[1, : L + 3], model(tokens[1:, : L + 3]).logits[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [*HYBRIDS, *TRANSFORMERS, OWN])
def test_memory_is_flat_over_twenty_windows(kind: str) -> None:
    """The bytes that a cache keeps alive, at the same place of every window, in writing and in reading."""
    model, held = sleeping(kind, asleep(2), dtype=torch.float32), list[int]()

    def count(module: object, args: object, kwargs: dict[str, Any]) -> None:
        cache = kwargs.get("past_key_values")
        if isinstance(cache, SleepCache):
            storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors(cache)}
            held.append(sum(storages.values()))

    handle = model.register_forward_pre_hook(count, with_kwargs=True)
    generate(model, text(L, 1), 20 * L)
    handle.remove()
    full = LEAST + 3 * L  # by then the cache holds as many starts of windows as it ever will
    at_edges = held[full + L - 1 :: L]
    assert len(at_edges) > 7
    assert set(at_edges) == {at_edges[0]}
    assert max(held) == max(held[: full + L])


def tensors(cache: SleepCache) -> list[Tensor]:
    from torch.utils._pytree import tree_leaves

    return [x for x in tree_leaves(cache.groups) if isinstance(x, Tensor)]


def test_a_long_prompt_does_not_keep_its_windows() -> None:
    """Reading 300 windows at once, more than what can be taken back as a whole, leaves as much in memory as 150."""
    assert 150 * L > WHOLE
    model = sleeping("llama", asleep(2), dtype=torch.float32)

    def kept(windows: int) -> int:
        gc.collect()
        with torch.no_grad():
            cache = model(text(windows * L + 1, 1), logits_to_keep=1).past_key_values
        return sum({x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors(cache)}.values())

    assert kept(300) == kept(150)


def test_a_stream_is_the_text() -> None:
    class Letters:
        def decode(self, ids: Any, **options: Any) -> str:
            return "".join(chr(97 + int(i) % 26) + " " for i in ids)

    parts = list[str]()

    class Collected(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            parts.append(text)

    model, prompt = sleeping("llama", asleep(2), dtype=torch.float32), text(L + 2, 1)
    written = generate(model, prompt, streamer=Collected(Letters(), skip_prompt=True))  # pyright: ignore[reportArgumentType]
    assert "".join(parts) == Letters().decode(written[0, L + 2 :])


@each_kind
def test_a_second_turn_goes_on(kind: str) -> None:
    """With the cache of the first one, generate() reads only what is new."""
    model, first, second = sleeping(kind, asleep(2), dtype=torch.float32), text(L + 3, 1), text(5, 1, 9)
    turn = generate(model, first, 6, return_dict_in_generate=True)
    tokens = torch.cat([turn.sequences, second], 1)
    cached = generate(model, tokens, past_key_values=turn.past_key_values)
    assert torch.equal(cached, generate(model, tokens))


@pytest.mark.parametrize("kind", ["llama", OWN])
@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        ({"input_ids": None}, "give either input_ids or inputs_embeds"),
        ({"inputs_embeds": [[[1.0]]]}, "give either input_ids or inputs_embeds"),
        ({"past_key_values": "other"}, "goes on from the cache that it returned, not from a DynamicCache"),
        ({"attention_mask": [[0, 0, 0], [0, 0, 0]]}, "no row has a token to read"),
        ({"position_ids": [[0, 0, 1], [0, 1, 2]]}, "position_ids must count up"),
        ({"output_hidden_states": True}, "no single hidden_states"),
        ({"output_attentions": True}, "no single attentions"),
        ({"attention_mask": [[[[1, 1, 1]] * 3]] * 2}, r"attention_mask must be \[2, 3\], .* got \[2, 1, 3, 3\]"),
        ({"attention_mask": [[1, 1, 1]]}, r"attention_mask must be \[2, 3\], .* got \[1, 3\]"),
    ],
)
def test_what_a_sleeping_model_cannot_take(kind: str, call: dict[str, Any], sentence: str) -> None:
    model = sleeping(kind, asleep(2))
    given = {"input_ids": text(3)} | {
        key: torch.tensor(value) if isinstance(value, list) else value for key, value in call.items()
    }
    if "past_key_values" in given:
        given["past_key_values"] = DynamicCache()
        given["past_key_values"].update(torch.ones(2, 2, 1, 8), torch.ones(2, 2, 1, 8), 0)
    with pytest.raises(UserError, match=sentence):
        model(**given)
    cache = model(text(3)).past_key_values
    with pytest.raises(UserError, match="the cache holds 2 texts, but these are tokens of 1"):
        model(text(3, 1), past_key_values=cache)
