"""Template picking of a session's micrographs: averages, CTFs and masks in, picks out.

Picks that pass the threshold go into ``picks/<name>/<item>.star``, with orientations; what else is kept
there is in :mod:`weft.session.template_files`. A search whose fingerprint (settings, template, average, CTF,
mask) has not changed is not repeated, and another threshold never repeats one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from pydantic import ValidationError

from weft.errors import CorruptError, ItemError, RequestError, SettingsError, WeftError
from weft.formats import mrc
from weft.picking.template_matching import TemplateMatchingSettings, match_template
from weft.picking.template_peaks import TemplatePeaks, TemplateThresholdSettings, find_peaks
from weft.session.discovery import item_name
from weft.session.fields import explain
from weft.session.items import Item, Movie
from weft.session.pick_files import FOLDER, MANUAL, pick_path, write_picks
from weft.session.picking import DEFAULT
from weft.session.records import FileIdentity, fingerprint
from weft.session.run_report import Progress, RunReport
from weft.session.session import Session
from weft.session.template_files import (
    note_path,
    peaks_path,
    read_note,
    read_peaks,
    searched_items,
    template_pickers,
    write_note,
    write_peaks,
)
from weft.settings import Settings, setting

__all__ = [
    "PickTemplate",
    "TemplatePickingSettings",
    "TemplateReport",
    "pick_with_template",
    "rethreshold",
]

#: Raised when the same settings give another result than before.
_VERSION = 1

_Model = TypeVar("_Model", bound=Settings)


class TemplatePickingSettings(TemplateMatchingSettings):
    """How a session's micrographs are searched for a template."""

    masks: bool = setting(
        True, "Leave out what mask/ marks as an artefact, where the pick step has made one."
    )


@dataclass(frozen=True)
class PickTemplate:
    """A template that has been read.

    Attributes
    ----------
    path : Path
    volume : (n, n, n) float32 tensor
    voxel_size : float
        Å.
    """

    path: Path
    volume: torch.Tensor
    voxel_size: float


@dataclass(kw_only=True)
class TemplateReport(RunReport):
    """What came of the items: `done` are those that were searched, `current` those that had been before.

    Attributes
    ----------
    name : str
        The picker's: the folder in ``picks/``.
    settings, threshold
        That were used.
    counts : dict
        Item → number of picks.
    waiting : list of str
        Items that have no average yet.
    """

    name: str
    settings: TemplatePickingSettings
    threshold: TemplateThresholdSettings
    counts: dict[str, int] = field(default_factory=dict)
    waiting: list[str] = field(default_factory=list)


def pick_with_template(
    session: Session,
    template: PickTemplate,
    settings: Mapping[str, Any] | None = None,
    threshold: Mapping[str, Any] | None = None,
    *,
    name: str | None = None,
    only: str | None = None,
    device: str = "cpu",
    progress: Callable[[Progress], None] | None = None,
) -> TemplateReport:
    """Search the micrographs of a session for a template, and write picks.

    Parameters
    ----------
    session : Session
    template : PickTemplate
    settings, threshold : dict, optional
        Fields of :class:`TemplatePickingSettings` and :class:`TemplateThresholdSettings`; those that are not
        given stay as the picker's last search had them.
    name : str, optional
        Of the picker; by default the stem of the template's file.
    only : str, optional
        Items by a shell pattern on their names; another threshold is then theirs alone.
    device : str
    progress : callable, optional

    Raises
    ------
    RequestError, SettingsError
        Nothing could be started. Failures of items are in the report.
    """
    begin = time.monotonic()
    name = _picker(session.root, name or item_name(template.path))
    note = read_note(session.root, name) or {}
    chosen = _updated(TemplatePickingSettings, note.get("settings"), settings)
    limits = _updated(TemplateThresholdSettings, note.get("threshold"), threshold)
    before = _updated(TemplateThresholdSettings, note.get("threshold"), None) if note else limits
    report = TemplateReport(name=name, settings=chosen, threshold=limits)
    items = _chosen(session, only, report)
    identity = FileIdentity.of(template.path).content
    # the new threshold is noted when all picks follow it: an interrupted call can be repeated
    write_note(session.root, name, _note(template, chosen, before))
    for done, item in enumerate(items):
        started, reason = time.monotonic(), ""
        try:
            _pick_item(session, item, template, identity, device, report, again=limits != before)
        except KeyboardInterrupt:
            report.interrupted = True
            break
        except (WeftError, OSError, torch.OutOfMemoryError) as error:
            reason = report.failed[item.name] = str(error)
        if progress is not None:
            seconds = time.monotonic() - started
            progress(Progress(len(items), done + 1, len(report.failed), item.name, reason, seconds))
    if only is None and not report.interrupted:
        write_note(session.root, name, _note(template, chosen, limits))
    report.seconds = time.monotonic() - begin
    return report


def rethreshold(
    session: Session, name: str, threshold: Mapping[str, Any] | None = None, only: str | None = None
) -> TemplateReport:
    """Write a template's picks anew from the peaks that were kept.

    Parameters
    ----------
    session : Session
    name : str
        The picker's: the stem of the template's file, unless it was given another.
    threshold : dict, optional
        Fields of :class:`TemplateThresholdSettings`; those that are not given stay as they were.
    only : str, optional
        Items by a shell pattern; without it, later searches with this template take the same threshold.

    Raises
    ------
    RequestError
        No search of that name has been made.
    """
    begin = time.monotonic()
    note = read_note(session.root, name)
    if note is None:
        there = ", ".join(template_pickers(session.root)) or "none"
        raise RequestError(
            f"{session.root} has no search called {name!r} (there are: {there}); `weft pick templates` makes "
            "one."
        )
    limits = _updated(TemplateThresholdSettings, note["threshold"], threshold)
    settings = _updated(TemplatePickingSettings, note["settings"], None)
    report = TemplateReport(name=name, settings=settings, threshold=limits)
    items = session.items
    for stem in searched_items(session.root, name):
        if only is not None and not fnmatchcase(stem, only):
            continue
        item = items.get(stem)
        try:
            if item is None or "pixel_size" not in item.metrics:
                raise ItemError(f"{stem} is no micrograph of the session any more")
            peaks = read_peaks(peaks_path(session.root, name, stem))[0]
            report.counts[stem] = _write(session.root, name, item, peaks, limits)
            report.current.append(stem)
        except (WeftError, OSError) as error:
            report.failed[stem] = str(error)
    if only is None:
        write_note(session.root, name, note | {"threshold": limits.model_dump(mode="json")})
    report.seconds = time.monotonic() - begin
    return report


def _picker(root: Path, name: str) -> str:
    """A name that is no other picker's."""
    if name in (DEFAULT, MANUAL):
        raise RequestError(f"{name!r} is another picker's name: rename the template, or give --name.")
    if item_name(Path(name + ".mrc")) != name:
        raise RequestError(f"{name!r} is no name for a folder: use letters, digits, - and _ in --name.")
    folder = root / FOLDER / name
    if not note_path(root, name).is_file() and any(folder.glob("*.star")):
        raise RequestError(f"{folder} holds picks that no template has made: give another --name.")
    return name


def _updated(
    model: type[_Model], before: Mapping[str, Any] | None, given: Mapping[str, Any] | None
) -> _Model:
    # fields that are gone since a note was written do not matter
    known = {key: value for key, value in (before or {}).items() if key in model.model_fields}
    try:
        return model(**(known | dict(given or {})))
    except ValidationError as error:
        raise SettingsError(explain(error, model, "template picking")) from None


def _note(
    template: PickTemplate, settings: TemplatePickingSettings, threshold: TemplateThresholdSettings
) -> dict[str, Any]:
    return {
        "template": str(template.path.absolute()),
        "voxel_size": template.voxel_size,
        "settings": settings.model_dump(mode="json"),
        "threshold": threshold.model_dump(mode="json"),
    }


def _chosen(session: Session, only: str | None, report: TemplateReport) -> list[Movie]:
    """Micrographs to be searched; the others are noted in the report."""
    excluded = session.selection.exclude
    found = []
    for name, item in session.items.items():
        if not isinstance(item, Movie) or item.kind != "movie" or (only and not fnmatchcase(name, only)):
            continue
        if name in excluded:
            report.excluded.append(name)
        elif "average" not in item.paths:
            report.waiting.append(name)
        else:
            found.append(item)
    if not (found or report.excluded or report.waiting):
        what = f"no micrograph matches {only}" if only else "it has no micrographs"
        raise RequestError(f"{session.root}: {what}.")
    return found


def _pick_item(
    session: Session,
    item: Movie,
    template: PickTemplate,
    identity: str,
    device: str,
    report: TemplateReport,
    *,
    again: bool,
) -> None:
    """Bring one micrograph into accord with the settings."""
    settings, name = report.settings, report.name
    average = item.paths["average"]
    mask = session.root / "mask" / f"{item.name}.mrc"
    mask_used = settings.masks and mask.is_file()
    model = None if settings.ctf == "none" else item.ctf
    pixel_size = float(item.metrics["pixel_size"])
    optics = session.settings.input.optics().at_pixel_size(pixel_size)
    key = fingerprint(
        {
            "version": _VERSION,
            "settings": settings.model_dump(mode="json"),
            "template": [identity, template.voxel_size],
            "average": FileIdentity.of(average).content,
            "ctf": None if model is None else model.to_dict(),
            "mask": FileIdentity.of(mask).content if mask_used else None,
            "optics": [optics.pixel_size, optics.voltage, optics.cs, optics.amplitude],
        }
    )
    kept = peaks_path(session.root, name, item.name)
    peaks = _kept(kept, key)
    if peaks is not None:
        report.current.append(item.name)
        if again or not (session.root / pick_path(name, item.name)).is_file():
            report.counts[item.name] = _write(session.root, name, item, peaks, report.threshold)
        return
    image = torch.from_numpy(np.asarray(mrc.read(average)[0], dtype=np.float32)).to(device)
    excluded = torch.from_numpy(np.asarray(mrc.read(mask)[0]) > 0) if mask_used else None
    volume = template.volume
    scores = match_template(image, optics, volume, template.voxel_size, model, settings, excluded=excluded)
    peaks = find_peaks(scores)
    # the micrograph's own extent, not that of the pixels that were worked with
    ny, nx = image.shape
    peaks = replace(peaks, extent=((nx - 1) * pixel_size, (ny - 1) * pixel_size))
    facts = {
        "cc_mean": scores.mean,
        "cc_sigma": scores.sigma,
        "orientations": len(scores.orientations),
        "tiles": scores.tiles,
        "pixel_size": scores.pixel_size,
    }
    # peaks first: picks without them would never be brought into accord
    write_peaks(kept, peaks, key, facts)
    report.counts[item.name] = _write(session.root, name, item, read_peaks(kept)[0], report.threshold)
    report.done.append(item.name)


def _kept(path: Path, key: str) -> TemplatePeaks | None:
    """Peaks of this very search; a file that is broken counts as none."""
    try:
        peaks, written = read_peaks(path)
    except (FileNotFoundError, CorruptError):
        return None
    return peaks if written == key else None


def _write(
    root: Path, name: str, item: Item, peaks: TemplatePeaks, threshold: TemplateThresholdSettings
) -> int:
    picks = peaks.picks(threshold)
    write_picks(root / pick_path(name, item.name), picks, float(item.metrics["pixel_size"]))
    return len(picks)
