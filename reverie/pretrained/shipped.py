"""Adapters that ship with the package: their names, and where they are."""

from pathlib import Path

SHIPPED = {"smollm2-notes": Path(__file__).parent / "smollm2-notes"}


def place_of(model: str | Path) -> str:
    """Where a model is: the folder inside the package if its name is of one that ships, else what was given.

    A folder of that name where the program runs comes first.
    """
    name = str(model)
    return name if Path(name).exists() or name not in SHIPPED else str(SHIPPED[name])
