"""Rooms and the stairs between them: imports go downwards, and passes are looped over in one place."""

from __future__ import annotations

import ast
from pathlib import Path

import jaxtyping
import pytest
import torch

from reverie.ops import hebbian_rule

PACKAGE = Path(__file__).parent.parent / "reverie"

# A room may import those on the right, and its own files. `tasks` sees nothing of models: a task is data and a score.
ROOMS = {
    "errors": "",
    "workers": "errors",
    "files": "errors",
    "ops": "errors",
    "model": "errors ops",
    "backward": "model",
    "settling": "errors model",
    "labels": "",
    "sleep": "errors model backward settling labels",
    "memory": "errors files model settling sleep",
    "tasks": "errors",
    "language": "errors tasks",
    "hf": "errors files ops model backward sleep memory tasks",
    "random_passes": "",
    "recipe_errors": "tasks",
    "recipe": "errors model backward sleep tasks random_passes recipe_errors",
    "check": "errors tasks",
    "data": "errors files recipe tasks workers",
    "generate": "sleep",
    "evaluate": "errors labels model sleep tasks generate",
    "provenance": "",
    "card": "errors files provenance",
    "show": "recipe tasks",
    "figure_style": "",
    "train": "errors files labels model sleep tasks hf recipe evaluate provenance card workers",
    "terminal": "errors train",
    "progress": "train",
    "bench": "errors ops labels model backward sleep tasks recipe provenance train",
    "passes": "errors model sleep recipe random_passes evaluate provenance card figure_style train",
    "watch": "errors labels model memory recipe sleep tasks card figure_style train",
    "talk": "errors files card hf language memory recipe sleep tasks train",
    "tables": "card passes",
    "plots": "errors files card bench figure_style passes",
    "compare": "errors files recipe card plots tables train",
    "cli_bench": "card progress bench plots terminal",
    "cli_data": "check errors data progress terminal",
    "cli_hf": "errors sleep hf progress terminal",
    "cli_memory": "errors cli_hf memory progress talk terminal",
    "cli_store": "errors memory terminal",
    "cli_watch": "errors plots terminal watch",
    "cli": "errors recipe card passes plots tables tasks train show progress compare terminal "
    "cli_bench cli_data cli_hf cli_memory cli_store cli_watch",
    "__main__": "cli",
    "train.__main__": "errors cli train",  # a process of `reverie train --nproc`: the same command
}


def room(path: Path) -> str:
    if path.name == "__main__.py":
        return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def imported_rooms(path: Path) -> set[str]:
    """Rooms of reverie that a file imports, anywhere in it."""
    modules = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            package = node.module or ""
            modules += [f"reverie.{alias.name}" for alias in node.names] if package == "reverie" else [package]
    return {module.split(".")[1] for module in modules if module.startswith("reverie.")}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_downwards(path: Path) -> None:
    here = room(path)
    assert here in ROOMS, f"a new room: give {here} its place in ROOMS"
    assert imported_rooms(path) <= {here, *ROOMS[here].split()}


def test_there_is_no_way_back_up() -> None:
    """ROOMS itself stands in an order in which every room comes after those that it may import."""
    order = list(ROOMS)
    for here, below in ROOMS.items():
        assert all(order.index(other) < order.index(here) for other in below.split()), here


def test_sleep_is_short() -> None:
    assert len((PACKAGE / "sleep.py").read_text().splitlines()) < 250


LOOPS = (ast.For, ast.While, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def runs_blocks(node: ast.AST) -> bool:
    """Whether something in it calls `blocks`, or `run`, what `Backward.runner` makes of them."""
    calls = [call.func for call in ast.walk(node) if isinstance(call, ast.Call)]
    names = [f.attr if isinstance(f, ast.Attribute) else f.id for f in calls if isinstance(f, ast.Attribute | ast.Name)]
    return not {"blocks", "run"}.isdisjoint(names)


def test_passes_are_looped_over_in_one_place() -> None:
    """Only sleep.py has a model's blocks run, and one loop there runs them more than once: that up to N.

    (hf hands a call on to the model of transformers.)
    """
    reach, loops = set(), []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr in ("blocks", "runner"):
                reach.add(room(path))
            if room(path) in ("model", "backward", "sleep") and isinstance(node, LOOPS) and runs_blocks(node):
                loops.append((room(path), ast.unparse(node).splitlines()[0]))
    assert reach == {"hf", "model", "sleep"}
    assert loops == [("sleep", "for n in range(2, N + 1):")]


def test_annotations_are_checked_in_tests() -> None:
    """The hook in conftest.py is in force."""
    q, k, v, gate = torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3, 5), torch.zeros(1, 2, 3, 6), torch.zeros(1, 2, 3)
    with pytest.raises(jaxtyping.TypeCheckError):
        hebbian_rule(q, k, v, gate, gate)
