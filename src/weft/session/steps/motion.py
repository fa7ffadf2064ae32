"""Motion: from the frames to the aligned, dose-weighted average and the tracks."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from weft.errors import GainError
from weft.formats import mrc
from weft.formats.gain import load_defects, load_gain
from weft.formats.relion import RelionMotion, fit_motion_model, write_motion
from weft.movies.average import Average, AverageSettings, aligned_frames, contrast, make_average
from weft.movies.frames import Frames, load_frames
from weft.movies.motion import MotionModel, MotionSettings, fit_motion
from weft.movies.source import SourceSettings, open_movie
from weft.physics.optics import Optics
from weft.session.config import SessionSettings
from weft.session.pictures import write_thumbnail
from weft.session.records import FileIdentity, StepRecord, fingerprint
from weft.session.step import Job, Step, StepResult, inside, on_device
from weft.settings import Settings

if TYPE_CHECKING:
    from weft.session.items import Movie

__all__ = ["STEP", "MotionStep", "read_movie", "write_motion_star"]

_SOURCE_KEYS = tuple(SourceSettings.model_fields)
_GAIN_KEYS = ("gain", "gain_flip_x", "gain_flip_y", "gain_transpose", "gain_invert", "defects")
#: A pixel size in the file that differs by more than this is worth a word.
_PIXEL_TOLERANCE = 0.05
#: Hot pixels that a record lists; a camera with more is broken.
_MOST_HOT = 2000


class MotionStep(Step):
    """Fit the motion, write the average, its halves, the tracks and a thumbnail."""

    name = "motion"
    version = 2
    kinds = ("movie", "tilt")
    sections: ClassVar[Mapping[str, type[Settings]]] = {"motion": MotionSettings, "average": AverageSettings}
    input_keys = (
        "pixel_size",
        "voltage",
        "cs",
        "amplitude",
        "dose_per_frame",
        "prior_dose",
        *_GAIN_KEYS,
        *_SOURCE_KEYS,
    )

    def files(self, settings: SessionSettings, root: Path) -> dict[str, Path]:
        """The gain reference and the defect map."""
        given = {"gain": settings.input.gain, "defects": settings.input.defects}
        return {name: inside(root, value) for name, value in given.items() if value}

    def run(self, job: Job) -> StepResult:
        """See :class:`Step`."""
        optics = job.settings.input.optics()
        average_settings = job.settings.get(AverageSettings)
        if job.record.kind == "tilt":
            # the dose of a whole series is weighted when its tomogram is made
            average_settings = average_settings.model_copy(update={"dose_weighting": "none"})
        frames, facts = job.shared("frames", lambda: read_movie(job))
        on = on_device(frames, job.device)
        motion = fit_motion(on, optics, job.settings.get(MotionSettings))
        if job.record.kind == "tilt":
            # what is aligned later is the specimen as it was during the exposure, not before
            motion = motion.centred()
        # rounded as the record keeps it, so that all that is made from it agrees
        motion = MotionModel.from_dict(motion.to_dict())
        average = make_average(on, motion, optics, average_settings)
        outputs = _write_images(job, average, average_settings)
        if average_settings.stack:
            path = f"average/stack/{job.item}.mrcs"
            images = (image.cpu().numpy() for image in aligned_frames(on, motion, optics, average_settings))
            dtype = np.float16 if average_settings.float16 else np.float32
            mrc.write_stack(job.place(path), images, average.pixel_size, dtype=dtype)
            outputs["stack"] = path
        outputs["motion_star"] = f"average/{job.item}.star"
        star = job.place(outputs["motion_star"])
        residual = _write_star(star, motion, facts, self.reads(job.settings), _namer(job.root), job.source)
        outputs["thumbnail"] = write_thumbnail(job, average.average, average.pixel_size)
        metrics = {
            "pixel_size": average.pixel_size,
            "frames": len(frames),
            "stored_frames": facts["stored_frames"],
            "counts": round(float(frames.mean_counts.mean()), 5),
            "hot_pixels": frames.n_hot,
            "masked": 0.0 if frames.bad is None else round(float(frames.bad.mean()), 6),
            "contrast": contrast(average.average, average.pixel_size),
            **motion.metrics(),
        }
        residual_of_gain = frames.gain_residual()
        if residual_of_gain is not None:
            metrics["gain_residual"], metrics["gain_residual_error"] = (round(v, 5) for v in residual_of_gain)
        details = {"model": motion.to_dict(), "movie": facts, "relion_model_residual": residual}
        return StepResult(metrics, outputs, details)


def _write_images(job: Job, average: Average, settings: AverageSettings) -> dict[str, str]:
    dtype = np.float16 if settings.float16 else np.float32
    outputs = {}
    for name, image in (("average", average.average), ("even", average.even), ("odd", average.odd)):
        if image is None:
            continue
        folder = "average" if name == "average" else f"average/{name}"
        outputs[name] = f"{folder}/{job.item}.mrc"
        mrc.write(job.place(outputs[name]), image.cpu().numpy(), average.pixel_size, dtype=dtype)
    return outputs


def read_movie(job: Job) -> tuple[Frames, dict[str, Any]]:
    """The frames with gain and defects applied, and what was found in the file."""
    given = job.settings.input
    options = SourceSettings(**{key: getattr(given, key) for key in _SOURCE_KEYS})
    with open_movie(job.source, options) as source:
        info = source.info
    gain = defects = None
    is_eer = info.format == "eer"
    if given.gain:
        options_of_gain = (
            given.gain_flip_x,
            given.gain_flip_y,
            given.gain_transpose,
            given.gain_invert,
            is_eer,
        )
        path = inside(job.root, given.gain)
        gain = _gain(path, _mtime(path), info.shape, options_of_gain)
    if given.defects:
        defects = load_defects(inside(job.root, given.defects), info.shape)
    frames = load_frames(job.source, options, gain=gain, defects=defects)
    notes = [info.note] if info.note else []
    if info.pixel_size and abs(info.pixel_size / given.pixel_size - 1.0) > _PIXEL_TOLERANCE:
        notes.append(f"the file says {info.pixel_size:.4g} Å a pixel, the settings {given.pixel_size:.4g}")
    facts: dict[str, Any] = {
        "format": info.format,
        "shape": list(info.shape),
        "stored_frames": info.stored_frames,
        "type": str(info.dtype),
        "hot_pixels": frames.hot_pixels[:_MOST_HOT].tolist(),
        "notes": notes,
    }
    facts["gain"] = _relion_gain(job, gain, is_eer)
    if is_eer:
        groups = info.n_frames + given.skip_first + given.skip_last
        facts["eer_grouping"] = given.eer_frames or max(1, info.stored_frames // groups)
    return frames, facts


def _mtime(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError as error:
        raise GainError(f"{path}: the gain reference cannot be read ({error.strerror}).") from error


@lru_cache(maxsize=2)
def _gain(
    path: Path, mtime_ns: int, shape: tuple[int, int], options: tuple[bool, bool, bool, bool, bool]
) -> NDArray[np.float32]:
    """The gain reference, which all movies share: read once for as long as the file stays the same."""
    flip_x, flip_y, transpose, invert, is_eer = options
    return load_gain(
        path, shape, flip_x=flip_x, flip_y=flip_y, transpose=transpose, is_eer=is_eer, invert=invert
    )


def _relion_gain(job: Job, gain: NDArray[np.float32] | None, is_eer: bool) -> str:
    """The gain reference as RELION is to use it: the file itself, or a copy in its orientation and format."""
    given = job.settings.input
    if not given.gain or gain is None:
        return ""
    path = inside(job.root, given.gain)
    known = (".mrc", ".gain", ".tif", ".tiff") if is_eer else (".mrc", ".tif", ".tiff")
    turned = given.gain_flip_x or given.gain_flip_y or given.gain_transpose or given.gain_invert
    if not turned and path.suffix.lower() in known:
        return str(path)
    content = fingerprint(
        {"gain": FileIdentity.of(path).content, **{k: getattr(given, k) for k in _GAIN_KEYS[1:4]}}
    )
    copy = job.place(f"average/gain_{content[:8]}.mrc")
    if not copy.exists():
        mrc.write(copy, gain, given.pixel_size)
    return str(copy.relative_to(job.root))


def _write_star(
    path: Path,
    motion: MotionModel,
    facts: Mapping[str, Any],
    used: Mapping[str, Mapping[str, Any]],
    name_of: Callable[[str], str],
    source: Path,
) -> float:
    """Write the motion STAR; returns what RELION's polynomial cannot follow of the local motion, Å.

    Parameters
    ----------
    used : dict
        Sections and keys that the fit has read.
    name_of : callable
        From a path, absolute or relative to the session, to the name that RELION gets.
    """
    given = used["input"]
    # RELION counts the dose of skipped frames itself
    optics = Optics(
        given["pixel_size"],
        given["voltage"],
        given["cs"],
        given["amplitude"],
        given["dose_per_frame"],
        given["prior_dose"],
    )
    shift = -np.asarray(motion.global_shift, dtype=np.float64) / optics.pixel_size
    model, residual = None, 0.0
    if motion.local is not None and len(shift) > 1:
        steps = (np.arange(9) + 0.5) / 9
        fraction = np.stack(np.meshgrid(steps, steps), axis=-1).reshape(-1, 2)
        local = -motion.local_track(fraction * np.asarray(motion.extent)) / optics.pixel_size
        model, offset, residual = fit_motion_model(local, fraction - 0.5)
        shift = shift + offset
    ny, nx = facts["shape"]
    write_motion(
        path,
        RelionMotion(
            movie=name_of(str(source)),
            gain=name_of(facts["gain"]) if facts["gain"] else "",
            shape=(int(ny), int(nx)),
            binning=used["average"]["bin"],
            optics=optics,
            n_frames=len(shift) + given["skip_first"] + given["skip_last"],
            global_shift=shift,
            model=model,
            hot_pixels=np.array(facts["hot_pixels"], dtype=np.int64).reshape(-1, 2),
            start_frame=given["skip_first"] + 1,
            eer=(given["eer_upsampling"], facts["eer_grouping"]) if facts["format"] == "eer" else None,
        ),
    )
    return residual * optics.pixel_size


def write_motion_star(
    path: Path, movie: Movie, done: StepRecord, root: Path, project: Path | None = None
) -> None:
    """Write the motion STAR of a finished movie somewhere else, with names relative to `project`."""
    facts = done.results["movie"]
    _write_star(path, movie.motion, facts, done.settings, _namer(root, project), movie.source)


def _namer(root: Path, project: Path | None = None) -> Callable[[str], str]:
    def name_of(file: str) -> str:
        full = os.path.join(root, file)
        return full if project is None else os.path.relpath(full, project.absolute())

    return name_of


STEP = MotionStep()
