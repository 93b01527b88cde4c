"""`Speaker`: a pretrained model's tokenizer as the tasks of reading use it."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from reverie.errors import UserError, plain
from reverie.pretrained import smollm2
from reverie.pretrained.shipped import tokenizer_place
from reverie.pretrained.smollm2 import SMOLLM2_TURN, load_smollm2


class Speaker(Protocol):
    """Protocol of a tokenizer for pages and questions."""

    end_id: int  # ends an answer
    vocab_size: int

    def encode(self, text: str) -> tuple[list[int], list[int]]:
        """Token ids, and for each the character of the text where it ends."""
        ...

    def turn(self, text: str) -> str:
        """A question as a user's turn in a chat, up to where the answer begins; as it is without a chat template."""
        ...


class SmolLM2Speaker:
    """SmolLM2's tokenizer, without transformers."""

    vocab_size = smollm2.VOCAB_SIZE

    def __init__(self) -> None:
        self._text = load_smollm2()
        self.end_id = self._text.special_ids["<|im_end|>"]

    def encode(self, text: str) -> tuple[list[int], list[int]]:
        encoded = self._text.bpe.encode(text, add_special_tokens=False)
        return encoded.ids, [stop for _, stop in encoded.offsets]

    def turn(self, text: str) -> str:
        return SMOLLM2_TURN.format(text)


class PretrainedSpeaker:
    """A tokenizer of transformers. Raises UserError if it cannot say where tokens stand, or has no end of text."""

    def __init__(self, name: str) -> None:
        try:
            from transformers import AutoTokenizer

            self._tokenizer: Any = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
            self._tokenizer("a")  # some damage shows at the first use alone
        except ImportError:
            raise UserError("this needs the package transformers; run pip install 'reverie[hf]'") from None
        except Exception as error:  # of a damaged file that may be any
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise UserError(f"cannot load the tokenizer of {name}: {plain(reason):.300}") from error
        if not self._tokenizer.is_fast or self._tokenizer.eos_token_id is None:
            raise UserError(f"the tokenizer of {name} must be a fast one, with a token that ends a text")
        self.end_id = int(self._tokenizer.eos_token_id)
        self.vocab_size = len(self._tokenizer)

    def encode(self, text: str) -> tuple[list[int], list[int]]:
        encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return encoded["input_ids"], [stop for _, stop in encoded["offset_mapping"]]

    def turn(self, text: str) -> str:
        if not self._tokenizer.chat_template:
            return text
        turns = [{"role": "user", "content": text}]
        return str(self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))


@lru_cache(maxsize=4)
def speaker_of(name: str) -> Speaker:
    """The tokenizer of "smollm2", of a model in a folder, or of one on the hub."""
    place = tokenizer_place(name)
    if place == "smollm2":
        return SmolLM2Speaker()
    return PretrainedSpeaker(str(Path(place).resolve()) if Path(place).is_dir() else place)
