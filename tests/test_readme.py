"""What the README says is true of the tree: the quoted loop, paths, commands, recipes, and every quoted number."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from reverie.cli.app import app
from reverie.recipe import list_recipes, load_recipe
from reverie.results.card import ComparisonCard, load_card, read_card
from reverie.results.passes.card import PassesCard
from reverie.results.plots import KINDS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_quoted_sleep_loop_is_the_source() -> None:
    def words(code: str) -> str:
        """The code without indentation and empty lines, which a document need not keep."""
        return "\n".join(line.strip() for line in code.splitlines() if line.strip())

    loop = words(blocks("python")[0])
    assert "for n in range" in loop
    assert loop in words((ROOT / "reverie" / "sleep" / "algorithm.py").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_the_python_example_runs() -> None:
    subprocess.run([sys.executable, "-c", blocks("python")[1]], check=True, timeout=120)


@pytest.mark.slow
def test_the_walk_through_of_memories_runs(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "memory.md").read_text(encoding="utf-8")
    code = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)[0]
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, timeout=120, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout.splitlines() == ["['3', '5']", "[('gull-island', [32])]"]


def test_the_shipped_example_answers_as_documented() -> None:
    """From its memory, and not without; the file travels with the package, so it must be small."""
    done = CliRunner().invoke(app, ["ask", "--example", "--json"])
    found = json.loads(done.stdout)
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


@pytest.mark.parametrize("document", DOCS, ids=lambda path: path.name)
def test_linked_paths_exist(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", document.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (document.parent / target).exists(), target


def test_commands_exist() -> None:
    """Every `make` target and every `reverie` command line parses, and its recipe loads with its overrides."""
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    text = "\n".join(blocks("sh")) + (ROOT / "docs" / "LOG.md").read_text(encoding="utf-8")
    for target in re.findall(r"^make (\w+)", text, flags=re.MULTILINE):
        assert target in targets
    lines = [line.split("#")[0].split() for line in text.splitlines() if line.startswith("reverie ")]
    assert lines
    for _, *words in lines:
        command, arguments = split_command(words)
        result = CliRunner().invoke(app, [*command, "--help"])
        options = set(re.findall(r"--[a-z-]+", result.output))
        assert {a for a in arguments if a.startswith("--")} <= options, arguments
        if command in (["train"], ["compare"]):
            overrides = [arguments[i + 1] for i, a in enumerate(arguments) if a == "--set"]
            load_recipe(arguments[0], overrides)


def split_command(words: list[str]) -> tuple[list[str], list[str]]:
    """The words that name a command, be it of a sub-app, and its arguments."""
    group, length = get_command(app), 0
    while commands := getattr(group, "commands", None):
        assert words[length] in commands, words
        group, length = commands[words[length]], length + 1
    return words[:length], words[length:]


def test_every_recipe_that_documents_name_exists() -> None:
    for document in DOCS:
        names = re.findall(r"`((?:rule110|depo|gsm_infinite|recall)/[a-z0-9-]+)`", document.read_text(encoding="utf-8"))
        assert set(names) <= set(list_recipes()), document


def test_every_quoted_result_is_in_its_card() -> None:
    """Rows of the result tables, "| transformer / N = 2 (sleep) | 1.00 ± .00 | …", equal the card named above them."""
    sections = re.findall(r"\[card\]\((results/[^)]+)\)\n\n(\|.*?)\n\n", README, flags=re.DOTALL)
    assert len(sections) >= 2
    for path, table in sections:
        card = load_card(ROOT / path)
        assert isinstance(card, ComparisonCard)
        rows = {cells[1].strip(): cells[2:-1] for line in table.splitlines() if (cells := line.split("|"))}
        for result in card.results:
            parts = [result.by_depth[depth] for depth in card.depths]
            shown = [f"{100 * part.mean:.0f} ± {100 * part.std:.0f}" for part in parts]
            assert [cell.strip() for cell in rows[result.label]] == shown, result.label


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


@pytest.mark.parametrize("name", ["smollm2", "smollm2-n2"])
def test_the_table_of_an_adapter_is_in_its_card(name: str) -> None:
    """docs/adapt.md: right answers by kind of question, in %, and the loss on plain text."""
    text = (ROOT / "docs" / "adapt.md").read_text(encoding="utf-8")
    score = json.loads((ROOT / f"results/notes/{name}.json").read_text(encoding="utf-8"))["score"]
    text = (
        text.partition("N = 2, [card](../results/notes")[2 if name.endswith("n2") else 0]
        + text[text.index("Plain text") :]
    )
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
