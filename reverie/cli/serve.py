"""`reverie serve`: parses and calls; no logic."""

from __future__ import annotations

from typing import Annotated

import typer

from reverie.cli.memory import ModelName
from reverie.cli.options import Device, Int8, device_named
from reverie.cli.terminal import tell
from reverie.errors import UserError

app = typer.Typer(rich_markup_mode=None)


@app.command("serve")
def serve_command(
    model: ModelName,
    store: Annotated[str, typer.Option(metavar="DIR", help="Where sessions and memories are kept.")] = "served",
    host: Annotated[str, typer.Option(help="Address to listen at; other than loopback only with a key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            envvar="REVERIE_API_KEYS",
            help="Who gives one of these may ask; may be repeated. Better in the environment, separated by spaces.",
        ),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, max=256, help="Processes over one store, each with the model.")] = 1,
    idle_sleep: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            help="Sleep over a response's unfinished window when nobody has gone on from it for so long.",
        ),
    ] = None,
    int8: Int8 = False,
    device: Device = "auto",
) -> None:
    """Serve a model behind OpenAI's interface; its sessions sleep, and survive a restart.

    Ctrl-C ends it.
    """
    try:
        from reverie.serve.run import LOOPBACK, Settings, folder_for, run
    except ImportError as error:
        raise UserError(f"this needs the package {error.name}; run pip install 'reverie[serve]'") from None
    keys = tuple(api_key or ())
    if host not in LOOPBACK and not keys:
        raise UserError(f"--host {host} lets others in: give an --api-key too")
    if any(not key.strip() or not key.isascii() for key in keys):
        raise UserError("--api-key must be letters, digits and signs of ASCII, and not empty")
    if idle_sleep is not None and not 0 < idle_sleep <= 10**9:
        raise UserError(f"--idle-sleep must be a number of seconds above 0, got {idle_sleep:g}")
    where, asked = (
        str(device_named(device)),
        {"keys": keys, "int8": int8, "workers": workers, "idle_sleep_s": idle_sleep},
    )
    run(Settings(model=model, store=folder_for(store), device=where, host=host, port=port, **asked), tell)
