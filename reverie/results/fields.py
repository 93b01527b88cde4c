"""Parts of cards, and what their fields may hold: shares, counts, seconds, and the summary of a score."""

from typing import Annotated, Any, NotRequired

from pydantic import BaseModel, ConfigDict, Field, GetPydanticSchema
from typing_extensions import TypedDict

from reverie.errors import plain
from reverie.sleep import MOST_PASSES

Share = Annotated[float, Field(ge=0, le=1)]  # NaN is none
Count = Annotated[int, Field(ge=0, lt=2**53)]
Seconds = Annotated[float, Field(ge=0, lt=2**53)]
Passes = Annotated[int, Field(ge=1, le=MOST_PASSES)]
Spent = Annotated[float, Field(ge=-MOST_PASSES, le=MOST_PASSES)]  # passes in the mean, shares, and differences of both
Tolerance = Annotated[float, Field(ge=0, lt=2**53)]
Depth = Annotated[str, Field(pattern=r"^-?[0-9]{1,9}$")]  # a key of JSON is a string


_LINE_WIDTH = 120
_UNSAID = ("kind", "recipe", "commit", "date", "wall_time_s")  # not in the one line that is printed of a card


class Part(BaseModel):
    """A frozen part of a card, which refuses unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def check(self) -> None:
        """Raises ValueError, for a card from a file, if its parts do not fit each other."""

    def __repr__(self) -> str:
        """One line with as many fields as fit: values, then of lists and dicts how many they hold."""
        said = [(name, x) for name, x in self if name not in _UNSAID and x is not None]
        values = {name: x for name, x in said if not isinstance(x, BaseModel)}
        parts = [f"{name}={_brief(x)}" for name, x in values.items() if not isinstance(x, list | dict)]
        parts += [f"{len(x)} {name}" for name, x in values.items() if isinstance(x, list | dict) and x]
        line = f"{type(self).__name__}("
        for part in parts:
            if len(line) + len(part) < _LINE_WIDTH - 5:
                line += f"{part}, "
        return f"{line.removesuffix(', ')})"

    __str__ = __repr__


def _brief(value: Any) -> str:
    shown = f"{value:.5g}" if isinstance(value, float) else plain(str(value))
    return shown if len(shown) <= 24 else f"{shown[:23]}…"


class _DepthSummary(TypedDict):
    accuracy: Share
    loss: float
    questions: Count


class _KindSummary(TypedDict):
    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]
    questions: Count
    right: Share
    ended: Share
    right_when_empty: Share
    right_later: Share


class _PlainTextLoss(TypedDict):
    untouched: float
    adapted: float


class _Summary(TypedDict):
    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]  # a richer score must not lose its run
    question_accuracy: Share
    exact_accuracy: Share
    by_depth: dict[Depth, _DepthSummary]
    by_kind: NotRequired[dict[str, _KindSummary]]
    plain_text_loss: NotRequired[_PlainTextLoss]


# A plain dict, as `Score.summary()` returns it, that is checked for what tables and figures read.
ScoreSummary = Annotated[dict[str, Any], GetPydanticSchema(lambda _source, handler: handler(_Summary))]
