"""Cutting the particles of one micrograph, for the particles step and for ``weft export particles``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from weft.defocus.micrograph import CTFModel
from weft.errors import InputFileError, ItemError
from weft.formats import mrc
from weft.movies.motion import MotionModel
from weft.particles.extraction import (
    Extracted,
    ExtractionSettings,
    LocalCTF,
    extract_particles,
    sort_out,
)
from weft.physics.optics import Optics
from weft.session.particle_parts import Part, read_part, write_part
from weft.session.pick_files import BY_HAND, pick_path, read_picks
from weft.session.records import Record, StepRecord, fingerprint
from weft.session.step import Job, on_device
from weft.settings import setting
from weft.tilts.reconstruction import magnification

__all__ = ["ParticleSettings", "Wanted", "as_processed", "ctf_columns", "cut_item", "done_step", "picked"]

_VERSION = 1
_SCORE = "rlnAutopickFigureOfMerit"
#: Settings that change neither images nor rows.
_OUTSIDE = ("write", "picks", "min_score", "mtf")


class ParticleSettings(ExtractionSettings):
    """Which particles are cut out of micrographs, and how."""

    write: bool = setting(
        False, "Cut particles as soon as a micrograph is picked, into particles/ and particles.star."
    )
    picks: str = setting(
        "",
        "The picker whose particles these are, or several with commas: of each micrograph the first that has "
        "picked there. Empty: that of [picking].",
    )
    min_score: float | None = setting(
        None, "Leave out picks of a lower figure of merit; those by hand, which have none, stay."
    )
    mtf: str = setting("", "The detector's MTF, a STAR file that RELION is told of.")


@dataclass(frozen=True)
class Wanted:
    """Particles of one micrograph that are to be cut.

    Attributes
    ----------
    pixels : (n, 2) float64
        x, y in pixels of the average.
    columns : dict of str to sequence of str
        Further columns of their rows.
    optics : tuple of dict
        Columns of optics groups that are kept, beside what the session says of them; one for all by default.
    groups : tuple of int
        Of each particle; empty where there is one group.
    skipped : dict
        Why some were left out before → how many.
    """

    pixels: NDArray[np.float64]
    columns: Mapping[str, Sequence[str]] = field(default_factory=dict)
    optics: tuple[Mapping[str, Any], ...] = ({},)
    groups: tuple[int, ...] = ()
    skipped: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.pixels)


def picked(root: Path, item: str, pickers: Sequence[str], min_score: float | None) -> Wanted | None:
    """What the first of these pickers has picked in a micrograph; None where none of them has.

    Raises
    ------
    FormatError, CorruptError
        A file that is no list of picks.
    """
    path = next((p for name in pickers if (p := root / pick_path(name, item)).is_file()), None)
    if path is None:
        return None
    # a pixel of 1 Å: places stay in pixels
    picks = read_picks(path, 1.0)
    skipped: dict[str, int] = {}
    if min_score is not None:
        by_hand = ~np.isfinite(picks.score) | (picks.score == BY_HAND)
        keep = by_hand | (picks.score >= min_score)
        if not keep.all():
            skipped[f"with a figure of merit below {min_score:g}"] = int((~keep).sum())
            picks = picks.select(keep)
    score = np.where(np.isfinite(picks.score), picks.score, BY_HAND)
    columns: dict[str, Sequence[str]] = {_SCORE: [f"{value:.5f}" for value in score]}
    if picks.eulers is not None:
        for i, label in enumerate(("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")):
            columns[label] = [f"{value:.4f}" for value in picks.eulers[:, i]]
    if picks.class_number is not None and (picks.class_number > 0).any():
        columns["rlnClassNumber"] = [str(int(value)) for value in picks.class_number]
    return Wanted(picks.xy, columns, skipped=skipped)


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


def cut_item(
    job: Job,
    wanted: Wanted,
    settings: ParticleSettings,
    folder: Path,
    on_batch: Callable[[int], None] | None = None,
) -> tuple[Part, bool]:
    """Cut the particles of one micrograph into stacks, where that has not been done before.

    Parameters
    ----------
    job : Job
        The item, with the settings that its frames were read by.
    wanted : Wanted
    settings : ParticleSettings
    folder : Path
        Where the stacks are.
    on_batch : callable, optional
        Called with how many particles more are seen to.

    Returns
    -------
    Part, bool
        What lies in the folder now, and whether images were cut.

    Raises
    ------
    ItemError
        Motion or CTF are not known, or the frames cannot be used.
    """
    micrograph = _Micrograph.of(job, settings)
    images, table = micrograph.fingerprints(wanted)
    try:
        known = read_part(folder / f"{job.item}.json")
    except InputFileError:
        known = None  # it is made again
    if known is not None and known.images == images and _are_there(known, folder, settings):
        if known.table == table:
            return known, False
        part = micrograph.part(wanted, np.array(known.kept, np.int64), known.skipped, images, table)
        write_part(folder, part)
        return part, False
    keep, skipped = sort_out(
        wanted.pixels * micrograph.pixel_size, micrograph.extent, settings, micrograph.output
    )
    chosen = np.flatnonzero(keep)
    folder.mkdir(parents=True, exist_ok=True)
    # until the stacks are new, the list must not vouch for them
    (folder / f"{job.item}.json").unlink(missing_ok=True)
    if len(chosen):
        rows = _write_stacks(folder, job.item, micrograph, wanted.pixels[chosen], settings, on_batch)
        if len(rows) < len(chosen):
            skipped["without any contrast around them"] = len(chosen) - len(rows)
        chosen = chosen[rows]
    part = micrograph.part(wanted, chosen, skipped, images, table)
    write_part(folder, part)
    return part, True


def _are_there(part: Part, folder: Path, settings: ExtractionSettings) -> bool:
    """Whether the stacks have the length that they must have."""
    size = 1024 + len(part) * settings.box**2 * (2 if settings.float16 else 4)
    try:
        return all((folder / name).stat().st_size == size for name in part.stacks().values())
    except OSError:
        return False


def _write_stacks(
    folder: Path,
    item: str,
    micrograph: _Micrograph,
    pixels: NDArray[np.float64],
    settings: ExtractionSettings,
    on_batch: Callable[[int], None] | None,
) -> NDArray[np.int64]:
    """Which of the particles were written."""
    dtype = np.float16 if settings.float16 else np.float32
    done: list[NDArray[np.int64]] = []
    batches = micrograph.extracted(pixels)
    first = next(batches)
    while not len(first.rows) and (following := next(batches, None)) is not None:
        first = following
    if not len(first.rows):
        return np.zeros(0, np.int64)
    with ExitStack() as stack:
        halves = ("",) if first.even is None else ("", "even", "odd")
        writers = [
            stack.enter_context(
                mrc.stack_writer(
                    folder / (f"{item}_{half}.mrcs" if half else f"{item}.mrcs"),
                    micrograph.output,
                    dtype=dtype,
                )
            )
            for half in halves
        ]
        for batch in _chained(first, batches):
            for writer, images in zip(writers, (batch.images, batch.even, batch.odd), strict=False):
                assert images is not None
                for image in images.cpu().numpy():
                    writer.append(image)
            done.append(batch.rows)
            if on_batch is not None:
                on_batch(len(batch.rows))
    return np.concatenate(done)


def _chained(first: Extracted, rest: Iterator[Extracted]) -> Iterator[Extracted]:
    yield first
    yield from rest


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
class _Micrograph:
    """What the session knows about one micrograph, for cutting."""

    job: Job
    settings: ParticleSettings
    motion: StepRecord
    ctf_step: StepRecord
    optics: Optics
    pixel_size: float  # Å, of the average
    shape: tuple[int, int]  # y, x: of the average
    frame_shape: tuple[int, int]
    output: float  # Å, of the particles

    @classmethod
    def of(cls, job: Job, settings: ParticleSettings) -> _Micrograph:
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


def as_processed(job: Job, recorded: StepRecord) -> Job:
    """The job with the input's settings that its motion step has used, whatever weft.toml says by now."""
    from weft.session.config import from_plain

    plain = job.settings.plain()
    plain["input"] = {**plain["input"], **recorded.settings["input"]}
    return Job(job.root, job.source, from_plain(plain), job.record, job.device)
