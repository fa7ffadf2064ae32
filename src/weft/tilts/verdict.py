"""Whether an alignment is to be trusted."""

from __future__ import annotations

import math
from typing import Literal

import torch

from weft.tilts.bundle import BundleSolution
from weft.tilts.cameras import Tracks

__all__ = ["Verdict", "judged"]

Verdict = Literal["good", "doubtful", "bad"]


def judged(solution: BundleSolution, tracks: Tracks, pixel_size: float) -> tuple[Verdict, tuple[str, ...]]:
    """A verdict on what bundle adjustment found, and the reasons if it is not "good".

    The rules are those a person would use: too few tilts or markers leave nothing to check the fit by;
    residuals of several pixels, or many rejected observations, mean that markers were not followed.
    """
    kept = solution.weights > 0.0
    reasons: list[tuple[Verdict, str]] = []
    tilts = int((~solution.missing).sum())
    markers = len(torch.unique(tracks.marker[kept]))
    spare = 2 * int(kept.sum()) - 3 * markers - 3 * tilts
    if tilts < 8:
        reasons.append(("doubtful", f"only {tilts} tilts: too few to check the angles and the axis"))
    if markers < 4:
        reasons.append(("doubtful", f"only {markers} markers"))
    if spare < 4 * tilts:
        reasons.append(("doubtful", "hardly more observations than unknowns"))
    lost = int(solution.missing.sum())
    if lost > 0.25 * len(solution.missing):
        reasons.append(("doubtful", f"{lost} of {len(solution.missing)} tilts could not be aligned"))
    median = (
        float(solution.residuals[kept].norm(dim=-1).median()) / pixel_size if bool(kept.any()) else math.inf
    )
    if median > 2.0:
        reasons.append(
            ("bad" if median > 6.0 else "doubtful", f"markers are {median:.1f} px from the model (median)")
        )
    share = 1.0 - float(kept.double().mean()) if len(kept) else 1.0
    if share > 0.4:
        reasons.append(("doubtful", f"{100 * share:.0f} % of the observations do not fit the model"))
    known = solution.expected_error[torch.isfinite(solution.expected_error)]
    error = float(known.median()) / pixel_size if len(known) else math.inf
    if error > 2.0:
        reasons.append(
            ("bad" if error > 8.0 else "doubtful", f"the expected error is {error:.1f} px in the median tilt")
        )
    if not solution.converged:
        reasons.append(("doubtful", "the fit did not settle"))
    kinds = [kind for kind, _ in reasons]
    verdict: Verdict = "bad" if "bad" in kinds else "doubtful" if kinds else "good"
    return verdict, tuple(text for _, text in reasons)
