"""Network and input joined ring by ring: what each is worth at a frequency is measured, not believed.

A network's result can be worse than its input: at low frequencies, where there is little noise but the
network has smoothed something away, or where it was trained on something else. So the two are combined with
two real weights in each ring of spatial frequency. They follow from halves with independent noise: what half
b has in common with anything made from half a alone is the signal's part in it. The network is believed only
as far as this is more than chance. docs/science/denoising.md has the equations.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import conv1d

from weft.physics import fourier

__all__ = ["Pair", "combined", "ring_weights"]

Pair = tuple[torch.Tensor, torch.Tensor]
#: Of a ring, in coefficients of the shorter side; what lies beyond Nyquist's frequency counts to the last.
_WIDTH = 4.0
#: By so many standard deviations less is the network believed to add than halves say that it adds.
_SURE = 2.0
#: Over so many rings to both sides is Wiener's filter smoothed until it is known ...
_WIDEST = 12
#: ... this much better than chance: a weight that jumps within a ring costs more than a smooth, wrong one.
_KNOWN = 10.0
#: Least weight of the input.
_TRACE = 0.02


def _place(shape: tuple[int, int]) -> tuple[torch.Tensor, int]:
    """Where coefficients of :func:`fourier.rfft2` lie, 0 is the centre of the first ring; how many rings."""
    across = min(shape) / _WIDTH
    count = max(2, int(0.5 * across))
    ky, kx = fourier.frequencies(shape)
    return (torch.sqrt(ky**2 + kx**2) * across - 0.5).clamp(0.0, count - 1.0), count


class _Rings:
    """Sums over rings of products of images of one shape."""

    def __init__(self, shape: tuple[int, int]) -> None:
        place, self._n = _place(shape)
        self._ring = place.round().long().flatten()
        # a half-plane holds one of each pair, but for the columns that have none
        pairs = torch.full((shape[0], shape[1] // 2 + 1), 2.0, dtype=torch.float64)
        pairs[:, 0] = 1.0
        if shape[1] % 2 == 0:
            pairs[:, -1] = 1.0
        pairs[0, 0] = 0.0
        self._pairs = pairs.flatten()
        one = torch.ones(pairs.shape, dtype=torch.complex64)
        #: Coefficients of each ring.
        self.count = self.sums(one, one)

    def sums(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """(rings,) float64."""
        product = (a * b.conj()).real.double().cpu().flatten() * self._pairs
        return torch.zeros(self._n, dtype=torch.float64).index_add_(0, self._ring, product)


def _triangle(reach: int) -> torch.Tensor:
    """Weights of a ring and its neighbours to both sides."""
    return 1.0 - torch.arange(-reach, reach + 1, dtype=torch.float64).abs() / (reach + 1)


def _smoothed(values: torch.Tensor, reach: int) -> torch.Tensor:
    """(..., rings): with neighbours."""
    rows = values.reshape(-1, 1, values.shape[-1])
    return conv1d(rows, _triangle(reach)[None, None], padding=reach).reshape(values.shape)


@dataclass(frozen=True)
class _Sums:
    """(rings,) float64 each: of products of the input x, the network's d, the halves a, b and what it made.

    Attributes
    ----------
    count : coefficients
    xx, xd, dd : x x, x d, d d
    sx, sd : the signal with x and with d, from halves
    hh, hf, ff : a half with itself, with what was made from it, that with itself
    """

    count: torch.Tensor
    xx: torch.Tensor
    xd: torch.Tensor
    dd: torch.Tensor
    sx: torch.Tensor
    sd: torch.Tensor
    hh: torch.Tensor
    hf: torch.Tensor
    ff: torch.Tensor

    @classmethod
    def of(cls, halves: Pair, found: Pair) -> _Sums:
        rings = _Rings((halves[0].shape[0], halves[0].shape[1]))
        a, b, fa, fb = (fourier.rfft2(image) for image in (*halves, *found))
        x, d = 0.5 * (a + b), 0.5 * (fa + fb)
        of = rings.sums
        return cls(
            rings.count,
            *(of(x, x), of(x, d), of(d, d)),
            *(of(a, b), 0.5 * (of(b, fa) + of(a, fb))),
            *(0.5 * (of(a, a) + of(b, b)), 0.5 * (of(a, fa) + of(b, fb)), 0.5 * (of(fa, fa) + of(fb, fb))),
        )

    def smoothed(self, reach: int) -> _Sums:
        return _Sums(*_smoothed(torch.stack(list(vars(self).values())), reach))


def _wiener(sums: _Sums) -> torch.Tensor:
    """(rings,): Wiener's filter of the input, smoothed where it is not known well."""
    filtered = torch.zeros_like(sums.xx)
    known = torch.zeros(len(filtered), dtype=torch.bool)
    for reach in range(1, _WIDEST + 1):
        wide, line = sums.smoothed(reach), _triangle(reach)
        chance = wide.hh * (line.square().sum() / line.sum() / wide.count).sqrt()
        now = ~known & ((wide.sx > _KNOWN * chance) | (reach == _WIDEST))
        filtered = torch.where(now, wide.sx / wide.xx.clamp(min=1e-30), filtered)
        known |= now
    return filtered


def ring_weights(halves: Pair, found: Pair) -> torch.Tensor:
    """What input and network are worth at each frequency.

    Parameters
    ----------
    halves : two (y, x) averages
        With independent noise.
    found : two (y, x) images
        What the network has made of each.

    Returns
    -------
    (2, rings) float32
        Weights of the mean of the halves, never less than a trace, and of the mean of the results, never
        negative: :func:`combined`.
    """
    sums = _Sums.of(halves, found)
    wiener = _wiener(sums)
    near = sums.smoothed(1)
    # what the network's result holds that the input does not: u = d - part x
    part = near.xd / near.xx.clamp(min=1e-30)
    uu = (near.dd - part * near.xd).clamp(min=1e-30)
    su = near.sd - part * near.sx
    # chance in su: noise of a half, on what the other one's result holds beside the input
    noise = (near.hh - near.sx).clamp(min=0.0) / near.count
    line = _triangle(1)
    beside = (near.ff - 2.0 * part * near.hf + part**2 * near.hh).clamp(min=0.0)
    chance = (noise * beside * line.square().sum() / line.sum()).sqrt()
    of_network = (su - _SURE * chance).clamp(min=0.0) / uu
    of_input = wiener - of_network * part
    alone = of_input < 0.0
    of_network = torch.where(alone, (near.sd / near.dd.clamp(min=1e-30)).clamp(min=0.0), of_network)
    return torch.stack([of_input.clamp(min=_TRACE), of_network]).float()


def combined(halves: Pair, found: Pair) -> torch.Tensor:
    """Halves of a micrograph and what the network has made of each, with the weights of each frequency.

    Parameters
    ----------
    halves, found
        See :func:`ring_weights`.

    Returns
    -------
    (y, x) float32
        Its mean is that of the input.
    """
    shape = (halves[0].shape[0], halves[0].shape[1])
    device = halves[0].device
    place, rings = _place(shape)
    low = place.floor().long().clamp(max=rings - 2)
    part = (place - low).to(device)
    low = low.to(device)
    of_input, of_network = (
        w[low] + part * (w[low + 1] - w[low]) for w in ring_weights(halves, found).to(device)
    )
    image = 0.5 * (halves[0] + halves[1])
    out = fourier.rfft2(image) * of_input
    out += fourier.rfft2(0.5 * (found[0] + found[1]).to(device)) * of_network
    out[0, 0] = image.mean() * image.numel()
    blend: torch.Tensor = fourier.irfft2(out, shape)
    return blend
