"""A session's data as image sets of an EMPIAR deposition.

What the fields and codes mean: https://empiar.org/empiar_deposition.schema.json, `imagesets`.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weft.session.records import Record

__all__ = ["Images", "image_sets", "images_of"]

_FORMATS = {"mrc": "('T1', '')", "tiff": "('T3', '')", "eer": "('T9', '')"}
_TYPES = {
    "uint8": "('T1', '')",
    "int8": "('T2', '')",
    "uint16": "('T3', '')",
    "int16": "('T4', '')",
    "uint32": "('T5', '')",
    "int32": "('T6', '')",
    "float32": "('T7', '')",
}
_SINGLE, _MULTI = "('T1', '')", "('T2', '')"
_LONGEST = 200  # characters of a name or a directory


def _code(known: dict[str, str], name: str) -> str:
    words = "".join(c if c.isalnum() and c.isascii() else " " for c in name).upper().split()
    return known.get(name, f"('OT', '{' '.join(words) or 'UNKNOWN'}')")


@dataclass(frozen=True)
class Images:
    """What an image set needs to know of one movie.

    Attributes
    ----------
    folder : str
        That it lies in.
    format, type : str
        As `weft.movies.source.MovieInfo` names them.
    shape : (ny, nx)
    frames : int
        In the file.
    pixel_size : float
        Å, of the file.
    skipped : (int, int)
        Frames that were not used, at the start and at the end.
    dose : float
        e/Å² of one frame as it was read.
    averages : tuple
        (ny, nx, type, pixel size) of the averages.
    """

    folder: str
    format: str
    type: str
    shape: tuple[int, int]
    frames: int
    pixel_size: float
    skipped: tuple[int, int]
    dose: float
    averages: tuple[int, int, str, float]


def images_of(record: Record) -> Images | None:
    """What a record knows about its movie and its average; None where the motion step is not done."""
    step = record.steps.get("motion")
    if step is None or step.status != "done":
        return None
    used, facts, metrics = step.settings["input"], step.results["movie"], step.results["metrics"]
    grid = int(used.get("eer_upsampling", 1)) if facts["format"] == "eer" else 1
    ny, nx = (int(n) for n in facts["shape"])
    bin_factor = float(metrics["pixel_size"]) / float(used["pixel_size"])
    small = (
        (ny, nx) if bin_factor == 1.0 else (round(ny / bin_factor / 2) * 2, round(nx / bin_factor / 2) * 2)
    )
    kind = "float16" if step.settings.get("average", {}).get("float16") else "float32"
    return Images(
        folder=str(Path(record.input.path).parent),
        format=str(facts["format"]),
        # electrons are counted into bytes, and tools show the files as such
        type="uint8" if facts["format"] == "eer" else str(facts.get("type", "")),
        shape=(ny // grid, nx // grid),
        frames=int(facts["stored_frames"]),
        pixel_size=round(float(used["pixel_size"]) * grid, 5),
        skipped=(int(used.get("skip_first", 0)), int(used.get("skip_last", 0))),
        dose=float(used["dose_per_frame"]),
        averages=(*small, kind, round(float(metrics["pixel_size"]), 5)),
    )


def image_sets(found: Iterable[Images], session: str) -> list[dict[str, Any]]:
    """Image sets: one of movies for every format, size and sampling, and one of averages.

    Parameters
    ----------
    found : iterable of Images
        One for each item.
    session : str
        Its name.
    """
    groups: dict[tuple[Any, ...], list[Images]] = {}
    averages: Counter[tuple[int, int, str, float]] = Counter()
    for images in found:
        key = (images.format, images.type, images.shape, images.pixel_size, images.skipped)
        groups.setdefault(key, []).append(images)
        averages[images.averages] += 1
    out = [_movies(members, session) for members in groups.values()]
    for (ny, nx, kind, pixel_size), count in averages.items():
        out.append(
            _image_set(
                f"Motion-corrected, dose-weighted micrographs of {session}",
                "data/average",
                _SINGLE,
                ("mrc", kind),
                (count, 1, None),
                pixel_size,
                (ny, nx),
                "Aligned averages, made with Weft.",
            )
        )
    return out


def _movies(members: list[Images], session: str) -> dict[str, Any]:
    first = members[0]
    # grid squares have a folder each; the deposition takes what holds them all
    folder = Path(os.path.commonpath([images.folder for images in members])).name or "movies"
    frames = Counter(images.frames for images in members).most_common()
    usual = frames[0][0]
    details = [f"Raw movies as recorded; {first.dose:g} e/Å² for each frame as it was read."]
    if len(frames) > 1:
        others = ", ".join(f"{count} with {number}" for number, count in frames[1:])
        details.append(f"Movies with another number of frames: {others}.")
    several = usual > 1
    return _image_set(
        f"{'Unaligned movies' if several else 'Micrographs'} of {session}",
        f"data/{folder}",
        _MULTI if several else _SINGLE,
        (first.format, first.type),
        (len(members), usual, (first.skipped[0] + 1, usual - first.skipped[1])),
        first.pixel_size,
        first.shape,
        " ".join(details),
    )


def _image_set(
    name: str,
    directory: str,
    category: str,
    kind: tuple[str, str],
    numbers: tuple[int, int, tuple[int, int] | None],
    pixel_size: float,
    shape: tuple[int, int],
    details: str,
) -> dict[str, Any]:
    count, frames, used = numbers
    return {
        "name": name[:_LONGEST],
        "directory": directory[:_LONGEST],
        "category": category,
        "header_format": _code(_FORMATS, kind[0]),
        "data_format": _code(_FORMATS, kind[0]),
        "num_images_or_tilt_series": count,
        "frames_per_image": frames,
        "frame_range_min": used[0] if used else None,
        "frame_range_max": used[1] if used else None,
        "voxel_type": _code(_TYPES, kind[1]),
        "pixel_width": pixel_size,
        "pixel_height": pixel_size,
        "details": details,
        "image_width": shape[1],
        "image_height": shape[0],
    }
