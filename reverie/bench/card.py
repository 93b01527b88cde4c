"""The card of a benchmark: the ratio that counts, its target, and the tables that it comes from."""

from __future__ import annotations

import operator
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from reverie.bench.machine import Peak
from reverie.results.card import Part
from reverie.results.provenance import Hardware

Cell = str | int | float | bool | None
Row = dict[str, Cell]
"""One row of a table, by column; the name of a column ends in its unit, as in "ours_ms"."""


def number(row: Row, column: str) -> float:
    """The number in a cell that holds one."""
    cell = row[column]
    assert isinstance(cell, int | float)
    return float(cell)


def at_most(what: str, ratio: float, target: float) -> Row:
    """A row of a table of targets."""
    return {"what": what, "ratio": ratio, "target_at_most": target, "verdict": "met" if ratio <= target else "not met"}


def _five_digits(ratio: float) -> float:
    return float(f"{ratio:.5g}")


class Details(Part):
    """Tables by title, and what else must be said. Cards of earlier have the panels of a figure too."""

    model_config = ConfigDict(extra="ignore")

    tables: dict[str, list[Row]]
    notes: list[str] = Field(default_factory=list)


class Findings(Part):
    """Results of a benchmark: the worst ratio over its sizes, and where it must lie."""

    name: str
    ratio: Annotated[float, AfterValidator(_five_digits)]  # as a file holds it: the verdict must not turn on reading
    target: float
    better: Literal["higher", "lower"]
    details: Details

    @property
    def reached(self) -> bool:
        return (operator.ge if self.better == "higher" else operator.le)(self.ratio, self.target)


class BenchmarkCard(Findings):
    """Findings, and where they come from. `peak` was measured in the same run."""

    kind: Literal["benchmark"] = "benchmark"
    met: bool
    peak: Peak
    versions: dict[str, str]
    hardware: Hardware
    commit: str
    date: str
    wall_time_s: float

    @model_validator(mode="after")
    def _verdict(self) -> BenchmarkCard:
        if self.met != self.reached:
            raise ValueError(f"met is {self.met}, but ratio {self.ratio:g} and target {self.target:g} say otherwise")
        return self

    def result(self) -> dict[str, Any]:
        """The object that `--json` prints: name, ratio, target, met, and everything else as details."""
        content = self.model_dump(mode="json")
        name, ratio, target, met = (content.pop(key) for key in ("name", "ratio", "target", "met"))
        return outcome(name, ratio, target, met, content.pop("details") | content)


def outcome(name: str, ratio: float, target: float, met: bool, details: dict[str, Any]) -> dict[str, Any]:
    """The object that every benchmark prints under `--json`, in this order."""
    return {"name": name, "ratio": ratio, "target": target, "met": met, "details": details}
