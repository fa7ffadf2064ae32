"""Plain patches followed from tilt to tilt, in chains of limited length.

For specimens in which nothing stands out that could be followed through all tilts, and before it is known
well enough where things are. In every few tilts a grid of patches begins; each is followed to both sides,
compared with what the last few images of its chain, moved to where it was found in them, predict for the next
(:mod:`weft.tilts.reprojection`, which contains the stretching by cosines). What is followed changes on the
way, as parts of different depth drift apart, so that chains end after some tilts; each is one marker of the
bundle adjustment, and those that begin elsewhere overlap with it.
"""

from __future__ import annotations

import math

import torch

from weft.physics import fourier
from weft.tilts.cameras import Cameras, Tracks
from weft.tilts.coarse import peaks
from weft.tilts.patch_tracks import COVERED, disc
from weft.tilts.reprojection import predict, prediction_matrix, sample_patches, to_frame, to_image

__all__ = ["follow_chains"]

LENGTH = 6  # tilts to each side
EVERY = 5  # tilts: as often a grid of chains begins
MEMORY = 3  # images of a chain that predict the next
LEAST_CORRELATION = 0.2


def follow_chains(
    images: torch.Tensor,
    pixel_size: tuple[float, float],
    cameras: Cameras,
    usable: torch.Tensor,
    *,
    diameter: float,
    step: float,
    reach: float,
) -> Tracks:
    """Follow patches on grids from tilt to tilt.

    Parameters
    ----------
    images : (tilts, y, x) float32
        Band-passed (:func:`~weft.tilts.coarse.prepare_images`).
    pixel_size : (float, float)
        x, y, Å.
    cameras : Cameras
        Where patches are looked for first.
    usable : (tilts,) bool tensor
    diameter, step : float
        Of the patches, which begin half a diameter apart, and their pixel size, Å.
    reach : float
        Å: how far a patch may move from one tilt to the next beyond what the cameras say.

    Returns
    -------
    Tracks
        One marker a chain; chains seen in fewer than three tilts are left out.
    """
    order = [t for t in cameras.angles.argsort(stable=True).tolist() if bool(usable[t])]
    h, w = images.shape[-2:]
    half = 0.5 * torch.tensor([w * pixel_size[0], h * pixel_size[1]], dtype=torch.float64)
    both = torch.stack([images, torch.ones_like(images)], 1)
    n = fourier.fast_size(math.ceil(diameter / step))
    follow = _Follower(both, pixel_size, half, cameras, n, step, reach, diameter)
    grid = torch.stack(torch.meshgrid(*(_places(float(v), diameter) for v in half), indexing="ij"), -1)
    found: list[tuple[torch.Tensor, int, torch.Tensor, torch.Tensor]] = []
    markers = 0
    for at in range(EVERY // 2, len(order), EVERY):
        start = order[at]
        xy = grid.reshape(-1, 2)
        numbers = markers + torch.arange(len(xy))
        markers += len(xy)
        found.append((numbers, start, xy, torch.ones(len(xy), dtype=torch.float64)))
        # a point in the plane through the specimen's middle that is seen there
        uv = to_frame((xy - cameras.shift[start])[None], cameras.axis[[start]])[0]
        lean = torch.deg2rad(cameras.angles[start]).cos()
        points = torch.stack([uv[:, 0] / lean, uv[:, 1], torch.zeros(len(uv), dtype=torch.float64)], -1)
        for way in (order[at + 1 : at + 1 + LENGTH], order[max(0, at - LENGTH) : at][::-1]):
            found += [
                (numbers[k], t, place, sigma) for k, t, place, sigma in follow.along(start, way, points)
            ]
    if not found:
        none = torch.zeros(0, dtype=torch.int64)
        return Tracks(none, none, torch.zeros(0, 2, dtype=torch.float64), torch.zeros(0, dtype=torch.float64))
    marker = torch.cat([f[0] for f in found])
    tilt = torch.cat([torch.full((len(f[0]),), f[1]) for f in found])
    tracks = Tracks(marker, tilt, torch.cat([f[2] for f in found]), torch.cat([f[3] for f in found]))
    length = torch.bincount(marker, minlength=markers)
    long = length >= 3
    renumbered = torch.cumsum(long, 0) - 1
    kept = tracks.select(long[tracks.marker])
    return Tracks(renumbered[kept.marker], kept.tilt, kept.xy, kept.sigma)


def _places(half: float, diameter: float) -> torch.Tensor:
    """Å from the middle: patches half a diameter apart that lie inside."""
    count = max(0, math.floor((half - 0.5 * diameter) / (0.5 * diameter)))
    return torch.arange(-count, count + 1, dtype=torch.float64) * 0.5 * diameter


class _Follower:
    """Follows the patches of one grid through some tilts."""

    def __init__(
        self,
        both: torch.Tensor,
        pixel_size: tuple[float, float],
        half: torch.Tensor,
        cameras: Cameras,
        n: int,
        step: float,
        reach: float,
        depth: float,
    ) -> None:
        self.both, self.pixel_size, self.half, self.cameras = both, pixel_size, half, cameras
        self.n, self.step, self.reach, self.depth = n, step, reach, depth
        self.mask = disc(n, both.device)

    def cut(self, tilt: int, xy: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(n, v, u): patches of one image, and how much of each is inside."""
        axis, size = self.cameras.axis[[tilt]], (self.n, self.n)
        found = sample_patches(
            self.both[[tilt]], self.pixel_size, (xy + self.half)[None], axis, size, self.step
        )
        patches, inside = found[:, 0].unbind(1)
        return patches, ((inside * self.mask).sum((-1, -2)) / self.mask.sum()).cpu()

    def along(
        self, start: int, way: list[int], points: torch.Tensor
    ) -> list[tuple[torch.Tensor, int, torch.Tensor, torch.Tensor]]:
        """For every tilt of `way`: which points are still followed, where they are and how surely."""
        seen = self.cameras.project(points)
        alive = torch.arange(len(points))
        patches, _ = self.cut(start, seen[start])
        memory, tilts = [patches], [start]
        carried = torch.zeros(len(points), 2, dtype=torch.float64)
        out = []
        for count, t in enumerate(way, 1):
            axis = self.cameras.axis[[t]]
            xy = seen[t, alive] + to_image(carried[None], axis)[0]
            patches, inside = self.cut(t, xy)
            weights = torch.ones(1, len(tilts))
            angles = self.cameras.angles
            matrix = prediction_matrix(angles[[t]], angles[tilts], weights, self.n, self.step, self.depth)
            model = predict(matrix, torch.stack(memory, 1))[:, 0] * self.mask
            patches = patches * self.mask
            norm = (patches.square().sum((-1, -2)) * model.square().sum((-1, -2))).sqrt().clamp(min=1e-9)
            product = fourier.rfft2(patches) * fourier.rfft2(model).conj()
            maps = fourier.irfft2(product, (self.n, self.n)) / norm[:, None, None]
            uv, _ = peaks(maps, self.reach / self.step)
            near = (uv.abs().amax(-1) < self.reach / self.step - 1.0).to(maps.device)
            at = uv.round().long().to(maps.device) % self.n
            height = maps[torch.arange(len(maps), device=maps.device), at[:, 1], at[:, 0]]
            good = ((height > LEAST_CORRELATION) & near).cpu() & (inside > COVERED)
            if not bool(good.any()):
                break
            alive, carried = alive[good], (carried + uv * self.step)[good]
            xy = seen[t, alive] + to_image(carried[None], axis)[0]
            sigma = math.sqrt(1.0 + count) / height.double().cpu()[good]
            out.append((alive.clone(), t, xy, sigma))
            memory = [*(kept[good.to(kept.device)] for kept in memory[-MEMORY + 1 :]), self.cut(t, xy)[0]]
            tilts = [*tilts[-MEMORY + 1 :], t]
        return out
