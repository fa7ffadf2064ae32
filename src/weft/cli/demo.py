"""weft demo."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from weft.session.items import Movie

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(help="Folder for the demonstration; it is made.")] = Path("demo"),
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Movies.")] = 4,
    workers: Annotated[int | None, typer.Option("--workers", min=0, help="Worker processes.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The comparison for programs.")] = False,
    serve: Annotated[
        bool, typer.Option("--serve/--no-serve", help="Show the session in a web page at the end.")
    ] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of the page; 0 takes a free one.")] = 0,
) -> None:
    """Simulate a small session, process it end to end, and compare with the simulation's known truth."""
    from weft.cli.progress import duration, show_progress, summary
    from weft.session.session import new
    from weft.session.session import open as open_session
    from weft.simulation.session import simulate_session
    from weft.simulation.settings import MovieSimulationSettings

    begin = time.monotonic()
    root = folder / "session"
    physics = MovieSimulationSettings()
    truths = [folder / "truth" / f"movie_{i:03d}.json" for i in range(count)]
    if all(path.exists() for path in truths):
        typer.echo(f"the movies in {folder / 'frames'} are there already", err=True)
    else:
        typer.echo(
            f"simulating {count} movies of {physics.width}×{physics.height}×{physics.frames} in {folder}",
            err=True,
        )
        simulate_session(
            folder,
            count,
            physics,
            seed=1,
            workers=workers or len(os.sched_getaffinity(0)),
            progress=lambda done, total: typer.echo(f"[{done}/{total}] simulated", err=True),
        )
    simulated = time.monotonic()
    if (root / "weft.toml").exists():
        session = open_session(root)
    else:
        session = new(
            root,
            frames=folder / "frames" / "*.tif",
            gain=folder / "gain.mrc",
            pixel_size=physics.pixel_size,
            voltage=physics.voltage,
            cs=physics.cs,
            amplitude=physics.amplitude,
            dose_per_frame=physics.dose_per_frame,
        )
    typer.echo(f"processing: weft run {root}", err=True)
    with show_progress() as progress:
        report = session.run(workers=workers, progress=progress)
    rows = [
        _compare(session[path.stem], json.loads(path.read_text()))
        for path in truths
        if path.stem in report.done + report.current
    ]
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        raise typer.Exit(report.exit_code)
    typer.echo(_table(rows))
    typer.echo(
        f"simulated in {duration(simulated - begin)}, processed in {duration(time.monotonic() - simulated)}\n"
    )
    typer.echo(summary(report, session.root))
    typer.echo(f"averages: {root / 'average'}")
    typer.echo(
        f"pictures: {root / 'thumbnails'}, {root / 'powerspectrum'} (one half data, the other the fit)"
    )
    typer.echo(f"settings: {root / 'weft.toml'}   records: {root / 'records'}")
    weft = sys.argv[0] if Path(sys.argv[0]).name == "weft" else "weft"
    for line in (f"show {root} movie_000", f"run {root} --set ctf.range_max=5", f"live {root}"):
        typer.echo(f"try: {weft} {line}")
    if serve:
        from weft.cli.live import show

        typer.echo("the dashboard:")
        show(root, port)
    raise typer.Exit(report.exit_code)


def _compare(movie: Movie, truth: dict[str, Any]) -> dict[str, Any]:
    """Estimates beside the truth."""
    import numpy as np

    from weft.picking.agreement import agreement
    from weft.session.pick_files import read_picks

    def spread(difference: Any) -> float:
        # only the shape of a track counts: where a particle lies on average is the average's affair
        free = difference - difference.mean(axis=0, keepdims=True)
        return float(np.sqrt((free**2).sum(-1).mean()))

    xy, tracks = np.array(truth["track_xy"]), np.array(truth["tracks"])
    ny, nx = truth["shape"]
    pixel = truth["optics"]["pixel"]
    centre = np.array([nx, ny]) * pixel / 2
    defocus = truth["defocus"] + (xy - centre) @ np.array(truth["plane"])
    u, v, angle = (np.asarray(values, dtype=float) for values in movie.ctf.at(xy))
    turn = abs(float(np.mean(angle)) - truth["astig_angle"]) % 180.0
    particles = np.array(truth["particles_xy"], dtype=float).reshape(-1, 2)
    picks = read_picks(movie.paths["picks"], float(movie.metrics["pixel_size"]))
    found = agreement(picks.xy, particles, 0.5 * float(truth["radius"]))
    return {
        "item": movie.name,
        "track_uncorrected": spread(tracks),
        "track_best_global": spread(tracks - tracks.mean(axis=1, keepdims=True)),
        "track_corrected": spread(movie.track(xy) - tracks),
        "defocus_true": truth["defocus"],
        "defocus": float(((u + v) / 2).mean()),
        "defocus_local_error": float(np.sqrt((((u + v) / 2 - defocus) ** 2).mean())),
        "astigmatism_true": truth["astig"],
        "astigmatism": float((u - v).mean()),
        "angle_error": min(turn, 180.0 - turn),
        "resolution": movie.metrics.get("resolution"),
        "tilt_true": float(np.degrees(np.arctan(np.hypot(*truth["plane"])))),
        "tilt": movie.metrics.get("tilt"),
        "particles_true": found.particles,
        "particles": found.picks,
        "particles_f1": found.f1,
    }


def _table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "              track error (Å)   defocus (µm)   error  astigmatism (Å)  angle's   tilt (°)    fits  "
        "  particles",
        "movie           before  after    true    fit     (Å)    true    fit     error  true  fit   to (Å)"
        "  true found    F1",
    ]
    for row in rows:
        resolution = row["resolution"]
        lines.append(
            f"{row['item']:<15}{row['track_uncorrected']:>7.2f}{row['track_corrected']:>7.2f}"
            f"{row['defocus_true'] / 1e4:>8.3f}{row['defocus'] / 1e4:>7.3f}{row['defocus_local_error']:>8.0f}"
            f"{row['astigmatism_true']:>8.0f}{row['astigmatism']:>7.0f}{row['angle_error']:>9.1f}°"
            f"{row['tilt_true']:>5.0f}{row['tilt'] or 0.0:>5.0f}"
            f"{f'{resolution:.1f}' if resolution else '-':>9}"
            f"{row['particles_true']:>6}{row['particles']:>6}{row['particles_f1']:>6.2f}"
        )
    lines.append(
        "before: movement left uncorrected; errors are RMS over 25 places of the field; F1: of picks within "
        "half a radius"
    )
    return "\n".join(lines)
