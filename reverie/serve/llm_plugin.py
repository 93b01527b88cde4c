"""A plugin of `llm`, the command-line tool (https://llm.datasette.io): models and memories on disk, without a server.

    REVERIE_LLM_MODELS   paths of models, as for `reverie serve`, with ":" between; "example" if absent
    REVERIE_LLM_STORE    the folder of a server, whose memories are one more model each: MODEL@MEMORY

A conversation goes on from what the model remembers of it, in LLM_USER_PATH/reverie/HASH.safetensors, a hash of what
was said; where that file is missing, from the texts in llm's log.
"""

from __future__ import annotations

import hashlib
import json
import os
import queue
import threading
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import llm
from pydantic import Field

from reverie.serve.files import MEMORY, files_in, make_folder, owner_of, remove

if TYPE_CHECKING:  # what is slow to import has to wait until somebody asks: `llm` loads its plugins every time
    from reverie.memory.memory import Memory
    from reverie.talk.sleeper import Sleeper


@llm.hookimpl
def register_models(register: Callable[[llm.Model], None]) -> None:
    store = os.environ.get("REVERIE_LLM_STORE")
    memories = [path for _, path, _ in files_in(Path(store) / owner_of(None) / "memories")] if store else []
    for place in os.environ.get("REVERIE_LLM_MODELS", "example").split(os.pathsep):
        register(Sleepy(place))
        for path in memories:
            register(Sleepy(place, path))


class Sleepy(llm.Model):
    """A model, with what is in the file of a memory, or an empty one."""

    can_stream = True

    class Options(llm.Options):  # pyright: ignore[reportIncompatibleVariableOverride]
        temperature: float | None = Field(default=None, ge=0)
        max_tokens: int | None = Field(default=None, ge=1)
        seed: int = 0

    def __init__(self, place: str, memory: Path | None = None) -> None:
        self._place, self._memory = place, memory
        self.model_id = Path(place).name + (f"@{memory.name.removesuffix(MEMORY)}" if memory else "")

    def execute(
        self, prompt: Any, stream: bool, response: llm.Response, conversation: llm.Conversation | None
    ) -> Iterator[str]:
        from reverie.errors import UserError
        from reverie.talk.chat import Chat

        *earlier, (_, text) = [(message.role, _text(message)) for message in prompt.messages]
        if any(role not in ("user", "assistant") for role, _ in earlier) or prompt.system:
            raise llm.ModelError("only questions and answers are supported, and no instructions (--system)")
        told, options = queue.SimpleQueue[str | Exception | None](), prompt.options
        try:
            drawn = {"temperature": options.temperature, "max_tokens": options.max_tokens, "seed": options.seed}
            sleeper = _loaded(self._place)
            chat = Chat(sleeper, self._remembered(sleeper, earlier), **drawn)
        except UserError as error:
            raise llm.ModelError(str(error)) from None

        def answer() -> None:
            try:
                said = chat.say(text, told.put)
                chat.save(self._kept([*earlier, ("user", text), ("assistant", said)]))
                told.put(None)
            except Exception as error:
                told.put(error)

        threading.Thread(target=answer, daemon=True).start()
        while (piece := told.get()) is not None:
            if isinstance(piece, UserError):
                raise llm.ModelError(str(piece))
            if isinstance(piece, Exception):
                raise piece
            yield piece
        if earlier:  # a conversation keeps one file
            remove(self._kept(earlier))

    def _remembered(self, sleeper: Sleeper, earlier: list[tuple[str, str]]) -> Memory:
        """What was heard before: the file of it, or else the memory and all texts since."""
        import torch

        from reverie.memory.memory import Memory
        from reverie.serve.row import Row
        from reverie.talk.heard import Heard
        from reverie.talk.sleeper import load_memory

        if earlier and (path := self._kept(earlier)).exists():
            return load_memory(path, sleeper)
        heard = Heard.of(load_memory(self._memory, sleeper) if self._memory else Memory.empty(sleeper))
        row, turns = Row(sleeper, heard.memory, heard.awake), heard.turns
        for role, text in earlier:
            if role == "user":
                row.pending, turns = [*row.pending, *sleeper.question(text, begun=turns > 0)], turns + 1
            elif text:
                row.pending += sleeper.language.answer(text)
        with torch.no_grad():
            while row.overflows:
                row.sleep()
        return Heard(row.memory, (*row.awake, *row.pending), turns).as_memory(sleeper.name)

    def _kept(self, said: list[tuple[str, str]]) -> Path:
        """Where it is kept what was heard when so much had been said; in a folder for its user alone."""
        make_folder(folder := Path(llm.user_dir()) / "reverie")
        return folder / f"{hashlib.sha256(json.dumps([self.model_id, said]).encode()).hexdigest()}{MEMORY}"


@cache
def _loaded(place: str) -> Sleeper:
    from reverie.talk.sleeper import load_model

    return load_model(place)


def _text(message: Any) -> str:
    """Of a message, whose other parts are refused."""
    if any(not hasattr(part, "text") for part in message.parts):
        raise llm.ModelError("only text is supported")
    return "".join(part.text for part in message.parts)
