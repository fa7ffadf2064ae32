"""weft simulate."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from weft.cli.options import settings_options
from weft.errors import SettingsError
from weft.session.fields import explain
from weft.simulation.settings import MovieSimulationSettings
from weft.simulation.tilt_settings import SMALL_SERIES, TiltSimulationSettings

app = typer.Typer(rich_markup_mode=None, no_args_is_help=True, help="Make data with known truth.")


@app.callback()
def _simulate() -> None:
    """Make data with known truth."""


@app.command()
@settings_options(MovieSimulationSettings, into="settings", names={"dose_per_frame": "dose"})
def movies(
    out: Annotated[Path, typer.Argument(help="Folder; gets frames/, truth/ and gain.mrc.")],
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Movies.")] = 4,
    seed: Annotated[int, typer.Option("--seed", help="The same seed makes the same movies.")] = 0,
    file_format: Annotated[str, typer.Option("--format", help="tiff, mrc or eer.")] = "tiff",
    workers: Annotated[int, typer.Option("--workers", min=0, help="Processes; 0 takes one a core.")] = 0,
    settings: Any = None,
) -> None:
    """Simulate movies by moving point scatterers exactly: particles in ice, drift, local motion, damage.

    Defocus, astigmatism and drift vary from movie to movie around what is given here.
    """
    from weft.simulation.session import eer_raw_frames, simulate_session

    try:
        shared = MovieSimulationSettings(**settings)
    except ValidationError as error:
        raise SettingsError(explain(error, MovieSimulationSettings, "--")) from error
    made = simulate_session(
        out,
        count,
        shared,
        seed=seed,
        format=file_format,  # type: ignore[arg-type]  # checked there
        workers=workers or len(os.sched_getaffinity(0)),
        progress=lambda done, total: typer.echo(f"[{done}/{total}] simulated", err=True),
    )
    one, suffix = made.settings[0], made.movies[0].suffix
    typer.echo(f"{count} movies: {out / 'frames'}; their truth: {out / 'truth'}")
    grouping = f" --eer-frames {eer_raw_frames(one)}" if suffix == ".eer" else ""
    typer.echo(
        f"next: weft new {out / 'session'} --frames '{out / 'frames'}/*{suffix}' "
        f"--gain {made.gain} --pixel-size {one.pixel_size:g} --voltage {one.voltage:g} --cs {one.cs:g}"
        f" --amplitude {one.amplitude:g} --dose {one.dose_per_frame:g}{grouping}"
    )


@app.command()
@settings_options(TiltSimulationSettings, into="settings")
def tilts(
    out: Annotated[
        Path, typer.Argument(help="Folder; gets frames/, mdoc/ and the truth of each series as JSON.")
    ],
    series: Annotated[int, typer.Option("--series", "-n", min=1, help="Tilt series.")] = 1,
    seed: Annotated[int, typer.Option("--seed", help="The same seed makes the same series.")] = 0,
    small: Annotated[
        bool,
        typer.Option(
            "--small",
            help="Other defaults, of a series that takes seconds: "
            + ", ".join(f"{name} {value}" for name, value in SMALL_SERIES.items()).replace("_", " "),
        ),
    ] = False,
    workers: Annotated[int, typer.Option("--workers", min=0, help="Threads; 0 takes one a core.")] = 0,
    settings: Any = None,
) -> None:
    """Simulate tilt series exactly: particles, membranes and gold in ice, each point at its own defocus.

    The series of one call share the settings and differ in specimen, shifts and defocus.
    """
    from weft.simulation.tilt_series import write_tilt_session

    try:
        shared = TiltSimulationSettings(**({**SMALL_SERIES, **settings} if small else settings))
    except ValidationError as error:
        raise SettingsError(explain(error, TiltSimulationSettings, "--")) from error
    made = write_tilt_session(
        out,
        shared,
        series=series,
        seed=seed,
        workers=workers or len(os.sched_getaffinity(0)),
        progress=lambda done, total: typer.echo(f"[{done}/{total}] simulated", err=True),
    )
    movies = sum(len(one.movies) for one in made)
    typer.echo(f"{series} series, {movies} movies: {out / 'frames'}; mdocs: {out / 'mdoc'}")
    typer.echo(f"their truth: {', '.join(str(one.truth) for one in made)}")
    gain = f" --gain {made[0].gain}" if made[0].gain else ""
    typer.echo(
        f"next: weft new {out / 'session'} --frames '{out / 'frames'}/*.tif' --mdoc {out / 'mdoc'}{gain} "
        f"--pixel-size {shared.pixel_size:g} --voltage {shared.voltage:g} --cs {shared.cs:g} "
        f"--amplitude {shared.amplitude:g} --dose {shared.dose_per_tilt / shared.frames:g}"
    )
