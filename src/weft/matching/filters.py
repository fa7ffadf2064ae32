"""What tomogram and template are filtered by before they are compared.

Both are multiplied by the same gain: a band-pass; the inverse of the tomogram's own amplitude spectrum, shell
by shell (spectral whitening); and 1/√N where N is the power of the noise that tilts, dose and CTF leave
in each direction (:mod:`weft.matching.weights`). The template is multiplied by H as well.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from weft.errors import ItemError
from weft.matching.parts import Block, read_block
from weft.matching.weights import Imaging, LocalWeights, local_weights
from weft.physics import fourier

if TYPE_CHECKING:
    from weft.matching.plan import Plan, SearchSettings

__all__ = ["Filters", "measure_filters", "phase_randomised", "radial_gain"]

_SHELLS = 256  # of a table from 0 to Nyquist's frequency
_SAMPLES, _SAMPLE_SIDE = 12, 96  # blocks from which the spectrum is measured, and voxels along their sides
_LEAST_NOISE = 0.3  # parts of the median noise that are added before dividing by it
_SEEN = 1e-2  # part of the median noise below which a coefficient counts as not measured
_EDGE = 0.15  # half width of the band-pass' edges, a part of their frequencies


@dataclass(frozen=True)
class Filters:
    """Of one search.

    Attributes
    ----------
    voxel_size, thickness : float
        Å; D of κ.
    low_pass, high_pass : float
        Å, or 0.
    weighting : {"ctf", "wedge", "none"}
    whiten_noise : bool
    radial : (256,) float32 or None
        Gain from frequency 0 to Nyquist's.
    mean, deviation : float
        Of the tomogram: as it is; after filtering.
    margin : int
        Voxels that filtering spoils at a part's edges.
    """

    voxel_size: float
    thickness: float
    low_pass: float
    high_pass: float
    weighting: Literal["ctf", "wedge", "none"]
    whiten_noise: bool
    radial: torch.Tensor | None
    mean: float
    deviation: float
    margin: int

    @property
    def _round(self) -> bool:
        """Whether anything is filtered by frequency alone."""
        return self.radial is not None or self.low_pass > 0.0 or self.high_pass > 0.0

    @property
    def _directional(self) -> bool:
        """Whether noise is made equally strong in all directions."""
        return self.whiten_noise and self.weighting == "ctf"

    def _weights(
        self, shape: tuple[int, int, int], imaging: Imaging | None, place: torch.Tensor
    ) -> LocalWeights | None:
        if imaging is None or self.weighting == "none":
            return None
        wedge_only = self.weighting == "wedge"
        return local_weights(imaging, place, shape, self.voxel_size, self.thickness, wedge_only=wedge_only)

    def _gain(self, shape: tuple[int, int, int], weights: LocalWeights | None) -> torch.Tensor | None:
        """What both are multiplied by, (z, y, x//2+1); None for one everywhere."""
        gain = None
        if weights is not None and self._directional:
            noise = weights.noise
            seen = noise > _SEEN * noise[noise > 0.0].median()
            # a bound on the gain: what has next to no noise has next to no signal either
            relative = noise / noise[seen].median()
            gain = torch.where(seen, (relative + _LEAST_NOISE).rsqrt(), noise.new_zeros(()))
        if self._round:
            k = fourier.radius_3d(shape, self.voxel_size)
            own = radial_gain(k, self.low_pass, self.high_pass)
            if self.radial is not None:
                own = own * _look_up(self.radial, k * (2.0 * self.voxel_size))
            gain = own if gain is None else gain * own
        return gain

    def template_weights(
        self, size: int, imaging: Imaging | None, place: torch.Tensor
    ) -> torch.Tensor | None:
        """What a template's transform is multiplied by at a place: (n, n, n//2+1); None for nothing."""
        shape = (size, size, size)
        weights = self._weights(shape, imaging, place)
        gain = self._gain(shape, weights)
        if weights is None:
            return gain
        return weights.signal if gain is None else weights.signal * gain

    def block(
        self,
        tomogram: NDArray[np.floating],
        block: Block,
        reach: int,
        imaging: Imaging | None,
        place: torch.Tensor,
    ) -> torch.Tensor:
        """The voxels of a part and its halo, filtered: ``block.size``."""
        if not (self._round or (self._directional and imaging is not None)):
            return read_block(tomogram, block, reach, 0, self.mean)[0]
        volume, inside = read_block(tomogram, block, reach, self.margin, self.mean)
        return self.apply(volume, inside, block.size, imaging, place)

    def apply(
        self,
        volume: torch.Tensor,
        inside: torch.Tensor,
        size: tuple[int, int, int],
        imaging: Imaging | None,
        place: torch.Tensor,
    ) -> torch.Tensor:
        """Filter voxels that have a margin, and cut it off."""
        shape = _fast(volume.shape)
        weights = self._weights(shape, imaging, place) if self._directional else None
        gain = self._gain(shape, weights)
        if gain is not None:
            volume = fourier.irfft3(fourier.rfft3(volume, shape).mul_(gain), shape)
        cut = tuple(slice(self.margin, self.margin + n) for n in size)
        return (volume[cut] * inside[cut]).contiguous()


def measure_filters(
    tomogram: NDArray[np.floating],
    voxel_size: float,
    plan: Plan,
    imaging: Imaging | None,
    settings: SearchSettings,
    origin: tuple[float, float, float],
    box: int,
) -> Filters:
    """Look at some blocks of a tomogram, and decide on its filters.

    `box` is the templates' side in voxels.

    Raises
    ------
    ItemError
        A tomogram that is flat or not finite.
    """
    mean = _mean(tomogram)
    margin = box // 2
    common = {
        "voxel_size": voxel_size,
        "thickness": box * voxel_size,
        "low_pass": settings.low_pass,
        "high_pass": settings.high_pass,
        "weighting": settings.weighting,
        "whiten_noise": settings.whiten_noise,
        "mean": mean,
        "margin": margin,
    }
    first = Filters(radial=None, deviation=1.0, **common)  # type: ignore[arg-type]
    power = torch.zeros(_SHELLS, dtype=torch.float64)
    count = torch.zeros(_SHELLS, dtype=torch.float64)
    square, voxels = 0.0, 0
    for block in _samples(plan.region):
        place = torch.tensor(block.centre, dtype=torch.float64) * voxel_size + torch.tensor(origin)
        volume = first.block(tomogram, block, 0, imaging, place)
        voxels += volume.numel()
        square += float((volume * volume).sum(dtype=torch.float64))
        if settings.whiten:
            _add_spectrum(volume, power, count)
    variance = square / voxels
    if not variance > 0.0:
        raise ItemError("the tomogram is empty: all of its voxels have one value")
    if not settings.whiten:
        return Filters(radial=None, deviation=variance**0.5, **common)  # type: ignore[arg-type]
    radial = _inverse_amplitude(power, count, box)
    # what is white has as much power in each of its coefficients
    return Filters(radial=radial, deviation=0.7, **common)  # type: ignore[arg-type]


def _samples(region: tuple[tuple[int, int, int], tuple[int, int, int]]) -> list[Block]:
    """Blocks spread over a region; not the search's parts, so that filters do not depend on how it is cut."""
    spans = []
    for start, count in zip(*region, strict=True):
        side = min(count, _SAMPLE_SIDE)
        starts = np.linspace(start, start + count - side, math.ceil(count / side)).round().astype(int)
        spans.append([(int(a), side) for a in starts])
    every = []
    for (z, nz), (y, ny), (x, nx) in itertools.product(*spans):
        every.append(Block((z, y, x), (nz, ny, nx), (nz, ny, nx)))
    chosen = np.unique(np.linspace(0, len(every) - 1, _SAMPLES).round().astype(int))
    return [every[index] for index in chosen]


def _mean(tomogram: NDArray[np.floating]) -> float:
    total = 0.0
    for z, section in enumerate(tomogram):
        part = float(np.asarray(section, dtype=np.float32).sum(dtype=np.float64))
        if not np.isfinite(part):
            y, x = np.argwhere(~np.isfinite(section))[0]
            raise ItemError(
                f"the tomogram is not finite at voxel x {x}, y {y}, z {z}: reconstruct it again, or replace "
                "such values"
            )
        total += part
    return total / tomogram.size


def _add_spectrum(volume: torch.Tensor, power: torch.Tensor, count: torch.Tensor) -> None:
    """Add a part's power by shell, under a window."""
    shape = (volume.shape[0], volume.shape[1], volume.shape[2])
    windows = [torch.hann_window(n, periodic=False) for n in shape]
    window = windows[0][:, None, None] * windows[1][:, None] * windows[2]
    energy = fourier.rfft3(volume * window).abs().square().double() / float((window**2).sum())
    shell = (fourier.radius_3d(shape, 0.5) * (_SHELLS - 1)).round().long()
    within = shell < _SHELLS
    power += torch.bincount(shell[within], energy[within], minlength=_SHELLS)
    count += torch.bincount(shell[within], minlength=_SHELLS)


def _inverse_amplitude(power: torch.Tensor, count: torch.Tensor, box: int) -> torch.Tensor:
    """1/√power, smooth over a template's Fourier pixel, bounded."""
    width = max(1.0, 2.0 * (_SHELLS - 1) / box / 2.0)
    shells = torch.arange(_SHELLS, dtype=torch.float64)
    kernel = torch.exp(-0.5 * ((shells[:, None] - shells) / (0.5 * width)) ** 2)
    smooth = (kernel @ power) / (kernel @ count).clamp(min=1e-30)
    # coarser than the template there is nothing to learn
    first = min(_SHELLS - 1, round(width * 2))
    smooth[:first] = smooth[first]
    return torch.as_tensor(smooth.clamp(min=1e-4 * float(smooth.max())).rsqrt().float())


def _look_up(table: torch.Tensor, fraction: torch.Tensor) -> torch.Tensor:
    """A table from 0 to 1, interpolated; 0 beyond."""
    place = fraction * (len(table) - 1)
    low = place.long().clamp(max=len(table) - 2)
    part = (place - low).clamp(max=1.0)
    found = table[low] * (1.0 - part) + table[low + 1] * part
    return torch.where(fraction <= 1.0, found, torch.zeros_like(found))


def radial_gain(k: torch.Tensor, low_pass: float, high_pass: float) -> torch.Tensor:
    """A band-pass with raised cosines as edges, ±15 % wide, one half at the given Å (0: none)."""
    out = torch.ones_like(k)
    if low_pass > 0.0:
        out = out * fourier.cosine_low_pass(k, low_pass, _EDGE)
    if high_pass > 0.0:
        out = out * (1.0 - fourier.cosine_low_pass(k, high_pass, _EDGE))
    return out


def phase_randomised(volume: torch.Tensor, seed: int) -> torch.Tensor:
    """The same amplitudes with random phases, those of a real volume."""
    shape = (volume.shape[0], volume.shape[1], volume.shape[2])
    phases = fourier.random_phases(shape, torch.Generator().manual_seed(seed))
    return fourier.irfft3(fourier.rfft3(volume.cpu().float()).abs() * phases, shape)


def _fast(shape: torch.Size) -> tuple[int, int, int]:
    z, y, x = (fourier.fast_size(n) for n in shape)
    return (z, y, x)
