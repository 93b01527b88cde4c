"""`SleepConfig`: what it refuses, and copies of it."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from reverie.errors import UserError
from reverie.sleep import SleepConfig


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"window_size": 0}, "window_size"),
        ({"num_sleep_passes": 0}, "num_sleep_passes"),
        ({"looped_blocks": (2, 2)}, "0 <= a < b, got \\[2, 2\\]"),
        ({"looped_blocks": (-1, 2)}, "0 <= a < b"),
        ({"eviction": "soft"}, "eviction"),
        ({"passes": 2}, "passes"),
    ],
)
def test_a_bad_configuration_is_an_error(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        SleepConfig.model_validate({"window_size": 4, **changes})


def test_a_copy_has_other_passes_or_another_tolerance() -> None:
    config = SleepConfig(window_size=4, num_sleep_passes=2, eviction="sliding", looped_blocks=(0, 1))
    assert config.with_() == config
    assert config.with_(num_sleep_passes=5) == config.model_copy(update={"num_sleep_passes": 5})
    both = config.with_(num_sleep_passes=5, tolerance=0.25)
    assert both == config.model_copy(update={"num_sleep_passes": 5, "tolerance": 0.25})
    assert both.with_(num_sleep_passes=3) == both.model_copy(update={"num_sleep_passes": 3})


def test_a_copy_out_of_range_is_an_error() -> None:
    config = SleepConfig(window_size=4)
    with pytest.raises(UserError, match=r"^the number of passes must be from 1 to 10,000, got 0$"):
        config.with_(num_sleep_passes=0)
    for tolerance in (0.0, -0.1, float("inf"), float("nan")):
        with pytest.raises(
            UserError, match=f"^the tolerance must be a number above 0, such as 0.05, got {tolerance:g}$"
        ):
            config.with_(tolerance=tolerance)
