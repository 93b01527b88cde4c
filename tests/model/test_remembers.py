"""`model_remembers` is False exactly where no logit depends on a memory; and Python warns of that once."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_sleeper import FACTS, tiny_run

from reverie import load_model, model_remembers
from reverie.errors import UntrainedWarning
from reverie.memory import sleep_over
from reverie.model import HybridConfig, HybridLM, new_model
from reverie.sleep import Context, SleepConfig, read

CONFIG = SleepConfig(window_size=4, num_sleep_passes=2)
LAYERS = [("attn", "gdn", "attn", "jet"), ("jet-only", "attn"), ("gdn",)]


@pytest.fixture
def new(tiny_config: Callable[..., HybridConfig]) -> Callable[..., HybridLM]:
    """A model as it begins, but for the head, which would hide all."""

    def make(*layers: str) -> HybridLM:
        model = new_model(tiny_config(*layers), 0)
        torch.nn.init.normal_(model.lm_head.weight)
        return model

    return make


def depends_on_memory(model: HybridLM) -> bool:
    tokens = torch.arange(10)[None]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UntrainedWarning)
        memory = sleep_over(model, tokens, CONFIG)
    said = [read(model, tokens[:, :3], known, CONFIG)[0] for known in (memory.context, Context.empty(model))]
    return not torch.equal(*said)


@pytest.mark.parametrize("layers", LAYERS)
def test_new_layers_remember_nothing_and_one_number_is_enough(new: Callable[..., HybridLM], layers: tuple[str]) -> None:
    model = new(*layers)
    assert not model_remembers(model)
    assert not depends_on_memory(model)
    for i in model.fast_weight_blocks:
        model = new(*layers)
        model.get_parameter(f"layers.{i}.mixer.out_proj.weight").data[0, 0] = 1e-2
        assert model_remembers(model)
        assert depends_on_memory(model)


def test_attention_and_whatever_else_was_trained_do_not_make_a_memory(
    new: Callable[..., HybridLM], tiny_model: Callable[..., HybridLM]
) -> None:
    model = new("attn", "gdn")
    for name, parameter in model.named_parameters():
        if name != "layers.1.mixer.out_proj.weight":
            torch.nn.init.normal_(parameter)
    assert not model_remembers(model)
    assert not depends_on_memory(model)
    assert not model_remembers(tiny_model("attn"))
    assert model_remembers(tiny_model("attn", "gdn"))


def test_a_model_from_disk(tmp_path: Path) -> None:
    for untrained in (True, False):
        sleeper = load_model(tiny_run(tmp_path / str(untrained), untrained=untrained))
        assert model_remembers(sleeper) is not untrained
        assert model_remembers(sleeper.sleeping) is not untrained


def test_weights_that_are_elsewhere_are_taken_for_trained(tiny_config: Callable[..., HybridConfig]) -> None:
    with torch.device("meta"):
        assert model_remembers(HybridLM(tiny_config("attn", "gdn")))


def test_sleep_over_warns_at_the_line_that_called_it(tmp_path: Path) -> None:
    """Once for each model; and its memory carries it on."""
    trained, untrained = (load_model(tiny_run(tmp_path / str(new), untrained=new)) for new in (False, True))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        memories = [sleep_over(model, [trained.text(FACTS)]) for model in (trained, untrained, untrained)]
    assert [(warning.category, warning.filename) for warning in caught] == [(UntrainedWarning, __file__)]
    assert "never trained" in str(caught[0].message)
    assert [memory.notes.get("remembers") for memory in memories] == [None, "no", "no"]
