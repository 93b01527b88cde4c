"""The site of the documents: its reference is complete, its menu has every page, and it builds without a warning."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from documents import DOCUMENTS, ROOT

from reverie.recipe import TrainConfig
from reverie.sleep import SleepConfig

NEEDED = ("mkdocs", "material", "mkdocstrings", "mkdocs_jupyter")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reference", ROOT / "docs" / "_site" / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_has_every_key_and_its_default(reference: ModuleType) -> None:
    rows = {}
    for section, table in re.findall(r"^## (.*?)\n\n(.*?)(?=^## |\Z)", reference.recipes(), re.MULTILINE | re.DOTALL):
        lines = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| `")]
        rows[section] = {line[0].strip("`"): line[2] for line in lines}
    assert rows["[train]"].keys() == TrainConfig.model_fields.keys()
    assert rows["[sleep]"].keys() == SleepConfig.model_fields.keys()
    assert rows["[train]"]["steps"] == "required"
    assert rows["[train]"]["eval_examples"] == f"`{TrainConfig(steps=1, batch_size=1).eval_examples}`"
    assert rows["[train]"]["trackers"] == '`["tensorboard"]`'
    assert rows["[sleep]"]["eviction"] == '`"hard"`'
    assert all(rows.values())
    assert {f'[task], name = "{task}"' for task in ("rule110", "depo", "notes", "text")} <= rows.keys()


def test_the_reference_has_every_command_and_public_name(reference: ModuleType) -> None:
    pages = reference.pages()
    for command in ("reverie train", "reverie data gsm-infinite", "reverie tasks show", "reverie serve"):
        assert f"`{command}`" in pages["commands"]
    assert "--max-seconds" in pages["commands"]
    assert "::: reverie.sleep.consolidate" in pages["reverie.sleep"]
    assert "::: reverie.load_model" in pages["reverie"]


def test_the_menu_has_every_page(reference: ModuleType) -> None:
    menu = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    named = set(re.findall(r"(\S+\.(?:md|py))$", menu, flags=re.MULTILINE))
    written = {path.relative_to(ROOT / "docs").as_posix() for path in DOCUMENTS if path.is_relative_to(ROOT / "docs")}
    notebooks = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs" / "learn").glob("*.py")}
    made = {f"reference/{name}.md" for name in reference.pages()}
    assert written | notebooks | made <= named


@pytest.mark.slow
@pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}: pip install 'reverie[docs]'")
def test_the_site_builds_without_a_warning_and_asks_no_other_server(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path / "site"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    for page in (tmp_path / "site").rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        fetched = re.findall(r"<(?:script|img|iframe)[^>]*\ssrc=\"?(https?:[^\s\">]+)", text)
        fetched += re.findall(r"<link[^>]*rel=\"?stylesheet\"?[^>]*href=\"?(https?:[^\s\">]+)", text)
        assert not fetched, page
    notebook = (tmp_path / "site" / "learn" / "sleep_step_by_step.html").read_text(encoding="utf-8")
    assert "from memory: 6" in notebook
    assert "data:image/png" in notebook
