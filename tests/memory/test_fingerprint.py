"""A fingerprint changes with every weight and with the config, and with nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import nn

from reverie.errors import UserError
from reverie.memory import fingerprint as module
from reverie.memory.fingerprint import fingerprint
from reverie.model import HybridLM

MakeModel = Callable[..., HybridLM]


class Wrapped(NamedTuple):
    sleeping: nn.Module


def test_equal_weights_and_wrappers_have_the_same(tiny_model: MakeModel):
    model, same = tiny_model("attn", "gdn"), tiny_model("attn", "gdn")
    assert fingerprint(model) == fingerprint(same) == fingerprint(Wrapped(model))
    assert len(fingerprint(model)) == 64


def test_every_weight_counts(tiny_model: MakeModel):
    model, seen = tiny_model("attn", "gdn"), set()
    seen.add(fingerprint(model))
    for parameter in model.parameters():
        with torch.no_grad():
            parameter.view(-1)[-1] += 1e-6
        seen.add(fingerprint(model))
    assert len(seen) == 1 + len(list(model.parameters()))


def test_sizes_that_no_shape_shows_count(tiny_model: MakeModel):
    model = tiny_model("attn", "gdn")
    assert fingerprint(model) != fingerprint(tiny_model("attn", "gdn", rope_base=5000.0))
    assert fingerprint(model) != fingerprint(tiny_model("attn", "gdn").float())


def test_it_is_computed_once_for_the_same_weights(tiny_model: MakeModel, monkeypatch: pytest.MonkeyPatch):
    model = tiny_model("attn", "gdn")
    calls, whole = [], module.content_hash
    monkeypatch.setattr(module, "content_hash", lambda *args: calls.append(1) or whole(*args))
    first = fingerprint(model)
    assert fingerprint(model) == first
    assert len(calls) == 1
    torch.optim.SGD([p for p in model.parameters()], lr=1.0).step()  # no gradient: nothing moves
    assert fingerprint(model) == first
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.SGD(model.parameters(), lr=1.0).step()
    assert fingerprint(model) != first


def test_writing_through_data_is_found_when_computed_anew(tiny_model: MakeModel):
    model = tiny_model("attn", "gdn")
    first = fingerprint(model)
    model.lm_head.weight.data.mul_(1.5)
    assert fingerprint(model, anew=True) != first


def test_what_has_no_weights_is_refused():
    with pytest.raises(UserError, match="a str is no model"):
        fingerprint("gpt")
