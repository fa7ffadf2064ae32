"""Radiation damage: how much of a signal survives a dose."""

from __future__ import annotations

from typing import Literal

import torch

__all__ = ["DoseModel", "DoseWeighting", "critical_exposure", "dose_mask", "dose_weight"]

DoseModel = Literal["warp", "grant"]
#: A model, or all of the signal.
DoseWeighting = Literal["warp", "grant", "none"]
#: Optimal over critical exposure: the signal-to-noise ratio of a sum, (1 − exp(−x/2))/√x, is largest there.
_OPTIMAL = 2.51284


def critical_exposure(k: torch.Tensor, voltage: float) -> torch.Tensor:
    """Exposure (e/Å²) after which a signal's power is 1/e of what it was.

    N_c = 0.24499 k^−1.6649 + 2.8141 e/Å² at 300 kV (Grant & Grigorieff 2015, eq. 3); 0.8 of it at 200 kV
    (same), 0.64 at 100 kV (Peet, Henderson & Russo 2019).

    Parameters
    ----------
    k : tensor
        1/Å.
    voltage : float
        kV.
    """
    scale = 1.0 if voltage >= 250.0 else 0.8 if voltage >= 150.0 else 0.64
    return scale * (0.24499 * k.clamp_min(1e-6) ** -1.6649 + 2.8141)


def dose_mask(k: torch.Tensor, dose: torch.Tensor | float, voltage: float) -> torch.Tensor:
    """1 where the dose is at most the optimal exposure, 2.51284 N_c, and 0 beyond (Grant & Grigorieff 2015).

    Parameters
    ----------
    k : tensor
        1/Å.
    dose : float or tensor
        e/Å²; broadcast against `k`.
    voltage : float
        kV.
    """
    dose = torch.as_tensor(dose, dtype=k.dtype, device=k.device)
    return (dose <= _OPTIMAL * critical_exposure(k, voltage)).to(k.dtype)


def dose_weight(
    k: torch.Tensor, dose: torch.Tensor | float, voltage: float, model: DoseModel = "warp"
) -> torch.Tensor:
    """Amplitude that is left at spatial frequency `k` after `dose`.

    Parameters
    ----------
    k : tensor
        1/Å.
    dose : float or tensor
        Accumulated dose in e/Å²; broadcast against `k`.
    voltage : float
        kV; below 300 kV damage is faster: see :func:`critical_exposure`.
    model : {"warp", "grant"}
        ``"warp"``: exp(−B k²/4) with B = 4 Å² for each e/Å² (Tegunov & Cramer 2019).
        ``"grant"``: exp(−N / (2 N_c)) with the critical exposure N_c (Grant & Grigorieff 2015).

    Returns
    -------
    tensor
        Between 0 and 1.
    """
    dose = torch.as_tensor(dose, dtype=k.dtype, device=k.device)
    if model == "warp":
        return torch.exp(-dose * k * k)
    if model == "grant":
        return torch.exp(-dose / (2.0 * critical_exposure(k, voltage)))
    raise ValueError(f"no dose model is called {model!r}: it is 'warp' or 'grant'")


def dose_of_frames(n_frames: int, dose_per_frame: float, prior_dose: float = 0.0) -> torch.Tensor:
    """Dose (e/Å²) accumulated at the end of each frame: `prior_dose` plus the frames' own, ``(n,)``."""
    return prior_dose + dose_per_frame * (1.0 + torch.arange(n_frames, dtype=torch.float64))
