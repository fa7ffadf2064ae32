"""Radiation damage: how much of a signal survives a dose."""

from __future__ import annotations

from typing import Literal

import torch

__all__ = ["DoseModel", "DoseWeighting", "dose_weight"]

DoseModel = Literal["warp", "grant"]
#: A model, or all of the signal.
DoseWeighting = Literal["warp", "grant", "none"]


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
        kV; below 300 kV damage is faster: 0.8 of the critical exposure at 200 kV (Grant & Grigorieff 2015),
        0.64 at 100 kV (Peet, Henderson & Russo 2019).
    model : {"warp", "grant"}
        ``"warp"``: exp(−B k²/4) with B = 4 Å² for each e/Å² (Tegunov & Cramer 2019).
        ``"grant"``: exp(−N / (2 N_c)), critical exposure N_c = 0.24499 k^−1.6649 + 2.8141 e/Å²
        at 300 kV (Grant & Grigorieff 2015, eq. 3).

    Returns
    -------
    tensor
        Between 0 and 1.
    """
    dose = torch.as_tensor(dose, dtype=k.dtype, device=k.device)
    if model == "warp":
        return torch.exp(-dose * k * k)
    if model == "grant":
        scale = 1.0 if voltage >= 250.0 else 0.8 if voltage >= 150.0 else 0.64
        critical = scale * (0.24499 * k.clamp_min(1e-6) ** -1.6649 + 2.8141)
        return torch.exp(-dose / (2.0 * critical))
    raise ValueError(f"no dose model is called {model!r}: it is 'warp' or 'grant'")


def dose_of_frames(n_frames: int, dose_per_frame: float, prior_dose: float = 0.0) -> torch.Tensor:
    """Dose (e/Å²) accumulated at the end of each frame: `prior_dose` plus the frames' own, ``(n,)``."""
    return prior_dose + dose_per_frame * (1.0 + torch.arange(n_frames, dtype=torch.float64))
