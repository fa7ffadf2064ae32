"""A tilt series with its truth, and the files of one or several."""

from __future__ import annotations

import io
import json
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weft.errors import RequestError
from weft.formats import mrc
from weft.formats.atomic import atomic_write_bytes, atomic_write_text
from weft.formats.mdoc import Mdoc, write_mdoc
from weft.formats.tiff import write_tiff
from weft.simulation.detector import count_frames, random_gain, random_hot_pixels
from weft.simulation.specimen import Specimen
from weft.simulation.tilt_imaging import TiltScene
from weft.simulation.tilt_scheme import Exposure, acquisition
from weft.simulation.tilt_settings import TiltSimulationSettings, camera_settings
from weft.simulation.tilt_specimen import TiltSpecimen, random_specimen
from weft.simulation.tilt_truth import movie_name, tilt_mdoc, tilt_truth

__all__ = [
    "SimulatedTilt",
    "SimulatedTiltSeries",
    "TiltSimulationSettings",
    "WrittenTiltSeries",
    "simulate_tilt_gain",
    "simulate_tilt_series",
    "write_tilt_series",
    "write_tilt_session",
]

Array = NDArray[Any]

GAIN_NAME = "gain.mrc"
_BLACK = 0.002  # of the usual beam


@dataclass(frozen=True)
class SimulatedTilt:
    """One exposure.

    Attributes
    ----------
    name : str
        Of its movie's file.
    exposure : Exposure
    frames : ``(f, y, x)`` uint8 or uint16
        Counts, row 0 first as in an MRC file.
    """

    name: str
    exposure: Exposure
    frames: Array


@dataclass(frozen=True)
class SimulatedTiltSeries:
    """A series whose images are made when they are asked for.

    Attributes
    ----------
    name : str
    settings : TiltSimulationSettings
    truth : dict
        As :func:`weft.simulation.tilt_truth.tilt_truth` makes it, JSON-able.
    mdoc : Mdoc
    gain : ``(y, x)`` float32
        corrected = raw x gain; zeros are dead pixels.
    specimen : TiltSpecimen
    scene : TiltScene
        Gives the expected intensities without the camera.
    exposures : list of Exposure
        In order of acquisition, which `truth["tilts"]` has, too.
    """

    name: str
    settings: TiltSimulationSettings
    truth: dict[str, Any]
    mdoc: Mdoc
    gain: Array
    specimen: TiltSpecimen
    scene: TiltScene
    exposures: list[Exposure]
    _hot: Array
    _counting: list[np.random.SeedSequence]

    def tilts(self, workers: int = 1) -> Iterator[SimulatedTilt]:
        """Every exposure with its frames, in order of acquisition, those without a file included.

        The same whatever the number of `workers`, which are threads.
        """
        if workers <= 1:
            yield from map(self.tilt, range(len(self.exposures)))
            return
        with ThreadPoolExecutor(workers) as pool:
            waiting: deque[Future[SimulatedTilt]] = deque()
            for index in range(len(self.exposures)):
                waiting.append(pool.submit(self.tilt, index))
                # no more of them ahead than the threads have to do: finished movies take memory
                if len(waiting) > 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def tilt(self, index: int) -> SimulatedTilt:
        """One exposure by its number in order of acquisition."""
        exposure = self.exposures[index]
        camera = self.scene.camera
        if exposure.black:
            camera = camera.model_copy(update={"dose_per_frame": camera.dose_per_frame * _BLACK})
        rng = np.random.default_rng(self._counting[index])
        frames = count_frames(self.scene.frames(exposure), self.gain, self._hot, camera, rng)
        return SimulatedTilt(movie_name(self.name, exposure), exposure, frames)

    @property
    def points(self) -> Array:
        """The particle's points, ``(n, 4)``: x, y, z in Å from its centre, and strength."""
        return _table(self.specimen.particle)

    @property
    def other_points(self) -> Array | None:
        """The same of the other conformation; None where there is none."""
        return None if self.specimen.other is None else _table(self.specimen.other)


def _table(specimen: Specimen) -> Array:
    return np.column_stack([specimen.points, specimen.strengths])


@dataclass(frozen=True)
class WrittenTiltSeries:
    """Where a series was written; `movies` in order of acquisition, without those that are missing."""

    name: str
    movies: list[Path]
    mdoc: Path
    truth: Path
    gain: Path | None


def simulate_tilt_gain(settings: TiltSimulationSettings, seed: int) -> Array:
    """The gain reference of one camera, ``(height, width)`` float32; ones where pixels do not differ."""
    return random_gain(camera_settings(settings), np.random.default_rng(np.random.SeedSequence([seed, 1])))


def simulate_tilt_series(
    settings: TiltSimulationSettings | None = None,
    seed: int = 0,
    name: str = "TS_01",
    gain: Array | None = None,
) -> SimulatedTiltSeries:
    """Simulate one tilt series exactly; its images are made by ``.tilts()``.

    Parameters
    ----------
    settings : TiltSimulationSettings, optional
        :meth:`TiltSimulationSettings.small` makes one that takes seconds.
    seed : int
        The same seed and settings give the same series.
    name : str
    gain : ``(height, width)`` array, optional
        The camera's gain reference; by default one is drawn from the seed.

    Raises
    ------
    RequestError
        A negative seed.
    SettingsError
        What was asked for does not fit into the ice, or the particle cannot be loaded.
    FormatError
        The particle's file is no structure.
    GainError
        When frames are made: the gain is not of their size.
    """
    if seed < 0:
        raise RequestError(f"seed {seed} is negative; give 0 or more")
    settings = TiltSimulationSettings() if settings is None else settings
    children = np.random.SeedSequence([seed, 3]).spawn(6)
    for_stage, for_specimen, for_ice, for_hot, for_mdoc, for_counts = children
    exposures = acquisition(settings, np.random.default_rng(for_stage))
    specimen = random_specimen(settings, for_specimen)
    scene = TiltScene(settings, specimen, exposures, np.random.default_rng(for_ice))
    gain = simulate_tilt_gain(settings, seed) if gain is None else np.asarray(gain, np.float32)
    return SimulatedTiltSeries(
        name=name,
        settings=settings,
        truth=tilt_truth(name, settings, specimen, exposures, seed),
        mdoc=tilt_mdoc(name, settings, exposures, np.random.default_rng(for_mdoc)),
        gain=gain,
        specimen=specimen,
        scene=scene,
        exposures=exposures,
        _hot=random_hot_pixels(scene.camera, gain, np.random.default_rng(for_hot)),
        _counting=for_counts.spawn(len(exposures)),
    )


def write_tilt_series(
    out: str | Path,
    series: SimulatedTiltSeries,
    *,
    gain: str | None = None,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> WrittenTiltSeries:
    """Write ``frames/<movie>.tif``, ``mdoc/<name>.mdoc``, ``<name>.json`` and ``<name>_mol.npy`` under `out`.

    Where there is another conformation its points are in ``<name>_mol_other.npy``.

    Parameters
    ----------
    gain : str, optional
        Name of the gain reference's file, for the truth.
    workers : int
        Threads.
    progress : callable, optional
        Called with the number of exposures done and their total.
    """
    out = Path(out)
    for folder in (out / "frames", out / "mdoc"):
        folder.mkdir(parents=True, exist_ok=True)
    movies = []
    for done, tilt in enumerate(series.tilts(workers), 1):
        if not tilt.exposure.missing:
            path = out / "frames" / tilt.name
            write_tiff(path, tilt.frames, pixel_size=series.settings.pixel_size)
            movies.append(path)
        if progress is not None:
            progress(done, len(series.exposures))
    truth, mdoc = out / f"{series.name}.json", out / "mdoc" / f"{series.name}.mdoc"
    for suffix, points in (("mol", series.points), ("mol_other", series.other_points)):
        if points is not None:
            data = io.BytesIO()
            np.save(data, points)
            atomic_write_bytes(out / f"{series.name}_{suffix}.npy", data.getvalue())
    atomic_write_text(truth, json.dumps({**series.truth, "gain": gain}))
    write_mdoc(mdoc, series.mdoc)
    return WrittenTiltSeries(series.name, movies, mdoc, truth, None if gain is None else out / gain)


def write_tilt_session(
    out: str | Path,
    settings: TiltSimulationSettings | None = None,
    *,
    series: int = 1,
    seed: int = 0,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> list[WrittenTiltSeries]:
    """Simulate and write several series ``TS_01`` ... of one camera.

    They share the settings and differ in everything that is drawn: specimen, shifts, defocus. ``gain.mrc`` is
    written where pixels differ or are dead.

    Parameters
    ----------
    out : path-like
    settings : TiltSimulationSettings, optional
    series : int
    seed : int
        The same seed gives the same files, whatever the number of workers.
    workers : int
        Threads.
    progress : callable, optional
        Called with the number of exposures done and their total.

    Raises
    ------
    RequestError
        A wrong number of series or seed.
    SettingsError, FormatError
        As :func:`simulate_tilt_series`.
    """
    if series < 1:
        raise RequestError(f"{series} series cannot be simulated; ask for one or more")
    if seed < 0:
        raise RequestError(f"seed {seed} is negative; give 0 or more")
    settings = TiltSimulationSettings() if settings is None else settings
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    gain = simulate_tilt_gain(settings, seed)
    gain_name = GAIN_NAME if settings.gain_variation > 0.0 or settings.dead_pixels > 0 else None
    if gain_name is not None:
        mrc.write(out / gain_name, gain, settings.pixel_size)
    written = []
    for number in range(series):
        one = simulate_tilt_series(settings, seed * 100_003 + number, f"TS_{number + 1:02d}", gain)

        def report(done: int, total: int, before: int = number) -> None:
            if progress is not None:
                progress(before * total + done, series * total)

        written.append(write_tilt_series(out, one, gain=gain_name, workers=workers, progress=report))
    return written
