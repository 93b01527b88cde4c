"""`reverie convert`: a model of transformers that sleeps, as a folder."""

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedModel

from reverie.errors import UserError
from reverie.files import writing
from reverie.hf.add import add_sleep, insert_fast_weights, install
from reverie.hf.bases import load_base, load_tokenizer
from reverie.hf.decoder import sleeping_decoder
from reverie.model import count_parameters, model_remembers
from reverie.sleep import SleepConfig

SAMPLE = "While we are awake, words fill the window; asleep, we go over them again, and what was understood stays."


@dataclass(frozen=True)
class Conversion:
    """Facts about a conversion: the source, the model that it became, and its files."""

    source: str
    model: str  # its class
    path: str
    files_bytes: int
    num_blocks: int
    parameters: int  # without inserted layers
    added_parameters: int
    kind: str | None  # of the inserted layers; None: the model has fast weights of its own
    after: tuple[int, ...]  # blocks that an inserted layer follows
    window_size: int
    num_sleep_passes: int
    eviction: str
    looped_blocks: tuple[int, int] | None
    checked_tokens: int  # of a text on which the logits are those of before, bit for bit
    remembers: bool  # False: the layers need training before anything in memory matters


def convert(
    source: str,
    out: Path,
    config: SleepConfig,
    *,
    kind: str | None = None,
    layers: int = 6,
    after: Sequence[int] | None = None,
) -> Conversion:
    """Load a model, insert layers with fast weights if `kind` says so, and save it with its tokenizer.

    Args:
        source: "smollm2", a folder, or a hub id.
        out: a folder that does not exist, or is empty.
        layers: how many to insert, spread evenly, where `after` is absent.
        after: the blocks that they follow, from 0.

    Raises:
        UserError: this cannot be done, or the logits of the model would not be what they were.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is there already; choose a new folder")
    model = load_base(source)
    tokenizer = load_tokenizer(source)
    before = getattr(model, "sleep_config", config)  # it may sleep already
    tokens = tokenizer(SAMPLE, return_tensors="pt").input_ids[:, : min(before.window_size, config.window_size)]
    with torch.no_grad():
        wanted = model(tokens).logits
    parameters = count_parameters(model)
    after = _insert(model, kind, layers, after)
    add_sleep(model, config)
    with torch.no_grad():
        difference = (model(tokens).logits - wanted).abs().max()
    if not difference == 0:  # NaN neither
        raise UserError(f"the logits of {type(model).__name__} are not what they were: off by up to {difference:.2g}")
    with writing(out):  # both, or nothing
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".converting-", dir=out.parent) as beside:
            finished = Path(beside) / out.name
            model.save_pretrained(finished)
            tokenizer.save_pretrained(finished)
            os.replace(finished, out)
    return Conversion(
        source=source,
        model=type(model).__name__,
        path=str(out),
        files_bytes=sum(file.stat().st_size for file in out.iterdir()),
        num_blocks=len(sleeping_decoder(model).layers),
        parameters=parameters,
        added_parameters=count_parameters(model) - parameters,
        kind=kind,
        after=after,
        checked_tokens=tokens.shape[1],
        remembers=model_remembers(model),
        **config.model_dump(exclude={"tolerance", "bidirectional_sleep"}),
    )


def spread(count: int, num_blocks: int) -> tuple[int, ...]:
    """Indices of `count` blocks at even distances, the last block among them: 6 of 30 are 4, 9, 14, 19, 24, 29."""
    if not 1 <= count <= num_blocks:
        raise UserError(f"layers must be 1 to {num_blocks}, the number of blocks, got {count}")
    return tuple((i + 1) * num_blocks // count - 1 for i in range(count))


def conversion_table(done: Conversion) -> Table:
    """The conversion as a table for a terminal."""
    loop = "all blocks" if done.looped_blocks is None else "blocks {} to {}".format(*done.looped_blocks)
    rows = {
        "model": f"{done.source} ({done.model}, {done.num_blocks} blocks)",
        "parameters": f"{done.parameters:,}",
        "sleep": f"every {done.window_size:,} tokens, {done.num_sleep_passes} passes through {loop}",
        "eviction": done.eviction,
        "unchanged": f"logits of {done.checked_tokens} tokens are bit for bit those of before",
        "files": f"{done.path} ({done.files_bytes / 2**20:,.1f} MiB)",
    }
    if done.kind is not None:
        share, places = done.added_parameters / done.parameters, ", ".join(map(str, done.after))
        rows["parameters"] += (
            f" + {done.added_parameters:,} ({share:.1%}) = {done.parameters + done.added_parameters:,}"
        )
        rows["inserted"] = f"{len(done.after)} {done.kind} layers, after blocks {places}"
    table = Table(title="converted", show_header=False, title_justify="left")
    for name in ("model", "parameters", "inserted", "sleep", "eviction", "unchanged", "files"):
        if name in rows:
            table.add_row(name, Text(rows[name]))
    return table


def _insert(model: PreTrainedModel, kind: str | None, layers: int, after: Sequence[int] | None) -> tuple[int, ...]:
    """Insert the layers, if there is a kind, and return the blocks that they follow."""
    install(model)
    decoder = sleeping_decoder(model)
    if kind is None:
        if not decoder.sleeping.fast_weight_blocks:
            raise UserError(f"{type(model).__name__} has no fast weights: insert layers of kind jet or gdn")
        return ()
    after = spread(layers, len(decoder.layers)) if after is None else tuple(after)
    insert_fast_weights(model, after, kind)
    return after
