"""EER movies of Falcon detectors: grouped while decoding, on the sensor's grid or a finer one.

Rows are not flipped (docs/conventions.md). An EER file holds hundreds of raw frames of single electrons; what
the rest of Weft calls a frame is the sum of a group of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from weft.errors import CorruptError, FormatError, SettingsError, TruncatedError
from weft.formats.eer_codec import EerBits, StreamError, add_frame, decode_buffer
from weft.formats.eer_write import split_counts, write_eer
from weft.formats.open_file import OpenFile
from weft.formats.tiff_layout import (
    EER_HORIZONTAL_BITS,
    EER_SKIP_BITS,
    EER_VERTICAL_BITS,
    EER_XML,
    TiffPage,
    read_layout,
)

__all__ = ["COMPRESSIONS", "EerMovie", "Grouping", "split_counts", "write_eer"]

COMPRESSIONS = (65000, 65001, 65002)


@dataclass(frozen=True)
class Grouping:
    """How raw frames are added up; the first that is set counts, the number of groups otherwise.

    Attributes
    ----------
    groups : int
        So many groups, as equal as can be: all raw frames are used.
    frames : int, optional
        Raw frames in a group; what is left over at the end is not used.
    dose : float, optional
        e/Å² in a group, rounded to whole raw frames.
    """

    groups: int = 40
    frames: int | None = None
    dose: float | None = None

    def edges(self, n: int, dose_per_raw_frame: float | None) -> NDArray[np.int64]:
        """Boundaries of the groups: group i holds the raw frames edges[i] to edges[i+1] - 1."""
        size = self.frames
        if size is None and self.dose is not None:
            if not dose_per_raw_frame:
                raise SettingsError(
                    "EER frames cannot be grouped by dose: the file does not state its dose and pixel size; "
                    "group by frames, or by the number of groups"
                )
            size = max(1, round(self.dose / dose_per_raw_frame))
        if size is None:
            groups = max(1, min(self.groups, n))
            return np.arange(groups + 1, dtype=np.int64) * n // groups
        size = min(size, n)
        return np.arange(n // size + 1, dtype=np.int64) * size


class EerMovie(OpenFile):
    """Groups of raw EER frames, decoded one by one; reading is thread-safe.

    Parameters
    ----------
    path : path-like
    upsampling : {1, 2, 4}
        1: the sensor's grid.
    grouping : Grouping
    expected_frames : int, optional
        Raw frames that must be there; without it, what the acquisition's metadata state.
    raw_dose : float, optional
        e/Å² of one raw frame, where the user knows it better than the file.

    Attributes
    ----------
    raw_frames : int
    shape : (ny, nx)
    dtype : numpy.dtype
        uint8, or uint16 if a group has more than 255 raw frames.
    pixel_size : float or None
        Å of the returned pixels.
    dose_per_frame : float or None
        e/Å² of a group, on average.
    metadata : dict of str to str
        The acquisition's, as written by the detector.
    note : str
    """

    def __init__(
        self,
        path: str | Path,
        *,
        upsampling: int = 1,
        grouping: Grouping | None = None,
        expected_frames: int | None = None,
        raw_dose: float | None = None,
    ) -> None:
        path = self.path = Path(path)
        if upsampling not in (1, 2, 4):
            raise SettingsError(f"EER upsampling is 1, 2 or 4, not {upsampling}")
        self._level = upsampling.bit_length() - 1
        layout = read_layout(self.path, allow_tail=expected_frames is not None)
        self._pages = [page for page in layout.pages if page.compression in COMPRESSIONS]
        if not self._pages:
            raise FormatError(path, "it holds no EER frames")
        first = self._pages[0]
        for index, page in enumerate(self._pages):
            if page.shape != first.shape:
                raise FormatError(
                    path, f"its size is {page.shape}, that of frame 0 {first.shape}", frame=index
                )
        self._bits = [_bits_of(page) for page in self._pages]
        for bits in set(self._bits):
            # imagecodecs places electrons wrongly on finer grids for any other widths
            fine = (bits.horizontal, bits.vertical) == (2, 2)
            if not bits.decodable or (self._level and not fine):
                raise FormatError(
                    path,
                    f"codes of {bits.skip} + {bits.horizontal} + {bits.vertical} bits are not supported with "
                    f"upsampling {upsampling}",
                )
        if self._level and first.shape[1] % 4:
            raise FormatError(path, f"a width of {first.shape[1]} cannot be upsampled; use upsampling 1")
        self.metadata = _metadata(layout.pages)
        self.raw_frames = len(self._pages)
        self._check_count(expected_frames)
        sensor_pixel = _specimen_pixel(self.metadata)
        total_dose = _total_dose(self.metadata, sensor_pixel)
        if raw_dose is None and total_dose is not None:
            raw_dose = total_dose / self.raw_frames
        self._edges = (grouping or Grouping()).edges(self.raw_frames, raw_dose)
        self.sensor_shape = first.shape
        self.shape = (first.shape[0] << self._level, first.shape[1] << self._level)
        sizes = np.diff(self._edges)
        self.dtype = np.dtype(np.uint8 if int(sizes.max()) < 256 else np.uint16)
        self.pixel_size = None if sensor_pixel is None else sensor_pixel / upsampling
        self.dose_per_frame = None if raw_dose is None else raw_dose * float(sizes.mean())
        self.note = self._describe(sizes)
        super().__init__(path)

    def __len__(self) -> int:
        return len(self._edges) - 1

    def read(self, index: int) -> NDArray[Any]:
        """Group ``index`` (ny, nx): counted electrons."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        first, last = int(self._edges[index]), int(self._edges[index + 1])
        buffer = decode_buffer(self.sensor_shape, self._level, int(np.diff(self._edges).max()))
        for raw in range(first, last):
            self._add(raw, buffer)
        return buffer[: self.shape[0]]

    def _add(self, raw: int, buffer: NDArray[Any]) -> None:
        page, bits = self._pages[raw], self._bits[raw]
        # the strips of a frame are one stream
        parts = [self.read_bytes(o, n, raw) for o, n in zip(page.offsets, page.counts)]
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        try:
            add_frame(data, buffer, self.sensor_shape, bits, self._level)
        except StreamError as error:
            kind = TruncatedError if error.short else CorruptError
            raise kind(self.path, f"{error}; copy the file again", frame=raw) from error

    def _check_count(self, expected: int | None) -> None:
        stated = _number(self.metadata, "numberOfFrames")
        if expected is None and stated is not None and self.raw_frames < stated:
            raise TruncatedError(
                self.path,
                f"it holds {self.raw_frames} raw frames where its own metadata say {stated:g}; copy it "
                f"again, or state expected_frames = {self.raw_frames} if that is all there is",
                frame=self.raw_frames,
            )

    def _describe(self, sizes: NDArray[np.int64]) -> str:
        low, high, used = int(sizes.min()), int(sizes.max()), int(sizes.sum())
        each = f"{low}" if low == high else f"{low} to {high}"
        text = f"{self.raw_frames} raw frames in {len(sizes)} groups of {each}"
        if left := self.raw_frames - used:
            text += f"; the last {left} ({100 * left / self.raw_frames:.1f} % of the electrons) fill no group"
        return text


def _bits_of(page: TiffPage) -> EerBits:
    if page.compression == 65000:
        return EerBits(skip=8, wasteful=True)
    if page.compression == 65001:
        return EerBits()

    def width(tag: int, default: int) -> int:
        return int(page.tags.get(tag, (default,))[0])

    return EerBits(width(EER_SKIP_BITS, 7), width(EER_HORIZONTAL_BITS, 2), width(EER_VERTICAL_BITS, 2))


def _metadata(pages: Iterable[TiffPage]) -> dict[str, str]:
    for page in pages:
        text = page.tags.get(EER_XML)
        if text is None:
            continue
        data = text if isinstance(text, bytes) else bytes(v & 255 for v in text)
        try:
            root = ElementTree.fromstring(data.rstrip(b"\0").decode("utf-8", "replace"))
        except ElementTree.ParseError:
            # the pictures do not depend on it
            return {}
        found: dict[str, str] = {}
        for item in root.iter("item"):
            if (name := item.get("name")) and item.text:
                found[name] = item.text
                found[f"{name}.unit"] = item.get("unit", "")
        return found
    return {}


def _number(metadata: dict[str, str], name: str) -> float | None:
    try:
        value = float(metadata[name])
    except (KeyError, ValueError):
        return None
    return value if math.isfinite(value) and value > 0 else None


def _specimen_pixel(metadata: dict[str, str]) -> float | None:
    """Å on the specimen; some writers put the pitch of the sensor (µm) under the same name."""
    for name in ("sensorPixelSize.width", "sensorPixelSize.height", "sensorPixelSize"):
        size = _number(metadata, name)
        if size is not None:
            angstrom = size * {"m": 1e10, "nm": 10.0, "Å": 1.0, "A": 1.0}.get(metadata[f"{name}.unit"], 1e10)
            return angstrom if 0.01 < angstrom < 200.0 else None
    return None


def _total_dose(metadata: dict[str, str], pixel: float | None) -> float | None:
    """e/Å² of the exposure."""
    dose = _number(metadata, "totalDose")
    if dose is None:
        rate, time = _number(metadata, "meanDoseRate"), _number(metadata, "exposureTime")
        dose = rate * time if rate is not None and time is not None else None
        unit = metadata.get("meanDoseRate.unit", "")
    else:
        unit = metadata["totalDose.unit"]
    if dose is None:
        return None
    if "pixel" in unit.lower() or not unit:
        return dose / pixel**2 if pixel else None
    if "m^2" in unit or "m²" in unit:
        return dose * 1e-20
    return dose if "Å" in unit or "A^2" in unit else None
