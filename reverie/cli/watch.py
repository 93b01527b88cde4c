"""`reverie watch`: parses and calls; no logic."""

from pathlib import Path
from typing import Annotated

import typer

from reverie.cli.options import AsJson, Device, device_named
from reverie.cli.terminal import show, tell, tell_if_untrained
from reverie.errors import UserError

app = typer.Typer(rich_markup_mode=None)


@app.command("watch")
def watch_command(
    source: Annotated[Path, typer.Argument(metavar="RUN|MEMORY", help="Folder of a run, or the file of a memory.")],
    example: Annotated[
        int | None, typer.Option(min=0, help="Of a run: the held-out text that is watched; 0 if absent.")
    ] = None,
    examples: Annotated[
        int | None, typer.Option(min=1, help="Of a run: texts from there on that are asked about; 64 if absent.")
    ] = None,
    passes: Annotated[int | None, typer.Option(min=1, help="Of a run: sleep passes N; as trained if absent.")] = None,
    tolerance: Annotated[
        float | None, typer.Option(help="Of a run: wake when a pass changes the fast weights less, such as 0.1.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="PNG", help="The figure; watch.png in the run if absent, or beside the memory."),
    ] = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Show what sleep does to a memory, window by window and pass by pass; of a run also what it then answers."""
    from reverie.results.watch.collect import watch_memory, watch_run
    from reverie.results.watch.table import watch_table

    asked = {"example": example, "examples": examples, "num_sleep_passes": passes, "tolerance": tolerance}
    given = {name: value for name, value in asked.items() if value is not None}
    if out is not None and out.suffix != ".png":
        raise UserError(f"--out is a figure and must end in .png, got {out}")
    if source.is_dir():
        watch, figure = watch_run(source, **given, device=device_named(device)), source / "watch.png"
    elif not source.exists():
        raise UserError(
            f"there is neither a run nor a memory at {source}: give the folder that reverie train wrote, or the file "
            "that reverie read wrote"
        )
    elif given:
        raise UserError(
            f"--example, --examples, --passes and --tolerance are for the folder of a run, but {source} is a file: a "
            "memory is shown as it was made"
        )
    else:
        watch, figure = watch_memory(source), source.with_suffix(".watch.png")
    tell_if_untrained(watch.remembers)
    show(as_json, watch, watch_table(watch))
    from reverie.results.plots import save_figure
    from reverie.results.watch.figure import draw

    save_figure(draw(watch), out or figure)  # last: the numbers are shown even where it cannot be written
    tell(f"figure in {out or figure}")
