"""What a saved folder holds beside config and weights: its tokenizer, a page that says what it is, and an entry for
transformers' Auto classes where reverie is not imported."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from transformers.utils import CONFIG_NAME
from transformers.utils.hub import cached_file

from reverie.hf.bases import load_tokenizer
from reverie.hf.decoder import sleeping_decoder
from reverie.hf.models.smollm2 import SMOLLM2, SMOLLM2_HUB, smollm2_license
from reverie.hf.reading import AWAKE
from reverie.pretrained.shipped import SHIPPED, tokenizer_place
from reverie.sleep import SleepConfig

PAGE = "README.md"
ENTRY = "reverie_model"  # of a module
_TOKENIZER = "tokenizer_config.json"  # every tokenizer that was saved has it
_OURS = "<!-- reverie writes this page anew at every save, as long as this line is in it -->"
_TOKENIZER_FILES = (
    *(_TOKENIZER, "tokenizer.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "spiece.model", "sentencepiece.bpe.model", "chat_template.jinja"),
)

_CODE = '''\
"""Lets transformers' Auto classes load this folder: from_pretrained(folder, trust_remote_code=True).

After `import reverie.hf` they load it without this file, and reverie.hf.load never runs it.
"""

try:
    from {module} import {config}, {model}
except ImportError as error:
    raise ImportError("this model needs the package reverie: pip install 'reverie[hf]'") from error
'''


def explain(model: Any, finished: Path, folder: Path, base: str | None) -> None:
    """Add to the files of a `SleepingCausalLM` what says how to load them, and the tokenizer.

    Args:
        finished: where config and weights are.
        folder: where all of them will go.
        base: of an adapter, what it is an adapter of.
    """
    sources = sources_of(model, model.origin and model.origin.name)
    decoder, sleep = sleeping_decoder(model), model.sleep_config
    after = ", ".join(str(i) for one in decoder.inserted_configs for i in one.after)
    layers = f" Layers with fast weights follow blocks {after}." if after else ""
    part = (
        "All of its weights are here."
        if base is None
        else f"It is an adapter of {base}, which is loaded with it: new layers and trained tensors alone are here."
    )
    what = f"{type(model).__name__.removeprefix('FSDP')}. {_how(sleep)}{layers} {part}"
    add_tokenizer(finished, folder, sources)
    add_entry(finished, "reverie.hf.load", "SleepingModelConfig", "SleepingModelForCausalLM")
    add_page(finished, folder, sources, what, 'from reverie.hf import load\n\nmodel = load("this folder")')


def explain_hybrid(model: Any, finished: Path, folder: Path) -> None:
    """The same for a `ReverieHybridForCausalLM`."""
    sources, module = sources_of(model), "reverie.hf.models.hybrid"
    blocks = ", ".join(model.config.layers)
    what = f"A hybrid of reverie with the blocks {blocks}. {_how(model.sleep_config)}"
    add_tokenizer(finished, folder, sources)
    add_entry(finished, module, "ReverieHybridConfig", "ReverieHybridForCausalLM")
    load = 'from reverie.hf import load_hybrid\n\nlm, sleep_config = load_hybrid("this folder")'
    add_page(finished, folder, sources, what, load)


def _how(sleep: SleepConfig) -> str:
    if sleep == AWAKE:
        return "As it was saved, it never sleeps."
    passes = "1 pass" if sleep.num_sleep_passes == 1 else f"{sleep.num_sleep_passes} passes"
    return (
        f"When its window of {sleep.window_size:,} tokens is full, it sleeps, {passes} over the window: what it "
        "understood stays in its fast weights, and the window is cleared."
    )


def add_entry(folder: Path, module: str, config: str, model: str) -> None:
    """Name in the folder's config.json where these two classes are, for those who have not imported reverie.hf."""
    (folder / f"{ENTRY}.py").write_text(_CODE.format(module=module, config=config, model=model))
    path = folder / CONFIG_NAME
    entries = {"AutoConfig": f"{ENTRY}.{config}", "AutoModelForCausalLM": f"{ENTRY}.{model}"}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": entries}, indent=2) + "\n")


class NotCopied:
    """A config whose code `save_pretrained` does not copy into folders, after Auto classes found it through one."""

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoConfig") -> None:
        """Nothing: `add_entry` says where the class is."""


def add_tokenizer(folder: Path, kept: Path, sources: Sequence[str]) -> None:
    """Put into a folder the tokenizer of the first of these models that has one here, unless `kept` holds one."""
    if (kept / _TOKENIZER).is_file():
        return
    for source in (tokenizer_place(source) if source in SHIPPED else source for source in sources):
        if source == SMOLLM2:
            load_tokenizer(source).save_pretrained(folder)
            return
        if (found := _files(source, _TOKENIZER_FILES)) and any(path.name == _TOKENIZER for path in found):
            for path in found:
                shutil.copyfile(path, folder / path.name)
            return


def add_page(folder: Path, kept: Path, sources: Sequence[str], what: str, load: str) -> None:
    """Write README.md, unless `kept` has one that somebody else wrote.

    Args:
        kept: where the folder's files will go.
        sources: the models that this one was made of, as they were named when they were loaded; the newest first.
        what: a paragraph that says what it is.
        load: a line of Python.
    """
    if (kept / PAGE).exists() and _OURS not in (kept / PAGE).read_text(errors="replace"):
        return
    known = [_facts(source) for source in sources]
    base = next((facts.base_model for facts in known if facts.base_model), None)
    licence = next((facts.license for facts in known if facts.license), None)
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        base_model=base,
        license=licence,
        tags=["reverie", "custom_code"],
    )
    named = base or (sources[-1] if sources else None)
    of = (
        "There is no base model whose licence would hold"
        if named is None
        else f"Of the base, {named}: {licence or 'unknown'}"
    )
    tokenizer = (
        "The tokenizer is in this folder, too."
        if any((place / _TOKENIZER).is_file() for place in (folder, kept))
        else "There is no tokenizer in this folder."
    )
    text = f"""---
{data.to_yaml()}
---
{_OURS}

# A language model that sleeps

{what}

## Load it

```python
{load}
```

or, with the code in `{ENTRY}.py`, which does nothing but import reverie,

```python
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("this folder", trust_remote_code=True)
```

Both need `pip install 'reverie[hf]'`. {tokenizer}

## Licence

{of}.
"""
    (folder / PAGE).write_text(text)


def sources_of(model: Any, *others: str | None) -> list[str]:
    """The names of what a model was loaded from, the newest first."""
    return list(dict.fromkeys(str(name) for name in (model.config._name_or_path, *others) if name))


def _facts(source: str) -> ModelCardData:
    """What is known here of a model: its licence, and the name that it or its base has on the hub."""
    source = tokenizer_place(source) if source in SHIPPED else source
    if source == SMOLLM2:
        return ModelCardData(base_model=SMOLLM2_HUB, license=smollm2_license())
    local = Path(source).is_dir()
    base = None if local else source
    try:
        [page] = _files(source, [PAGE])
        data: Any = ModelCard.load(page, ignore_metadata_errors=True).data
    except Exception:  # there is none, or it is damaged, which YAML says in many ways
        return ModelCardData(base_model=base)
    named = data.base_model if isinstance(data.base_model, str) else None
    licence = data.license_name if data.license == "other" and data.license_name else data.license
    return ModelCardData(base_model=base or named, license=licence if isinstance(licence, str) else None)


def _files(source: str, names: Sequence[str]) -> list[Path]:
    """Which of these files a model has, in a folder or in the cache of the hub; the network is not asked."""
    if Path(source).is_dir():
        return [path for name in names if (path := Path(source) / name).is_file()]
    try:
        found = [
            cached_file(
                source,
                name,
                local_files_only=True,
                _raise_exceptions_for_missing_entries=False,
                _raise_exceptions_for_connection_errors=False,
            )
            for name in names
        ]
    except (OSError, ValueError):  # it was never there
        return []
    return [Path(path) for path in found if path is not None]
