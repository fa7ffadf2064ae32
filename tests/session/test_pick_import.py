"""`weft import picks`, `weft export picks` and `weft export cryosparc`: names, pixels, what is left out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import starfile
from typer.testing import CliRunner

from weft.errors import CorruptError, FormatError, InputFileError, RequestError
from weft.formats import mrc
from weft.formats.coordinates import read_coordinates, write_box
from weft.formats.cryosparc import read_cs, strings, write_cs
from weft.formats.star import Table, read_star, write_star
from weft.picking.picks import Picks
from weft.session.cryosparc_export import export_cryosparc
from weft.session.micrograph_names import MicrographNames
from weft.session.pick_conversion import PickImportSettings
from weft.session.pick_export import export_picks
from weft.session.pick_files import pick_path, read_picks
from weft.session.pick_import import import_picks
from weft.session.records import FileIdentity, Record, StepRecord
from weft.session.session import Session
from weft.session.session import open as open_session

PIXEL, SIDE = 1.5, 320


@pytest.fixture
def session(tmp_path: Path) -> Session:
    """Three movies as they are after the motion and ctf steps, which need not run for this."""
    import weft

    frames, root = tmp_path / "frames", tmp_path / "session"
    frames.mkdir()
    constants = {"pixel_size": PIXEL, "voltage": 300.0, "cs": 2.7, "amplitude": 0.07, "dose_per_frame": 4.0}
    session = weft.new(root, frames=frames / "*.tif", **constants)
    (root / "records").mkdir(exist_ok=True)
    (root / "average").mkdir(exist_ok=True)
    for i in range(3):
        movie = frames / f"movie_{i:03d}.tif"
        movie.write_bytes(b"not looked at")
        average = f"average/{movie.stem}.mrc"
        mrc.write(root / average, np.zeros((SIDE, SIDE), np.float32), PIXEL)
        motion = StepRecord(
            "done",
            "-",
            {"input": constants},
            {"metrics": {"pixel_size": PIXEL}, "model": {"n_frames": 5}},
            {"average": average, "motion_star": f"average/{movie.stem}.star"},
        )
        fit = {"defocus": 1e4 + 500 * i, "astigmatism": 200.0, "astigmatism_angle": 30.0, "phase_shift": 0.0}
        ctf = StepRecord("done", "-", {}, {"metrics": {**fit, "resolution": 4.0, "ctf_score": 0.3}})
        record = Record(movie.stem, "movie", FileIdentity.of(movie), {"motion": motion, "ctf": ctf})
        session.store.write(record)
    return open_session(root)


@pytest.fixture
def items(session: Session) -> list[str]:
    names = list(session.items)
    assert len(names) == 3
    return names


def write_relion(path: Path, xy: np.ndarray, **columns: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = {"rlnCoordinateX": xy[:, 0], "rlnCoordinateY": xy[:, 1], **columns}
    write_star(path, {"": Table(table)})
    return path


def imported(session: Session, name: str, item: str) -> Picks:
    return read_picks(session.root / pick_path(name, item), PIXEL)


# ---------------------------------------------------------------------- names


@dataclass
class Named:
    name: str
    source: Path


GRID = "FoilHole_123_Data_456_20210210_154050"
ITEMS = [
    Named("movie_000", Path("/data/frames/movie_000.tif")),
    Named("movie_001", Path("/data/frames/movie_001.tif")),
    Named(f"{GRID}_fractions", Path(f"/data/frames/{GRID}_fractions.tiff")),
    Named("20170629_00021_frameImage", Path("/data/20170629_00021_frameImage.tiff")),
    Named("same", Path("/data/grid1/same.eer")),
    Named("same__grid2", Path("/data/grid2/same.eer")),
]


@pytest.mark.parametrize(
    ("name", "items"),
    [
        ("movie_000", ["movie_000"]),
        ("MotionCorr/job002/frames/movie_001.mrc", ["movie_001"]),
        ("average/movie_001.mrc", ["movie_001"]),
        (r"C:\picks\movie_001_automatch.star", ["movie_001"]),
        ("movie_000_BoxNet2Mask_20180918.star", ["movie_000"]),
        ("Extract/job009/movie_000.mrcs", ["movie_000"]),
        ("movie_000.tif.mrc", ["movie_000"]),
        (
            ">J14/motioncorrected/012951868257382468663_movie_001_patch_aligned_doseweighted.mrc",
            ["movie_001"],
        ),
        ("J3/imported/12951868257382468_movie_000.mrc", ["movie_000"]),
        (f"{GRID}_aligned_mic_DW.mrc", [f"{GRID}_fractions"]),
        (f"{GRID}.box", [f"{GRID}_fractions"]),
        ("AutoPick/job008/Movies/20170629_00021_frameImage_autopick.star", ["20170629_00021_frameImage"]),
        ("movie_0", []),
        ("movie", []),
        ("20170629_00022_frameImage.mrc", []),
        ("grid2/same.mrc", ["same__grid2"]),
        ("session/average/same.mrc", ["same"]),
        ("same__grid2.mrc", ["same__grid2"]),
        ("same.mrc", ["same", "same__grid2"]),  # nobody can tell
    ],
)
def test_names(name: str, items: list[str]) -> None:
    assert sorted(MicrographNames(ITEMS).find(name)) == items


# ---------------------------------------------------------------------- import


def test_picks_of_relion(session: Session, items: list[str], tmp_path: Path) -> None:
    xy = np.array(
        [[10.0, 20.0], [319.4, 0.0], [100.0, 200.5], [-0.4, 5.0], [320.0, 5.0], [np.nan, 5.0], [7, 1e9]]
    )
    score = [0.1, 0.3, -999.0, 0.2, 0.9, 0.9, 0.9]
    folder = tmp_path / "AutoPick"
    for item in items[:2]:
        write_relion(folder / f"{item}_autopick.star", xy, rlnAutopickFigureOfMerit=score)
    write_star(folder / "job.star", {"job": Table({"rlnJobTypeLabel": ["x"]}, loop=False)})
    write_relion(folder / "elsewhere_autopick.star", xy[:1])
    report = import_picks(session, [folder], PickImportSettings(diameter=120.0))
    assert report.name == "relion"
    assert report.exit_code == 0
    assert [p.item for p in report.imported] == items[:2]
    assert report.without == items[2:]
    assert report.unknown == [str(folder / "elsewhere_autopick.star")]
    assert report.passed_over == 1
    assert report.skipped == {"outside the image": 4, "without finite coordinates": 2}
    found = imported(session, "relion", items[0])
    # three digits are written
    np.testing.assert_allclose(found.xy, xy[[1, 3, 0, 2]] * PIXEL, atol=1e-3)
    np.testing.assert_allclose(found.score[:3], [0.3, 0.2, 0.1])
    assert np.isnan(found.score[3])
    assert found.diameter == 120.0
    text = report.describe()
    for said in (
        "8 picks of 2 micrographs: picks/relion",
        "4 picks left out: outside",
        "elsewhere",
        items[2],
    ):
        assert said in text


def test_least_score(session: Session, items: list[str], tmp_path: Path) -> None:
    path = write_relion(
        tmp_path / f"{items[0]}.star", np.full((3, 2), 50.0), rlnAutopickFigureOfMerit=[0.2, 0.4, np.nan]
    )
    report = import_picks(session, [path], PickImportSettings(minimum_score=0.3), name="mine")
    assert report.skipped == {"below --minimum-score": 1}
    assert len(imported(session, "mine", items[0])) == 2


def test_other_pixels(session: Session, items: list[str], tmp_path: Path) -> None:
    """Topaz often sees micrographs made smaller, of which its table says nothing."""
    random = np.random.default_rng(0)
    xy = random.uniform(0, SIDE - 1, (150, 2))
    path = tmp_path / "topaz.txt"
    rows = "".join(f"{items[0]}\t{x / 4:.4f}\t{y / 4:.4f}\t1\n" for x, y in xy)
    path.write_text("image_name\tx_coord\ty_coord\tscore\n" + rows)
    report = import_picks(session, [path])
    assert any("--pixel-size" in note for note in report.notes)
    report = import_picks(session, [path], PickImportSettings(pixel_size=4 * PIXEL))
    assert not report.notes
    np.testing.assert_allclose(imported(session, "topaz", items[0]).xy, xy * PIXEL, atol=4e-3)
    with_large = tmp_path / f"{items[1]}.star"
    write_relion(with_large, xy * 2)
    report = import_picks(session, [with_large])
    assert report.exit_code == 1
    assert "--pixel-size" in report.problems[0]
    write_relion(with_large, xy * 2, rlnMicrographPixelSize=np.full(len(xy), PIXEL / 2))
    report = import_picks(session, [with_large], name="said")
    assert report.exit_code == 0
    np.testing.assert_allclose(imported(session, "said", items[1]).xy, xy * PIXEL, atol=2e-3)
    # the same pixel, calibrated otherwise
    write_relion(with_large, xy, rlnMicrographPixelSize=np.full(len(xy), PIXEL * 1.02))
    import_picks(session, [with_large], name="calibrated")
    np.testing.assert_allclose(imported(session, "calibrated", items[1]).xy, xy * PIXEL, atol=2e-3)


def test_boxes_and_shifts(session: Session, items: list[str], tmp_path: Path) -> None:
    xy = np.array([[100.0, 60.0], [40.0, 250.0]])
    write_box(tmp_path / f"{items[0]}.box", xy, 64)
    import_picks(session, [tmp_path / f"{items[0]}.box"])
    np.testing.assert_allclose(imported(session, "eman", items[0]).xy, xy * PIXEL)
    path = write_relion(
        tmp_path / f"{items[0]}.star", xy, rlnOriginXAngst=[3.0, 0.0], rlnOriginYAngst=[0.0, -6.0]
    )
    import_picks(session, [path], name="a")
    np.testing.assert_allclose(imported(session, "a", items[0]).xy, xy * PIXEL)
    import_picks(session, [path], PickImportSettings(recenter=True), name="b")
    np.testing.assert_allclose(imported(session, "b", items[0]).xy, xy * PIXEL + [[-3.0, 0.0], [0.0, 6.0]])


def cs_of(path: Path, name: str, shape: tuple[int, int], xy: np.ndarray) -> Path:
    rows = np.zeros(
        len(xy),
        [
            ("uid", "<u8"),
            ("location/micrograph_path", "S120"),
            ("location/micrograph_shape", "<u4", (2,)),
            ("location/center_x_frac", "<f4"),
            ("location/center_y_frac", "<f4"),
        ],
    )
    rows["location/micrograph_path"] = name.encode()
    rows["location/micrograph_shape"] = shape
    rows["location/center_x_frac"], rows["location/center_y_frac"] = (xy / np.array(shape)[::-1]).T
    write_cs(path, rows)
    return path


def test_picks_of_cryosparc(session: Session, items: list[str], tmp_path: Path) -> None:
    xy = np.array([[10.0, 20.0], [300.0, 150.0]])
    plain = cs_of(tmp_path / "p.cs", f"J2/imported/123456789012345678_{items[0]}.mrc", (640, 640), xy * 2)
    assert import_picks(session, [plain]).exit_code == 0
    # fractions in single precision and three digits of a pixel
    np.testing.assert_allclose(imported(session, "cryosparc", items[0]).xy, xy * PIXEL, atol=2e-3)
    other = cs_of(tmp_path / "q.cs", f"J2/imported/{items[0]}.mrc", (640, 500), xy)
    report = import_picks(session, [other])
    assert report.exit_code == 1
    assert "another field" in report.problems[0]
    theirs = f"J3/motioncorrected/123456789012345678_{items[0]}_patch_aligned_doseweighted.mrc"
    flipped = cs_of(tmp_path / "r.cs", theirs, (SIDE, SIDE), xy)
    with pytest.raises(RequestError, match="--flip-y"):
        import_picks(session, [flipped])
    import_picks(session, [flipped], PickImportSettings(flip_y=False), name="no")
    np.testing.assert_allclose(imported(session, "no", items[0]).xy, xy * PIXEL, atol=2e-3)
    import_picks(session, [flipped], PickImportSettings(flip_y=True), name="yes")
    mirrored = np.stack([xy[:, 0], SIDE - 1 - xy[:, 1]], 1) * PIXEL
    np.testing.assert_allclose(imported(session, "yes", items[0]).xy, mirrored, atol=2e-3)


def test_bad_files_cost_themselves_only(session: Session, items: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    for item in items:
        write_relion(folder / f"{item}.star", np.full((4, 2), 30.0))
    broken = folder / f"{items[1]}.star"
    broken.write_text(broken.read_text().rstrip()[:-5])  # the last row stops short
    report = import_picks(session, [folder], name="x")
    assert report.exit_code == 1
    assert [p.item for p in report.imported] == [items[0], items[2]]
    assert len(report.problems) == 1
    assert str(broken) in report.problems[0]
    assert not (session.root / pick_path("x", items[1])).exists()
    # twice the same micrograph
    write_relion(tmp_path / "again" / f"{items[0]}.star", np.full((4, 2), 30.0))
    report = import_picks(session, [folder / f"{items[0]}.star", tmp_path / "again"], name="y")
    assert "2 lists of picks" in report.problems[0]


def test_requests_that_are_wrong(session: Session, items: list[str], tmp_path: Path) -> None:
    path = write_relion(tmp_path / "one" / f"{items[0]}.star", np.full((4, 2), 30.0))
    write_box(tmp_path / "one" / f"{items[0]}.box", [[30.0, 30.0]], 10)
    (tmp_path / "empty").mkdir()
    for paths, given, said in (
        ([tmp_path / "nowhere"], {}, "no file or folder"),
        ([tmp_path / "empty"], {}, "no files with coordinates"),
        ([tmp_path / "one"], {}, "several kinds"),
        ([path], {"name": "../up"}, "--name"),
        ([path], {"name": "manual"}, "own picks"),
        ([path], {"only": "nothing*"}, "no movies like"),
    ):
        with pytest.raises(RequestError, match=said):
            import_picks(session, paths, **given)  # type: ignore[arg-type]
    assert not (session.root / "picks").exists()


def test_command(session: Session, items: list[str], tmp_path: Path) -> None:
    from weft.cli.import_ import app

    path = write_relion(tmp_path / f"{items[0]}.star", np.full((4, 2), 30.0))
    command = ["picks", str(session.root), str(path), "--name", "mine", "--diameter", "90", "--no-flip-y"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "4 picks of 1 micrographs: picks/mine" in result.output


# ---------------------------------------------------------------------- export


def test_picks_out_and_in(session: Session, items: list[str], tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    for item in items:
        write_relion(
            tmp_path / "in" / f"{item}.star",
            random.uniform(0, SIDE - 1, (20, 2)).round(3),
            rlnAutopickFigureOfMerit=np.linspace(0.9, 0.1, 20),
        )
    import_picks(session, [tmp_path / "in"], name="first")
    relion = export_picks(session, tmp_path / "out", project=tmp_path)
    assert relion.exit_code == 0
    table = starfile.read(relion.path)
    assert table["rlnMicrographName"].tolist() == [f"session/average/{item}.mrc" for item in items]
    for name in table["rlnMicrographCoordinates"]:
        assert len(next(iter(starfile.read(tmp_path / name, always_dict=True).values()))) == 20
    import_picks(session, [relion.path], name="second")
    export_picks(session, tmp_path / "boxes", picker="first", box=150.0)
    import_picks(session, [tmp_path / "boxes"], name="third")
    for item in items:
        first = imported(session, "first", item)
        for name, tolerance in (("second", 1e-6), ("third", 2e-3)):  # boxes have three digits
            again = imported(session, name, item)
            np.testing.assert_allclose(again.xy, first.xy, atol=tolerance)
            np.testing.assert_allclose(again.score, first.score, atol=1e-3)
    with pytest.raises(RequestError, match="--picks"):
        export_picks(session, tmp_path / "out")


def write_particles(folder: Path, items: list[str], n: int = 5) -> np.ndarray:
    """Stacks and a table as `weft export particles` makes them; the places in pixels."""
    random = np.random.default_rng(2)
    xy = random.uniform(0, SIDE - 1, (len(items) * n, 2))
    (folder / "stacks").mkdir(parents=True)
    for item in items:
        mrc.write(folder / "stacks" / f"{item}.mrcs", np.zeros((n, 16, 16), np.float32), 3.0)
    of = [item for item in items for _ in range(n)]
    columns = {
        "rlnImageName": [f"{i % n + 1:06d}@stacks/{item}.mrcs" for i, item in enumerate(of)],
        "rlnMicrographName": [f"average/{item}.mrc" for item in of],
        "rlnCoordinateX": xy[:, 0],
        "rlnCoordinateY": xy[:, 1],
        "rlnDefocusU": random.uniform(9e3, 2e4, len(of)),
        "rlnDefocusV": random.uniform(9e3, 2e4, len(of)),
        "rlnDefocusAngle": random.uniform(-90, 90, len(of)),
        "rlnAutopickFigureOfMerit": np.linspace(0.9, 0.1, len(of)),
        "rlnOpticsGroup": [1] * len(of),
    }
    optics = {
        "rlnOpticsGroup": [1],
        "rlnImagePixelSize": [3.0],
        "rlnImageSize": [16],
        "rlnVoltage": [300.0],
        "rlnSphericalAberration": [2.7],
        "rlnAmplitudeContrast": [0.07],
    }
    write_star(folder / "particles.star", {"optics": Table(optics), "particles": Table(columns)})
    return xy


def test_for_cryosparc(session: Session, items: list[str], tmp_path: Path) -> None:
    xy = write_particles(tmp_path / "p", items)
    session.select(session.selection.decide(items[1], False))
    out = tmp_path / "cs"
    report = export_cryosparc(session, out, particles=tmp_path / "p")
    report = export_cryosparc(session, out, particles=tmp_path / "p")  # again, over what is there
    assert (report.exposures, report.particles, report.exit_code) == (2, 10, 0)
    assert report.skipped == {
        "micrographs that are not selected": 1,
        "particles whose micrograph is not among these": 5,
    }
    exposures, particles = read_cs(out / "weft_exposures.cs"), read_cs(out / "weft_particles.cs")
    for path, label in ((exposures, "micrograph_blob/path"), (particles, "blob/path")):
        assert all(raw.startswith(b">") for raw in path[label].tolist())
        for name in strings(path, label):
            mrc.read_header(out / name)  # links that lead somewhere
    assert set(particles["location/micrograph_uid"].tolist()) == set(exposures["uid"].tolist())
    assert len(set(particles["uid"].tolist())) == 10
    assert particles["blob/idx"].tolist() == [0, 1, 2, 3, 4] * 2
    assert particles["blob/shape"].tolist() == [[16, 16]] * 10
    assert set(particles["blob/sign"].tolist()) == {1.0}
    table = read_star(tmp_path / "p" / "particles.star")["particles"]
    kept = [*range(5), *range(10, 15)]
    for label, theirs in (("rlnDefocusU", "ctf/df1_A"), ("rlnDefocusV", "ctf/df2_A")):
        np.testing.assert_allclose(particles[theirs], table.floats(label)[kept], rtol=1e-6)
    np.testing.assert_allclose(
        np.rad2deg(particles["ctf/df_angle_rad"]), table.floats("rlnDefocusAngle")[kept], atol=1e-4
    )
    # the exposures' CTF is that of micrographs.star
    rows = read_star(session.root / "micrographs_selected.star")["micrographs"]
    np.testing.assert_allclose(exposures["ctf/df1_A"], rows.floats("rlnDefocusU"), rtol=1e-6)
    np.testing.assert_allclose(exposures["mscope_params/total_dose_e_per_A2"], 20.0)
    for name in ("weft_exposures", "weft_particles"):
        assert f"metafile: '>{name}.cs'" in (out / f"{name}.csg").read_text()
    # and back
    import_picks(session, [out / "weft_particles.cs"], name="back")
    found = imported(session, "back", items[0])
    np.testing.assert_allclose(found.xy, xy[:5] * PIXEL, atol=2e-3)  # single precision, three digits
    assert read_coordinates(tmp_path / "p" / "particles.star").program == "relion"


@pytest.mark.parametrize(
    ("old", "new", "error", "said"),
    [
        ("000005@", "000006@", CorruptError, "has 5"),
        ("000005@", "5th@", CorruptError, "000001@STACK"),
        ("_rlnDefocusV", "_other", FormatError, "rlnDefocusV"),
        ("@stacks/", "@gone/", CorruptError, "not there"),
        ("data_particles", "data_other", FormatError, "particles"),
    ],
)
def test_particles_that_cannot_be_exported(
    session: Session,
    items: list[str],
    tmp_path: Path,
    old: str,
    new: str,
    error: type[InputFileError],
    said: str,
) -> None:
    write_particles(tmp_path / "p", items[:1])
    star = tmp_path / "p" / "particles.star"
    star.write_text(star.read_text().replace(old, new))
    with pytest.raises(error, match=said):
        export_cryosparc(session, tmp_path / "cs", particles=star)
    assert not (tmp_path / "cs").exists()  # nothing is written before all is known


def test_nothing_for_cryosparc(session: Session, items: list[str], tmp_path: Path) -> None:
    session.select(session.selection.decide_all(items, False))
    with pytest.raises(RequestError, match="no selected micrograph"):
        export_cryosparc(session, tmp_path / "cs")
