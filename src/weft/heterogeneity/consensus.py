"""The mean structure of all particles: what the decoder starts from, and what tells noise from signal.

It is a weighted back-projection (Σ H Y / Σ H² on a Fourier grid) within a soft sphere, made from every other
image and from the rest; what both agree on by shell gives it a Wiener filter, 2 FSC / (1 + FSC) (Rosenthal &
Henderson 2003, eq. 13, squared). Images minus it are residuals, whose spectrum is the noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from weft.heterogeneity.lattice import Lattice
from weft.heterogeneity.preparation import Prepared
from weft.particles.fourier_volume import Sums, insert, padded_transform, real_space, sample
from weft.particles.fsc import last_signal, shell_correlation, soft_sphere
from weft.physics import fourier

__all__ = ["Consensus", "sections"]

#: What is added to a grid point's weight, in units of the mean weight.
_DAMPING = 0.05
_EDGE = 2.0  # px
#: Shells beyond the last on which halves agree that may hold differences.
_FURTHER = 2.0


@dataclass(frozen=True)
class Consensus:
    """The mean structure, and the spectra of signal and noise in the images.

    Attributes
    ----------
    volume : (n, n, n) float32
    signal : (s,) float32
        Root mean square of its coefficients by shell; no less than all images together could show.
    noise : (s,) float32
        Standard deviation of the real and the imaginary part of an image's coefficients by shell.
    power : float
        Mean variance of the real and the imaginary part of all of the images' coefficients.
    reach : float
        Periods over the box up to which halves of the images agree on anything, and a little further.
    """

    volume: torch.Tensor
    signal: torch.Tensor
    noise: torch.Tensor
    power: float
    reach: float

    @classmethod
    def of(cls, images: Callable[[], Iterable[Prepared]], lattice: Lattice, diameter: float) -> Consensus:
        """From all images, which are gone through twice.

        Parameters
        ----------
        images : callable
            Gives them anew every time it is called, some at a time.
        lattice : Lattice
        diameter : float
            Å.
        """
        n, shell = lattice.box, lattice.shell
        shells = n // 2 + 1
        halves = (Sums.empty(n), Sums.empty(n))
        power, count, images_seen = 0.0, 0, 0
        ux, uy = lattice.ux.float(), lattice.uy.float()
        for part in images():
            data, weight = part.values * part.transfer, part.transfer.square()
            for half, sums in enumerate(halves):
                these = slice((half + images_seen) % 2, None, 2)
                insert(sums, part.rotation[these, :2], ux, uy, data[these], weight[these])
            images_seen += len(data)
            used = part.weight > 0.0
            power += float((part.values.abs().square() * used).sum(dtype=torch.float64))
            count += int(used.sum())
        if not power > 0.0:
            raise ValueError("all images are empty")
        volume, reach = _filtered(halves, n, diameter / lattice.pixel_size)
        transform = padded_transform(volume, n / 2.0)
        noise, number = torch.zeros(shells), torch.zeros(shells)
        fit, norm = 0.0, 0.0
        signal, points = torch.zeros(shells), torch.zeros(shells)
        for part in images():
            mean = sections(transform, part.rotation, lattice)
            expected = mean * part.transfer
            fit += float((expected.conj() * part.values).real.sum(dtype=torch.float64))
            norm += float(expected.abs().square().sum(dtype=torch.float64))
            used = (part.weight > 0.0).float()
            noise.index_add_(0, shell, ((part.values - expected).abs().square() * used).sum(0))
            number.index_add_(0, shell, used.sum(0))
            signal.index_add_(0, shell, mean.abs().square().sum(0))
            points.index_add_(0, shell, torch.full((len(shell),), float(len(mean))))
        # its scale is fitted: what the sphere cuts and the damping takes is not all that there is
        scale = fit / norm if norm > 0.0 else 0.0
        spread = (noise / number.clamp(min=1.0) / 2.0).sqrt()
        known = number > 0.0
        spread[~known] = spread[known].mean()
        strength = (signal / points.clamp(min=1.0)).sqrt() * abs(scale)
        return cls(
            volume * scale,
            # what all images together could just show is the least that is expected
            torch.maximum(strength, spread / max(images_seen, 1) ** 0.5),
            spread,
            power / (2.0 * max(count, 1)),
            reach,
        )


def _filtered(halves: tuple[Sums, Sums], box: int, diameter: float) -> tuple[torch.Tensor, float]:
    sphere = soft_sphere(box, diameter, _EDGE)
    maps = [_reconstructed(sums, box) * sphere for sums in (*halves, halves[0] + halves[1])]
    fsc = shell_correlation(maps[0], maps[1]).clamp(min=0.0)
    last = last_signal(fsc)
    fsc[last + 1 :] = 0.0
    weight = 2.0 * fsc / (1.0 + fsc)
    shells = fourier.shells_3d(box).clamp(max=len(weight) - 1)
    volume = fourier.irfft3(fourier.rfft3(maps[2]) * weight[shells], (box, box, box)) * sphere
    return volume, last + 1.0 + _FURTHER


def _reconstructed(sums: Sums, box: int) -> torch.Tensor:
    whole = sums.complete()
    weight = whole.weight
    mean = weight[weight > 0.0].mean() if bool((weight > 0.0).any()) else torch.ones(())
    return real_space(whole.data / (weight + _DAMPING * mean), box)


def sections(transform: torch.Tensor, rotation: torch.Tensor, lattice: Lattice) -> torch.Tensor:
    """Central sections of a map, (m, c) complex64.

    Parameters
    ----------
    transform : tensor
        Of :func:`~weft.particles.fourier_volume.padded_transform`.
    rotation : (m, 3, 3) float32
    lattice : Lattice
    """
    ux, uy = (u.to(rotation)[:, None] for u in (lattice.ux, lattice.uy))
    at = rotation[:, None, 0] * ux + rotation[:, None, 1] * uy
    return sample(transform, at)
