"""Fourier shell correlation of two half maps.

The correlation under a mask counts the mask's own shape as common signal. Chen et al. 2013 (Ultramicroscopy
135:24, eq. 4) measure that part by randomising the phases of both maps beyond a shell:

    FSC_true = (FSC_masked − FSC_randomised) / (1 − FSC_randomised)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from weft.physics.fourier import irfft3, random_phases, rfft3, shells_3d

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "FSC",
    "crossing",
    "draw_fsc",
    "fsc_figure",
    "half_map_fsc",
    "last_signal",
    "shell_correlation",
    "soft_sphere",
]

#: Phases are randomised from where the unmasked correlation falls below this (RELION's choice too).
_RANDOMISE_BELOW = 0.8
#: The corrected curve is trusted from so many shells beyond.
_MARGIN = 2
_SEED = 3


@dataclass(frozen=True)
class FSC:
    """Curves of one pair of half maps, one value a shell.

    Attributes
    ----------
    k : (shells,) float64
        1/Å; the first shell is the mean value.
    unmasked, masked, randomised, corrected : (shells,) float64
        Without a mask: the same curve, and `randomised` is 0.
    randomised_from : float
        Resolution (Å) beyond which phases were randomised; infinite without a mask.
    """

    k: torch.Tensor
    unmasked: torch.Tensor
    masked: torch.Tensor
    randomised: torch.Tensor
    corrected: torch.Tensor
    randomised_from: float

    def resolution(self, threshold: float = 0.143) -> float:
        """Å, where the corrected curve first falls below `threshold`: see :func:`crossing`."""
        return crossing(self.k, self.corrected, threshold)


def soft_sphere(size: int, diameter: float, edge: float, device: torch.device | str = "cpu") -> torch.Tensor:
    """1 within `diameter`, a raised cosine over `edge` pixels beyond it, 0 outside; all in pixels.

    Returns
    -------
    (size, size, size) float32
    """
    x = torch.arange(size, device=device, dtype=torch.float32) - size // 2
    r = torch.sqrt(x[:, None, None] ** 2 + x[:, None] ** 2 + x * x)
    fade = ((r - 0.5 * diameter) / max(edge, 1e-3)).clamp(0.0, 1.0)
    return 0.5 + 0.5 * torch.cos(torch.pi * fade)


def shell_correlation(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Correlation of the coefficients of two maps in each shell.

    Parameters
    ----------
    first, second : (n, n, n) tensors

    Returns
    -------
    (n//2,) float64
        Shells 0 ... n//2 − 1; 0 where a map has nothing.
    """
    return _correlate(rfft3(first.float()), rfft3(second.float()))


def _correlate(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    n = len(a)
    count = n // 2
    shells = shells_3d(n, a.device).clamp_(max=count)
    # coefficients of the half space stand for two, but for the plane x = 0 (and Nyquist, which is not used)
    weight = torch.full((n // 2 + 1,), 2.0, device=a.device)
    weight[0] = 1.0

    def total(values: torch.Tensor) -> torch.Tensor:
        flat = (values * weight).reshape(-1).double()
        return torch.bincount(shells.reshape(-1), flat, count + 1)[:count]

    common = total(a.real * b.real + a.imag * b.imag)
    power = total(a.abs().square()) * total(b.abs().square())
    return torch.where(power > 0, common / power.clamp(min=1e-300).sqrt(), torch.zeros_like(common))


def half_map_fsc(
    first: torch.Tensor, second: torch.Tensor, pixel_size: float, mask: torch.Tensor | None = None
) -> FSC:
    """All curves of two half maps.

    Parameters
    ----------
    first, second : (n, n, n) float32
    pixel_size : float
        Å.
    mask : (n, n, n) float32, optional
        Soft, between 0 and 1.
    """
    n = len(first)
    one, two = rfft3(first.float()), rfft3(second.float())
    unmasked = _correlate(one, two)
    k = torch.arange(n // 2, dtype=torch.float64) / (n * pixel_size)
    if mask is None:
        nil = torch.zeros_like(unmasked)
        return FSC(k, unmasked.cpu(), unmasked.cpu(), nil.cpu(), unmasked.cpu(), float("inf"))
    masked = shell_correlation(first * mask, second * mask)
    below = (unmasked[1:] < _RANDOMISE_BELOW).nonzero()
    shell = int(below[0, 0]) + 1 if len(below) else n // 2 - 1
    generator = torch.Generator().manual_seed(_SEED)
    scrambled = []
    for spectrum in (one, two):
        new = spectrum.abs() * random_phases((n, n, n), generator).to(spectrum.device)
        beyond = shells_3d(n, spectrum.device) >= shell
        scrambled.append(irfft3(torch.where(beyond, new, spectrum), (n, n, n)) * mask)
    randomised = shell_correlation(*scrambled)
    # up to the margin the randomised maps still share their true phases
    correct = torch.arange(n // 2, device=masked.device) >= shell + _MARGIN
    noise_part = randomised.clamp(max=0.999)
    corrected = torch.where(correct, (masked - noise_part) / (1.0 - noise_part), masked)
    start = n * pixel_size / shell
    return FSC(k, unmasked.cpu(), masked.cpu(), randomised.cpu(), corrected.cpu(), start)


def crossing(k: torch.Tensor, curve: torch.Tensor, threshold: float) -> float:
    """The resolution at which a curve first falls below a threshold, interpolated between shells.

    Parameters
    ----------
    k : (shells,) tensor
        1/Å; the first is 0 and does not count.
    curve : (shells,) tensor
    threshold : float

    Returns
    -------
    float
        Å: the last shell's where the curve never falls below, infinite where it never was above.
    """
    below = (curve[1:] < threshold).nonzero()
    if len(below) == 0:
        return 1.0 / float(k[-1])
    shell = int(below[0, 0]) + 1
    if shell == 1:
        return float("inf")
    above, under = float(curve[shell - 1]), float(curve[shell])
    part = (above - threshold) / (above - under)
    return 1.0 / (float(k[shell - 1]) + part * float(k[shell] - k[shell - 1]))


def last_signal(curve: torch.Tensor, threshold: float = 0.143) -> int:
    """The last shell that holds signal: beyond it no three shells in a row reach the threshold on average.

    A curve may fall and rise again: halves agree on nothing where the CTF of most images is zero, and on more
    beyond.

    Parameters
    ----------
    curve : (shells,) tensor
        FSC; shell 0 is taken to hold signal.

    Returns
    -------
    int
    """
    ends = torch.cat([curve[:1], curve, curve[-1:]]).double()
    smooth = (ends[:-2] + ends[1:-1] + ends[2:]) / 3.0
    good = ((smooth >= threshold) & (curve >= threshold)).nonzero()
    return int(good.max()) if len(good) else 0


def fsc_figure(fsc: FSC, title: str = "") -> Figure:
    """The curves, with the resolutions at 0.143 and 0.5.

    Returns
    -------
    matplotlib Figure
        Made without pyplot: it belongs to no window.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    draw_fsc(figure.add_subplot(), fsc, title)
    return figure


def draw_fsc(axes: Axes, fsc: FSC, title: str = "") -> None:
    """The curves of :func:`fsc_figure` on axes of a figure."""
    k = fsc.k[1:].numpy()
    if fsc.randomised_from != float("inf"):
        axes.plot(k, fsc.unmasked[1:].numpy(), color="#8a8a8a", lw=1.2, label="no mask")
        axes.plot(k, fsc.masked[1:].numpy(), color="#4878a8", lw=1.2, label="masked")
        axes.plot(k, fsc.randomised[1:].numpy(), color="#c05a3a", lw=1.2, label="masked, phases randomised")
    axes.plot(k, fsc.corrected[1:].numpy(), color="black", lw=1.8, label="corrected")
    for threshold in (0.5, 0.143):
        found = fsc.resolution(threshold)
        axes.axhline(threshold, color="#b0b0b0", lw=0.8, ls=":")
        if 1.0 / float(k[-1]) < found < float("inf"):
            axes.plot([1.0 / found], [threshold], "o", color="black", ms=4)
            axes.annotate(f"{found:.1f} Å", (1.0 / found, threshold), (4, 4), textcoords="offset points")
    axes.axhline(0.0, color="black", lw=0.6)
    axes.set(xlim=(0.0, float(k[-1])), ylim=(-0.15, 1.05), xlabel="resolution", ylabel="FSC", title=title)
    ticks = axes.get_xticks()
    axes.set_xticks(
        [t for t in ticks if t <= k[-1]], [f"{1.0 / t:.1f} Å" if t > 0 else "" for t in ticks if t <= k[-1]]
    )
    axes.legend(frameon=False, fontsize=9)
