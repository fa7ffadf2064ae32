"""Tables of micrographs after cropping and downsampling."""

from __future__ import annotations

from pathlib import Path

import pytest

from weft.errors import FormatError
from weft.formats.relion_geometry import Moved, micrographs_of, move_micrographs
from weft.formats.star import Table, parse_star, read_star

CURRENT = """
data_optics
loop_
_rlnOpticsGroupName
_rlnOpticsGroup
_rlnMicrographOriginalPixelSize
_rlnVoltage
_rlnMicrographPixelSize
a 1 0.5 300 1.0
b 2 0.6 200 1.2

data_micrographs
loop_
_rlnMicrographName
_rlnMicrographNameEven
_rlnMicrographMetadata
_rlnCtfMaxResolution
_rlnOpticsGroup
_rlnDefocusU
m/one.mrc   e/one.mrc   one.star   3.5 1 10000
m/two.mrc   e/two.mrc   two.star   3.6 2 11000
m/three.mrc e/three.mrc three.star 3.7 1 12000
"""

OLD = """
data_
loop_
_rlnMicrographName
_rlnCoordinateX
_rlnCoordinateY
_rlnMagnification
_rlnDetectorPixelSize
one.mrc 110.0 60.0 50000 5.0
two.mrc  10.0 10.0 50000 5.0
"""


def moved(name: str, pixel: float, crop: int = 0, factor: tuple[float, float] = (1.0, 1.0)) -> Moved:
    return Moved(name, pixel, crop, factor)


def test_pixel_sizes_names_and_groups() -> None:
    blocks = parse_star(CURRENT)
    assert micrographs_of(blocks) == {"m/one.mrc": 1.0, "m/two.mrc": 1.2, "m/three.mrc": 1.0}
    made = {
        "m/one.mrc": moved("/out/one.mrc", 2.5, 0, (2.5, 2.5)),
        "m/two.mrc": moved("/out/two.mrc", 3.0, 0, (2.5, 2.5)),
        # another size, and so another factor for what was asked for
        "m/three.mrc": moved("/out/three.mrc", 2.51, 0, (2.51, 2.51)),
    }
    out = move_micrographs(blocks, made)
    rows, optics = out["micrographs"], out["optics"]
    assert rows.strings("rlnMicrographName") == ["/out/one.mrc", "/out/two.mrc", "/out/three.mrc"]
    assert rows.ints("rlnOpticsGroup").tolist() == [1, 2, 3]
    assert optics.floats("rlnMicrographPixelSize").tolist() == [2.5, 3.0, 2.51]
    assert optics.floats("rlnMicrographOriginalPixelSize").tolist() == [0.5, 0.6, 0.5]
    assert optics.ints("rlnVoltage").tolist() == [300, 200, 300]
    assert optics.strings("rlnOpticsGroupName") == ["a_1", "b", "a_3"]
    # what does not depend on pixels stays, halves of the old size do not
    assert rows.floats("rlnDefocusU").tolist() == [10000, 11000, 12000]
    assert "rlnMicrographNameEven" not in rows
    assert rows.strings("rlnMicrographMetadata") == ["one.star", "two.star", "three.star"]
    assert micrographs_of(out) == {"/out/one.mrc": 2.5, "/out/two.mrc": 3.0, "/out/three.mrc": 2.51}


def test_a_crop_moves_the_field_away_from_the_movie() -> None:
    out = move_micrographs(parse_star(CURRENT), {"m/one.mrc": moved("x.mrc", 1.0, 10)})
    rows = out["micrographs"]
    assert len(rows) == 1
    assert "rlnMicrographMetadata" not in rows, "its tracks are those of the whole field"
    assert len(out["optics"]) == 1


def test_nothing_moves_when_only_grey_values_change() -> None:
    blocks = parse_star(CURRENT)
    sizes = micrographs_of(blocks)
    out = move_micrographs(blocks, {name: moved(name, size or 0.0) for name, size in sizes.items()})
    for block, table in blocks.items():
        for label, column in table.columns.items():
            assert [str(v) for v in out[block][label]] == [
                str(v)
                for v in (
                    map(float, column) if "PixelSize" in label and label.startswith("rlnMic") else column
                )
            ]


def test_coordinates_and_the_detector_of_old_tables() -> None:
    blocks = parse_star(OLD)
    assert micrographs_of(blocks) == pytest.approx({"one.mrc": 1.0, "two.mrc": 1.0})
    made = {name: moved(f"new/{name}", 2.0, 10, (2.0, 2.0)) for name in ("one.mrc", "two.mrc")}
    table = move_micrographs(blocks, made)[""]
    assert table.floats("rlnCoordinateX").tolist() == [50.0, 0.0]
    assert table.floats("rlnCoordinateY").tolist() == [25.0, 0.0]
    assert table.floats("rlnDetectorPixelSize").tolist() == [10.0, 10.0]
    assert micrographs_of({"": table}) == pytest.approx({"new/one.mrc": 2.0, "new/two.mrc": 2.0})


def test_real_tables(reference_data: Path) -> None:
    path = reference_data / "real/Conecsion__sppractice/CtfFind/job005/micrographs_ctf.star"
    blocks = read_star(path)
    sizes = micrographs_of(blocks)
    assert len(sizes) > 5
    (size,) = set(sizes.values())
    assert size == pytest.approx(0.885)
    out = move_micrographs(blocks, {n: moved(f"p/{n}", 2 * size, 0, (2.0, 2.0)) for n in sizes})
    assert set(micrographs_of(out).values()) == {2 * size}
    assert set(out["micrographs"].columns) == set(blocks["micrographs"].columns)


def test_a_table_of_something_else() -> None:
    with pytest.raises(FormatError, match="rlnMicrographName"):
        micrographs_of({"models": Table({"rlnClassNumber": ["1"]})})
