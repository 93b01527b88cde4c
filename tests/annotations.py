"""Annotations of public functions and methods are checked when these are called, shapes too.

jaxtyping has an import hook of its own, but that decorates inner functions also: again in each call, which costs far
more than what these compute.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from inspect import isclass, isfunction
from types import ModuleType
from typing import Any

from beartype import beartype
from jaxtyping import jaxtyped


def check_annotations(*modules: str) -> None:
    """Has an effect on modules that are imported after it."""
    sys.meta_path.insert(0, Finder(modules))


class Finder:
    def __init__(self, modules: Sequence[str]) -> None:
        self.modules = modules

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name in self.modules else None
        if spec is not None and spec.origin is not None:
            spec.loader = Loader(name, spec.origin)
        return spec


class Loader(SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        check(module, module.__name__)


def check(owner: Any, module: str) -> None:
    """Wraps the functions of a module, and of its classes, in checks of their annotations."""
    for name, value in list(vars(owner).items()):
        if isfunction(value) and value.__module__ == module:
            setattr(owner, name, jaxtyped(value, typechecker=beartype))
        elif isclass(value) and value.__module__ == module and value is not owner:
            check(value, module)
