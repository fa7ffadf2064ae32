"""What a tilt series' file tells about its acquisition: the order, the doses, and what was taken again."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from weft.session.series_description import DescribedTilt, SeriesDescription

__all__ = ["AGAIN", "REPEATED", "doses", "in_order", "repeats"]

#: Tilts whose angles differ by less (degrees) are the same tilt, taken again.
REPEATED = 0.1
#: In the reason of a tilt that a later one replaces.
AGAIN = "taken again later"
#: PriorRecordDose may differ by this part of a series' dose from the sum of the exposures without a note:
#: it also counts focusing on the specimen.
_DOSE_SLACK = 0.05


def in_order(series: SeriesDescription) -> tuple[list[DescribedTilt], list[str]]:
    """The tilts in the order of acquisition, and notes about how sure that is.

    By the dates where every tilt has one, otherwise by the dose before each, otherwise as in the file.
    """
    tilts = list(series.tilts)
    dates = [tilt.date for tilt in tilts if tilt.date is not None]
    priors = [tilt.prior_dose for tilt in tilts if tilt.prior_dose is not None]
    dated = len(dates) == len(tilts) and (len(set(dates)) > 1 or len(tilts) == 1)
    dosed = len(priors) == len(tilts) and len(set(priors)) > 1
    if dated:
        # what was written within one second stays as in the file
        return sorted(tilts, key=lambda tilt: (tilt.date, tilt.prior_dose or 0.0)), []
    without = "not every tilt has a date" if dates else "no tilt has a date"
    if dates and len(dates) == len(tilts):
        without = "all tilts have the same date"
    if dosed:
        ordered = sorted(tilts, key=lambda tilt: tilt.prior_dose or 0.0)
        return ordered, [f"{without}: in the order of the doses before them"] if series.form == "mdoc" else []
    note = f"{without} and no dose before it: the order of acquisition is taken to be the file's"
    angles = [tilt.angle for tilt in tilts if tilt.angle is not None]
    rising = all(a <= b for a, b in pairwise(angles)) or all(a >= b for a, b in pairwise(angles))
    if len(angles) > 2 and rising:
        note += ", which is sorted by angle; accumulated doses are wrong if it was taken otherwise"
    return tilts, [note] if len(tilts) > 1 else []


def doses(
    tilts: Sequence[DescribedTilt], form: str
) -> tuple[list[float | None], list[float | None], list[str]]:
    """Exposures and doses before them that can be trusted, None where there are none; and notes.

    Parameters
    ----------
    tilts : sequence of DescribedTilt
        In the order of acquisition; those that take no part have exposed the specimen, too.
    form : str
        Of the origin: Warp and RELION never state the exposure itself.
    """
    notes: list[str] = []
    exposures = [tilt.exposure if tilt.exposure and tilt.exposure > 0.0 else None for tilt in tilts]
    lacking = exposures.count(None)
    whole = not lacking
    priors, more = _priors([tilt.prior_dose for tilt in tilts], exposures)
    notes += more
    stated = form in ("mdoc", "stack")
    if lacking == len(tilts) and (stated or None in priors):
        notes.append("no dose is stated: the dose per frame of the settings counts")
    elif stated and not whole:
        notes.append(
            f"{lacking} of {len(tilts)} tilts state no dose: the dose per frame of the settings counts"
        )
    return exposures, priors, notes


def _priors(
    stated: list[float | None], exposures: list[float | None]
) -> tuple[list[float | None], list[str]]:
    """Dose before each tilt: as stated where that makes sense, otherwise summed up from the exposures."""
    summed: list[float | None] = [None] * len(stated)
    total = 0.0
    for i, dose in enumerate(exposures):
        summed[i] = total
        if dose is None:
            summed = [None] * len(stated)
            break
        total += dose
    known = [dose for dose in stated if dose is not None]
    if len(known) < len(stated) or (len(known) > 1 and max(known) <= 0.0):
        return summed, []
    fall = next((i for i in range(1, len(known)) if known[i] < known[i - 1] - 1e-3), None)
    if fall is not None:
        what = (
            f"the dose before each tilt falls from {known[fall - 1]:g} to {known[fall]:g} e/Å² in the order "
        )
        what += "of acquisition (a restart, or a clock that is wrong)"
        if None in summed:
            return [None] * len(known), [f"{what}: it is not used"]
        return summed, [f"{what}: it is summed up from the exposures instead"]
    excess = [dose - known[0] - sum_ for dose, sum_ in zip(known, summed, strict=True) if sum_ is not None]
    if excess and max(map(abs, excess)) > _DOSE_SLACK * total:
        worst = max(excess, key=abs)
        word = "more" if worst > 0 else "less"
        return list(known), [
            f"the doses before the tilts are up to {abs(worst):.3g} e/Å² {word} than the exposures add up "
            "to; they are used as they are stated"
        ]
    return list(known), []


def repeats(
    tilts: Sequence[DescribedTilt], there: Sequence[bool], names: Sequence[str]
) -> tuple[dict[int, str], list[str]]:
    """Tilts that were taken again and that take no part any more: index → reason; and notes.

    A *restart* goes back to angles that it had: between two exposures of one angle there are only
    exposures that were taken twice, too. Then the earlier one is left out, unless the later one has no
    image. Where other tilts lie between them (the untilted specimen at the beginning and at the end of a
    series, say), or where the whole series was taken twice, both were meant, and both are kept.

    Parameters
    ----------
    tilts : sequence of DescribedTilt
        In the order of acquisition.
    there : sequence of bool
        Whether it has an image.
    names : sequence of str
        What each is called.
    """
    groups = _groups(tilts)
    group_of = {i: group for group in groups for i in group}
    single = {i for i, group in group_of.items() if len(group) == 1}
    twice_as_a_whole = len(groups) > 2 and not single
    out: dict[int, str] = {}
    kept: list[float] = []
    for group in groups:
        images = [i for i in group if there[i]]
        for i, j in pairwise(images):
            alike = {k for k, tilt in enumerate(tilts) if tilt.section == tilts[i].section}
            overwritten = j in alike and alike <= set(group)  # not where every section is called 0
            restart = not twice_as_a_whole and single.isdisjoint(range(i + 1, j))
            if overwritten or restart:
                out[i] = f"{AGAIN}, as {names[j]}"
            else:
                kept.append(tilts[i].angle or 0.0)
    notes = []
    if twice_as_a_whole and kept:
        notes.append("every angle was taken more than once: all are kept")
    elif kept:
        angles = ", ".join(f"{angle:.1f}°" for angle in sorted(set(kept))[:4])
        notes.append(f"taken more than once, with other tilts between, and all kept: {angles}")
    if out:
        count = "one tilt was" if len(out) == 1 else f"{len(out)} tilts were"
        notes.append(f"restarted: {count} taken again, the later exposure counts")
    return out, notes


def _groups(tilts: Sequence[DescribedTilt]) -> list[list[int]]:
    """Indices of tilts of one angle, each group in the order of acquisition."""
    known = [(tilt.angle, i) for i, tilt in enumerate(tilts) if tilt.angle is not None]
    groups: list[list[int]] = []
    first = float("-inf")
    for angle, i in sorted(known):
        if angle - first > REPEATED:
            groups.append([])
            first = angle
        groups[-1].append(i)
    return [sorted(group) for group in groups]
