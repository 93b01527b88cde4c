"""What `import reverie` gives, and the import paths that other people's code relies on."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import reverie

PATHS = {
    "reverie": "HybridConfig HybridLM new_model SleepConfig Context read rollout consolidate Memory MemoryStore "
    "sleep_over load_model model_remembers register_mixer register_task",
    "reverie.sleep": "SleepConfig Context read rollout wake sleep consolidate",
    "reverie.ops": "gated_delta_rule register_rule",
    "reverie.model": "HybridConfig HybridLM Injection new_model register_mixer",
    "reverie.errors": "UserError",
    "reverie.hf": "add_sleep SleepConfig insert_fast_weights load cache_of freeze_pretrained model_remembers",
    "reverie.hf.bases": "load_base load_tokenizer",
    "reverie.memory": "History Memory MemoryStore sleep_over",
    "reverie.recipe": "load_recipe",
    "reverie.tasks": "Task TaskSettings register_task",
    "reverie.tasks.gsm_infinite": "solve count_operations",
}


@pytest.mark.parametrize("path", PATHS)
def test_names_are_where_they_are_promised(path: str) -> None:
    module = import_module(path)
    assert [name for name in PATHS[path].split() if not hasattr(module, name)] == []


def test_the_package_says_what_it_has() -> None:
    assert sorted(reverie.__all__) == sorted(PATHS["reverie"].split())
    assert set(reverie.__all__) <= set(dir(reverie))
    with pytest.raises(AttributeError, match="has no attribute 'slep'"):
        reverie.slep  # noqa: B018 # pyright: ignore[reportAttributeAccessIssue]


def test_it_is_typed() -> None:
    assert (Path(str(reverie.__file__)).parent / "py.typed").is_file()


def test_importing_it_loads_no_model() -> None:
    code = "import sys, reverie; print({'torch', 'transformers', 'matplotlib'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
