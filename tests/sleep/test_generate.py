"""Greedy decoding is reading: the same as asking for the likeliest token over and over, whatever the windows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from reverie.errors import UserError
from reverie.model import HybridLM
from reverie.sleep import Context, SleepConfig, read
from reverie.sleep.generate import greedy

MakeModel = Callable[..., HybridLM]

each_eviction = pytest.mark.parametrize("eviction", ["hard", "sliding"])
some_passes = pytest.mark.parametrize("N", [1, 3])


def asleep(N: int, eviction: str = "hard", window_size: int = 5) -> SleepConfig:
    return SleepConfig.model_validate({"window_size": window_size, "num_sleep_passes": N, "eviction": eviction})


def prompt(length: int, rows: int = 2) -> Tensor:
    return torch.randint(11, (rows, length), generator=torch.Generator().manual_seed(length))


def one_by_one(model: HybridLM, tokens: Tensor, config: SleepConfig, number: int) -> Tensor:
    """Every row and every token on its own."""
    rows = []
    for waiting in tokens.tolist():
        context, written = Context.empty(model), list[int]()
        while len(written) < number:
            logits, context = read(model, torch.tensor([waiting[:1]]), context, config)
            waiting = waiting[1:]
            if not waiting:
                waiting = [int(logits.argmax())]
                written += waiting
        rows.append(written)
    return torch.tensor(rows)


@some_passes
@each_eviction
@pytest.mark.parametrize("length", [1, 5, 12])  # of the prompt; windows hold 5
def test_it_is_the_argmax_of_reading_token_by_token(tiny_model: MakeModel, length: int, eviction: str, N: int) -> None:
    model, config = tiny_model("attn", "gdn", "jet", "attn"), asleep(N, eviction)
    with torch.no_grad():
        wanted = one_by_one(model, prompt(length), config, 7)
    assert torch.equal(greedy(model, prompt(length), config, 7), wanted)
    assert len(wanted.unique()) > 2  # else it would tell little


@pytest.mark.parametrize(("eviction", "layers"), [("hard", ("gdn", "gdn")), ("sliding", ("attn", "gdn"))])
def test_windows_do_not_matter_where_nothing_is_lost(
    tiny_model: MakeModel, eviction: str, layers: tuple[str, ...]
) -> None:
    """One pass of a model whose fast weights carry everything, or of any that sees 20 tokens back."""
    model = tiny_model(*layers, conv_size=1) if eviction == "hard" else tiny_model(*layers)
    sizes = (2, 5, 9, 30) if eviction == "hard" else (20, 30)
    written = [greedy(model, prompt(9), asleep(1, eviction, size), 8) for size in sizes]
    assert all(torch.equal(tokens, written[0]) for tokens in written)


def test_rows_and_lengths_do_not_disturb_each_other(tiny_model: MakeModel) -> None:
    model, config = tiny_model("attn", "gdn"), asleep(2)
    whole = greedy(model, prompt(8), config, 6)
    assert whole.shape == (2, 6)
    assert torch.equal(greedy(model, prompt(8)[1:2], config, 6), whole[1:2])
    assert torch.equal(greedy(model, prompt(8), config, 1), whole[:, :1])


def test_no_gradients(tiny_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    model, heads = tiny_model("attn", "gdn"), list[Tensor]()
    head = model.head

    def recording(h: Tensor) -> Tensor:
        heads.append(head(h))
        return heads[-1]

    monkeypatch.setattr(model, "head", recording)
    greedy(model, prompt(13), asleep(2), 4)
    assert [logits.shape[1] for logits in heads] == [1, 1, 1, 1]  # and of the prompt only the last token has logits
    assert not any(logits.requires_grad for logits in heads)


def test_there_must_be_a_prompt(tiny_model: Any) -> None:
    with pytest.raises(UserError, match="nothing to read"):
        greedy(tiny_model("attn", "gdn"), prompt(0), asleep(1), 3)
