"""Warp's .tomostar."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from weft.errors import CorruptError, FormatError
from weft.formats.tomostar import Tomostar, read_tomostar, write_tomostar

# as WarpTools' ts_import writes it
TEXT = """
data_

loop_
_wrpMovieName #1
_wrpAngleTilt #2
_wrpAxisAngle #3
_wrpDose #4
_wrpAverageIntensity #5
_wrpMaskedFraction #6
  ../warp_frameseries/TS_1_002.tif  -3.01  85.300  6  2.541  0.000
  ../warp_frameseries/TS_1_000.tif   0.00  85.300  0  2.611  0.012
"""


def test_reads_and_writes(tmp_path: Path) -> None:
    path = tmp_path / "TS_1.tomostar"
    path.write_text(TEXT)
    series = read_tomostar(path)
    assert series.angles.tolist() == [-3.01, 0.0]
    assert series.dose.tolist() == [6.0, 0.0]
    assert series.axis is not None
    assert series.axis.tolist() == [85.3, 85.3]
    assert series.shift is None
    assert series.masked_fraction is not None
    assert series.movie_paths(path)[1] == tmp_path / "../warp_frameseries/TS_1_000.tif"
    series.shift = np.array([[1.5, -2.0], [0.25, 4.0]])
    series.other["wrpNote"] = ["a b", "c"]
    write_tomostar(path, series)
    back = read_tomostar(path)
    assert back.movies == series.movies
    assert back.other == series.other
    for name in ("angles", "dose", "axis", "shift", "average_intensity", "masked_fraction"):
        np.testing.assert_array_equal(getattr(back, name), getattr(series, name))


def test_minimal(tmp_path: Path) -> None:
    write_tomostar(tmp_path / "a.tomostar", Tomostar(["a.tif"], np.array([1.0]), np.array([0.0])))
    back = read_tomostar(tmp_path / "a.tomostar")
    assert (back.movies, back.axis, back.shift, len(back)) == (["a.tif"], None, None, 1)


@pytest.mark.parametrize(
    ("old", "new", "error", "words"),
    [
        ("wrpMovieName", "rlnName", FormatError, "not one"),
        ("wrpDose", "wrpDosis", FormatError, "no column _wrpDose"),
        ("-3.01", "left", CorruptError, "row 0"),
        ("-3.01", "nan", CorruptError, "not finite"),
        ("TS_1_002", "TS_1_000", CorruptError, "twice"),
    ],
)
def test_faults(tmp_path: Path, old: str, new: str, error: type[Exception], words: str) -> None:
    path = tmp_path / "a.tomostar"
    path.write_text(TEXT.replace(old, new))
    with pytest.raises(error, match=words):
        read_tomostar(path)
