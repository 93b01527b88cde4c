"""A folder of documents becomes memories in one store, by actors of Ray Data; broken off, the same command goes on.

    python examples/ray_read.py DOCUMENTS --model example --store memories --workers 2

Every text file below DOCUMENTS becomes a memory of its name. While it is read, the store has what was read so far; what
is there is not read again. A line of JSON for each document says what became of it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
from pathlib import Path
from typing import Any

import ray.data  # pyright: ignore[reportMissingImports]

from reverie.errors import UserError
from reverie.memory.store import MemoryStore
from reverie.talk.reading import Reading, read_file
from reverie.talk.sleeper import load_model

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")


class Reader:
    """An actor with a model and the store, which reads one document after the other."""

    def __init__(self, model: str, store: str, device: str) -> None:
        self._sleeper, self._store = load_model(model, device), MemoryStore(store)

    def __call__(self, document: dict[str, Any]) -> dict[str, Any]:
        """Read a document to its end, from where the store has it; what is to be told of it."""
        name = document["name"]
        told = {"name": name, "tokens": 0, "new_tokens": 0, "problem": ""}
        try:
            tokens = self._sleeper.text(read_file(document["path"]))
            begun = self._store.get(name, self._sleeper) if name in self._store else None
            reading = Reading(
                self._sleeper,
                tokens,
                Path(name),
                notes={"source": Path(document["path"]).name},
                memory=begun,
                save=lambda memory, path: self._store.put(name, memory),
            )
            while not reading.complete:
                reading.step()
                reading.save_if_due()
            if reading.done > reading.first:
                reading.save()
            return {**told, "tokens": reading.done, "new_tokens": reading.done - reading.first}
        except UserError as error:  # of this document alone
            return {**told, "problem": str(error)}


def documents_in(folder: Path, suffix: str) -> list[dict[str, str]]:
    """Paths of documents, and the names of their memories. Raises UserError if there are none."""
    paths = sorted(path for path in folder.rglob(f"*{suffix}") if path.is_file())
    if not paths:
        raise UserError(f"there are no documents *{suffix} in {folder}")
    return [{"path": str(path.resolve()), "name": name_of(path.relative_to(folder), suffix)} for path in paths]


def name_of(path: Path, suffix: str) -> str:
    """A document's path as the name of a memory; with a hash where it is none as it is."""
    plain = path.as_posix().removesuffix(suffix)
    if _NAME.fullmatch(plain):
        return plain
    legible = re.sub("[^A-Za-z0-9_]+", "-", plain).strip("-")[:80] or "document"
    return f"{legible}.{hashlib.sha256(plain.encode()).hexdigest()[:8]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("documents", type=Path, help="a folder that all workers can read")
    parser.add_argument("--model", default="example", help="as for reverie read")
    parser.add_argument("--store", default="memories", help="a folder that all workers can write to, or a URL")
    parser.add_argument("--suffix", default=".txt", help="of documents")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--device", default="cpu", help="cuda gives every worker one GPU")
    options = parser.parse_args()
    try:
        documents = documents_in(options.documents, options.suffix)
        load_model(options.model)  # what is wrong with it is told once, and at once
        MemoryStore(options.store)
    except UserError as error:
        parser.error(str(error))
    model = str(Path(options.model).resolve()) if Path(options.model).exists() else options.model
    store = options.store if "://" in options.store else str(Path(options.store).resolve())
    # One document a block: a worker takes the next when it is done with one.
    read = ray.data.from_items(documents, override_num_blocks=len(documents)).map(
        Reader,
        fn_constructor_args=(model, store, options.device),
        compute=ray.data.ActorPoolStrategy(size=options.workers, max_tasks_in_flight_per_actor=1),
        num_cpus=1,
        num_gpus=1 if options.device == "cuda" else 0,
    )
    problems = 0
    for told in read.iter_rows():
        problems += bool(told["problem"])
        print(json.dumps(told), flush=True)
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
