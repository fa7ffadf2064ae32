"""Gold beads in tilt images: normalised correlation with the projection of a solid sphere, and symmetry.

A bead of radius R absorbs in proportion to the chord 2·√(R² − r²) of the beam through it. Images are first
reduced until the bead is some ten pixels wide, so that the search costs the same for any bead and noise
beyond the bead's own detail is gone. The correlation is normalised by the image's own variance under the
template's mask (a ring of background included), so it says how much of what is there looks like a bead, from
−1 to 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from weft.physics import fourier

__all__ = ["Candidates", "bead_template", "find_beads", "find_diameter"]

BEAD_PIXELS = 10.0  # width of a bead in the reduced images
MASK_RADII = 1.6  # of the template's mask, in the bead's radii
LEAST_SCORE = 0.35
LEAST_SYMMETRY = 0.7
LEAST_DIAMETER, LARGEST_DIAMETER = 40.0, 400.0  # Å: from small immunogold to what is used in thick cells
DIAMETER_STEP = 1.1
SAMPLES_PER_RING = 24


@dataclass(frozen=True)
class Candidates:
    """Places in tilt images that look like beads, best first within each tilt.

    Attributes
    ----------
    tilt : (n,) int64
    xy : (n, 2) float64
        Å, relative to the image's centre.
    score : (n,) float64
        Normalised correlation with a bead, at most 1.
    symmetry : (n,) float64
        1 minus the share of the signal's variance that is not rotationally symmetric.
    strength : (n,) float64
        Contrast of the bead against its surroundings, in units of the image's values.
    """

    tilt: torch.Tensor
    xy: torch.Tensor
    score: torch.Tensor
    symmetry: torch.Tensor
    strength: torch.Tensor

    def __len__(self) -> int:
        return len(self.tilt)

    def select(self, which: torch.Tensor) -> Candidates:
        """Some of them (indices or a mask)."""
        return Candidates(
            self.tilt[which], self.xy[which], self.score[which], self.symmetry[which], self.strength[which]
        )

    @classmethod
    def joined(cls, parts: list[Candidates]) -> Candidates:
        """Those of several tilts together."""
        names = ("tilt", "xy", "score", "symmetry", "strength")
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in names))


def bead_template(radius: float, size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """A dark bead and its mask.

    Parameters
    ----------
    radius : float
        Pixels.
    size : (int, int)
        y, x of the images; the bead is at index 0, 0.

    Returns
    -------
    (y, x) and (y, x) float32 tensors
        The bead with mean 0 and norm 1 under the mask, and the mask.
    """
    y, x = (torch.fft.fftfreq(n, 1.0 / n) for n in size)
    # the mean over each pixel, as a camera takes it
    fine = (torch.arange(5) - 2.0) / 5.0
    yy, xx = y[:, None, None, None] + fine[:, None], x[:, None, None] + fine
    bead = -(radius**2 - yy * yy - xx * xx).clamp_min(0.0).sqrt().mean(dim=(-1, -2))
    mask = (torch.hypot(y[:, None], x) <= MASK_RADII * radius).float()
    bead = (bead - (bead * mask).sum() / mask.sum()) * mask
    return bead / bead.norm(), mask


def _correlation(images: torch.Tensor, radius: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalised correlation (tilts, y, x) and the bead's contrast with which it fits."""
    size = (images.shape[-2], images.shape[-1])
    bead, mask = bead_template(radius, size)
    count = float(mask.sum())
    f_bead, f_mask = fourier.rfft2(bead).conj(), fourier.rfft2(mask).conj()
    score, strength = torch.empty_like(images), torch.empty_like(images)
    depth = float(bead.max() - bead.min())
    for t, image in enumerate(images):
        spectrum, square = fourier.rfft2(image), fourier.rfft2(image * image)
        along = fourier.irfft2(spectrum * f_bead, size)
        mean = fourier.irfft2(spectrum * f_mask, size) / count
        power = fourier.irfft2(square * f_mask, size) / count - mean * mean
        score[t] = along / (power.clamp_min(1e-12) * count).sqrt()
        strength[t] = along * depth
    return score, strength


def _rings(image: torch.Tensor, at: torch.Tensor, radii: torch.Tensor) -> torch.Tensor:
    """Bilinear samples on circles: (n, radii, SAMPLES_PER_RING); `at` (n, 2) is x, y in pixels."""
    angle = torch.arange(SAMPLES_PER_RING) * (2.0 * math.pi / SAMPLES_PER_RING)
    x = at[:, 0, None, None] + radii[:, None] * angle.cos()
    y = at[:, 1, None, None] + radii[:, None] * angle.sin()
    h, w = image.shape
    grid = torch.stack([(2.0 * x + 1.0) / w - 1.0, (2.0 * y + 1.0) / h - 1.0], dim=-1)
    flat = grid.reshape(1, len(at), len(radii) * SAMPLES_PER_RING, 2).to(image.dtype)
    sampled = torch.nn.functional.grid_sample(
        image[None, None], flat, padding_mode="border", align_corners=False
    )
    rings: torch.Tensor = sampled.reshape(len(at), len(radii), SAMPLES_PER_RING)
    return rings


def _symmetry(image: torch.Tensor, at: torch.Tensor, radius: float, noise: float) -> torch.Tensor:
    """1 minus what is not symmetric: the slow variation round rings against that from ring to ring."""
    if not len(at):
        return torch.zeros(0)
    radii = torch.linspace(0.25, 1.3, 7) * radius
    values = _rings(image, at, radii)
    weight = (radii / radii.sum())[:, None]
    profile = values.mean(-1)
    mean = (profile * weight[:, 0]).sum(-1, keepdim=True)
    signal = ((profile - mean).square() * weight[:, 0]).sum(-1)
    # harmonics 1 … 4 round each ring; noise spreads over all of them alike
    harmonics = torch.fft.rfft(values, dim=-1).abs().square() * (2.0 / SAMPLES_PER_RING**2)
    # how many independent pixels a ring has says how much of the noise is in each harmonic
    pixels = (2.0 * math.pi * radii).clamp(8.0, float(SAMPLES_PER_RING))
    expected = noise**2 * 2.0 * 4.0 / pixels
    uneven = ((harmonics[..., 1:5].sum(-1) - expected) * weight[:, 0]).sum(-1).clamp_min(0.0)
    share: torch.Tensor = uneven / (uneven + signal).clamp_min(1e-12)
    return 1.0 - share


def _peaks(score: torch.Tensor, distance: float, least: float, at_most: int) -> torch.Tensor:
    """(n, 2) x, y of maxima no nearer than `distance` to a higher one, best first."""
    reach = max(1, int(distance))
    highest = torch.nn.functional.max_pool2d(score[None, None], 2 * reach + 1, 1, reach)[0, 0]
    y, x = torch.nonzero((score == highest) & (score >= least), as_tuple=True)
    best = torch.argsort(score[y, x], descending=True)[:at_most]
    return torch.stack([x[best], y[best]], dim=-1)


def _refined(score: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """Sub-pixel places of maxima by parabolas along x and y."""
    h, w = score.shape
    x, y = at[:, 0].clamp(1, w - 2), at[:, 1].clamp(1, h - 2)

    def offset(low: torch.Tensor, middle: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
        curve = (2.0 * middle - low - high).clamp_min(1e-6)
        return (0.5 * (high - low) / curve).clamp(-0.6, 0.6)

    dx = offset(score[y, x - 1], score[y, x], score[y, x + 1])
    dy = offset(score[y - 1, x], score[y, x], score[y + 1, x])
    return torch.stack([x + dx, y + dy], dim=-1)


def _reduced(images: torch.Tensor, pixel_size: float, diameter: float) -> tuple[torch.Tensor, float, float]:
    """Images in which the bead is BEAD_PIXELS wide, unless it is smaller already; pixel sizes in x, y."""
    ny, nx = images.shape[-2:]
    factor = min(1.0, BEAD_PIXELS * pixel_size / diameter)
    size = (
        min(ny, fourier.fast_size(max(16, round(ny * factor)))),
        min(nx, fourier.fast_size(max(16, round(nx * factor)))),
    )
    small = torch.stack([fourier.resize(image, size) for image in images])
    small = small - small.mean(dim=(-1, -2), keepdim=True)
    spread = (small.abs().flatten(1).median(dim=1).values * 1.4826).clamp_min(1e-12)[:, None, None]
    # beads may be far darker than all else, hot pixels must not be
    return (small / spread).clamp(-50.0, 6.0), nx * pixel_size / size[1], ny * pixel_size / size[0]


def find_beads(
    images: torch.Tensor,
    pixel_size: float,
    diameter: float,
    *,
    least_score: float = LEAST_SCORE,
    least_symmetry: float = LEAST_SYMMETRY,
    at_most: int = 200,
) -> Candidates:
    """Search beads of one diameter.

    Parameters
    ----------
    images : (tilts, y, x) float32 tensor
        Beads are dark. Empty images give no candidates.
    pixel_size, diameter : float
        Å.
    least_score, least_symmetry : float
    at_most : int
        So many a tilt, the best by score.

    Returns
    -------
    Candidates
    """
    small, px, py = _reduced(images, pixel_size, diameter)
    radius = 0.5 * diameter / math.sqrt(px * py)
    score, strength = _correlation(small, radius)
    spacing = torch.tensor([px, py], dtype=torch.float64)
    half = 0.5 * torch.tensor([images.shape[-1], images.shape[-2]], dtype=torch.float64) * pixel_size
    parts = []
    for t in range(len(images)):
        at = _peaks(score[t], 0.8 * radius, least_score, 3 * at_most)
        h, w = score[t].shape
        margin = 0.7 * radius
        inside = (at[:, 0] >= margin) & (at[:, 0] < w - margin) & (at[:, 1] >= margin)
        at = at[inside & (at[:, 1] < h - margin)]
        fine = _refined(score[t], at)
        symmetry = _symmetry(small[t], fine, radius, 1.0)
        round_enough = symmetry >= least_symmetry
        at, fine, symmetry = (v[round_enough][:at_most] for v in (at, fine, symmetry))
        # index 0 of the reduced image is the centre of its own first pixel, as everywhere
        parts.append(
            Candidates(
                torch.full((len(at),), t, dtype=torch.int64),
                fine.double() * spacing - half,
                score[t][at[:, 1], at[:, 0]].double(),
                symmetry.double(),
                strength[t][at[:, 1], at[:, 0]].double(),
            )
        )
    return Candidates.joined(parts)


def find_diameter(images: torch.Tensor, pixel_size: float) -> list[tuple[float, float]]:
    """Which diameters beads seem to have.

    Parameters
    ----------
    images : (tilts, y, x) float32 tensor
        A few of little tilt.
    pixel_size : float
        Å.

    Returns
    -------
    list of (float, float)
        Diameter (Å) and score of all that were tried.
    """
    least = max(LEAST_DIAMETER, 5.0 * pixel_size)
    largest = min(LARGEST_DIAMETER, 0.16 * pixel_size * min(images.shape[-2:]))
    found = []
    diameter = least
    while diameter <= largest:
        # halves, not any size: pixels stay square, and a large image is transformed once or twice only
        while diameter > 2.0 * BEAD_PIXELS * pixel_size and not any(n % 2 for n in images.shape[-2:]):
            size = (images.shape[-2] // 2, images.shape[-1] // 2)
            images, pixel_size = fourier.resize(images, size), 2.0 * pixel_size
        beads = find_beads(images, pixel_size, diameter, at_most=40)
        quality = torch.zeros(len(images), 12, dtype=torch.float64)
        for t in range(len(images)):
            best = (beads.score * beads.symmetry)[beads.tilt == t].sort(descending=True).values[:12]
            quality[t, : len(best)] = best
        found.append((diameter, float(quality.mean())))
        diameter *= DIAMETER_STEP
    return found
