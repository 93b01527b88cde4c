"""The card of the throughput benchmark, and its tables and figure, made of the card alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import matplotlib
import torch
from machine import describe
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from throughput_counts import Ceilings, counts, sizes_of
from throughput_measure import DATA_SHEET, settings
from throughput_study import WAYS, Configuration, Study, Way

from reverie.errors import UserError
from reverie.files import write_atomic
from reverie.results.provenance import commit_id
from reverie.results.style import INK, STYLE, look_of

PAPER = 30_000  # tokens/s at N = 1 on one H200, as read off its Figure 6: the order of it
TARGET = 1.3 * PAPER
COLOURS: dict[Way, str] = {"parallel": "#8c8c8c", "sliding": "#3a76af", "hard": "#c2513b"}
LABELS: dict[Way, str] = {
    "parallel": "one forward, sliding window",
    "sliding": "window by window, the same function",
    "hard": "window by window, hard eviction",
}


class Card:
    """The rows of one study on one machine, in a file that is whole after each."""

    def __init__(self, path: Path, content: dict[str, Any], commit: str) -> None:
        self.path, self.content, self._commit = path, content, commit

    @classmethod
    def begin(cls, path: Path, study: Study, device: torch.device, attention: str) -> Card:
        """A new one, or one to go on with. Raises UserError where that is of something else."""
        sizes = sizes_of(study.model)
        jets = len(study.model.layers) - study.model.layers.count("attn")
        content = {
            "kind": "throughput",
            "study": {**study._asdict(), "model": study.model.model_dump(), "dtype": str(study.dtype)},
            "attention": attention,
            "machine": describe(device),
            "parameters": sizes.all,
            "jet_layers": jets,
            "ways": WAYS,
            "paper_tokens_per_s": PAPER,
            "target_tokens_per_s": TARGET,
        }
        content = json.loads(json.dumps(content))
        if not path.exists():
            return cls(path, {**content, "rows": {}}, commit_id())
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{path} is no card: give --out another name") from error
        for key in ("kind", "study", "attention", "machine"):
            if found.get(key) != content[key]:
                raise UserError(f"{path} is a card of another {key}: give --out another name")
        return cls(path, found, commit_id())

    @property
    def rows(self) -> dict[str, dict[str, Any]]:
        return self.content["rows"]

    @property
    def names(self) -> set[str]:
        return set(self.rows)

    def add(self, configuration: Configuration, row: Mapping[str, Any]) -> None:
        """In the place of one of the same name. The file is written."""
        self.rows[configuration.name] = {**configuration._asdict(), **row, "commit": self._commit}
        self.content["date"] = datetime.now(UTC).isoformat(timespec="seconds")
        write_atomic(self.path, (json.dumps(self.content, indent=1) + "\n").encode())


def table(card: Card) -> str:
    """In Markdown: what was measured, then what failed."""
    heads = ["", "texts at once", "made again", "tokens/s", "of 30k", "MFU", "of peak, all", "optimiser", "GiB"]
    lines = [heads, ["---"] + ["---:"] * (len(heads) - 1)]
    failed = []
    for name, row in card.rows.items():
        if "failed" in row:
            failed.append(f"* {name}: {row['failed']}")
            continue
        lines.append(
            [
                name,
                str(row["at_once"]),
                row["checkpoint"],
                f"{row['tokens_per_s']:,.0f}",
                f"{row['tokens_per_s'] / PAPER:.2f}",
                f"{row['mfu']:.1%}",
                f"{row['done_share_of_peak']:.1%}",
                f"{row['optimiser_share']:.1%}",
                "" if row["peak_gib"] is None else f"{row['peak_gib']:.0f}",
            ]
        )
    return "\n".join([*(f"| {' | '.join(line)} |" for line in lines), *failed])


def predictions(study: Study, at: Ceilings) -> str:
    """In Markdown: each configuration as it will be tried first, by its counts."""
    sizes = sizes_of(study.model)
    heads = ["", "texts at once", "made again", "10¹² operations", "again", "Muon", "GB", "tokens/s at the floor"]
    heads += ["predicted", "MFU", "optimiser", "GiB"]
    lines = [heads, ["---"] + ["---:"] * (len(heads) - 1)]
    memory = 139 * 2**30
    for configuration in study.configurations():
        tried = [(s, counts(study, configuration, *s)) for s in settings(study, configuration, at)]
        setting, count = next(((s, c) for s, c in tried if c.memory < memory), tried[-1])
        tokens, seconds = study.texts * study.text, count.seconds(at)
        lines.append(
            [
                configuration.name,
                str(setting.at_once),
                setting.checkpoint,
                f"{count.model / 1e12:,.0f}",
                f"{count.again / 1e12:,.0f}",
                f"{count.muon / 1e12:,.0f}",
                f"{(count.traffic + count.optimiser_traffic) / 1e9:,.0f}",
                f"{tokens / count.floor(at):,.0f}",
                f"{tokens / seconds:,.0f}",
                f"{count.model / seconds / DATA_SHEET:.1%}",
                f"{count.optimiser(at) / seconds:.1%}",
                f"{count.memory / 2**30:.0f}",
            ]
        )
    head = f"{sizes.all / 1e9:.2f}B parameters, {study.texts} texts of {study.text:,} tokens a step"
    return "\n".join([head, "", *(f"| {' | '.join(line)} |" for line in lines)])


def figure(card: Card) -> Figure:
    """Tokens/s over the window at N = 1, and over N."""
    with matplotlib.rc_context(STYLE):
        return _figure(card)


def _figure(card: Card) -> Figure:
    drawing = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = drawing.subplots(1, 2, sharey=True)
    rows = [row for row in card.rows.values() if "failed" not in row]
    _over_windows(left, rows, card.content)
    _over_passes(right, rows)
    for axes in (left, right):
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value / 1000:g}k")
    left.set_ylabel("tokens/s")
    return drawing


def _over_windows(axes: Axes, rows: list[dict[str, Any]], content: Mapping[str, Any]) -> None:
    windows = sorted({row["window"] for row in rows})
    for way, colour in COLOURS.items():
        points = sorted((row["window"], row["tokens_per_s"]) for row in rows if row["way"] == way)
        if points:
            axes.plot(
                [windows.index(window) for window, _ in points],
                [speed for _, speed in points],
                marker="o",
                color=colour,
                label=LABELS[way],
            )
    if content["machine"]["device"] == "cuda":  # where the paper's number says something
        axes.axhline(PAPER, linestyle="--", color=INK, linewidth=1, label="paper, about", zorder=1.9)
        axes.axhline(TARGET, linestyle=":", color=INK, linewidth=1, label="1.3 times that", zorder=1.9)
    axes.set_xticks(range(len(windows)), [f"{window:,}" for window in windows])
    axes.set_xlabel("window, tokens")
    axes.set_title(f"training on {content['study']['text']:,} tokens, N = 1")
    axes.legend(loc="lower left")


def _over_passes(axes: Axes, rows: list[dict[str, Any]]) -> None:
    asleep = [row for row in rows if row["way"] == "asleep"]
    passes = sorted({row["passes"] for row in asleep})
    for i, window in enumerate(sorted({row["window"] for row in asleep})):
        points = sorted((row["passes"], row["tokens_per_s"]) for row in asleep if row["window"] == window)
        colour, marker = look_of(2**i)
        axes.plot(*zip(*points, strict=True), color=colour, marker=marker, label=f"L = {window:,}")
        if points[0][0] == 1:
            axes.plot(passes, [points[0][1] / n for n in passes], ":", color=colour, linewidth=1)
    axes.set_xticks(passes)
    axes.set_xlabel("passes N, all blocks; dotted: 1/N")
    axes.set_title("asleep over every window but the last")
    if asleep:
        axes.legend()
