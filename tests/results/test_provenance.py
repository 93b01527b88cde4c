"""Cards say where they come from, and nothing private."""

from __future__ import annotations

import getpass
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import reverie.results.provenance
from reverie.results.provenance import commit_id, hardware


def test_hardware_names_no_person_host_or_folder():
    found = hardware()
    text = found.model_dump_json()
    assert found.python == platform.python_version()
    assert found.cores >= 1
    for private in (platform.node(), getpass.getuser(), str(Path.home()), sys.prefix):
        assert len(private) < 3 or private not in text


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch) -> Path:
    """A repository with the package in it, from which the module seems to run."""
    if shutil.which("git") is None:
        pytest.skip("needs git")
    package = tmp_path / "reverie"
    package.mkdir()
    (package / "provenance.py").write_text("first")
    _git(tmp_path, "init", "--quiet")
    _git(tmp_path, "add", ".")
    _git(tmp_path, "-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "--quiet", "--message=first")
    monkeypatch.setattr(reverie.results.provenance, "__file__", str(package / "results" / "provenance.py"))
    return tmp_path


def _git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", "-C", folder, *arguments], check=True, capture_output=True, text=True).stdout.strip()


def test_the_commit_is_that_of_the_checkout_and_tells_when_the_package_differs(checkout: Path):
    commit = _git(checkout, "rev-parse", "HEAD")[:10]
    assert commit_id() == commit
    (checkout / "notes.txt").write_text("outside of the package")
    assert commit_id() == commit
    (checkout / "reverie" / "new.py").write_text("not committed")
    assert commit_id() == f"{commit}-dirty"


def test_an_installed_package_has_no_commit(checkout: Path, monkeypatch):
    installed = checkout / "site-packages" / "reverie"
    installed.mkdir(parents=True)
    monkeypatch.setattr(reverie.results.provenance, "__file__", str(installed / "results" / "provenance.py"))
    assert commit_id() == "unknown"
    monkeypatch.setenv("PATH", "")
    assert commit_id() == "unknown"


def test_where_there_is_no_checkout_the_environment_may_say(checkout: Path, monkeypatch):
    monkeypatch.setenv(reverie.results.provenance.COMMIT, "0123456789")
    assert commit_id() == _git(checkout, "rev-parse", "HEAD")[:10]  # it knows better
    elsewhere = checkout / "elsewhere" / "results" / "provenance.py"
    monkeypatch.setattr(reverie.results.provenance, "__file__", str(elsewhere))
    assert commit_id() == "0123456789"
