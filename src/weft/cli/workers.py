"""weft workers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from weft.cli.options import SessionArgument

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def workers(
    session: SessionArgument,
    slurm: Annotated[bool, typer.Option("--slurm", help="Print a batch script for SLURM.")] = False,
    template: Annotated[
        Path | None,
        typer.Option(help="Your own script; {command}, {scheduler_file}, {session} are filled in."),
    ] = None,
    nodes: Annotated[int, typer.Option(min=1, help="How many workers the script asks for.")] = 4,
    cores: Annotated[int, typer.Option(min=1, help="Cores of each.")] = 4,
    gpus: Annotated[int, typer.Option(min=0, help="GPUs of each.")] = 0,
    hours: Annotated[int, typer.Option(min=1, help="For how long.")] = 24,
) -> None:
    """How to spread a session over the nodes of a cluster; with --slurm the batch script for the workers.

    A dask scheduler runs where every node reaches it, workers find it by its scheduler file, and
    `weft run` or `weft live` hands them work with --scheduler. Workers may come and go at any time.
    """
    from weft.session.batch_script import WorkerRequest, explain, slurm_script
    from weft.session.session import open as open_session

    opened = open_session(session)
    request = WorkerRequest(opened.root, nodes, cores, gpus, hours)
    if slurm or template is not None:
        typer.echo(slurm_script(request, template), nl=False)
    else:
        typer.echo(explain(request))
