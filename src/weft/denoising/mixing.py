"""Network and input joined ring by ring: what each is worth at a frequency is measured, not believed.

A network's result can be worse than its input: at low frequencies, where there is little noise but the
network has smoothed something away, or where it was trained on something else. So the two are combined, in
each ring of spatial frequency with two real weights that make the mean square error small. The equations need
only moments, and those with the unknown signal follow from halves with independent noise: what half b has in
common with anything made from half a alone is the signal's part in it. docs/science/denoising.md has them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from weft.physics import fourier

__all__ = ["RINGS", "Moments", "Pair", "Weights", "blended"]

#: Rings from zero to the Nyquist frequency; what lies in the corners beyond counts to the last.
RINGS = 32
#: (2, RINGS): of the input and of the network's result.
Weights = torch.Tensor
Pair = tuple[torch.Tensor, torch.Tensor]
#: Added to the diagonal, as a part of it: two pictures that are alike leave the share of each open.
_RIDGE = 1e-4
#: Least weight of the input.
_TRACE = 0.02
#: So many standard deviations above chance must the network's result agree with the other half.
_SURE = 2.0


def _place(shape: tuple[int, int], rings: int = RINGS) -> torch.Tensor:
    """Where the coefficients of :func:`fourier.rfft2` lie, in rings: 0 is the centre of the first."""
    ky, kx = fourier.frequencies(shape)
    return (torch.sqrt(ky**2 + kx**2) * (2 * rings) - 0.5).clamp(0.0, rings - 1.0)


class _Rings:
    """Sums over rings of products of images of one shape."""

    def __init__(self, shape: tuple[int, int]) -> None:
        self._ring = _place(shape).round().long().flatten()
        # a half-plane holds one of each pair, but for the columns that have none
        pairs = torch.full((shape[0], shape[1] // 2 + 1), 2.0, dtype=torch.float64)
        pairs[:, 0] = 1.0
        if shape[1] % 2 == 0:
            pairs[:, -1] = 1.0
        pairs[0, 0] = 0.0
        self._pairs = pairs.flatten()
        one = torch.ones(pairs.shape, dtype=torch.complex64)
        #: Independent coefficients of each ring.
        self.count = 0.5 * self.sums(one, one)

    def sums(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """(RINGS,) float64, over a ring and half of its neighbours."""
        product = (a * b.conj()).real.double().cpu().flatten() * self._pairs
        sums = torch.zeros(RINGS, dtype=torch.float64).index_add_(0, self._ring, product)
        out = sums.clone()
        out[1:] += 0.5 * sums[:-1]
        out[:-1] += 0.5 * sums[1:]
        return out


@dataclass(frozen=True)
class Moments:
    """Of an input x, the network's result d and the signal s in each ring: (RINGS,) float64 each.

    Attributes
    ----------
    xx, xd, dd, sx, sd : sums of products
    chance : standard deviation of sd / √dd if d has nothing to do with s
    """

    xx: torch.Tensor
    xd: torch.Tensor
    dd: torch.Tensor
    sx: torch.Tensor
    sd: torch.Tensor
    chance: torch.Tensor

    @classmethod
    def of(cls, halves: Pair, found: Pair, *, single: bool = False) -> Moments:
        """From two (y, x) averages with independent noise, and what the network made of each.

        Parameters
        ----------
        single : bool
            For x one of the halves and d its result (both directions count); else x is their mean, and so
            is d.
        """
        rings = _Rings((halves[0].shape[0], halves[0].shape[1]))
        a, b, fa, fb = (fourier.rfft2(image) for image in (*halves, *found))
        sx, sd = rings.sums(a, b), 0.5 * (rings.sums(b, fa) + rings.sums(a, fb))
        power = 0.5 * (rings.sums(a, a) + rings.sums(b, b))
        chance = (power / rings.count).sqrt()
        if single:
            return cls(
                power,
                0.5 * (rings.sums(a, fa) + rings.sums(b, fb)),
                0.5 * (rings.sums(fa, fa) + rings.sums(fb, fb)),
                sx,
                sd,
                chance,
            )
        x, d = 0.5 * (a + b), 0.5 * (fa + fb)
        return cls(rings.sums(x, x), rings.sums(x, d), rings.sums(d, d), sx, sd, chance)

    @classmethod
    def together(cls, several: Sequence[Moments]) -> Moments:
        """Those of several micrographs, each in units of its own power."""
        sums: dict[str, torch.Tensor] = {}
        for one in several:
            for name, values in vars(one).items():
                unit = one.xx.sum() if name != "chance" else one.xx.sum().sqrt()
                sums[name] = sums.get(name, 0.0) + values / unit
        # chances average out
        sums["chance"] = sums["chance"] / len(several) ** 0.5
        return cls(**sums)

    def weights(self) -> Weights:
        """Those with which x and d come closest to s, none of them negative, x's never less than a trace.

        Where there is next to no signal, moments are mostly chance: a negative weight would turn around what
        little there is, and a trace of the input keeps it.
        """
        scale = torch.stack([self.xx, self.dd]).sqrt().clamp(min=1e-30)  # so that both have a power of 1
        r = (self.xd / (scale[0] * scale[1])).clamp(-1.0, 1.0)
        p, q = self.sx / scale[0], self.sd / scale[1]
        one = 1.0 + _RIDGE
        determinant = one * one - r * r
        x, d = (one * p - r * q) / determinant, (one * q - r * p) / determinant
        known = (self.dd > 0.0) & (q > _SURE * self.chance)
        alone = ~known | (x < 0.0) | (d < 0.0)
        better = known & (q > p)  # which of them explains more of s
        x = torch.where(alone, torch.where(better, 0.0, p), x)
        d = torch.where(alone, torch.where(better, q, 0.0), d)
        return torch.stack([(x / scale[0]).clamp(min=_TRACE), d / scale[1]]).float()


def blended(image: torch.Tensor, found: torch.Tensor, weights: Weights) -> torch.Tensor:
    """The input and the network's result, (y, x) float32 both, with the weights of each frequency.

    The mean is that of the input.
    """
    shape = (image.shape[0], image.shape[1])
    rings = weights.shape[1]
    place = _place(shape, rings)
    low = place.floor().long().clamp(max=rings - 2)
    part = (place - low).to(image.device)
    low = low.to(image.device)
    of_input, of_network = (w[low] + part * (w[low + 1] - w[low]) for w in weights.to(image.device))
    out = fourier.rfft2(image) * of_input
    mean = image.mean()
    out += fourier.rfft2(found) * of_network
    out[0, 0] = mean * image.numel()
    blend: torch.Tensor = fourier.irfft2(out, shape)
    return blend
