"""Rooms and the stairs between them: imports go downwards, and passes are looped over in one place."""

from __future__ import annotations

import ast
import graphlib
import re
from pathlib import Path

import jaxtyping
import pytest
import torch

from reverie.ops import hebbian_rule
from reverie.tasks import TASKS

PACKAGE = Path(__file__).parent.parent / "reverie"

# Lowest first: a room imports its own files and those of rooms before it, and nothing of inference imports training.
ROOMS = (
    "errors",
    "quiet",
    "named",
    "files",
    "workers",
    "interrupts",
    "ops",
    "model",
    "sleep",
    "pretrained",
    "tasks",
    "memory",
    "hf",
    "recipe",
    "results",
    "talk",
    "serve",
    "train",
    "bench",
    "cli",
    "__main__",
)
MOST_LINES = 350
MOST_FILES_ON_TOP = 12


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


FILES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def room(module: str) -> str:
    """The first folder or file below the package; programs, which are run and not imported, are above all."""
    return "__main__" if module.endswith(".__main__") else module.split(".")[1]


def imported(path: Path) -> set[str]:
    """Files of reverie that a file imports, anywhere in it."""
    modules = set[str]()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            modules |= {name if name in FILES else str(node.module) for name in names}
    return (modules & FILES.keys()) - {"reverie"}


IMPORTS = {module: imported(path) - {module} for module, path in FILES.items() if module != "reverie"}


def test_imports_go_downwards() -> None:
    upwards = {
        f"{module} -> {other}"
        for module, others in IMPORTS.items()
        for other in others
        if ROOMS.index(room(other)) > ROOMS.index(room(module))
    }
    assert not upwards


def test_no_circle_of_files() -> None:
    """Raises graphlib.CycleError with the circle."""
    assert list(graphlib.TopologicalSorter(IMPORTS).static_order())


def test_files_are_short_and_few_on_top() -> None:
    tests = Path(__file__).parent
    paths = [*FILES.values(), *tests.rglob("*.py"), *(tests.parent / "benchmarks").rglob("*.py")]
    long = {path.name: n for path in paths if (n := len(path.read_text(encoding="utf-8").splitlines())) > MOST_LINES}
    assert not long
    assert len([*PACKAGE.glob("*.py")]) <= MOST_FILES_ON_TOP


def test_sleep_is_short() -> None:
    assert len((PACKAGE / "sleep" / "algorithm.py").read_text().splitlines()) < 200


LOOPS = (ast.For, ast.While, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def names_called(node: ast.AST) -> list[str]:
    """Functions and methods that are called anywhere in it."""
    calls = [call.func for call in ast.walk(node) if isinstance(call, ast.Call)]
    return [f.attr if isinstance(f, ast.Attribute) else f.id for f in calls if isinstance(f, ast.Attribute | ast.Name)]


def runs_blocks(node: ast.AST) -> bool:
    """Whether something in it calls `blocks`, or a pass: `run` (`Backward.runner`), `one_pass`, `once`."""
    return not {"blocks", "run", "one_pass", "once"}.isdisjoint(names_called(node))


def test_passes_are_looped_over_in_one_place() -> None:
    """Only the sleep room has a model's blocks run, and one loop there runs them more than once: that up to N, of one
    window, or of several side by side.

    (talk hands a call on to another model; what bench counts has blocks of its own; hf runs a frozen beginning, which
    no pass comes back to, and finds a start for new layers.)
    """
    reach, loops = set(), []
    for module, path in FILES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr in ("blocks", "runner"):
                reach.add(room(module))
            if (
                module != "reverie"
                and room(module) in ("model", "sleep")
                and isinstance(node, LOOPS)
                and runs_blocks(node)
            ):
                loops.append((room(module), ast.unparse(node).splitlines()[0]))
    assert reach - {"bench", "talk", "hf"} == {"model", "sleep"}
    side_by_side = ["for w, own in enumerate(entered):", "for n in range(2, N):"]
    assert sorted(loops) == sorted(("sleep", loop) for loop in ["for n in range(2, N + 1):", *side_by_side])


def test_windows_are_looped_over_in_the_sleep_room_alone() -> None:
    """By `read`, `window_by_window` and `rollout`, which take the same step over a window; nobody else wakes in a loop.

    (But `Adaptation`, over windows of plain text that each stand by themselves, and `Teacher`, over questions.)
    """
    callers = set[tuple[str, str]]()
    for module, path in FILES.items() - {("reverie", FILES["reverie"])}:
        for function in ast.parse(path.read_text(encoding="utf-8")).body:
            loops = [node for node in ast.walk(function) if isinstance(node, LOOPS)]
            called = {name for loop in loops for name in names_called(loop)}
            if called & {"wake", "forget"} or (room(module) == "sleep" and {"step", "by_kind"} & called):
                callers.add((room(module), getattr(function, "name", "")))
    own = {("sleep", "read"), ("sleep", "window_by_window"), ("sleep", "rollout_hidden")}
    assert callers == {*own, ("train", "Adaptation"), ("hf", "Teacher")}


def test_annotations_are_checked_in_tests() -> None:
    """The hook in conftest.py is in force."""
    q, k, v, gate = torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3, 5), torch.zeros(1, 2, 3, 6), torch.zeros(1, 2, 3)
    with pytest.raises(jaxtyping.TypeCheckError):
        hebbian_rule(q, k, v, gate, gate)


def test_tasks_are_asked_and_not_named() -> None:
    """Outside their room no file imports a task, or has the name of one or of its class in a string.

    (But `reverie adapt --data` has words for those with pages; a file may be named after a task; and names of recipes
    may stand anywhere. "notes", "text" and "recall" are words of other things too.)
    """
    classes = {task.__name__: name for name, task in TASKS.items()}
    words = "|".join({*classes, *classes.values()} - {"notes", "text", "recall", "Notes"})
    places = {task.__module__ for task in TASKS.values()}
    named = set[str]()
    for module in IMPORTS:
        path = FILES[module]
        if room(module) == "tasks" or path.stem in TASKS:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            strings = [node.value] if isinstance(node, ast.Constant) and isinstance(node.value, str) else []
            names = {alias.name for alias in node.names} if isinstance(node, ast.ImportFrom) else set()
            found = [string for string in strings if re.search(rf"(?<![\w/])({words})(?![\w/])", string)]
            if found or names & classes.keys() or IMPORTS[module] & places:
                named.add(module.removeprefix("reverie."))
    assert named == {"cli.adapt"}
