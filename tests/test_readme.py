"""What README.md and docs/ say is true of the tree: paths, recipes, and every quoted number."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest
from documents import DOCUMENTS, name_of
from typer.testing import CliRunner

from reverie.cli.app import app
from reverie.recipe import list_recipes
from reverie.results.card import ComparisonCard, RunCard, load_card, read_card
from reverie.results.passes.card import PassesCard
from reverie.results.plots import KINDS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@functools.cache
def answers_of_the_example() -> dict[str, Any]:
    return json.loads(CliRunner().invoke(app, ["ask", "--example", "--json"]).stdout)


def test_the_shipped_example_answers_as_documented() -> None:
    """From its memory, and not without; the file travels with the package, so it must be small."""
    found = answers_of_the_example()
    assert found["accuracy"] >= 7 / 8
    assert found["accuracy_of_empty_memory"] <= 0.5
    text = (ROOT / "docs" / "memory.md").read_text(encoding="utf-8")
    for answer in found["answers"]:
        mark = "✓" if answer["text"] == answer["right"] else "✗"
        assert re.search(rf"{re.escape(answer['question'])} +{answer['right']} +{answer['text']} {mark}", text)
    assert (ROOT / "reverie" / "example" / "model.safetensors").stat().st_size < 10**6
    score = load_card(ROOT / "reverie" / "example" / "card.json").score  # pyright: ignore[reportAttributeAccessIssue]
    assert [round(100 * part["accuracy"]) for part in score["by_depth"].values()] == [98, 91, 79, 84]
    assert "(98, 91, 79 and\n84 % for 1 to 4 operations" in text


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_linked_paths_exist(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", document.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (document.parent / target).exists(), target


def test_every_recipe_that_documents_name_exists() -> None:
    for document in DOCUMENTS:
        names = re.findall(
            r"`((?:rule110|depo|gsm_infinite|recall|notes|hops)/[a-z0-9-]+)`", document.read_text(encoding="utf-8")
        )
        assert set(names) <= set(list_recipes()), document


def shown(parts: list[Any]) -> list[str]:
    return [f"{100 * part.mean:.0f} ± {100 * part.std:.0f}" for part in parts]


def rows_of(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("| ")]


def test_every_quoted_result_is_in_its_card() -> None:
    """Rows of the tables in docs/, "| N = 2 (sleep) | 100 ± 0 | …", equal the card named above them."""
    compared = []
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        for path, table in re.findall(r"\[card\]\([./]+/(results/[^)]+)\)\n\n(\|.*?)\n\n", text, flags=re.DOTALL):
            if json.loads((ROOT / path).read_text(encoding="utf-8"))["kind"] != "comparison":
                continue  # the other kinds have tests of their own
            card = read_card(ROOT / path, {"comparison": ComparisonCard})
            rows = {result.label: shown([result.by_depth[depth] for depth in card.depths]) for result in card.results}
            for name, *cells in rows_of(table)[1:]:
                assert cells == rows[name], (document, name)
                compared.append((name_of(document), path))
    for name in ("depo", "rule110", "gsm_infinite"):
        assert compared.count(("docs/results.md", f"results/{name}/nano.json")) == 4


def test_the_throughput_by_passes_is_in_its_card() -> None:
    """docs/reproduce/figure-6.md"""
    text = (ROOT / "docs" / "reproduce" / "figure-6.md").read_text(encoding="utf-8")
    details = json.loads((ROOT / "results" / "performance" / "sleep.json").read_text(encoding="utf-8"))["details"]
    speeds: dict[str, list[str]] = {}
    for row in details["tables"]["forward and backward"]:
        speeds.setdefault(row["recipe"], []).append(f"{row['tokens_per_s']:,.0f}")
    rows = {name: cells for name, *cells in rows_of(text)}
    for recipe in ("rule110/base", "depo/nano"):
        assert rows[recipe] == speeds[recipe]


def test_the_summary_is_in_its_cards() -> None:
    """README.md: the deepest questions of each task, for N = 1, for the best N, and for the transformer."""
    rows = {path: cells for first, *cells in rows_of(README) for path in re.findall(r"\((results/[^)]+)\)", first)}
    for path in ("depo/nano", "rule110/nano", "gsm_infinite/nano"):
        card = read_card(ROOT / f"results/{path}.json", {"comparison": ComparisonCard})
        by_model = {result.label: result.by_depth[card.depths[-1]] for result in card.results}
        best = max(card.results, key=lambda result: result.by_depth[card.depths[-1]].mean)
        usual, most, transformer = shown([by_model["N = 1 (hybrid)"], by_model[best.label], by_model["transformer"]])
        assert rows.pop(f"results/{path}.json") == [usual, f"{most} (N = {best.num_sleep_passes})", transformer]

    scores = json.loads((ROOT / "results/recall/smollm2.json").read_text(encoding="utf-8"))["scores"]
    share = {name: [one["question_accuracy"] for one in each] for name, each in scores.items()}
    percent = {name: f"{100 * mean(each):.0f} ± {100 * stdev(each):.0f}" for name, each in share.items()}
    best = max((f"trained, asleep, N = {N}" for N in (1, 2, 4)), key=lambda name: mean(share[name]))
    expected = [
        percent["trained, asleep, N = 1"],
        f"{percent[best]} ({best[-5:]})",
        percent["before training, cleared"],
    ]
    assert rows.pop("results/recall/smollm2.json") == expected
    assert f"in its cache that has {100 * mean(share['before training, nothing cleared']):.0f} %" in README

    cards = [read_card(ROOT / f"results/hops/smollm2-n{N}.json", {"run": RunCard}) for N in (1, 4)]
    one, most = (100 * card.score["by_depth"][card.depths[-1]]["accuracy"] for card in cards)
    assert rows.pop("results/hops/smollm2-n4.json") == [f"{one:.0f}", f"{most:.0f} (N = 4)", "–"]

    [passes], [sides] = (remembered()["scores"][name] for name in ("passes", "sides"))
    one, two = (f"{100 * passes[N]['right']:.0f}" for N in "12")
    known = [one for kind, one in sides["page in context"].items() if "by hand" not in kind and "unknown" not in kind]
    in_context = sum(kind["right"] * kind["questions"] for kind in known) / sum(kind["questions"] for kind in known)
    assert rows.pop("results/notes/remembered.json") == [one, f"{two} (N = 2)", f"{100 * in_context:.0f}"]
    assert not rows


def remembered() -> dict[str, Any]:
    """The adapter that ships, beside its controls."""
    return json.loads((ROOT / "results/notes/remembered.json").read_text(encoding="utf-8"))


def test_the_card_of_the_adapter_says_what_its_run_says() -> None:
    """reverie/pretrained/smollm2-notes/README.md."""
    text = (ROOT / "reverie/pretrained/smollm2-notes/README.md").read_text(encoding="utf-8")
    score = json.loads((ROOT / "results/notes/smollm2-longer.json").read_text(encoding="utf-8"))["score"]
    kinds = score["by_kind"]
    shown = [f"{kind} {100 * kinds[kind]['right']:.0f} %" for kind in ("names", "wordings", "kinds", "numbers")]
    assert ", ".join(shown) in text
    assert "From an empty memory 0 %" in text
    assert not any(one["right_when_empty"] for name, one in kinds.items() if not name.startswith("unknown"))
    assert all(f"{loss:.3f}" in text for loss in score["plain_text_loss"].values())
    unknown = [one for name, one in kinds.items() if name.startswith("unknown")]
    false = 1 - sum(one["right"] * one["questions"] for one in unknown) / sum(one["questions"] for one in unknown)
    assert f"answered all the same in {100 * false:.0f} %" in text
    [sides] = remembered()["scores"]["sides"]
    right = sum(25 * sides["memory"][f"by hand: {name}"]["right"] for name in ("diary", "flat"))
    assert f"{right:.0f} of 50 questions from memory" in text


def test_the_picture_of_the_terminal_is_of_the_example_that_ships() -> None:
    """docs/terminal.svg has the answers of `reverie ask --example`."""
    words = re.sub(r"<[^>]+>", " ", (ROOT / "docs" / "terminal.svg").read_text(encoding="utf-8").replace("&#160;", " "))
    picture = " ".join(words.split())
    found = answers_of_the_example()
    for answer in found["answers"]:
        mark = "✓" if answer["text"] == answer["right"] else "✗"
        assert f"{answer['question']} {answer['right']} {answer['text']} {mark}" in picture
    assert f"right {100 * found['accuracy']:.0f} % {100 * found['accuracy_of_empty_memory']:.0f} %" in picture


def test_the_first_page_stays_short() -> None:
    assert len(README.splitlines()) <= 120


def test_the_tables_over_passes_are_in_their_card() -> None:
    """docs/memory.md: accuracy over N, then what adaptive sleep spends and saves; means over seeds."""
    text = (ROOT / "docs" / "memory.md").read_text(encoding="utf-8")
    card = read_card(ROOT / "results/depo/any-n.json", {"passes": PassesCard})
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    for regime in card.regimes:
        assert [regime.label, *(f"{100 * point.accuracy.mean:.1f}" for point in regime.fixed)] in rows
        for point in regime.adaptive:
            numbers = [f"{point.tolerance:g}", f"{100 * point.accuracy.mean:.1f}", f"{point.passes.mean:.2f}"]
            numbers += [f"{100 * point.share_saved.mean:.0f}", f"{point.equal_passes.mean:.2f}"]
            assert [regime.label, *numbers] in rows


@pytest.mark.parametrize("name", ["smollm2-longer", "smollm2", "smollm2-1800", "smollm2-n2-kinds"])
def test_the_table_of_an_adapter_is_in_its_card(name: str) -> None:
    """docs/pretrained.md: right answers by kind of question, in %, and the loss on plain text."""
    text = (ROOT / "docs" / "pretrained.md").read_text(encoding="utf-8")
    score = json.loads((ROOT / f"results/notes/{name}.json").read_text(encoding="utf-8"))["score"]
    table = text.partition(f"[card](../results/notes/{name}.json)")[2].partition("[card]")[0]
    text = table + text[text.index("Plain text") :]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    for question, kind in score["by_kind"].items():
        shown = [f"{100 * kind[key]:.0f}" for key in ("right", "ended", "right_when_empty", "right_later")]
        assert [question, *shown] in rows
    assert all(f"{loss:.3f}" in text for loss in score["plain_text_loss"].values())


def test_every_card_of_runs_has_its_figure() -> None:
    contents = {card: json.loads(card.read_text(encoding="utf-8")) for card in (ROOT / "results").rglob("*.json")}
    of_runs = [card for card, content in contents.items() if content["kind"] in KINDS]
    assert of_runs
    assert all(card.with_suffix(".png").is_file() for card in of_runs)


def test_the_card_of_the_example_says_what_its_run_says() -> None:
    """reverie/example/README.md."""
    text = (ROOT / "reverie/example/README.md").read_text(encoding="utf-8")
    card = json.loads((ROOT / "reverie/example/card.json").read_text(encoding="utf-8"))
    for shares in (
        {depth: one["accuracy"] for depth, one in card["score"]["by_depth"].items()},
        card["chance"]["by_depth"],
    ):
        *most, last = (f"{100 * share:.0f}" for _, share in sorted(shares.items()))
        assert f"{', '.join(most)} and {last} %" in text
    for number in (card["parameters"], card["steps"]):
        assert f"{number:,}" in text
    assert f"{card['tokens'] / 1e6:.1f}M tokens" in text
    assert f"{card['wall_time_s'] / 60:.0f} minutes" in text
