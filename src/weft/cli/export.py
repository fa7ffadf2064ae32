"""weft export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from weft.cli.options import SessionArgument

ProjectOption = Annotated[
    Path | None,
    typer.Option(help="Folder that RELION is started in: names become relative to it."),
]

app = typer.Typer(rich_markup_mode=None, no_args_is_help=True, help="Write results for other programs.")


@app.command()
def micrographs(
    session: SessionArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="The STAR file to write.")],
    project: ProjectOption = None,
    selected: Annotated[bool, typer.Option("--selected", help="Only what `weft select` chose.")] = False,
) -> None:
    """The micrographs with their CTF and motion, as RELION 3.1 and later and cryoSPARC read them."""
    from weft.session.session import open as open_session
    from weft.session.tables import write_micrographs_star

    opened = open_session(session)
    found = opened.store.read_all()
    verdicts = opened.selection.judge({name: record.metrics for name, record in found.items()})
    records = [record for name, record in found.items() if not selected or verdicts[name].selected]
    output.parent.mkdir(parents=True, exist_ok=True)
    count = write_micrographs_star(output, records, opened.root, project)
    typer.echo(f"{count} micrographs: {output}")


@app.command()
def motion(
    session: SessionArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for one STAR file a movie.")],
    project: ProjectOption = None,
) -> None:
    """The tracks in RELION's motion STAR, for Bayesian polishing to start from."""
    from weft.session.session import open as open_session
    from weft.session.steps.motion import write_motion_star

    opened = open_session(session)
    output.mkdir(parents=True, exist_ok=True)
    count = 0
    for movie in opened:
        done = movie.record.steps.get("motion") if movie.record else None
        if done is not None and done.status == "done":
            write_motion_star(output / f"{movie.name}.star", movie, done, opened.root, project)
            count += 1
    typer.echo(f"{count} movies: {output}")
