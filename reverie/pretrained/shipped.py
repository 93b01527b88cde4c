"""Adapters that ship with the package: their names, and where they and their tokenizers are."""

import json
from pathlib import Path

SHIPPED = {"smollm2-notes": Path(__file__).parent / "smollm2-notes"}
_TOKENIZERS = "tokenizer_config.json", "tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt"


def place_of(model: str | Path) -> str:
    """Where a model is: the folder inside the package if its name is of one that ships, else what was given.

    A folder of that name where the program runs comes first.
    """
    name = str(model)
    return name if name not in SHIPPED or Path(name).exists() else str(SHIPPED[name])


def tokenizer_place(model: str | Path) -> str:
    """Where a model's tokenizer is: with its base, and so on, if it is an adapter in a folder without one."""
    place, seen = place_of(model), set[str]()
    while place not in seen and (base := _base_of(Path(place))) is not None:
        seen.add(place)
        place = place_of(base)
    return place


def _base_of(folder: Path) -> str | None:
    try:
        if any((folder / name).exists() for name in _TOKENIZERS):
            return None
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # there is none, or it is damaged, which is told where it is loaded
        return None
    base = content.get("base_model") if isinstance(content, dict) else None
    return base if isinstance(base, str) else None
