"""mdoc files: what SerialEM, Tomography 5, PACE-tomo and others write beside a tilt series or a movie.

A file is lines of ``key = value`` in sections: the header, titles ``[T = ...]``, one ``[ZValue = n]`` for
every image, ``[FrameSet = n]`` in the mdoc of a movie, ``[MontSection = n]``. Nothing is interpreted on
reading: values stay text, keys may come in any order, sections may repeat, and what is not changed is written
back byte for byte. `Mdoc.tilts` gives the usual values their types.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from weft.errors import CorruptError, FormatError, TruncatedError
from weft.formats.atomic import atomic_write_bytes

__all__ = ["Mdoc", "MdocSection", "MdocTilt", "is_override", "parse_mdoc", "read_mdoc", "write_mdoc"]

_LINE = re.compile(r"[^\r\n]*(?:\r\n|\n|\r)|[^\r\n]+\Z")
_SECTION = re.compile(r"\s*\[\s*([^=\[\]]+?)\s*=\s*(.*?)\s*\]\s*\Z")
_PAIR = re.compile(r"\s*([^=\[\]#\s][^=\[\]]*?)\s*=\s*(.*?)\s*\Z")
_AXIS = re.compile(r"tilt\s*axis\s*angle\s*=\s*([-+]?[\d.]+(?:[eE][-+]?\d+)?)", re.IGNORECASE)
#: SerialEM's and Tomography 5's dates, and ISO's.
_DATES = (
    "%d-%b-%y %H:%M:%S",
    "%d-%b-%Y %H:%M:%S",
    "%d/%m/%y %H:%M:%S",
    "%Y-%m-%d %H:%M:%S",
    "%Y-%m-%dT%H:%M:%S",
)
#: Sections that stand for one exposure.
_EXPOSURES = ("ZValue", "FrameSet")


@dataclass
class MdocSection:
    """One section.

    Attributes
    ----------
    kind, value : str
        ``[kind = value]``; both empty for the header.
    header : str
        Its first line as it is in the file, with its end.
    lines : list of str
        The lines that follow, each with its end: pairs, comments, empty ones.
    first_line : int
        Number of its first line in the file, from 1.
    """

    kind: str
    value: str
    header: str = ""
    lines: list[str] = field(default_factory=list)
    first_line: int = 1

    def items(self) -> Iterator[tuple[str, str]]:
        """Keys and values in the file's order; a key that occurs twice comes twice."""
        for line in self.lines:
            match = _PAIR.match(line)
            if match:
                yield match.group(1), match.group(2)

    def get(self, key: str, default: str | None = None) -> str | None:
        """The value of a key as text; of its last occurrence."""
        found = default
        for name, value in self.items():
            if name == key:
                found = value
        return found

    def __contains__(self, key: str) -> bool:
        return any(name == key for name, _ in self.items())

    def set(self, key: str, value: str) -> None:
        """Change the value of a key (its last occurrence), or add it after the last pair."""
        if re.search(r"[\r\n]", key + value) or not _PAIR.match(f"{key} = {value}"):
            raise ValueError(f"an mdoc cannot hold {key!r} = {value!r}")
        last = -1
        for i, line in enumerate(self.lines):
            match = _PAIR.match(line)
            if match:
                if match.group(1) == key:
                    start, end = match.span(2)
                    self.lines[i] = line[:start] + value + line[end:]
                    return
                last = i
        ends = [*self.lines, self.header]
        newline = next((m.group(0) for m in (re.search(r"(\r\n|\n|\r)\Z", e) for e in ends) if m), "\n")
        if last >= 0 and not self.lines[last].endswith(("\n", "\r")):
            self.lines[last] += newline
        self.lines.insert(last + 1, f"{key} = {value}{newline}")


@dataclass(frozen=True)
class MdocTilt:
    """The usual values of one exposure; None where the file says nothing.

    Attributes
    ----------
    section : int
        Index in `Mdoc.sections`.
    z_value : int
        The number in its heading; not unique in files of restarted series.
    tilt_angle : float
        Degrees.
    exposure_dose, prior_dose : float
        e/Å², of this exposure and of all before it. SerialEM writes 0 where it was not calibrated.
    sub_frame_path, sub_frame_name : str
        Path of the movie on the camera's computer, and its last part.
    sub_frames : int
        Frames in the movie.
    defocus_um, target_defocus_um : float
        µm, with SerialEM's sign: negative is underfocus.
    rotation_angle : float
        Degrees; see `Mdoc.tilt_axis_from_rotation`.
    pixel_size : float
        Å.
    date : datetime
        When it was taken, without a time zone.
    """

    section: int
    z_value: int
    tilt_angle: float | None
    exposure_dose: float | None
    prior_dose: float | None
    sub_frame_path: str | None
    sub_frame_name: str | None
    sub_frames: int | None
    defocus_um: float | None
    target_defocus_um: float | None
    rotation_angle: float | None
    pixel_size: float | None
    date: datetime | None


@dataclass
class Mdoc:
    """An mdoc file.

    Attributes
    ----------
    path : Path
    sections : list of MdocSection
        The first is the header (kind ""), which may be empty.
    encoding : str
        As read, and for writing: ``utf-8``, ``utf-8-sig``, ``utf-16`` or ``latin-1``.
    """

    path: Path
    sections: list[MdocSection]
    encoding: str = "utf-8"

    @property
    def titles(self) -> list[str]:
        """Texts of ``[T = ...]`` and of ``T = ...``."""
        found = []
        for section in self.sections:
            if section.kind == "T":
                found.append(section.value)
            elif not section.kind:
                found.extend(value for key, value in section.items() if key == "T")
        return found

    def header(self, key: str) -> str | None:
        """A value of the whole file: from the header, or from between the titles."""
        for section in self.sections:
            if section.kind in ("", "T") and (value := section.get(key)) is not None:
                return value
        return None

    @property
    def pixel_size(self) -> float | None:
        """Å, from the header."""
        section = self.sections[0]
        return self._number(section, "PixelSpacing", self.header("PixelSpacing"))

    @property
    def tilts(self) -> list[MdocTilt]:
        """One for every ``[ZValue]``; for every ``[FrameSet]`` in the mdoc of a movie, which has none.

        Raises
        ------
        CorruptError
            A value that should be a number is none.
        """
        kinds = {section.kind for section in self.sections}
        kind = next((k for k in _EXPOSURES if k in kinds), None)
        return [self._tilt(i, s) for i, s in enumerate(self.sections) if s.kind == kind]

    @property
    def tilt_axis(self) -> float | None:
        """Tilt axis, degrees counter-clockwise from the image's y axis: as a title says it.

        None where no title does; see `tilt_axis_from_rotation`.

        Raises
        ------
        CorruptError
            Titles that contradict each other.
        """
        angles = [float(m.group(1)) for title in self.titles for m in _AXIS.finditer(title)]
        if angles and max(angles) - min(angles) > 0.01:
            raise CorruptError(self.path, f"its titles state {len(angles)} different tilt axes: {angles}")
        return angles[0] if angles else None

    @property
    def tilt_axis_from_rotation(self) -> float | None:
        """Tilt axis from SerialEM's ``RotationAngle``, which is the axis + 90°; in −180° to 180°.

        For mdocs of single movies, which have no title. Not for Tomography 5, whose value differs.

        Raises
        ------
        CorruptError
            Exposures that contradict each other by more than 1°.
        """
        angles = [tilt.rotation_angle for tilt in self.tilts if tilt.rotation_angle is not None]
        if not angles:
            return None
        if any(abs((a - angles[0] + 180.0) % 360.0 - 180.0) > 1.0 for a in angles):
            raise CorruptError(self.path, f"RotationAngle varies from {min(angles)} to {max(angles)}")
        return (angles[0] + 90.0) % 360.0 - 180.0

    def _tilt(self, index: int, section: MdocSection) -> MdocTilt:
        def number(key: str) -> float | None:
            return self._number(section, key, section.get(key))

        try:
            z_value = int(section.value)
        except ValueError:
            raise CorruptError(
                self.path, f"line {section.first_line}: [{section.kind} = {section.value}] has no number"
            ) from None
        path = section.get("SubFramePath") or None
        frames = number("NumSubFrames")
        return MdocTilt(
            section=index,
            z_value=z_value,
            tilt_angle=number("TiltAngle"),
            exposure_dose=number("ExposureDose"),
            prior_dose=number("PriorRecordDose"),
            sub_frame_path=path,
            # a backslash is no separator on POSIX, but the microscope's computer runs Windows
            sub_frame_name=re.split(r"[\\/]", path)[-1] or None if path else None,
            sub_frames=None if frames is None else int(frames),
            defocus_um=number("Defocus"),
            target_defocus_um=number("TargetDefocus"),
            rotation_angle=number("RotationAngle"),
            pixel_size=number("PixelSpacing"),
            date=_date(section.get("DateTime")),
        )

    def _number(self, section: MdocSection, key: str, text: str | None) -> float | None:
        if not text or text.lower() == "nan":
            return None
        try:
            value = float(text)
            if math.isfinite(value):
                return value
        except ValueError:
            pass
        raise CorruptError(
            self.path, f"the section at line {section.first_line}: {key} = {text!r}, which is no number"
        )

    def format(self) -> str:
        """The file's text."""
        return "".join(line for section in self.sections for line in (section.header, *section.lines))


def _date(text: str | None) -> datetime | None:
    """None for a date that is missing or in nobody's known form: it is only ever a help."""
    if not text:
        return None
    plain = " ".join(text.split())
    for form in _DATES:
        try:
            return datetime.strptime(plain, form)
        except ValueError:
            continue
    return None


def is_override(path: str | Path) -> bool:
    """Whether this is the ``_override`` copy that Tomography 5 writes beside an mdoc of the same series."""
    return bool(re.search(r"_override(\.mrc|\.st)?\.mdoc\Z", Path(path).name, re.IGNORECASE))


def read_mdoc(path: str | Path) -> Mdoc:
    """Read an mdoc.

    Raises
    ------
    FormatError
        It is no mdoc.
    CorruptError
        A line that is neither a pair, a section nor a comment.
    TruncatedError
        It is empty, or its last line stops short.
    """
    path = Path(path)
    data = path.read_bytes()
    if not data.strip(b"\0 \t\r\n"):
        raise TruncatedError(path, "the file is empty")
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        encodings = ["utf-16"]
    elif data[:3] == b"\xef\xbb\xbf":
        encodings = ["utf-8-sig", "latin-1"]
    else:
        # µ and ° of operators' notes are latin-1 on the microscope's computer
        encodings = ["utf-8", "latin-1"]
    for encoding in encodings:
        try:
            return parse_mdoc(data.decode(encoding), path, encoding)
        except UnicodeDecodeError:
            continue
    raise FormatError(path, f"not text in {' or '.join(encodings)}")


def parse_mdoc(text: str, path: str | Path = "mdoc text", encoding: str = "utf-8") -> Mdoc:
    """Read an mdoc's text; see `read_mdoc`."""
    path = Path(path)
    if "\0" in text:
        raise CorruptError(path, "it holds zero bytes; it is no text, or was never completely written")
    sections = [MdocSection("", "")]
    lines = _LINE.findall(text)
    for number, line in enumerate(lines, 1):
        match = _SECTION.match(line)
        if match:
            sections.append(MdocSection(match.group(1), match.group(2), line, [], number))
        elif _PAIR.match(line) or not line.strip() or line.lstrip()[0] == "#":
            sections[-1].lines.append(line)
        elif number == 1:
            raise FormatError(path, f"not an mdoc: its first line is {line.strip()[:40]!r}")
        elif number == len(lines) and not line.endswith(("\n", "\r")):
            raise TruncatedError(path, f"its last line stops at {line.strip()[:40]!r}: it was cut short")
        else:
            raise CorruptError(path, f"line {number}: neither a value nor a section: {line.strip()[:40]!r}")
    mdoc = Mdoc(path, sections, encoding)
    if len(sections) == 1 and not any(True for _ in sections[0].items()):
        raise FormatError(path, "not an mdoc: it has neither values nor sections")
    return mdoc


def write_mdoc(path: str | Path, mdoc: Mdoc, *, sync: bool = True) -> None:
    """Write an mdoc atomically, in the encoding and with the line ends that it was read with."""
    atomic_write_bytes(path, mdoc.format().encode(mdoc.encoding), sync=sync)
