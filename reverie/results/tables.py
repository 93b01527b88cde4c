"""Result cards as tables for the terminal; accuracies in percent."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal, TypeVar

from rich import box
from rich.table import Table
from rich.text import Text

from reverie.results.card import METRIC_NAMES, ComparisonCard, Result, RunCard, depth_name, headline_chance
from reverie.results.passes.card import PassesCard
from reverie.results.settings import short_names

Verdict = Literal["chance", "failing", "solved"]

SOLVED = 0.95
NEAR_CHANCE = 0.03

_MAX_DEPTHS = 5  # with more columns, 80 characters are not enough
_MAX_POINTS = 12
_MAX_NUMBERS = 8
_STYLES: dict[Verdict, str] = {"chance": "dim", "failing": "", "solved": "bold"}
_Item = TypeVar("_Item")


def verdict(accuracy: float, chance: float) -> Verdict:
    """The verdict "solved" from 95 % on, "chance" up to 3 points above chance, and "failing" between the two."""
    if accuracy >= SOLVED:
        return "solved"
    return "chance" if accuracy <= chance + NEAR_CHANCE else "failing"


def result_verdict(result: Result) -> Verdict:
    """The verdict on the accuracy of a comparison's row, which is solved only if every depth is."""
    judged = verdict(result.accuracy, result.chance)
    unsolved = any(part.mean < SOLVED for part in result.by_depth.values())
    return "failing" if judged == "solved" and unsolved else judged


def comparison_table(card: ComparisonCard) -> Table:
    """One row for each model, number of sleep passes and settings, means over seeds; the last row is chance."""
    settings = short_names(dict.fromkeys(key for result in card.results for key in result.settings))
    columns = {name: [result.settings.get(key, "") for result in card.results] for key, name in settings.items()}
    if not card.one_model:
        columns = {
            "model": [str(result.model) for result in card.results],
            "N": [*map(_passes, card.results)],
            **columns,
        }
    # Model and N take as much room as five depths leave them.
    spare = _MAX_DEPTHS * 4 + 14 - sum(max(map(len, [name, *cells])) + 1 for name, cells in columns.items())
    depths = _evenly(card.depths, min(_MAX_DEPTHS, max(spare // 4, 2)))
    counts = sorted({len(result.seeds) for result in card.results})
    over = f"mean ± standard deviation over {', '.join(map(str, counts))} seeds"
    if counts == [1]:
        over = f"seed {', '.join(map(str, card.seeds))}"
    caption = f"{METRIC_NAMES[card.metric]} in %, {over}; {_depth_note(card, depths)}"
    table = new_table(f"{card.name}, {card.one_model}" if card.one_model else card.name, caption)
    for name in columns:
        _add_columns(table, **{"right" if name == "N" else "left": (name,)})
    _add_columns(table, left=("accuracy",), right=depths)
    _add_columns(table, left=("verdict",), right=("tokens", "time"))
    for row, result in enumerate(card.results):
        judged = result_verdict(result)
        spread = f" ± {percent(result.accuracy_std)}" if len(result.seeds) > 1 else ""
        table.add_row(
            *(cells[row] for cells in columns.values()),
            Text(f"{percent(result.accuracy):>5}{spread}", _STYLES[judged]),
            *(_cell(result.by_depth[depth].mean, card.chance.by_depth[depth]) for depth in depths),
            Text(judged, _STYLES[judged]),
            _count(result.tokens_per_run),
            _duration(result.wall_time_s_per_run),
        )
    chances = [percent(card.chance.by_depth[depth], 0) for depth in depths]
    table.add_section()
    table.add_row("chance", *[""] * (len(columns) - 1), f"{percent(card.results[0].chance):>5}", *chances, style="dim")
    return table


def _passes(result: Result) -> str:
    return "" if result.model == "transformer" else str(result.num_sleep_passes)


def run_table(card: RunCard) -> Table:
    """A run's learning curve, thinned to 12 points, its final score, and chance."""
    depths = _evenly(card.depths, _MAX_DEPTHS)
    table = new_table(
        f"{card.name}: {card.label}",
        f"seed {card.seed}, {_count(card.parameters)} parameters; accuracy and exact accuracy in %; "
        f"{_depth_note(card, depths)}",
        right=("step", "tokens", "time", "loss", "accuracy", "exact", *depths),
    )

    def add(step: str, tokens: int, seconds: float, loss: str, score: dict[str, Any], style: str | None = None) -> None:
        accuracies = [percent(score[f"{metric}_accuracy"]) for metric in ("question", "exact")]
        cells = [_cell(score["by_depth"][depth]["accuracy"], card.chance.by_depth[depth]) for depth in depths]
        table.add_row(step, _count(tokens), _duration(seconds), loss, *accuracies, *cells, style=style)

    for point in _evenly(card.curve, _MAX_POINTS):
        add(str(point.step), point.tokens, point.wall_time_s, f"{point.train_loss:.3f}", point.score)
    table.add_section()
    add("final", card.tokens, card.wall_time_s, "", card.score)
    chances = [percent(headline_chance(card.chance, card.depths, metric)) for metric in ("question", "exact")]
    chances += [percent(card.chance.by_depth[depth], 0) for depth in depths]
    table.add_row("chance", "", "", "", *chances, style="dim")
    return table


def kinds_table(card: RunCard) -> Table:
    """What a model that reads pages answers in the end, by kind of question; the card's score has `by_kind`."""
    columns = {
        "right": "right",
        "and ends": "ended",
        "empty memory": "right_when_empty",
        **({"another page between": "right_later"} if "accuracy_later" in card.score else {}),
    }
    plain = card.score.get("plain_text_loss")
    note = "in % of the questions: all of the answer's words right, and its end too"
    if plain:
        note += f"; plain text: loss {plain['adapted']:.3f}, untouched {plain['untouched']:.3f}"
    table = new_table(f"{card.name}: answers", note, right=("questions", *columns), left=("kind",))
    for kind, counts in card.score["by_kind"].items():
        table.add_row(kind, str(counts["questions"]), *(percent(counts[key]) for key in columns.values()))
    return table


def depth_table(card: RunCard) -> Table:
    """A run's final accuracy at every depth, with a 95 % interval for the questions asked, beside chance."""
    table = new_table(
        f"{card.name}: {card.label}",
        f"seed {card.seed}; questions all of whose tokens are right, in %, with a 95 % interval (Wilson, as if "
        "each had a text of its own); chance is the accuracy of guessing without the text",
        right=(depth_name(card.recipe), "accuracy", "interval", "chance", "questions"),
    )
    for depth in card.depths:
        part, chance = card.score["by_depth"][depth], card.chance.by_depth[depth]
        low, high = wilson_interval(part["accuracy"], part["questions"])
        accuracy = _cell(part["accuracy"], chance, decimals=1)
        table.add_row(depth, accuracy, f"{percent(low)} to {percent(high)}", percent(chance), str(part["questions"]))
    return table


def passes_tables(card: PassesCard) -> list[Table]:
    """Accuracy at every N by regime; and if the card has tolerances, what adaptive sleep reaches, spends and saves."""
    return [_numbers_table(card), _adaptive_table(card)] if card.tolerances else [_numbers_table(card)]


def _numbers_table(card: PassesCard) -> Table:
    """One row for each regime, and one for its lowest and highest seed; the last row is chance."""
    shown = _evenly(range(len(card.num_sleep_passes)), _MAX_NUMBERS)
    notes = "".join(
        f"; {run.label}, seed {run.seed}: step {run.training.steps} of {run.planned_steps}"
        for run in card.runs
        if run.training.steps < run.planned_steps
    )
    first, *others = (str(card.num_sleep_passes[i]) for i in shown)
    table = new_table(
        f"{card.name}: sleeping N passes",
        f"{METRIC_NAMES[card.metric]} in %, {card.examples} held-out examples, the same for all{notes}",
    )
    table.add_column("trained with")
    _add_columns(table, right=(f"N = {first}", *others))
    for regime in card.regimes:
        accuracies = [regime.fixed[i].accuracy for i in shown]
        seeds = f"seed {regime.seeds[0]}" if len(regime.seeds) == 1 else f"{len(regime.seeds)} seeds"
        cells = [_cell(part.mean, card.metric_chance, decimals=1) for part in accuracies]
        table.add_row(f"{regime.label}, {seeds}", *cells)
        if len(regime.seeds) > 1:
            table.add_row("  lowest seed", *(percent(part.low) for part in accuracies), style="dim")
            table.add_row("  highest seed", *(percent(part.high) for part in accuracies), style="dim")
    table.add_section()
    table.add_row("chance", *[percent(card.metric_chance)] * len(shown), style="dim")
    return table


def _adaptive_table(card: PassesCard) -> Table:
    """One row for each regime and tolerance: means over seeds."""
    most = card.num_sleep_passes[-1]
    starred = any(not all(result.reached) for regime in card.regimes for result in regime.adaptive)
    table = new_table(
        f"adaptive sleep, at most {most} passes",
        f"{METRIC_NAMES[card.metric]} in %; passes: spent on a window, on average; saved: of {most} passes; equal N: "
        "the fewest passes, the same for every window, that are as accurate; gain: that less the passes spent"
        + ("; * in a seed no N is as accurate, and its best one counts" if starred else ""),
    )
    table.add_column("trained with")
    _add_columns(table, right=("tolerance", "accuracy", f"at N = {most}", "passes", "saved", "equal N", "gain"))
    for regime in card.regimes:
        for i, result in enumerate(regime.adaptive):
            table.add_row(
                "" if i else regime.label,
                f"{result.tolerance:g}",
                percent(result.accuracy.mean),
                percent(regime.fixed[-1].accuracy.mean),
                f"{result.passes.mean:.2f}",
                f"{percent(result.share_saved.mean, 0)} %",
                f"{result.equal_passes.mean:.2f}" + ("" if all(result.reached) else "*"),
                f"{result.saved.mean:+.2f}",
            )
        table.add_section()
    return table


def wilson_interval(share: float, number: int, z: float = 1.96) -> tuple[float, float]:
    """The confidence interval (Wilson 1927) of a share of `number` independent questions, 95 % by default."""
    if number < 1:
        raise ValueError(f"an interval needs one question or more, got {number}")
    centre = (share + z * z / (2 * number)) / (1 + z * z / number)
    half = z / (1 + z * z / number) * ((share * (1 - share) / number + (z / (2 * number)) ** 2) ** 0.5)
    return max(centre - half, 0.0), min(centre + half, 1.0)


def new_table(
    title: str | None = None, caption: str | None = None, *, left: Iterable[str] = (), right: Iterable[str] = ()
) -> Table:
    """A table without rows; columns of words stand left, and after them columns of numbers right."""
    table = Table(
        title=title, caption=caption, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False,
        title_justify="left", caption_justify="left", title_style="bold", caption_style="dim",
    )  # fmt: skip
    _add_columns(table, left, right)
    return table


def _add_columns(table: Table, left: Iterable[str] = (), right: Iterable[str] = ()) -> None:
    for name in left:
        table.add_column(name, no_wrap=True)
    for name in right:
        table.add_column(name, justify="right", no_wrap=True)


def _evenly(items: Sequence[_Item], most: int) -> list[_Item]:
    """`most` of the items at even distances, or all if there are fewer; the first and the last are among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def _depth_note(card: ComparisonCard | RunCard, shown: Sequence[str]) -> str:
    some = f" ({len(shown)} of {len(card.depths)} shown)" if len(shown) < len(card.depths) else ""
    to = f" to {shown[-1]}{some}" if len(shown) > 1 else ""
    return f"per question by {depth_name(card.recipe)}: {shown[0]}{to}"


def _cell(accuracy: float, chance: float, decimals: int = 0) -> Text:
    return Text(percent(accuracy, decimals), _STYLES[verdict(accuracy, chance)])


def percent(share: float, decimals: int = 1) -> str:
    """A share in percent, without the sign."""
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
