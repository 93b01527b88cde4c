"""How models of word problems are spoken to."""

from collections.abc import Sequence

from reverie.errors import UserError
from reverie.pretrained.smollm2 import SmolLM2Tokenizer
from reverie.tasks.gsm_infinite.words import WordTokenizer
from reverie.tasks.language import Language, one_line, with_padding


class WordProblems(Language):
    """Language of GSM-Infinite: facts, then questions whose answers are numbers.

    If training has several questions per text, a question is the sentence alone; else it stands between "Question:" and
    "Answer:".

    Padding is as in training: facts begin at the start of a window, questions are padded to the length of training's.
    It matters: of 1,246 questions about held-out texts, a model of gsm_infinite/example answers 77.6 % rightly in the
    layout of training, 77.3 % in this one (each question alone in a fresh window), 76.5 % if questions are not padded,
    and 73.3 % without any padding.
    """

    def __init__(
        self, text: SmolLM2Tokenizer | WordTokenizer, *, num_questions: int, last: int, pad_id: int, end_id: int
    ) -> None:
        """Args: last: tokens of all questions, or of the one answer."""
        self._text, self._pad_id = text, pad_id
        self._many = num_questions > 1
        self._slot = last // num_questions if self._many else 0
        self.max_answer_tokens = 1 if self._many else last + 1
        self.end_ids = frozenset([end_id])

    def encode(self, text: str) -> list[int]:
        if isinstance(self._text, SmolLM2Tokenizer):
            return self._text.encode(one_line(text))
        try:
            return self._text.encode(text)
        except ValueError as error:
            raise UserError(
                f"{error}: this model knows the words of its task alone; `reverie tasks show gsm_infinite` has a text"
            ) from None

    def question(self, text: str, *, begun: bool = False) -> list[int]:
        text = text.strip()
        if not self._many:
            text = text if text.startswith("Question:") else f"Question: {text}"
            text = text if text.endswith("Answer:") else f"{text} Answer:"
        ids = self.encode(text)
        in_slot = self.is_question(text) and len(ids) < self._slot
        return with_padding(ids, self._slot, self._pad_id) if in_slot else ids

    def is_question(self, text: str) -> bool:
        return text.rstrip().endswith(("?", "Answer:"))

    def padded(self, ids: Sequence[int], window_size: int) -> list[int]:
        return with_padding(ids, window_size, self._pad_id)

    def decode(self, ids: Sequence[int]) -> str:
        ids = [i for i in ids if i != self._pad_id and i not in self.end_ids]
        return self._text.decode(ids).strip()
