"""How often a decoder and its blocks run, and that no module keeps anything of a call."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from sleeping_models import HYBRIDS, OWN, TRANSFORMERS, L, asleep, sleeping
from tiny import text
from torch import Tensor
from transformers import PreTrainedModel

from reverie.hf.cache import SleepCache
from reverie.hf.decoder import sleeping_decoder
from reverie.model import State
from reverie.sleep import Context, read, rollout
from reverie.sleep.gradients import Backward

pytestmark = pytest.mark.hf

each_kind = pytest.mark.parametrize("kind", [*HYBRIDS, *TRANSFORMERS])
FORWARD = "forward"


@contextmanager
def counted(model: PreTrainedModel) -> Iterator[Counter[str | int]]:
    """Forwards of the decoder's own class, and calls of each block by its index."""
    calls, decoder = Counter[str | int](), sleeping_decoder(model)
    stock, forward = decoder.stock, decoder.stock.forward

    def count(*args: Any, **kwargs: Any) -> Any:
        calls[FORWARD] += 1
        return forward(*args, **kwargs)

    def count_block(block: Any, args: object, output: object) -> None:
        calls[places[block]] += 1

    places = {block: i for i, block in enumerate(decoder.layers)}
    hooks = [block.register_forward_hook(count_block) for block in places]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stock, FORWARD, count)
        yield calls
    for hook in hooks:
        hook.remove()


def wanted(forwards: int, **blocks: int) -> Counter[str | int]:
    """`forwards` of the decoder; blocks as _1=3 for three calls of block 1."""
    return Counter({FORWARD: forwards} | {int(name[1:]): number for name, number in blocks.items()})


@each_kind
@pytest.mark.parametrize(
    ("N", "eviction", "loop"),
    [(1, "hard", None), (3, "hard", None), (3, "hard", (1, 3)), (3, "sliding", (1, 3))],
    ids=str,
)
def test_an_awake_token_is_one_forward(kind: str, N: int, eviction: str, loop: tuple[int, int] | None) -> None:
    """And one call of each block; through the model of transformers and through `reverie.sleep` alike."""
    model = sleeping(kind, asleep(N, eviction, loop), dtype=torch.float32).eval()
    each = Counter[str | int]({FORWARD: 1} | dict.fromkeys(range(model.sleeping.num_blocks), 1))  # type: ignore[union-attr]
    cache, context = SleepCache(), Context.empty(model.sleeping)  # type: ignore[arg-type]
    with torch.no_grad():
        for token in text(3).split(1, dim=1):
            with counted(model) as calls:
                model(token, past_key_values=cache, logits_to_keep=1)
            assert calls == each
            with counted(model) as calls:
                _, context = read(model.sleeping, token, context, model.sleep_config)  # type: ignore[arg-type]
            assert calls == each


@pytest.mark.parametrize("eviction", ["hard", "sliding"])
@pytest.mark.parametrize("kind", ["llama", "bamba"])
def test_a_pass_of_sleep_is_one_forward(kind: str, eviction: str) -> None:
    """Two windows in one call, of which the first is slept over; blocks outside of the loop are not called.

    Inserted layers of llama follow blocks 0 and 2, bamba's blocks 0 and 2 are recurrent: under hard eviction block 3
    leaves nothing that outlives a window.
    """
    once = 0 if eviction == "hard" else 1
    for N, loop, last, asleep_calls in (
        # Pass 1 that logits are made of, then passes over the loop, then once the blocks after it.
        (1, None, wanted(1, _0=1, _1=1, _2=1, _3=1), wanted(0)),
        (3, None, wanted(1, _0=1, _1=1, _2=1, _3=1), wanted(2, _0=2, _1=2, _2=2, _3=1 + once)),
        (3, (1, 3), wanted(1, _0=1, _1=1, _2=1, _3=1), wanted(2 + once, _1=2, _2=2, _3=once)),
        (2, (0, 2), wanted(1, _0=1, _1=1, _2=1, _3=1), wanted(2, _0=1, _1=1, _2=1, _3=once)),
    ):
        model, tokens = sleeping(kind, asleep(N, eviction, loop), dtype=torch.float32), text(2 * L)
        with torch.no_grad(), counted(model) as calls:
            model(tokens)
        assert calls == last + last + asleep_calls, (N, loop)


@pytest.mark.parametrize("newest_only", [False, True])
def test_what_sleep_will_do_again_is_left_out(newest_only: bool) -> None:
    """Where nobody reads the logits of a window, pass 1 ends with the loop."""
    model, tokens = sleeping("llama", asleep(2, loop=(1, 2)), dtype=torch.float32), text(3 * L)
    with torch.no_grad(), counted(model) as calls:
        model(tokens, logits_to_keep=1 if newest_only else 0)
    awake, passes = wanted(1, _0=1, _1=1, _2=1, _3=1), wanted(2, _1=1, _2=1)  # block 1 once more, then block 2
    side_by_side = wanted(6, _0=1, _1=3, _2=1)  # the embedding, block 0; passes 1, 2 with 1, 2; block 2
    assert calls == (side_by_side + awake if newest_only else awake + awake + awake + passes + passes)


def test_a_step_of_training_is_one_forward_a_pass() -> None:
    """And one more for each that runs again in the backward pass."""
    model, tokens = sleeping("qwen2", asleep(3), dtype=torch.float32), text(2 * L)
    mask = torch.zeros(tokens.shape, dtype=torch.bool)
    mask[:, -2:] = True
    for backward, forwards in ((Backward(), 4), (Backward(activation_checkpoint="pass"), 8)):
        with counted(model) as calls:
            logits, _ = rollout(model.sleeping, tokens, mask, model.sleep_config, backward=backward)  # type: ignore[arg-type]
            logits.square().sum().backward()
        assert calls[FORWARD] == forwards


@each_kind
def test_parts_are_the_whole(kind: str) -> None:
    """`embed`, `blocks` piece by piece and `head` give what the model does, and what `embed_blocks` does at once."""
    model, tokens = sleeping(kind, asleep(2)), text(L, batch=3)
    lm: Any = model.sleeping
    n, empty = lm.num_blocks, State.empty(lm.num_blocks)
    with torch.no_grad():
        h = lm.embed(tokens)
        inner, state = lm.blocks(h, empty, 0, 2, span=L)
        end, state = lm.blocks(inner, state, 2, n, span=L)
        embedded, entered, looped, at_once, whole = lm.embed_blocks(tokens, empty, (1, 2), n, span=L)
        assert torch.equal(embedded, h)
        assert torch.equal(entered, lm.blocks(h, empty, 0, 1, span=L)[0])
        assert torch.equal(lm.embed_blocks(tokens, empty, (0, 2), n, span=L)[1], h)
        assert torch.equal(looped, inner)
        assert torch.equal(at_once, end)
        assert all(x is y or torch.equal(x, y) for x, y in zip(whole.fast_weights, state.fast_weights, strict=True))
        assert torch.equal(lm.head(end), model(tokens).logits)
        x = model.get_input_embeddings()(tokens)
        end = lm.embed_blocks(x, empty, (0, 2), n, span=L)[3]
        assert torch.equal(lm.head(end), model(inputs_embeds=x).logits)


def test_a_decoder_that_may_do_more_after_its_blocks_than_a_norm() -> None:
    """Of a type that nobody has looked at, and with a module of its own: its forward is asked."""
    model, tokens = sleeping("llama", asleep(2)), text(L)
    with torch.no_grad():
        logits = model(tokens).logits
        sleeping_decoder(model).final_norm = None
        assert torch.equal(model(tokens).logits, logits)


@pytest.mark.parametrize("kind", ["llama", "qwen3_next", "bamba"])
def test_two_threads_use_one_model(kind: str) -> None:
    """Texts of other lengths, logits of all tokens or of the newest, asleep and awake: each as if it were alone."""
    model = sleeping(kind, asleep(2, loop=(1, 3)), dtype=torch.float32)
    calls: list[dict[str, Any]] = [
        {"input_ids": text(T, seed=T), "logits_to_keep": keep} for T in (3, L, 2 * L + 3) for keep in (0, 1)
    ]

    def logits(call: dict[str, Any]) -> Tensor:
        with torch.no_grad():
            return model(**call).logits

    alone = [logits(call) for call in calls]
    with ThreadPoolExecutor(4) as threads:
        for given, found in zip(alone * 5, threads.map(logits, calls * 5), strict=True):
            assert torch.equal(found, given)


@pytest.mark.parametrize("kind", ["llama", "qwen3_next"])
def test_a_call_leaves_nothing_on_modules(kind: str) -> None:
    model = sleeping(kind, asleep(2, loop=(1, 3)), dtype=torch.float32)

    def held() -> list[dict[str, Any]]:
        return [{k: id(x) for k, x in module.__dict__.items() if not k.startswith("_")} for module in model.modules()]

    before = held()
    with torch.no_grad():
        model(text(2 * L + 1), logits_to_keep=1)
    assert held() == before


@pytest.mark.parametrize("kind", ["llama", OWN])
@pytest.mark.parametrize("kept", [1, 2, L, 2 * L + 3, 3 * L + 5, 99])
@torch.no_grad()
def test_the_newest_logits_are_those_of_all(kind: str, kept: int) -> None:
    """However many, and in rows that are at different places of their windows."""
    model, cache = sleeping(kind, asleep(2)), SleepCache()
    before, tokens, mask = text(L - 1, 2), text(3 * L + 5, 2, 3), torch.ones(2, L - 1)
    mask[0, :3] = 0
    model(before, attention_mask=mask, past_key_values=cache)
    whole = torch.nn.functional.pad(mask, (0, tokens.shape[1]), value=1)
    other = copy.deepcopy(cache)
    logits = model(tokens, attention_mask=whole, past_key_values=cache).logits
    newest = model(tokens, attention_mask=whole, past_key_values=other, logits_to_keep=kept).logits
    torch.testing.assert_close(newest, logits[:, -kept:])
    assert other.seen == cache.seen
    for one, another in zip(cache.groups, other.groups, strict=True):
        torch.testing.assert_close(one.context.state.fast_weights, another.context.state.fast_weights)
