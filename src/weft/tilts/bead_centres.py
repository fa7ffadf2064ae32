"""Where exactly the centre of a bead lies: the centre of symmetry of what its tilt makes of a bead.

All beads of one tilt look alike: discs blurred and fringed by that image's defocus. Their mean radial profile
is that tilt's own template, and each bead's centre, contrast and background are fitted to it by Gauss-Newton
steps with robust weights on pixels, so that what overlaps a bead does not pull it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from weft.physics import fourier
from weft.tilts.bead_search import MASK_RADII

__all__ = ["BeadCentres", "BeadImages"]

WIDEST = 24.0  # pixels: larger beads are fitted in reduced images
BINS = 2  # of the profile in a pixel
SMOOTHING = 0.4  # pixels, of the profile
COMMON_BEADS = 3.0  # so many beads' weight has the profile of all tilts in that of each
CAUCHY = 1.8  # of the noise: pixels farther from the template soon lose their weight
STEPS = 6


@dataclass(frozen=True)
class BeadCentres:
    """Fitted centres.

    Attributes
    ----------
    xy : (n, 2) float64
        Å, relative to the image's centre.
    score : (n,) float64
        Correlation of the image with its tilt's template under the mask, −1 … 1.
    contrast : (n,) float64
        How many times the template's.
    sigma : (n,) float64
        Å, expected from the noise.
    """

    xy: torch.Tensor
    score: torch.Tensor
    contrast: torch.Tensor
    sigma: torch.Tensor

    def select(self, which: torch.Tensor) -> BeadCentres:
        """Some of them (indices or a mask)."""
        return BeadCentres(self.xy[which], self.score[which], self.contrast[which], self.sigma[which])


class BeadImages:
    """Tilt images prepared for fitting beads of one diameter.

    Parameters
    ----------
    images : (tilts, y, x) float32 tensor
    pixel_size, diameter : float
        Å.
    """

    def __init__(self, images: torch.Tensor, pixel_size: float, diameter: float) -> None:
        ny, nx = images.shape[-2:]
        factor = min(1.0, WIDEST * pixel_size / diameter)
        if factor < 1.0:
            size = (fourier.fast_size(math.ceil(ny * factor)), fourier.fast_size(math.ceil(nx * factor)))
            size = (min(ny, size[0]), min(nx, size[1]))
            images = torch.stack([fourier.resize(image, size) for image in images])
        self.images = images
        self.pixel = torch.tensor(
            [nx * pixel_size / images.shape[-1], ny * pixel_size / images.shape[-2]], dtype=torch.float64
        )
        self.half = 0.5 * pixel_size * torch.tensor([nx, ny], dtype=torch.float64)
        self.diameter = diameter
        mean_pixel = float(self.pixel.mean())
        self.radius = 0.5 * diameter / mean_pixel
        self.reach = math.ceil(MASK_RADII * self.radius) + 2

    def fit(self, tilt: torch.Tensor, xy: torch.Tensor, rounds: int = 2) -> BeadCentres:
        """Fit beads near places.

        Parameters
        ----------
        tilt : (n,) int64 tensor
        xy : (n, 2) tensor
            Å, relative to the image's centre; right to a third of the bead's radius.
        rounds : int
            How often templates are made anew from the centres found.

        Returns
        -------
        BeadCentres
        """
        patches = self._patches(tilt, (xy + self.half) / self.pixel)
        at = patches.start
        for _ in range(rounds):
            profiles = self._profiles(tilt, at, patches)
            at, contrast, score, sigma = self._fit(profiles[tilt], at, patches)
        places = (at.double() + patches.middle) * self.pixel - self.half
        return BeadCentres(
            places, score.double(), contrast.double(), sigma.double() * float(self.pixel.mean())
        )

    def _patches(self, tilt: torch.Tensor, at: torch.Tensor) -> _Patches:
        h, w = self.images.shape[-2:]
        middle = at.round().long()
        step = torch.arange(-self.reach, self.reach + 1)
        y, x = torch.meshgrid(step, step, indexing="ij")
        disc = x * x + y * y <= self.reach**2
        x, y = x[disc], y[disc]
        column, row = middle[:, 0, None] + x, middle[:, 1, None] + y
        inside = (column >= 0) & (column < w) & (row >= 0) & (row < h)
        values = self.images[tilt[:, None], row.clamp(0, h - 1), column.clamp(0, w - 1)]
        return _Patches(values, inside.float(), x.float(), y.float(), middle.double(), (at - middle).float())

    @property
    def _table(self) -> int:
        return BINS * (self.reach + 2) + 1

    def _profiles(self, tilt: torch.Tensor, at: torch.Tensor, patches: _Patches) -> torch.Tensor:
        """Radial profiles of each tilt's beads, (tilts, table): 0 in the background, about −1 in the bead."""
        tilts, table = len(self.images), self._table
        _, _, r = patches.polar(at)
        bin_ = (r * BINS).round().long().clamp_max(table - 1)
        # medians over the bead and the ring of background, as other beads may lie there
        outside = (r > 1.2 * self.radius) & (r <= MASK_RADII * self.radius)
        ground = _median(patches.values, outside & (patches.inside > 0.0))
        depth = ground - _median(patches.values, r < 0.9 * self.radius)
        usable = depth > 0.0
        if not bool(usable.any()):
            return torch.zeros(tilts, table)
        level = depth[usable].median()
        value = (patches.values - ground[:, None]) / depth.clamp_min(0.2 * level)[:, None]
        # what is much darker or brighter than any bead belongs to something else
        value = value.clamp(-3.0, 1.5)
        ok = (patches.inside * usable[:, None]).flatten()
        place = (tilt[:, None] * table + bin_).flatten()
        total = torch.zeros(tilts * table).index_add_(0, place, value.flatten() * ok).reshape(tilts, table)
        count = torch.zeros(tilts * table).index_add_(0, place, ok).reshape(tilts, table)
        share = COMMON_BEADS / float(usable.sum())
        profile = (total + share * total.sum(0)) / (count + share * count.sum(0)).clamp_min(1e-9)
        kernel = torch.arange(-6, 7) / BINS
        kernel = torch.exp(-0.5 * (kernel / SMOOTHING).square())
        # the profile goes on the other side of the centre
        mirrored = torch.cat([profile[:, 1:7].flip(1), profile, profile[:, -1:].expand(-1, 6)], dim=1)
        window = (kernel / kernel.sum())[None, None]
        smooth: torch.Tensor = torch.nn.functional.conv1d(mirrored[:, None], window)[:, 0]
        return smooth

    def _fit(
        self, profile: torch.Tensor, at: torch.Tensor, patches: _Patches
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Centre from the patch's middle, contrast, score and σ of the centre (pixels) for each patch."""
        slope = torch.zeros_like(profile)
        slope[:, 1:-1] = (profile[:, 2:] - profile[:, :-2]) * (0.5 * BINS)
        robust = torch.ones_like(patches.values)
        noise = torch.ones(len(at))
        values, limit = patches.values, 0.5 * self.radius
        for step in range(STEPS):
            dx, dy, r = patches.polar(at)
            position = (r * BINS).clamp_max(self._table - 1.001)
            low = position.long()
            part = position - low
            f = torch.lerp(profile.gather(1, low), profile.gather(1, low + 1), part)
            df = torch.lerp(slope.gather(1, low), slope.gather(1, low + 1), part)
            mask = patches.inside * (r <= MASK_RADII * self.radius)
            w = robust * mask
            # contrast and background by themselves, then the centre
            total = w.sum(1).clamp_min(1e-9)
            mean_f, mean_v = (w * f).sum(1) / total, (w * values).sum(1) / total
            g, v = f - mean_f[:, None], values - mean_v[:, None]
            contrast = (w * g * v).sum(1) / (w * g * g).sum(1).clamp_min(1e-9)
            residual = v - contrast[:, None] * g
            if step in (0, 2, STEPS - 1):
                noise = (1.4826 * _median(residual.abs(), mask > 0.0)).clamp_min(1e-9)
            robust = 1.0 / (1.0 + (residual / (CAUCHY * noise[:, None])).square())
            factor = -contrast[:, None] * df / r.clamp_min(1e-6)
            jx, jy = factor * dx, factor * dy
            w = robust * mask
            a, b, c = (w * jx * jx).sum(1), (w * jx * jy).sum(1), (w * jy * jy).sum(1)
            extra = 1e-3 * (a + c).clamp_min(1e-9)
            a, c = a + extra, c + extra
            determinant = a * c - b * b
            if step == STEPS - 1:
                break
            p, q = (w * jx * residual).sum(1), (w * jy * residual).sum(1)
            move = torch.stack([c * p - b * q, a * q - b * p], dim=-1) / determinant[:, None]
            # never out of reach of where the search began
            at = patches.start + (at + move.clamp(-1.0, 1.0) - patches.start).clamp(-limit, limit)
        sigma = (0.5 * (a + c) / determinant).sqrt() * noise
        count = mask.sum(1).clamp_min(1.0)
        fc = (f - ((f * mask).sum(1) / count)[:, None]) * mask
        vc = (values - ((values * mask).sum(1) / count)[:, None]) * mask
        score = (fc * vc).sum(1) / (fc.norm(dim=1) * vc.norm(dim=1)).clamp_min(1e-12)
        return at, contrast, score, sigma


@dataclass(frozen=True)
class _Patches:
    """Pixels round places: values and which the image has (n, k), offsets (k,) from middles (n, 2)."""

    values: torch.Tensor
    inside: torch.Tensor
    x: torch.Tensor
    y: torch.Tensor
    middle: torch.Tensor
    start: torch.Tensor

    def polar(self, at: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """dx, dy and distance (n, k) of the pixels from places `at` (n, 2), counted from the middles."""
        dx, dy = self.x - at[:, 0, None], self.y - at[:, 1, None]
        return dx, dy, (dx * dx + dy * dy).sqrt()


def _median(values: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
    """Of some of the values in each row; 0 where there are none."""
    # sorting is several times faster than nanmedian
    high = torch.where(which, values, torch.inf).sort(dim=1).values
    middle = ((which.sum(1) - 1) // 2).clamp_min(0)
    found = high.gather(1, middle[:, None])[:, 0]
    return torch.where(which.any(dim=1), found, torch.zeros_like(found))
