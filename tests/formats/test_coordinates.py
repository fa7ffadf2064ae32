"""Coordinates of particles in micrographs: real files of other programs, and what is wrong with some."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import starfile
from hypothesis import given, settings
from hypothesis import strategies as st

from weft.errors import CorruptError, FormatError, InputFileError, TruncatedError
from weft.formats.coordinate_star import NoCoordinatesError
from weft.formats.coordinates import read_box, read_coordinates, read_topaz, write_box

BOXES = "MPI-Dortmund__napari-boxmanager/test_data"
PROJECT = "Conecsion__sppractice"


@pytest.fixture(scope="module")
def real(reference_data: Path) -> Path:
    return reference_data / "real"


def test_relion_picks_of_one_micrograph(real: Path) -> None:
    paths = sorted((real / PROJECT).glob("AutoPick/job008/Movies/*_autopick.star"))
    assert len(paths) == 5
    for path in paths:
        (found,) = read_coordinates(path).micrographs
        truth = starfile.read(path)
        assert found.micrograph == ""  # only the file's name says it
        assert found.pixel_size is None
        assert found.eulers is None  # all of them are 0
        # the same text is parsed, so that the numbers are the same
        np.testing.assert_array_equal(found.xy, truth[["rlnCoordinateX", "rlnCoordinateY"]])
        np.testing.assert_array_equal(found.score, truth["rlnAutopickFigureOfMerit"])
        np.testing.assert_array_equal(found.class_number, truth["rlnClassNumber"])


def test_relion_picks_by_hand_have_no_score_or_angle(real: Path) -> None:
    file = read_coordinates(real / PROJECT / "ManualPick/job006/manualpick.star")
    (found,) = file.micrographs
    assert found.micrograph == "MotionCorr/job002/Movies/20170629_00021_frameImage.mrc"
    assert len(found) == 13
    assert np.isnan(found.score).all()
    assert found.eulers is None


def test_relion_list_of_files(real: Path) -> None:
    """RELION 4 lists the files relative to its project; half of these are not in the repository."""
    file = read_coordinates(real / PROJECT / "AutoPick/job008/autopick.star")
    assert [Path(c.micrograph).stem for c in file.micrographs] == [
        f"20170629_{i:05d}_frameImage" for i in range(21, 26)
    ]
    assert [len(c) for c in file.micrographs] == [242, 228, 229, 221, 237]
    assert len(file.missing) == 5


@pytest.mark.parametrize(
    "name",
    [
        f"{PROJECT}/Extract/job009/particles.star",
        "ComputationalCryoEM__ASPIRE-Python/sample_particles_relion30.star",
        "ComputationalCryoEM__ASPIRE-Python/sample_particles_relion31.star",
        "bogdantoader__simplecryoem/relion_project_reference/pyem.star",
    ],
)
def test_relion_particles_of_many_micrographs(real: Path, name: str) -> None:
    file = read_coordinates(real / name)
    truth = starfile.read(real / name)
    table = truth["particles"] if isinstance(truth, dict) else truth
    assert sum(map(len, file.micrographs)) == len(table)
    for found in file.micrographs:
        rows = table[table["rlnMicrographName"] == found.micrograph]
        np.testing.assert_array_equal(found.xy, rows[["rlnCoordinateX", "rlnCoordinateY"]])


def test_refined_shifts(real: Path) -> None:
    """The file says them both in Å and in pixels of 3.54 Å, to six digits."""
    path = real / "bogdantoader__simplecryoem/relion_project_reference/pyem.star"
    found = read_coordinates(path).micrographs[0]
    assert found.origin is not None
    np.testing.assert_allclose(found.origin[0], [-3.304011 * 3.54, -1.304011 * 3.54], atol=2e-3)
    text = path.read_text().replace("_rlnOriginXAngst", "_other")
    copy = read_text(path, text)
    assert copy.micrographs[0].origin is not None
    np.testing.assert_allclose(copy.micrographs[0].origin, found.origin, atol=2e-3)


def read_text(like: Path, text: str):  # type: ignore[no-untyped-def]
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / like.name
        path.write_text(text)
        return read_coordinates(path)


def test_cryolo_boxes(real: Path) -> None:
    paths = [*(real / BOXES).glob("*_cbox_2d/*.cbox"), real / BOXES / "2d_particles.cbox"]
    checked = 0
    for path in paths:
        if path.name == "empty.cbox":
            continue
        file = read_coordinates(path)
        (found,) = file.micrographs
        table = starfile.read(path)["cryolo"]
        assert file.program == "cryolo"
        np.testing.assert_allclose(found.xy[:, 0], table["CoordinateX"] + table["Width"] / 2, rtol=1e-12)
        np.testing.assert_allclose(found.xy[:, 1], table["CoordinateY"] + table["Height"] / 2, rtol=1e-12)
        assert found.box == table["Width"].median()
        checked += len(found)
        if path.name == "TcdA1-0018_frames_sum.cbox":
            assert found.score[0] == pytest.approx(0.6578449010848999, rel=1e-12)
        if path.name == "2d_particles.cbox":
            assert np.isnan(found.score).all()  # <NA>
    assert checked == 223 + 56 + 71 + 16 + 737 + 120 + 129 + 3


def test_boxes_have_corners(real: Path) -> None:
    """The same particles once with corners and sides, once as boxes without extent about the centres."""
    left, centred = (read_box(real / BOXES / f"2d_{name}.box") for name in ("left", "center"))
    np.testing.assert_array_equal(left.xy, centred.xy)
    assert left.box == 15.0
    assert math.isnan(centred.box)
    assert len(read_box(real / BOXES / "2d_empty.box")) == 0
    assert len(list((real / BOXES).glob("box_data/*.box"))) == 19
    for path in (real / BOXES).glob("box_data/*.box"):
        assert len(read_box(path)) == 3


@pytest.mark.parametrize(
    ("name", "error", "said"),
    [
        ("2d_corrupt_has_string.box", CorruptError, "line 2: 'sixty_three'"),
        ("2d_corrupt_unqual_columns.box", TruncatedError, "line 3: 3 values instead of 4"),
        ("valid_box/2d.box", FormatError, "not a list of boxes"),
        ("filament_cbox_2d/empty.cbox", TruncatedError, "empty"),
        ("3d_particle.cbox", FormatError, "in a tomogram"),
    ],
)
def test_bad_boxes(real: Path, name: str, error: type[InputFileError], said: str) -> None:
    with pytest.raises(error, match=said) as caught:
        read_coordinates(real / BOXES / name)
    assert caught.value.path == real / BOXES / name


@pytest.mark.parametrize(
    ("name", "error"),
    [
        (f"{PROJECT}/MotionCorr/job002/Movies/20170629_00021_frameImage.star", NoCoordinatesError),
        (f"{PROJECT}/AutoPick/job008/job.star", NoCoordinatesError),
        ("teamtomo__starfile/one_loop.star", FormatError),  # of a tomogram
    ],
)
def test_stars_about_something_else(real: Path, name: str, error: type[FormatError]) -> None:
    with pytest.raises(error):
        read_coordinates(real / name)


def test_fifth_column_of_boxes(tmp_path: Path) -> None:
    path = tmp_path / "a.box"
    path.write_text("10 20 100 100 -3\n30 40 100 100 -3\n")
    assert np.isnan(read_box(path).score).all()  # EMAN's mark
    path.write_text("10\t20\t100\t100\t0.31\n30\t40\t100\t100\t0.25\n")
    found = read_box(path)
    np.testing.assert_array_equal(found.score, [0.31, 0.25])  # Gautomatch's score
    np.testing.assert_array_equal(found.xy, [[60, 70], [80, 90]])
    path.write_text("10 20 100 -5\n")
    with pytest.raises(CorruptError, match="line 1"):
        read_box(path)


@settings(deadline=None, max_examples=40)  # files on a busy disk
@given(
    st.lists(st.tuples(*[st.floats(-1e4, 1e5)] * 2), max_size=20),
    st.integers(2, 600),
    st.booleans(),
)
def test_boxes_out_and_in(
    tmp_path_factory: pytest.TempPathFactory, xy: list[tuple[float, float]], side: int, scored: bool
) -> None:
    path = tmp_path_factory.mktemp("box") / "a.box"
    score = np.linspace(0.1, 0.9, len(xy)) if scored else None
    write_box(path, xy, side, score)
    found = read_box(path)
    # three digits after the point are written; %g keeps six digits of whole numbers
    np.testing.assert_allclose(found.xy, np.array(xy).reshape(-1, 2), atol=1e-3)
    if score is not None and len(xy):
        np.testing.assert_allclose(found.score, score, atol=5e-4)


TOPAZ = (
    "image_name\tx_coord\ty_coord\tscore\nmic_a\t100\t200\t1.5\nmic_b\t10\t20\t-0.5\nmic_a\t300\t400\t0.25\n"
)


def test_topaz(tmp_path: Path) -> None:
    path = tmp_path / "extracted.txt"
    path.write_text(TOPAZ)
    file = read_coordinates(path)
    assert file.program == "topaz"
    a, b = file.micrographs
    assert (a.micrograph, b.micrograph) == ("mic_a", "mic_b")
    np.testing.assert_array_equal(a.xy, [[100, 200], [300, 400]])
    np.testing.assert_array_equal(a.score, [1.5, 0.25])
    path.write_text("image_name\tx_coord\ty_coord\nmic_a\t1\t2\n")
    assert np.isnan(read_topaz(path)[0].score).all()


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("", TruncatedError, "empty"),
        ("some log\nof something\n", FormatError, "image_name"),
        (TOPAZ.replace("-0.5", "bad"), CorruptError, "line 3: 'bad'"),
        (TOPAZ[: TOPAZ.rindex("400")], TruncatedError, "line 4: "),
        (TOPAZ + "\0\0", CorruptError, "zero bytes"),
    ],
)
def test_bad_topaz(tmp_path: Path, text: str, error: type[InputFileError], said: str) -> None:
    path = tmp_path / "extracted.txt"
    path.write_text(text)
    with pytest.raises(error, match=said):
        read_coordinates(path)


def test_warp_boxnet_and_gautomatch(tmp_path: Path) -> None:
    head = "data_\n\nloop_\n_rlnCoordinateX #1\n_rlnCoordinateY #2\n"
    warp = tmp_path / "movie_1_BoxNet2Mask_20180918.star"
    warp.write_text(
        head + "_rlnMicrographName #3\n_rlnAutopickFigureOfMerit #4\n12.5\t40\tmovie_1.mrc\t0.93\n"
    )
    (found,) = read_coordinates(warp).micrographs
    assert (found.micrograph, found.score[0]) == ("movie_1.mrc", 0.93)
    auto = tmp_path / "movie_1_automatch.star"
    auto.write_text(
        head + "_rlnClassNumber #3\n_rlnAnglePsi #4\n_rlnAutopickFigureOfMerit #5\n 7 8 2 315.0 0.31\n"
    )
    (found,) = read_coordinates(auto).micrographs
    assert found.eulers is not None
    np.testing.assert_array_equal(found.eulers, [[0, 0, 315]])
    assert found.class_number is not None
    assert found.class_number.tolist() == [2]


def test_xmipp(tmp_path: Path) -> None:
    path = tmp_path / "mic.pos"
    path.write_text(
        "# XMIPP_STAR_1 *\n#\ndata_header\n _pickingMicrographState Manual\n"
        "data_particles\nloop_\n _cost\n _xcoor\n _ycoor\n 0.5 100 200\n -1 3 4\n"
    )
    file = read_coordinates(path)
    assert file.program == "xmipp"
    np.testing.assert_array_equal(file.micrographs[0].xy, [[100, 200], [3, 4]])


def test_pixel_size_of_the_micrograph(tmp_path: Path) -> None:
    path = tmp_path / "particles.star"
    text = (
        "data_optics\n\nloop_\n_rlnOpticsGroup\n_rlnMicrographPixelSize\n1 0.85\n2 1.7\n\n"
        "data_particles\n\nloop_\n_rlnImageName\n_rlnCoordinateX\n_rlnCoordinateY\n_rlnOpticsGroup\n"
        "000001@Extract/a.mrcs 1 2 1\n000002@Extract/a.mrcs 3 4 1\n000001@Extract/b.mrcs 5 6 2\n"
    )
    path.write_text(text)
    a, b = read_coordinates(path).micrographs
    assert (a.micrograph, a.pixel_size, len(a)) == ("Extract/a.mrcs", 0.85, 2)
    assert (b.micrograph, b.pixel_size, len(b)) == ("Extract/b.mrcs", 1.7, 1)
    for old, new, said in (
        ("2 1.7", "2 nan", "row 2 of _rlnMicrographPixelSize"),
        ("5 6 2", "5 6 3", "optics group 3"),
        ("3 4 1", "3 oops 1", "row 2 of _rlnCoordinateY: 'oops'"),
        ("3 4 1", "3 4", "2 labels|values"),
    ):
        path.write_text(text.replace(old, new))
        with pytest.raises(CorruptError, match=said):
            read_coordinates(path)


def test_coordinates_that_are_not_finite_are_left_to_the_reader(tmp_path: Path) -> None:
    path = tmp_path / "a.star"
    path.write_text("data_\n\nloop_\n_rlnCoordinateX\n_rlnCoordinateY\n1 2\nnan 3\ninf 4\n")
    (found,) = read_coordinates(path).micrographs
    assert np.isfinite(found.xy).all(1).tolist() == [True, False, False]


def test_unknown_endings(tmp_path: Path) -> None:
    path = tmp_path / "picks.json"
    path.write_text("{}")
    with pytest.raises(FormatError, match=r"\.star"):
        read_coordinates(path)
