"""Warp's and WarpTools' ``.settings``: where a project's data are, and how they were recorded.

An XML document of parameters, in sections (``Import``, ``CTF``, ``Tomo``, ...) since Warp 1.0.7 and without
any before. Everything is kept as text and in its order; what is not there, Warp takes from its defaults.
"""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath

from weft.errors import CorruptError
from weft.formats.atomic import atomic_write_bytes
from weft.formats.warp_xml import read_root

__all__ = ["WarpSettings", "read_warp_settings", "write_warp_settings"]

#: Section and name, and the name before there were sections.
_OLD_NAMES = {
    ("Import", "DataFolder"): ("InputFolder", "Folder"),
    ("Import", "ProcessingFolder"): ("OutputFolder",),
    ("Import", "Extension"): ("InputExtension",),
    ("Import", "PixelSize"): ("PixelSizeX", "CTFPixelMin"),
    ("Import", "BinTimes"): ("PostBinTimes",),
    ("Import", "GainPath"): ("GainPath",),
    ("Import", "CorrectGain"): ("CorrectGain",),
    ("CTF", "Voltage"): ("CTFVoltage",),
    ("CTF", "Cs"): ("CTFCs",),
    ("CTF", "Amplitude"): ("CTFAmplitude",),
}


@dataclass
class WarpSettings:
    """A settings file.

    Attributes
    ----------
    sections : dict of str to dict of str to str
        Section → name → value; those outside of any section are in "".
    other : list of str
        Elements that are neither, as XML.
    path : Path
        For messages, and where relative folders count from.
    """

    sections: dict[str, dict[str, str]] = field(default_factory=dict)
    other: list[str] = field(default_factory=list)
    path: Path = Path("Warp settings")

    def text(self, section: str, name: str) -> str:
        """A value; empty where it is not there. Names are the newer ones, for older files, too."""
        found = self.sections.get(section, {}).get(name)
        for old in _OLD_NAMES.get((section, name), ()):
            if found is None:
                found = self.sections.get(section, {}).get(old) or self.sections.get("", {}).get(old)
        return found or ""

    def number(self, section: str, name: str) -> float | None:
        """A value as a number; None where it is not there.

        Raises
        ------
        CorruptError
            It is no number.
        """
        text = self.text(section, name)
        if not text:
            return None
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise CorruptError(self.path, f"{name} is {text!r}, which is no number")
        return value

    def is_on(self, section: str, name: str) -> bool:
        """Whether a switch is on; False where it is not there."""
        return self.text(section, name).lower() == "true"

    def folder(self, name: str) -> Path | None:
        """``DataFolder`` or ``ProcessingFolder``, from the file's own folder; None where it says none."""
        text = self.text("Import", name).strip()
        if not text:
            return None
        if PureWindowsPath(text).drive:
            # of another computer: only its last part may mean something here
            return self.path.parent / PureWindowsPath(text).name
        return self.path.parent / text.replace("\\", "/")

    @property
    def is_tilt_series(self) -> bool:
        """Whether its items are tilt series rather than movies."""
        return self.text("Import", "Extension").strip().lower().endswith(".tomostar")

    @property
    def exposure(self) -> tuple[float, bool] | None:
        """e/Å², and whether that is of a frame (else of the whole exposure); None where it does not say.

        Warp writes the exposure of a whole movie or tilt as a negative number.
        """
        value = self.number("Import", "DosePerAngstromFrame")
        return None if not value else (abs(value), value > 0)

    @property
    def dimensions(self) -> tuple[int, int, int] | None:
        """x, y, z of the volume, in unbinned pixels."""
        values = [self.number("Tomo", f"Dimensions{axis}") for axis in "XYZ"]
        if any(value is None for value in values):
            return None
        x, y, z = (round(value) for value in values if value is not None)
        return x, y, z


def read_warp_settings(path: str | Path) -> WarpSettings:
    """Read a .settings file.

    Raises
    ------
    TruncatedError
        It is empty.
    FormatError
        Not XML, or something else than settings.
    """
    path = Path(path)
    root = read_root(path, "Settings", "Settings")
    out = WarpSettings(path=path)
    for element in root:
        if element.tag == "Param":
            out.sections.setdefault("", {})[element.get("Name", "")] = element.get("Value", "")
        elif len(element) and all(child.tag == "Param" for child in element):
            params = {child.get("Name", ""): child.get("Value", "") for child in element}
            out.sections.setdefault(element.tag, {}).update(params)
        else:
            out.other.append(ET.tostring(element, "unicode").strip())
    return out


def write_warp_settings(path: str | Path, settings: WarpSettings, *, sync: bool = True) -> None:
    """Write a .settings file atomically, as UTF-8."""
    root = ET.Element("Settings")
    for section, params in settings.sections.items():
        parent = ET.SubElement(root, section) if section else root
        for name, value in params.items():
            ET.SubElement(parent, "Param", Name=name, Value=value)
    ET.indent(root, "\t")
    for text in settings.other:
        element = ET.fromstring(text)  # not indented: white space may mean something in it
        element.tail = "\n"
        root.append(element)
    data = b'<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(root, "utf-8", xml_declaration=False)
    atomic_write_bytes(path, data, sync=sync)
