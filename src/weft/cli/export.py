"""weft export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from weft.cli.export_particles import particles
from weft.cli.options import SessionArgument, settings_options
from weft.cli.progress import counted
from weft.session.particle_export_settings import ParticleExportSettings

ProjectOption = Annotated[
    Path | None,
    typer.Option(help="Folder that RELION is started in: names become relative to it."),
]

OnlyOption = Annotated[str | None, typer.Option(metavar="GLOB", help="Only series whose name matches.")]

app = typer.Typer(rich_markup_mode=None, no_args_is_help=True, help="Write results for other programs.")
app.command()(particles)


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


@app.command()
@settings_options(ParticleExportSettings)
def subtomograms(
    session: SessionArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write into.")],
    template: Annotated[
        str | None,
        typer.Option(help="Stem of the template whose candidates are exported; not needed if there is one."),
    ] = None,
    particles: Annotated[
        Path | None,
        typer.Option(help="Export these instead: a STAR file of any program, or Dynamo's table (.tbl)."),
    ] = None,
    coordinate_pixel: Annotated[
        float | None,
        typer.Option(metavar="A", help="Å: of coordinates in pixels, where their file does not say it."),
    ] = None,
    only: OnlyOption = None,
    project: ProjectOption = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "cpu",
    settings: Any = None,
) -> None:
    """Particles cut from tilt images: sub-volumes with CTF volumes, or stacks of tilt images, with tables."""
    from weft.session.particle_lists import find_particles
    from weft.session.session import open as open_session
    from weft.session.subtomogram_export import export_subtomograms
    from weft.session.work import resolve_device

    opened = open_session(session)
    found = find_particles(
        opened, template=template, particles=particles, only=only, pixel_size=coordinate_pixel
    )
    report = export_subtomograms(
        opened,
        output,
        found,
        ParticleExportSettings(**settings),
        only=only,
        project=project,
        device=resolve_device(device),
        progress=counted("particles"),
    )
    for line in (*report.problems, *report.notes):
        typer.echo(line)
    for why, count in report.skipped.items():
        typer.echo(f"{count} particles left out: {why}")
    typer.echo(f"{report.count} particles of {len(report.written)} tomograms: {report.path or output}")
    raise typer.Exit(report.exit_code)


@app.command()
def cryosparc(
    session: SessionArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write into.")],
    particles: Annotated[
        Path | None,
        typer.Option(help="particles.star of `weft export particles`, or its folder.", show_default=False),
    ] = None,
    dark: Annotated[
        bool, typer.Option("--dark", help="The particles' images were not inverted: particles are dark.")
    ] = False,
) -> None:
    """Selected micrographs with their CTF, and particles, for cryoSPARC's Import Result Group."""
    from weft.session.cryosparc_export import export_cryosparc
    from weft.session.session import open as open_session

    report = export_cryosparc(open_session(session), output, particles=particles, dark=dark)
    typer.echo(report.describe())
    raise typer.Exit(report.exit_code)


@app.command()
def picks(
    session: SessionArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write into.")],
    picks: Annotated[
        str | None,
        typer.Option(help="Which, by the folder in picks/; not needed if there is one.", show_default=False),
    ] = None,
    box: Annotated[
        float | None,
        typer.Option(metavar="A", help="Write EMAN's .box files with boxes of this side instead, in Å."),
    ] = None,
    only: Annotated[str | None, typer.Option(metavar="GLOB", help="Only items whose name matches.")] = None,
    project: ProjectOption = None,
) -> None:
    """Particle coordinates as RELION's autopick.star with a file for each micrograph, or as boxes."""
    from weft.session.pick_export import export_picks
    from weft.session.session import open as open_session

    report = export_picks(open_session(session), output, picker=picks, box=box, only=only, project=project)
    typer.echo(report.describe())
    raise typer.Exit(report.exit_code)
