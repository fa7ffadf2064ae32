"""What a micrograph goes through before templates are compared with it: fewer pixels, whitening, exclusion.

Whitening divides by the square root of the micrograph's own rotationally averaged power spectrum, so that the
noise is equally strong at all frequencies and the correlation with a template, whitened alike, is the matched
filter (Tegunov & Cramer 2019, "Template matching in micrographs and tomograms").
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

from weft.errors import ItemError
from weft.physics import fourier

__all__ = ["LOW_PASS_EDGE", "PreparedMicrograph", "RadialGain", "prepare_micrograph"]

#: Half width of the low-pass filter's cosine edge, as a part of its frequency.
LOW_PASS_EDGE = 0.2
_PATCH = 96  # px; of the periodograms
_SEEN = 0.75  # part of a patch that must be free of artefacts
_LEAST_SHELL = 2  # frequencies below are gradients of ice as much as anything: they get this shell's gain


@dataclass(frozen=True)
class RadialGain:
    """A filter that depends on |k| only.

    Attributes
    ----------
    table : (m,) float32
        At |k| = 0 ... 1/2 cycles a pixel, evenly.
    resolution : float
        px; of the low-pass filter.
    """

    table: torch.Tensor
    resolution: float

    def at(self, k: torch.Tensor) -> torch.Tensor:
        """The gain at frequencies in cycles a pixel."""
        place = (k * 2.0 * (len(self.table) - 1)).clamp(max=len(self.table) - 1)
        low = place.floor().long().clamp(max=len(self.table) - 2)
        part = place - low
        gain = self.table[low] * (1.0 - part) + self.table[low + 1] * part
        return gain * fourier.cosine_low_pass(k, self.resolution, LOW_PASS_EDGE)


@dataclass(frozen=True)
class PreparedMicrograph:
    """A micrograph that templates can be compared with.

    Attributes
    ----------
    image : (y, x) float32
        Filtered; 0 where nothing is to be looked for.
    allowed : (y, x) bool
    pixel_size : (float, float)
        Å, along x and y; pixel p lies at p times it.
    gain : RadialGain
        Of the filter, for the template to share.
    """

    image: torch.Tensor
    allowed: torch.Tensor
    pixel_size: tuple[float, float]
    gain: RadialGain

    @property
    def mean_pixel_size(self) -> float:
        """Å; that of both axes differs by less than one pixel over the image."""
        return 0.5 * sum(self.pixel_size)


def prepare_micrograph(
    image: torch.Tensor,
    pixel_size: float,
    working_pixel_size: float,
    resolution: float,
    *,
    whiten: bool = True,
    excluded: torch.Tensor | None = None,
) -> PreparedMicrograph:
    """Downsample, whiten and exclude.

    Parameters
    ----------
    image : (y, x) float
    pixel_size, working_pixel_size : float
        Å; of the image, and what it is brought to, nearly. It is never made finer.
    resolution : float
        Å; of the low-pass filter.
    whiten : bool
    excluded : (any y, any x) bool tensor, optional
        True on artefacts; a picture of the whole micrograph at any pixel size.

    Raises
    ------
    ItemError
        Nothing is left to look at, or values are no numbers.
    """
    if image.ndim != 2:
        raise ItemError(f"a micrograph has two dimensions, this one {image.ndim}")
    image = image.float()
    if not bool(torch.isfinite(image).all()):
        raise ItemError("the micrograph holds values that are not finite: average it again")
    shape = (image.shape[0], image.shape[1])
    small = tuple(max(2, round(n * pixel_size / max(working_pixel_size, pixel_size))) for n in shape)
    free = torch.ones(shape, dtype=torch.bool, device=image.device)
    if excluded is not None:
        free = ~_nearest(excluded.to(image.device), shape)
    if not bool(free.any()):
        raise ItemError("all of the micrograph is masked as an artefact: nothing is left to look at")
    # what is excluded must not ring into its surroundings
    image = torch.where(free, image - image[free].mean(), torch.zeros_like(image))
    made = fourier.resize(image, (small[0], small[1]))
    allowed = torch.ones(small, dtype=torch.bool, device=image.device)
    if excluded is not None:
        allowed = ~_nearest(excluded.to(image.device), (small[0], small[1]))
    if not bool(allowed.any()):
        raise ItemError("all of the micrograph is masked as an artefact: nothing is left to look at")
    pixel = (pixel_size * shape[1] / small[1], pixel_size * shape[0] / small[0])
    table = _inverse_amplitude(made, allowed) if whiten else made.new_ones(2)
    gain = RadialGain(table, resolution / (0.5 * sum(pixel)))
    made = torch.where(allowed, _filtered(made, gain), torch.zeros_like(made))
    deviation = made[allowed].std()
    if not float(deviation) > 0.0:
        raise ItemError("the micrograph holds no contrast at all (every pixel has the same value)")
    return PreparedMicrograph(made / deviation, allowed, pixel, gain)


def _nearest(excluded: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """A picture of yes and no at another size."""
    if tuple(excluded.shape) == size:
        return excluded.bool()
    resized = functional.interpolate(excluded[None, None].float(), size, mode="nearest-exact")
    return resized[0, 0] > 0.5


def _filtered(image: torch.Tensor, gain: RadialGain) -> torch.Tensor:
    """With mirrored surroundings, so that opposite edges do not meet."""
    ny, nx = image.shape
    my, mx = (min(n - 1, _PATCH // 3) for n in (ny, nx))
    size = (fourier.fast_size(ny + 2 * my), fourier.fast_size(nx + 2 * mx))
    padded = functional.pad(image[None, None], (mx, mx, my, my), mode="reflect")[0, 0]
    ky, kx = fourier.frequencies(size, 1.0, image.device)
    spectrum = fourier.rfft2(padded.contiguous(), size) * gain.at((ky * ky + kx * kx).sqrt())
    return fourier.irfft2(spectrum, size)[my : my + ny, mx : mx + nx].contiguous()


def _inverse_amplitude(image: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
    """1/√power by shells of patches, for :class:`RadialGain`."""
    side = min(_PATCH, *image.shape)
    side -= side % 2
    starts = [
        torch.linspace(0, n - side, max(1, round(2 * n / side) - 1)).round().long() for n in image.shape
    ]
    corners = [(int(y), int(x)) for y in starts[0] for x in starts[1]]
    seen = [float(allowed[y : y + side, x : x + side].float().mean()) for y, x in corners]
    # the least hidden patch serves where all are hidden
    least = min(_SEEN, max(seen))
    patches = torch.stack(
        [image[y : y + side, x : x + side] for (y, x), s in zip(corners, seen, strict=True) if s >= least]
    )
    window = torch.hann_window(side, device=image.device)
    patches = (patches - patches.mean((-2, -1), keepdim=True)) * window[:, None] * window
    power = fourier.rfft2(patches.contiguous()).abs().square()
    ky, kx = fourier.frequencies((side, side), 1.0 / side, image.device)
    shell = (ky * ky + kx * kx).sqrt().round().long()
    count = torch.zeros(int(shell.max()) + 1, device=image.device).index_add_(
        0, shell.reshape(-1), torch.ones_like(shell.reshape(-1), dtype=torch.float32)
    )
    sums = torch.zeros(len(patches), len(count), device=image.device)
    sums.index_add_(1, shell.reshape(-1), power.reshape(len(patches), -1))
    # the median over patches does not see a few that hold something else
    profile = (sums / count).median(dim=0).values[: side // 2 + 1]
    first = min(_LEAST_SHELL, len(profile) - 1)
    profile[:first] = profile[first]
    floor = 1e-6 * float(profile.max())
    if not floor > 0.0:
        raise ItemError("the micrograph holds no contrast at all (every pixel has the same value)")
    return profile.clamp(min=floor).rsqrt() * profile.mean().sqrt()
