"""Ordinary text, as windows of tokens: what a model must go on with as it did before it learnt to remember."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from reverie.errors import UserError
from reverie.files import opened, text_of
from reverie.pretrained.speaker import speaker_of

_MOST_CHARACTERS = 2_000_000


def plain_windows(path: str, tokenizer: str, window_tokens: int) -> list[list[int]]:
    """Whole windows of a file or of a folder's .txt and .md files, in an order that depends on their number alone.

    Without a path, of the help on Python's statements that comes with every Python.

    Raises:
        UserError: there is no text, or less than some windows.
    """
    text = re.sub(r"\s+", " ", _help() if not path else _prose(Path(path)))[:_MOST_CHARACTERS]
    ids, _ = speaker_of(tokenizer).encode(text)
    windows = [ids[i : i + window_tokens] for i in range(0, len(ids) - window_tokens + 1, window_tokens)]
    if len(windows) < 48:
        raise UserError(f"{path or 'the help of this Python'} holds {len(windows)} windows of text, and 48 are needed")
    return [windows[i] for i in np.random.default_rng(0).permutation(len(windows))]


def _help() -> str:
    from pydoc_data.topics import topics

    return " ".join(topics[name] for name in sorted(topics))


def _text(file: Path) -> str:
    with opened(file) as content:
        return text_of(content.read())


def _prose(path: Path) -> str:
    files = sorted(x for x in path.rglob("*") if x.suffix in (".txt", ".md")) if path.is_dir() else [path]
    try:
        return " ".join(map(_text, files))
    except OSError as error:
        raise UserError(f"cannot read {error.filename}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is no text in UTF-8") from None
