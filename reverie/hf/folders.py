"""A folder of files as transformers saves them: the old ones or the new ones."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers.utils import CONFIG_NAME

from reverie.files import move_into_place, writing

WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json")


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """An empty folder to write into. What is in it at the end takes the place of what `folder` holds of a model.

    Raises UserError for what the system refuses (a full disk, a missing permission). After that, as after any other
    error while the files are written, those that were there before are untouched.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".saving-", dir=folder) as name:
            yield Path(name)
            _move(Path(name), folder)


def _move(finished: Path, folder: Path) -> None:
    """The config last, since nothing is loaded without it; before it go weights of an earlier save."""
    names = {path.name for path in finished.iterdir()}
    for name in sorted(names - {CONFIG_NAME}):
        move_into_place(finished / name, folder / name)
    if CONFIG_NAME in names:
        for path in folder.iterdir():
            if WEIGHTS.fullmatch(path.name) and path.name not in names:
                path.unlink()
        move_into_place(finished / CONFIG_NAME, folder / CONFIG_NAME)
