"""mdocs: everything is kept, typed access is strict; against the mdocfile package and real files."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest

from weft.errors import CorruptError, FormatError, TruncatedError
from weft.formats.mdoc import is_override, parse_mdoc, read_mdoc, write_mdoc

SERIES = r"""PixelSpacing = 1.35
Voltage = 300
ImageFile = TS_01.mrc

[T = SerialEM: Digitized on EMBL Krios    30-Nov-15  15:14:20    ]

[T =     Tilt axis angle = 85.3, binning = 4  spot = 8  camera = 2]

[ZValue = 0]
SubFramePath = D:\DATA\frames\TS_01_000_0.0.tif
TiltAngle = 0.000999877
DateTime = 30-Nov-15  15:21:38
ExposureDose = 3.1
PriorRecordDose = 0
Defocus = -2.5
RotationAngle = 175.3
ImageShift = 9.37679e-005 0.5514
ChannelName =
CameraLength = NaN

[ZValue = 1]
TiltAngle = 3.0
SubFramePath = /gpfs/frames/TS_01_001_3.0.eer
"""


def test_typed_values() -> None:
    mdoc = parse_mdoc(SERIES)
    assert mdoc.pixel_size == 1.35
    assert mdoc.tilt_axis == 85.3
    assert mdoc.tilt_axis_from_rotation == pytest.approx(85.3)
    assert mdoc.header("ImageFile") == "TS_01.mrc"
    assert len(mdoc.titles) == 2
    first, second = mdoc.tilts
    assert (first.z_value, first.tilt_angle) == (0, 0.000999877)
    assert (first.exposure_dose, first.prior_dose) == (3.1, 0)
    assert first.sub_frame_name == "TS_01_000_0.0.tif"
    assert first.date == datetime(2015, 11, 30, 15, 21, 38)
    assert first.defocus_um == -2.5
    assert second.sub_frame_name == "TS_01_001_3.0.eer"
    assert (second.date, second.exposure_dose, second.defocus_um) == (None, None, None)
    assert mdoc.sections[second.section].get("ImageShift") is None
    assert mdoc.sections[first.section].get("ImageShift") == "9.37679e-005 0.5514"
    assert mdoc.sections[first.section].get("ChannelName") == ""


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1", "utf-16"])
def test_bytes_survive(tmp_path: Path, newline: str, encoding: str) -> None:
    text = SERIES.replace("Krios", "Kriös 2 µm").replace("\n", newline).rstrip("\r\n")
    path = tmp_path / "a.mdoc"
    path.write_bytes(text.encode(encoding))
    mdoc = read_mdoc(path)
    assert mdoc.encoding == encoding
    assert "Kriös 2 µm" in mdoc.titles[0]
    assert len(mdoc.tilts) == 2
    write_mdoc(tmp_path / "b.mdoc", mdoc)
    assert (tmp_path / "b.mdoc").read_bytes() == path.read_bytes()


def test_changes_touch_nothing_else() -> None:
    mdoc = parse_mdoc(SERIES)
    section = mdoc.sections[mdoc.tilts[0].section]
    section.set("TiltAngle", "-1.5")
    section.set("TargetDefocus", "-3")
    expected = SERIES.replace("TiltAngle = 0.000999877", "TiltAngle = -1.5").replace(
        "CameraLength = NaN\n", "CameraLength = NaN\nTargetDefocus = -3\n"
    )
    assert mdoc.format() == expected
    with pytest.raises(ValueError, match="cannot hold"):
        section.set("a", "b\nc")
    unended = parse_mdoc("[ZValue = 0]\nTiltAngle = 1")
    unended.sections[1].set("Binning", "2")
    assert unended.format() == "[ZValue = 0]\nTiltAngle = 1\nBinning = 2\n"


def test_repeated_sections_and_movies() -> None:
    """A restarted series repeats its numbers; the mdoc of a movie has a frame set and no image."""
    twice = parse_mdoc("[ZValue = 0]\nTiltAngle = 1\n[ZValue = 0]\nTiltAngle = 2\n")
    assert [(t.z_value, t.tilt_angle) for t in twice.tilts] == [(0, 1.0), (0, 2.0)]
    movie = parse_mdoc("T = SerialEM: Krios\nVoltage = 300\n\n[FrameSet = 0]\nTiltAngle = 33\n")
    assert [t.tilt_angle for t in movie.tilts] == [33.0]
    assert movie.titles == ["SerialEM: Krios"]
    assert movie.header("Voltage") == "300"
    montage = parse_mdoc("[ZValue = 0]\nPieceCoordinates = 0 3400 0\n[MontSection = 0]\nNavigatorLabel = 1\n")
    assert [s.kind for s in montage.sections] == ["", "ZValue", "MontSection"]
    assert montage.tilts[0].tilt_angle is None


@pytest.mark.parametrize(
    ("title", "axis"),
    [
        ("    Tilt axis angle = 85.3, binning = 4", 85.3),
        ("Tilt axis angle = 85.7  binning = 1  spot = 6", 85.7),
        ("TiltAxisAngle = -171.35 Binning = 1 SpotSize = 5", -171.35),
        ("SerialEM: Digitized on EMBL Krios", None),
    ],
)
def test_tilt_axis(title: str, axis: float | None) -> None:
    assert parse_mdoc(f"[T = {title}]\n[ZValue = 0]\nTiltAngle = 0\n").tilt_axis == axis


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("II*\x01 = binary", FormatError, "first line|neither"),
        ("not an mdoc\n", FormatError, "first line"),
        ("[ZValue = 0]\nTiltAngle = 1\nTiltAn", TruncatedError, "cut short"),
        ("[ZValue = 0]\nrubbish\nTiltAngle = 1\n", CorruptError, "line 2: neither"),
        ("PixelSpacing = 1\n\0\0\0", CorruptError, "zero bytes"),
        ("# nothing\n", FormatError, "neither values nor sections"),
    ],
)
def test_faults(text: str, error: type[Exception], words: str) -> None:
    if text.startswith("II"):
        text = "II*\x01\nmore\n"
    with pytest.raises(error, match=words):
        parse_mdoc(text, "a.mdoc")


def test_values_that_are_no_numbers() -> None:
    mdoc = parse_mdoc("[ZValue = 0]\nTiltAngle = left\n")
    with pytest.raises(CorruptError, match="line 1: TiltAngle = 'left'"):
        _ = mdoc.tilts
    with pytest.raises(CorruptError, match="has no number"):
        _ = parse_mdoc("[ZValue = x]\nTiltAngle = 1\n").tilts
    axes = parse_mdoc("[T = Tilt axis angle = 85.3,]\n[T = Tilt axis angle = 80,]\n[ZValue = 0]\nA = 1\n")
    with pytest.raises(CorruptError, match="different tilt axes"):
        _ = axes.tilt_axis


def test_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "a.mdoc"
    path.write_bytes(b" \r\n")
    with pytest.raises(TruncatedError, match="empty"):
        read_mdoc(path)


def test_override_copies() -> None:
    assert is_override("Position_1_override.mdoc")
    assert is_override("a/Position_1_override.mrc.mdoc")
    assert not is_override("Position_1.mdoc")


def test_all_real_files(reference_data: Path) -> None:
    """Every mdoc of seven programs and projects: no byte is lost, and mdocfile reads the same values."""
    mdocfile = pytest.importorskip("mdocfile")
    paths = sorted(reference_data.rglob("*.mdoc"))
    assert len(paths) > 60
    odd = ("dummy.mrc.mdoc", "Position_1_2.mdoc", "TS_value_types.mdoc")
    compared = 0
    for path in paths:
        mdoc = read_mdoc(path)
        assert mdoc.format().encode(mdoc.encoding) == path.read_bytes()
        tilts = mdoc.tilts
        assert tilts
        if path.name in odd or (path.parent.name == "frames_mdoc" and compared > 12):
            continue
        other = mdocfile.data_models.Mdoc.from_file(path)
        sections = [s for s in other.section_data if s.ZValue is not None] or other.section_data
        assert len(sections) == len(tilts), path
        for mine, theirs in zip(tilts, sections, strict=True):
            assert mine.tilt_angle == theirs.TiltAngle
            assert mine.exposure_dose == theirs.ExposureDose
            assert mine.defocus_um == theirs.Defocus
            # mdocfile makes every path one of Windows
            path_of_mine = (mine.sub_frame_path or "").replace("/", "\\")
            assert path_of_mine == str(theirs.SubFramePath or "").replace("/", "\\")
        compared += 1
    assert compared > 15


def test_rotation_angle_of_serialem(reference_data: Path) -> None:
    """RotationAngle is the title's axis + 90° in SerialEM's own files."""
    folder = reference_data / "real" / "teamtomo__mdocfile"
    for name in ("tilt_series.mdoc", "montage_section_multiple.mdoc", "TS_01.mrc.mdoc"):
        mdoc = read_mdoc(folder / name)
        assert mdoc.tilt_axis_from_rotation == pytest.approx(mdoc.tilt_axis, abs=0.06)
