"""What a session leaves for people: cards, curves, figures, the card of speeds, and a summary in plain text."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import figures
from plan import Group, LoadedPlan
from record import Log, Record
from roofline import Ceilings, Roofline, roofline
from training import card_so_far, finished

from reverie.errors import UserError
from reverie.files import write_atomic
from reverie.recipe import Recipe
from reverie.results.card import RunCard, compare_runs, save_card
from reverie.results.plots import figure, save_figure

RESULTS = "results"
SO_FAR = ".so-far"


def write(loaded: LoadedPlan, state: Path, record: Record, log: Log) -> None:
    """Everything that can be said from what is in the state folder now, into its folder `results`."""
    folder = state / RESULTS
    for group in loaded.plan.groups:
        steps = record["groups"].get(group.name, {}).get("steps")
        cards = _cards(loaded, state, group, steps) if steps else {}
        for name, card in cards.items():
            _write_card(folder, name, card, record["runs"].get(name, {}).get("notes", []))
        for what, draw in (("comparison", _compare), ("figure", _draw)):
            try:
                draw(folder, loaded.plan.name, group, cards)
            except UserError as error:
                log.say(f"{group.name}: no {what}: {error}")
    speeds = speed_card(loaded, record)
    if speeds["groups"]:
        write_atomic(folder / "speed.json", (json.dumps(speeds, indent=1) + "\n").encode())
        save_figure(figures.speeds(speeds), folder / "speed.png")
    text = summary(record, speeds)
    write_atomic(folder / "summary.txt", text.encode())
    log.say(text)


def speed_card(loaded: LoadedPlan, record: Record) -> dict[str, Any]:
    """Ways, variants and profiles beside the machine's ceilings; of ways that are wrong the reason, and no time."""
    variants = {group.name: loaded.variants(group) for group in loaded.plan.groups}
    ceilings = record.get("ceilings")

    groups: dict[str, dict[str, Any]] = {}
    for ways in record.get("ways", {}).values():
        first = next(iter(variants[ways["group"]].values()))
        rows = beside_floor(ways["rows"], first, ceilings)
        groups[ways["group"]] = {"group": ways["group"], "ways": rows, **ways.get("profile", {}), "variants": []}
    for name, group in record["groups"].items():
        if speeds := group.get("speeds"):
            known = groups.setdefault(name, {"group": name, "ways": []})
            known["variants"] = [
                {"variant": key} | row
                for key, speed in speeds.items()
                for row in beside_floor([speed], variants[name][key], ceilings)
            ]
    return {
        "kind": "gpu-speed",
        "name": record["plan"],
        "date": record["calls"][-1]["date"],
        "machine": record.get("machine"),
        "ceilings": record.get("ceilings"),
        "kernels": [
            {key: found.get(key) for key in ("backend", "passed", "why")} | {"cases": len(found["rows"])}
            for found in record.get("kernels", {}).values()
        ],
        "groups": list(groups.values()),
    }


def beside_floor(
    rows: Sequence[dict[str, Any]], recipe: Recipe, ceilings: Mapping[str, float] | None
) -> list[dict[str, Any]]:
    """Rows of one recipe beside what the machine could do at best: the roofline's floor, and the measured ceilings.

    To those with `seconds_per_step` come shares, if the roofline knows the recipe's model.
    """
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


def summary(record: Record, speeds: dict[str, Any]) -> str:
    """A screen or two: what ran how fast, and where every run is."""
    lines = [f"plan {record['plan']}, {len(record['calls'])} calls"]
    if "machine" in record:
        lines.append(machine_line(record["machine"]))
    if "ceilings" in record:
        lines.append(ceilings_line(record["ceilings"]))
    lines += [f"kernels {row['backend']}: {kernels_line(row)}" for row in record.get("kernels", {}).values()]
    for group in speeds["groups"]:
        lines += ["", f"{group['group']}: ways to compute a step"]
        lines += [_way_line(row) for row in group["ways"]]
        lines += [_way_line(row | {"name": f"{row['variant']}: {row['name']}"}) for row in group["variants"]]
        lines += [f"  {row['kind']:<22}{row['ms']:>9.3f} ms {row['share']:>6.1%}  {row['launches']} launches"
                  for row in group.get("profile", [])]  # fmt: skip
    lines += ["", "runs"]
    for name, run in record["runs"].items():
        done = run.get("step", 0) if run["state"] != "finished" else run.get("steps", "all")
        lines.append(f"  {name:<32}{run['state']:<12}{done} of {run.get('steps', '?')} steps  {run.get('way', '')}")
        lines += [f"      {note}" for note in run["notes"]]
    return "\n".join(lines) + "\n"


def machine_line(machine: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    what = machine["gpu"] or machine["cpu"]
    driver = f", driver {machine['driver']}" if machine.get("driver") else ""
    return f"{what}{driver}, Python {machine['python']}, {versions}"


def ceilings_line(ceilings: dict[str, float]) -> str:
    units = {"tflops": "TFLOP/s", "tb_per_s": "TB/s", "us": "µs"}
    parts = []
    for key, value in ceilings.items():
        name, unit = next((key.removesuffix(f"_{end}"), unit) for end, unit in units.items() if key.endswith(f"_{end}"))
        parts.append(f"{name.replace('_', ' ')} {value:.4g} {unit}")
    return ", ".join(parts)


def kernels_line(found: dict[str, Any]) -> str:
    if not found["passed"]:
        return f"left out: {found['why']}"
    worst = max(found["rows"], key=lambda row: row["error"])
    return (
        f"right in {len(found['rows'])} cases, off by {worst['error']:.1e} at most ({worst['case']}, {worst['worst']})"
    )


def _way_line(row: dict[str, Any]) -> str:
    if not row.get("seconds_per_step"):
        return f"  {row['name']:<44}" + ("right, not timed" if row.get("passed") else f"left out: {row.get('why')}")
    peak = f"{row['peak_gib']:7.1f} GiB" if row.get("peak_gib") else ""
    floor = f"{row['floor_share']:6.1%} of the floor" if row.get("floor_share") else ""
    step = f"{1e3 * row['seconds_per_step']:>10.3f} ms a step"
    return f"  {row['name']:<44}{step}{row['tokens_per_s']:>14,.0f} tokens/s{peak}  {floor}".rstrip()


def _cards(loaded: LoadedPlan, state: Path, group: Group, steps: int) -> dict[str, RunCard]:
    """By name of the run; of those that are going, what their curve has so far."""
    cards = {}
    for run in loaded.runs(group, steps):
        out = state / "runs" / run.name
        card = finished(run.recipe, out) or card_so_far(out)
        if card is not None:
            cards[run.name] = card
    return cards


def _write_card(folder: Path, name: str, card: RunCard, notes: list[str]) -> None:
    flat = name.replace("/", "-")
    unfinished = card.steps < card.recipe["train"]["steps"]
    (folder / "cards" / f"{flat}{SO_FAR}.json").unlink(missing_ok=True)
    save_card(card, folder / "cards" / f"{flat}{SO_FAR if unfinished else ''}.json")
    write_atomic(folder / "curves" / f"{flat}.csv", curve_csv(card).encode())
    if notes:
        write_atomic(folder / "cards" / f"{flat}.notes.txt", "".join(f"{note}\n" for note in notes).encode())


def curve_csv(card: RunCard) -> str:
    """A line for each point of the curve; accuracies by depth in the last columns."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = ["step", "tokens", "wall_time_s", "train_loss", "loss", "exact_accuracy", "question_accuracy"]
    writer.writerow([*columns, *(f"accuracy_{depth}" for depth in card.depths)])
    for point in card.curve:
        score = point.score
        by_depth = [score["by_depth"].get(depth, {}).get("accuracy") for depth in card.depths]
        numbers = [point.wall_time_s, point.train_loss, *(score.get(key) for key in columns[4:]), *by_depth]
        writer.writerow([point.step, point.tokens, *(None if x is None else f"{x:.6g}" for x in numbers)])
    return text.getvalue()


def _compare(folder: Path, plan: str, group: Group, cards: dict[str, RunCard]) -> None:
    """Only of runs that differ in model, passes and seed; reverie says which cannot be compared."""
    done = [card for card in cards.values() if card.steps == card.recipe["train"]["steps"]]
    if len(done) < 2:
        return
    comparison = compare_runs(f"{plan}/{group.name}", done[0].recipe["train"]["metric"], done)
    save_card(comparison, folder / f"{plan}-{group.name}.json")
    save_figure(figure(comparison), folder / f"{plan}-{group.name}.png")


def _draw(folder: Path, plan: str, group: Group, cards: dict[str, RunCard]) -> None:
    if cards:
        names = {name.removeprefix(f"{group.name}/"): card for name, card in cards.items()}
        save_figure(figures.figure_of(f"{plan}, {group.name}", names), folder / f"{plan}-{group.name}-curves.png")
