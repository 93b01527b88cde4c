"""What a saved folder says of itself, who can load it, and that no code of a folder is ever run by reverie."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from sleeping_models import L, asleep, insert, own, sleeping
from tiny import text, tiny
from tiny_folder import tiny_folder, tiny_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

from reverie.errors import UserError
from reverie.hf import add_sleep, insert_fast_weights, load, load_hybrid
from reverie.hf.bases import load_base, load_tokenizer

pytestmark = pytest.mark.hf

KINDS = ["adapter", "whole", "hybrid"]
BASE_PAGE = "---\nlicense: apache-2.0\nbase_model: someone/something\n---\n# A base\n"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("saved")
    base = tiny_folder(root / "base")
    (base / "README.md").write_text(BASE_PAGE)
    add_sleep(insert("llama", AutoModelForCausalLM.from_pretrained(base)), asleep(2)).save_pretrained(root / "adapter")
    sleeping("llama", asleep(2), dtype=torch.float32).save_pretrained(root / "whole")
    own(asleep(2), dtype=torch.float32).save_pretrained(root / "hybrid")
    for kind in ("whole", "hybrid"):
        tiny_tokenizer().save_pretrained(root / kind)
    return {kind: root / kind for kind in KINDS}


# README.md and the tokenizer


@pytest.mark.parametrize("kind", KINDS)
def test_the_page(kind: str, folders: dict[str, Path]) -> None:
    page = (folders[kind] / "README.md").read_text()
    card: Any = ModelCard.load(folders[kind] / "README.md").data
    assert (card.library_name, card.pipeline_tag) == ("transformers", "text-generation")
    assert card.tags == ["reverie", "custom_code"]
    assert "When its window of 8 tokens is full, it sleeps, 2 passes over the window" in page
    assert ("from reverie.hf import load_hybrid" if kind == "hybrid" else "from reverie.hf import load\n") in page
    assert "pip install 'reverie[hf]'" in page
    if kind == "adapter":
        assert (card.license, card.base_model) == ("apache-2.0", "someone/something")
        assert "It is an adapter of " in page
        assert "Layers with fast weights follow blocks 0, 2." in page
        assert "Of the base, someone/something: apache-2.0." in page
        assert "The tokenizer is in this folder, too." in page
    else:
        assert (card.license, card.base_model) == (None, None)
        assert "There is no base model whose licence would hold." in page


def test_an_unknown_licence_and_one_that_is_handed_on(folders: dict[str, Path], tmp_path: Path) -> None:
    tiny("llama").save_pretrained(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    insert_fast_weights(model, [0])
    model.save_pretrained(tmp_path / "out")
    page = (tmp_path / "out" / "README.md").read_text()
    assert f"Of the base, {tmp_path / 'base'}: unknown." in page
    assert "As it was saved, it never sleeps." in page
    assert "There is no tokenizer in this folder." in page
    assert not (tmp_path / "out" / "tokenizer_config.json").exists()
    again = load(folders["adapter"])
    again.resize_token_embeddings(70)
    again.save_pretrained(tmp_path / "again")
    page = (tmp_path / "again" / "README.md").read_text()
    assert "All of its weights are here." in page
    assert "Of the base, someone/something: apache-2.0." in page
    (tmp_path / "base" / "README.md").write_text("---\nlicense: other\nlicense_name: my-own\n---\n")
    model.save_pretrained(tmp_path / "out")
    assert f"Of the base, {tmp_path / 'base'}: my-own." in (tmp_path / "out" / "README.md").read_text()
    (tmp_path / "base" / "README.md").write_bytes(b"---\n: : [\xff\n---\n")
    model.save_pretrained(tmp_path / "out")
    assert f"Of the base, {tmp_path / 'base'}: unknown." in (tmp_path / "out" / "README.md").read_text()


def test_pages_that_others_wrote_stay(tmp_path: Path) -> None:
    model = sleeping("llama", asleep(2))
    (tmp_path / "README.md").write_text("Mine.\n")
    model.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "Mine.\n"
    (tmp_path / "README.md").unlink()
    model.save_pretrained(tmp_path)
    first = (tmp_path / "README.md").read_text()
    add_sleep(model, asleep(3)).save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == first.replace("2 passes", "3 passes") != first


def test_the_tokenizer_comes_along(folders: dict[str, Path], tmp_path: Path) -> None:
    wanted = tiny_tokenizer()("Rain fell").input_ids
    assert AutoTokenizer.from_pretrained(folders["adapter"])("Rain fell").input_ids == wanted
    for name in ("adapter", "hybrid"):
        model: Any = AutoModelForCausalLM.from_pretrained(folders[name])
        model.save_pretrained(tmp_path / name)
        assert AutoTokenizer.from_pretrained(tmp_path / name)("Rain fell").input_ids == wanted
    other = tiny_tokenizer()
    other.add_tokens(["torrents"])
    other.save_pretrained(tmp_path / "adapter")
    load(folders["adapter"]).save_pretrained(tmp_path / "adapter")
    assert len(AutoTokenizer.from_pretrained(tmp_path / "adapter")) == len(other)


def test_trainer_writes_its_own_page_and_reads_ours(folders: dict[str, Path], tmp_path: Path) -> None:
    model = load(folders["adapter"])
    arguments = TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True)
    trainer = Trainer(model=model, args=arguments, processing_class=tiny_tokenizer())
    trainer.save_model()
    assert "A language model that sleeps" in (tmp_path / "README.md").read_text()
    trainer.create_model_card(tags=["mine"])
    page = (tmp_path / "README.md").read_text()
    assert "generated automatically according to the information the Trainer had" in page
    card: Any = ModelCard.load(tmp_path / "README.md")
    assert "reverie" in card.data.tags
    trainer.save_model()
    assert (tmp_path / "README.md").read_text() == page
    assert load(tmp_path).sleep_config == model.sleep_config


def test_what_is_pushed(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers saves into a folder and takes all of it, with the card that the hub has."""
    pushed: dict[str, set[str]] = {}

    def upload(self: object, folder: str, repo_id: str, **kwargs: Any) -> str:
        pushed[repo_id] = {path.name for path in Path(folder).iterdir()}
        return repo_id

    class Hub:
        def create_repo(self, repo_id: str, **kwargs: Any) -> Any:
            return type("Repo", (), {"repo_id": repo_id})

    monkeypatch.setattr("transformers.utils.hub.PushToHubMixin._upload_modified_files", upload)
    monkeypatch.setattr("transformers.utils.hub.create_and_tag_model_card", lambda *_, **__: ModelCard(BASE_PAGE))
    monkeypatch.setattr("transformers.utils.hub.hf_api", Hub)
    for kind in KINDS:
        model: Any = AutoModelForCausalLM.from_pretrained(folders[kind])
        model.push_to_hub(f"me/{kind}")
        assert {"config.json", "model.safetensors", "README.md", "reverie_model.py"} < pushed[f"me/{kind}"]


# Auto classes, in a process that has not imported reverie


def python(code: str, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Offline, as a script without a terminal."""
    given = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(home), **environment}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=given, cwd=home, stdin=subprocess.DEVNULL
    )


SCRIPT = """
import sys, torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, pipeline
assert "reverie" not in sys.modules
folder, out = {folder!r}, {out!r}
trust = dict(trust_remote_code=True)
config = AutoConfig.from_pretrained(folder, **trust)
assert config.model_type == {kind!r}
config.save_pretrained(out + "-config")
model = AutoModelForCausalLM.from_pretrained(folder, **trust)
assert model.sleep_config.window_size == 8
tokenizer = AutoTokenizer.from_pretrained(folder, **trust)
written = pipeline("text-generation", folder, **trust)("Rain", max_new_tokens=9, do_sample=False)
ids = tokenizer("Rain", return_tensors="pt").input_ids
wanted = tokenizer.decode(model.generate(ids, max_new_tokens=9, do_sample=False)[0], skip_special_tokens=True)
assert written[0]["generated_text"] == wanted, (written, wanted)
model.save_pretrained(out)
again = AutoModelForCausalLM.from_pretrained(out, **trust)
assert torch.equal(again(ids).logits, model(ids).logits)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_auto_classes_find_reverie(kind: str, folders: dict[str, Path], tmp_path: Path) -> None:
    names = {"folder": str(folders[kind]), "out": str(tmp_path / "out")}
    kind = "reverie_hybrid" if kind == "hybrid" else "reverie_sleep"
    done = python(SCRIPT.format(kind=kind, **names), tmp_path)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "out-config").iterdir()} == {"config.json"}
    code = [path.name for path in (tmp_path / "out").glob("*.py")]
    assert code == ["reverie_model.py"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_said_without_leave_and_without_reverie(kind: str, folders: dict[str, Path], tmp_path: Path) -> None:
    load_it = f"from transformers import AutoModelForCausalLM as A; A.from_pretrained({str(folders[kind])!r}"
    done = python(f"{load_it})", tmp_path)
    assert done.returncode == 1
    assert "Please pass the argument `trust_remote_code=True`" in done.stderr
    assert "upgrade" not in done.stderr
    done = python(f"import sys; sys.modules['reverie'] = None; {load_it}, trust_remote_code=True)", tmp_path)
    assert done.stderr.endswith("ImportError: this model needs the package reverie: pip install 'reverie[hf]'\n")
    done = python(f"import reverie.hf; {load_it})", tmp_path)
    assert done.returncode == 0, done.stderr


# Code in a folder

EVIL = """
from pathlib import Path
Path({trace!r}).touch()
class Evil:
    pass
"""


def poisoned(folder: Path, to: Path, trace: Path) -> Path:
    """A copy whose every way to bring code of its own leaves a trace."""
    shutil.copytree(folder, to)
    code = EVIL.format(trace=str(trace))
    for name in ("reverie_model", "evil", "modeling_evil"):
        (to / f"{name}.py").write_text(code)
    (to / "custom_generate").mkdir()
    (to / "custom_generate" / "generate.py").write_text(code + "def generate(*args, **kwargs): pass\n")
    evil = {name: "evil.Evil" for name in ("AutoConfig", "AutoModelForCausalLM", "AutoModel", "AutoTokenizer")}
    for name in ("config.json", "tokenizer_config.json"):
        if (to / name).exists():
            content = json.loads((to / name).read_text())
            content["auto_map"] = evil | ({"AutoTokenizer": ["evil.Evil", None]} if name != "config.json" else {})
            if "base_config" in content:
                content["base_config"]["auto_map"] = evil
            (to / name).write_text(json.dumps(content))
    return to


@pytest.mark.parametrize("kind", KINDS)
def test_no_code_of_a_folder_is_run(
    kind: str, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = tmp_path / "trace"
    folder = poisoned(folders[kind], tmp_path / "evil", trace)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    if kind == "hybrid":
        load_hybrid(folder)
        with pytest.raises(UserError, match="no trust_remote_code: no code that comes with a model is run"):
            load_hybrid(folder, trust_remote_code=True)
    else:
        base = poisoned(folders["adapter"].parent / "base", tmp_path / "evil_base", trace)
        load(folder, **({"base": base} if kind == "adapter" else {}))
        with pytest.raises(UserError, match="no trust_remote_code: no code that comes with a model is run"):
            load(folder, trust_remote_code=True)
    load_base(folder)
    with pytest.raises(UserError, match="no trust_remote_code: no code that comes with a model is run"):
        load_base(folder, trust_remote_code=True)
    AutoModelForCausalLM.from_pretrained(folder)
    assert load_tokenizer(folder)("Rain").input_ids == tiny_tokenizer()("Rain").input_ids
    assert not trace.exists()


@pytest.mark.parametrize(
    "change",
    [
        {"injection": "evil:Evil"},
        {"inserted": [{"layers": [0], "kind": "evil:Evil", "heads": 1, "key_size": 2, "value_size": 2}]},
    ],
    ids=["injection", "mixer"],
)
def test_no_module_in_a_folder_is_imported(
    change: dict[str, Any], folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = tmp_path / "trace"
    folder = poisoned(folders["whole"], tmp_path / "evil", trace)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    for here, path in ((folder, None), (tmp_path, folder)):
        monkeypatch.chdir(here)
        if path is not None:
            monkeypatch.syspath_prepend(path)
        with pytest.raises(UserError, match="evil"):
            load(folder)
    assert not trace.exists()


@pytest.mark.parametrize("name", ["attn_implementation", "experts_implementation"])
def test_no_kernel_of_the_hub_is_asked_for(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    for kind, inside in (("whole", "base_config"), ("base", None)):
        source = folders["adapter"].parent / kind
        folder = Path(shutil.copytree(source, tmp_path / kind))
        config = json.loads((folder / "config.json").read_text())
        (config if inside is None else config[inside])[name] = "evil/kernels"
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(UserError, match=f"asks for {name} evil/kernels, which is code"):
            load_base(folder)
    assert load(folders["whole"], attn_implementation="eager")(text(L)).logits.shape == (2, L, 61)
