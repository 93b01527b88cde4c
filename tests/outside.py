"""What is outside the package: a task in a module beside its recipe, in a temporary folder; and forgetting it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import tiny_recipe

EXAMPLE = Path(__file__).parents[1] / "examples" / "custom_task.py"

TOML = """
[task]
name = "{module}:ModularAddition"
num_terms = 3

"""
MODEL = tiny_recipe.TOML[tiny_recipe.TOML.index("[model]") :].replace("window_size = 14", "window_size = 3")


def write_outside(folder: Path, module: str = "outside_sums") -> Path:
    """A recipe of the example's task, in a module of this name beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{module}.py").write_text(EXAMPLE.read_text(encoding="utf-8"), encoding="utf-8")
    recipe = folder / "sums.toml"
    recipe.write_text(TOML.format(module=module) + MODEL, encoding="utf-8")
    return recipe


@contextmanager
def as_in_a_new_process(folder: Path) -> Iterator[None]:
    """Modules from this folder, and the path to them, are forgotten before the block and after it."""
    forget(folder)
    try:
        yield
    finally:
        forget(folder)


def forget(folder: Path) -> None:
    sys.path[:] = [place for place in sys.path if not Path(place).is_relative_to(folder)]
    for name, module in list(sys.modules.items()):
        if Path(getattr(module, "__file__", None) or "/").is_relative_to(folder):
            del sys.modules[name]
    importlib.invalidate_caches()
