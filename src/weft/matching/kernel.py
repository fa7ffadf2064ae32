"""The locally normalised correlation of one part of a tomogram with one template in many orientations.

With a mask m around x and the weighted, turned template T, both without their means under the mask,

    LCC(x) = Σ_r m(r) (T(r) − T̄) V(x + r) / (Σ m · σ_T · σ_V(x))        (Roseman 2003; Hrabe et al. 2012)

σ_V(x) depends on the mask only, so that it is found once where the mask is a sphere's. The sums over r are
products in Fourier space. A template fills a small corner of the part's box and only some of the result is
wanted, so the transforms run axis by axis over what is not zero or not thrown away, and the passes along z go
forwards and back on columns that stay in the cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numba
import numpy as np
import scipy.fft
import torch
from numpy.typing import NDArray

from weft.matching.rotation import FineMap, turn_into
from weft.physics import fourier

__all__ = ["Found", "MaskedTemplate", "Part", "correlate", "correlate_plain"]

Floats = NDArray[np.float32]

#: Parts of the tomogram's own deviation, and of the greatest local one, below which a place counts as empty:
#: single precision knows no smaller ones.
_FLAT, _NOTHING = 1e-3, 2e-3
_CHUNK_BYTES = 1 << 20  # of columns that go through the z passes at a time


@dataclass(frozen=True)
class MaskedTemplate:
    """A template and its mask.

    Attributes
    ----------
    fine : FineMap
    mask : (n, n, n) float32
    reach : int
        Voxels from the centre to the mask's last voxel that is not 0.
    fine_mask : FineMap or None
        Where the mask turns with the template; None for a spherical one.
    fine_noise : FineMap or None
        The template with random phases, where scores are to be corrected by its.
    """

    fine: FineMap
    mask: torch.Tensor
    reach: int
    fine_mask: FineMap | None = None
    fine_noise: FineMap | None = None

    @property
    def size(self) -> int:
        """n."""
        return self.fine.size


@dataclass
class Found:
    """The best score so far at every place of a part, and sums over all scores.

    Attributes
    ----------
    best : (z, y, x) float32
    number : (z, y, x) int32
        Of the orientation; −1 where nothing has been compared.
    noise : (z, y, x) float32 or None
        The best score of the template with random phases.
    count : int
        Of scores that went into the sums.
    total, squares : float
    """

    best: torch.Tensor
    number: torch.Tensor
    noise: torch.Tensor | None
    count: int = 0
    total: float = 0.0
    squares: float = 0.0

    @classmethod
    def empty(cls, shape: tuple[int, int, int], noise: bool, device: torch.device | str = "cpu") -> Found:
        """Before the first orientation."""
        best = torch.full(shape, -2.0, device=device)
        number = torch.full(shape, -1, dtype=torch.int32, device=device)
        return cls(best, number, torch.full_like(best, -2.0) if noise else None)

    def to(self, device: torch.device | str) -> Found:
        """The same on another device."""
        noise = None if self.noise is None else self.noise.to(device)
        best, number = self.best.to(device), self.number.to(device)
        return Found(best, number, noise, self.count, self.total, self.squares)

    def join(self, other: Found) -> None:
        """Take over what another, of other orientations of the same part, has found better."""
        better = other.best > self.best
        self.best = torch.where(better, other.best, self.best)
        self.number = torch.where(better, other.number, self.number)
        if self.noise is not None and other.noise is not None:
            self.noise = torch.maximum(self.noise, other.noise)
        self.count += other.count
        self.total += other.total
        self.squares += other.squares


@dataclass(frozen=True)
class Part:
    """A part of a tomogram, ready to be compared.

    Place x of the results is the one whose mask covers voxels x … x + 2 · reach of `volume`.

    Attributes
    ----------
    spectrum : (z, y, x//2+1) complex64
        Of the part with its halo.
    size : (int, int, int)
        z, y, x of it.
    inverse : (places) float32
        1 / (Σ m · σ_V), 0 at places that are empty or not to be searched.
    squared : complex64 or None
        Transform of the part's squares, for masks that turn.
    allowed : (places) float32 or None
        1 where to search; `inverse` has it in it already.
    flat : float
        Deviation below which a place counts as empty.
    """

    spectrum: torch.Tensor
    size: tuple[int, int, int]
    inverse: torch.Tensor
    squared: torch.Tensor | None
    allowed: torch.Tensor | None
    flat: float

    @classmethod
    def of(
        cls,
        volume: torch.Tensor,
        template: MaskedTemplate,
        places: tuple[int, int, int],
        deviation: float,
        allowed: torch.Tensor | None = None,
    ) -> Part:
        """Prepare a part.

        Parameters
        ----------
        volume : (z, y, x) float32
            With `template.reach` voxels before the first place, and at least as many after the last, or as
            few as half of them where both ends are zeros that may stand for each other.
        places : (int, int, int)
            How many places of it are searched.
        deviation : float
            Of the tomogram as a whole.
        allowed : (places) bool, optional
        """
        size = (volume.shape[0], volume.shape[1], volume.shape[2])
        spectrum = fourier.rfft3(volume)
        squared = fourier.rfft3(volume * volume)
        mask = centre_of(template.mask, template.reach)
        total = float(mask.sum(dtype=torch.float64))
        sigma = _deviation(spectrum, squared, size, mask, places)
        flat = max(_FLAT * deviation, _NOTHING * float(sigma.max()))
        inverse = torch.where(sigma > flat, 1.0 / (sigma * total), torch.zeros_like(sigma))
        if allowed is not None:
            inverse = inverse * allowed
        turning = template.fine_mask is not None
        return cls(
            spectrum.contiguous(),
            size,
            inverse.contiguous(),
            squared.contiguous() if turning else None,
            allowed.float().contiguous() if turning and allowed is not None else None,
            flat,
        )


def _deviation(
    spectrum: torch.Tensor,
    squared: torch.Tensor,
    size: tuple[int, int, int],
    mask: torch.Tensor,
    places: Sequence[int],
) -> torch.Tensor:
    """σ_V at the places, from the transforms of a part and of its squares."""
    total = float(mask.sum(dtype=torch.float64))
    window = tuple(slice(0, n) for n in places)
    kernel = fourier.rfft3(mask, size).conj()
    mean = fourier.irfft3(spectrum * kernel, size)[window] / total
    square = fourier.irfft3(squared * kernel, size)[window] / total
    return (square - mean * mean).clamp_(min=0.0).sqrt_()


def centre_of(volume: torch.Tensor, reach: int) -> torch.Tensor:
    """2 · reach + 1 voxels around the centre n//2 of a cubic volume ``(..., n, n, n)``."""
    c = volume.shape[-1] // 2
    part = slice(c - reach, c + reach + 1)
    return volume[..., part, part, part]


# ---------------------------------------------------------------------- the plain way


def correlate_plain(
    part: Part,
    template: MaskedTemplate,
    weights: torch.Tensor | None,
    matrices: torch.Tensor,
    numbers: torch.Tensor,
    found: Found,
) -> None:
    """:func:`correlate` in a few lines of torch, for GPUs and to test the other by."""
    n, reach, size = template.size, template.reach, part.size
    places = tuple(slice(0, count) for count in found.best.shape)
    mask, inverse = centre_of(template.mask, reach), part.inverse
    for matrix, number in zip(matrices, numbers.tolist(), strict=True):
        if template.fine_mask is not None:
            mask = centre_of(template.fine_mask.turned_plain(matrix[None])[0], reach)
            inverse = _inverse(part, mask, found.best.shape)
        total = mask.sum(dtype=torch.float64)
        for fine, is_noise in ((template.fine, False), (template.fine_noise, True)):
            if fine is None:
                continue
            box = fine.turned_plain(matrix[None])[0]
            if weights is not None:
                box = fourier.irfft3(fourier.rfft3(box) * weights, (n, n, n))
            box = centre_of(box, reach)
            mean = (mask * box).sum(dtype=torch.float64) / total
            variance = (mask * (box - mean) ** 2).sum(dtype=torch.float64) / total
            kernel = (mask * (box - mean) / variance.sqrt().clamp(min=1e-30)).float()
            score = fourier.irfft3(part.spectrum * fourier.rfft3(kernel, size).conj(), size)[places] * inverse
            if is_noise:
                assert found.noise is not None
                found.noise = torch.maximum(found.noise, score)
                continue
            better = (score > found.best) & (inverse > 0.0)
            found.best = torch.where(better, score, found.best)
            found.number = torch.where(better, torch.full_like(found.number, number), found.number)
            found.count += int((inverse > 0.0).sum())
            found.total += float(score.sum(dtype=torch.float64))
            found.squares += float((score * score).sum(dtype=torch.float64))


def _inverse(part: Part, mask: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """`Part.inverse` for a mask that has been turned."""
    assert part.squared is not None
    total = float(mask.sum(dtype=torch.float64))
    sigma = _deviation(part.spectrum, part.squared, part.size, mask, shape)
    inverse = torch.where(sigma > part.flat, 1.0 / (sigma * total), torch.zeros_like(sigma))
    return inverse if part.allowed is None else inverse * part.allowed


# ---------------------------------------------------------------------- the fast way


def correlate(
    part: Part,
    template: MaskedTemplate,
    weights: torch.Tensor | None,
    matrices: torch.Tensor,
    numbers: torch.Tensor,
    found: Found,
) -> None:
    """Compare a part with a template in many orientations, and keep the best score of every place.

    Parameters
    ----------
    part : Part
    template : MaskedTemplate
    weights : (n, n, n//2+1) float32, optional
        By which the turned template's transform is multiplied.
    matrices : (r, 3, 3) float64
        From the template's coordinates to the tomogram's.
    numbers : (r,) int64
        What to call each orientation.
    found : Found
        Is changed.
    """
    if part.spectrum.device.type != "cpu":
        correlate_plain(part, template, weights, matrices, numbers, found)
        return
    work = _Workspace(part, template, found)
    gain = None if weights is None else weights.numpy()
    for matrix, number in zip(matrices.double().numpy(), numbers.tolist(), strict=True):
        mask, inverse = work.mask, work.inverse
        if template.fine_mask is not None:
            mask, inverse = work.turned_mask(template.fine_mask, matrix)
        kernel = work.kernel(template.fine, matrix, gain, mask)
        work.count_better(kernel, inverse, number)
        if template.fine_noise is not None:
            kernel = work.kernel(template.fine_noise, matrix, gain, mask)
            work.count_noise(kernel, inverse)
    work.finish()


class _Workspace:
    """Arrays of one thread that works on one part."""

    def __init__(self, part: Part, template: MaskedTemplate, found: Found) -> None:
        self.found, self.part = found, part
        self.size, self.reach = part.size, template.reach
        self.box = np.zeros([template.size] * 3, dtype=np.float32)
        self.small = np.zeros([2 * template.reach + 1] * 3, dtype=np.float32)
        self.mask = np.ascontiguousarray(centre_of(template.mask, template.reach).numpy())
        self.spectrum = part.spectrum.numpy()
        self.squared = None if part.squared is None else part.squared.numpy()
        self.inverse = part.inverse.numpy()
        self.best, self.number = found.best.numpy(), found.number.numpy()
        self.noise = None if found.noise is None else found.noise.numpy()
        self.places = (self.best.shape[0], self.best.shape[1], self.best.shape[2])
        _, ny, nx = self.size
        self.half = nx // 2 + 1
        self.columns = np.empty((self.places[0], ny, self.half), dtype=np.complex64)
        self.sums = np.zeros(3)

    def kernel(self, fine: FineMap, matrix: NDArray[np.float64], gain: Floats | None, mask: Floats) -> Floats:
        """The turned, weighted, masked and normalised template: (2 reach + 1)³."""
        turn_into(self.box, fine.values.numpy(), matrix, fine.radius)
        box = self.box
        if gain is not None:
            box = scipy.fft.irfftn(scipy.fft.rfftn(box, workers=1) * gain, s=box.shape, workers=1)
        _normalise(box, mask, self.small)
        return self.small

    def correlation(
        self, kernel: Floats, source: NDArray[np.complex64] | None = None
    ) -> Iterator[tuple[slice, Floats]]:
        """Σ_r kernel(r) V(x + r) at the places: a few sections at a time, rows in full length."""
        nz, ny, nx = self.size
        pz, py, _ = self.places
        given = self.spectrum if source is None else source
        rows = scipy.fft.rfft(kernel, n=nx, axis=2, workers=1)
        planes = scipy.fft.fft(rows, n=ny, axis=1, workers=1)
        step = max(1, _CHUNK_BYTES // (8 * nz * self.half))
        for y in range(0, ny, step):
            part = slice(y, y + step)
            spectrum = scipy.fft.fft(planes[:, part], n=nz, axis=0, workers=1)
            _times_conjugate(spectrum, given[:, part])
            columns = scipy.fft.ifft(spectrum, axis=0, overwrite_x=True, workers=1)
            self.columns[:, part] = columns[:pz]
        step = max(1, _CHUNK_BYTES // (8 * ny * self.half))
        for z in range(0, pz, step):
            sections = slice(z, z + step)
            found = scipy.fft.ifft(self.columns[sections], axis=1, overwrite_x=True, workers=1)[:, :py]
            yield sections, scipy.fft.irfft(found, n=nx, axis=2, overwrite_x=True, workers=1)

    def _whole(self, kernel: Floats, source: NDArray[np.complex64] | None = None) -> Floats:
        out = np.empty(self.places, dtype=np.float32)
        for sections, sums in self.correlation(kernel, source):
            out[sections] = sums[..., : self.places[2]]
        return out

    def turned_mask(self, fine: FineMap, matrix: NDArray[np.float64]) -> tuple[Floats, Floats]:
        """A mask that turns with the template, and the local deviation under it."""
        assert self.squared is not None
        turn_into(self.box, fine.values.numpy(), matrix, fine.radius)
        c = self.box.shape[0] // 2
        cut = slice(c - self.reach, c + self.reach + 1)
        mask = self.box[cut, cut, cut].copy()  # the box is used again
        total = float(mask.sum(dtype=np.float64))
        scaled = (mask / total).astype(np.float32)
        mean, square = self._whole(scaled), self._whole(scaled, self.squared)
        sigma = np.sqrt(np.maximum(square - mean * mean, 0.0))
        inverse = np.where(sigma > self.part.flat, 1.0 / (np.maximum(sigma, 1e-30) * total), 0.0)
        if self.part.allowed is not None:
            inverse *= self.part.allowed.numpy()
        return mask, inverse.astype(np.float32)

    def count_better(self, kernel: Floats, inverse: Floats, number: int) -> None:
        """Keep what scores better than before."""
        for at, sums in self.correlation(kernel):
            _update(sums, inverse[at], self.best[at], self.number[at], number, self.sums)

    def count_noise(self, kernel: Floats, inverse: Floats) -> None:
        """The same for the template with random phases."""
        assert self.noise is not None
        for at, sums in self.correlation(kernel):
            np.maximum(self.noise[at], sums[..., : self.places[2]] * inverse[at], out=self.noise[at])

    def finish(self) -> None:
        """Put the sums where they are looked for."""
        self.found.count += int(self.sums[0])
        self.found.total += float(self.sums[1])
        self.found.squares += float(self.sums[2])


@numba.njit(nogil=True, fastmath=True, cache=True)
def _normalise(box, mask, out):  # type: ignore[no-untyped-def]
    """mask · (box − mean) / σ, of the middle of the box."""
    n = mask.shape[0]
    start = box.shape[0] // 2 - n // 2
    total, first, second = 0.0, 0.0, 0.0
    for z in range(n):
        for y in range(n):
            for x in range(n):
                m = mask[z, y, x]
                v = m * box[start + z, start + y, start + x]
                total += m
                first += v
                second += v * box[start + z, start + y, start + x]
    mean = first / total
    sigma = np.sqrt(max(second / total - mean * mean, 1e-60))
    scale = 1.0 / sigma
    for z in range(n):
        for y in range(n):
            for x in range(n):
                out[z, y, x] = mask[z, y, x] * (box[start + z, start + y, start + x] - mean) * scale


@numba.njit(nogil=True, fastmath=True, cache=True)
def _times_conjugate(kernel, volume):  # type: ignore[no-untyped-def]
    """kernel ← conj(kernel) · volume."""
    nz, ny, nx = kernel.shape
    for z in range(nz):
        for y in range(ny):
            for x in range(nx):
                kernel[z, y, x] = kernel[z, y, x].conjugate() * volume[z, y, x]


@numba.njit(nogil=True, fastmath=True, cache=True)
def _update(sums, inverse, best, numbers, number, totals):  # type: ignore[no-untyped-def]
    nz, ny, nx = best.shape
    count, first, second = 0, 0.0, 0.0
    for z in range(nz):
        for y in range(ny):
            row_first = row_second = sums[z, y, 0] * 0
            for x in range(nx):
                scale = inverse[z, y, x]
                score = sums[z, y, x] * scale
                row_first += score
                row_second += score * score
                count += scale > 0.0
                if score > best[z, y, x] and scale > 0.0:
                    best[z, y, x] = score
                    numbers[z, y, x] = number
            first += row_first
            second += row_second
    totals[0] += count
    totals[1] += first
    totals[2] += second
