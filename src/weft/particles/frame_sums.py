"""Windows of particles summed over the frames of a movie, each frame with what the dose leaves of it.

A window is cut at the pixel next to where the particle lies in a frame; the rest of the way is a factor in
Fourier space, so that the particle comes exactly onto pixel n//2 and nothing is interpolated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from weft.movies.drift import FrameStack
from weft.particles.windows import WindowPlan, cut_windows
from weft.physics import fourier
from weft.physics.dose import DoseWeighting, dose_of_frames, dose_weight
from weft.physics.optics import Optics

__all__ = ["FrameSums"]

SUMS = 3 << 27  # bytes of the sums over frames that are kept at a time


@dataclass(frozen=True)
class FrameSums:
    """How windows are summed over frames.

    Attributes
    ----------
    plan : WindowPlan
    optics : Optics
        Of the frames.
    n_frames : int
    dose_weighting : str
        As in :func:`weft.physics.dose.dose_weight`.
    groups : int
        1: one sum; 2: a sum of the even and one of the odd frames.
    """

    plan: WindowPlan
    optics: Optics
    n_frames: int
    dose_weighting: DoseWeighting
    groups: int = 1

    @property
    def batch(self) -> int:
        """Of how many particles the sums fit into memory."""
        ny, nx = self.plan.window
        return max(1, SUMS // (self.groups * ny * (nx // 2 + 1) * 8))

    def weight(self, frame: int) -> torch.Tensor | None:
        """Of a window's coefficients in a frame, (y, x//2+1); None where all have the same."""
        if self.dose_weighting == "none" or self.n_frames == 1:
            return None
        ky, kx = self.plan.frequencies()
        doses = dose_of_frames(self.n_frames, self.optics.dose_per_frame, self.optics.prior_dose)
        return dose_weight(torch.hypot(ky, kx), float(doses[frame]), self.optics.voltage, self.dose_weighting)

    def summed(self, frames: FrameStack, at: NDArray[np.float64]) -> torch.Tensor:
        """Weighted sums of windows.

        Parameters
        ----------
        frames : (frames, y, x) float32 tensor, or anything that gives frames one by one
        at : (frames, n, 2) array
            x, y of the particles in each frame, pixels of the plan.

        Returns
        -------
        (groups, n, y, x//2+1) complex64
        """
        plan, n = self.plan, at.shape[1]
        ny, nx = plan.window
        ky, kx = torch.fft.fftfreq(ny), torch.fft.rfftfreq(nx)
        sums: torch.Tensor | None = None
        step = plan.batch
        for f in range(self.n_frames):
            image = plan.reduced(frames[f])
            if sums is None:
                shape = (self.groups, n, ny, nx // 2 + 1)
                sums = torch.zeros(shape, dtype=torch.complex64, device=image.device)
            weight = self.weight(f)
            whole = np.round(at[f]).astype(np.int64)
            rest = torch.as_tensor(at[f] - whole)
            for first in range(0, n, step):
                part = slice(first, min(first + step, n))
                spectra = fourier.rfft2(cut_windows(image, whole[part], plan.window))
                one = torch.ones(len(spectra), 1, dtype=torch.float64)
                along_y = torch.polar(one * torch.ones(ny), 2.0 * math.pi * rest[part, 1:] * ky)
                along_x = torch.polar(one * torch.ones(len(kx)), 2.0 * math.pi * rest[part, :1] * kx)
                spectra *= along_x.to(image.device, torch.complex64)[:, None]
                factor = along_y.to(image.device, torch.complex64)[:, :, None]
                group = sums[f % self.groups, part]
                if weight is None:
                    group += spectra.mul_(factor)
                else:
                    group += spectra.mul_(factor).mul_(weight.to(image.device))
        assert sums is not None
        return sums

    def scales(self) -> tuple[torch.Tensor, ...]:
        """Factors with which noise keeps the spectrum that it has without weights, as in `make_average`.

        Returns
        -------
        tuple of (y, x//2+1) or () float32
            Of the sum over all frames and, where there are two groups, of the even and of the odd ones.
        """
        squares: list[torch.Tensor | float] = [0.0, 0.0]
        for f in range(self.n_frames):
            weight = self.weight(f)
            squares[f % 2] = squares[f % 2] + (1.0 if weight is None else weight.square())
        counts = ((self.n_frames + 1) // 2, self.n_frames // 2)

        def scale(of: tuple[int, ...]) -> torch.Tensor:
            total = sum(squares[g] for g in of) * sum(counts[g] for g in of)
            return 1.0 / torch.as_tensor(total, dtype=torch.float32).sqrt().clamp(min=1e-12)

        return tuple(scale(of) for of in ((0, 1), (0,), (1,))[: 1 if self.groups == 1 else 3])
