"""Triton's compiler makes Hopper code of our kernels, without a GPU: what it takes of a multiprocessor.

In a file of its own, since `TRITON_INTERPRET=1` of the other one makes the kernels something that cannot be compiled.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None or os.environ.get("TRITON_INTERPRET") == "1",
    reason="needs triton, not its interpreter: make test-triton",
)

SHARED_MEMORY, REGISTERS = 227 * 1024, 65536  # of a multiprocessor of an H100 or H200
RULE_110 = {"T": 24, "K": 96, "V": 192}
LARGE = {"T": 64, "K": 128, "V": 256}


def compiled(name: Literal["forward", "backward"], T: int, K: int, V: int, dtype: torch.dtype) -> Any:
    import triton  # pyright: ignore[reportMissingImports]
    from triton.backends.compiler import GPUTarget  # pyright: ignore[reportMissingImports]
    from triton.compiler import ASTSource  # pyright: ignore[reportMissingImports]

    from reverie.ops import triton_backward, triton_kernels

    kernel: Any = triton_kernels.forward if name == "forward" else triton_backward.backward
    tiles = triton_kernels.tiles(name, T, K, V)
    options = {option: tiles.pop(option) for option in ("num_warps", "num_stages")}
    constants = {"H": 2, "K": K, "V": V, **tiles, **triton_kernels.operands(dtype, "tf32")}
    types = {"scale": "fp32", "T": "i32", "v_batch_stride": "i32", "v_token_stride": "i32"}
    types |= dict.fromkeys(
        ("q", "k", "v", "o", "do", "dq", "dk", "dv", "w"), "*bf16" if dtype.itemsize == 2 else "*fp32"
    )
    types |= dict.fromkeys(constants, "constexpr")
    signature = {argument: types.get(argument, "*fp32") for argument in kernel.arg_names}
    aligned = {
        (n,): [["tt.divisibility", 16]]
        for n, argument in enumerate(kernel.arg_names)
        if signature[argument].startswith("*") or argument.endswith("stride")
    }
    source = ASTSource(
        kernel, signature, {(kernel.arg_names.index(name),): x for name, x in constants.items()}, aligned
    )
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)


def usage(kernel: Any, folder: Path) -> dict[str, int]:
    """What cuobjdump says of the machine code: REG and STACK (bytes, for what did not fit into registers) a thread."""
    import triton  # pyright: ignore[reportMissingImports]

    cubin = folder / "kernel.cubin"
    cubin.write_bytes(kernel.asm["cubin"])
    tool = Path(str(triton.__file__)).parent / "backends/nvidia/bin/cuobjdump"
    text = subprocess.run([tool, "-res-usage", cubin], capture_output=True, text=True, check=True).stdout
    return {name: int(number) for name, number in re.findall(r"(REG|STACK):(\d+)", text)}


@pytest.mark.parametrize(
    ("name", "sizes", "dtype", "programs", "stack"),
    [
        ("forward", RULE_110, torch.float32, 2, 0),
        ("backward", RULE_110, torch.float32, 2, 320),
        ("forward", RULE_110, torch.bfloat16, 3, 0),
        ("backward", RULE_110, torch.bfloat16, 2, 64),
        ("forward", LARGE, torch.float32, 1, 128),
        ("backward", LARGE, torch.float32, 2, 384),
        ("forward", LARGE, torch.bfloat16, 2, 128),
        ("backward", LARGE, torch.bfloat16, 2, 96),
    ],
)
def test_what_a_program_needs(
    name: Literal["forward", "backward"],
    sizes: dict[str, int],
    dtype: torch.dtype,
    programs: int,
    stack: int,
    tmp_path: Path,
) -> None:
    """So many fit into a multiprocessor; what little goes to the stack is outside of the innermost loops."""
    kernel = compiled(name, **sizes, dtype=dtype)
    used = usage(kernel, tmp_path)
    threads = 32 * kernel.metadata.num_warps
    assert min(SHARED_MEMORY // (kernel.metadata.shared + 1024), REGISTERS // (used["REG"] * threads)) >= programs
    assert used["STACK"] <= stack
    # Of wgmma the assemblers of Triton 3.4 to 3.7 make wrong code: `triton_kernels.dot`.
    assert "mma.sync" in kernel.asm["ptx"]
    assert "wgmma" not in kernel.asm["ptx"]
