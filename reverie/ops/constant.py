"""What a compiled block takes as a constant."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

_Function = TypeVar("_Function", bound=Callable[..., Any])


def constant_when_compiled(function: _Function) -> _Function:
    """`torch.compiler.assume_constant_result`: torch.compile calls the function instead of tracing it.

    That one imports the compiler to set this attribute; it would be half of the time that `import reverie` takes.
    """
    function._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]
    return function
