"""Every block of code in README.md, CONTRIBUTING.md and docs/ is checked: commands are parsed, Python is typed or run.

docs/serving.md runs in tests/serve/test_serving_document.py, and the notebook in tests/test_notebook.py.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from documents import DOCUMENTS, ROOT, blocks, commands, name_of
from typer.main import get_command

from reverie.cli.app import app
from reverie.recipe import list_recipes, load_recipe

CHECKED = {"sh", "bash", "python"}
SHOWN = {"toml", "text", "bibtex", ""}  # output, diagrams, and recipes in parts
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
PYRIGHT = Path(sys.executable).parent / "pyright"
OTHER_PROGRAMS = {".", "cat", "cd", "curl", "export", "git", "cp", "llm", "pre-commit", "split", "until"}

# What a page's programs use and the reader has: models, texts, and what the page has just described.
GIVEN = {
    "docs/extending.md": "import torch",
    "docs/huggingface.md": "import reverie\nlm: Any = 0\nsleep_config: Any = 0",
    "docs/memory.md": "tokenizer: Any = 0\nbook = question = ''",
}
RUN_ELSEWHERE = {"docs/serving.md"}
NOT_OURS = "_BaseModelWithGenerate"  # what transformers says of its Auto classes

RUN = {  # programs that stand alone, and what they print
    ("README.md", 0): "3\n",
    ("docs/GSM_INFINITE.md", 0): "",
    ("docs/memory.md", 0): "['3', '5']\n[('gull-island', [32])]\n",
    ("docs/training.md", 0): "",
}


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_no_block_is_in_a_language_that_nothing_checks(document: Path) -> None:
    assert {block.language for block in blocks(document)} <= CHECKED | SHOWN
    fences = re.findall(r"^ *```", document.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert len(fences) == 2 * len(blocks(document))


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_shell_blocks_are_shell() -> None:
    for document in DOCUMENTS:
        script = "\n".join(block.code for block in blocks(document, "sh", "bash"))
        done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True)
        assert done.returncode == 0, (document, done.stderr)


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_commands_exist(document: Path) -> None:
    for block in blocks(document, "sh"):
        for words in commands(re.sub(r"^for .*?^done$", "", block.code, flags=re.DOTALL | re.MULTILINE)):
            check_command(words)


def check_command(words: list[str]) -> None:
    program, *arguments = words
    if program == "reverie":
        check_reverie(arguments)
    elif program == "make":
        for target in arguments:
            assert re.search(rf"^{target}:", MAKEFILE, flags=re.MULTILINE), words
    elif program in ("python", "python3") and arguments[:2] == ["-m", "reverie"]:
        check_reverie(arguments[2:])
    elif program in ("python", "python3", "torchrun"):
        check_program(words)
    elif program in ("pip", "uv"):
        for extras in re.findall(r"reverie\[([\w,]+)\]|\.\[([\w,]+)\]", " ".join(arguments)):
            assert set("".join(extras).split(",")) <= set(EXTRAS), words
    else:
        assert program in OTHER_PROGRAMS, words


def check_reverie(arguments: list[str]) -> None:
    """The command and all its options exist, and its recipe loads with the overrides."""
    command: Any = get_command(app)
    context, named = command.context_class(command), []
    while hasattr(command, "commands") and arguments and not arguments[0].startswith("-"):
        assert arguments[0] in command.commands, arguments
        named.append(arguments[0])
        command, arguments = command.commands[arguments[0]], arguments[1:]
        context = command.context_class(command, parent=context)
    given = list(arguments)
    command.make_parser(context).parse_args(arguments)  # refuses an option that it does not know
    if named in (["train"], ["compare"]):
        overrides = [value for option, value in pairwise(given) if option == "--set"]
        if given[0] in list_recipes() or (ROOT / given[0]).exists():
            load_recipe(given[0], overrides)
        else:
            assert given[0] == "my.toml", given


def check_program(words: list[str]) -> None:
    """A script of the checkout exists and knows its options; a module of reverie is one that trains a recipe."""
    scripts = [word for word in words[1:] if word.endswith(".py") and "/" in word]
    for script in scripts:
        source = (ROOT / script).read_text(encoding="utf-8")
        for option in words[words.index(script) + 1 :]:
            assert not option.startswith("--") or f'"{option}"' in source, (script, option)
    if "reverie.train" in words:
        assert words[words.index("reverie.train") + 1] in list_recipes()
    else:
        assert scripts or "-m" in words, words


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_python_blocks_are_python(document: Path) -> None:
    for block in blocks(document, "python"):
        compile(block.code, name_of(document), "exec")


@pytest.mark.slow
@pytest.mark.skipif(not PYRIGHT.exists(), reason="needs pyright")
def test_python_blocks_are_typed(tmp_path: Path) -> None:
    """All Python blocks of a page, one after the other, are a program in which pyright finds no mistake."""
    for document in DOCUMENTS:
        name, programs = name_of(document), [block.code for block in blocks(document, "python")]
        if programs and name not in RUN_ELSEWHERE:
            given = f"from typing import Any\n{GIVEN[name]}\n" if name in GIVEN else ""
            (tmp_path / f"{name.replace('/', '_')}.py").write_text(given + "\n".join(programs), encoding="utf-8")
    settings = {"include": ["."], "extraPaths": [str(ROOT)], "typeCheckingMode": "standard"}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    command = [PYRIGHT, "--project", tmp_path, "--pythonpath", sys.executable, "--outputjson"]
    found = json.loads(subprocess.run(command, capture_output=True, text=True).stdout)
    assert found["summary"]["filesAnalyzed"] >= 5
    mistakes = [f"{Path(one['file']).name}: {one['message']}" for one in found["generalDiagnostics"]]
    assert [one for one in mistakes if NOT_OURS not in one] == []


@pytest.mark.slow
@pytest.mark.parametrize(("name", "index"), RUN, ids=lambda part: str(part))
def test_python_blocks_run(name: str, index: int, tmp_path: Path) -> None:
    code = blocks(ROOT / name, "python")[index].code
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, timeout=120, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout == RUN[name, index]
