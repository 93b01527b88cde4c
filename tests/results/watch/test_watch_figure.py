"""The figure of made-up numbers: what is in it, and that long texts fit."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from fake_watch import watched
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from texts_apart import assert_texts_apart

from reverie.memory.history import Window
from reverie.results.watch.collect import Watch
from reverie.results.watch.figure import changes, draw, ends


def heat_maps(figure: Figure) -> list[QuadMesh]:
    return [mesh for axes in figure.axes for mesh in axes.collections if mesh.get_gid() == "changes"]  # pyright: ignore


def test_every_block_has_its_heat_map_and_all_have_one_scale() -> None:
    watch = watched(5, 3, [1, 4])
    maps = heat_maps(draw(watch))
    assert len(maps) == 2
    assert len({mesh.get_clim() for mesh in maps}) == 1
    for mesh, block in zip(maps, watch.fast_weight_blocks, strict=True):
        np.testing.assert_allclose(mesh.get_array().reshape(3, 5), changes(watch, block))  # pyright: ignore


def test_a_pass_that_was_not_slept_is_blank() -> None:
    watch = watched(4, 3, [1], adaptive=True)
    (mesh,) = heat_maps(draw(watch))
    blank = np.ma.getmaskarray(mesh.get_array()).reshape(3, 4)  # pyright: ignore
    assert blank.tolist() == [[False] * 4, [False] * 4, [False, True, False, True]]


def test_passes_have_a_strip_only_where_they_differ() -> None:
    def strips(watch: Watch) -> list[str]:
        return [axes.get_ylabel() for axes in draw(watch).axes if axes.patches]

    assert strips(watched(4, 3, [1])) == ["ms"]
    assert strips(watched(4, 3, [1], adaptive=True)) == ["ms", "passes"]


def test_ticks_stand_where_windows_end() -> None:
    watch = watched(3, 2, [1])
    bottom = draw(watch).axes[1]
    assert ends(watch) == [1000, 1008, 1016, 1024]
    assert [text.get_text() for text in bottom.get_xticklabels()] == ["1,000", "1,008", "1,016", "1,024"]


def test_answers_are_drawn_from_before_the_first_window_on() -> None:
    watch = watched(3, 2, [1], asked=True)
    axes = next(axes for axes in draw(watch).axes if "hops k" in axes.get_title("left"))
    lines = {line.get_label(): line for line in axes.lines}
    assert [*lines["2"].get_xdata()] == [0, 1, 2, 3]  # pyright: ignore
    assert [*lines["2"].get_ydata()] == watch.accuracy  # pyright: ignore
    chances = [line.get_ydata()[0] for line in axes.lines if line.get_gid() == "chance"]  # pyright: ignore
    assert chances == [0.25, 0.5]


@pytest.mark.parametrize(("windows", "passes", "blocks"), [(1, 1, [0]), (1024, 4, [1, 3]), (3, 2, [*range(40)])])
def test_any_text_fits(windows: int, passes: int, blocks: list[int]) -> None:
    figure = draw(watched(windows, passes, blocks))
    width, height = figure.get_size_inches()
    assert width <= 14
    assert height <= 18
    labels = [text for axes in figure.axes for text in axes.get_xticklabels() if text.get_text()]
    assert len(labels) <= 10


def test_no_change_at_all_is_drawn_too() -> None:
    watch = watched(2, 1, [0])
    still = [Window(w.start, w.tokens, w.passes, w.seconds, {1: {0: 0.0}}) for w in watch.windows]
    assert len(heat_maps(draw(watch.model_copy(update={"windows": still})))) == 1


def test_changes_of_nothing_leave_time_and_passes() -> None:
    watch = watched(2, 1, [])
    assert [axes.get_ylabel() for axes in draw(watch).axes] == ["ms"]


def test_a_name_is_no_formula() -> None:
    figure = draw(watched(2, 1, [0]).model_copy(update={"name": "US$5 \\frac{ and $6\x1b[2J"}))
    figure.savefig(BytesIO())
    assert figure.get_suptitle().startswith("US$5 \\frac{ and $6\ufffd[2J: ")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("windows", "passes", "blocks", "more"),
    [
        (3, 2, [1, 3], {}),
        (20, 4, [10, 11, 12, 13], {"adaptive": True, "asked": True}),
        (400, 3, [*range(5, 30, 2)], {"adaptive": True}),
        (5, 1, [1], {}),
        (12, 8, [*range(100, 130)], {"asked": True}),
        (1, 2, [*range(6)], {"adaptive": True, "asked": True}),
        (1024, 2, [7], {"asked": True}),
    ],
)
def test_texts_can_be_read(windows: int, passes: int, blocks: list[int], more: dict[str, bool]) -> None:
    """The title of a long text is longer than a line; ticks are as far from each other as their labels need."""
    assert_texts_apart(draw(watched(windows, passes, blocks, **more)))
