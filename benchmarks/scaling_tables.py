"""Tables and figure of docs/SCALING.md, from the card alone."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from reverie.bench.tables import markdown_table


def tables(card: dict[str, Any]) -> dict[str, str]:
    """The tables of the document in Markdown, by name."""
    return {"checks": _checks(card["checks"]), "texts": _texts(card["paper"]["texts"])}


def _checks(rows: list[dict[str, Any]]) -> str:
    """One line a quantity: how many cases, one of them, and how far off the formula is."""
    body = []
    for quantity in dict.fromkeys(row["quantity"] for row in rows):
        cases = [row for row in rows if row["quantity"] == quantity]
        off = [100 * (row["predicted"] / row["measured"] - 1) for row in cases]
        shown = next((row for row in cases if row["case"].startswith("N = 3")), cases[0])
        numbers = [
            f"{shown[key]:,.0f}" if shown[key] > 10 else f"{shown[key]:.2f}" for key in ("predicted", "measured")
        ]
        body.append([quantity, str(len(cases)), shown["case"], *numbers, f"{min(off):+.1f} to {max(off):+.1f}"])
    return markdown_table(["quantity", "cases", "such as", "formula", "counted", "formula off, %"], body)


def _texts(texts: dict[str, dict[str, float]]) -> str:
    quantities = list(next(iter(texts.values())))
    return markdown_table(["a text", *texts], [[q, *(_short(text[q]) for text in texts.values())] for q in quantities])


def _short(value: float) -> str:
    """1.49e+09 as 1.49 G."""
    for size, unit in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:,.0f}"


def figure(card: dict[str, Any]) -> Figure:
    """Formula against count, and how far it is off, a colour for each quantity."""
    drawing = Figure(figsize=(10, 4.6), layout="constrained")
    both, off = drawing.subplots(1, 2, width_ratios=[1, 1.15])
    quantities = list(dict.fromkeys(row["quantity"] for row in card["checks"]))
    for i, quantity in enumerate(quantities):
        rows = [row for row in card["checks"] if row["quantity"] == quantity]
        predicted, counted = [row["predicted"] for row in rows], [row["measured"] for row in rows]
        style: dict[str, Any] = {"color": f"C{i % 10}", "linestyle": "none", "marker": "os^Dv"[i % 5], "alpha": 0.75}
        if counted[0] > 10:  # shares have no place among bytes
            both.plot(counted, predicted, markersize=5, **style)
        deviation = [100 * (p / m - 1) for p, m in zip(predicted, counted, strict=True)]
        off.plot(deviation, [-i] * len(rows), markersize=6, **style)
    ends = [1e4, 1e10]
    both.plot(ends, ends, color="#8c8c8c", linewidth=0.8, zorder=0)
    both.set(xscale="log", yscale="log", xlabel="counted", ylabel="formula")
    both.set_title("operations and bytes of a training step", fontsize=9, loc="left")
    off.set_yticks([-i for i in range(len(quantities))], quantities, fontsize=8)
    off.set_xlabel("formula off, %")
    reach = max(6.0, *(abs(x) for line in off.lines for x in line.get_xdata()))
    off.set_xlim(-1.1 * reach, 1.1 * reach)
    off.axvline(0, color="#8c8c8c", linewidth=0.8, zorder=0)
    for panel in (both, off):
        panel.spines[["top", "right"]].set_visible(False)
    return drawing
