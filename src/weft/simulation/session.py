"""Files: one movie, or a small session of movies that differ, with its truth."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from weft.errors import RequestError
from weft.formats import mrc
from weft.formats.atomic import atomic_write_text
from weft.formats.eer_write import write_eer
from weft.formats.tiff import write_tiff
from weft.simulation.movie import SimulatedMovie, simulate_gain, simulate_movie
from weft.simulation.settings import MovieSimulationSettings

__all__ = [
    "MovieFormat",
    "SimulatedSession",
    "eer_raw_frames",
    "session_settings",
    "simulate_session",
    "write_movie",
]

MovieFormat = Literal["tiff", "mrc", "eer"]

_SUFFIX: dict[MovieFormat, str] = {"tiff": ".tif", "mrc": ".mrc", "eer": ".eer"}
GAIN_NAME = "gain.mrc"


@dataclass(frozen=True)
class SimulatedSession:
    """Where everything was written, movies and truths in the same order."""

    movies: list[Path]
    truths: list[Path]
    gain: Path
    settings: list[MovieSimulationSettings]


def write_movie(
    out_dir: str | Path, stem: str, simulated: SimulatedMovie, format: MovieFormat = "tiff", gain: bool = True
) -> Path:
    """Write a movie, its gain reference and its truth.

    Makes ``frames/<stem>.tif`` (.mrc, .eer), ``gain.mrc`` and ``truth/<stem>.json`` under `out_dir`.

    Parameters
    ----------
    format : {"tiff", "mrc", "eer"}
        TIFF is LZW-compressed with its rows flipped as every TIFF movie has them.  EER holds single
        electrons: every simulated frame becomes :func:`eer_raw_frames` raw ones, to be grouped on reading.
    gain : bool
        Write the gain reference; for the movies of one camera it needs to be written once.

    Returns
    -------
    Path
        The movie.
    """
    if format not in _SUFFIX:
        raise RequestError(f"a movie cannot be written as {format!r}; choose tiff, mrc or eer")
    out = Path(out_dir)
    for folder in (out / "frames", out / "truth"):
        folder.mkdir(parents=True, exist_ok=True)
    path = out / "frames" / f"{stem}{_SUFFIX[format]}"
    pixel = simulated.settings.pixel_size
    _write_frames(path, simulated, format)
    if gain:
        mrc.write(out / GAIN_NAME, simulated.gain, pixel)
    truth = {**simulated.truth, "gain": GAIN_NAME}
    atomic_write_text(out / "truth" / f"{stem}.json", json.dumps(truth))
    return path


def eer_raw_frames(settings: MovieSimulationSettings) -> int:
    """How many raw frames of an EER file one simulated frame becomes: enough for its brightest pixel."""
    brightest = 1.5 * settings.dose_per_frame * settings.pixel_size**2
    return math.ceil(brightest + 8.0 * math.sqrt(brightest) + 4.0)


def session_settings(
    n_movies: int, base: MovieSimulationSettings | None = None, seed: int = 0
) -> list[MovieSimulationSettings]:
    """Settings of movies as a session has them: each with its own defocus, astigmatism and drift, one tilted.

    Defocus runs from 0.75 to 1.35 times that of `base` in mixed order; drift from 0.6 to 1.6 times.  The last
    of two or more movies is tilted by 25 degrees where `base` is not.
    """
    base = MovieSimulationSettings() if base is None else base
    rng = np.random.default_rng(np.random.SeedSequence([seed, 2]))
    spread = np.linspace(0.75, 1.35, n_movies) if n_movies > 1 else np.ones(1)
    defocus = rng.permutation(spread) * base.defocus
    result = []
    for i in range(n_movies):
        changes: dict[str, Any] = {
            "defocus": round(float(defocus[i]), 4),
            "astigmatism": round(base.astigmatism * float(rng.uniform(0.6, 1.8)), 4),
            "astigmatism_angle": round(float(rng.uniform(-90.0, 90.0)), 1),
            "drift": round(base.drift * float(rng.uniform(0.6, 1.6)), 2),
        }
        axis = round(float(rng.uniform(-90.0, 90.0)), 1)
        if n_movies > 1 and i == n_movies - 1 and base.tilt == 0.0:
            changes |= {"tilt": 25.0, "tilt_axis": axis}
        result.append(MovieSimulationSettings(**{**base.model_dump(), **changes}))
    return result


def simulate_session(
    out: str | Path,
    n_movies: int = 4,
    settings: MovieSimulationSettings | None = None,
    *,
    seed: int = 0,
    format: MovieFormat = "tiff",
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> SimulatedSession:
    """Simulate the movies of a small session, with one gain reference and the truth of each.

    Parameters
    ----------
    out : path-like
        Gets ``frames/movie_000.tif`` ..., ``gain.mrc`` and ``truth/movie_000.json`` ...
    n_movies : int
    settings : MovieSimulationSettings, optional
        What the movies share; :func:`session_settings` varies it.
    seed : int
        The same seed gives the same session, whatever the number of workers.
    format : {"tiff", "mrc", "eer"}
    workers : int
        Processes; 1 works in the calling one.
    progress : callable, optional
        Called with the number of movies done and their total.

    Raises
    ------
    RequestError
        A wrong number of movies, seed or format.
    """
    if n_movies < 1:
        raise RequestError(f"{n_movies} movies cannot be simulated; ask for one or more")
    if seed < 0:
        raise RequestError(f"seed {seed} is negative; give 0 or more")
    if format not in _SUFFIX:
        raise RequestError(f"a movie cannot be written as {format!r}; choose tiff, mrc or eer")
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    every = session_settings(n_movies, settings, seed)
    gain = simulate_gain(every[0], seed)
    mrc.write(out / GAIN_NAME, gain, every[0].pixel_size)
    stems = [f"movie_{i:03d}" for i in range(n_movies)]
    jobs = [
        (out, stem, one, seed * 100_003 + i + 1, gain, format)
        for i, (stem, one) in enumerate(zip(stems, every, strict=True))
    ]
    movies: list[Path] = [out / "frames" / f"{stem}{_SUFFIX[format]}" for stem in stems]
    if workers <= 1 or n_movies == 1:
        for i, job in enumerate(jobs):
            _simulate_one(*job)
            if progress is not None:
                progress(i + 1, n_movies)
    else:
        _simulate_in_processes(jobs, min(workers, n_movies), progress)
    truths = [out / "truth" / f"{stem}.json" for stem in stems]
    return SimulatedSession(movies, truths, out / GAIN_NAME, every)


def _simulate_in_processes(
    jobs: list[Any], workers: int, progress: Callable[[int, int], None] | None
) -> None:
    # fork would copy the threads' locks of a caller that has started torch or dask
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        waiting = {pool.submit(_simulate_one, *job) for job in jobs}
        while waiting:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                future.result()
            if progress is not None:
                progress(len(jobs) - len(waiting), len(jobs))


def _simulate_one(
    out: Path,
    stem: str,
    settings: MovieSimulationSettings,
    seed: int,
    gain: NDArray[np.float32],
    format: MovieFormat,
) -> None:
    write_movie(out, stem, simulate_movie(settings, seed, gain), format, gain=False)


def _write_frames(path: Path, simulated: SimulatedMovie, format: MovieFormat) -> None:
    pixel = simulated.settings.pixel_size
    frames = simulated.frames
    if format == "tiff":
        write_tiff(path, frames, pixel_size=pixel)
    elif format == "mrc":
        mrc.write(path, frames, pixel, volume=False)
    else:
        raw = eer_raw_frames(simulated.settings)
        if int(frames.max()) > raw:
            raise RequestError(
                f"{path}: a pixel counts {int(frames.max())} electrons in a frame and EER has room for "
                f"{raw}; simulate without hot pixels, or write TIFF"
            )
        dose = simulated.settings.dose_per_frame * len(frames)
        write_eer(path, frames, raw_per_frame=raw, pixel_size=pixel, total_dose=dose)
