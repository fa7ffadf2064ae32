"""Alignments by IMOD, AreTomo, Dynamo, RELION 5 and Warp: into a session, used there, and out again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import weft
from weft.errors import FormatError, RequestError, SessionError
from weft.formats import aretomo, dynamo, imod, mrc, relion_tomo, warp_geometry, warp_xml
from weft.formats.star import read_star
from weft.physics.geometry import TiltGeometry
from weft.session.aligned import ImportedAlignment
from weft.session.alignment_export import export_alignments, export_tomograms
from weft.session.alignment_import import (
    AlignmentImportSettings,
    import_alignments,
    remove_alignments,
)
from weft.session.alignment_matching import match_views
from weft.session.alignment_reading import (
    ForeignAlignment,
    ReadingSettings,
    SessionImages,
    View,
    mirrored,
    read_source,
)
from weft.session.alignment_sources import PROGRAMS, AlignmentSource, Program, find_sources
from weft.session.lock import SessionLock
from weft.session.session import Session
from weft.session.tilt_table import TiltRow, TiltTable

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
    """An alignment such as a program finds: shifts, axes and angles of their own, the whole turned by 4.2°."""
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
