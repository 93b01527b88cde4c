"""What requests may hold. Everything else is refused by its name, but for values that ask for nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from reverie.serve.limits import Limits
from reverie.serve.turns import Message

TokenId = Annotated[int, Field(strict=True, ge=0, lt=2**63)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Metadata = Annotated[dict[str, Annotated[str, Field(max_length=512)]], Field(max_length=16)]
MOST_LOGPROBS = 20
MOST_MESSAGES = 2**14  # of a request; checking them takes time
_MOST_FIELDS = 100

# What some clients always send: nothing is lost by not heeding it.
_ASKS_FOR_NOTHING: dict[str, tuple[object, ...]] = {
    "annotations": ([],),
    "best_of": (1,),
    "echo": (False,),
    "frequency_penalty": (0,),
    "include": ([],),
    "logit_bias": ({},),
    "logprobs": ([],),
    "modalities": (["text"],),
    "parallel_tool_calls": (True, False),
    "presence_penalty": (0,),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "text": ({"format": {"type": "text"}}, {}),
    "tool_calls": ([],),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "truncation": ("disabled",),
    "background": (False,),
}


class Strict(BaseModel):
    """A part of a request."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _without_nothing(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        if len(given) > _MOST_FIELDS:
            raise ValueError(f"an object has at most {_MOST_FIELDS} fields")
        _check_unicode(given)
        nothing = {
            key
            for key, value in given.items()
            if value is None or (key not in cls.model_fields and value in _ASKS_FOR_NOTHING.get(key, ()))
        }
        return {key: value for key, value in given.items() if key not in nothing}


def _check_unicode(given: Any) -> None:
    """Raises ValueError for a string, anywhere in a request, that no answer could repeat."""
    if isinstance(given, str):
        try:
            given.encode()
        except UnicodeEncodeError:
            raise ValueError("text must be Unicode, and holds half of a surrogate pair") from None
    elif isinstance(given, Mapping):
        for key, value in given.items():
            _check_unicode(key)
            _check_unicode(value)
    elif isinstance(given, list):
        for value in given:
            if not isinstance(value, int):  # of which there may be many
                _check_unicode(value)


class TextPart(Strict):
    type: Literal["text", "input_text", "output_text"]
    text: str


class MessageIn(Strict):
    """A message of a chat, or an item of a response's input, such as one of an earlier output."""

    type: Literal["message"] = "message"
    id: str | None = None
    status: str | None = None
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart] = ""

    def message(self) -> Message:
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return Message("system" if self.role == "developer" else self.role, text)


class Drawn(Strict):
    """How answers are written."""

    model: str
    stream: bool = False
    temperature: float | None = Field(default=None, ge=0, le=100, allow_inf_nan=False)
    top_p: float = Field(default=1.0, gt=0, le=1)
    seed: Seed | None = None
    user: str | None = None
    metadata: Metadata = {}
    store: bool = True


class StreamOptions(Strict):
    include_usage: bool = False
    include_obfuscation: bool = False


class Completed(Drawn):
    """What both kinds of completions take."""

    n: int = Field(default=1, ge=1)
    stop: list[Annotated[str, Field(min_length=1, max_length=1000)]] = Field(default=[], max_length=4)
    stream_options: StreamOptions = StreamOptions()

    @field_validator("stop", mode="before")
    @classmethod
    def _one_or_several(cls, given: Any) -> Any:
        return [given] if isinstance(given, str) else given

    @model_validator(mode="after")
    def _options_of_streams(self) -> Completed:
        if self.stream_options.include_usage and not self.stream:
            raise ValueError("stream_options are for streams")
        return self


class ChatRequest(Completed):
    messages: list[MessageIn] = Field(min_length=1, max_length=MOST_MESSAGES)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool = False
    top_logprobs: int = Field(default=0, ge=0, le=MOST_LOGPROBS)

    @model_validator(mode="after")
    def _not_two_ways(self) -> ChatRequest:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise ValueError("max_tokens and max_completion_tokens are two names of one limit, and must not differ")
        return self


class CompletionRequest(Completed):
    prompt: str | Annotated[list[TokenId], Field(max_length=Limits.prompt_tokens)]
    max_tokens: int = Field(default=16, ge=0)
    logprobs: int | None = Field(default=None, ge=0, le=MOST_LOGPROBS)


class ConversationIn(Strict):
    id: str


class ResponseRequest(Drawn):
    input: str | Annotated[list[MessageIn], Field(max_length=MOST_MESSAGES)]
    instructions: str | None = None
    previous_response_id: str | None = None
    conversation: str | ConversationIn | None = None
    max_output_tokens: int | None = Field(default=None, ge=1)
    include: list[Literal["reverie.session"]] = Field(default=[], max_length=1)

    @model_validator(mode="after")
    def _one_beginning(self) -> ResponseRequest:
        if self.include and not self.stream:
            raise ValueError("include is for streams: GET /v1/responses/ID/session tells of others")
        if self.previous_response_id is not None and self.conversation is not None:
            raise ValueError("previous_response_id and conversation exclude each other")
        return self

    @property
    def conversation_id(self) -> str | None:
        return self.conversation.id if isinstance(self.conversation, ConversationIn) else self.conversation

    def messages(self) -> list[Message]:
        instructions = [Message("system", self.instructions)] if self.instructions else []
        if isinstance(self.input, str):
            return [*instructions, Message("user", self.input)]
        return [*instructions, *(item.message() for item in self.input)]


class ConversationRequest(Strict):
    metadata: Metadata = {}


class MemoryRequest(Strict):
    """A new memory: of a text, or of another memory or response as it is."""

    name: str
    text: str | None = None
    source: str | None = Field(default=None, description="the name of a memory, or the id of a response")

    @model_validator(mode="after")
    def _one_source(self) -> MemoryRequest:
        if (self.text is None) == (self.source is None):
            raise ValueError("give either a text or a source")
        return self


class QuestionRequest(Strict):
    question: str
    max_tokens: int | None = Field(default=None, ge=1)
    against_empty: bool = False
