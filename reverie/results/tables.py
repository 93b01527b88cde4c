"""Result cards as tables for the terminal; accuracies in percent."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, TypeVar

from rich import box
from rich.table import Table
from rich.text import Text

from reverie.results.card import METRIC_NAMES, Chance, ComparisonCard, Result, RunCard
from reverie.results.passes.card import AdaptiveResult, PassesCard, Regime

Verdict = Literal["chance", "failing", "solved"]

SOLVED = 0.95
NEAR_CHANCE = 0.03

_MAX_DEPTHS = 5  # with more columns, 80 characters are not enough
_MAX_POINTS = 12
_MAX_NUMBERS = 8
_STYLES: dict[Verdict, str] = {"chance": "dim", "failing": "", "solved": "bold"}
_Item = TypeVar("_Item")


def verdict(accuracy: float, chance: float) -> Verdict:
    """ "solved" from 95 % on; "chance" if no more than 3 points above chance; "failing" between the two."""
    if accuracy >= SOLVED:
        return "solved"
    return "chance" if accuracy <= chance + NEAR_CHANCE else "failing"


def result_verdict(result: Result) -> Verdict:
    """The verdict on the accuracy of a comparison's row, which is solved only if every depth is."""
    judged = verdict(result.accuracy, result.chance)
    unsolved = any(part.mean < SOLVED for part in result.by_depth.values())
    return "failing" if judged == "solved" and unsolved else judged


def comparison_table(card: ComparisonCard) -> Table:
    """One row for each model and number of sleep passes, means over seeds; the last row is chance."""
    depths = _evenly(card.depths, _MAX_DEPTHS)
    seeds = sorted({len(result.seeds) for result in card.results})
    over = f"mean ± standard deviation over {_join(seeds)} seeds" if seeds[-1] > 1 else f"seed {_join(card.seeds)}"
    table = _table(
        card.name, f"{METRIC_NAMES[card.metric]} in %, {over}; {_depth_note(card.depth_name, depths, card.depths)}"
    )
    _columns(table, left=("model",), right=("N",))
    _columns(table, left=("accuracy",), right=depths)
    _columns(table, left=("verdict",), right=("tokens", "time"))
    for result in card.results:
        judged = result_verdict(result)
        table.add_row(
            result.model,
            "" if result.model == "transformer" else str(result.num_sleep_passes),
            Text(_mean_and_std(result), _STYLES[judged]),
            *(_depth_cell(result.by_depth[depth].mean, card.chance, depth) for depth in depths),
            Text(judged, _STYLES[judged]),
            _count(result.tokens_per_run),
            _duration(result.wall_time_s_per_run),
        )
    chances = [_percent(card.chance.by_depth[depth], 0) for depth in depths]
    table.add_section()
    table.add_row("chance", "", f"{_percent(card.results[0].chance):>5}", *chances, style="dim")
    return table


def run_table(card: RunCard) -> Table:
    """A run's learning curve, thinned to 12 points, its final score, and chance."""
    depths = _evenly(card.depths, _MAX_DEPTHS)
    note = _depth_note(card.depth_name, depths, card.depths)
    table = _table(
        f"{card.name}: {card.label}",
        f"seed {card.seed}, {_count(card.parameters)} parameters; accuracy and exact accuracy in %; {note}",
    )
    _columns(table, left=(), right=("step", "tokens", "time", "loss", "accuracy", "exact", *depths))

    def add(step: str, tokens: int, seconds: float, loss: str, score: dict[str, Any], style: str | None = None) -> None:
        accuracies = [_percent(score[f"{metric}_accuracy"]) for metric in ("question", "exact")]
        cells = [_depth_cell(score["by_depth"][depth]["accuracy"], card.chance, depth) for depth in depths]
        table.add_row(step, _count(tokens), _duration(seconds), loss, *accuracies, *cells, style=style)

    for point in _evenly(card.curve, _MAX_POINTS):
        add(str(point.step), point.tokens, point.wall_time_s, f"{point.train_loss:.3f}", point.score)
    table.add_section()
    add("final", card.tokens, card.wall_time_s, "", card.score)
    by_depth = card.chance.by_depth
    question = sum(by_depth[depth] for depth in card.depths) / len(card.depths)
    chances = [_percent(question), _percent(card.chance.exact), *(_percent(by_depth[depth], 0) for depth in depths)]
    table.add_row("chance", "", "", "", *chances, style="dim")
    return table


def depth_table(card: RunCard) -> Table:
    """A run's final accuracy at every depth, with a 95 % interval for the questions asked, beside chance."""
    table = _table(
        f"{card.name}: {card.label}",
        f"seed {card.seed}; questions all of whose tokens are right, in %, with a 95 % interval (Wilson, as if "
        "each had a text of its own); chance is the accuracy of guessing without the text",
    )
    _columns(table, left=(), right=(card.depth_name, "accuracy", "interval", "chance", "questions"))
    for depth in card.depths:
        part, chance = card.score["by_depth"][depth], card.chance.by_depth[depth]
        low, high = wilson_interval(part["accuracy"], part["questions"])
        style = _STYLES[verdict(part["accuracy"], chance)]
        interval = f"{_percent(low)} to {_percent(high)}"
        table.add_row(
            depth, Text(_percent(part["accuracy"]), style), interval, _percent(chance), str(part["questions"])
        )
    return table


def passes_tables(card: PassesCard) -> list[Table]:
    """Accuracy at every N by regime; and if the card has tolerances, what adaptive sleep reaches, spends and saves."""
    return [_numbers_table(card), _adaptive_table(card)] if card.tolerances else [_numbers_table(card)]


def _numbers_table(card: PassesCard) -> Table:
    """One row for each regime, and one for its lowest and highest seed; the last row is chance."""
    shown = _evenly(range(len(card.num_sleep_passes)), _MAX_NUMBERS)
    unfinished = [run for run in card.runs if run.training.steps < run.planned_steps]
    notes = "".join(
        f"; {run.label}, seed {run.seed}: step {run.training.steps} of {run.planned_steps}" for run in unfinished
    )
    table = _table(
        f"{card.name}: sleeping N passes",
        f"{METRIC_NAMES[card.metric]} in %, {card.examples} held-out examples, the same for all{notes}",
    )
    table.add_column("trained with")
    _columns(
        table, left=(), right=(f"N = {card.num_sleep_passes[0]}", *(str(card.num_sleep_passes[i]) for i in shown[1:]))
    )
    for regime in card.regimes:
        accuracies = [regime.fixed[i].accuracy for i in shown]
        cells = [Text(_percent(part.mean), _STYLES[verdict(part.mean, card.metric_chance)]) for part in accuracies]
        table.add_row(f"{regime.label}, {_seeds(regime.seeds)}", *cells)
        if len(regime.seeds) > 1:
            table.add_row("  lowest seed", *(_percent(part.low) for part in accuracies), style="dim")
            table.add_row("  highest seed", *(_percent(part.high) for part in accuracies), style="dim")
    table.add_section()
    table.add_row("chance", *[_percent(card.metric_chance)] * len(shown), style="dim")
    return table


def _adaptive_table(card: PassesCard) -> Table:
    """One row for each regime and tolerance: means over seeds."""
    most = card.num_sleep_passes[-1]
    starred = any(not all(result.reached) for regime in card.regimes for result in regime.adaptive)
    table = _table(
        f"adaptive sleep, at most {most} passes",
        f"{METRIC_NAMES[card.metric]} in %; passes: spent on a window, on average; saved: of {most} passes; equal N: "
        "the fewest passes, the same for every window, that are as accurate; gain: that less the passes spent"
        + ("; * in a seed no N is as accurate, and its best one counts" if starred else ""),
    )
    table.add_column("trained with")
    right = ("tolerance", "accuracy", f"at N = {most}", "passes", "saved", "equal N", "gain")
    _columns(table, left=(), right=right)
    for regime in card.regimes:
        for i, result in enumerate(regime.adaptive):
            table.add_row(regime.label if i == 0 else "", *_adaptive_cells(regime, result))
        table.add_section()
    return table


def _adaptive_cells(regime: Regime, result: AdaptiveResult) -> list[str]:
    return [
        f"{result.tolerance:g}",
        _percent(result.accuracy.mean),
        _percent(regime.fixed[-1].accuracy.mean),
        f"{result.passes.mean:.2f}",
        f"{_percent(result.share_saved.mean, 0)} %",
        f"{result.equal_passes.mean:.2f}" + ("" if all(result.reached) else "*"),
        f"{result.saved.mean:+.2f}",
    ]


def wilson_interval(share: float, number: int, z: float = 1.96) -> tuple[float, float]:
    """Where a share measured on `number` independent questions may truly be (Wilson 1927), 95 % by default."""
    if number < 1:
        raise ValueError(f"an interval needs one question or more, got {number}")
    centre = (share + z * z / (2 * number)) / (1 + z * z / number)
    half = z / (1 + z * z / number) * ((share * (1 - share) / number + (z / (2 * number)) ** 2) ** 0.5)
    return max(centre - half, 0.0), min(centre + half, 1.0)


def _table(title: str, caption: str) -> Table:
    return Table(
        title=title, caption=caption, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False,
        title_justify="left", caption_justify="left", title_style="bold", caption_style="dim",
    )  # fmt: skip


def _columns(table: Table, left: Iterable[str], right: Iterable[str]) -> None:
    for name in left:
        table.add_column(name, no_wrap=True)
    for name in right:
        table.add_column(name, justify="right", no_wrap=True)


def _evenly(items: Sequence[_Item], most: int) -> list[_Item]:
    """At most `most` of the items, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def _depth_note(name: str, shown: Sequence[str], depths: Sequence[str]) -> str:
    some = f" ({len(shown)} of {len(depths)} shown)" if len(shown) < len(depths) else ""
    return f"per question by {name}: {shown[0]}" + (f" to {shown[-1]}{some}" if len(shown) > 1 else "")


def _depth_cell(accuracy: float, chance: Chance, depth: str) -> Text:
    return Text(_percent(accuracy, 0), _STYLES[verdict(accuracy, chance.by_depth[depth])])


def _mean_and_std(result: Result) -> str:
    mean = f"{_percent(result.accuracy):>5}"
    return mean if len(result.seeds) == 1 else f"{mean} ± {_percent(result.accuracy_std)}"


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed {seeds[0]}" if len(seeds) == 1 else f"{len(seeds)} seeds"


def _percent(share: float, decimals: int = 1) -> str:
    return f"{100 * share:.{decimals}f}"


def _count(number: int) -> str:
    """Three digits and a unit: 46.1M."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= 0.9995 * size:
            return f"{number / size:.3g}{unit}"
    return str(number)


def _duration(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


def _join(items: Iterable[object]) -> str:
    return ", ".join(map(str, items))
