"""AreTomo's .aln: versions 1 to 3."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from weft.errors import CorruptError, FormatError, TruncatedError
from weft.formats.aretomo import from_geometry, read_aln, to_geometry, write_aln
from weft.physics.geometry import TiltGeometry

# AreTomo 3: sections from 1, thickness
THIRD = """# AreTomo Alignment / Priims bprmMn
# RawSize = 400 300 4
# NumPatches = 2
# DarkFrame =     4    4    60.00
# AlphaOffset =     1.50
# BetaOffset =    -2.25
# Thickness = 90
# SEC     ROT         GMAG       TX          TY      SMEAN     SFIT    SCALE     BASE     TILT
    1   -12.6611    1.00000     24.786     -2.677     1.00     1.00     1.00     0.00    -61.50
    2   -12.6611    1.00000     34.451     -8.599     1.00     1.00     1.00     0.00      0.00
    3   -12.6611    1.00000      9.951     -7.690     1.00     1.00     1.00     0.00     58.50
# Local Alignment
   0   0  -100.00      0.00     10.00     -4.00   1.0
   0   1   100.00      0.00     30.00      2.00   1.0
   1   0  -100.00      0.00      1.00      0.00   1.0
   1   1   100.00      0.00      5.00      0.00   0.0
   2   0  -100.00      0.00      0.00      0.00   0.0
   2   1   100.00      0.00      0.00      0.00   0.0
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "a.aln"
    path.write_text(text)
    return path


def test_third_version(tmp_path: Path) -> None:
    found = read_aln(write(tmp_path, THIRD))
    assert found.section.tolist() == [1, 2, 3]
    assert found.angles.tolist() == [-61.5, 0, 58.5]
    assert found.shift[1].tolist() == [34.451, -8.599]
    assert (found.raw_size, found.thickness) == ((400, 300, 4), 90)
    assert (found.alpha_offset, found.beta_offset) == (1.5, -2.25)
    assert (found.dark[0].section, found.dark[0].angle) == (4, 60.0)
    assert found.first_section is None
    assert found.local is not None
    assert found.local.shape == (3, 2, 5)
    write_aln(tmp_path / "b.aln", found)
    back = read_aln(tmp_path / "b.aln")
    for name in ("section", "axis", "angles", "shift", "magnification", "weights", "local"):
        np.testing.assert_array_equal(getattr(back, name), getattr(found, name))
    assert (back.dark, back.raw_size, back.thickness) == (found.dark, found.raw_size, found.thickness)


def test_local_shifts(tmp_path: Path) -> None:
    """AreTomo's weights exp(-100 r²), r in fractions of the image; bad patches do not count."""
    found = read_aln(write(tmp_path, THIRD))
    places = np.array([[-100.0, 0.0], [0.0, 0.0], [100.0, 0.0]])
    np.testing.assert_allclose(found.local_shift(0, places), [[10, -4], [20, -1], [30, 2]], atol=1e-9)
    np.testing.assert_allclose(found.local_shift(1, places), [[1, 0]] * 3)
    np.testing.assert_allclose(found.local_shift(2, places), 0)
    np.testing.assert_allclose(found.local_shift(0, [[-4000.0, 0.0]]), [[10, -4]])


@pytest.mark.parametrize(
    ("old", "new", "error", "words"),
    [
        ("# AreTomo", "# Other", FormatError, "not an alignment by AreTomo"),
        ("RawSize = 400 300 4", "RawSize = 400 300 9", TruncatedError, "not the 9"),
        ("0.00     58.50", "58.50", CorruptError, "line 11: 9 values"),
        ("   2   1   100.00      0.00      0.00      0.00   0.0\n", "", TruncatedError, "5 local shifts"),
        ("   2   1   100", "   2   0   100", CorruptError, "patch 0 of image 2"),
        ("24.786", "left", CorruptError, "line 9"),
    ],
)
def test_faults(tmp_path: Path, old: str, new: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        read_aln(write(tmp_path, THIRD.replace(old, new)))
    with pytest.raises(TruncatedError, match="empty"):
        read_aln(write(tmp_path, ""))


def test_real_files(reference_data: Path) -> None:
    """AreTomo 1.2, and an excerpt of AreTomo 2 with local alignment."""
    real = reference_data / "real"
    first = read_aln(real / "teamtomo__lil-aretomo/example_v1_2_0.aln")
    assert (len(first), first.raw_size, first.local, first.first_section) == (41, None, None, 0)
    assert first.shift[0].tolist() == [155.235, 708.75]
    with pytest.raises(FormatError, match="size of its images"):
        to_geometry(first, pixel_size=1.0)
    path = real / "uermel__cryoet-alignment/test.aln"
    with pytest.raises(TruncatedError, match="not the 90"):
        read_aln(path)
    second = read_aln(path, complete=False)
    assert second.raw_size == (2032, 2032, 90)
    assert len(second.dark) == 4
    assert second.local is not None
    assert second.local[0, 2].tolist() == [19.88, -701.35, 29.18, -5.75, 1.0]


def test_geometry(tmp_path: Path) -> None:
    """A point of the aligned image comes from R(ROT) c + (TX, TY), as AreTomo's own correction samples it."""
    found = read_aln(write(tmp_path, THIRD))
    geometry = to_geometry(found, pixel_size=2.0, volume_size=(800, 600, 180))
    assert geometry.image_size.tolist() == [800, 600]
    centre = torch.tensor([[400.0, 300.0, 90.0]], dtype=torch.float64)
    np.testing.assert_allclose(
        geometry.project(centre)[:, 0, :2] - torch.tensor([400.0, 300.0]), 2 * found.shift
    )
    along_x = centre + torch.tensor([10.0, 0, 0])
    moved = (geometry.project(along_x) - geometry.project(centre))[1, 0, :2]
    turn = np.radians(-12.6611)
    np.testing.assert_allclose(moved, [10 * np.cos(turn), 10 * np.sin(turn)])


def test_there_and_back(tmp_path: Path) -> None:
    geometry = TiltGeometry.of([-3.0, 0.0, 3.0], axis=85.0, shift=[[1.0, 2], [3, 4], [5, 6]],
                               image_size=(800, 600), level=(0.0, 2.0))  # fmt: skip
    alignment = from_geometry(geometry, pixel_size=2.0, section=[1, 2, 4], raw_images=4)
    assert [d.section for d in alignment.dark] == [3]
    write_aln(tmp_path / "a.aln", alignment)
    back = to_geometry(read_aln(tmp_path / "a.aln"), pixel_size=2.0)
    xyz = torch.rand(10, 3, dtype=torch.float64) * 500
    torch.testing.assert_close(back.project(xyz), geometry.project(xyz), atol=1e-3, rtol=0)
    with pytest.raises(ValueError, match="inclination about x"):
        from_geometry(TiltGeometry.of([0.0], level=(1.0, 0.0)), pixel_size=1.0)
