"""What is outside the package and named "module:Name": found and imported, each failure one sentence.

A module is looked for on Python's path and in the current folder; `look_beside` adds the folder of a recipe. It is
never taken from the folder of a run or of a saved model: one that was downloaded must not bring code of its own.
"""

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

from reverie.errors import UserError

_OF_RUNS = "checkpoint.safetensors", "checkpoint-" + "[0-9]" * 9, "card.json"


class OutsideError(UserError):
    """What a "module:Name" names cannot be had here; what was saved with that name is as good as it was."""


def is_named(text: str) -> bool:
    """True for "module:Name"."""
    module, colon, name = text.partition(":")
    return bool(colon) and all(part.isidentifier() for part in (*module.split("."), *name.split(".")))


def find_named(reference: str, key: str) -> Any:
    """What a "module:Name" names.

    Args:
        key: where the reference stands, such as "task.name", for the sentences.

    Raises:
        OutsideError: there is no such module, or it lacks the name, or it raises an error when it is imported.
    """
    if not is_named(reference):
        raise OutsideError(f"{key} must be like my_module:MyClass, got {reference!r}")
    module, _, name = reference.partition(":")
    found = _imported(module, f"{key} is {reference}, but")
    for part in name.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            place = getattr(sys.modules[module], "__file__", None) or "a folder without code"
            raise OutsideError(f"{key} is {reference}, but the module {module} ({place}) has no {name}") from None
    return found


def look_beside(file: Path) -> None:
    """Look for modules in the folder of this file too, after all other places."""
    folder = str(file.resolve().parent)
    if folder not in sys.path and not _holds_run(Path(folder)):
        sys.path.append(folder)  # which processes that are started from this one are given


def _imported(module: str, but: str) -> Any:
    if module not in sys.modules:
        look_beside(Path("any file of the current folder"))
        importlib.invalidate_caches()  # it may have been written since this process looked
        _check_place(module.partition(".")[0], but)
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module}.".startswith(f"{error.name}."):
            raise _missing(error.name, but) from None
        raise _broken(module, error, but) from error
    except (Exception, SystemExit) as error:
        raise _broken(module, error, but) from error


def _check_place(module: str, but: str) -> None:
    """Raise OutsideError for a module that is missing, or that lies in the folder of a run."""
    try:
        spec = None if module in sys.modules else importlib.util.find_spec(module)
    except (ImportError, ValueError):  # which importing it will tell better
        return
    if spec is None:
        if module in sys.modules:
            return
        raise _missing(module, but)
    for place in spec.submodule_search_locations or [spec.origin or ""]:
        if _holds_run(folder := Path(place).parent):
            raise OutsideError(
                f"{but} the module {module} lies in {folder}, the folder of a run, whose code is not run: move it "
                "beside the recipe or to a folder on PYTHONPATH"
            )


def _holds_run(folder: Path) -> bool:
    """True for the folder of a run, or of a model as transformers saves it."""

    def holds(pattern: str) -> bool:
        return next(folder.glob(pattern), None) is not None

    return any(map(holds, _OF_RUNS)) or (holds("config.json") and holds("model*.safetensors"))


def _missing(module: str, but: str) -> OutsideError:
    here = Path.cwd()
    also = f" (and {here}, the folder of a run, is not looked in)" if _holds_run(here) else f" or in {here}"
    return OutsideError(
        f"{but} there is no module {module} on Python's path, beside the recipe{also}: put its folder on PYTHONPATH, "
        "or the module beside the recipe"
    )


def _broken(module: str, error: BaseException, but: str) -> OutsideError:
    words = " ".join(str(error).split())
    return OutsideError(f"{but} the module {module} cannot be imported: {type(error).__name__}: {words}".rstrip(": "))
