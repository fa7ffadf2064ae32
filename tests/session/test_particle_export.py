"""`weft export particles` and the particles step: what is written, what is done again, what is left out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import weft
from weft.cli.export import app
from weft.errors import CorruptError, RequestError
from weft.formats import mrc
from weft.formats.star import Table, read_star, write_star
from weft.picking.picks import Picks
from weft.session.foreign_particles import read_particles, update_particles
from weft.session.particle_export import export_particles
from weft.session.particle_report import ParticleReport
from weft.session.pick_files import pick_path, write_picks
from weft.session.session import Session
from weft.session.wanted_particles import ParticleSettings

BOX, PIXEL = 64, 1.5
NAMES = ("movie_000", "movie_001", "movie_002")


def _truth(movies: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((movies / "truth" / f"{name}.json").read_text())
    return found


@pytest.fixture(scope="module")
def finished(tiny_movies: Path, tmp_path_factory: pytest.TempPathFactory) -> Session:
    """Motion and CTF are known, and the picks are the truth; tests copy it before they change it."""
    session = weft.new(
        tmp_path_factory.mktemp("particles") / "s",
        frames=tiny_movies / "frames" / "*.tif",
        gain=tiny_movies / "gain.mrc",
        pixel_size=PIXEL,
        voltage=300.0,
        cs=2.7,
        amplitude=0.07,
        dose_per_frame=4.0,
        particles={"box": BOX},
    )
    assert session.run(steps=["motion", "ctf"], workers=0, threads=1).exit_code == 0
    for name in NAMES:
        truth = _truth(tiny_movies, name)
        xy = np.array(truth["particles_xy"])
        path = session.root / pick_path("truth", name)
        score = np.linspace(1.0, 0.5, len(xy))
        write_picks(path, Picks(xy, score, 150.0, eulers=np.array(truth["eulers"])), PIXEL)
    return session


@pytest.fixture
def session(finished: Session, tmp_path: Path) -> Session:
    shutil.copytree(finished.root, tmp_path / "session")
    return weft.open(tmp_path / "session")


def _settings(**given: Any) -> ParticleSettings:
    return ParticleSettings(**({"box": BOX} | given))


def _rows(path: Path) -> Table:
    return read_star(path)["particles"]


def _images(folder: Path, name: str) -> np.ndarray[Any, Any]:
    number, file = name.split("@")
    with mrc.MrcStack(folder / file) as stack:
        return np.asarray(stack.read(int(number) - 1))


def _picks(session: Session) -> int:
    return sum(
        len(read_star(path)[""]["rlnCoordinateX"]) for path in (session.root / "picks/truth").glob("*.star")
    )


def test_names_columns_and_optics(finished: Session, tiny_movies: Path, tmp_path: Path) -> None:
    report = export_particles(finished, tmp_path / "out", _settings())
    assert report.exit_code == 0
    assert report.count == _picks(finished) > 5
    assert report.path == tmp_path / "out" / "particles.star"
    tables = read_star(report.path)
    assert list(tables) == ["optics", "particles"]
    optics, rows = tables["optics"], tables["particles"]
    expected = {
        "rlnOpticsGroupName": "opticsGroup1",
        "rlnOpticsGroup": "1",
        "rlnVoltage": "300.0",
        "rlnSphericalAberration": "2.7",
        "rlnAmplitudeContrast": "0.07",
        "rlnImagePixelSize": "1.5",
        "rlnImageSize": "64",
        "rlnImageDimensionality": "2",
        "rlnMicrographPixelSize": "1.5",
        "rlnMicrographOriginalPixelSize": "1.5",
    }
    assert {label: optics.value(label) for label in optics.columns} == expected
    assert "rlnPhaseShift" not in rows
    names = rows.strings("rlnImageName")
    assert names[:2] == ["000001@stacks/movie_000.mrcs", "000002@stacks/movie_000.mrcs"]
    micrographs = rows.strings("rlnMicrographName")
    assert all((tmp_path / "out" / name).resolve().is_file() for name in set(micrographs))
    assert set(rows.strings("rlnOpticsGroup")) == {"1"}
    assert rows.floats("rlnCtfScalefactor").tolist() == [1.0] * len(rows)
    first = [i for i, name in enumerate(micrographs) if "movie_000" in name]
    truth = _truth(tiny_movies, "movie_000")
    at = np.stack([rows.floats("rlnCoordinateX"), rows.floats("rlnCoordinateY")], -1)[first]
    np.testing.assert_allclose(at * PIXEL, truth["particles_xy"], atol=2e-3)  # picks have three decimals
    # the defocus is that of the place, not of the micrograph
    u, v, angle = finished["movie_000"].ctf.at(at * PIXEL)
    np.testing.assert_allclose(rows.floats("rlnDefocusU")[first], u, atol=0.01)
    np.testing.assert_allclose(rows.floats("rlnDefocusV")[first], v, atol=0.01)
    np.testing.assert_allclose(rows.floats("rlnDefocusAngle")[first], angle, atol=1e-3)
    for i, label in enumerate(("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")):
        np.testing.assert_allclose(rows.floats(label)[first], np.array(truth["eulers"])[:, i], atol=2e-3)
    metrics = finished["movie_000"].metrics
    assert rows.floats("rlnCtfMaxResolution")[0] == pytest.approx(metrics["resolution"], abs=1e-4)
    assert rows.floats("rlnCtfFigureOfMerit")[0] == pytest.approx(metrics["ctf_score"], abs=1e-4)
    assert rows.floats("rlnAutopickFigureOfMerit")[0] == 1.0
    image = _images(tmp_path / "out", names[0])
    assert image.shape == (BOX, BOX)
    assert image.dtype == np.float32


def test_names_are_relative_to_the_project(finished: Session, tmp_path: Path) -> None:
    report = export_particles(
        finished, tmp_path / "project" / "Extract", _settings(), project=tmp_path / "project"
    )
    assert report.path is not None
    name = _rows(report.path).strings("rlnImageName")[0]
    assert name == "000001@Extract/stacks/movie_000.mrcs"
    with pytest.raises(RequestError, match="outside the project"):
        export_particles(finished, tmp_path / "elsewhere", _settings(), project=tmp_path / "project")


def test_particles_are_light_and_in_the_middle(finished: Session, tmp_path: Path) -> None:
    """The mean image at true places is lighter within 30 Å of the middle than around; binned twofold, too.

    By 0.046 of the noise's deviation, of which the mean of so many pixels has an error of 0.01.
    """
    for given in ({"box": 96}, {"box": 48, "pixel_size": 2 * PIXEL}):
        report = export_particles(finished, tmp_path / str(given["box"]), _settings(**given))
        assert report.path is not None
        names = _rows(report.path).strings("rlnImageName")
        n = int(given["box"])
        mean = np.mean([_images(tmp_path / str(n), name) for name in names], 0)
        r = np.hypot(*np.mgrid[-n // 2 : n // 2, -n // 2 : n // 2]) * (given.get("pixel_size") or PIXEL)
        assert mean[r < 30].mean() > mean[r > 54].mean() + 0.025


def test_a_second_run_does_what_has_changed(session: Session, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def stamps() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in (out / "stacks").glob("*.mrcs")}

    assert export_particles(session, out, _settings()).cut == list(NAMES)
    before, star = stamps(), (out / "particles.star").read_text()
    again = export_particles(session, out, _settings())
    assert again.cut == []
    assert again.count == _picks(session)
    assert stamps() == before
    assert (out / "particles.star").read_text() == star
    # other picks
    path = session.root / pick_path("truth", "movie_001")
    table = read_star(path)[""]
    write_star(path, {"": Table({k: list(v)[:2] for k, v in table.columns.items()})})
    changed = export_particles(session, out, _settings())
    assert changed.cut == ["movie_001"]
    assert changed.written["movie_001"] == 2
    # a stack that was lost, and one that was cut short
    (out / "stacks" / "movie_000.mrcs").unlink()
    whole = (out / "stacks" / "movie_002.mrcs").read_bytes()
    (out / "stacks" / "movie_002.mrcs").write_bytes(whole[:-100])
    assert export_particles(session, out, _settings()).cut == ["movie_000", "movie_002"]
    # a list that cannot be read
    (out / "stacks" / "movie_000.json").write_text("{")
    assert export_particles(session, out, _settings()).cut == ["movie_000"]
    # other settings
    assert export_particles(session, out, _settings(diameter=80.0)).cut == list(NAMES)


def test_a_new_ctf_changes_the_table_and_no_image(session: Session, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export_particles(session, out, _settings())
    before = _rows(out / "particles.star").floats("rlnDefocusU")
    record = json.loads((session.root / "records/movie_001.json").read_text())
    record["steps"]["ctf"]["fingerprint"] = "another"
    model = record["steps"]["ctf"]["results"]["model"]
    model["surface"] = (np.array(model["surface"]) + 100.0).tolist()
    (session.root / "records/movie_001.json").write_text(json.dumps(record))
    report = export_particles(session, out, _settings())
    assert report.cut == []
    changed = _rows(out / "particles.star").floats("rlnDefocusU") - before
    assert set(np.round(changed, 1)) == {0.0, 100.0}
    # flipped images depend on it
    export_particles(session, out, _settings(ctf="flip"))
    record["steps"]["ctf"]["fingerprint"] = "a third"
    (session.root / "records/movie_001.json").write_text(json.dumps(record))
    assert export_particles(session, out, _settings(ctf="flip")).cut == ["movie_001"]


def test_what_is_not_selected_leaves_the_table(session: Session, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export_particles(session, out, _settings())
    session.select(session.selection.decide("movie_001", False))
    report = export_particles(session, out, _settings())
    assert sorted(report.written) == ["movie_000", "movie_002"]
    assert any("1 micrographs are not selected" in note for note in report.notes)
    assert not any("movie_001" in name for name in _rows(out / "particles.star").strings("rlnImageName"))
    session.select(session.selection.decide("movie_001", True))
    back = export_particles(session, out, _settings())
    assert back.cut == []
    assert len(back.written) == 3


def test_bad_picks_cost_themselves(session: Session, tmp_path: Path) -> None:
    good = _picks(session)
    path = session.root / pick_path("truth", "movie_000")
    table = read_star(path)[""]
    columns = {k: list(v) for k, v in table.columns.items()}
    for x, y in (("nan", "10"), ("-50", "20"), ("10", "1e9"), ("inf", "3")):
        for label in columns:
            columns[label].append({"rlnCoordinateX": x, "rlnCoordinateY": y}.get(label, "0"))
    write_star(path, {"": Table(columns)})
    report = export_particles(session, tmp_path / "out", _settings())
    assert report.exit_code == 0
    assert report.count == good
    assert report.skipped == {"with coordinates that are not numbers": 2, "outside the micrograph": 2}
    # and the second time, when nothing is cut
    assert export_particles(session, tmp_path / "out", _settings()).skipped == report.skipped


def test_a_mutilated_list_costs_its_micrograph(session: Session, tmp_path: Path) -> None:
    path = session.root / pick_path("truth", "movie_000")
    path.write_text(path.read_text().replace("1.0", "x.y", 1).rstrip())
    other = session.root / pick_path("truth", "movie_001")
    lines = other.read_text().splitlines()
    row = next(i for i, line in enumerate(lines) if line[:1].isdigit() or line.strip()[:1].isdigit())
    lines[row] = " ".join(lines[row].split()[:2])
    other.write_text("\n".join(lines))
    report = export_particles(session, tmp_path / "out", _settings())
    assert report.exit_code == 1
    assert list(report.written) == ["movie_002"]
    assert len(report.problems) == 2
    assert "movie_000.star" in report.problems[0]
    assert "'x.y'" in report.problems[0]
    assert "movie_001.star" in report.problems[1]
    assert f"line {row + 1}" in report.problems[1]


def test_a_box_larger_than_the_micrograph(session: Session, tmp_path: Path) -> None:
    report = export_particles(session, tmp_path / "out", _settings(box=512))
    assert report.count == 0
    assert report.exit_code == 1
    assert report.skipped == {"of which the box is larger than the micrograph": _picks(session)}
    assert len(_rows(tmp_path / "out" / "particles.star")) == 0


def test_what_is_not_known_is_said(session: Session, tmp_path: Path) -> None:
    record = json.loads((session.root / "records/movie_000.json").read_text())
    del record["steps"]["ctf"]
    (session.root / "records/movie_000.json").write_text(json.dumps(record))
    (session.root / "average/movie_001.mrc").unlink()
    report = export_particles(session, tmp_path / "out", _settings())
    assert report.problems[0] == "movie_000: its CTF is not known yet; `weft run --steps ctf` finds it"
    assert "movie_001" in report.problems[1]
    assert "missing" in report.problems[1]
    assert list(report.written) == ["movie_002"]


def test_the_movie_is_gone_but_the_average_will_do(session: Session, tmp_path: Path) -> None:
    record = json.loads((session.root / "records/movie_000.json").read_text())
    record["input"]["path"] = str(tmp_path / "gone.tif")
    (session.root / "records/movie_000.json").write_text(json.dumps(record))
    report = export_particles(session, tmp_path / "a", _settings(), only="movie_000")
    assert "gone.tif" in report.problems[0]
    assert report.count == 0
    report = export_particles(session, tmp_path / "b", _settings(source="average"), only="movie_000")
    assert report.problems == []
    assert report.count > 0


def test_which_picks(session: Session, tmp_path: Path) -> None:
    report = export_particles(session, tmp_path / "a", _settings(min_score=0.75))
    assert 0 < report.count < _picks(session)
    assert report.skipped["with a figure of merit below 0.75"] == _picks(session) - report.count
    manual = Picks(np.array([[240.0, 240.0]]), np.array([np.nan]), 150.0)
    write_picks(session.root / pick_path("manual", "movie_001"), manual, PIXEL)
    with pytest.raises(RequestError, match=r"several pickers \(manual, truth\)"):
        export_particles(session, tmp_path / "b", _settings())
    report = export_particles(session, tmp_path / "b", _settings(picks="manual", min_score=0.9))
    assert report.written == {"movie_001": 1}  # by hand: no score, and it stays
    report = export_particles(session, tmp_path / "b", _settings(picks="manual,truth"))
    assert report.written["movie_001"] == 1
    assert len(report.written) == 3
    with pytest.raises(RequestError, match=r"no picks of 'none', only: manual, truth"):
        export_particles(session, tmp_path / "b", _settings(picks="none"))
    shutil.rmtree(session.root / "picks")
    with pytest.raises(RequestError, match="has no picks"):
        export_particles(session, tmp_path / "b", _settings())


def test_halves_and_half_precision(session: Session, tmp_path: Path) -> None:
    report = export_particles(session, tmp_path, _settings(halves=True, float16=True))
    for half in ("", "_even", "_odd"):
        names = _rows(tmp_path / f"particles{half}.star").strings("rlnImageName")
        assert names[0] == f"000001@stacks/movie_000{half}.mrcs"
        assert _images(tmp_path, names[0]).dtype == np.float16
    assert report.count
    export_particles(session, tmp_path, _settings())
    assert not (tmp_path / "particles_even.star").exists()


def _foreign(session: Session, movies: Path, path: Path, **changes: Any) -> Table:
    """A list as RELION 3.1 has it after a refinement, with the right shifts and wrong defoci."""
    rng = np.random.default_rng(0)
    columns: dict[str, list[Any]] = {}
    for name in NAMES:
        truth = _truth(movies, name)
        xy, shift = np.array(truth["particles_xy"]), rng.normal(0.0, 6.0, (len(truth["eulers"]), 2))
        rows = {
            "rlnCoordinateX": (xy + shift)[:, 0] / PIXEL,
            "rlnCoordinateY": (xy + shift)[:, 1] / PIXEL,
            "rlnOriginXAngst": shift[:, 0],
            "rlnOriginYAngst": shift[:, 1],
            "rlnImageName": [f"{i + 1:06d}@Extract/job7/{name}.mrcs" for i in range(len(xy))],
            "rlnMicrographName": [f"MotionCorr/job2/{name}_aligned_mic_DW.mrc"] * len(xy),
            "rlnDefocusU": [10000.0] * len(xy),
            "rlnDefocusV": [9000.0] * len(xy),
            "rlnDefocusAngle": [0.0] * len(xy),
            "rlnAngleRot": np.array(truth["eulers"])[:, 0],
            "rlnClassNumber": [3] * len(xy),
            "rlnRandomSubset": [1 + i % 2 for i in range(len(xy))],
            "rlnGroupName": ["a group"] * len(xy),
            "rlnOpticsGroup": [2] * len(xy),
        }
        for label, values in rows.items():
            columns.setdefault(label, []).extend(values)
    optics = {
        "rlnOpticsGroupName": ["grid B"],
        "rlnOpticsGroup": [2],
        "rlnVoltage": [200.0],
        "rlnSphericalAberration": [1.0],
        "rlnAmplitudeContrast": [0.1],
        "rlnImagePixelSize": [3.0],
        "rlnImageSize": [40],
        "rlnImageDimensionality": [2],
        "rlnMicrographPixelSize": [PIXEL],
        "rlnBeamTiltX": [0.1],
    }
    columns |= changes
    write_star(path, {"optics": Table(optics), "particles": Table(columns)})
    return read_star(path)["particles"]


def test_particles_of_another_program_are_cut_again(
    session: Session, tiny_movies: Path, tmp_path: Path
) -> None:
    theirs = _foreign(session, tiny_movies, tmp_path / "run_data.star")
    found = read_particles(session, tmp_path / "run_data.star")
    assert found.skipped == {}
    report = export_particles(session, tmp_path / "out", _settings(), wanted=found.wanted)
    assert report.count == len(theirs)
    tables = read_star(tmp_path / "out" / "particles.star")
    rows, optics = tables["particles"], tables["optics"]
    assert optics.value("rlnOpticsGroupName") == "grid B"
    assert optics.value("rlnVoltage") == "300.0"
    assert optics.value("rlnImagePixelSize") == "1.5"
    assert optics.value("rlnBeamTiltX") == "0.1"
    for label in ("rlnAngleRot", "rlnClassNumber", "rlnRandomSubset", "rlnGroupName"):
        assert rows.strings(label) == theirs.strings(label)
    # at the true places now, as picked
    export_particles(session, tmp_path / "own", _settings())
    own = _rows(tmp_path / "own" / "particles.star")
    for label in ("rlnCoordinateX", "rlnCoordinateY"):
        np.testing.assert_allclose(rows.floats(label), own.floats(label), atol=2e-3)
    np.testing.assert_allclose(rows.floats("rlnDefocusU"), own.floats("rlnDefocusU"), atol=0.1)
    assert rows.floats("rlnOriginXAngst").tolist() == [0.0] * len(rows)
    a, b = (_images(tmp_path / d, "000001@stacks/movie_000.mrcs") for d in ("out", "own"))
    assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.9999
    kept = read_particles(session, tmp_path / "run_data.star", recenter=False)
    report = export_particles(session, tmp_path / "kept", _settings(), wanted=kept.wanted)
    rows = _rows(tmp_path / "kept" / "particles.star")
    np.testing.assert_allclose(rows.floats("rlnOriginXAngst"), theirs.floats("rlnOriginXAngst"), atol=1e-4)
    np.testing.assert_allclose(rows.floats("rlnCoordinateX"), theirs.floats("rlnCoordinateX"), atol=1e-4)


def test_only_their_table_is_brought_up_to_date(session: Session, tiny_movies: Path, tmp_path: Path) -> None:
    theirs = _foreign(session, tiny_movies, tmp_path / "run_data.star")
    report = update_particles(session, tmp_path / "run_data.star", tmp_path / "out")
    assert report.count == len(theirs)
    assert not (tmp_path / "out" / "stacks").exists()
    tables = read_star(tmp_path / "out" / "particles.star")
    rows = tables["particles"]
    for label in theirs.columns:
        if not label.startswith("rlnDefocus"):
            assert rows.strings(label) == theirs.strings(label)
    export_particles(session, tmp_path / "own", _settings())
    own = _rows(tmp_path / "own" / "particles.star")
    np.testing.assert_allclose(rows.floats("rlnDefocusU"), own.floats("rlnDefocusU"), atol=0.1)
    assert tables["optics"].value("rlnVoltage") == "300.0"
    assert tables["optics"].value("rlnImagePixelSize") == "3.0"
    assert "rlnCtfMaxResolution" in rows


def test_a_list_of_relion_3_0(session: Session, tiny_movies: Path, tmp_path: Path) -> None:
    """No optics table: physics and pixel size are in every row, shifts are in pixels of the images."""
    new = _foreign(session, tiny_movies, tmp_path / "new.star")
    columns: dict[str, Any] = {k: v for k, v in new.columns.items() if k != "rlnOpticsGroup"}
    for axis in "XY":
        columns[f"rlnOrigin{axis}"] = new.floats(f"rlnOrigin{axis}Angst") / 3.0
        del columns[f"rlnOrigin{axis}Angst"]
    n = len(new)
    columns |= {
        "rlnVoltage": [200.0] * n,
        "rlnSphericalAberration": [2.0] * n,
        "rlnAmplitudeContrast": [0.1] * n,
    }
    columns |= {"rlnMagnification": [10000.0] * n, "rlnDetectorPixelSize": [3.0] * n}
    write_star(tmp_path / "old.star", {"": Table(columns)})
    a, b = (read_particles(session, tmp_path / f"{name}.star") for name in ("new", "old"))
    for name in NAMES:
        np.testing.assert_allclose(a.wanted[name].pixels, b.wanted[name].pixels, atol=1e-3)
    assert any("pixels of the averages" in note for note in b.notes)
    assert "rlnVoltage" not in b.wanted["movie_000"].columns
    report = update_particles(session, tmp_path / "old.star", tmp_path / "out")
    assert report.count == n
    rows = read_star(tmp_path / "out" / "particles.star")[""]
    assert set(rows.strings("rlnVoltage")) == {"300.0"}


def test_faults_of_their_list(session: Session, tiny_movies: Path, tmp_path: Path) -> None:
    path = tmp_path / "p.star"
    rows = _foreign(session, tiny_movies, path)
    n = len(rows)
    x = rows.strings("rlnCoordinateX")
    _foreign(session, tiny_movies, path, rlnCoordinateX=["nan", *x[1:]])
    found = read_particles(session, path)
    report = export_particles(session, tmp_path / "out", _settings(), wanted=found.wanted)
    assert report.count == n - 1
    assert report.skipped == {"with coordinates that are not numbers": 1}
    report = update_particles(session, path, tmp_path / "table")
    assert report.count == n - 1
    assert report.skipped == {"with coordinates that are not numbers": 1}
    _foreign(session, tiny_movies, path, rlnCoordinateX=[x[0], "1O0", *x[2:]])
    with pytest.raises(CorruptError, match=r"p\.star: row 2 of the column _rlnCoordinateX is '1O0'"):
        read_particles(session, path)
    _foreign(session, tiny_movies, path, rlnOpticsGroup=[7] * n)
    with pytest.raises(CorruptError, match="row 1 names the optics group 7"):
        read_particles(session, path)
    names = rows.strings("rlnMicrographName")
    _foreign(session, tiny_movies, path, rlnMicrographName=["elsewhere.mrc", *names[1:]])
    assert read_particles(session, path).skipped == {"in micrographs that the session does not have": 1}
    _foreign(session, tiny_movies, path, rlnMicrographName=["elsewhere.mrc"] * n)
    with pytest.raises(RequestError, match="none of those of"):
        read_particles(session, path)
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:-4]) + "\n000001@x.mrcs 12.5\n000002@x.mrcs 1 2\n")
    with pytest.raises(CorruptError, match="line"):
        read_particles(session, path)


def test_particles_star_grows_with_the_session(session: Session) -> None:
    """Off by default; on, the step cuts, and what is excluded leaves the table."""
    session.set("particles.picks", "truth")
    from weft.session.steps import all_steps

    step = all_steps()["particles"]
    assert not step.wanted(session.settings)
    session.set("particles.write", "true")
    assert step.wanted(session.settings)
    from weft.session.step import Job

    # as a run does it, without the network that picks
    store, settings = session.store, session.settings
    for name in NAMES[:2]:
        record = store.read(name)
        assert record is not None
        result = step.run(Job(session.root, session[name].source, settings, record, "cpu"))
        from weft.session.records import StepRecord

        made = StepRecord("done", "x", {}, {"metrics": dict(result.metrics)}, dict(result.outputs))
        store.write(record.with_step("particles", made))
        session.write_tables(session.summaries())
        rows = _rows(session.root / "particles.star")
        assert len({n.split("@")[1] for n in rows.strings("rlnImageName")}) == NAMES.index(name) + 1
    assert all(Path(n.split("@")[1]).is_file() for n in rows.strings("rlnImageName"))
    assert result.metrics["particles_cut"] > 0
    session.select(session.selection.decide("movie_000", False))
    rows = _rows(session.root / "particles.star")
    assert all("movie_001" in n for n in rows.strings("rlnImageName"))


def test_picks_may_come_from_elsewhere(session: Session) -> None:
    """Without a network to wait for, particles follow the CTF."""
    session.set("particles.write", "true")
    waits = session.status()["movie_000"].steps
    assert {"pick", "particles"} <= set(waits)
    session.set("picking.model", "")
    steps = session.status()["movie_000"].steps
    assert "pick" not in steps
    assert steps["particles"].state == "new"


def test_the_command(session: Session, tiny_movies: Path, tmp_path: Path) -> None:
    run = CliRunner()
    out = str(tmp_path / "out")
    base = ["particles", str(session.root), "--box", "48", "--pixel-size", "3", "--output", out]
    done = run.invoke(app, base)
    assert done.exit_code == 0, done.output
    assert f"{_picks(session)} particles of 3 micrographs: {out}/particles.star" in done.output
    assert "picks of truth" in done.output
    assert read_star(tmp_path / "out" / "particles.star")["optics"].value("rlnImagePixelSize") == "3.0"
    _foreign(session, tiny_movies, tmp_path / "p.star")
    done = run.invoke(app, [*base, "--particles", str(tmp_path / "p.star")])
    assert done.exit_code == 0, done.output
    done = run.invoke(app, [*base[:-1], out + "2", "--particles", str(tmp_path / "p.star"), "--no-images"])
    assert done.exit_code == 0, done.output
    assert "images are those of the list" in done.output
    done = run.invoke(app, [*base, "--no-images"])
    assert isinstance(done.exception, RequestError)


def test_a_report_counts() -> None:
    report = ParticleReport(skipped={"a": 1})
    report.leave_out({"a": 2, "b": 1})
    assert report.skipped == {"a": 3, "b": 1}
    assert report.exit_code == 1
