"""What a session knows for cutting particles out of its tilt images, and the cutting for averages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from weft.errors import RequestError
from weft.formats import mrc
from weft.formats.tomo_particles import TomoParticles, join_particles
from weft.particles.cutting import ImageSeriesSettings, image_series_batches
from weft.session.particle_images import ParticleImages, filled, room
from weft.session.tilt_contrast import stack_contrast
from weft.tilts.gridding import TiltContrast
from weft.tilts.reconstruction import ReconstructionSettings, magnification

if TYPE_CHECKING:
    from weft.session.session import Session
    from weft.session.tilt_item import TiltSeries

__all__ = ["contrast_of", "cut_from_session", "distortion_of", "half_sets", "mapped_stack"]


def contrast_of(series: TiltSeries, session: Session) -> TiltContrast:
    """Of the images of a series whose CTF is known."""
    assert series.record is not None
    return stack_contrast(series.record, series.ctf, session.settings.input.optics())


def distortion_of(session: Session) -> torch.Tensor | None:
    """Anisotropic magnification that tomograms are corrected for; None for none."""
    chosen = session.settings.get(ReconstructionSettings)
    return magnification(chosen.anisotropy, chosen.anisotropy_angle) if chosen.anisotropy else None


def mapped_stack(path: Path) -> torch.Tensor:
    """(tilts, y, x) float32; changes would stay in memory, because PyTorch knows no read-only tensors."""
    info = mrc.read_header(path)
    data = np.memmap(path, info.dtype, "c", info.data_offset, info.shape)
    return torch.from_numpy(np.ascontiguousarray(data, np.float32))


def half_sets(particles: TomoParticles, *, both: bool = False) -> torch.Tensor:
    """(n,) int64, 0 or 1: what a list's rlnRandomSubset says; else every second one is of half 1.

    With `both` a list whose particles are all of one half counts as saying nothing.
    """
    given = particles.extra.get("rlnRandomSubset")
    if given is not None:
        numbers = [int(float(value)) for value in given]
        if set(numbers) <= {1, 2} and not (both and len(set(numbers)) < 2):
            return torch.tensor(numbers) - 1
    return torch.arange(len(particles)) % 2


def cut_from_session(
    session: Session,
    particles: TomoParticles,
    settings: ImageSeriesSettings,
    progress: Callable[[int, int], None] | None = None,
) -> ParticleImages:
    """Cut particles out of the tilt images of a session.

    Half-sets are those of rlnRandomSubset where the list has it; else every second particle of a series
    belongs to the other half.

    Parameters
    ----------
    session : Session
    particles : TomoParticles
        Of any program; `tomogram` are names of the session's series.
    settings : ImageSeriesSettings
    progress : callable, optional
        Takes how many particles are done, of how many.

    Raises
    ------
    RequestError
        There are no particles, or of a series that is not in the session.
    SessionError
        A series is not aligned, or its CTF is not known.
    """
    names = list(dict.fromkeys(particles.tomogram))
    known = session.series
    unknown = next((name for name in names if name not in known), None)
    if unknown is not None:
        raise RequestError(f"there are particles of {unknown}, which is no tilt series of {session.root}.")
    if not names:
        raise RequestError("there are no particles; look at the cut-off of `weft candidates`.")
    tilts = max(len(known[name]) for name in names)
    images = room(len(particles), tilts, settings.box)
    parts, lists, done = [], [], 0
    distortion = distortion_of(session)
    for group, name in enumerate(names):
        series = known[name]
        which = np.array([i for i, of in enumerate(particles.tomogram) if of == name])
        mine = particles.select(which)
        stack = mapped_stack(series.paths["stack"])
        geometry = series.geometry
        xyz = torch.from_numpy(np.array(mine.xyz)) + 0.5 * geometry.volume_size
        for part in image_series_batches(
            stack,
            series.alignment.pixel_size,
            geometry,
            contrast_of(series, session),
            xyz,
            torch.from_numpy(np.array(mine.euler)),
            settings,
            half=half_sets(mine, both=True),
            group=group,
            distortion=distortion,
        ):
            images[done : done + len(part), : part.images.shape[1]] = part.images
            # only what is small is kept of each batch
            parts.append(replace(part, images=part.images[:, :0].clone()))
            done += len(part)
            if progress is not None:
                progress(done, len(particles))
        lists.append(mine)
    return ParticleImages(filled(parts, images), join_particles(lists))
