"""`reverie memories`: parses and calls; no logic."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from reverie.cli.options import AsJson
from reverie.cli.terminal import interruptible, out_console, say, tell
from reverie.errors import plain

if TYPE_CHECKING:
    from reverie.memory.store import StoreEntry

app = typer.Typer(rich_markup_mode=None)


@app.command("memories")
def memories_command(
    store: Annotated[
        str, typer.Argument(metavar="STORE", help="A folder, or a URL such as s3://bucket/folder.")
    ] = "memories",
    delete: Annotated[str | None, typer.Option(metavar="NAME", help="Delete this memory, and list nothing.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the memories in a folder or an object store: what was read, how, and when each was last used."""
    from reverie.memory.store import MemoryStore

    opened = MemoryStore(store)
    with interruptible("the store is as before, or without that memory"):
        if delete is not None:
            opened.delete(delete)
            return say(json.dumps({"deleted": delete}) if as_json else f"deleted {delete}")
        entries = opened.list()
    if as_json:
        say(json.dumps({"store": store, "memories": [_object(entry) for entry in entries]}))
    elif entries:
        out_console.print(_table(store, entries))
    else:
        tell(f"there are no memories in {store}")


def _object(entry: StoreEntry) -> dict[str, Any]:
    info = None if entry.info is None else entry.info.model_dump(mode="json")
    return {**asdict(entry), "used": entry.used.isoformat(timespec="seconds"), "info": info}


def _table(store: str, entries: Sequence[StoreEntry]) -> Table:
    number, size = len(entries), decimal(sum(entry.nbytes for entry in entries))
    title = f"{store}: {number} {'memory' if number == 1 else 'memories'}, {size}"
    table = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("name", overflow="fold")
    for name in ("size", "tokens", "passes"):
        table.add_column(name, justify="right")
    table.add_column("source", overflow="fold")
    table.add_column("last use (UTC)", no_wrap=True)
    for entry in entries:
        info = entry.info
        tokens, passes = ("", "") if info is None else (_range(info.tokens), _range(info.passes))
        source = entry.problem if info is None else info.notes.get("source", "")
        cells = (entry.name, decimal(entry.nbytes), tokens, passes, source or "", f"{entry.used:%Y-%m-%d %H:%M}")
        table.add_row(*(Text(plain(cell)) for cell in cells), style="dim" if info is None else None)
    return table


def _range(numbers: Sequence[int]) -> str:
    """The smallest and largest value over all rows of a memory."""
    low, high = min(numbers, default=0), max(numbers, default=0)
    return f"{low:,}" if low == high else f"{low:,}–{high:,}"
