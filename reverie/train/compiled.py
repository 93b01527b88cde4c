"""`train.compile`: blocks through `torch.compile`, which fuses the many small steps between matrix products."""

import os
import shutil
import sys
from contextlib import AbstractContextManager

import torch

from reverie.errors import UserError
from reverie.model import LanguageModel

# A block is compiled anew for each length of window, with and without fast weights to start from, and with and without
# output. Beyond the limit it would silently run uncompiled.
RECOMPILE_LIMIT = 64
BACKEND = "inductor"


def compile_blocks(model: LanguageModel, device: torch.device | str = "cpu") -> None:
    """Compile the blocks in place; parameters keep names and values, and results stay the same to rounding.

    Raises UserError where there is no C++ compiler, which code for CPU needs, and for a pretrained model with other
    blocks than attention.
    """
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if torch.device(device).type == "cpu" and shutil.which(compiler) is None:
        raise UserError(
            f"train.compile needs a C++ compiler, and there is no {compiler}: install one (Debian: apt install g++), "
            "name another in the environment variable CXX, or set train.compile=false"
        )
    torch._dynamo.config.recompile_limit = RECOMPILE_LIMIT
    model.compile_blocks(BACKEND)


def uncompiled() -> AbstractContextManager[None]:
    """Run without compiled code for a while: evaluation has shapes of its own, each for a moment."""
    return torch.compiler.set_stance("force_eager")
