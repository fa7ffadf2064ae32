"""A micrograph whose motion and CTF are known: what cutting its particles, and their rows, are made from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from weft.defocus.micrograph import CTFModel
from weft.errors import ItemError
from weft.formats import mrc
from weft.movies.motion import MotionModel
from weft.particles.extraction import Extracted, extract_particles
from weft.particles.local_ctf import LocalCTF
from weft.physics.optics import Optics
from weft.session.particle_parts import Part
from weft.session.records import Record, StepRecord, fingerprint
from weft.session.step import Job, on_device
from weft.session.wanted_particles import ParticleSettings, Wanted
from weft.tilts.reconstruction import magnification

__all__ = ["ProcessedMicrograph", "as_processed", "ctf_columns", "done_step"]

_VERSION = 1
#: Settings that change neither images nor rows.
_OUTSIDE = ("write", "picks", "min_score", "mtf")


def done_step(record: Record, step: str) -> StepRecord:
    """A step that is done.

    Raises
    ------
    ItemError
        Saying what to do.
    """
    found = record.steps.get(step)
    if found is None:
        what = "its CTF is not known yet" if step == "ctf" else "its motion is not known yet"
        raise ItemError(f"{record.item}: {what}; `weft run --steps {step}` finds it")
    if found.status != "done":
        why = found.error.message if found.error else "failed"
        raise ItemError(f"{record.item}: its {step} step failed ({why})")
    return found


def as_processed(job: Job, recorded: StepRecord) -> Job:
    """The job with the input's settings that its motion step has used, whatever weft.toml says by now."""
    from weft.session.config import from_plain

    plain = job.settings.plain()
    plain["input"] = {**plain["input"], **recorded.settings["input"]}
    return Job(job.root, job.source, from_plain(plain), job.record, job.device)


def ctf_columns(ctf: CTFModel, metrics: Mapping[str, Any], xy: NDArray[np.float64]) -> dict[str, list[str]]:
    """RELION's columns of the CTF at places (n, 2; Å)."""
    u, v, angle = ctf.at(xy) if len(xy) else (np.zeros(0),) * 3
    columns = {
        "rlnDefocusU": [f"{value:.2f}" for value in u],
        "rlnDefocusV": [f"{value:.2f}" for value in v],
        "rlnDefocusAngle": [f"{value:.3f}" for value in angle],
    }
    if ctf.phase_shift:
        columns["rlnPhaseShift"] = [f"{ctf.phase_shift:.3f}"] * len(xy)
    for label, key in (("rlnCtfMaxResolution", "resolution"), ("rlnCtfFigureOfMerit", "ctf_score")):
        if metrics.get(key) is not None:
            columns[label] = [f"{metrics[key]:.5f}"] * len(xy)
    return columns


@dataclass(frozen=True)
class ProcessedMicrograph:
    """What the session knows about one micrograph, for cutting.

    Attributes
    ----------
    job : Job
    settings : ParticleSettings
        With a pixel size and a dose weighting, where they were left open.
    motion, ctf_step : StepRecord
    optics : Optics
        Of the frames.
    pixel_size : float
        Å, of the average.
    shape, frame_shape : (int, int)
        y, x: of the average and of the frames.
    output : float
        Å, of the particles.
    """

    job: Job
    settings: ParticleSettings
    motion: StepRecord
    ctf_step: StepRecord
    optics: Optics
    pixel_size: float
    shape: tuple[int, int]
    frame_shape: tuple[int, int]
    output: float

    @classmethod
    def of(cls, job: Job, settings: ParticleSettings) -> ProcessedMicrograph:
        """What is known for a job.

        Raises
        ------
        ItemError
            Motion, CTF or the average are not there, or halves are wanted of an average.
        """
        motion, ctf = done_step(job.record, "motion"), done_step(job.record, "ctf")
        if settings.halves and settings.source == "average":
            raise ItemError(
                f"{job.item}: halves of particles are cut from movies; set the source to movie, or halves to "
                "false"
            )
        pixel = float(job.record.metrics["pixel_size"])
        path = job.output("motion", "average")
        if not path.is_file():
            raise ItemError(f"{job.item}: its average {path} is missing; `weft run --steps motion` makes it")
        ny, nx = mrc.read_header(path).shape[-2:]
        frames = motion.results["movie"]["shape"]
        optics = job.settings.input.optics()
        used = motion.settings["average"]["dose_weighting"]
        settings = settings.model_copy(
            update={
                "pixel_size": settings.pixel_size or pixel,
                "dose_weighting": settings.dose_weighting or used,
            }
        )
        assert settings.pixel_size is not None
        output = settings.pixel_size
        shape = (int(frames[0]), int(frames[1]))
        return cls(job, settings, motion, ctf, optics, pixel, (ny, nx), shape, output)

    @property
    def extent(self) -> tuple[float, float]:
        """Width and height of the average, Å."""
        return self.shape[1] * self.pixel_size, self.shape[0] * self.pixel_size

    @property
    def ctf(self) -> CTFModel:
        """The fit."""
        return CTFModel.from_dict(self.ctf_step.results["model"])

    def fingerprints(self, wanted: Wanted) -> tuple[str, str]:
        """Of all that the images, and all that the rows depend on."""
        settings = {k: v for k, v in self.settings.model_dump(mode="json").items() if k not in _OUTSIDE}
        images = {
            "version": _VERSION,
            "settings": settings,
            "motion": self.motion.fingerprint,
            "ctf": self.ctf_step.fingerprint if self.settings.ctf != "none" else "",
            "places": wanted.pixels.round(4).tolist(),
        }
        first = fingerprint({k: str(v) for k, v in images.items()})
        columns = {k: list(v) for k, v in wanted.columns.items()}
        table = {
            "images": first,
            "ctf": self.ctf_step.fingerprint,
            "mtf": self.settings.mtf,
            "columns": columns,
            "optics": [dict(group) for group in wanted.optics],
            "groups": list(wanted.groups),
            "skipped": dict(wanted.skipped),
        }
        return first, fingerprint(table)

    def part(
        self,
        wanted: Wanted,
        kept: NDArray[np.int64],
        skipped: Mapping[str, int],
        images: str,
        table: str,
    ) -> Part:
        """Rows for the particles that are in the stack."""
        pixels = wanted.pixels[kept]
        n = len(kept)
        columns = {
            "rlnCoordinateX": [f"{x:.4f}" for x in pixels[:, 0]],
            "rlnCoordinateY": [f"{y:.4f}" for y in pixels[:, 1]],
            **ctf_columns(self.ctf, self.job.record.metrics, pixels * self.pixel_size),
        }
        columns |= {label: [values[i] for i in kept] for label, values in wanted.columns.items()}
        columns.setdefault("rlnCtfBfactor", ["0.0"] * n)
        columns.setdefault("rlnCtfScalefactor", ["1.0"] * n)
        rows = tuple("\t".join(cells) for cells in zip(*columns.values(), strict=True))
        return Part(
            self.job.item,
            self.motion.outputs["average"],
            tuple(columns),
            rows,
            tuple({**group, **self._optics_group()} for group in wanted.optics),
            tuple(wanted.groups[i] for i in kept) if wanted.groups else (),
            tuple(int(i) for i in kept),
            {**wanted.skipped, **{k: v for k, v in skipped.items() if k not in wanted.skipped}},
            images,
            table,
            self.settings.halves and self.settings.source == "movie",
        )

    def _optics_group(self) -> dict[str, Any]:
        o, settings = self.optics, self.settings
        group: dict[str, Any] = {
            "rlnMicrographOriginalPixelSize": o.pixel_size,
            "rlnMicrographPixelSize": self.pixel_size,
            "rlnVoltage": o.voltage,
            "rlnSphericalAberration": o.cs,
            "rlnAmplitudeContrast": o.amplitude,
            "rlnImagePixelSize": self.output,
            "rlnImageSize": settings.box,
            "rlnImageDimensionality": 2,
        }
        if settings.mtf:
            group["rlnMtfFileName"] = settings.mtf
        if settings.ctf == "premultiply":
            group["rlnCtfDataAreCtfPremultiplied"] = 1
        return group

    def extracted(self, pixels: NDArray[np.float64]) -> Iterator[Extracted]:
        """Cut particles at places in pixels of the average."""
        settings, job = self.settings, self.job
        places = pixels * self.pixel_size
        local = None
        if settings.ctf != "none":
            model = self.ctf
            local = LocalCTF(*model.at(places), model.phase_shift)
        # the same noise in place of dust whenever these particles are cut
        seed = int(fingerprint({"item": job.item})[:8], 16)
        if settings.source == "average":
            image = np.asarray(mrc.read(job.output("motion", "average"))[0], np.float32)
            frames = torch.from_numpy(image.reshape(1, *self.shape)).to(job.device)
            optics = self.optics.at_pixel_size(self.pixel_size)
            return extract_particles(frames, places, None, optics, settings, ctf=local, seed=seed)
        from weft.session.steps.motion import read_movie

        # as far as pixels of the average are not square, because its size is a whole number
        to_frames = np.array([n / m for n, m in zip(self.frame_shape, self.shape, strict=True)])[::-1]
        motion = MotionModel.from_dict(self.motion.results["model"])
        movie = job.shared("frames", lambda: read_movie(job))[0]
        if len(movie) != motion.n_frames or movie.frame_shape != self.frame_shape:
            raise ItemError(
                f"{job.source}: it has {len(movie)} frames, its motion {motion.n_frames}; it was changed, so "
                "run `weft run` again"
            )
        used = self.motion.settings["average"]
        distortion = None
        if used["anisotropy"]:
            distortion = magnification(used["anisotropy"], used["anisotropy_angle"])
        return extract_particles(
            on_device(movie, job.device),
            pixels * to_frames * self.optics.pixel_size,
            motion.track,
            self.optics,
            settings,
            ctf=local,
            distortion=distortion,
            seed=seed,
        )
