"""weft average."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weft.cli.options import settings_options
from weft.session.averages import AverageSettings

if TYPE_CHECKING:
    from weft.particles.alignment import Iteration
    from weft.particles.fsc import FSC

app = typer.Typer(rich_markup_mode=None)


@app.command()
@settings_options(AverageSettings, into="settings", skip=("box", "pixel_size"))
def average(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SESSION | STAR",
            help="A session with candidates, or RELION 5's optimisation set or particles as stacks of tilts.",
            show_default=False,
        ),
    ],
    template: Annotated[
        str | None,
        typer.Option(metavar="STEM", help="A session: the template whose candidates are averaged."),
    ] = None,
    particles: Annotated[
        Path | None,
        typer.Option(metavar="STAR", help="A session: particles of another program instead of candidates."),
    ] = None,
    only: Annotated[
        str | None, typer.Option(metavar="GLOB", help="A session: only series whose name matches.")
    ] = None,
    tomograms: Annotated[
        Path | None, typer.Option(metavar="STAR", help="A STAR file: its table of tomograms.")
    ] = None,
    box: Annotated[
        int | None,
        typer.Option(metavar="PX", help="A session: side of the box, even [default 1.8 diameters]."),
    ] = None,
    pixel_size: Annotated[
        float | None,
        typer.Option(metavar="A", help="A session: pixel size to cut images at [default by diameter]."),
    ] = None,
    mask: Annotated[
        Path | None, typer.Option(metavar="MAP", help="Soft mask of the FSC, instead of a sphere.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Folder [default particles/average/STEM]."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    settings: Any = None,
) -> None:
    """Average particles, in two halves with their FSC, to see whether the picks are right.

    With --iterations, angles and places are aligned against the average of each particle's own half.
    """
    import numpy as np
    import torch

    from weft.errors import RequestError
    from weft.formats import mrc
    from weft.session.averages import (
        AverageSettings,
        average_particles,
        write_average,
    )
    from weft.session.relion_particles import read_particle_images
    from weft.session.work import resolve_device

    given = dict(settings)
    if box is not None:
        given["box"] = box
    if pixel_size is not None:
        given["pixel_size"] = pixel_size
    if given.get("box", 0) % 2:
        raise RequestError(f"--box {box}: a box has an even number of pixels.")
    chosen = AverageSettings(**given)
    where = resolve_device(device)
    if source.is_dir():
        if tomograms is not None:
            raise RequestError("--tomograms belongs to a STAR file; a session knows its tomograms.")
        images, chosen, folder = _of_session(source, template, particles, only, chosen)
    else:
        unfit: dict[str, Any] = {"--template": template, "--particles": particles, "--only": only}
        unfit |= {"--box": box, "--pixel-size": pixel_size}
        wrong = next((name for name, value in unfit.items() if value is not None), None)
        if wrong is not None:
            raise RequestError(f"{wrong} belongs to a session; the particles of {source} are cut already.")
        if not source.is_file():
            raise RequestError(f"{source}: there is no such session or STAR file.")
        # RELION supposes this dose model, and `weft export subtomograms` for RELION 5 takes it
        chosen = AverageSettings(**{"dose_weighting": "grant", **given})
        images, folder = read_particle_images(source, tomograms), source.parent / f"{source.stem}_average"
    soft = None
    if mask is not None:
        soft = torch.from_numpy(np.ascontiguousarray(mrc.read(mask)[0], np.float32))
    size, pixel = images.series.images.shape[-1], images.series.pixel_size
    shown = int((images.series.weight > 0).any(1).sum())
    typer.echo(f"{len(images.particles)} particles ({shown} visible), box {size} px of {pixel:g} Å")
    with _progress("aligning") as show:
        result = average_particles(images, chosen, mask=soft, device=where, report=_tell, progress=show)
    paths = write_average(result, output or folder)
    first, second = result.average.particles
    fsc = result.average.fsc
    typer.echo(
        f"resolution {resolution_text(fsc, 0.143)} at FSC 0.143, {resolution_text(fsc, 0.5)} "
        f"at 0.5, from {first} + {second} particles"
    )
    typer.echo(f"map: {paths['map']}")
    typer.echo(f"look at: {paths['slices']} {paths['fsc_figure']}")


def _of_session(
    source: Path, template: str | None, particles: Path | None, only: str | None, chosen: AverageSettings
) -> tuple[Any, AverageSettings, Path]:
    """Images, settings, folder."""
    from weft.session.averages import cut_images, with_template
    from weft.session.particle_lists import candidate_template, find_particles
    from weft.session.session import open as open_session

    session = open_session(source)
    listed = find_particles(session, template=template, particles=particles, only=only)
    if particles is None:
        stem = candidate_template(session, template, only)
        chosen = with_template(session, stem, chosen)
    else:
        stem = particles.stem
    with _progress("cutting") as show:
        images = cut_images(session, listed, chosen, show)
    return images, chosen, session.root / "particles" / "average" / stem


def _tell(done: Iteration) -> None:
    """A line a round."""
    curve = f"FSC 0.143 at {resolution_text(done.fsc, 0.143)}, 0.5 at {resolution_text(done.fsc, 0.5)}"
    if done.number == 0:
        typer.echo(f"as given: {curve}")
        return
    typer.echo(
        f"round {done.number}: {curve}; turned by {done.turned:.2f}°, moved by {done.shifted:.1f} Å (rms), "
        f"score {done.score:.1f}"
    )


def resolution_text(fsc: FSC, threshold: float) -> str:
    """In words, where a curve falls below a threshold."""
    found = fsc.resolution(threshold)
    if found == float("inf"):
        return "nothing in common"
    # a curve that never falls says what the pixels allow
    finest = 1.0 / float(fsc.k[-1])
    return f"{found:.1f} Å" if found > 1.0001 * finest else f"{found:.1f} Å (the finest of these pixels)"


@contextmanager
def _progress(word: str) -> Iterator[Callable[[int, int], None] | None]:
    """A bar on a terminal, nothing elsewhere: the lines of the rounds are enough there."""
    import sys

    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(word), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(word, total=None)
        yield lambda done, of: bar.update(task, completed=done, total=of)
