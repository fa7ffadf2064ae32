"""Projects of WarpTools: written from sessions, made into sessions, and Warp's own files and values."""

from __future__ import annotations

import importlib
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

import weft
from weft.cli import main
from weft.errors import CorruptError, FormatError, RequestError, TruncatedError
from weft.formats import mrc, warp_geometry
from weft.formats.tomostar import read_tomostar, write_tomostar
from weft.formats.warp_movie import WarpMovie, read_warp_movie, write_warp_movie
from weft.formats.warp_settings import read_warp_settings, write_warp_settings
from weft.formats.warp_xml import WarpGrid, read_warp_xml, write_warp_xml
from weft.movies.motion import MotionModel
from weft.session.aligned import ImportedAlignment
from weft.session.plan import expected_fingerprints
from weft.session.records import RecordStore
from weft.session.tilt_item import TiltSeries
from weft.session.tilt_table import item_identity, read_table
from weft.session.warp_import import find_project, import_warp
from weft.session.warp_movies import motion_grids
from weft.session.warp_project import export_warp

sys.path.append(str(Path(__file__).parents[1] / "web"))
from series_session import DARK, NAME, PIXEL, Made, make

# ---------------------------------------------------------------------------------- Warp's own files, values


def test_warps_settings_survive(reference_data: Path, tmp_path: Path) -> None:
    """Files of Warp 1: UTF-16, Windows' folders, no sections. Every parameter, in its order."""
    files = sorted((reference_data / "real" / "dtegunov__warp").glob("*.settings"))
    assert len(files) == 6
    for file in files:
        settings = read_warp_settings(file)
        raw = ET.fromstring(file.read_bytes())
        assert [(p.get("Name"), p.get("Value")) for p in raw] == list(settings.sections[""].items())
        assert settings.text("Import", "DataFolder") == settings.sections[""]["InputFolder"]
        assert settings.number("CTF", "Voltage") == 300.0
        assert settings.number("CTF", "Cs") == float(settings.sections[""]["CTFCs"])
        assert settings.number("Import", "PixelSize") == float(settings.sections[""]["CTFPixelMin"])
        write_warp_settings(tmp_path / "b.settings", settings)
        assert read_warp_settings(tmp_path / "b.settings").sections == settings.sections


NEW = """<?xml version="1.0" encoding="utf-8"?>
<Settings>
	<Param Name="ProcessCTF" Value="True" />
	<Import>
		<Param Name="DataFolder" Value="tomostar" />
		<Param Name="ProcessingFolder" Value="warp_tiltseries" />
		<Param Name="Extension" Value="*.tomostar" />
		<Param Name="PixelSize" Value="1.54" />
		<Param Name="DosePerAngstromFrame" Value="-3.87" />
	</Import>
	<CTF><Param Name="Voltage" Value="300" /><Param Name="Cs" Value="2.7" /></CTF>
	<Tomo>
		<Param Name="DimensionsX" Value="4096" />
		<Param Name="DimensionsY" Value="4096" />
		<Param Name="DimensionsZ" Value="2000" />
	</Tomo>
	<Unheard of="this"><Child /></Unheard>
</Settings>"""


def test_settings_of_warptools(tmp_path: Path) -> None:
    """Names and signs as `WarpTools create_settings` writes them; what is not known is kept."""
    path = tmp_path / "warp_tiltseries.settings"
    path.write_text(NEW, encoding="utf-8-sig")
    settings = read_warp_settings(path)
    assert settings.is_tilt_series
    assert settings.exposure == (3.87, False)
    assert settings.dimensions == (4096, 4096, 2000)
    assert settings.folder("ProcessingFolder") == tmp_path / "warp_tiltseries"
    write_warp_settings(tmp_path / "b.settings", settings)
    back = read_warp_settings(tmp_path / "b.settings")
    assert (back.sections, back.other) == (settings.sections, settings.other)
    assert 'of="this"' in back.other[0]
    settings.sections["Import"]["PixelSize"] = "wide"
    with pytest.raises(CorruptError, match="'wide'"):
        settings.number("Import", "PixelSize")
    for text, error in (("", TruncatedError), ("<Movie />", FormatError), ("<Settings>", FormatError)):
        path.write_text(text)
        with pytest.raises(error):
            read_warp_settings(path)


#: What Movie.GetPositionInAllFrames of Warp's own C# gives for 8 frames of which a fraction of 0.75 is used,
#: from TomoBabel/cets-nonrigid (MIT), tests/golden/movie_positions.json: the two corners of the field, where
#: only the grids' corners count: GridMovement, GridLocalMovement, two levels of PyramidShift.
CORNERS = {
    (0.0, 0.0): (
        [
            ([-11.6593, 19.392, 8.14412, -10.1777, 12.8608, -11.3586],
             [-19.8781, -2.85025, -16.9701, -13.4536, 1.16927, -11.1685]),
            ([4.04252, -1.09764, -0.545739, 2.30055], [2.94152, -2.09382, 4.64029, -2.46645]),
            ([0.0645147, 0.973484, 1.85103, 2.27906, 2.78914, -1.90659, 2.98553, -1.89894],
             [0.923159, 2.02609, 0.985294, 1.82493, 2.87397, -2.05501, -2.06313, -0.416284]),
            ([-1.21864, -1.31124], [0.769805, 1.07959]),
        ],
        [[8.770905, 15.243617], [-10.460363, 4.222539], [-20.89032, 3.078331], [-17.011066, 10.078582],
         [-4.1642485, 14.856897], [13.392224, 16.159716], [5.5923533, 6.31959], [-5.5724335, -4.236595]],
    ),
    (4000.0, 3600.0): (
        [
            ([-11.6593, 19.392, 8.14412, -10.1777, 12.8608, -11.3586],
             [-19.8781, -2.85025, -16.9701, -13.4536, 1.16927, -11.1685]),
            ([-4.20246, -3.40621, -0.556295, -2.29704], [-2.98301, 5.31917, -3.66923, 1.89273]),
            ([-0.166497, 1.5128, 0.189166, -2.60312, 0.657017, 2.75999, -0.546056, 0.498588],
             [-1.58479, -2.3453, 1.15708, 2.88408, 2.0143, 1.38368, -2.72291, 1.82605]),
            ([0.665728, 0.344577], [-1.26841, -0.0893741]),
        ],
        [[4015.3623, 3625.714], [3993.3381, 3609.3665], [3983.1885, 3598.4102], [3988.5706, 3603.0964],
         [3997.2693, 3613.4587], [4007.1372, 3616.7126], [4007.37, 3615.99], [3991.0088, 3602.9524]],
    ),
}  # fmt: skip


@pytest.mark.parametrize("corner", list(CORNERS))
def test_warps_own_motion(corner: tuple[float, float], tmp_path: Path) -> None:
    """Sign and time axis of the grids: Warp's positions in all frames to 2e-3 Å (it counts in float32)."""
    parts, positions = CORNERS[corner]
    levels = [tuple(WarpGrid(np.reshape(v, (-1, 1, 1))) for v in pair) for pair in parts]
    names = ("GridMovement", "GridLocalMovement")
    grids = {f"{n}{c}": g for n, pair in zip(names, levels[:2], strict=True) for c, g in zip("XY", pair)}
    movie = WarpMovie(grids=grids, pyramids=[(pair[0], pair[1]) for pair in levels[2:]])
    write_warp_movie(tmp_path / "a.xml", movie)
    back = read_warp_movie(tmp_path / "a.xml")
    got = back.track(np.array([corner]), 8, (4000.0, 3600.0), 0.75)[:, 0] + corner
    np.testing.assert_allclose(got, positions, atol=2e-3)


@pytest.mark.parametrize("relaxation", [np.inf, 5.0])
def test_our_motion_in_warps_grids(relaxation: float) -> None:
    """The same tracks everywhere, with any time axis of ours; both are splines, so nothing is lost."""
    rng = np.random.default_rng(0)
    motion = MotionModel(
        12, (4000.0, 3600.0), rng.normal(0, 5, (12, 2)), rng.normal(0, 3, (2, 4, 5, 3)), relaxation
    )
    places = rng.uniform(0, 1, (30, 2)) * motion.extent
    got = WarpMovie(grids=motion_grids(motion)).track(places, 12, motion.extent)
    np.testing.assert_allclose(got, motion.track(places), atol=1e-9)


def test_movie_files(tmp_path: Path) -> None:
    path = tmp_path / "a.xml"
    text = (
        '<Movie UnselectManual="True" Odd="1"><OptionsCTF><Param Name="a" Value="b" /></OptionsCTF>'
        '<CTF><Param Name="Defocus" Value="2.5" /></CTF><GridCTF Width="2" Height="1" Depth="1">'
        '<Node X="0" Y="0" Z="0" Value="2.4" /><Node X="1" Y="0" Z="0" Value="2.6" /></GridCTF></Movie>'
    )
    path.write_text(text)
    movie = read_warp_movie(path)
    write_warp_movie(tmp_path / "b.xml", movie)
    back = read_warp_movie(tmp_path / "b.xml")
    assert (back.ctf, back.other) == (movie.ctf, movie.other)
    assert movie.attributes.items() <= back.attributes.items()
    np.testing.assert_array_equal(back.grids["GridCTF"].values, [[[2.4, 2.6]]])
    for bad, error in (
        ("", TruncatedError),
        ("<TiltSeries />", FormatError),
        (text.replace('X="1"', 'X="0"'), CorruptError),
        (text.replace("GridCTF", "PyramidShiftX"), FormatError),
    ):
        path.write_text(bad)
        with pytest.raises(error):
            read_warp_movie(path)


def test_real_series_survive(reference_data: Path, tmp_path: Path) -> None:
    """Read, written and read again: every number, text, grid and unknown element of real files."""
    real = reference_data / "real"
    for name in (
        "warpem__warpylib/TS_1.xml",
        "warpem__warpylib/xf_import/00254.xml",
        "turonova__cryoCAT/test_data/TS_017/017.xml",
    ):
        series = read_warp_xml(real / name)
        write_warp_xml(tmp_path / "b.xml", series)
        back = read_warp_xml(tmp_path / "b.xml")
        for key, value in vars(series).items():
            again = getattr(back, key)
            if isinstance(value, np.ndarray):
                np.testing.assert_array_equal(again, value)
            elif key == "grids":
                for grid, old in value.items():
                    np.testing.assert_array_equal(again[grid].values, old.values)
                    assert again[grid].margins[:3] == old.margins[:3]
            elif key == "attributes":
                assert value.items() <= again.items()
            elif key != "path":
                assert again == value, key


# ------------------------------------------------------------------------------------------ out of a session


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A session of one series with finished records, and with motion in those of its movies."""
    found = make(tmp_path_factory.mktemp("series") / "session")
    store = RecordStore(found.root)
    rng = np.random.default_rng(7)
    for path in sorted((found.root / "records").glob(f"{NAME}_*.json")):
        record = store.read(path.stem)
        assert record is not None
        step = record.steps["motion"]
        model = MotionModel(2, (96 * PIXEL, 96 * PIXEL), rng.normal(0, 4, (2, 2)))
        results = {**step.results, "model": model.to_dict()}
        store.write(replace(record, steps={"motion": replace(step, results=results)}))
    make_current(found.root)
    return found


def make_current(root: Path) -> None:
    """The series' steps are as current as its table is now, whatever identifies that."""
    store = RecordStore(root)
    record = store.read(NAME)
    assert record is not None
    identity = item_identity(record.input.path, "series")
    prints = expected_fingerprints("series", identity, weft.open(root).settings, root)
    steps = {name: replace(step, fingerprint=prints[name]) for name, step in record.steps.items()}
    store.write(replace(record, input=identity, steps=steps))


@pytest.fixture(scope="module")
def project(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("warp") / "project"
    report = export_warp(weft.open(made.root), out)
    assert (report.problems, report.movies, list(report.written)) == ([], 8, [NAME])
    return out


def test_what_is_written(made: Made, project: Path) -> None:
    """Everything that `WarpTools ts_reconstruct --settings warp_tiltseries.settings` opens, by its path."""
    settings = read_warp_settings(project / "warp_tiltseries.settings")
    assert settings.is_tilt_series
    assert settings.number("Import", "PixelSize") == PIXEL
    assert settings.exposure == (3.0, False)
    data = settings.folder("DataFolder")
    assert data is not None
    table = read_tomostar(data / f"{NAME}.tomostar")
    for movie in table.movie_paths(data / f"{NAME}.tomostar"):
        average = movie.parent / "average" / f"{movie.stem}.mrc"
        assert mrc.read_header(average).shape[1:] == (96, 96)
        assert (project / "frames" / movie.name).exists()
        described = read_warp_movie(movie.with_suffix(".xml"))
        item = weft.open(made.root)[movie.stem]
        xy = np.array([[10.0, 20.0]])
        np.testing.assert_allclose(described.track(xy, 2, (768.0, 768.0)), item.track(xy), atol=1e-9)
    # 3 e/Å² a tilt, before each exposure
    kept = [i for i in range(9) if i != DARK]
    expected = [3.0 * i for i in sorted(kept, key=lambda i: made.angles[i])]
    np.testing.assert_allclose(table.dose, expected)
    stack = project / f"warp_tiltseries/tiltstack/{NAME}/{NAME}.st"
    assert stack.is_symlink()
    assert mrc.read_header(stack).shape == (8, 96, 96)
    assert (project / f"warp_tiltseries/reconstruction/{NAME}_16.00Apx.mrc").is_file()
    frames = read_warp_settings(project / "warp_frameseries.settings")
    assert frames.exposure == (1.5, True)
    assert frames.text("Import", "Extension") == "*.tif"


def test_places_and_ctf_are_ours(made: Made, project: Path) -> None:
    """Warp's formula on what was written: our positions and defoci, from the volume's centre."""
    series = weft.open(made.root)[NAME]
    assert isinstance(series, TiltSeries)
    written = read_warp_xml(project / "warp_tiltseries" / f"{NAME}.xml")
    xyz = np.random.default_rng(2).uniform(0, 1, (12, 3)) * series.volume_size
    # kept with the digits of a record
    np.testing.assert_allclose(warp_geometry.positions(written, xyz), series.project(xyz), atol=1e-6)
    half, angle = written.astigmatism.T
    np.testing.assert_allclose(2 * half, 310.0)
    np.testing.assert_allclose(angle, 41.0)
    assert written.ctf["Voltage"] == "300.0"
    dimensions = read_warp_settings(project / "warp_tiltseries.settings").dimensions
    assert dimensions is not None
    assert abs(dimensions[2] * PIXEL - series.volume_size[2]) <= 2 * PIXEL


def test_warpylib_reads_it(made: Made, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Warp's own Python library, where it is installed, finds our places."""
    try:
        importlib.import_module("torch_projectors")
    except (ImportError, OSError):
        # its compiled part loads with few versions of torch only, and geometry does not use it
        monkeypatch.setitem(sys.modules, "torch_projectors", ModuleType("torch_projectors"))
    warpylib = pytest.importorskip("warpylib")
    theirs = warpylib.TiltSeries(path=str(project / "warp_tiltseries" / f"{NAME}.tomostar"))
    series = weft.open(made.root)[NAME]
    xyz = np.random.default_rng(2).uniform(0, 1, (12, 3)) * series.volume_size
    got = theirs.get_position_in_all_tilts_single(torch.as_tensor(xyz, dtype=torch.float32)).numpy()
    np.testing.assert_allclose(got[..., :2], series.project(xyz)[..., :2].transpose(1, 0, 2), atol=0.01)


def test_mirrored_and_copied(made: Made, tmp_path: Path) -> None:
    session = weft.open(made.root)
    export_warp(session, tmp_path / "p", copy=True, invert_angles=True)
    series = session[NAME]
    written = read_warp_xml(tmp_path / "p" / "warp_tiltseries" / f"{NAME}.xml")
    np.testing.assert_allclose(written.angles, -series.geometry.angles.numpy())
    assert written.angles_inverted
    assert not (tmp_path / f"p/warp_tiltseries/tiltstack/{NAME}/{NAME}.st").is_symlink()
    xyz = np.random.default_rng(2).uniform(0, 1, (12, 3)) * series.volume_size
    flipped = xyz * [1, 1, -1] + [0, 0, series.volume_size[2]]
    np.testing.assert_allclose(warp_geometry.positions(written, flipped), series.project(xyz), atol=1e-6)


def test_a_series_that_came_as_a_stack(tmp_path: Path) -> None:
    """Warp wants a file for every tilt: sections of the stack, under names of their own."""
    found = make(tmp_path / "session", tilts=5)
    store = RecordStore(found.root)
    record = store.read(NAME)
    assert record is not None
    step = record.steps["stack"]
    tilts = [{**tilt, "item": ""} for tilt in step.results["tilts"]]
    changed = replace(step, results={**step.results, "tilts": tilts})
    store.write(replace(record, steps={**record.steps, "stack": changed}))
    make_current(found.root)
    report = export_warp(weft.open(found.root), tmp_path / "p")
    assert (report.movies, report.problems) == (0, [])
    table = read_tomostar(tmp_path / f"p/tomostar/{NAME}.tomostar")
    assert table.movies == [f"../warp_frameseries/{NAME}_{i:03d}.mrc" for i in range(4)]
    stack = mrc.read(tmp_path / f"p/warp_tiltseries/tiltstack/{NAME}/{NAME}.st")[0]
    for i, section in enumerate(stack):
        average = mrc.read(tmp_path / f"p/warp_frameseries/average/{NAME}_{i:03d}.mrc")[0]
        np.testing.assert_array_equal(average, section)
    assert not (tmp_path / "p/warp_frameseries.settings").exists()
    # and back: the averages are its movies
    again = import_warp(tmp_path / "new", tmp_path / "p")
    assert again.alignments.imported[0].tilts == 4


def test_refusals(made: Made, tmp_path: Path) -> None:
    session = weft.open(made.root)
    with pytest.raises(RequestError, match="inside the session"):
        export_warp(session, made.root / "warp")
    with pytest.raises(RequestError, match="nothing that Warp"):
        export_warp(session, tmp_path / "p", only="TS_9*")
    assert main(["export", "warp", str(made.root), "-o", str(tmp_path / "q")]) == 0
    assert (tmp_path / "q" / "warp_tiltseries.settings").is_file()


# ------------------------------------------------------------------------------------------- into a session


def usable(project: Path, folder: Path) -> Path:
    """A copy of the project whose movies are gone: its averages are what there is."""
    import shutil

    out = folder / "project"
    shutil.copytree(project, out, symlinks=False)
    shutil.rmtree(out / "frames")
    return out


def test_a_session_from_a_project(made: Made, project: Path, tmp_path: Path) -> None:
    """The averages as movies; alignment, hand, doses and the tilts that Warp leaves out."""
    place = usable(project, tmp_path)
    xml = place / "warp_tiltseries" / f"{NAME}.xml"
    series = read_warp_xml(xml)
    series.use_tilt[2] = False
    series.angles_inverted = True
    write_warp_xml(xml, series)
    root = tmp_path / "new"
    assert main(["import", "warp", str(root), str(place)]) == 0
    session = weft.open(root)
    given = session.settings.input
    assert (given.pixel_size, given.voltage, given.cs, given.amplitude) == (PIXEL, 300.0, 2.7, 0.07)
    assert given.dose_per_frame == 3.0
    plain = session.settings.plain()
    assert plain["handedness"]["hand"] == "-1"
    assert plain["tilt_ctf"]["defocus_min"] == pytest.approx(2.49, abs=0.03)
    assert plain["tilt_ctf"]["defocus_max"] == pytest.approx(3.51, abs=0.03)
    table = read_table(next((root / "tiltseries").glob("*.json")))
    assert [row.decision for row in table.tilts].count(False) == 1
    by_angle = sorted(row.angle for row in table.tilts)
    left_out = next(row.angle for row in table.tilts if row.decision is False)
    assert left_out == by_angle[2]
    imported = ImportedAlignment.read(root / table.alignment)
    original = weft.open(made.root)[NAME].geometry
    kept = [i for i in range(8) if i != 2]
    order = imported.geometry.angles.argsort()
    np.testing.assert_allclose(imported.geometry.angles[order], original.angles[kept], atol=1e-6)
    np.testing.assert_allclose(imported.geometry.shift[order], original.shift[kept], atol=1e-6)
    np.testing.assert_allclose(imported.geometry.axis[order], original.axis, atol=1e-6)


def test_a_session_of_the_movies(project: Path, tmp_path: Path) -> None:
    """Where the movies are, they are taken, with binning, dose, EER groups and gain as Warp reads them."""
    place = usable(project, tmp_path)
    (place / "frames").mkdir()
    for file in (place / "warp_frameseries").glob("*.xml"):
        (place / "frames" / f"{file.stem}.eer").touch()
    path = place / "warp_frameseries.settings"
    settings = read_warp_settings(path)
    settings.sections["Import"] |= {
        "Extension": "*.eer", "EERGroupFrames": "-12", "BinTimes": "1", "CorrectGain": "True",
        "GainPath": "gain.mrc", "DefectsPath": "gone.txt", "GainFlipX": "True",
    }  # fmt: skip
    write_warp_settings(path, settings)
    (place / "frames" / "gain.mrc").touch()
    report = import_warp(tmp_path / "new", place)
    session = weft.open(tmp_path / "new")
    given = session.settings.input
    assert given.frames == (str(place / "frames" / "*.eer"),)
    assert (given.dose_per_frame, given.eer_groups) == (1.5, 12)
    assert (given.gain, given.gain_flip_x) == (str(place / "frames" / "gain.mrc"), True)
    assert session.settings.plain()["average"]["bin"] == 2.0
    assert any("gone.txt is not there" in note for note in report.notes)
    assert [series.how for series in report.alignments.imported] == ["by the movies' names"]


def test_into_the_session_that_it_came_from(made: Made, project: Path, tmp_path: Path) -> None:
    """A second import changes nothing; another microscope is an error that says which values differ."""
    root = tmp_path / "new"
    place = usable(project, tmp_path)
    import_warp(root, place)
    again = import_warp(root, place)
    assert not again.created
    assert again.exit_code == 0
    settings = read_warp_settings(place / "warp_tiltseries.settings")
    settings.sections["Import"]["PixelSize"] = "1.5"
    write_warp_settings(place / "warp_tiltseries.settings", settings)
    with pytest.raises(RequestError, match=r"pixel_size is 1\.5 Å there, 8 Å here"):
        import_warp(root, place)
    assert main(["import", "warp", str(root), str(place)]) == 2


def test_contradicting_hands(project: Path, tmp_path: Path) -> None:
    root = tmp_path / "new"
    place = usable(project, tmp_path)
    import_warp(root, place)
    weft.open(root).set("handedness.hand", "-1")
    report = import_warp(root, place)
    assert report.exit_code == 1
    assert "handedness.hand is -1 here" in report.problems[0]


def test_projects_that_are_none(project: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="there is no"):
        find_project(tmp_path / "nowhere")
    with pytest.raises(RequestError, match="there is none"):
        find_project(project / "warp_frameseries.settings")
    place = usable(project, tmp_path)
    with pytest.raises(RequestError, match="like TS_9"):
        import_warp(tmp_path / "a", place, "TS_9*")
    (place / "warp_tiltseries" / "broken.xml").write_text("<TiltSeries>")
    assert "broken.xml" in find_project(place).problems[0]
    for file in (place / "warp_frameseries" / "average").glob("*.mrc"):
        file.unlink()
    with pytest.raises(RequestError, match="neither the movies nor the averages"):
        import_warp(tmp_path / "b", place)


def test_tomostar_survives(project: Path, tmp_path: Path) -> None:
    table = read_tomostar(project / "tomostar" / f"{NAME}.tomostar")
    write_tomostar(tmp_path / "b.tomostar", table)
    back = read_tomostar(tmp_path / "b.tomostar")
    for key, value in vars(table).items():
        np.testing.assert_array_equal(getattr(back, key), value)
