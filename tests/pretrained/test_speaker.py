"""Tokenizers as the tasks of reading use them: SmolLM2's with and without transformers, and others."""

from __future__ import annotations

from pathlib import Path

import pytest
from reading_pages import needs_smollm2
from tiny_folder import tiny_tokenizer

from reverie.errors import UserError
from reverie.hf.models.smollm2 import load_smollm2_tokenizer
from reverie.pretrained.speaker import PretrainedSpeaker, SmolLM2Speaker, speaker_of

pytestmark = pytest.mark.hf

TEXTS = ["", "Marta Olsen works as a baker.\nThe code is 4711", "naïve café — 日本 🙂 x", "  two  spaces "]


@needs_smollm2
def test_smollm2_speaks_the_same_through_transformers(tmp_path: Path) -> None:
    load_smollm2_tokenizer().save_pretrained(tmp_path)
    ours, theirs = SmolLM2Speaker(), PretrainedSpeaker(str(tmp_path))
    assert (ours.end_id, ours.vocab_size) == (theirs.end_id, theirs.vocab_size)
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text)
    assert ours.turn("Who is Marta?") == theirs.turn("Who is Marta?")
    assert speaker_of("smollm2") is speaker_of("smollm2")


@needs_smollm2
@pytest.mark.parametrize("text", TEXTS)
def test_tokens_end_where_it_says(text: str) -> None:
    ids, ends = SmolLM2Speaker().encode(text)
    assert len(ids) == len(ends)
    assert ends == sorted(ends)
    assert not text or ends[-1] == len(text)


def test_a_tokenizer_without_a_chat_asks_as_it_is(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    speaker = speaker_of(str(tmp_path))
    assert speaker.turn("Who is it?") == "Who is it?"
    assert speaker.end_id == tokenizer.eos_token_id
    assert speaker.encode("ab") == (tokenizer.convert_tokens_to_ids(["a", "b"]), [1, 2])


def test_what_is_no_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot load the tokenizer of"):
        PretrainedSpeaker(str(tmp_path))
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="must be a fast one, with a token that ends a text"):
        PretrainedSpeaker(str(tmp_path))
