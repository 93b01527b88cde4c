"""The SHA-256 of each file of weights in a saved folder, in its config.json: damaged weights are not loaded."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.utils import CONFIG_NAME
from transformers.utils.hub import cached_file

from reverie.errors import UserError
from reverie.files import file_hash

SUMS = "weights_sha256"


def add_sums(folder: Path) -> None:
    """Write them into config.json, when all weights are in the folder."""
    path = folder / CONFIG_NAME
    sums = {file.name: file_hash(file) for file in sorted(folder.glob("*.safetensors"))}
    path.write_text(json.dumps(json.loads(path.read_text()) | {SUMS: sums}, indent=2) + "\n")


def check_sums(name: str, content: Mapping[str, Any], from_hub: Mapping[str, Any]) -> None:
    """Raises UserError if a file of weights is not as it was saved; folders of earlier versions have no sums.

    Args:
        content: of config.json.
        from_hub: arguments that say which files are meant.
    """
    sums = content.get(SUMS, {})
    if not isinstance(sums, dict):
        raise UserError(f"{name}/{CONFIG_NAME} is not as save_pretrained wrote it: {SUMS} is no table")
    for file, known in sums.items():
        place = cached_file(name, file, **from_hub, _raise_exceptions_for_missing_entries=False)
        if place is not None and file_hash(Path(place)) != known:  # of one that is missing, loading will tell
            raise UserError(
                f"{name}/{file} was changed after it was saved, or damaged: save it again, or take {SUMS} out of "
                f"{CONFIG_NAME} if it was meant to be changed"
            )
