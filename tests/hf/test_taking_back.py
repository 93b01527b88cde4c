"""Taking back what was read: as if it had never been, for any calls and crops; and the decoding that lives on it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sleeping_models import OWN, L, asleep, sleeping
from tiny import text
from torch import Tensor

from reverie.errors import UserError
from reverie.hf import cache_of
from reverie.hf.cache import SleepCache
from reverie.hf.group import FEW, LEAST, WHOLE
from reverie.memory import sleep_over

pytestmark = [pytest.mark.slow, pytest.mark.hf]

KINDS = ["llama", "qwen3_next", "bamba", OWN]
each_kind = pytest.mark.parametrize("kind", KINDS)
near: dict[str, Any] = {"rtol": 1e-6, "atol": 1e-6}  # in float64: bamba's own scan is in float32


def logits_of(model: Any, tokens: Tensor, mask: Tensor, cache: SleepCache | None = None) -> Tensor:
    return model(tokens, attention_mask=mask, past_key_values=cache).logits


@pytest.mark.parametrize("eviction", ["hard", "sliding"])
@pytest.mark.parametrize("kind", ["llama", OWN])  # all in float64: rules in float32 differ more and more over windows
@given(data=st.data())
@settings(max_examples=5, deadline=None)
@torch.no_grad()
def test_what_is_taken_back_was_never_read(kind: str, eviction: str, data: st.DataObject) -> None:
    """Calls of any sizes with crops between them, in a batch with padding anywhere; every logit is that of the row."""
    model = sleeping(kind, asleep(2, eviction))
    B = data.draw(st.integers(1, 3), "batch")
    tokens, mask, cache, furthest = *torch.empty(2, B, 0, dtype=torch.long), SleepCache(), 0
    for i in range(data.draw(st.integers(2, 4), "calls")):
        n = data.draw(st.sampled_from([1, 1, 2, 5, L, L + 3, 3 * L, LEAST + L]), "tokens")
        new, shown = text(n, B, 7 * i + n), torch.ones(B, n, dtype=torch.long)
        if data.draw(st.booleans(), "padded"):
            for row in shown[1:]:  # the first always has something to read
                row[: data.draw(st.integers(0, n), "before")] = 0
                row[n - data.draw(st.integers(0, n // 2), "after") :] = 0
        logits = logits_of(model, new, torch.cat([mask, shown], dim=1), cache)
        tokens, mask = torch.cat([tokens, new], dim=1), torch.cat([mask, shown], dim=1)
        furthest = max(furthest, tokens.shape[1])
        for row in range(B):
            own = mask[row].bool()
            if shown[row].any():
                whole = model(tokens[row][own][None]).logits[0, -int(shown[row].sum()) :]
                torch.testing.assert_close(logits[row][shown[row].bool()], whole, rtol=1e-4, atol=1e-4)
        for _ in range(data.draw(st.integers(0, 2), "crops")):
            back = data.draw(st.integers(0, tokens.shape[1] - max(furthest - LEAST, 0)), "back")
            cache.crop(-back)
            tokens, mask = (x[:, : x.shape[1] - back] for x in (tokens, mask))
            assert cache.seen == tokens.shape[1]


@each_kind
@pytest.mark.parametrize("back", [1, FEW, L, LEAST])
@torch.no_grad()
def test_to_rounding(kind: str, back: int) -> None:
    """In float64, and the state as well as the logits."""
    model, tokens, cache, other = sleeping(kind, asleep(2)), text(LEAST + 2 * L, 2), SleepCache(), text(LEAST, 2, 5)
    model(tokens, past_key_values=cache)
    model(other[:, :back], past_key_values=cache)
    cache.crop(-back)
    again, plain = (model(other[:, :3], past_key_values=past) for past in (cache, None))
    plain = model(torch.cat([tokens, other[:, :3]], dim=1))
    torch.testing.assert_close(again.logits, plain.logits[:, -3:], **near)
    for ours, theirs in zip(cache.groups, plain.past_key_values.groups, strict=True):
        torch.testing.assert_close(ours.context.state.fast_weights, theirs.context.state.fast_weights, **near)
        assert ours.context.length == theirs.context.length


@torch.no_grad()
def test_beyond_what_is_kept_it_is_refused_and_nothing_has_changed() -> None:
    model, cache = sleeping("llama", asleep(2)), SleepCache()
    tokens = text(20 * L, 1)
    model(tokens[:, :-1], past_key_values=cache)
    model(tokens[:, -1:], past_key_values=cache)
    for back, sentence in ((LEAST + 2 * L, f"of 160 tokens read the newest {LEAST}"), (20 * L + 1, "holds 160 tokens")):
        with pytest.raises(UserError, match=sentence):
            cache.crop(-back)
    assert cache.seen == 20 * L
    cache.crop(0)
    cache.crop(20 * L - 3)  # how many stay, as older versions of transformers say it
    assert cache.seen == cache.get_seq_length() == 20 * L - 3
    more = model(tokens[:, -3:], past_key_values=cache).logits
    torch.testing.assert_close(more, model(tokens).logits[:, -3:], **near)


@torch.no_grad()
def test_the_newest_call_is_taken_back_as_a_whole() -> None:
    """Longer than all windows that are kept, as an assistant that is often right makes it; a book is not."""
    model, tokens = sleeping("llama", asleep(2)), text(LEAST + 3 * L, 1)
    for back in (1, 5 * L + 3, LEAST + 4 * L):
        cache, guessed = SleepCache(), text(LEAST + 4 * L, 1, 5)
        model(tokens, past_key_values=cache)
        model(guessed, past_key_values=cache)
        cache.crop(-back)
        left = torch.cat([tokens, guessed[:, : guessed.shape[1] - back]], dim=1)
        more = model(guessed[:, :2], past_key_values=cache).logits
        torch.testing.assert_close(more, model(torch.cat([left, guessed[:, :2]], dim=1)).logits[:, -2:], **near)
    cache = SleepCache()
    model(text(WHOLE + 1, 1), past_key_values=cache)
    with pytest.raises(UserError, match="can be taken back, and not more"):
        cache.crop(-WHOLE)


@torch.no_grad()
def test_no_second_crop_goes_further_back_than_one() -> None:
    """Also where the first has taken back all that is kept, to the token."""
    model, cache = sleeping("llama", asleep(2)), SleepCache()
    tokens, mask = text(20 * L, 2), torch.ones(2, 20 * L, dtype=torch.long)
    mask[1, : 10 * L + 3] = 0
    model(tokens[:, :-1], attention_mask=mask[:, :-1], past_key_values=cache)
    model(tokens[:, -1:], attention_mask=mask, past_key_values=cache)
    cache.crop(-LEAST)
    before = cache.seen, [group.read for group in cache.groups]
    for back in (1, 5, 10 * L):
        with pytest.raises(UserError, match="can be taken back, and not more"):
            cache.crop(-back)
    assert (cache.seen, [group.read for group in cache.groups]) == before
    mask = mask[:, :-LEAST]
    more = model(tokens[:, -3:], attention_mask=torch.nn.functional.pad(mask, (0, 3), value=1), past_key_values=cache)
    whole = model(torch.cat([tokens[:1, :-LEAST], tokens[:1, -3:]], dim=1)).logits[0, -3:]
    torch.testing.assert_close(more.logits[0], whole, **near)


@torch.no_grad()
def test_a_cache_that_was_emptied_is_as_a_new_one() -> None:
    """It takes another batch, positions that count otherwise, and ids of another type."""
    model, cache = sleeping("llama", asleep(2)), SleepCache()
    model(text(L + 3, 2), past_key_values=cache)
    model(text(1, 2).int(), past_key_values=cache)
    cache.crop(-2)
    cache.crop(-L - 2)
    tokens, mask = text(L + 4, 3), torch.ones(3, L + 4, dtype=torch.long)
    mask[0, :2] = 0
    given = {"attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
    logits = model(tokens, **given, past_key_values=cache).logits
    torch.testing.assert_close(logits, model(tokens, **given).logits)


@torch.no_grad()
def test_a_short_text_is_taken_back_to_its_beginning_or_to_the_memory_before_it() -> None:
    model = sleeping("llama", asleep(2))
    memory = sleep_over(model, text(3 * L + 2, 1))
    question, other = text(5, 1, 3), text(6, 1, 4)
    for cache, fresh in ((SleepCache(), SleepCache), (cache_of(memory), lambda: cache_of(memory))):
        model(question, past_key_values=cache)
        cache.crop(-5)
        logits = model(other, past_key_values=cache).logits
        torch.testing.assert_close(logits, model(other, past_key_values=fresh()).logits, **near)


@torch.no_grad()
def test_rows_go_on_in_another_order_after_a_crop() -> None:
    model, tokens, cache = sleeping("llama", asleep(2)), text(2 * L + 5, 3), SleepCache()
    model(tokens, past_key_values=cache)
    cache.crop(-(L - 1))
    kept = copy.deepcopy(cache)
    cache.batch_select_indices(torch.tensor([2, 0, 2]))
    cache.crop(-1)
    rows, new = tokens[[2, 0, 2], : L + 5], text(4, 3, 8)
    logits = model(new, past_key_values=cache).logits
    torch.testing.assert_close(logits, model(torch.cat([rows, new], dim=1)).logits[:, -4:], **near)
    logits = model(new, past_key_values=kept).logits
    torch.testing.assert_close(logits, model(torch.cat([tokens[:, : L + 6], new], dim=1)).logits[:, -4:], **near)


@torch.no_grad()
def test_embeddings_and_tokens_are_taken_back_alike() -> None:
    model, tokens, cache = sleeping("llama", asleep(2)), text(3 * L, 2), SleepCache()
    embed = model.get_input_embeddings()
    model(inputs_embeds=embed(tokens[:, : L + 4]), past_key_values=cache)
    cache.crop(-2)
    model(tokens[:, L + 2 : 2 * L + 3], past_key_values=cache)
    cache.crop(-L)
    logits = model(inputs_embeds=embed(tokens[:, L + 3 :]), past_key_values=cache).logits
    torch.testing.assert_close(logits, model(tokens).logits[:, L + 3 :], **near)


def generate(model: Any, prompt: Tensor, **options: Any) -> Any:
    options |= {"do_sample": False, "pad_token_id": 0, "suppress_tokens": [0]}  # assistants take it for padding
    return model.generate(prompt, max_new_tokens=4 * L, min_new_tokens=4 * L, **options)


@pytest.mark.parametrize("eviction", ["hard", "sliding"])
@each_kind
def test_assisted_decoding_writes_what_greedy_decoding_does(kind: str, eviction: str) -> None:
    """Guesses from the prompt, or of another model; and it does take tokens back."""
    model, prompt = sleeping(kind, asleep(2, eviction)), text(5, 1).repeat(1, 4)
    plain, taken, crop = generate(model, prompt), list[int](), SleepCache.crop

    def counting(cache: SleepCache, n: int) -> None:
        taken.append(-n)
        crop(cache, n)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(SleepCache, "crop", counting)
        for guesses in (6, LEAST + 3 * L):
            assert torch.equal(generate(model, prompt, prompt_lookup_num_tokens=guesses), plain)
        assert torch.equal(generate(model, prompt, assistant_model=sleeping("llama", asleep(1))), plain)
        assert torch.equal(generate(model, prompt, assistant_model=copy.deepcopy(model)), plain)
    assert max(taken) > 0


@each_kind
def test_the_model_itself_as_its_assistant_is_refused(kind: str) -> None:
    model = sleeping(kind, asleep(2))
    with pytest.raises(UserError, match="no assistant_early_exit"):
        generate(model, text(5, 1), assistant_early_exit=1)
