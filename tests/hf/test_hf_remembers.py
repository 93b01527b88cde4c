"""`model_remembers` of models of transformers: new layers have nothing to say, their own were trained."""

from __future__ import annotations

import warnings
from typing import Any, cast

import pytest
import torch
from sleeping_models import HYBRIDS, OWN, TRANSFORMERS, L, asleep, insert, sleeping
from tiny import text, tiny
from torch import nn

from reverie.errors import UntrainedWarning
from reverie.hf import add_sleep, insert_fast_weights, model_remembers
from reverie.hf.blocks import inserted_parameters
from reverie.memory import sleep_over
from reverie.model import SleepingModel
from reverie.sleep import Context, read

pytestmark = pytest.mark.hf


def depends_on_memory(model: Any) -> bool:
    part, tokens = cast(SleepingModel, model.sleeping), text(2 * L + 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UntrainedWarning)
        memory = sleep_over(model, tokens)
    with torch.no_grad():
        said = [read(part, tokens[:, :5], known, memory.config)[0] for known in (memory.context, Context.empty(part))]
    return not torch.equal(*said)


@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_inserted_layers_remember_nothing_until_one_number_is_trained(kind: str) -> None:
    model = add_sleep(insert(kind, tiny(kind)), asleep(2))
    assert not model_remembers(model)
    assert not model_remembers(cast(Any, model).sleeping)
    assert not depends_on_memory(model)
    last = [p for name, p in inserted_parameters(model).items() if name.endswith("out_proj.weight")][-1]
    last.data[3, 1] = 0.5
    assert model_remembers(model)
    assert model_remembers(cast(Any, model).sleeping)
    assert depends_on_memory(model)


@pytest.mark.parametrize("kind", [*HYBRIDS, OWN])
def test_fast_weights_of_its_own_were_trained(kind: str) -> None:
    assert model_remembers(sleeping(kind, asleep()))


def test_fast_weights_of_its_own_beside_inserted_ones() -> None:
    model = tiny("qwen3_next")
    insert_fast_weights(model, [1], "gdn")
    assert model_remembers(add_sleep(model, asleep()))


class Adapted(nn.Module):
    """A projection with low-rank weights beside it, as peft wraps one."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base_layer, self.lora_A = base, nn.Linear(base.in_features, 2, bias=False)
        self.lora_B = nn.Linear(2, base.out_features, bias=False)


def test_projections_with_lora_around_them_are_taken_for_trained() -> None:
    model: Any = add_sleep(insert("llama", tiny("llama")), asleep())
    mixer = model.get_submodule("model.layers.2.fast_weight_mixer.mixer")
    mixer.out_proj = Adapted(mixer.out_proj)
    assert model_remembers(model)


def test_generate_warns_of_layers_that_were_never_trained() -> None:
    new, trained = add_sleep(insert("llama", tiny("llama")), asleep()), sleeping("llama", asleep())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for model in (new, new, trained):
            cast(Any, model).generate(text(5), max_new_tokens=2, do_sample=False)
    of_ours = [warning for warning in caught if warning.category is UntrainedWarning]
    assert [warning.filename for warning in of_ours] == [__file__]


def test_training_is_not_warned_of() -> None:
    """Layers that were just inserted are what one trains."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UntrainedWarning)
        model: Any = add_sleep(insert("llama", tiny("llama")), asleep(2))
        tokens = text(2 * L + 3)
        model(input_ids=tokens, labels=tokens).loss.backward()
