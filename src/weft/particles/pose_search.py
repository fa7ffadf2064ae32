"""Orientations and places of particles, refined against a reference map.

A pose is scored with all tilts of the particle at once. With images F, H = CTF × dose × weight, reference S
and noise of power σ², the logarithm of the likelihood that the best scale of the reference gains over noise
alone is ½ s²:

    s = √2 Σ_tilts Σ_k Re(F* H S(K) exp(−2πi k·u))/σ² / √(Σ_tilts Σ_k |H S(K)|²/σ²)

Orientations lie on a grid around the present one, first coarse and wide, then ever finer (:func:`ball`). The
particle's place is common to all its tilts: an offset δ in the tomogram moves it by u = T δ in the image of a
tilt with matrix T. A grid of offsets is tried first; from there each orientation takes the step to the
maximum of the second-order expansion of its score in δ. docs/howto/average.md tells how far this reaches.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from weft.particles.fourier_volume import padded_transform
from weft.particles.image_series import ImageSeries
from weft.particles.pose_scores import Observed, score_plain, score_poses
from weft.particles.spectra import Band, chunks, noise_power, spectra, transfer
from weft.physics.dose import DoseWeighting
from weft.physics.geometry import euler_angles, euler_matrix, rotation_about
from weft.settings import Settings, setting

__all__ = ["PoseSettings", "Poses", "ball", "moved", "refine_poses"]

#: Particles that are searched at a time.
_BATCH = 16
#: The finest step is this part of the angle at which neighbouring sections part, 1 / (k D).
_FINEST = 0.3
#: The first step is this part of it, unless the settings say otherwise.
_COARSEST = 1.0
#: Radius of a finer grid in its own steps: 27 points; those of the coarser one's cell are within 1.3.
_REACH = 1.7
#: A paraboloid has ten coefficients; it is fitted to more points than these.
_NEIGHBOURS = 14


class PoseSettings(Settings):
    """How orientations and places are searched."""

    angle_range: float = setting(
        9.0, "How far orientations may be off; searched around the given ones.", unit="deg", gt=0.0, le=60.0
    )
    angle_step: float = setting(
        0.0,
        "First step of the search, which is halved until it is fine enough; 0 chooses it by resolution and "
        "diameter.",
        unit="deg",
        ge=0.0,
        le=20.0,
    )
    offset_range: float = setting(
        12.0, "How far particles may be off their places.", unit="Å", ge=0.0, le=500.0
    )
    diameter: float = setting(
        0.0,
        "Diameter of the particle: masks the reference and decides on the finest step; 0 is that of the "
        "averages' mask.",
        unit="Å",
        ge=0.0,
        le=10000.0,
    )


@dataclass(frozen=True)
class Poses:
    """Where particles lie and how they are turned.

    Attributes
    ----------
    euler : (n, 3) float64
        rot, tilt, psi, degrees: M takes the map to the tomogram.
    offset : (n, 3) float64
        x, y, z, Å, in the tomogram: what is added to the places that the images were cut at.
    score : (n,) float64
        s of this module's first lines, in standard deviations of the noise; NaN before a search.
    """

    euler: torch.Tensor
    offset: torch.Tensor
    score: torch.Tensor

    @classmethod
    def given(cls, euler: torch.Tensor) -> Poses:
        """Orientations before any search."""
        angles = torch.as_tensor(euler, dtype=torch.float64)
        return cls(angles, torch.zeros_like(angles), torch.full_like(angles[:, 0], math.nan))

    def __len__(self) -> int:
        return len(self.euler)

    @property
    def matrices(self) -> torch.Tensor:
        """(n, 3, 3) float64."""
        return euler_matrix(*self.euler.unbind(-1))


def ball(radius: float, step: float) -> torch.Tensor:
    """Rotations up to an angle, evenly spread: a body-centred grid of rotation vectors.

    Parameters
    ----------
    radius, step : float
        Degrees; `step` is the distance of neighbours.

    Returns
    -------
    (n, 3) float64
        Rotation vectors, degrees; the first is none at all.
    """
    # neighbours of a body-centred cubic grid are √3/2 of its side apart
    side = step * 2.0 / math.sqrt(3.0)
    reach = math.ceil(radius / side) + 1
    axis = torch.arange(-reach, reach + 1, dtype=torch.float64)
    corners = torch.cartesian_prod(axis, axis, axis)
    points = torch.cat([corners, corners + 0.5]) * side
    length = points.norm(dim=1)
    inside = length <= radius + 1e-9
    points, length = points[inside], length[inside]
    return points[torch.argsort(length, stable=True)]


def moved(series: ImageSeries, before: Poses, after: Poses) -> ImageSeries:
    """The same images with other poses: rotation and shift are those of `after`."""
    device = series.rotation.device
    turn = (before.matrices.transpose(1, 2) @ after.matrices).to(device)
    tilt = series.rotation.double() @ before.matrices.transpose(1, 2).to(device)[:, None]
    step = (after.offset - before.offset).to(device)
    shift = series.shift + (tilt[:, :, :2] @ step[:, None, :, None])[..., 0].float()
    return replace(series, rotation=(series.rotation.double() @ turn[:, None]).float(), shift=shift)


def refine_poses(
    series: ImageSeries,
    reference: torch.Tensor,
    poses: Poses,
    settings: PoseSettings | None = None,
    *,
    resolution: float,
    diameter: float,
    dose_weighting: DoseWeighting = "warp",
    progress: Callable[[int], None] | None = None,
) -> Poses:
    """Search for better poses.

    Parameters
    ----------
    series : ImageSeries
        With the rotations and shifts of `poses`.
    reference : (n, n, n) float32
        Masked; low-passed as its resolution deserves (a Wiener filter: see ``averaging``).
    poses : Poses
    settings : PoseSettings, optional
    resolution : float
        Å: coefficients beyond it are not looked at.
    diameter : float
        Å, of the particle; it decides on the finest step.
    dose_weighting : {"warp", "grant", "none"}
    progress : callable, optional
        Takes the number of particles that are done.

    Returns
    -------
    Poses
    """
    settings = settings or PoseSettings()
    size, pixel = series.images.shape[-1], series.pixel_size
    band = Band.of(size, pixel, resolution, series.images.device)
    noise = noise_power(series, band, dose_weighting)[band.shells]
    transform = padded_transform(reference, float(band.radius.max()))
    grids = _grids(settings, math.degrees(1.0 / (float(band.k.max()) * diameter)))
    out = []
    for part in chunks(len(series), _BATCH):
        few = series.select(part)
        now = Poses(poses.euler[part], poses.offset[part], poses.score[part])
        out.append(_search(few, now, transform, band, noise, grids, settings, dose_weighting))
        if progress is not None:
            progress(int(part[-1]) + 1)
    return Poses(*(torch.cat([getattr(p, f) for p in out]) for f in ("euler", "offset", "score")))


def _grids(settings: PoseSettings, parting: float) -> list[torch.Tensor]:
    """From coarse to fine; `parting` (degrees) is the angle at which neighbouring sections part."""
    step = min(settings.angle_step or _COARSEST * parting, settings.angle_range)
    grids = [ball(settings.angle_range, step)]
    while step > _FINEST * parting:
        step *= 0.5
        grids.append(ball(_REACH * step, step))
    return grids


def _search(
    series: ImageSeries,
    poses: Poses,
    transform: torch.Tensor,
    band: Band,
    noise: torch.Tensor,
    grids: list[torch.Tensor],
    settings: PoseSettings,
    dose_weighting: DoseWeighting,
) -> Poses:
    """Of one batch."""
    matrices = poses.matrices.to(series.images.device)
    tilt = (series.rotation.double() @ matrices[:, None].transpose(-1, -2)).float()
    known = transfer(series, band, dose_weighting)
    data = spectra(series, band).conj() / noise
    if not series.premultiplied:
        data *= known
    seen = Observed(band, tilt, data, known.square() / noise, series.weight > 0)
    score = score_poses if data.device.type == "cpu" else score_plain
    offset = torch.zeros(len(series), 3, dtype=torch.float64, device=data.device)
    turned = matrices
    # a step beyond this is beyond what two orders can tell
    trust = 0.25 / float(band.k.max())
    if settings.offset_range > 0.0:
        offset = seen.search_offsets(transform, turned, settings.offset_range, trust)
    for grid in grids:
        candidates = turned[:, None] @ rotation_about(grid.to(turned.device).deg2rad())
        here = seen.shifted(offset)
        found = score(here, transform, candidates)
        gain, step = found.climb(trust if settings.offset_range > 0.0 else 0.0)
        chosen = gain.argmax(1)
        row = torch.arange(len(chosen), device=chosen.device)
        inside = _peak(grid.to(gain.device), gain, chosen)
        turned = turned @ rotation_about(inside.deg2rad())
        offset = offset + step[row, chosen]
        length = offset.norm(dim=1, keepdim=True)
        offset = offset * (settings.offset_range / length.clamp(min=1e-9)).clamp(max=1.0)
    final = score(seen.shifted(offset), transform, turned[:, None])
    best = final.value()[:, 0]
    return Poses(euler_angles(turned).cpu(), poses.offset + offset.cpu(), best.double().cpu())


def _peak(grid: torch.Tensor, gain: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Rotation vectors (n, 3), degrees: the maximum of a paraboloid around the best point.

    The best point itself where it has too few of them, or where the maximum is not near.
    """
    best = grid[chosen].clone()
    if len(grid) <= _NEIGHBOURS:
        return best
    step = float((grid[1:] - grid[0]).norm(dim=1).min())
    a, b = torch.triu_indices(3, 3)
    for i, place in enumerate(best):
        around = (grid - place) / step
        near = around.norm(dim=1) < _REACH
        if int(near.sum()) <= _NEIGHBOURS:
            continue
        d = around[near]
        terms = torch.cat([torch.ones_like(d[:, :1]), d, d[:, a] * d[:, b]], 1)
        fit = torch.linalg.lstsq(terms, gain[i, near, None]).solution[:, 0]
        bend = torch.zeros(3, 3, dtype=fit.dtype, device=fit.device)
        bend[a, b] = fit[4:]
        bend = bend + bend.T
        if float(torch.linalg.eigvalsh(bend).max()) < 0.0:
            top = torch.linalg.solve(bend, -fit[1:4])
            if float(top.norm()) < 1.0:
                best[i] = place + top * step
    return best
