"""What fields of cards may hold: shares, counts, seconds, and the summary of a score."""

from typing import Annotated, Any, NotRequired

from pydantic import ConfigDict, Field, GetPydanticSchema
from typing_extensions import TypedDict

from reverie.sleep import MOST_PASSES

Share = Annotated[float, Field(ge=0, le=1)]  # NaN is none
Count = Annotated[int, Field(ge=0, lt=2**53)]
Seconds = Annotated[float, Field(ge=0, lt=2**53)]
Passes = Annotated[int, Field(ge=1, le=MOST_PASSES)]
Spent = Annotated[float, Field(ge=-MOST_PASSES, le=MOST_PASSES)]  # passes in the mean, shares, and differences of both
Tolerance = Annotated[float, Field(ge=0, lt=2**53)]
Depth = Annotated[str, Field(pattern=r"^-?[0-9]{1,9}$")]  # a key of JSON is a string


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
