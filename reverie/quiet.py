"""What a command keeps off the screen: bars and advice of other libraries, and lines that matter to training alone.

Whoever uses reverie as a library sees all of it, also after a command ran in the same process.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

_command: ExitStack | None = None
_backends = True


@contextmanager
def quietly() -> Iterator[None]:
    """A command runs: `until_its_end` gives a stack for what it changes for others, which is put back when it ends."""
    global _command, _backends
    try:
        with ExitStack() as _command:
            yield
    finally:
        _command, _backends = None, True


def until_its_end() -> ExitStack | None:
    """What is undone when the command ends that runs; None if none does."""
    return _command


def say_no_backends() -> None:
    """Until the command ends, nothing is said of which backend runs."""
    global _backends
    _backends = _command is None


def says_backends() -> bool:
    """True if it is said which backend runs."""
    return _backends
