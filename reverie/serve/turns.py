"""Messages as tokens, in the way in which a chat goes on: turn by turn, so that what came before stays a prefix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from reverie.serve.refusal import Refusal
from reverie.talk.sleeper import Sleeper


@dataclass(frozen=True)
class Message:
    role: str  # system, user or assistant
    text: str


@dataclass(frozen=True)
class Turns:
    """What is to be heard, and whether it asks for an answer."""

    ids: list[int]
    turns: int  # of the conversation after it
    asks: bool


def turns_of(sleeper: Sleeper, messages: Sequence[Message], turns: int, param: str) -> Turns:
    """Messages that come after so many turns of a conversation.

    Raises:
        Refusal: they are in an order that no chat has.
        UserError: the model does not know a word.
    """
    language, ids, instructions = sleeper.language, list[int](), None
    if not messages or messages[-1].role != "user":
        raise Refusal(400, "the last message must be of the user", param=param)
    for i, message in enumerate(messages):
        if message.role == "system":
            if turns or ids or instructions is not None:
                raise Refusal(400, "instructions can only come first, before anything is said", param=param)
            instructions = message.text
        elif message.role == "user":
            ids += _question(sleeper, message.text, instructions, turns, f"{param}[{i}]")
            instructions, turns = None, turns + 1
        elif not turns:
            raise Refusal(400, "the first message must be of the user", param=param)
        elif message.text:
            ids += language.answer(message.text)
    return Turns(ids, turns, language.is_question(messages[-1].text))


def _question(sleeper: Sleeper, text: str, instructions: str | None, turns: int, param: str) -> list[int]:
    if not text.strip():
        raise Refusal(400, "the message is empty", param=param)
    if instructions:
        return sleeper.language.opening(instructions, text)
    return sleeper.question(text, begun=turns > 0)
