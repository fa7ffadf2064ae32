"""Tilt particles with a row for every image: what each flavour says, and what is wrong with a file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from tilt_particle_files import (
    BOX,
    IMAGE_ROWS,
    PIXEL,
    TILTS,
    cistem,
    cryosrpnt,
    nextpyp,
    warp1,
    write_rows,
    write_stack,
)

from weft.errors import CorruptError, FormatError, TruncatedError
from weft.formats.star import Table, read_star, write_star
from weft.formats.tilt_particles import TiltParticles, read_tilt_particles, write_tilt_particles

_CTF = ["rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast"]
_CTF += ["rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle"]
_POSE = ["rlnImageName", "rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"]
#: What a flavour cannot do without.
NEEDED = {
    "warp1": [*_CTF, *_POSE, "rlnDetectorPixelSize", "rlnGroupName"],
    "cryosrpnt": [*_CTF, *_POSE, "rlnDetectorPixelSize", "rlnGroupName"],
    "nextpyp": [*_CTF, *_POSE, "rlnImagePixelSize", "rlnGroupNumber"],
    "cistem": [
        *("cisTEMPositionInStack", "cisTEMAnglePsi", "cisTEMAngleTheta", "cisTEMAnglePhi"),
        *("cisTEMXShift", "cisTEMYShift", "cisTEMDefocus1", "cisTEMDefocus2", "cisTEMDefocusAngle"),
        *("cisTEMPixelSize", "cisTEMMicroscopeVoltagekV", "cisTEMMicroscopeCsMM"),
        *("cisTEMAmplitudeContrast", "cisTEMParticleGroup"),
    ],
}
EACH = [(flavour, label) for flavour, labels in NEEDED.items() for label in labels]


def _table(blocks: dict[str, Table]) -> Table:
    return blocks["particles"] if "particles" in blocks else blocks[""]


def _shuffled(blocks: dict[str, Table], order: np.ndarray[Any, Any]) -> dict[str, Table]:
    table = _table(blocks)
    table.columns = {label: [column[i] for i in order] for label, column in table.columns.items()}
    return blocks


@pytest.mark.parametrize("flavour", IMAGE_ROWS)
def test_every_flavour_says_the_same(flavour: str, tmp_path: Path) -> None:
    make, label = IMAGE_ROWS[flavour]
    found = read_tilt_particles(write_rows(tmp_path, make()))
    assert found.flavour == flavour
    assert len(found) == 3
    assert found.images == sum(TILTS)
    assert found.start.tolist() == [0, 3, 5, 9]
    assert found.particle == list(dict.fromkeys(map(str, _table(make())[label])))
    assert (found.box, found.pixel_size, found.premultiplied, found.has_ctf) == (BOX, PIXEL, False, True)
    given = _table(warp1()).columns
    euler = np.stack([np.asarray(given[f"rlnAngle{name}"]) for name in ("Rot", "Tilt", "Psi")], axis=1)
    # RELION's matrix is that of the three intrinsic turns about z, y, z, transposed
    expected = Rotation.from_euler("ZYZ", euler, degrees=True).as_matrix().transpose(0, 2, 1)
    np.testing.assert_allclose(found.rotation, expected, atol=1e-9)
    np.testing.assert_allclose(found.defocus_u, given["rlnDefocusU"])
    np.testing.assert_allclose(found.defocus_v, given["rlnDefocusV"])
    np.testing.assert_allclose(found.angle, given["rlnDefocusAngle"])
    np.testing.assert_allclose(found.phase_shift, 5.0)
    np.testing.assert_allclose(found.dose, 3.0 * np.array([1, 2, 3, 1, 2, 1, 2, 3, 4]))
    np.testing.assert_allclose(found.cos_tilt, given["rlnCtfScalefactor"])
    assert found.section.tolist() == list(range(9))
    assert set(zip(found.voltage.tolist(), found.cs.tolist(), found.amplitude.tolist(), strict=True)) == {
        (300.0, 2.7, 0.07)
    }
    # the origin is what moves an image's particle to the centre: the particle is at its negative
    shift = np.stack([np.linspace(4.0, -4.0, 9), np.linspace(-8.0, 8.0, 9)], axis=1)
    np.testing.assert_allclose(found.shift, 0.0 if flavour == "warp1" else shift, atol=1e-9)
    assert found.half.tolist() == ([0, 1, 0] if flavour in ("warp1", "nextpyp") else [-1] * 3)
    names = {"warp1": ["TS_01", "TS_02", "TS_03"], "nextpyp": ["TS_01", "TS_02", "TS_03"]}
    assert found.tomogram == names.get(flavour, [""] * 3)


def test_rows_of_a_particle_need_not_follow_each_other(tmp_path: Path) -> None:
    order = np.random.default_rng(1).permutation(9)
    plain = read_tilt_particles(write_rows(tmp_path / "a", warp1()))
    mixed = read_tilt_particles(write_rows(tmp_path / "b", _shuffled(warp1(), order)))
    assert sorted(mixed.particle) == plain.particle
    assert mixed.particle[0] == f"TS_{1 + [0, 0, 0, 1, 1, 2, 2, 2, 2][order[0]]:05d}"
    for i, name in enumerate(mixed.particle):
        one, other = mixed.select([i]), plain.select([plain.particle.index(name)])
        a, b = np.argsort(one.section), np.argsort(other.section)
        np.testing.assert_array_equal(one.section[a], other.section[b])
        np.testing.assert_allclose(one.rotation[a], other.rotation[b])
        np.testing.assert_allclose(one.dose[a], other.dose[b])
    np.testing.assert_array_equal(order[mixed.row], mixed.section)


@pytest.mark.parametrize(("flavour", "label"), EACH)
def test_a_missing_column_is_named(flavour: str, label: str, tmp_path: Path) -> None:
    blocks = IMAGE_ROWS[flavour][0]()
    for block in blocks.values():
        block.columns.pop(label, None)
    with pytest.raises(FormatError, match=f"_{label}") as caught:
        read_tilt_particles(write_rows(tmp_path, blocks))
    assert "particles.star" in str(caught.value)


def test_several_missing_columns_are_named_together(tmp_path: Path) -> None:
    blocks = warp1()
    for label in ("rlnAngleTilt", "rlnDefocusV", "rlnVoltage"):
        del blocks[""].columns[label]
    with pytest.raises(FormatError, match="_rlnAngleTilt, _rlnDefocusV and _rlnVoltage"):
        read_tilt_particles(write_rows(tmp_path, blocks))


@pytest.mark.parametrize(
    ("flavour", "label"),
    [
        *(("warp1", label) for label in ("rlnAngleRot", "rlnDefocusU", "rlnCtfBfactor", "rlnPhaseShift")),
        *(("nextpyp", label) for label in ("rlnOriginXAngst", "rlnCtfScalefactor", "rlnVoltage")),
        *(("cistem", label) for label in ("cisTEMAnglePsi", "cisTEMYShift", "cisTEMPreExposure")),
        ("cryosrpnt", "rlnOriginY"),
    ],
)
@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "none"])
def test_what_is_no_number_is_named_by_row(flavour: str, label: str, value: str, tmp_path: Path) -> None:
    blocks = IMAGE_ROWS[flavour][0]()
    if label == "cisTEMPreExposure":
        del blocks[""].columns["cisTEMTotalExposure"]
    block = next(b for b in blocks.values() if label in b)
    column = [str(v) for v in block[label]]
    column[-1] = value
    block.columns[label] = column
    with pytest.raises(CorruptError, match=f"_{label} is {value}") as caught:
        read_tilt_particles(write_rows(tmp_path, blocks))
    where = "optics group 1" if len(column) == 1 else f"row {len(column)} "
    assert where in str(caught.value)


def test_without_ctf_columns_there_is_no_ctf(tmp_path: Path) -> None:
    blocks = cryosrpnt()
    for label in ("rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle", "rlnPhaseShift", "rlnVoltage"):
        del blocks[""].columns[label]
    found = read_tilt_particles(write_rows(tmp_path, blocks))
    assert not found.has_ctf
    assert not found.defocus_u.any()
    assert found.dose.all()


def test_what_is_optional(tmp_path: Path) -> None:
    blocks = cryosrpnt()
    for label in ("rlnCtfBfactor", "rlnCtfScalefactor", "rlnOriginX", "rlnOriginY", "rlnPhaseShift"):
        del blocks[""].columns[label]
    found = read_tilt_particles(write_rows(tmp_path, blocks))
    assert not found.dose.any()
    assert (found.cos_tilt == 1.0).all()
    assert not found.shift.any()
    assert not found.phase_shift.any()


def test_other_columns_are_kept(tmp_path: Path) -> None:
    blocks = nextpyp()
    blocks["particles"].columns["myOwn"] = [f"{i}.25" for i in range(9)]
    blocks["particles"].columns["myText"] = ["a"] * 9
    found = read_tilt_particles(write_rows(tmp_path, blocks))
    assert found.columns["myOwn"].tolist() == [0.25, 3.25, 5.25]
    assert found.columns["rlnLogLikeliContribution"].tolist() == [0.0, 4.5, 7.5]
    assert "myText" not in found.columns
    assert found.blocks["particles"].strings("myText") == ["a"] * 9


def test_places_are_those_of_the_tomogram_only(tmp_path: Path) -> None:
    blocks = warp1()
    found = read_tilt_particles(write_rows(tmp_path, blocks))
    assert np.isnan(found.place).all()  # x and y alone are of the tilt's image
    blocks[""].columns["rlnCoordinateZ"] = np.arange(9.0)
    blocks[""].columns["rlnTomoName"] = ["TS_7.tomostar"] * 9
    found = read_tilt_particles(write_rows(tmp_path, blocks))
    np.testing.assert_allclose(found.place[:, 2], PIXEL * np.array([0.0, 3.0, 5.0]))
    assert found.place_origin == "corner"
    assert found.tomogram == ["TS_7"] * 3


def test_micrographs_of_tilts_are_of_one_series(tmp_path: Path) -> None:
    blocks = warp1()
    names = [
        "TS_1_1",
        "TS_1_10",
        "TS_1_12",
        "b/TS_2.mrc",
        "c/TS_2.mrc",
        "pos_1-0",
        "pos_1-3",
        "pos_1-5",
        "pos_2-1",
    ]
    blocks[""].columns["rlnMicrographName"] = names
    assert read_tilt_particles(write_rows(tmp_path, blocks)).tomogram == ["TS_1", "TS_2", "pos"]


def test_numbers_of_particles_may_start_anew_in_every_tomogram(tmp_path: Path) -> None:
    blocks = nextpyp()
    blocks["particles"].columns["rlnGroupNumber"] = [1] * 9
    blocks["particles"].columns["rlnTomoName"] = ["A"] * 4 + ["B"] * 5
    found = read_tilt_particles(write_rows(tmp_path, blocks))
    assert found.particle == ["A/1", "B/1"]
    assert found.start.tolist() == [0, 4, 9]


def test_an_image_may_be_of_two_particles(tmp_path: Path) -> None:
    blocks = warp1()
    blocks[""].columns["rlnImageName"] = ["000001@stacks/all.mrcs"] * 9
    found = read_tilt_particles(write_rows(tmp_path, blocks))
    assert not found.section.any()
    assert found.images == 9


def test_the_pixel_size_is_of_the_magnification(tmp_path: Path) -> None:
    blocks = warp1()
    blocks[""].columns["rlnMagnification"] = [20000.0] * 9
    assert read_tilt_particles(write_rows(tmp_path, blocks)).pixel_size == pytest.approx(0.5 * PIXEL)
    blocks[""].columns["rlnDetectorPixelSize"] = [PIXEL] * 8 + [2.0 * PIXEL]
    with pytest.raises(FormatError, match="pixel size"):
        read_tilt_particles(write_rows(tmp_path, blocks))
    blocks[""].columns["rlnDetectorPixelSize"] = [0.0] * 9
    with pytest.raises(CorruptError, match=r"row 1 .*pixel size 0"):
        read_tilt_particles(write_rows(tmp_path, blocks))


# ---------------------------------------------------------------------- files


def test_where_stacks_are_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    star = tmp_path / "project" / "job" / "deep" / "particles.star"
    star.parent.mkdir(parents=True)
    write_star(star, warp1())

    def at(place: Path, **more: Any) -> None:
        write_stack(place, 9)
        found = read_tilt_particles(star, **more)
        assert found.files[0].resolve() == place.resolve()

    at(star.parent / "all.mrcs")  # by its bare name, last of all
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    at(elsewhere / "stacks" / "all.mrcs")
    at(tmp_path / "project" / "stacks" / "all.mrcs")
    at(star.parent / "stacks" / "all.mrcs")
    at(tmp_path / "data" / "all.mrcs", datadir=tmp_path / "data")
    at(tmp_path / "data" / "stacks" / "all.mrcs", datadir=tmp_path / "data")


def test_a_stack_that_is_not_there(tmp_path: Path) -> None:
    path = write_rows(tmp_path, warp1())
    (tmp_path / "stacks" / "all.mrcs").unlink()
    with pytest.raises(FormatError, match=r"stacks/all.mrcs .*not there.*looked in .*--datadir") as caught:
        read_tilt_particles(path, datadir=tmp_path / "nowhere")
    assert str(tmp_path / "nowhere") in str(caught.value)
    with pytest.raises(FormatError, match="no such file"):
        read_tilt_particles(tmp_path / "none.star")


def test_cistem_names_its_stack_or_has_one_of_its_own_name(tmp_path: Path) -> None:
    path = write_rows(tmp_path, cistem())
    assert read_tilt_particles(path).files == [tmp_path / "particles.mrcs"]
    (tmp_path / "particles.mrcs").unlink()
    with pytest.raises(FormatError, match=r"_cisTEMStackFilename.*particles.mrc, particles.mrcs"):
        read_tilt_particles(path)
    blocks = cistem()
    blocks[""].columns["cisTEMStackFilename"] = ["stacks/all.mrcs"] * 9
    blocks[""].columns["cisTEMOriginalImageFilename"] = [f"TS_4_{i}.mrc" for i in range(9)]
    found = read_tilt_particles(write_rows(tmp_path, blocks))
    assert found.files == [tmp_path / "stacks" / "all.mrcs"]
    assert found.tomogram == ["TS_4"] * 3


def test_a_stack_with_too_few_images(tmp_path: Path) -> None:
    path = write_rows(tmp_path, warp1())
    write_stack(tmp_path / "stacks" / "all.mrcs", 7)
    with pytest.raises(
        TruncatedError, match=r"all.mrcs: it has 7 images where particles.star needs 9 \(row 8"
    ):
        read_tilt_particles(path)


def test_a_stack_that_was_cut_short(tmp_path: Path) -> None:
    path = write_rows(tmp_path, warp1())
    stack = tmp_path / "stacks" / "all.mrcs"
    os.truncate(stack, stack.stat().st_size - 100)
    with pytest.raises(TruncatedError, match=r"all.mrcs"):
        read_tilt_particles(path)


def test_boxes_that_differ_name_both_files(tmp_path: Path) -> None:
    blocks = warp1()
    blocks[""].columns["rlnImageName"] = [f"1@stacks/{'all' if i < 5 else 'other'}.mrcs" for i in range(9)]
    path = write_rows(tmp_path, blocks)
    write_stack(tmp_path / "stacks" / "other.mrcs", 1, box=BOX + 2)
    with pytest.raises(FormatError, match=r"other.mrcs: .*10 × 10 pixels.*all.mrcs 8 × 8"):
        read_tilt_particles(path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("0@stacks/all.mrcs", "a number from 1 to 9"),
        ("x@stacks/all.mrcs", "row 4"),
        ("stacks/all.mrcs", "not number@file"),
    ],
)
def test_names_of_images_that_are_none(name: str, message: str, tmp_path: Path) -> None:
    blocks = warp1()
    blocks[""].columns["rlnImageName"][3] = name
    with pytest.raises(CorruptError, match=message):
        read_tilt_particles(write_rows(tmp_path, blocks))


def test_tables_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "some.star"
    write_star(path, {"": Table({label: [] for label in warp1()[""].columns})})
    with pytest.raises(FormatError, match="empty"):
        read_tilt_particles(path)
    write_star(path, {"micrographs": Table({"rlnMicrographName": ["a.mrc"]})})
    with pytest.raises(FormatError, match="_rlnImageName"):
        read_tilt_particles(path)
    volumes = nextpyp()
    volumes["optics"].columns["rlnImageDimensionality"] = [3]
    with pytest.raises(FormatError, match="sub-tomograms"):
        read_tilt_particles(write_rows(tmp_path, volumes))
    volumes = {"": Table({"rlnImageName": ["a.mrc"], "rlnCtfImage": ["b.mrc"]})}  # Warp 1's
    with pytest.raises(FormatError, match="sub-tomograms"):
        read_tilt_particles(write_rows(tmp_path, volumes))


def test_optics_groups_that_are_not_described(tmp_path: Path) -> None:
    blocks = nextpyp()
    blocks["particles"].columns["rlnOpticsGroup"] = [1] * 8 + [2]
    with pytest.raises(CorruptError, match=r"row 9 .*optics group 2"):
        read_tilt_particles(write_rows(tmp_path, blocks))
    del blocks["particles"].columns["rlnOpticsGroup"]
    found = read_tilt_particles(write_rows(tmp_path, blocks))  # there is one only
    assert found.pixel_size == PIXEL


# ---------------------------------------------------------------------- parts


def _same(one: TiltParticles, other: TiltParticles) -> None:
    assert one.particle == other.particle
    assert one.start.tolist() == other.start.tolist()
    for name in ("section", "rotation", "shift", "defocus_u", "dose", "cos_tilt", "half"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), atol=1e-9)
    paths = [[found.files[i].resolve() for i in found.file] for found in (one, other)]
    assert paths[0] == paths[1]


@pytest.mark.parametrize("flavour", IMAGE_ROWS)
def test_a_selection_is_written_in_its_own_flavour(flavour: str, tmp_path: Path) -> None:
    found = read_tilt_particles(write_rows(tmp_path / "a", IMAGE_ROWS[flavour][0]()))
    for keep in ([2, 0], np.array([True, False, True])):
        for path in (tmp_path / "a" / "some.star", tmp_path / "b" / "c" / "some.star"):
            write_tilt_particles(path, found, keep)
            again = read_tilt_particles(path)
            assert again.flavour == flavour
            _same(again, found.select([0, 2]))
            assert not path.with_name("some_optimisation_set.star").exists()
    # names stay as they are where they can
    if flavour != "cistem":
        kept = _table(read_star(tmp_path / "a" / "some.star"))
        assert kept.strings("rlnImageName")[0] == "000001@stacks/all.mrcs"
        assert len(kept) == 7
    with pytest.raises(ValueError, match="no particles"):
        write_tilt_particles(tmp_path / "none.star", found, [])


def test_a_selection_of_a_selection(tmp_path: Path) -> None:
    found = read_tilt_particles(write_rows(tmp_path, warp1()))
    some = found.select([2, 1])
    assert some.particle == ["TS_00003", "TS_00002"]
    assert some.section.tolist() == [5, 6, 7, 8, 3, 4]
    assert some.columns["rlnRandomSubset"].tolist() == [1.0, 2.0]
    write_tilt_particles(tmp_path / "one.star", some, [1])
    _same(read_tilt_particles(tmp_path / "one.star"), found.select([1]))
    assert len(found.select([])) == 0
    assert found.select(np.zeros(3, bool)).images == 0
    assert found.select(slice(1, None)).particle == ["TS_00002", "TS_00003"]
    with pytest.raises(IndexError):
        found.select([3])
    with pytest.raises(IndexError):
        found.select(np.ones(2, bool))
