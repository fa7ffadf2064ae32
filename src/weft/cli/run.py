"""weft run."""

from __future__ import annotations

import signal
from typing import Annotated

import typer

from weft.cli.options import SessionArgument

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def run(
    session: SessionArgument,
    steps: Annotated[str | None, typer.Option(metavar="A,B", help="Only these and what they need.")] = None,
    only: Annotated[str | None, typer.Option(metavar="GLOB", help="Only items whose name matches.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change weft.toml first; repeatable."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    workers: Annotated[int | None, typer.Option(min=0, help="Processes; 0 works in this one.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of each worker.")] = None,
    scheduler: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS|FILE", help="Use a dask cluster that runs already; see `weft workers`."
        ),
    ] = None,
    retry: Annotated[bool, typer.Option("--retry", help="Also what failed by a fault of its own.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only the summary.")] = False,
) -> None:
    """Bring every item into accord with the settings; what is done already is left alone.

    Exit code 0: all done. 1: some items failed, the rest are finished and written. 2: nothing was done.
    """
    from weft.cli.options import split_assignment
    from weft.cli.progress import show_progress, summary
    from weft.session.session import open as open_session

    # a stop by the queueing system is as clean as Ctrl-C
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    opened = open_session(session)
    for text in set_ or ():
        opened.set(*split_assignment(text))
    with show_progress(quiet=quiet) as progress:
        report = opened.run(
            steps=[name.strip() for name in steps.split(",") if name.strip()] if steps else None,
            only=only,
            workers=workers,
            threads=threads,
            device=device,
            retry=retry,
            scheduler=scheduler,
            progress=progress,
        )
    typer.echo(summary(report, opened.root))
    raise typer.Exit(report.exit_code)
