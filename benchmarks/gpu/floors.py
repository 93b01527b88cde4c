"""A measured step beside what the machine could do at best: the roofline's floor, and the measured ceilings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from roofline import Ceilings, Roofline, roofline

from reverie.errors import UserError
from reverie.recipe import Recipe


def beside_floor(
    rows: Sequence[dict[str, Any]], recipe: Recipe, ceilings: Mapping[str, float] | None
) -> list[dict[str, Any]]:
    """Rows of one recipe; to those with `seconds_per_step` come shares, if the roofline knows the recipe's model."""
    if ceilings is None:
        return list(rows)
    try:
        found = roofline(recipe, Ceilings.measured(ceilings))
    except UserError:
        return list(rows)
    return [
        row | (_shares(row["seconds_per_step"], found, ceilings) if "seconds_per_step" in row else {}) for row in rows
    ]


def _shares(seconds: float, found: Roofline, ceilings: Mapping[str, float]) -> dict[str, Any]:
    operations, moved = found.operations.total + found.optimizer_operations, found.fewest_bytes.total
    return {
        "floor_s": found.floor_seconds,
        "predicted_s": found.fused_seconds,
        "floor_share": found.floor_seconds / seconds,
        "operations": operations,
        "fewest_bytes": moved,
        "matmul_share": operations / seconds / 1e12 / ceilings["bfloat16_tflops"],
        "copy_share": moved / seconds / 1e12 / ceilings["copy_tb_per_s"],
    }
