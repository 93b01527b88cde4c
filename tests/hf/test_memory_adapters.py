"""Adapters of peft are part of the function that a memory belongs to, of any kind; and what cannot be is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from adapted_models import BOOK, QUESTION, adapted, answer, lora, peft
from sleeping_models import asleep, sleeping

from reverie.errors import UserError
from reverie.hf import cache_of
from reverie.memory.memory import Memory, sleep_over

pytestmark = pytest.mark.hf


@pytest.fixture(autouse=True)
def _no_gradients() -> Any:
    with torch.no_grad():
        yield


def test_the_issue_s_case(tmp_path: Path) -> None:
    model = adapted()
    memory = sleep_over(model, BOOK)
    memory.save(tmp_path / "m.safetensors")
    wanted = answer(model, cache_of(memory))
    with model.disable_adapter():
        told = "is of the model as it was with the adapters one × 2, and the model now computes with none active"
        with pytest.raises(UserError, match=told):
            answer(model, cache_of(memory))
        with pytest.raises(UserError, match=r"m.safetensors is a memory of the model as it was with the adapters one"):
            Memory.load(tmp_path / "m.safetensors", model)
        assert sleep_over(model, BOOK).fingerprint != memory.fingerprint
    assert torch.equal(answer(model, cache_of(memory)), wanted)


def test_adapters_by_row_are_another_function() -> None:
    model = adapted()
    memory = sleep_over(model, BOOK)
    with pytest.raises(UserError, match="but other modules"):
        model(input_ids=QUESTION, past_key_values=cache_of(memory), adapter_names=["two"])


def test_adapters_of_transformers_own() -> None:
    model = sleeping("llama", asleep(2), dtype=torch.float32)
    model.add_adapter(lora(), adapter_name="one")
    model.eval()
    memory = sleep_over(model, BOOK)
    model.disable_adapters()
    with pytest.raises(UserError, match="the adapters one × 2, and the model now computes with none active"):
        answer(model, cache_of(memory))
    model.enable_adapters()
    answer(model, cache_of(memory))


@pytest.mark.parametrize("kind", ["IA3Config", "LNTuningConfig", "TrainableTokensConfig", "AdaptionPromptConfig"])
def test_other_kinds_of_adapters(kind: str) -> None:
    settings: dict[str, Any] = {
        "IA3Config": {"target_modules": ["up_proj"], "feedforward_modules": ["up_proj"]},
        "LNTuningConfig": {"target_modules": ["input_layernorm"]},
        "TrainableTokensConfig": {"token_indices": QUESTION[0].tolist()},
        "AdaptionPromptConfig": {"adapter_len": 3, "adapter_layers": 1, "target_modules": "self_attn"},
    }[kind]
    base = sleeping("llama", asleep(1), dtype=torch.float32)
    model = peft.get_peft_model(base, getattr(peft, kind)(task_type="CAUSAL_LM", **settings)).eval()
    for parameter in (x for x in model.parameters() if x.requires_grad):
        parameter.add_(0.3)
    memory = sleep_over(model, BOOK)
    wanted = answer(model, cache_of(memory))
    with model.disable_adapter():
        assert not torch.equal(model(input_ids=QUESTION).logits, wanted)
        with pytest.raises(UserError, match="the memory is of"):
            answer(model, cache_of(memory))
    assert torch.equal(answer(model, cache_of(memory)), wanted)


def test_prompts_of_peft_are_refused() -> None:
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model = peft.get_peft_model(sleeping("llama", asleep(2), dtype=torch.float32), config).eval()
    with pytest.raises(UserError, match="a prompt that peft puts before a text is not a part of what sleeps"):
        sleep_over(model, BOOK)


@pytest.mark.parametrize("kind", ["lora", "attention"])
def test_a_memory_is_no_matter_of_chance(kind: str) -> None:
    attention = 0.1 if kind == "attention" else 0.0
    model: Any = sleeping("llama", asleep(2), dtype=torch.float32, attention_dropout=attention)
    if kind == "lora":
        model = peft.get_peft_model(model, lora(lora_dropout=0.5))
    model.train()
    with pytest.raises(UserError, match=r"in training mode, in which .*(dropout|default).* call model.eval\(\)"):
        sleep_over(model, BOOK)
    model.eval()
    assert torch.equal(*(answer(model, cache_of(sleep_over(model, BOOK))) for _ in range(2)))
