"""Marking functions whose result `torch.compile` takes as a constant."""

from collections.abc import Callable
from typing import Any, TypeVar

_Function = TypeVar("_Function", bound=Callable[..., Any])


def constant_when_compiled(function: _Function) -> _Function:
    """Decorate a function that `torch.compile` shall call instead of tracing it.

    Does what `torch.compiler.assume_constant_result` does, which imports the compiler to set the same attribute and
    would double the time of `import reverie`.
    """
    function._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]
    return function
