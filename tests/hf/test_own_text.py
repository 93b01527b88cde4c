"""What a model writes before it is trained: whole windows of its own tokens, the same for the same seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from reading_pages import needs_smollm2
from tiny_adapter import W, tiny_adapter, tiny_base

from reverie.files import CACHE
from reverie.hf import own_text
from reverie.hf.add import install
from reverie.hf.bases import load_base
from reverie.hf.causal_lm import PretrainedLM
from reverie.hf.own_text import own_windows
from reverie.pretrained.speaker import speaker_of
from reverie.train.run import train

pytestmark = [pytest.mark.hf, needs_smollm2]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> PretrainedLM:
    lm: Any = load_base(tiny_base(tmp_path_factory.mktemp("base")), dtype=torch.float32)
    install(lm)
    return PretrainedLM(lm)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_text, "_AT_ONCE", 4)
    monkeypatch.setattr(own_text, "_LONGEST", 12)


def test_windows_are_whole_and_depend_on_the_seed(model: PretrainedLM) -> None:
    speaker = speaker_of("smollm2")
    first, again, other = (own_windows(model, speaker, 5, 16, seed) for seed in (0, 0, 1))
    assert first.shape == (5, 16)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert (first != speaker.end_id).all()
    assert torch.equal(own_windows(model, speaker, 2, 16, 0), first[:2])


def test_a_text_is_drawn_from_what_the_model_says_comes_next(model: PretrainedLM, monkeypatch: Any) -> None:
    """Cold, it is the likeliest token after the prompt, then after that one, and never the end at once."""
    monkeypatch.setattr(own_text, "_TEMPERATURE", 1e-6)
    monkeypatch.setattr(own_text, "_KINDS", ("a story",))
    monkeypatch.setattr(own_text, "_ABOUT", ("rain",))
    speaker = speaker_of("smollm2")
    ids = speaker.encode(speaker.turn("Write a story about rain."))[0]
    for token in own_windows(model, speaker, 1, 12, 0)[0].tolist():
        with torch.no_grad():
            assert model.lm(torch.tensor([ids])).logits[0, -1].argmax() == token
        ids.append(token)


def test_an_adapter_learns_among_them_and_they_are_written_once(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    base, told = tiny_base(tmp_path / "base"), list[int]()
    make = own_windows

    def counted(*args: Any) -> Any:
        told.append(args[2])
        return make(*args)

    monkeypatch.setattr("reverie.train.adapt.own_windows", counted)
    recipe = tiny_adapter(base, adapt={"own_text": 3, "plain_among": [1, 2]}, train={"steps": 2, "eval_every": 2})
    for name in ("a", "b"):
        card = train(recipe, tmp_path / name)
        assert card.tokens > 2 * 2 * W
    assert told == [3]
