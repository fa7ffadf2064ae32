"""Which images of a tilt series are no good: dark, blocked, with too few counts for their angle, masked.

Counts fall with the tilt because the way through a slab of thickness d is d/cos: Lambert and Beer's law
gives I0 exp(−t/cos(angle − offset)) with t = d/λ, λ being the mean free path for what the aperture or the
energy filter removes, and an offset where the slab is inclined to the stage (lamellae). The law is fitted to
each series with a method that does not mind outliers, so that it also describes schemes in which the exposure
grows with the tilt (Saxton): t is then negative. What lies far below it has lost electrons on the way.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from weft.settings import Settings, setting

__all__ = ["TiltJudgement", "TiltQualitySettings", "block_means", "judge_tilts"]

BLOCKS = 16  # along each side: a grid bar or a piece of ice covers several, a gold bead none
#: Thickness over mean free path; negative where the exposure rises like 1/cos and the specimen is thin.
_SLOPES = (-1.2, 2.5)
#: Degrees; beyond, the law's 1/cos grows faster than any specimen's thickness.
_STEEPEST = 80.0
#: An inclination is told from counts only with so many tilts, and searched at these angles (degrees).
_ENOUGH = 7
_OFFSETS = torch.arange(-20.0, 20.1, 2.5, dtype=torch.float64)
#: Of ln(counts): what an image may cost that is darker, or brighter, than the law. Things get in the way of
#: the beam often, and out of it hardly ever.
_DARKER, _BRIGHTER = 0.3, 1.0
#: Of ln(counts): images that the final fit takes in.
_INLIERS = 0.15
#: The level of the clear part of an image: this quantile of its blocks.
_CLEAR = 0.9


class TiltQualitySettings(Settings):
    """Which tilts are left out because of what their images look like."""

    leave_out_bad: bool = setting(True, "Leave out tilts that are found to be bad; otherwise only say so.")
    darkest: float = setting(
        0.1,
        "A tilt is dark with less than this part of the counts that the series' other tilts let expect.",
        ge=0.0,
        le=1.0,
    )
    fewest_counts: float = setting(
        0.5, "A tilt has too few counts with less than this part of what is expected.", ge=0.0, le=1.0
    )
    blocked_level: float = setting(
        0.3, "Places darker than this part of an image's clear level are blocked.", gt=0.0, lt=1.0
    )
    most_blocked: float = setting(
        0.25,
        "A tilt is blocked (by a grid bar, say) when this much more of its area is than of the series' "
        "clearest tilts.",
        gt=0.0,
        le=1.0,
    )
    most_masked: float = setting(
        0.3, "A tilt is bad when more of its area is masked, or no number.", gt=0.0, le=1.0
    )
    most_doubted: float = setting(
        0.5,
        "When a larger part of a series seems bad in comparison, the comparison is doubted: only dark tilts "
        "are then left out.",
        gt=0.0,
        le=1.0,
    )


@dataclass(frozen=True)
class TiltJudgement:
    """What the images of a series look like.

    Attributes
    ----------
    bad : tuple of str
        Why each tilt is to be left out; empty for those that are good.
    doubts : tuple of str
        What speaks against a tilt without being enough: the same reasons where the comparison is doubtful, or
        where nothing is to be left out.
    counts : (tilts,) float64
        Mean of each image; 0 where it has no number.
    level : (tilts,) float64
        Counts of its clear part.
    expected : (tilts,) float64
        Counts of the clear part according to the fit.
    relative : (tilts,) float64
        level / expected; 1 where counts cannot be compared.
    blocked : (tilts,) float64
        Part of the area that is far darker than the clear part.
    thickness : float
        t of the fit: thickness over mean free path, less whatever the exposure makes up for.
    inclination : float
        The fit's offset, degrees.
    notes : tuple of str
        What people should know about the series as a whole.
    """

    bad: tuple[str, ...]
    doubts: tuple[str, ...]
    counts: torch.Tensor
    level: torch.Tensor
    expected: torch.Tensor
    relative: torch.Tensor
    blocked: torch.Tensor
    thickness: float
    inclination: float
    notes: tuple[str, ...]


def block_means(image: torch.Tensor, blocks: int = BLOCKS) -> torch.Tensor:
    """Mean counts in a coarse grid of blocks.

    Parameters
    ----------
    image : (y, x) tensor
    blocks : int
        Along each side; less where the image has fewer pixels.

    Returns
    -------
    (blocks, blocks) float64
    """
    size = (min(blocks, image.shape[0]), min(blocks, image.shape[1]))
    means = torch.nn.functional.adaptive_avg_pool2d(image.to(torch.float32)[None, None], size)
    return means[0, 0].to(torch.float64)


def judge_tilts(
    angles: torch.Tensor,
    means: torch.Tensor,
    masked: torch.Tensor,
    settings: TiltQualitySettings | None = None,
    exposures: torch.Tensor | None = None,
) -> TiltJudgement:
    """Judge the images of one series.

    Parameters
    ----------
    angles : (tilts,) tensor
        Degrees, in any order.
    means : (tilts, by, bx) tensor
        Mean counts in a coarse grid of blocks of each image, as from :func:`block_means`.
    masked : (tilts,) tensor
        Part of each image that was masked or filled in.
    settings : TiltQualitySettings, optional
    exposures : (tilts,) tensor, optional
        e/Å² of each, if it is known how the scheme shared out the dose; counts are then compared per dose.

    Returns
    -------
    TiltJudgement

    Raises
    ------
    ValueError
        Shapes that do not belong together.
    """
    settings = settings or TiltQualitySettings()
    n = len(angles)
    if means.shape[:1] != (n,) or means.ndim != 3 or masked.shape != (n,):
        raise ValueError(f"{n} angles, means of shape {tuple(means.shape)}, masked of {tuple(masked.shape)}")
    if n == 0:
        none = torch.zeros(0, dtype=torch.float64)
        return TiltJudgement((), (), none, none, none, none, none, 0.0, 0.0, ())
    flat = means.detach().to("cpu", torch.float64).reshape(n, -1)
    theta, hidden = (v.detach().to("cpu", torch.float64) for v in (angles, masked))
    finite = flat.isfinite()
    plain = flat.where(finite, torch.zeros(()))
    counts = plain.sum(1) / finite.sum(1).clamp(min=1)
    reasons = _of_themselves(plain, finite, hidden, settings)
    level = torch.stack([_clear_level(row[ok]) for row, ok in zip(flat, finite, strict=True)])
    usable = torch.tensor([not reason for reason in reasons])
    notes: list[str] = []
    blocked = torch.zeros(n, dtype=torch.float64)
    expected, relative = level.clone(), torch.ones(n, dtype=torch.float64)
    slope = offset = 0.0
    suspects = [""] * n
    dark = torch.zeros(n, dtype=torch.bool)
    compared = usable & (level > 0.0)
    if _are_counts(plain[usable]):
        dose = torch.ones_like(level) if exposures is None else exposures.detach().to(level)
        if not bool((dose > 0.0).all() and dose.isfinite().all()):
            dose = torch.ones_like(level)
        law, slope, offset = _fit(theta, (level / dose).clamp(min=1e-30).log(), compared)
        expected = law.exp() * dose
        relative = (level.clamp(min=0.0) / expected).where(usable | (level > 0.0), torch.zeros(()))
        blocked = ((flat < settings.blocked_level * level[:, None]) & finite).sum(1) / finite.sum(1).clamp(
            min=1
        )
        clearest = _clearest(blocked[compared])
        if clearest > settings.most_blocked:
            notes.append(
                f"{clearest:.0%} of the field is dark in every tilt: part of the specimen or the grid"
            )
        suspects, dark = _in_comparison(theta, relative, blocked - clearest, usable, settings)
    elif bool(usable.any()):
        notes.append(
            "the images are no counts (half of them is 0 or less): dark and blocked tilts cannot be told"
        )
    bad = [reason or suspect for reason, suspect in zip(reasons, suspects, strict=True)]
    doubts = [""] * n
    seeming = sum(map(bool, suspects))
    if seeming > settings.most_doubted * int(usable.sum()):
        notes.append(
            f"{seeming} of {int(usable.sum())} tilts are dark or blocked in comparison with the others: what "
            "they are compared with is doubtful, so that only dark ones are left out; decide by hand"
        )
        for i, suspect in enumerate(suspects):
            if suspect and not dark[i]:
                bad[i], doubts[i] = "", suspect
    if not settings.leave_out_bad:
        doubts = [reason or doubt for reason, doubt in zip(bad, doubts, strict=True)]
        bad = [""] * n
    return TiltJudgement(
        tuple(bad), tuple(doubts), counts, level, expected, relative, blocked, slope, offset, tuple(notes)
    )


def _of_themselves(
    plain: torch.Tensor, finite: torch.Tensor, masked: torch.Tensor, settings: TiltQualitySettings
) -> list[str]:
    """What is wrong with images whatever the others look like."""
    out = []
    for row, ok, hidden in zip(plain, finite, masked.tolist(), strict=True):
        lost = 1.0 - float(ok.double().mean())
        values = row[ok]
        if lost > settings.most_masked:
            out.append(f"not a number: {lost:.0%} of its area")
        elif not bool(values.any()):
            out.append("empty: no counts at all")
        elif len(values) > 1 and float(values.min()) == float(values.max()):
            out.append("empty: all its pixels are the same")
        elif hidden > settings.most_masked or hidden != hidden:
            out.append(f"masked: {hidden:.0%} of its area")
        else:
            out.append("")
    return out


def _in_comparison(
    angles: torch.Tensor,
    relative: torch.Tensor,
    excess: torch.Tensor,
    usable: torch.Tensor,
    settings: TiltQualitySettings,
) -> tuple[list[str], torch.Tensor]:
    """What is wrong with images in comparison with the others, and which are dark."""
    dark = usable & (relative < settings.darkest)
    out = []
    for i, angle in enumerate(angles.tolist()):
        part = float(relative[i])
        what = []
        if bool(dark[i]):
            what.append(f"dark: {part:.1%} of the counts expected at {angle:.1f}°")
        elif part < settings.fewest_counts:
            what.append(f"too few counts: {part:.0%} of those expected at {angle:.1f}°")
        if excess[i] > settings.most_blocked:
            what.append(
                f"blocked: {float(excess[i]):.0%} more of its area is dark than in the clearest tilts"
            )
        out.append("; ".join(what) if usable[i] else "")
    return out, dark


def _clear_level(blocks: torch.Tensor) -> torch.Tensor:
    return torch.quantile(blocks, _CLEAR) if len(blocks) else torch.zeros((), dtype=torch.float64)


def _clearest(blocked: torch.Tensor) -> float:
    """How much of the field is dark in the clearest quarter of the series."""
    return float(blocked.sort().values[(len(blocked) - 1) // 4]) if len(blocked) else 0.0


def _are_counts(blocks: torch.Tensor) -> bool:
    """Whether most images of a series are mostly positive: not what was normalised to a mean of 0."""
    return len(blocks) > 0 and float((blocks > 0.0).double().mean(1).median()) > 0.5


def _fit(angles: torch.Tensor, logs: torch.Tensor, usable: torch.Tensor) -> tuple[torch.Tensor, float, float]:
    """The law that most images follow: ln(counts) at all angles, t, and the offset (degrees).

    Every pair of images proposes a law for each offset; the cheapest counts, refined by least squares of
    those that follow it. What is far off costs the same however far, as in Torr & Zisserman 2000 (MSAC).
    """
    if not bool(usable.any()):
        return logs.clone(), 0.0, 0.0
    y = logs[usable]
    offsets = _OFFSETS if len(y) >= _ENOUGH else torch.zeros(1, dtype=torch.float64)
    best: tuple[float, float, float, float] | None = None
    first, second = torch.triu_indices(len(y), len(y), 1)
    for offset in offsets.tolist():
        x = _path(angles - offset)[usable]
        slopes = (y[first] - y[second]) / (x[second] - x[first])
        sensible = slopes.isfinite() & (slopes >= _SLOPES[0]) & (slopes <= _SLOPES[1])
        sensible &= (x[first] - x[second]).abs() > 0.02  # nearer pairs tell nothing about the slope
        # with a slope of nothing through each image, for series that are too short or too flat for pairs
        slope = torch.cat([slopes[sensible], torch.zeros_like(y)])
        start = torch.cat([(y[first] + slopes * x[first])[sensible], y])
        residual = y - (start[:, None] - slope[:, None] * x)
        cost = torch.minimum(-residual, residual.new_tensor(_DARKER)).where(
            residual < 0, torch.minimum(residual, residual.new_tensor(_BRIGHTER))
        )
        # where several offsets do equally well, the smallest
        total = cost.sum(1) + 1e-4 * len(y) * abs(offset)
        i = int(total.argmin())
        if best is None or float(total[i]) < best[0]:
            best = float(total[i]), float(start[i]), float(slope[i]), offset
    assert best is not None
    _, a, t, offset = best
    x = _path(angles - offset)
    for _ in range(5):
        near = usable & ((logs - (a - t * x)).abs() < _INLIERS)
        if int(near.sum()) < 4:
            break
        u, v = x[near] - x[near].mean(), logs[near] - logs[near].mean()
        if float(u.square().sum()) > 1e-3:
            t = min(max(-float((u * v).sum() / u.square().sum()), _SLOPES[0]), _SLOPES[1])
        a = float((logs[near] + t * x[near]).mean())
    return a - t * x, t, offset


def _path(angles: torch.Tensor) -> torch.Tensor:
    """Way through a slab of thickness 1 at angles (degrees) to its normal."""
    return 1.0 / torch.cos(torch.deg2rad(angles.abs().clamp(max=_STEEPEST)))
