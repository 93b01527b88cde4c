"""tests/typing/sample.py, a program that uses the public API, has the types that it says, and no others."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PYRIGHT = Path(sys.executable).parent / "pyright"


@pytest.mark.slow
@pytest.mark.skipif(not PYRIGHT.exists(), reason="needs pyright")
def test_pyright_knows_the_public_types(tmp_path: Path) -> None:
    """In a folder of its own, as a stranger's program; `make wheel-test` does the same with an installed wheel."""
    shutil.copy(ROOT / "tests" / "typing" / "sample.py", tmp_path)
    (tmp_path / "pyrightconfig.json").write_text(json.dumps({"include": ["."], "extraPaths": [str(ROOT)]}))
    command = [PYRIGHT, "--project", tmp_path, "--pythonpath", sys.executable]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert (ROOT / "reverie" / "py.typed").is_file()
