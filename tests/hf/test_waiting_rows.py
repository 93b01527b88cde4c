"""Rows of a batch that begin, wait and end at different tokens: each is what it would be alone."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sleeping_models import OWN, L, asleep, sleeping
from tiny import text
from torch import Tensor
from transformers import DynamicCache

from reverie.errors import UserError
from reverie.hf.cache import SleepCache, cache_of
from reverie.hf.decoder import sleeping_decoder
from reverie.memory.memory import sleep_over
from reverie.sleep import Context, read

pytestmark = pytest.mark.hf


@dataclass
class Call:
    """One call: which tokens each row is given (`shown`), and how."""

    shown: list[list[bool]]
    positions: bool
    mask: bool  # given; if not, there is no padding in this call
    by_place: bool
    newest: bool


@st.composite
def calls(draw: Any, rows: int) -> list[Call]:
    made = list[Call]()
    for _ in range(draw(st.integers(1, 5))):
        T = draw(st.integers(1, L + 3))
        shown = draw(st.lists(st.lists(st.booleans(), min_size=T, max_size=T), min_size=rows, max_size=rows))
        if draw(st.booleans()) or not any(map(any, shown)):
            shown = [[True] * T for _ in range(rows)]
        mask, positions, by_place, newest = (draw(st.booleans()) for _ in range(4))
        made.append(Call(shown, positions, mask or not all(map(all, shown)), by_place, newest))
    return made


def alone(model: Any, row: Tensor, known: Context) -> Tensor:
    """Logits [T, vocab] of one text, read token by token through `reverie.sleep` alone."""
    logits, context = list[Tensor](), known
    for token in row[None].split(1, dim=1):
        y, context = read(model.sleeping, token, context, model.sleep_config)
        logits.append(y[0])
    return torch.cat(logits)


@given(data=st.data())
@settings(max_examples=8, deadline=None)
def test_rows_are_what_they_would_be_alone(data: st.DataObject) -> None:
    rows_are_what_they_would_be_alone("llama", "hard", data)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "eviction"), [("llama", "sliding"), ("qwen3_next", "hard"), (OWN, "hard")])
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_rows_of_any_model_are_what_they_would_be_alone(kind: str, eviction: str, data: st.DataObject) -> None:
    rows_are_what_they_would_be_alone(kind, eviction, data)


@torch.no_grad()
def rows_are_what_they_would_be_alone(kind: str, eviction: str, data: st.DataObject) -> None:
    """Random calls with random padding before, in and after texts, positions and masks given or not, from memories."""
    model: Any = _model(kind, eviction)
    B = data.draw(st.integers(1, 3))
    made, columns = data.draw(calls(B)), 0
    tokens = text(sum(len(call.shown[0]) for call in made), B, data.draw(st.integers(0, 9)))
    memory = sleep_over(model, text(L + 3, B, 77)) if data.draw(st.booleans()) else None
    contexts = [memory.rows(torch.tensor([i])).context if memory else Context.empty(model.sleeping) for i in range(B)]
    cache: Any = cache_of(memory) if memory else data.draw(st.sampled_from([SleepCache, DynamicCache]))()
    mask = torch.cat([torch.tensor(call.shown) for call in made], dim=1)
    wanted = torch.zeros(*mask.shape, 61, dtype=torch.float64)
    for i in range(B):
        if mask[i].any():
            wanted[i, mask[i]] = alone(model, tokens[i][mask[i]], contexts[i])
    for call in made:
        now = slice(columns, columns + len(call.shown[0]))
        so_far = mask[:, : now.stop]
        given: dict[str, Any] = {"past_key_values": cache}
        if call.mask:
            given["attention_mask"] = so_far.to(data.draw(st.sampled_from([torch.bool, torch.long, torch.float32])))
        if call.positions:
            given["position_ids"] = (so_far.cumsum(1) - 1).masked_fill(~so_far, 0)[:, now]
        if call.newest:
            given["logits_to_keep"] = 1
        if call.by_place:
            first = [given.pop(name, None) for name in ("attention_mask", "position_ids", "past_key_values")]
            output = model(tokens[:, now], *first, **given)
        else:
            output = model(input_ids=tokens[:, now], **given)
        assert output.past_key_values is cache
        expected = wanted[:, now][:, -1:] if call.newest else wanted[:, now]
        torch.testing.assert_close(output.logits, expected, rtol=1e-3, atol=1e-3)
        if data.draw(st.booleans()):
            cache = copy.deepcopy(cache)  # a branch
        columns = now.stop


_models: dict[tuple[str, str], Any] = {}


def _model(kind: str, eviction: str) -> Any:
    if (kind, eviction) not in _models:
        _models[kind, eviction] = sleeping(kind, asleep(2, eviction)).eval()
    return _models[kind, eviction]


@pytest.mark.parametrize("kind", ["llama", "qwen3_next", "bamba", OWN])
@torch.no_grad()
def test_prompts_longer_than_a_piece_of_padding(kind: str) -> None:
    """generate() hands over a prompt in pieces, of which the first are padding throughout for some rows."""
    model = sleeping(kind, asleep(2), dtype=torch.float32).eval()
    prompts = [text(size, 1, size) for size in (3, L, 2 * L + 5)]
    longest = max(prompt.shape[1] for prompt in prompts)
    padded = torch.cat([torch.nn.functional.pad(prompt, (longest - prompt.shape[1], 0)) for prompt in prompts])
    given: dict[str, Any] = {"max_new_tokens": L + 2, "min_new_tokens": L + 2, "do_sample": False, "pad_token_id": 0}
    together = model.generate(padded, attention_mask=(padded != 0).long(), prefill_chunk_size=4, **given)
    for row, prompt in zip(together, prompts, strict=True):
        assert torch.equal(row[longest - prompt.shape[1] :], model.generate(prompt, **given)[0])


@pytest.mark.parametrize("kind", ["llama", OWN])
def test_rows_that_end_early(kind: str) -> None:
    """What is written is what each writes alone; a second turn is refused, since padding was read, or each alone."""
    model = sleeping(kind, asleep(2), dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    prompts = text(L - 2, 4)
    free = model.generate(prompts, max_new_tokens=2 * L, do_sample=False)
    end = int(free[0, L])  # the third token that the first row writes ends a text
    given: dict[str, Any] = {"max_new_tokens": 2 * L, "do_sample": False, "eos_token_id": end, "pad_token_id": 0}
    turn = model.generate(prompts, return_dict_in_generate=True, **given)
    for row, prompt in zip(turn.sequences, prompts, strict=True):
        single = model.generate(prompt[None], **given)[0]
        assert torch.equal(row[: len(single)], single)
        assert not row[len(single) :].any()
    mask = (turn.sequences != 0).long()
    assert not mask.all()
    more = torch.cat([turn.sequences, text(3, 4)], dim=1)
    mask = torch.nn.functional.pad(mask, (0, 3), value=1)
    with pytest.raises(UserError, match="what was read cannot be taken back"):
        model.generate(more, attention_mask=mask, past_key_values=turn.past_key_values, **given)


@pytest.mark.parametrize("kind", ["llama", OWN])
@given(data=st.data())
@settings(max_examples=6, deadline=None)
def test_the_loss_of_a_batch_is_that_of_its_rows(kind: str, data: st.DataObject) -> None:
    """With padding before and after texts, values and gradients; the first token of a text is predicted by nothing."""
    model: Any = _model(kind, "hard")
    B, T = data.draw(st.integers(1, 3)), 2 * L + 3
    tokens, mask = text(T, B), torch.ones(B, T, dtype=torch.long)
    labels = tokens.clone()
    for i in range(B):
        before, after = data.draw(st.integers(0, L)), data.draw(st.integers(0, L))
        mask[i, :before] = 0
        mask[i, T - after :] = 0
    labels[mask == 0] = -100
    model.zero_grad()
    output = model(tokens, attention_mask=mask, labels=labels)
    output.loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    rows = [tokens[i][mask[i].bool()][None] for i in range(B)]
    count = sum(row.shape[1] - 1 for row in rows)
    losses = [model(row, labels=row).loss * (row.shape[1] - 1) for row in rows]
    whole = torch.stack(losses).sum() / count
    whole.backward()
    torch.testing.assert_close(output.loss, whole, rtol=1e-4, atol=1e-5)
    for name, p in model.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(gradients[name], p.grad, rtol=1e-2, atol=1e-4)


@torch.no_grad()
def test_the_decoder_reads_as_its_causal_language_model_does() -> None:
    model: Any = _model("llama", "hard")
    tokens, mask = text(L + 5, 3), torch.ones(3, L + 5)
    mask[0, :4] = mask[2, L:] = 0
    h = sleeping_decoder(model)(tokens, mask).last_hidden_state
    assert not h[mask == 0].any()
    torch.testing.assert_close(model.lm_head(h), model(tokens, attention_mask=mask).logits)


@torch.no_grad()
def test_a_cache_takes_rows_in_another_order() -> None:
    """Beam search does; what it knows of their padding goes with them."""
    model: Any = _model("llama", "hard")
    first, second, cache = text(L + 2, 3), text(4, 3, 9), SleepCache()
    mask = torch.ones(3, L + 2, dtype=torch.long)
    mask[1, :5] = mask[2, L:] = 0
    model(first, attention_mask=mask, past_key_values=cache)
    order = torch.tensor([2, 0, 2, 1])
    cache.batch_select_indices(order)
    whole = torch.nn.functional.pad(mask[order], (0, 4), value=1)
    rows = second[order]
    logits = model(rows, attention_mask=whole, past_key_values=cache).logits
    for new, old in enumerate(order.tolist()):
        row = torch.cat([first[old][mask[old].bool()], rows[new]])[None]
        torch.testing.assert_close(logits[new], model(row).logits[0, -4:], rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match="cannot be taken back"):
        model(rows, attention_mask=torch.ones(4, L + 10), past_key_values=cache)
