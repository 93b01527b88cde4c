"""The mark is PyTorch's, and importing reverie does not import its compiler."""

from __future__ import annotations

import subprocess
import sys

import torch

from reverie.ops.constant import constant_when_compiled


def test_it_does_what_pytorchs_does() -> None:
    ours, theirs = constant_when_compiled(lambda: 1), torch.compiler.assume_constant_result(lambda: 1)
    assert vars(ours) == vars(theirs) != {}


def test_who_does_not_compile_does_not_wait_for_the_compiler_nor_for_figures() -> None:
    code = "import reverie, reverie.cli.app, sys; print({'torch._dynamo', 'matplotlib'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
