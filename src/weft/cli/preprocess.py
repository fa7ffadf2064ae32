"""weft preprocess."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated, Any

import typer

from weft.cli.options import settings_options
from weft.micrographs.preprocessing import PreprocessSettings

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
@settings_options(PreprocessSettings)
def preprocess(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for what is made.")],
    inputs: Annotated[
        list[str] | None,
        typer.Argument(help="Micrographs, folders, quoted patterns, STAR files, or sessions."),
    ] = None,
    pixel_size: Annotated[
        float | None, typer.Option(help="Å of the inputs, instead of what their headers say.")
    ] = None,
    float16: Annotated[bool, typer.Option("--float16", help="Write half-precision MRC (mode 12).")] = False,
    pictures: Annotated[
        bool, typer.Option("--pictures", help="Write pictures of image and spectrum, before and after.")
    ] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Go on for as long as inputs come; see --close and --idle.")
    ] = False,
    idle: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Stop watching when nothing has come for so long.")
    ] = None,
    close: Annotated[
        bool, typer.Option("--close", help="Tell whoever watches for --output that no more inputs come.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    workers: Annotated[int | None, typer.Option(min=0, help="Processes; 0 works in this one.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of each worker.")] = None,
    retry: Annotated[bool, typer.Option("--retry", help="Also what failed by a fault of its own.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only the summary.")] = False,
    settings: Any = None,
) -> None:
    """Prepare micrographs: crop, logarithm, bad pixels, invert, downsample, denoise, filter, normalise.

    Any of the operations, always in this order. What is done already is left alone; what has changed is
    done again. A STAR file among the inputs gives one of the same name for what is made.
    """
    from weft.cli.progress import duration, show_progress
    from weft.errors import SettingsError
    from weft.session.micrograph_set import SetOptions, preprocess_set
    from weft.session.micrograph_set import close as close_set

    if close:
        close_set(output)
        typer.echo(f"{output}: told that no more inputs come")
        return
    try:
        wanted = PreprocessSettings(**settings)
    except ValueError as error:
        from weft.session.fields import explain

        raise SettingsError(explain(error, PreprocessSettings, "weft preprocess: ")) from None  # type: ignore[arg-type]
    # a stop by the queueing system is as clean as Ctrl-C
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    options = SetOptions(
        pixel_size=pixel_size, float16=float16, pictures=pictures, watch=watch, idle=idle, retry=retry
    )
    with show_progress(quiet=quiet) as progress:
        report = preprocess_set(
            inputs or [],
            output,
            wanted,
            options,
            workers=workers,
            threads=threads,
            device=device,
            progress=progress,
        )
    typer.echo((output / "summary.txt").read_text(encoding="utf-8").rstrip())
    stopped = "stopped; run again to go on: " if report.interrupted else ""
    typer.echo(
        f"{stopped}{len(report.done)} done now, {len(report.current)} already, {len(report.failed)} failed, "
        f"in {duration(report.seconds)}; see {output}"
    )
    raise typer.Exit(report.exit_code)
