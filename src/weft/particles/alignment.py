"""Iterated alignment of particles against their own average, the halves kept apart.

Each half-set has its own average, and its particles are aligned against that one only, so that the halves'
agreement stays a measure of what is signal ("gold standard": Scheres & Chen 2012, Nat. Methods 9:853). Only
what is coarser than a limit is shared, so that the two do not drift apart (RELION's --low_resol_join_halves).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from weft.errors import ItemError
from weft.particles.averaging import Average, AveragingSettings, average, fsc_mask, usable
from weft.particles.fsc import FSC, soft_sphere
from weft.particles.image_series import ImageSeries
from weft.particles.pose_search import Poses, PoseSettings, moved, refine_poses
from weft.physics.fourier import irfft3, rfft3, shells_3d
from weft.physics.geometry import rotation_angle
from weft.settings import setting

__all__ = ["AlignmentSettings", "Iteration", "iterate"]

#: Coefficients are used up to where the FSC falls below this.
_THRESHOLD = 0.143


class AlignmentSettings(PoseSettings):
    """How particles are aligned, over several iterations."""

    iterations: int = setting(0, "Rounds of alignment; 0 averages with the poses as they are.", ge=0, le=50)
    join_resolution: float = setting(
        40.0,
        "Both halves share what is coarser than this, so that they keep the same frame.",
        unit="Å",
        ge=5.0,
        le=1000.0,
    )
    first_resolution: float = setting(
        0.0,
        "Finest detail that the first round looks at; 0 is what the FSC of the given poses allows.",
        unit="Å",
        ge=0.0,
        le=200.0,
    )


@dataclass(frozen=True)
class Iteration:
    """One round.

    Attributes
    ----------
    number : int
        0 is the average with the poses as they were given.
    fsc : FSC
        Of the average with the poses after this round.
    turned, shifted : float
        Root mean square of what the round has changed, degrees and Å.
    score : float
        Mean of the particles', NaN in round 0.
    """

    number: int
    fsc: FSC
    turned: float
    shifted: float
    score: float

    @property
    def resolution(self) -> float:
        """Å, at 0.143."""
        return self.fsc.resolution(_THRESHOLD)


def iterate(
    series: ImageSeries,
    poses: Poses,
    averaging: AveragingSettings | None = None,
    settings: AlignmentSettings | None = None,
    *,
    mask: torch.Tensor | None = None,
    report: Callable[[Iteration], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Average, Poses]:
    """Align and average.

    Parameters
    ----------
    series : ImageSeries
        With the rotations and shifts of `poses`.
    poses : Poses
    averaging : AveragingSettings, optional
    settings : AlignmentSettings, optional
    mask : (n, n, n) float32, optional
        For the FSC and the references; by default a soft sphere.
    report : callable, optional
        Takes each round when it is done.
    progress : callable, optional
        Takes how many particles of a round have been searched, of how many.

    Returns
    -------
    Average, Poses

    Raises
    ------
    ItemError
        If a half-set is empty, or if the halves have nothing in common that could be aligned against.
    """
    averaging = averaging or AveragingSettings()
    settings = settings or AlignmentSettings()
    size, pixel = series.images.shape[-1], series.pixel_size
    if mask is None:
        mask = fsc_mask(size, pixel, averaging)
    diameter = settings.diameter or averaging.mask_diameter or 0.8 * size * pixel
    cover = soft_sphere(size, min(diameter / pixel, size - 4.0), averaging.mask_edge)
    cover = (cover * mask.cpu()).to(series.images.device)
    found = average(series, averaging, mask)
    if report is not None:
        report(Iteration(0, found.fsc, 0.0, 0.0, math.nan))
    reach = settings.angle_range
    for number in range(1, settings.iterations + 1):
        resolution = found.fsc.resolution(_THRESHOLD)
        if number == 1 and settings.first_resolution:
            resolution = max(resolution, settings.first_resolution)
        if not resolution < diameter:
            raise ItemError(
                "the half-sets' averages have nothing in common with the given orientations, so there is "
                "nothing to align against: look at the candidates and the template, or take more particles"
            )
        references = _references(found, cover, pixel, settings.join_resolution)
        parts, order, done, total = [], [], 0, len(series)
        for half in (0, 1):
            mine = (series.half == half).nonzero()[:, 0].cpu()
            few = Poses(poses.euler[mine], poses.offset[mine], poses.score[mine])

            def count(finished: int, before: int = done, total: int = total) -> None:
                if progress is not None:
                    progress(before + finished, total)

            parts.append(
                refine_poses(
                    series.select(mine),
                    references[half],
                    few,
                    settings.model_copy(update={"angle_range": reach}),
                    resolution=resolution,
                    diameter=diameter,
                    dose_weighting=averaging.dose_weighting,
                    progress=count,
                )
            )
            order.append(mine)
            done += len(mine)
        after = _merge(poses, parts, order)
        turned = rotation_angle(poses.matrices, after.matrices)
        shifted = (after.offset - poses.offset).norm(dim=1)
        series, poses = moved(series, poses, after), after
        found = average(series, averaging, mask)
        if report is not None:
            rms = (float(turned.square().mean().sqrt()), float(shifted.square().mean().sqrt()))
            report(Iteration(number, found.fsc, *rms, float(poses.score.mean())))
        # what is left to find is less than what has just been found, and never below the grid's own needs
        parting = math.degrees(resolution / diameter)
        reach = min(reach, max(0.5 * reach, parting))
    return found, poses


def _merge(before: Poses, parts: list[Poses], order: list[torch.Tensor]) -> Poses:
    values = {name: getattr(before, name).clone() for name in ("euler", "offset", "score")}
    for part, mine in zip(parts, order, strict=True):
        for name, value in values.items():
            value[mine] = getattr(part, name)
    return replace(before, **values)


def _references(found: Average, cover: torch.Tensor, pixel_size: float, join: float) -> list[torch.Tensor]:
    """Each half filtered by the FSC, the coarse part shared, masked."""
    curve = usable(found.fsc)
    halves = [found.sums.map(half, curve) for half in (0, 1)]
    size = len(cover)
    spectra = [rfft3(half) for half in halves]
    coarse = shells_3d(size, cover.device) <= size * pixel_size / join
    common = 0.5 * (spectra[0] + spectra[1])
    return [irfft3(torch.where(coarse, common, own), (size,) * 3) * cover for own in spectra]
