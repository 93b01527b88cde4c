"""Reading costs what sleep needs: of a window that other tokens follow, nobody reads what the last blocks make."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from sleeping_models import L, asleep, sleeping
from test_calls import FORWARD, counted
from tiny import text
from tiny_folder import tiny_tokenizer

from reverie import sleep_over
from reverie.hf.generate import generate
from reverie.hf.language import ChatLanguage
from reverie.memory.memory import Memory
from reverie.model import fast_weight_change
from reverie.sleep import Context, consolidate
from reverie.talk.chat import Chat
from reverie.talk.reading import read_text
from reverie.talk.sleeper import Sleeper

pytestmark = pytest.mark.hf

KINDS = ["llama", "qwen3_next", "bamba"]  # of which block 3 leaves nothing that outlives a window
STORY = "Once upon a time there was a wood"  # four windows and a token


def calls_of(model: Any, run: Callable[[], object]) -> Counter[str | int]:
    with torch.no_grad(), counted(model) as calls:
        run()
    return calls


def asleep_over(model: Any, windows: int) -> Counter[str | int]:
    """What `consolidate` of so many whole windows calls."""
    tokens = text(windows * L, batch=1)
    return calls_of(
        model, lambda: consolidate(model.sleeping, tokens, Context.empty(model.sleeping), model.sleep_config)
    )


def awake(times: int = 1) -> Counter[str | int]:
    return Counter({FORWARD: times} | dict.fromkeys(range(4), times))


@pytest.mark.parametrize("N", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_generate_reads_at_the_cost_of_sleep(kind: str, N: int) -> None:
    """Its last window and what it writes, awake, are all that it costs besides."""
    model, tokenizer = sleeping(kind, asleep(N), dtype=torch.float32, vocab_size=61), tiny_tokenizer()
    whole = asleep_over(model, 4)
    if N == 1:
        assert whole[3] == 0
    for more, pieces in (("", 1), ("land", 2)):  # one call reads what is awake before the last token, one that token
        assert len(tokenizer(STORY + more).input_ids) == 4 * L + 1 + len(more)
        calls = calls_of(model, partial(generate, model, tokenizer, STORY + more, max_tokens=1))
        assert calls == whole + awake(pieces)


@pytest.mark.parametrize("kind", KINDS)
def test_chunks_of_a_window_or_more_cost_what_one_call_does(kind: str) -> None:
    model, tokens = sleeping(kind, asleep(1), dtype=torch.float32), text(4 * L + 3, batch=1)
    given: dict[str, Any] = {"max_new_tokens": 1, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    wanted = model.generate(tokens, **given)
    for size in (L, L + 3, 2 * L, 100, None):
        written: list[torch.Tensor] = []
        chunked = partial(model.generate, tokens, prefill_chunk_size=size, **given)
        calls = calls_of(model, lambda written=written, chunked=chunked: written.append(chunked()))
        assert calls == asleep_over(model, 4) + awake()
        assert torch.equal(written[0], wanted)


@pytest.mark.parametrize("N", [1, 2])
def test_reading_into_a_memory_and_conversing(N: int, tmp_path: Path) -> None:
    model = sleeping("llama", asleep(N), dtype=torch.float32)
    language = ChatLanguage(tiny_tokenizer(), frozenset())
    sleeper = Sleeper("llama", model.sleeping, model.sleep_config, language, torch.device("cpu"))
    tokens, whole = text(4 * L, batch=1), asleep_over(model, 4)
    assert calls_of(model, lambda: sleep_over(model, tokens)) == whole
    read = read_text(sleeper, tokens[0], tmp_path / "memory.safetensors", notes={})
    again = tmp_path / "again.safetensors"
    assert calls_of(model, lambda: read_text(sleeper, tokens[0], again, notes={})) == whole
    changes = fast_weight_change(sleep_over(model, tokens).context.state, read.memory.context.state)
    assert [bool(change == 0) for change in changes.values()] == [True, True]

    def converse() -> None:
        Chat(sleeper, Memory.empty(sleeper), max_tokens=1)._hear(language.encode(STORY))

    assert calls_of(model, converse) == sum([asleep_over(model, 1)] * 4, awake())  # each is a nap of its own
