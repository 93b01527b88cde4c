"""What a recipe names "module:Name": where it is looked for, and that each failure is one sentence."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from outside import as_in_a_new_process

from reverie.named import OutsideError, find_named, is_named, look_beside


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current folder, which is forgotten afterwards."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    with as_in_a_new_process(tmp_path):
        yield folder


def write(folder: Path, module: str, code: str = "class Mine:\n    class Inner: ...") -> None:
    folder.mkdir(exist_ok=True)
    (folder / f"{module}.py").write_text(code, encoding="utf-8")


def test_a_module_on_the_path_or_in_the_current_folder_or_beside_a_recipe(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "path", "on_path")
    write(here, "in_folder")
    write(tmp_path / "recipes", "beside")
    monkeypatch.syspath_prepend(tmp_path / "path")
    assert find_named("on_path:Mine", "key").__name__ == "Mine"
    assert find_named("in_folder:Mine.Inner", "key").__qualname__ == "Mine.Inner"
    with pytest.raises(OutsideError, match="there is no module beside on Python's path, beside the recipe or in"):
        find_named("beside:Mine", "key")
    for _ in range(2):
        look_beside(tmp_path / "recipes" / "mine.toml")
    assert sys.path.count(str(tmp_path / "recipes")) == 1
    assert sys.path[-1] == str(tmp_path / "recipes")  # nothing there hides what is installed
    assert find_named("beside:Mine", "key").__module__ == "beside"


@pytest.mark.parametrize("left", ["checkpoint.safetensors", "checkpoint-000000002", "card.json"])
@pytest.mark.parametrize("way", ["current", "beside", "path"])
def test_a_module_in_the_folder_of_a_run_is_never_run(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: str, way: str
) -> None:
    run = here if way == "current" else tmp_path / "run"
    write(run, "of_run", "raise AssertionError")
    (run / left).touch()
    if way == "beside":
        look_beside(run / "mine.toml")
    if way == "path":
        monkeypatch.syspath_prepend(run)
    reason = "lies in .*, the folder of a run, whose code is not run" if way == "path" else "there is no module of_run"
    with pytest.raises(OutsideError, match=reason):
        find_named("of_run:Mine", "key")


@pytest.mark.parametrize(
    ("code", "reference", "sentence"),
    [
        ("", "broken:Mine", r"key is broken:Mine, but the module broken \(.*broken.py\) has no Mine"),
        ("raise KeyError('a\\nb')", "broken:Mine", "the module broken cannot be imported: KeyError: 'a.*b'$"),
        ("import sys; sys.exit(3)", "broken:Mine", "the module broken cannot be imported: SystemExit: 3$"),
        ("1 +", "broken:Mine", "the module broken cannot be imported: SyntaxError: invalid syntax"),
        ("import is_absent", "broken:Mine", "cannot be imported: ModuleNotFoundError: No module named 'is_absent'$"),
        ("", "broken.part:Mine", "key is broken.part:Mine, but there is no module broken.part on"),
        ("", "no_such.part:Mine", "key is no_such.part:Mine, but there is no module no_such on"),
        ("", "broken", "key must be like my_module:MyClass, got 'broken'$"),
        ("", "broken:", "key must be like my_module:MyClass, got 'broken:'$"),
        ("", "a-b:Mine", "key must be like my_module:MyClass, got 'a-b:Mine'$"),
    ],
)
def test_each_failure_is_a_sentence(here: Path, code: str, reference: str, sentence: str) -> None:
    write(here, "broken", code)
    with pytest.raises(OutsideError, match=sentence) as caught:
        find_named(reference, "key")
    assert "\n" not in str(caught.value)


def test_what_is_named() -> None:
    assert is_named("a:B")
    assert is_named("a.b:C.D")
    assert not any(map(is_named, ("a", "a:", ":B", "a:b:c", "qa:my file", "a/b:C", "")))
