"""Alignments by IMOD, AreTomo, Dynamo, RELION 5 and Warp: into a session, used there, and out again."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

import weft
from weft.cli import main
from weft.errors import ItemError, RequestError, SessionError
from weft.formats import aretomo, dynamo, imod, mrc, relion_tomo, warp_geometry, warp_xml
from weft.formats.star import read_star
from weft.physics.geometry import TiltGeometry
from weft.session.aligned import ImportedAlignment
from weft.session.alignment_export import export_alignments
from weft.session.alignment_import import (
    AlignmentImportSettings,
    import_alignments,
    remove_alignments,
)
from weft.session.alignment_sources import PROGRAMS, Program
from weft.session.lock import SessionLock
from weft.session.session import Session
from weft.session.tilt_table import TiltRow, TiltTable
from weft.session.tomogram_export import export_tomograms
from weft.session.work import Task, work

PIXEL = 5.0
SIZE = (96, 87)  # one even and one odd side: programs differ in where the centre of an odd one is
IMAGE = (SIZE[0] * PIXEL, SIZE[1] * PIXEL)
ANGLES = np.arange(-60.0, 61.0, 6.0)
N = len(ANGLES)
#: 0.01 pixels are asked for.
CLOSE = 0.01 * PIXEL


def write_series(folder: Path, names: Sequence[str], angles: Sequence[float] = tuple(ANGLES)) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(3)
    for name in names:
        images = rng.normal(100.0, 5.0, (len(angles), SIZE[1], SIZE[0])).astype(np.float32)
        mrc.write_stack(folder / f"{name}.st", iter(images), PIXEL)
        imod.write_tlt(folder / f"{name}.rawtlt", angles)


def make_session(root: Path, names: Sequence[str], angles: Sequence[float] = tuple(ANGLES)) -> Session:
    """A session of ready stacks, so that no movies are needed."""
    write_series(root / "stacks", names, angles)
    return weft.new(
        root / "session",
        mdoc=[root / "stacks"],
        pixel_size=PIXEL,
        voltage=300.0,
        cs=2.7,
        amplitude=0.07,
        dose_per_frame=3.0,
        alignment={"thickness": 300.0},
    )


def true_geometry(seed: int = 1, level_x: float = 0.0) -> TiltGeometry:
    """An alignment such as a program finds: its own shifts, axes and angles, all turned by 2.2°."""
    rng = np.random.default_rng(seed)
    return TiltGeometry.of(
        ANGLES + rng.normal(0, 0.1, N), axis=-12.0 + rng.normal(0, 0.2, N), shift=rng.normal(0, 40, (N, 2)),
        image_size=IMAGE, volume_size=(*IMAGE, 300.0), level=(level_x, 2.2),
    )  # fmt: skip


def write_as(program: str, geometry: TiltGeometry, folder: Path, name: str) -> None:
    """As the program itself would leave it: straight from the formats, not from the session's export."""
    place = folder / name
    place.mkdir(parents=True)
    if program == "imod":
        solved = imod.from_geometry(geometry, pixel_size=PIXEL)
        imod.write_xf(place / f"{name}.xf", solved.transforms, solved.shifts)
        imod.write_tlt(place / f"{name}.tlt", solved.angles)
        text = f"$tilt -StandardInput\nTILTFILE {name}.tlt\nXAXISTILT {solved.x_axis_tilt}\n"
        (place / "tilt.com").write_text(text + f"OFFSET {solved.angle_offset}\n")
    elif program == "aretomo":
        aretomo.write_aln(place / f"{name}.aln", aretomo.from_geometry(geometry, pixel_size=PIXEL))
    elif program == "dynamo":
        solved = dynamo.from_geometry(geometry, pixel_size=PIXEL)
        dynamo.write_dynamo_alignment(place, dynamo.DynamoAlignment(name, solved))
        (place / "info").mkdir()
        (place / "info" / "fitting.doc").write_text("rms : 0.8\n")
    elif program == "relion":
        tilts = {"rlnTomoNominalStageTiltAngle": ANGLES}
        series = relion_tomo.from_geometry(geometry, name, pixel_size=PIXEL, tilts=tilts)
        relion_tomo.write_tilt_series(place / "tomograms.star", [series])
    else:
        names = [f"{name}_{i:03d}.mrc" for i in range(N)]
        warp_xml.write_warp_xml(
            place / f"{name}.xml", warp_geometry.from_geometry(geometry, names, np.arange(N) * 3.0)
        )


def seen(session: Session, name: str) -> np.ndarray:
    xyz = np.random.default_rng(8).uniform(0, 1, (30, 3)) * session[name].volume_size
    return np.asarray(session[name].project(xyz))[..., :2]


def expected(session: Session, name: str, geometry: TiltGeometry) -> np.ndarray:
    """What a geometry says about the same points, of the session's volume."""
    size = torch.tensor(session[name].volume_size, dtype=torch.float64)
    xyz = torch.as_tensor(np.random.default_rng(8).uniform(0, 1, (30, 3))) * size
    return replace(geometry, volume_size=size).project(xyz)[..., :2].numpy()


def align(session: Session) -> None:
    report = session.run(steps=["align"], workers=0, threads=1)
    assert report.exit_code == 0, report


# ------------------------------------------------------------------------------------- through a session


@pytest.fixture(scope="module")
def aligned(tmp_path_factory: pytest.TempPathFactory) -> Session:
    """One geometry in the files of each program, each imported as a series of that name."""
    root = tmp_path_factory.mktemp("aligned")
    session = make_session(root, [f"TS_{program}" for program in PROGRAMS])
    for program in PROGRAMS:
        write_as(program, true_geometry(), root / "theirs", f"TS_{program}")
    report = import_alignments(session, [root / "theirs"])
    assert report.exit_code == 0, report.describe()
    # which program made each was found from its files
    assert {s.name: s.program for s in report.imported} == {f"TS_{p}": p for p in PROGRAMS}
    align(session)
    return session


@pytest.mark.parametrize("program", PROGRAMS)
def test_points_are_where_the_other_program_sees_them(aligned: Session, program: Program) -> None:
    name = f"TS_{program}"
    off = np.abs(seen(aligned, name) - expected(aligned, name, true_geometry()))
    assert off.max() < CLOSE
    alignment = aligned[name].alignment
    assert alignment.verdict == "good"
    assert f"imported from {program}" in alignment.notes[0]


@pytest.mark.parametrize("second", PROGRAMS)
def test_from_any_program_to_any_other(aligned: Session, second: Program, tmp_path: Path) -> None:
    """Imported from each of the five, exported to one, imported again: the same projections to 0.01 px."""
    export = export_alignments(aligned, tmp_path / "out", second)
    assert export.problems == []
    assert set(export.written) == {f"TS_{first}" for first in PROGRAMS}
    other = make_session(tmp_path, [f"TS_{program}" for program in PROGRAMS])
    settings = AlignmentImportSettings(program=second)
    report = import_alignments(other, [tmp_path / "out"], settings)
    assert report.exit_code == 0, report.describe()
    align(other)
    for first in PROGRAMS:
        name = f"TS_{first}"
        assert np.abs(seen(other, name) - seen(aligned, name)).max() < CLOSE, first
        assert np.abs(seen(other, name) - expected(other, name, true_geometry())).max() < CLOSE, first


def take(tmp_path: Path, program: str, geometry: TiltGeometry, **given: object) -> tuple[Session, list[str]]:
    """A session of one series, TS_01, with an imported alignment; and the remarks of the import."""
    session = make_session(tmp_path, ["TS_01"])
    write_as(program, geometry, tmp_path / "theirs", "TS_01")
    report = import_alignments(session, [tmp_path / "theirs"], AlignmentImportSettings(**given))
    assert report.exit_code == 0, report.describe()
    return session, list(report.imported[0].remarks)


@pytest.mark.parametrize("program", ["imod", "relion", "warp"])
def test_inclined_about_x(program: Program, tmp_path: Path) -> None:
    """Kept where the files can hold it; refused, with what to do, where they cannot."""
    geometry = true_geometry(level_x=3.0)
    session, _ = take(tmp_path, program, geometry)
    align(session)
    assert np.abs(seen(session, "TS_01") - expected(session, "TS_01", geometry)).max() < CLOSE
    for form in ("aretomo", "dynamo"):
        refused = export_alignments(session, tmp_path / form, form)
        assert refused.exit_code == 1
        assert refused.written == {}
        assert "inclination about x (3.00°)" in refused.problems[0]
        assert "--unlevelled" in refused.problems[0]
        export = export_alignments(session, tmp_path / form, form, unlevelled=True)
        assert export.exit_code == 0
    solved = aretomo.read_aln(tmp_path / "aretomo" / "TS_01.aln")
    back = aretomo.to_geometry(solved, pixel_size=PIXEL)
    flat = replace(geometry, level_x=torch.zeros((), dtype=torch.float64))
    np.testing.assert_allclose(back.matrices, flat.matrices, atol=1e-6)  # six digits are written


def test_the_sign_of_the_angles(tmp_path: Path) -> None:
    """--invert-angles: the same images of the mirrored specimen; and back again on export."""
    geometry = true_geometry(level_x=1.0)
    session, _ = take(tmp_path, "imod", geometry, invert_angles=True)
    align(session)
    size = torch.tensor(session["TS_01"].volume_size, dtype=torch.float64)
    xyz = torch.rand(20, 3, dtype=torch.float64) * size
    flipped = torch.cat([xyz[:, :2], size[2] - xyz[:, 2:]], dim=1)
    found = session["TS_01"].project(xyz.numpy())[..., :2]
    truth = replace(geometry, volume_size=size).project(flipped)[..., :2].numpy()
    assert np.abs(found - truth).max() < CLOSE
    export_alignments(session, tmp_path / "out", "imod", invert_angles=True)
    again = imod.read_tlt(tmp_path / "out" / "TS_01" / "TS_01.tlt")
    np.testing.assert_allclose(again, geometry.angles, atol=1e-5)


# ------------------------------------------------------------------------------------------ binned stacks


def test_imod_on_a_binned_stack(tmp_path: Path) -> None:
    """IMOD counts from edges, which binning leaves where they are: half the shifts mean the same."""
    geometry = true_geometry()
    session = make_session(tmp_path, ["TS_01"])
    folder = tmp_path / "theirs"
    write_as("imod", geometry, folder, "TS_01")
    transforms, shifts = imod.read_xf(folder / "TS_01" / "TS_01.xf")
    imod.write_xf(folder / "TS_01" / "TS_01.xf", transforms, shifts / 2)
    (folder / "TS_01" / "TS_01.edf").write_text(f"Setup.PixelSize={PIXEL * 2 / 10}\n")
    settings = [
        AlignmentImportSettings(binning=2.0),
        AlignmentImportSettings(pixel_size=2 * PIXEL),
        AlignmentImportSettings(),  # as the .edf says
    ]
    for setting in settings:
        report = import_alignments(session, [folder], setting)
        assert report.exit_code == 0, report.describe()
        kept = ImportedAlignment.read(session.root / "tiltseries" / "alignments" / "TS_01.json")
        assert (kept.geometry.shift - geometry.shift).abs().max() < 0.001 * PIXEL
    assert "binned by 2 against the session, by the pixel size in TS_01.edf" in report.describe()
    (folder / "TS_01" / "TS_01.edf").write_text("Setup.PixelSize=0.7\n")
    report = import_alignments(session, [folder])
    assert "say which is right with --pixel-size or --binning" in report.problems[0]
    with pytest.raises(RequestError, match="not both"):
        import_alignments(session, [folder], AlignmentImportSettings(binning=2.0, pixel_size=10.0))


def test_aretomo_says_the_size_of_its_images(tmp_path: Path) -> None:
    session = make_session(tmp_path, ["TS_01"])
    solved = aretomo.from_geometry(true_geometry(), pixel_size=PIXEL)
    solved.raw_size = (SIZE[0] // 2, SIZE[1] // 2, N)
    file = tmp_path / "TS_01.st.aln"
    aretomo.write_aln(file, replace(solved, shift=solved.shift / 2, alpha_offset=2.2))
    report = import_alignments(session, [file])
    assert report.exit_code == 0, report.describe()
    assert "binned by 2 against the session, by RawSize" in report.imported[0].remarks
    kept = ImportedAlignment.read(session.root / "tiltseries" / "alignments" / "TS_01.json")
    # its centre is that of a pixel, twice as large: half of one of ours further on
    moved = kept.geometry.shift - true_geometry().shift
    np.testing.assert_allclose(moved, 0.5 * PIXEL, atol=1e-4)
    solved.raw_size = (100, 40, N)
    aretomo.write_aln(file, solved)
    assert "100×40 pixels" in import_alignments(session, [file]).problems[0]


# -------------------------------------------------------------------------------------- what can go wrong


def test_views_that_imod_excludes(tmp_path: Path) -> None:
    session = make_session(tmp_path, ["TS_01"])
    write_as("imod", true_geometry(), tmp_path / "theirs", "TS_01")
    with (tmp_path / "theirs" / "TS_01" / "tilt.com").open("a") as file:
        file.write("EXCLUDELIST2 1,20-21\n")
    report = import_alignments(session, [tmp_path / "theirs"], AlignmentImportSettings(leave_out=True))
    assert report.imported[0].tilts == N - 3
    assert report.imported[0].missing == (0, 19, 20)
    assert "views 1, 20, 21 are excluded in tilt.com" in report.describe()
    assert "left out now: -60°, 54°, 60°" in report.describe()
    align(session)
    assert len(session["TS_01"]) == N - 3
    kept = true_geometry().select(torch.arange(1, N - 2))
    assert np.abs(seen(session, "TS_01") - expected(session, "TS_01", kept)).max() < CLOSE


def test_tilts_that_it_says_nothing_about_are_named(tmp_path: Path) -> None:
    session = make_session(tmp_path, ["TS_01"])
    write_as("imod", true_geometry(), tmp_path / "theirs", "TS_01")
    with (tmp_path / "theirs" / "TS_01" / "tilt.com").open("a") as file:
        file.write("EXCLUDELIST 21\n")
    report = import_alignments(session, [tmp_path / "theirs"])
    assert "says nothing about 60°: leave these out (--leave-out)" in report.describe()
    run = session.run(steps=["align"], workers=0, threads=1)
    assert "says nothing about the tilts at 60°" in run.failed["TS_01"]


def test_what_is_not_taken_and_why(tmp_path: Path) -> None:
    session = make_session(tmp_path, ["TS_01", "TS_02"])
    theirs = tmp_path / "theirs"
    write_as("imod", true_geometry(), theirs, "TS_01")
    aretomo.write_aln(
        theirs / "TS_01" / "TS_01.aln", aretomo.from_geometry(true_geometry(), pixel_size=PIXEL)
    )
    write_as("imod", true_geometry(), theirs, "TS_07")
    (theirs / "TS_07" / "TS_07_fid.xf").write_text("nonsense")  # eTomo's, of an earlier step
    report = import_alignments(session, [theirs])
    assert report.exit_code == 1
    assert "TS_01 has 2 alignments" in report.problems[0]
    assert "--program" in report.problems[0]
    assert report.unknown == [theirs / "TS_07" / "TS_07.xf"]
    assert report.without == ["TS_01", "TS_02"]
    report = import_alignments(session, [theirs], AlignmentImportSettings(program="aretomo"))
    assert [(s.name, s.program) for s in report.imported] == [("TS_01", "aretomo")]
    with pytest.raises(RequestError, match="no file or folder"):
        import_alignments(session, [tmp_path / "nowhere"])
    with pytest.raises(RequestError, match="no tilt series like X"):
        import_alignments(session, [theirs], only="X*")
    (theirs / "TS_01" / "TS_01.tlt").unlink()
    report = import_alignments(session, [theirs / "TS_01" / "TS_01.xf"])
    assert "there is no TS_01.tlt with the solved angles" in report.problems[0]
    with SessionLock(session.root), pytest.raises(SessionError):
        import_alignments(session, [theirs])


def test_wefts_own_alignment_again(tmp_path: Path) -> None:
    session, _ = take(tmp_path, "relion", true_geometry())
    before = export_alignments(session, tmp_path / "out", "imod")
    assert before.exit_code == 1
    assert "not aligned yet" in before.problems[0]
    align(session)
    assert export_alignments(session, tmp_path / "out", "imod").exit_code == 0
    assert remove_alignments(session, only="TS_02") == []
    assert remove_alignments(session) == ["TS_01"]
    assert session["TS_01"].table.alignment == ""
    assert list((session.root / "tiltseries" / "alignments").iterdir()) == []
    assert session.status()["TS_01"].steps["align"].state == "stale"
    # what is not current is not handed on
    after = export_alignments(session, tmp_path / "out", "imod")
    assert after.written == {}
    assert "its alignment is not current (its tilts have changed)" in after.problems[0]


def test_matching_survives_another_look_at_the_origins(tmp_path: Path) -> None:
    """`weft run` reads the stacks' descriptions again: the imported alignment stays."""
    session, _ = take(tmp_path, "imod", true_geometry())
    align(session)
    align(session)
    assert session["TS_01"].table.alignment == "tiltseries/alignments/TS_01.json"
    assert session.status()["TS_01"].steps["align"].state == "done"


def _movie_table(names: Sequence[str], angles: Sequence[float]) -> TiltTable:
    rows = [
        TiltRow(angle, f"/frames/{name}.tif", name, name=f"{name}.tif", motion="done")
        for name, angle in zip(names, angles, strict=True)
    ]
    return TiltTable("TS_01", "/mdoc/TS_01.mdoc", "mdoc", tuple(rows))


def _kept(table: TiltTable, rows: Sequence[int]) -> ImportedAlignment:
    geometry = true_geometry().select(torch.tensor(rows))
    return ImportedAlignment.of_rows("imod", "TS_01.xf", table, rows, geometry)


def test_an_alignment_follows_its_movies(tmp_path: Path) -> None:
    """Rows come and go, angles are corrected, movies are named twice: every view stays with its image."""
    names, angles = [f"TS_01_{i:03d}" for i in range(4)], [0.0, 6.0, -6.0, 12.0]
    kept = _kept(_movie_table(names, angles), [1, 2, 3])
    kept.write(tmp_path / "TS_01.json")
    kept = ImportedAlignment.read(tmp_path / "TS_01.json")
    assert kept.rows_of(_movie_table(names, angles)) == {1: 0, 2: 1, 3: 2}
    # an exposure more at the beginning, another order
    more = _movie_table(["new", *names[::-1]], [3.0, *angles[::-1]])
    assert kept.rows_of(more) == {3: 0, 2: 1, 1: 2}
    # one less, and an angle that was wrong
    assert kept.rows_of(_movie_table(names[2:], [-7.5, 12.0])) == {0: 1, 1: 2}
    # another exposure at the same angle is another image
    assert kept.rows_of(_movie_table(["again", *names[2:]], angles[1:])) == {1: 1, 2: 2}
    twice = _movie_table([*names, names[1]], [*angles, 6.5])
    twice = replace(twice, tilts=(*twice.tilts[:4], replace(twice.tilts[4], left_out="named twice")))
    assert kept.rows_of(twice) == {1: 0, 2: 1, 3: 2}
    # where the series' file names no movies, the numbers in it mean nothing
    unnamed = _movie_table(names, angles)
    unnamed = replace(unnamed, tilts=tuple(replace(r, name=str(i)) for i, r in enumerate(unnamed.tilts)))
    kept = _kept(unnamed, [1, 2, 3])
    later = tuple(replace(row, name=str(i)) for i, row in enumerate(unnamed.tilts[1:]))
    assert kept.rows_of(replace(unnamed, tilts=later)) == {0: 0, 1: 1, 2: 2}


def test_an_alignment_follows_the_sections_of_its_stack() -> None:
    def table(angles: Sequence[float], content: str) -> TiltTable:
        rows = tuple(TiltRow(angle, image=i, name=str(i)) for i, angle in enumerate(angles))
        return TiltTable("TS_01", "/TS_01.st", "stack", rows, stack="/TS_01.st", stack_content=content)

    kept = _kept(table([-6.0, 0.0, 6.0], "a"), [0, 1, 2])
    # the same images, whose angles had the wrong sign
    assert kept.rows_of(table([6.0, 0.0, -6.0], "a")) == {0: 0, 1: 1, 2: 2}
    # other stacks: one section less, turned round
    assert kept.rows_of(table([0.0, 6.0], "b")) == {0: 1, 1: 2}
    assert kept.rows_of(table([6.0, 0.0, -6.0], "b")) == {2: 0, 1: 1, 0: 2}
    late = tuple(TiltRow(angle, image=i + 4, name=str(i)) for i, angle in enumerate([-6, 0, 5.95, 6.05]))
    with pytest.raises(ItemError, match=r"its view at 6° could be 2 \(2\) and 3 \(3\) now; import it again"):
        kept.rows_of(replace(table([-6.0, 0.0], "b"), tilts=late))


def test_a_replaced_stack_is_done_again_with_the_alignment_of_its_images(tmp_path: Path) -> None:
    """Of the same size and angles, nothing else tells; and without its first image all rows are others."""
    session, _ = take(tmp_path, "imod", true_geometry())
    align(session)
    before = seen(session, "TS_01")
    images = np.random.default_rng(4).normal(100.0, 5.0, (N, SIZE[1], SIZE[0])).astype(np.float32)
    stack = tmp_path / "stacks" / "TS_01.st"
    mrc.write_stack(stack, iter(images), PIXEL)
    report = session.run(steps=["align"], workers=0, threads=1)
    assert report.done == ["TS_01"]
    ours = mrc.read(session["TS_01"].paths["stack"])[0]
    np.testing.assert_allclose(ours, images)
    assert np.abs(seen(session, "TS_01") - before).max() == 0.0
    mrc.write_stack(stack, iter(images[1:]), PIXEL)
    imod.write_tlt(tmp_path / "stacks" / "TS_01.rawtlt", ANGLES[1:])
    assert session.run(steps=["align"], workers=0, threads=1).done == ["TS_01"]
    kept = true_geometry().select(torch.arange(1, N))
    assert np.abs(seen(session, "TS_01") - expected(session, "TS_01", kept)).max() < CLOSE
    # a copy with another time is the same stack
    stack.touch()
    assert session.run(steps=["align"], workers=0, threads=1).current == ["TS_01"]


def test_a_stack_that_changes_behind_its_table_is_not_used(tmp_path: Path) -> None:
    session = make_session(tmp_path, ["TS_01"])
    assert session.run(steps=["stack"], workers=0, threads=1).done == ["TS_01"]
    source = session["TS_01"].source
    data = (tmp_path / "stacks" / "TS_01.st").read_bytes()
    (tmp_path / "stacks" / "TS_01.st").write_bytes(data[:2000] + b"\1" + data[2001:])
    task = Task(str(session.root), str(source), "TS_01", "series", ("stack",), session.settings.plain())
    session.set("tilts.most_masked", "0.2")
    outcome = work(replace(task, settings=session.settings.plain()))
    assert "is another file than when its table was made" in outcome.error


# ------------------------------------------------------------------------------------------ RELION, CLI


def test_tomograms_for_relion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Table and tilts, relative to the project; read back, they project as the session does, defocus too."""
    angles = tuple(ANGLES[::4])
    monkeypatch.setitem(globals(), "SIZE", (260, 240))  # large enough for a CTF
    session = make_session(tmp_path, ["TS_01", "TS_02"], angles)
    for name in ("TS_01", "TS_02"):
        (tmp_path / "theirs" / name).mkdir(parents=True)
        imod.write_xf(
            tmp_path / "theirs" / name / f"{name}.xf", [np.eye(2)] * len(angles), [[3, 4]] * len(angles)
        )
        imod.write_tlt(tmp_path / "theirs" / name / f"{name}.tlt", angles)
    assert import_alignments(session, [tmp_path / "theirs"]).exit_code == 0
    project = tmp_path / "project"
    early = export_tomograms(session, project / "job" / "tomograms.star", project=project)
    assert early.exit_code == 1
    assert not (project / "job").exists()
    session.run(steps=["tilt_ctf"], only="TS_01", workers=0, threads=1)
    with pytest.raises(RequestError, match="outside the project"):
        export_tomograms(session, tmp_path / "tomograms.star", project=project)
    done = export_tomograms(session, project / "job" / "tomograms.star", project=project)
    assert list(done.written) == ["TS_01"]
    assert "TS_02: it is not aligned yet" in done.problems[0]
    table = read_star(project / "job" / "tomograms.star")["global"]
    assert table.strings("rlnTomoTiltSeriesStarFile") == ["job/tilt_series/TS_01.star"]
    series = relion_tomo.read_tilt_series(project / "job" / "tomograms.star", root=project)["TS_01"]
    image = series.tilts.strings("rlnMicrographName")[0]
    assert image == "000001@../session/tiltstack/TS_01/TS_01.st"
    assert (project / image.partition("@")[2]).is_file()
    item = session["TS_01"]
    back = relion_tomo.to_geometry(series, image_size=(260, 240), volume_size=item.volume_size)
    xyz = np.random.default_rng(2).uniform(0, 1, (20, 3)) * item.volume_size
    np.testing.assert_allclose(back.project(torch.from_numpy(xyz)), item.project(xyz), atol=CLOSE)
    # with the CTF, an alignment for RELION holds it too, and the hand
    export_alignments(session, project / "align", "relion", only="TS_01", project=project)
    aligned = relion_tomo.read_tilt_series(project / "align" / "aligned_tilt_series.star", root=project)[
        "TS_01"
    ]
    np.testing.assert_allclose(aligned.defocus, item.ctf.defocus, atol=0.01)
    assert aligned.hand == -item.hand


@pytest.mark.skipif(shutil.which("relion_star_printtable") is None, reason="RELION is not installed")
def test_relion_reads_the_tables(aligned: Session, tmp_path: Path) -> None:
    """An old RELION without tomography still reads every row of ours."""
    export_alignments(aligned, tmp_path, "relion", project=tmp_path)

    def printed(file: Path, block: str, *labels: str) -> list[list[str]]:
        command = ["relion_star_printtable", file.name, block, *labels]
        done = subprocess.run(
            command, cwd=file.parent, check=True, capture_output=True, text=True, timeout=60
        )
        return [line.split() for line in done.stdout.splitlines()]

    table = printed(
        tmp_path / "aligned_tilt_series.star", "data_global", "rlnVoltage", "rlnAmplitudeContrast"
    )
    assert [[float(v) for v in row] for row in table] == [[300.0, 0.07]] * len(PROGRAMS)
    tilts = printed(
        tmp_path / "tilt_series" / "TS_imod.star",
        "data_TS_imod",
        "rlnMicrographName",
        "rlnMicrographPreExposure",
    )
    assert [float(dose) for _, dose in tilts] == [3.0 * i for i in range(N)]
    assert tilts[0][0].startswith("000001@")


def test_warps_library_projects_the_same(
    aligned: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is exported for Warp, read by Warp's own Python library."""
    try:
        importlib.import_module("torch_projectors")
    except (ImportError, OSError):
        # its compiled part loads with few versions of torch only, and geometry does not use it
        monkeypatch.setitem(sys.modules, "torch_projectors", ModuleType("torch_projectors"))
    warpylib = pytest.importorskip("warpylib")
    export_alignments(aligned, tmp_path, "warp")
    for program in PROGRAMS:
        item = aligned[f"TS_{program}"]
        theirs = warpylib.TiltSeries(path=str(tmp_path / f"TS_{program}.tomostar"))
        xyz = np.random.default_rng(8).uniform(0.1, 0.9, (30, 3)) * item.volume_size
        got = theirs.get_position_in_all_tilts_single(torch.as_tensor(xyz, dtype=torch.float32)).numpy()
        assert np.abs(got[..., :2].transpose(1, 0, 2) - item.project(xyz)[..., :2]).max() < CLOSE


def test_before_anything_is_processed(tmp_path: Path) -> None:
    """Movies that are only listed: by their names, but RELION's centre needs the size of the images."""
    (tmp_path / "frames").mkdir()
    text = "PixelSpacing = 5\n\n"
    for i, angle in enumerate(ANGLES):
        (tmp_path / "frames" / f"TS_01_{i:03d}.tif").touch()
        text += f"[ZValue = {i}]\nTiltAngle = {angle}\nSubFramePath = X:\\TS_01_{i:03d}.tif\n\n"
    (tmp_path / "TS_01.mdoc").write_text(text)
    optics = {"voltage": 300.0, "cs": 2.7, "amplitude": 0.07, "dose_per_frame": 3.0}
    session = weft.new(
        tmp_path / "session", frames=tmp_path / "frames" / "*.tif", mdoc=[tmp_path / "TS_01.mdoc"],
        pixel_size=PIXEL / 2, average={"bin": 2.0}, **optics,
    )  # fmt: skip
    write_as("imod", true_geometry(), tmp_path / "imod", "TS_01")
    report = import_alignments(session, [tmp_path / "imod"])
    assert report.exit_code == 0, report.describe()
    assert "in the order of their angles" in report.imported[0].how
    kept = ImportedAlignment.read(session.root / "tiltseries" / "alignments" / "TS_01.json")
    # the averages will be binned: their pixels are those that were aligned
    assert (kept.geometry.shift - true_geometry().shift).abs().max() < 0.001 * PIXEL
    write_as("relion", true_geometry(), tmp_path / "relion", "TS_01")
    assert "run `weft tilts stack`" in import_alignments(session, [tmp_path / "relion"]).problems[0]


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    session = make_session(tmp_path, ["TS_01"])
    write_as("imod", true_geometry(), tmp_path / "theirs", "TS_01")

    def call(*words: object) -> tuple[int, str]:
        code = main([str(word) for word in words])
        both = capsys.readouterr()
        return code, both.out + both.err

    root = session.root
    code, text = call(
        "import", "alignments", root, tmp_path / "theirs" / "*" / "*.xf", "--max-stretch", "0.01"
    )
    assert code == 0, text
    assert text.splitlines()[1].split()[:3] == ["TS_01", "imod", "21/21"]
    assert "by number, in TS_01.st" in text
    assert call("export", "alignments", root, "--to", "warp", "-o", tmp_path / "out")[0] == 1
    align(session)
    code, text = call("export", "alignments", root, "--to", "warp", "-o", tmp_path / "out")
    assert (code, text) == (0, f"1 tilt series: {tmp_path / 'out'}\n")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["TS_01.tomostar", "TS_01.xml"]
    assert call("export", "alignments", root, "--to", "serialem", "-o", tmp_path)[0] == 2
    code, text = call("export", "tomograms", root, "-o", tmp_path / "tomograms.star")
    assert code == 1
    assert "its CTF is not known yet" in text
    assert call("import", "alignments", root)[0] == 2
    assert call("import", "alignments", root, tmp_path / "theirs", "--remove")[0] == 2
    code, text = call("import", "alignments", root, "--remove")
    assert (code, text) == (0, "Weft's own alignment is used again for TS_01.\n")
