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

OnlyOption = Annotated[str | None, typer.Option(metavar="GLOB", help="Only series whose name matches.")]

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
    from weft.session.items import Movie
    from weft.session.session import open as open_session
    from weft.session.steps.motion import write_motion_star

    opened = open_session(session)
    output.mkdir(parents=True, exist_ok=True)
    count = 0
    for movie in opened:
        done = movie.record.steps.get("motion") if movie.record else None
        if isinstance(movie, Movie) and done is not None and done.status == "done":
            write_motion_star(output / f"{movie.name}.star", movie, done, opened.root, project)
            count += 1
    typer.echo(f"{count} movies: {output}")


@app.command()
def alignments(
    session: SessionArgument,
    to: Annotated[str, typer.Option(help="imod, aretomo, dynamo, relion or warp.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write into.")],
    only: OnlyOption = None,
    project: ProjectOption = None,
    invert_angles: Annotated[
        bool, typer.Option("--invert-angles", help="Of the specimen's mirror image, as on import.")
    ] = False,
    unlevelled: Annotated[
        bool, typer.Option("--unlevelled", help="Leave out the specimen's inclination about x.")
    ] = False,
) -> None:
    """The alignment of every tilt series, for IMOD, AreTomo, Dynamo, RELION 5 or Warp.

    It is that of the images in tiltstack/NAME/NAME.st of the session.
    """
    from weft.session.alignment_export import export_alignments
    from weft.session.session import open as open_session

    report = export_alignments(
        open_session(session),
        output,
        to,  # type: ignore[arg-type]  # what it is, is checked there
        only=only,
        project=project,
        invert_angles=invert_angles,
        unlevelled=unlevelled,
    )
    for line in (*report.problems, *report.notes):
        typer.echo(line)
    typer.echo(f"{len(report.written)} tilt series: {output}")
    raise typer.Exit(report.exit_code)


@app.command()
def tomograms(
    session: SessionArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="The STAR file to write.")],
    only: OnlyOption = None,
    project: ProjectOption = None,
) -> None:
    """RELION 5's tomograms.star, and tilt_series/ beside it with the tilts of each series."""
    from weft.session.session import open as open_session
    from weft.session.tomogram_export import export_tomograms

    report = export_tomograms(open_session(session), output, only=only, project=project)
    for problem in report.problems:
        typer.echo(problem)
    typer.echo(f"{len(report.written)} tilt series: {output}")
    raise typer.Exit(report.exit_code)


@app.command()
def warp(
    session: SessionArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the project.")],
    only: OnlyOption = None,
    copy: Annotated[bool, typer.Option("--copy", help="Copy images instead of linking them.")] = False,
    invert_angles: Annotated[
        bool, typer.Option("--invert-angles", help="Of the specimen's mirror image, as on import.")
    ] = False,
) -> None:
    """A project that WarpTools and M go on with: settings, movies, tilt series, CTF, motion, images."""
    from weft.session.session import open as open_session
    from weft.session.warp_project import export_warp

    report = export_warp(open_session(session), output, only=only, copy=copy, invert_angles=invert_angles)
    for line in (*report.problems, *report.notes):
        typer.echo(line)
    typer.echo(f"{report.movies} movies, {len(report.written)} tilt series: {output}")
    raise typer.Exit(report.exit_code)
