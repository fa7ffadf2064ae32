"""weft export particles."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from weft.cli.options import SessionArgument, settings_options
from weft.cli.progress import counted
from weft.session.wanted_particles import ParticleSettings

__all__ = ["particles"]


@settings_options(ParticleSettings, skip=("write",))
def particles(
    session: SessionArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write into.")],
    particles: Annotated[
        Path | None,
        typer.Option(help="Not picks, but the particles of this STAR file of another program."),
    ] = None,
    images: Annotated[
        bool,
        typer.Option(
            "--images/--no-images", help="Cut images; without, only the table of --particles changes."
        ),
    ] = True,
    recenter: Annotated[
        bool,
        typer.Option(
            "--recenter/--no-recenter", help="Move those of --particles by the shifts that were refined."
        ),
    ] = True,
    coordinate_pixel: Annotated[
        float | None,
        typer.Option(metavar="A", help="Å: of coordinates in --particles, where the file does not say it."),
    ] = None,
    only: Annotated[
        str | None, typer.Option(metavar="GLOB", help="Only micrographs whose name matches.")
    ] = None,
    project: Annotated[
        Path | None,
        typer.Option(help="Folder that RELION is started in: names become relative to it."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "cpu",
    settings: Any = None,
) -> None:
    """Stacks of particles, cut from the movies, and particles.star with local CTF for RELION.

    Takes the picks of all micrographs that are selected; what is not given is as in weft.toml's [particles].
    A second run into the same folder does what is new or has changed.
    """
    from weft.errors import RequestError
    from weft.session.foreign_particles import read_particles, update_particles
    from weft.session.particle_export import export_particles
    from weft.session.session import open as open_session
    from weft.session.work import resolve_device

    opened = open_session(session)
    usual = opened.settings.get(ParticleSettings).model_dump()
    wanted = None
    before: dict[str, int] = {}
    notes: list[str] = []
    if particles is None:
        if not images or coordinate_pixel is not None:
            raise RequestError(
                "--no-images and --coordinate-pixel are about the file of --particles; give it."
            )
    elif not images:
        report = update_particles(opened, particles, output, only=only, coordinate_pixel=coordinate_pixel)
        _say(report, output)
        return
    else:
        found = read_particles(opened, particles, coordinate_pixel=coordinate_pixel, recenter=recenter)
        wanted, before, notes = found.wanted, found.skipped, found.notes
    report = export_particles(
        opened,
        output,
        ParticleSettings(**{**usual, **settings}),
        wanted=wanted,
        only=only,
        project=project,
        device=resolve_device(device),
        progress=counted("particles"),
    )
    report.notes[:0] = notes
    report.leave_out(before)
    _say(report, output)


def _say(report: Any, output: Path) -> None:
    for line in report.lines():
        typer.echo(line)
    typer.echo(f"{report.count} particles of {len(report.written)} micrographs: {report.path or output}")
    raise typer.Exit(report.exit_code)
