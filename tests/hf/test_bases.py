"""Bases by name; whatever cannot be loaded is one sentence, and nobody else's code or pickle is run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_folder import tiny_folder
from transformers import PreTrainedTokenizerBase

from reverie.errors import UserError
from reverie.hf import bases
from reverie.hf.bases import load_base, load_tokenizer

pytestmark = pytest.mark.hf


def test_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_folder(tmp_path / "llama")
    monkeypatch.chdir(tmp_path)
    model = load_base("llama", dtype=torch.float64)
    assert not model.training
    assert model.dtype == torch.float64
    assert model.config._name_or_path == str(tmp_path / "llama")  # still right in another folder
    tokenizer = load_tokenizer(Path("llama"))
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    assert tokenizer.decode(tokenizer("A word.").input_ids) == "A word."


def test_config_and_weights_are_of_one_subfolder(tmp_path: Path) -> None:
    tiny_folder(tmp_path, rms_norm_eps=0.25)
    tiny_folder(tmp_path / "sub", rms_norm_eps=0.5)
    assert load_base(tmp_path).config.rms_norm_eps == 0.25
    assert load_base(tmp_path, subfolder="sub").config.rms_norm_eps == 0.5


def test_smollm2_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bases, "load_smollm2_model", lambda **kwargs: ("model", kwargs))
    monkeypatch.setattr(bases, "load_smollm2_tokenizer", lambda: "tokenizer")
    assert load_base("smollm2", dtype=torch.bfloat16) == ("model", {"dtype": torch.bfloat16})
    assert load_tokenizer("smollm2") == "tokenizer"


def test_ouro_runs_its_stack_once(tmp_path: Path) -> None:
    model = load_base(tiny_folder(tmp_path, "ouro", total_ut_steps=4, num_key_value_heads=4))
    assert getattr(model.config, "total_ut_steps") == 1  # noqa: B009


@pytest.mark.parametrize("name", ["", "no such", "../nothing", "smollm", "/no/such", "a/b/c", "https://x.org/a"])
def test_what_is_no_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path / "..")
    for load in (load_base, load_tokenizer):
        with pytest.raises(UserError, match=f"^there is no folder {name}, nor is it smollm2 or an organisation/model"):
            load(name)


def config(folder: Path, **content: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(content))
    return folder


def test_broken_folders(tmp_path: Path) -> None:
    """One line each, that names the folder."""
    (tmp_path / "not-json").mkdir()
    (tmp_path / "not-json/config.json").write_text("{")
    damaged = tiny_folder(tmp_path / "damaged")
    (damaged / "model.safetensors").write_bytes(b"\xff" * 100)
    folders = [
        tmp_path / "not-json",
        damaged,
        config(tmp_path / "empty"),
        config(tmp_path / "unknown", model_type="nope"),
        config(tmp_path / "without-weights", model_type="llama"),
        config(tmp_path / "nonsense", model_type="llama", hidden_size="wide"),
        config(tmp_path / "no-decoder", model_type="clip"),
    ]
    for folder in folders:
        with pytest.raises(UserError, match=r"^cannot load the model of ") as caught:
            load_base(folder)
        assert str(folder) in str(caught.value)
        assert "\n" not in str(caught.value)
    for folder in folders[2:5]:
        with pytest.raises(UserError, match=r"^cannot load the tokenizer of "):
            load_tokenizer(folder)


def test_no_pickle_is_read(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path)
    torch.save({}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"no file named model\.safetensors"):
        load_base(folder)


def test_no_code_of_others_is_run(tmp_path: Path) -> None:
    """Not even after a question to the user."""
    folder = config(tmp_path, model_type="theirs", auto_map={"AutoConfig": "code.Config"})
    (folder / "code.py").write_text("raise SystemExit('ran')")
    with pytest.raises(UserError, match=r"cannot load the model of .*trust_remote_code|custom code"):
        load_base(folder)


def test_without_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for load in (load_base, load_tokenizer):
        with pytest.raises(UserError, match=r"cannot load the \w+ of nobody/nothing: ") as caught:
            load("nobody/nothing")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"dtype": []}, "cannot load the model of"),
        ({"pad_token_id": {}}, "cannot load the model of"),
        ({"pad_token_id": 10**12}, "cannot load the model of"),
        ({"rope_parameters": {"rope_type": [], "rope_theta": "x"}}, "cannot load the model of"),
        ({"num_hidden_layers": 10**12}, "num_hidden_layers 1e.12, above 1,024"),
        ({"num_labels": 10**9}, "num_labels 1e.09, above 1,048,576"),
        ({"hidden_size": 40_000}, "parameters, more than its weights hold"),
        ({"vocab_size": 2**40}, "parameters, more than its weights hold"),
    ],
)
def test_a_damaged_config_is_one_sentence(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    """And takes neither long nor more memory than there is."""
    path = tiny_folder(tmp_path / "model") / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(UserError, match=sentence) as caught:
        load_base(path.parent)
    assert str(path.parent) in str(caught.value)
    assert "\n" not in str(caught.value)
