"""Whether the texts of a figure can be read: none lies on another, none is cut off."""

from __future__ import annotations

from itertools import combinations

from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox


def assert_texts_apart(figure: Figure) -> None:
    """As it is saved: words in a row have a gap between them; letters may be two pixels lower than their boxes."""
    figure.draw_without_rendering()
    hidden = {id(part) for axes in figure.axes for part in _beyond(axes)}
    texts = [text for text in figure.findobj(Text) if text.get_visible() and str(text.get_text()).strip()]  # type: ignore
    boxes = {text: _box(text) for text in texts if id(text) not in hidden}
    for text in boxes:
        whole = text.get_window_extent().padded(-2)
        assert all(figure.bbox.contains(*corner) for corner in whole.corners()), f"{text.get_text()!r} is cut off"
    for (one, box), (other, there) in combinations(boxes.items(), 2):
        assert not box.overlaps(there), f"{one.get_text()!r} lies on {other.get_text()!r}"


def _box(text: Text) -> Bbox:
    box, (x, y) = text.get_window_extent(), (2, -2)
    x, y = (y, x) if text.get_rotation() else (x, y)
    return Bbox.from_extents(box.x0 - x, box.y0 - y, box.x1 + x, box.y1 + y)


def _beyond(axes: Artist) -> list[Text]:
    """Labels of ticks beyond the ends of an axis, which are not drawn."""
    labels = list[Text]()
    for axis in (axes.xaxis, axes.yaxis):  # pyright: ignore
        low, high = sorted(axis.get_view_interval())
        slack = 1e-6 * (high - low)
        for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
            if not low - slack <= tick.get_loc() <= high + slack:
                labels += [tick.label1, tick.label2]
    return labels
