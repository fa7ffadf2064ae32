"""Template picking of a session's micrographs: averages, CTFs and masks in, picks out.

    picks/<name>/<item>.star        the picks that pass the threshold, with orientations
    picks/<name>/peaks/<item>.npz   all peaks of the item's search down to a low score, and its fingerprint
    picks/<name>/template.json      the template, the settings of the last search, the threshold

A search whose fingerprint (settings, template, average, CTF, mask) has not changed is not repeated, and
another threshold never repeats one.
"""

from __future__ import annotations

import io
import json
import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from pydantic import ValidationError

from weft.errors import CorruptError, FormatError, ItemError, RequestError, SettingsError, WeftError
from weft.formats import mrc
from weft.formats.atomic import atomic_write_bytes, atomic_write_text
from weft.picking.template_matching import TemplateMatchingSettings, match_template
from weft.picking.template_peaks import TemplatePeaks, TemplateThresholdSettings, find_peaks
from weft.session.discovery import item_name
from weft.session.fields import explain
from weft.session.items import Item, Movie
from weft.session.pick_files import FOLDER, MANUAL, pick_path, write_picks
from weft.session.picking import DEFAULT
from weft.session.records import FileIdentity, fingerprint
from weft.session.running import Progress
from weft.session.session import Session
from weft.settings import Settings, setting

__all__ = [
    "PickTemplate",
    "TemplatePickingSettings",
    "TemplateReport",
    "pick_with_template",
    "read_peaks",
    "rethreshold",
    "template_pickers",
]

#: Raised when the same settings give another result than before.
_VERSION = 1
_PEAKS = "peaks"
_NOTE = "template.json"
_ARRAYS = ("xy", "score", "cc", "euler")

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


@dataclass
class TemplateReport:
    """What came of the items.

    Attributes
    ----------
    name : str
        The picker's: the folder in ``picks/``.
    settings, threshold
        That were used.
    counts : dict
        Item → number of picks.
    searched, current, excluded, waiting : list of str
        Items that were searched; whose search was not repeated; that are excluded by hand; that have no
        average yet.
    failed : dict
        Item → reason.
    interrupted : bool
    seconds : float
    """

    name: str
    settings: TemplatePickingSettings
    threshold: TemplateThresholdSettings
    counts: dict[str, int] = field(default_factory=dict)
    searched: list[str] = field(default_factory=list)
    current: list[str] = field(default_factory=list)
    excluded: list[str] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    interrupted: bool = False
    seconds: float = 0.0

    @property
    def exit_code(self) -> int:
        """0 done, 1 some items failed, 130 stopped by the user."""
        return 130 if self.interrupted else 1 if self.failed else 0


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
    note = _read_note(session.root, name) or {}
    chosen = _updated(TemplatePickingSettings, note.get("settings"), settings)
    limits = _updated(TemplateThresholdSettings, note.get("threshold"), threshold)
    before = _updated(TemplateThresholdSettings, note.get("threshold"), None) if note else limits
    report = TemplateReport(name, chosen, limits)
    items = _chosen(session, only, report)
    identity = FileIdentity.of(template.path).content
    # the new threshold is noted when all picks follow it: an interrupted call can be repeated
    _write_note(session.root, name, template, chosen, before)
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
        _write_note(session.root, name, template, chosen, limits)
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
    note = _read_note(session.root, name)
    if note is None:
        there = ", ".join(template_pickers(session.root)) or "none"
        raise RequestError(
            f"{session.root} has no search called {name!r} (there are: {there}); `weft pick templates` makes "
            "one."
        )
    limits = _updated(TemplateThresholdSettings, note["threshold"], threshold)
    report = TemplateReport(name, _updated(TemplatePickingSettings, note["settings"], None), limits)
    items = session.items
    for path in sorted((session.root / FOLDER / name / _PEAKS).glob("*.npz")):
        if only is not None and not fnmatchcase(path.stem, only):
            continue
        item = items.get(path.stem)
        try:
            if item is None or "pixel_size" not in item.metrics:
                raise ItemError(f"{path.stem} is no micrograph of the session any more")
            report.counts[path.stem] = _write(session.root, name, item, read_peaks(path)[0], limits)
            report.current.append(path.stem)
        except (WeftError, OSError) as error:
            report.failed[path.stem] = str(error)
    if only is None:
        text = json.dumps(note | {"threshold": limits.model_dump(mode="json")}, indent=1)
        atomic_write_text(session.root / FOLDER / name / _NOTE, text + "\n")
    report.seconds = time.monotonic() - begin
    return report


def template_pickers(root: Path) -> list[str]:
    """Names under which templates have been searched for in a session."""
    return sorted(path.parent.name for path in (root / FOLDER).glob(f"*/{_NOTE}"))


def read_peaks(path: Path) -> tuple[TemplatePeaks, str]:
    """The peaks of one item's search, and its fingerprint.

    Raises
    ------
    FileNotFoundError
    CorruptError
    """
    try:
        with np.load(path, allow_pickle=False) as saved:
            arrays = {key: np.asarray(saved[key], dtype=np.float64) for key in _ARRAYS}
            facts = json.loads(str(saved["facts"]))
        peaks = TemplatePeaks(
            **arrays,
            diameter=float(facts["diameter"]),
            trials=float(facts["trials"]),
            extent=(float(facts["extent"][0]), float(facts["extent"][1])),
        )
        key = str(facts["fingerprint"])
    except FileNotFoundError:
        raise
    except (OSError, EOFError, ValueError, KeyError, TypeError, IndexError, zipfile.BadZipFile) as error:
        raise CorruptError(
            path, f"it holds no peaks ({error}); `weft pick templates` finds them anew"
        ) from None
    if not arrays["xy"].shape == (len(peaks), 2) or not arrays["euler"].shape == (len(peaks), 3):
        raise CorruptError(path, "its arrays are of unequal length; `weft pick templates` makes them anew")
    return peaks, key


def _picker(root: Path, name: str) -> str:
    """A name that is no other picker's."""
    if name in (DEFAULT, MANUAL):
        raise RequestError(f"{name!r} is another picker's name: rename the template, or give --name.")
    if item_name(Path(name + ".mrc")) != name:
        raise RequestError(f"{name!r} is no name for a folder: use letters, digits, - and _ in --name.")
    folder = root / FOLDER / name
    if not (folder / _NOTE).is_file() and any(folder.glob("*.star")):
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


def _read_note(root: Path, name: str) -> dict[str, Any] | None:
    path = root / FOLDER / name / _NOTE
    try:
        note: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return note | {"settings": dict(note["settings"]), "threshold": dict(note["threshold"])}
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise FormatError(path, f"it does not say how was searched ({error}); delete it") from None


def _write_note(
    root: Path,
    name: str,
    template: PickTemplate,
    settings: TemplatePickingSettings,
    threshold: TemplateThresholdSettings,
) -> None:
    path = root / FOLDER / name / _NOTE
    path.parent.mkdir(parents=True, exist_ok=True)
    note = {
        "template": str(template.path.absolute()),
        "voxel_size": template.voxel_size,
        "settings": settings.model_dump(mode="json"),
        "threshold": threshold.model_dump(mode="json"),
    }
    atomic_write_text(path, json.dumps(note, indent=1, ensure_ascii=False) + "\n")


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
    kept = session.root / FOLDER / name / _PEAKS / f"{item.name}.npz"
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
        "fingerprint": key,
        "diameter": peaks.diameter,
        "trials": peaks.trials,
        "extent": peaks.extent,
        "cc_mean": scores.mean,
        "cc_sigma": scores.sigma,
        "orientations": len(scores.orientations),
        "tiles": scores.tiles,
        "pixel_size": scores.pixel_size,
    }
    buffer = io.BytesIO()
    columns: dict[str, Any] = {column: getattr(peaks, column).astype(np.float32) for column in _ARRAYS}
    np.savez_compressed(buffer, facts=np.array(json.dumps(facts)), **columns)
    kept.parent.mkdir(parents=True, exist_ok=True)
    # peaks first: picks without them would never be brought into accord
    atomic_write_bytes(kept, buffer.getvalue())
    report.counts[item.name] = _write(session.root, name, item, read_peaks(kept)[0], report.threshold)
    report.searched.append(item.name)


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
