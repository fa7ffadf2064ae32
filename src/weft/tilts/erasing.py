"""Gold beads replaced by background in tilt images, before a tomogram is made of them.

A bead is far darker than anything biological: back-projected, each leaves a bright and a dark streak through
the whole volume, and with the CTF rings around them. What is put in its place has what its surroundings have:

* the local mean, a sum of the harmonic polynomials rᵐ cos mθ, rᵐ sin mθ (solutions of Laplace's equation on a
  disc) of low order that fits the ring around best;
* noise with the radial power spectrum of the surroundings, with random phases, at the frequencies that the
  mean does not reach.

Outside the discs not one pixel changes. docs/science/tomograms.md has the equations.
"""

from __future__ import annotations

import math
from typing import Literal

import torch

from weft.errors import ItemError
from weft.physics import fourier
from weft.settings import Settings, setting

__all__ = ["BeadErasingSettings", "erase_beads", "fringe_width"]

ORDER = 3  # of the harmonics: half a wave along the disc's edge is then as long as its radius
RING = 0.5  # width of the ring that the mean is taken from, in radii of the disc
RIM = 2.0  # pixels within a disc's edge, over which the image turns into the filling
RIDGE = 0.005  # times m², of a ring's pixels: damping of the harmonics that an incomplete ring cannot know
LEAST_RING = 0.25  # of a complete ring's pixels; otherwise a wider one is taken
TILE = 3.0  # side of the tiles that spectra are taken from, in radii of the disc
LEAST_TILES, LEAST_TILE = 3, 0.5  # so many tiles with such a share free of beads are needed for a spectrum


class BeadErasingSettings(Settings):
    """How gold beads are taken out of tilt images before reconstruction."""

    erase: bool = setting(
        False,
        "Fill gold beads with background before reconstruction, where the alignment has followed beads. "
        "Particles behind a bead lose contrast: off for averaging, on for looking and segmenting.",
    )
    find: Literal["alignment", "network"] = setting(
        "alignment",
        "How beads are known: those that the alignment has followed, or what the picking network takes for "
        "an artefact in each image, also where there are no markers.",
    )
    largest: float = setting(
        400.0,
        "Artefacts of the network that are thicker than this are left: nothing could be put in their place.",
        unit="Å",
        gt=0.0,
        le=5000.0,
    )
    margin: float = setting(1.2, "Radius of the discs that are filled, in radii of a bead.", ge=0.5, le=5.0)
    fringes: float = setting(
        1.0,
        "How many widths of a Fresnel fringe, √(wavelength · defocus), are added to that radius: 1 covers "
        "the bright ring around a bead, 2 all that can be seen.",
        ge=0.0,
        le=10.0,
    )
    noise: bool = setting(
        True, "Fill with noise like that of the surroundings too, and not with their smooth mean only."
    )


def fringe_width(wavelength: float, defocus: float) -> float:
    """How far a sharp edge's first Fresnel fringe lies from it, √(λ |Δz|).

    Parameters
    ----------
    wavelength, defocus : float
        Å.

    Returns
    -------
    float
        Å.
    """
    return math.sqrt(wavelength * abs(defocus))


def erase_beads(
    image: torch.Tensor,
    places: torch.Tensor,
    diameter: float | torch.Tensor,
    pixel_size: float,
    settings: BeadErasingSettings | None = None,
    *,
    fringe: float = 0.0,
    seed: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Replace gold beads by background.

    Parameters
    ----------
    image : (y, x) float32 tensor
        Counts, or anything else that is additive.
    places : (n, 2) tensor
        x, y of the beads: Å from the centre of the first pixel, in or outside the image.
    diameter : float or (n,) tensor
        Å, of all beads or of each.
    pixel_size : float
        Å.
    settings : BeadErasingSettings, optional
        Its `erase` is for the caller.
    fringe : float
        Å, :func:`fringe_width` of this image.
    seed : int
        The noise depends on it and on a bead's place (to 0.01 Å), on nothing else. Images whose noise must be
        independent, as halves of the frames, need different seeds.

    Returns
    -------
    image : (y, x) float32 tensor
        A copy; pixels outside the mask are bit for bit those given.
    mask : (y, x) bool tensor
        What was replaced; its mean is the fraction.

    Raises
    ------
    ItemError
        If places are not finite, or a disc is larger than the image, or no pixels remain to learn from.
    """
    settings = settings or BeadErasingSettings()
    height, width = image.shape
    given = places.detach().to("cpu", torch.float64).reshape(-1, 2)
    if not bool(torch.isfinite(given).all()):
        raise ItemError("places of gold beads are not finite numbers: align the series again")
    diameters = torch.as_tensor(diameter, dtype=torch.float64).expand(len(given))
    radius = (0.5 * diameters * settings.margin + settings.fringes * fringe) / pixel_size
    largest = float(radius.max()) if len(given) else 0.0
    if 2.0 * largest + 2.0 > min(height, width):
        raise ItemError(
            f"discs of {2.0 * largest * pixel_size:.0f} Å over gold beads of {float(diameters.max()):g} Å do "
            f"not fit into an image of {width}×{height} pixels of {pixel_size:g} Å: check the beads' diameter"
        )
    x, y = (given / pixel_size).T
    reached = (x > -radius) & (y > -radius) & (x < width - 1 + radius) & (y < height - 1 + radius)
    found = zip(x[reached].tolist(), y[reached].tolist(), radius[reached].tolist())
    discs = [_Disc(image, u, v, r) for u, v, r in found]
    mask = torch.zeros(height, width, dtype=torch.bool, device=image.device)
    for disc in discs:
        mask[disc.rows, disc.columns] |= disc.inside
    out = image.clone()
    if not bool(mask.any()):
        return out, mask
    if bool(mask.all()):
        raise ItemError("gold beads cover the whole image: check their diameter and the pixel size")
    # where discs overlap their fillings fade into each other, each with the weight 1 − (r/a)²
    total = torch.zeros_like(image)
    mean, grain = torch.zeros_like(image), torch.zeros_like(image)
    power = torch.zeros_like(image)
    keys = (given[reached] * 100.0).round().long()
    for disc, (kx, ky) in zip(discs, keys.tolist()):
        window = disc.rows, disc.columns
        share = disc.share
        total[window] += share
        mean[window] += share * _local_mean(image, mask, disc)
        if settings.noise:
            generator = torch.Generator().manual_seed(_hash(kx, ky, seed))
            grain[window] += share * _local_noise(image, mask, disc, generator)
            power[window] += share.square()
    # independent noises add up by their squares
    middle, noise = mean[mask] / total[mask], grain[mask] / power[mask].clamp_min(1e-24).sqrt()
    angle = 0.5 * math.pi * _depth(discs, mask)[mask]
    out[mask] = middle + (image[mask] - middle) * angle.cos() + noise * angle.sin()
    return out, mask


class _Disc:
    """A disc, cut out of an image.

    `rows`, `columns` are its window; `inside` and `share` (1 − (r/a)², over 0) are (h, w) in it.
    """

    def __init__(self, image: torch.Tensor, x: float, y: float, radius: float) -> None:
        self.x, self.y, self.radius = x, y, radius
        self.rows, self.columns = self.window(image, radius)
        dx, dy = self.offsets(image, self.rows, self.columns)
        self.share = 1.0 - (dx.square() + dy.square()) / radius**2
        self.inside = self.share > 0.0
        self.share = torch.where(self.inside, self.share, torch.zeros_like(self.share))

    def window(self, image: torch.Tensor, reach: float) -> tuple[slice, slice]:
        """Rows and columns of the image within `reach` pixels; at least one each."""
        spans = []
        for middle, n in ((self.y, image.shape[0]), (self.x, image.shape[1])):
            first = min(max(math.ceil(middle - reach), 0), n - 1)
            spans.append(slice(first, max(min(math.floor(middle + reach) + 1, n), first + 1)))
        return spans[0], spans[1]

    def offsets(self, image: torch.Tensor, rows: slice, columns: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """dx (1, w) and dy (h, 1) of pixels from the centre."""
        dy = torch.arange(rows.start, rows.stop, device=image.device, dtype=torch.float32) - self.y
        dx = torch.arange(columns.start, columns.stop, device=image.device, dtype=torch.float32) - self.x
        return dx[None], dy[:, None]


def _depth(discs: list[_Disc], mask: torch.Tensor) -> torch.Tensor:
    """0 at the rim of the discs' union, 1 where its filling is complete."""
    depth = torch.zeros(mask.shape, device=mask.device)
    for disc in discs:
        window = disc.rows, disc.columns
        rim = (1.0 - (1.0 - disc.share).sqrt()) * (disc.radius / RIM)
        depth[window] = torch.maximum(depth[window], rim.clamp_max(1.0) * disc.inside)
    return depth


def _harmonics(dx: torch.Tensor, dy: torch.Tensor, scale: float) -> torch.Tensor:
    """rᵐ cos mθ, rᵐ sin mθ for m = 0 … ORDER, 1 at most within `scale`: (..., 2 ORDER + 1)."""
    z = torch.complex((dx / scale).double(), (dy / scale).double())
    waves = [z**m for m in range(1, ORDER + 1)]
    parts = [part for wave in waves for part in (wave.real, wave.imag)]
    return torch.stack([torch.ones_like(z.real), *parts], dim=-1)


def _local_mean(image: torch.Tensor, mask: torch.Tensor, disc: _Disc) -> torch.Tensor:
    """The harmonic function that fits the pixels around a disc best, in the disc's window."""
    outer = disc.radius * (1.0 + RING)
    while True:
        rows, columns = disc.window(image, outer)
        dx, dy = disc.offsets(image, rows, columns)
        usable = ~mask[rows, columns] & (dx.square() + dy.square() <= outer**2)
        complete = math.pi * (outer**2 - disc.radius**2)
        # a ring that holds the whole image is all there is
        if int(usable.sum()) >= LEAST_RING * complete or outer > image.shape[0] + image.shape[1]:
            break
        outer *= 1.0 + RING
    dx, dy = (d.expand(usable.shape)[usable] for d in (dx, dy))
    values = image[rows, columns][usable].double()
    basis = _harmonics(dx, dy, outer)
    order = torch.arange(1, basis.shape[1] + 1, device=image.device) // 2
    damping = RIDGE * complete * order.double().square()
    middle = values.mean()
    normal = basis.T @ basis + torch.diag(damping)
    fit = torch.linalg.solve(normal, basis.T @ (values - middle))
    dx, dy = disc.offsets(image, disc.rows, disc.columns)
    dx, dy = dx.expand(disc.share.shape), dy.expand(disc.share.shape)
    found: torch.Tensor = _harmonics(dx, dy, outer) @ fit + middle
    return found.to(image.dtype)


def _local_noise(
    image: torch.Tensor, mask: torch.Tensor, disc: _Disc, generator: torch.Generator
) -> torch.Tensor:
    """Noise with the radial power spectrum of tiles around a disc (their median), in the disc's window."""
    size = min(fourier.fast_size(math.ceil(TILE * disc.radius)), *image.shape)
    edge = torch.hann_window(size + 1, device=image.device)[1:]
    taper = edge[:, None] * edge
    distance = disc.radius + 0.5 * size
    while True:
        tiles, free = _tiles(image, mask, disc, size, distance)
        weight = taper * free
        count = weight.square().sum((1, 2))
        clean = count >= LEAST_TILE * float(taper.square().sum())
        # or there are no others in this image
        if int(clean.sum()) >= LEAST_TILES or distance > sum(image.shape):
            break
        distance *= 1.5
    if not bool(clean.any()):
        clean = count > 0.0
    if not bool(clean.any()):
        raise ItemError("gold beads cover all but a few pixels: check their diameter and the pixel size")
    tiles, weight, count = tiles[clean], weight[clean], count[clean]
    level = (tiles * weight).sum((1, 2)) / weight.sum((1, 2))
    spectra = fourier.rfft2((tiles - level[:, None, None]) * weight).abs().square()
    ky, kx = fourier.frequencies((size, size), 1.0, image.device)
    ring = ((ky.square() + kx.square()).sqrt() * size).round().long()
    profiles = torch.zeros(len(tiles), int(ring.max()) + 1, device=image.device)
    profiles.index_add_(1, ring.flatten(), spectra.flatten(1) / count[:, None])
    profiles /= torch.bincount(ring.flatten())
    # tiles that show more than noise have more: they are outvoted
    spectrum = profiles.median(dim=0).values[ring]
    # what harmonics up to ORDER describe has been put in with the mean
    lowest = 2.0 * math.pi * disc.radius / ORDER
    spectrum *= 1.0 - torch.exp(-(ky.square() + kx.square()) * lowest**2)
    # drawn on the CPU, so that every device draws the same
    white = torch.randn(size, size, generator=generator).to(image.device)
    noise = fourier.irfft2(fourier.rfft2(white) * spectrum.sqrt(), (size, size))
    h, w = disc.share.shape
    return noise[:h, :w]


def _tiles(
    image: torch.Tensor, mask: torch.Tensor, disc: _Disc, size: int, distance: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tiles (8, size, size) in eight directions from a disc, moved into the image, and their free pixels."""
    tiles, free = [], []
    for direction in range(8):
        angle = direction * math.pi / 4.0
        row = round(disc.y + distance * math.sin(angle) - 0.5 * size)
        column = round(disc.x + distance * math.cos(angle) - 0.5 * size)
        row, column = (min(max(v, 0), n - size) for v, n in zip((row, column), image.shape))
        window = slice(row, row + size), slice(column, column + size)
        tiles.append(image[window])
        free.append(~mask[window])
    return torch.stack(tiles), torch.stack(free)


def _hash(*numbers: int) -> int:
    """63 bits that differ wherever the numbers differ in anything (splitmix64's mixing)."""
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1
