"""Dynamo: tables, and the folders that its alignment leaves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from weft.errors import CorruptError, FormatError, TruncatedError
from weft.formats.dynamo import (
    TABLE_COLUMNS,
    DynamoAlignment,
    read_dynamo_alignment,
    read_fitting,
    read_tbl,
    write_dynamo_alignment,
    write_tbl,
)
from weft.formats.imod import ImodAlignment
from weft.formats.imod_model import ImodModel


def alignment() -> ImodAlignment:
    return ImodAlignment(np.tile(np.eye(2), (3, 1, 1)), np.arange(6.0).reshape(3, 2), np.array([-3.0, 0, 3]))


def test_folder(tmp_path: Path) -> None:
    markers = ImodModel.of_tracks(np.arange(12.0).reshape(2, 3, 2), (100, 100))
    write_dynamo_alignment(tmp_path / "TS_01.mrc", DynamoAlignment("TS_01.mrc", alignment(), markers))
    (tmp_path / "TS_01.mrc/info").mkdir()
    (tmp_path / "TS_01.mrc/info/fitting.doc").write_text("rms : 0.61\ntotal markers = 23\nsome words\n")
    back = read_dynamo_alignment(tmp_path / "TS_01.mrc")
    assert back.name == "TS_01.mrc"
    np.testing.assert_array_equal(back.alignment.shifts, alignment().shifts)
    np.testing.assert_array_equal(back.alignment.angles, [-3, 0, 3])
    assert back.markers is not None
    np.testing.assert_allclose(back.markers.tracks(), np.arange(12.0).reshape(2, 3, 2))
    assert back.fitting == {"rms": 0.61, "total markers": 23.0}


def test_faults(tmp_path: Path) -> None:
    (tmp_path / "TS_01.AWF").mkdir()
    with pytest.raises(FormatError, match="workflow of Dynamo itself"):
        read_dynamo_alignment(tmp_path / "TS_01.AWF")
    write_dynamo_alignment(tmp_path / "b", DynamoAlignment("TS", alignment()))
    (tmp_path / "b/TS.tlt").unlink()
    assert read_dynamo_alignment(tmp_path / "b").alignment.angles.tolist() == [-3, 0, 3]
    (tmp_path / "b/TS.rawtlt").unlink()
    with pytest.raises(FormatError, match="neither"):
        read_dynamo_alignment(tmp_path / "b")
    tilted = alignment()
    tilted.x_axis_tilt = 1.0
    with pytest.raises(ValueError, match="no place"):
        write_dynamo_alignment(tmp_path / "c", DynamoAlignment("TS", tilted))
    (tmp_path / "x.doc").write_text("")
    assert read_fitting(tmp_path / "x.doc") == {}


def test_tables(tmp_path: Path) -> None:
    table = np.zeros((3, 35))
    table[:, 0] = [1, 2, 3]
    table[:, 6] = [0.1, -45.25, 1e-9]
    write_tbl(tmp_path / "a.tbl", table)
    np.testing.assert_array_equal(read_tbl(tmp_path / "a.tbl"), table)
    line = " ".join(["1"] * 26)
    (tmp_path / "b.tbl").write_text(f"{line} 7\n{line}\n{line.replace('1', '2+1e-9i', 1)}\n")
    found = read_tbl(tmp_path / "b.tbl")
    assert found.shape == (3, 27)
    assert found[:, 26].tolist() == [7, 0, 0]
    assert found[2, 0] == 2
    for text, error, words in (
        ("1 2 3\n", CorruptError, "3 columns"),
        ("", TruncatedError, "empty"),
        (line.replace("1", "x", 1), FormatError, "line 1"),
        (line.replace("1", "2+3i", 1), FormatError, "no number"),
    ):
        (tmp_path / "c.tbl").write_text(text)
        with pytest.raises(error, match=words):
            read_tbl(tmp_path / "c.tbl")
    with pytest.raises(ValueError, match="at least 26"):
        write_tbl(tmp_path / "d.tbl", np.zeros((2, 5)))


def test_real_table(reference_data: Path) -> None:
    """dynamo2m's example: angles and places of particles in their columns."""
    table = read_tbl(reference_data / "real/alisterburt__dynamo2m/dynamo2warp/example.tbl")
    assert len(table) > 5
    tilt = table[:, TABLE_COLUMNS["tilt"] - 1]
    assert (tilt >= 0).all()
    assert (tilt <= 180).all()
    places = table[:, [TABLE_COLUMNS[c] - 1 for c in "xyz"]]
    assert (places > 0).all()
    assert set(table[:, TABLE_COLUMNS["tomo"] - 1]) >= {1.0}
