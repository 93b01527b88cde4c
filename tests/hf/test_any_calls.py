"""Random calls, pieces, pauses, paddings, positions, adapters and edits, against a slow recomputation from scratch."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from adapted_models import adapted
from hypothesis import given, settings
from hypothesis import strategies as st
from sleeping_models import L
from test_memory_function import CHANGES, UNSEEN
from test_waiting_rows import Call, alone, calls
from tiny import text
from torch import Tensor

from reverie.errors import UserError
from reverie.hf.cache import SleepCache, cache_of
from reverie.memory.memory import sleep_over
from reverie.sleep import Context

pytestmark = [pytest.mark.hf, pytest.mark.slow]

# What is written through `.data` or numpy between two calls of one cache is not noticed, as docs/memory.md says.
SEEN = sorted(CHANGES.keys() - UNSEEN.keys())
ORIGINAL = adapted()


class Batch:
    """Rows of texts that a model with adapters reads: `known` from a memory, then `columns` of which `mask` is text."""

    def __init__(self, model: Any, rows: int, seed: int, *, remembers: bool) -> None:
        self.memory = sleep_over(model, text(L + 3, rows, seed + 50)) if remembers else None
        self.cache = SleepCache() if self.memory is None else cache_of(self.memory)
        self.columns, self.mask = torch.zeros(rows, 0, dtype=torch.long), torch.zeros(rows, 0, dtype=torch.bool)
        self.changed = False  # the model, since

    def given(self, call: Call, tokens: Tensor) -> dict[str, Any]:
        shown = torch.tensor(call.shown)
        columns, mask = torch.cat([self.columns, tokens], dim=1), torch.cat([self.mask, shown], dim=1)
        found: dict[str, Any] = {"input_ids": tokens, "past_key_values": self.cache}
        if call.mask:
            found["attention_mask"] = mask.long()
        if call.positions:
            found["position_ids"] = (mask.cumsum(1) - 1).masked_fill(~mask, 0)[:, -tokens.shape[1] :]
        self.columns, self.mask = columns, mask
        return found

    def from_scratch(self, sleeper: Any, T: int) -> Tensor:
        """Logits of the newest T columns, by the model as it is now."""
        wanted = torch.zeros(*self.mask.shape, 61)
        for i, row in enumerate(self.columns):
            known = self.memory.rows(torch.tensor([i])).context if self.memory else Context.empty(sleeper.sleeping)
            if self.mask[i].any():
                wanted[i, self.mask[i]] = alone(sleeper, row[self.mask[i]], known)
        return wanted[:, -T:]


@given(data=st.data())
@settings(max_examples=60, deadline=None)
@torch.no_grad()
def test_every_answer_is_right_or_refused(data: st.DataObject) -> None:
    model, seed = copy.deepcopy(ORIGINAL), 0
    rows = data.draw(st.integers(1, 3))
    batch = Batch(model, rows, seed, remembers=data.draw(st.booleans()))
    for call in data.draw(calls(rows)):
        for name in data.draw(st.lists(st.sampled_from(SEEN), max_size=1)):
            CHANGES[name](model)
            batch.changed = True
        seed += 1
        tokens = text(len(call.shown[0]), rows, seed)
        given = batch.given(call, tokens)
        sleeper = model.base_model.model
        try:
            logits = model(**given).logits
        except UserError:
            assert batch.changed, "a call to a model that has not changed was refused"
            batch = Batch(model, rows, seed, remembers=data.draw(st.booleans()))
            continue
        if batch.memory is not None and batch.changed:
            continue  # what the memory holds was made before: `test_memory_function` has those
        torch.testing.assert_close(logits, batch.from_scratch(sleeper, tokens.shape[1]), rtol=1e-3, atol=1e-3)
