"""What a template's search leaves in ``picks/<name>``, beside the picks: all its peaks, and how it was made.

peaks/<item>.npz   all peaks of the item's search down to a low score, and its fingerprint
template.json      the template, the settings of the last search, the threshold
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from weft.errors import CorruptError, FormatError
from weft.formats.atomic import atomic_write_bytes, atomic_write_text
from weft.picking.template_peaks import TemplatePeaks
from weft.session.pick_files import FOLDER

__all__ = [
    "note_path",
    "peaks_path",
    "read_note",
    "read_peaks",
    "searched_items",
    "template_pickers",
    "write_note",
    "write_peaks",
]

_PEAKS = "peaks"
_NOTE = "template.json"
_ARRAYS = ("xy", "score", "cc", "euler")


def note_path(root: Path, name: str) -> Path:
    """Where the note of a search is."""
    return root / FOLDER / name / _NOTE


def peaks_path(root: Path, name: str, item: str) -> Path:
    """Where the peaks of an item are."""
    return root / FOLDER / name / _PEAKS / f"{item}.npz"


def template_pickers(root: Path) -> list[str]:
    """Names under which templates have been searched for in a session."""
    return sorted(path.parent.name for path in (root / FOLDER).glob(f"*/{_NOTE}"))


def searched_items(root: Path, name: str) -> list[str]:
    """Items whose peaks are kept."""
    return sorted(path.stem for path in (root / FOLDER / name / _PEAKS).glob("*.npz"))


def read_note(root: Path, name: str) -> dict[str, Any] | None:
    """How was searched: with `settings` and `threshold`; None where no search of that name was made.

    Raises
    ------
    FormatError
    """
    path = note_path(root, name)
    try:
        note: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return note | {"settings": dict(note["settings"]), "threshold": dict(note["threshold"])}
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise FormatError(path, f"it does not say how was searched ({error}); delete it") from None


def write_note(root: Path, name: str, note: Mapping[str, Any]) -> None:
    """Inverse of :func:`read_note`."""
    path = note_path(root, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_text(path, json.dumps(note, indent=1, ensure_ascii=False) + "\n")


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


def write_peaks(path: Path, peaks: TemplatePeaks, key: str, facts: Mapping[str, Any]) -> None:
    """Inverse of :func:`read_peaks`; further facts are for people."""
    kept = {
        "fingerprint": key,
        "diameter": peaks.diameter,
        "trials": peaks.trials,
        "extent": peaks.extent,
        **facts,
    }
    buffer = io.BytesIO()
    columns: dict[str, Any] = {column: getattr(peaks, column).astype(np.float32) for column in _ARRAYS}
    np.savez_compressed(buffer, facts=np.array(json.dumps(kept)), **columns)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(path, buffer.getvalue())
