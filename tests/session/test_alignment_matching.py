"""Which view of an alignment made elsewhere is which tilt; and the files that other programs have left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from weft.errors import FormatError, TruncatedError
from weft.physics.geometry import TiltGeometry
from weft.session.alignment_matching import match_views
from weft.session.alignment_reading import (
    ForeignAlignment,
    ReadingSettings,
    SessionImages,
    View,
    read_source,
)
from weft.session.alignment_sources import AlignmentSource, Program, find_sources
from weft.session.tilt_table import TiltRow, TiltTable


def foreign(
    angles: Sequence[float],
    *,
    program: Program = "imod",
    stage: Sequence[float] | None = None,
    names: Sequence[str] | None = None,
    sections: Sequence[int | None] | None = None,
    total: int | None = None,
) -> ForeignAlignment:
    views = tuple(
        View(
            angle,
            None if stage is None else stage[i],
            i if sections is None else sections[i],
            () if names is None else (names[i],),
        )
        for i, angle in enumerate(angles)
    )
    source = AlignmentSource(program, Path(f"their/TS_01.{program}"), ("TS_01",))
    return ForeignAlignment(source, views, total or len(views), TiltGeometry.of(list(angles)))


def table_of(angles: Sequence[float], left_out: Sequence[int] = ()) -> TiltTable:
    """Of movies, in the order of acquisition."""
    rows = [
        TiltRow(a, f"/data/TS_01_{i:03d}_{a:.1f}.tif", f"TS_01_{i:03d}", -1, f"TS_01_{i:03d}_{a:.1f}.tif")
        for i, a in enumerate(angles)
    ]
    rows = [replace(r, left_out="taken again later") if i in left_out else r for i, r in enumerate(rows)]
    return TiltTable("TS_01", "/data/TS_01.mdoc", "mdoc", tuple(rows))


SCHEME = (0.0, 3.0, -3.0, -6.0, 6.0, 9.0, -9.0)
BY_ANGLE = (6, 3, 2, 0, 1, 4, 5)


def test_all_tilts_in_the_order_of_their_angles() -> None:
    found = match_views(foreign(sorted(SCHEME)), table_of(SCHEME))
    assert found.rows == BY_ANGLE
    assert "by number" in found.how
    # solved angles wander, and a lamella may be inclined by any angle: order and number still tell
    turned = [a + 11.0 + 0.5 * (-1) ** i for i, a in enumerate(sorted(SCHEME))]
    found = match_views(foreign(turned), table_of(SCHEME))
    assert found.rows == BY_ANGLE
    assert "+11.50° from the stage's" in found.how or "+10.50°" in found.how


def test_in_the_order_of_wefts_own_stack() -> None:
    """With a tilt left out; without knowing that stack the same views are found by their angles."""
    views = foreign([-9.2, -6.1, 0.1, 3.2, 6.1, 9.0])
    stack = (6, 3, 0, 1, 4, 5)
    known = match_views(views, table_of(SCHEME), stack)
    assert known.rows == stack
    assert "Weft's stack" in known.how
    alone = match_views(views, table_of(SCHEME))
    assert alone.rows == stack
    assert alone.how == "by angle, within 0.20°"


def test_some_of_the_views_of_a_stack() -> None:
    """Dark images are left out: SEC counts what was there."""
    views = foreign([-6.0, 0.0, 3.0], program="aretomo", sections=[1, 3, 4], total=7)
    assert match_views(views, table_of(SCHEME)).rows == (3, 0, 1)


def test_a_turned_part_of_a_series_is_not_guessed() -> None:
    """Turned by a whole step: the views fit other tilts as well as their own."""
    views = foreign([-6.0 + 2.9, -3.0 + 2.9, 0.0 + 2.9, 3.0 + 2.9, 6.0 + 2.9, 9.0 + 2.9])
    with pytest.raises(FormatError, match="is none of the tilts of TS_01"):
        match_views(views, table_of(SCHEME))
    # as Weft's stack would have it; but then the numbers and the angles contradict each other
    stack = (3, 2, 0, 1, 4, 5)
    with pytest.raises(FormatError, match=r"say --angle-offset 2\.9"):
        match_views(views, table_of(SCHEME), stack)
    found = match_views(views, table_of(SCHEME), stack, angle_offset=2.9)
    assert found.rows == stack
    half = foreign([-6.0 + 0.9, -3.0 + 0.9, 3.0 + 0.9])
    with pytest.raises(FormatError, match="the next ones could be meant"):
        match_views(half, table_of(SCHEME))
    assert match_views(half, table_of(SCHEME), angle_offset=0.9).rows == (3, 2, 1)


def test_angles_that_leave_a_doubt() -> None:
    twice = (0.0, 3.0, -3.0, 0.0, 6.0)
    views = foreign([-3.0, 0.0, 3.0, 6.0])
    with pytest.raises(FormatError, match=r"TS_01\.imod: view 2 \(0\.00°\) could be .* \(tilts 0 and 3\)"):
        match_views(views, table_of(twice))
    # one of them was taken again, so that the other is meant
    assert match_views(views, table_of(twice, left_out=[0])).rows == (2, 3, 1, 4)
    with pytest.raises(FormatError, match=r"view 3 \(20\.00°\) is none of the tilts .* nearest is at 9°"):
        match_views(foreign([-3.0, 0.0, 20.0]), table_of(SCHEME))
    with pytest.raises(FormatError, match="both belong to the tilt at 3°"):
        match_views(foreign([3.0, 3.0, 6.0]), table_of(SCHEME))


def test_angles_of_the_stage_decide_where_they_are_known() -> None:
    """The solved ones are turned by just one step, which is without a doubt with a .rawtlt."""
    solved = [-3.0, 0.0, 3.0, 6.0]
    assert match_views(foreign(solved), table_of(SCHEME)).rows == (2, 0, 1, 4)
    stage = [-6.0, -3.0, 0.0, 3.0]
    assert match_views(foreign(solved, stage=stage), table_of(SCHEME)).rows == (3, 2, 0, 1)


def test_by_the_names_of_movies() -> None:
    """Whatever the angles, the folders, the endings; each tilt must be there, and once."""
    table = table_of(SCHEME)
    names = [f"../frames/TS_01_{i:03d}_{SCHEME[i]:.1f}.eer" for i in (3, 2, 0)]
    found = match_views(foreign([6.0, 3.0, 0.0], program="warp", names=names), table)
    assert found.rows == (3, 2, 0)
    assert found.how == "by the movies' names, angles of opposite sign"
    with pytest.raises(FormatError, match=r"X_1\.tif \(0\.00°\) is none of the movies of TS_01, but others"):
        match_views(foreign([6.0, 3.0, 0.0], program="warp", names=[*names[:2], "X_1.tif"]), table)
    with pytest.raises(FormatError, match="both belong to the tilt at -6°"):
        match_views(foreign([6.0, 6.0], program="relion", names=names[:1] * 2), table)
    unknown = foreign([6.0, 3.0], program="warp", names=["a.tif", "b.tif"], sections=[None, None])
    with pytest.raises(FormatError, match=r"its movies \(a\.tif \.\.\.\) are none of those of TS_01"):
        match_views(unknown, table)


# ------------------------------------------------------------------------------- files of real programs


def found_in(*folders: Path) -> dict[str, AlignmentSource]:
    for folder in folders:
        if not folder.exists():
            pytest.skip(f"{folder} is not there")
    sources, problems = find_sources(folders)
    assert problems == []
    return {source.names[0]: source for source in sources}


IMAGES = SessionImages(1.35, (3838, 3710))
#: Å, of the stack that was aligned before Warp imported it.
WARP_PIXEL = 10.0


def test_imod_of_a_tutorial_series(reference_data: Path) -> None:
    """EMPIAR-10164's TS_03: transforms and angles in different folders, tilts as RELION has them."""
    real = reference_data / "real"
    source = found_in(
        real / "TomoBabel__cets-imod" / "alignment_files", real / "TomoBabel__cets-imod" / "tilt_series"
    )["TS_03"]
    assert source.program == "imod"
    found = read_source(source, IMAGES, ReadingSettings())
    job = real / "TomoBabel__cets-relion" / "AlignTiltSeries" / "job005"
    theirs = read_source(found_in(job)["TS_03"], IMAGES, ReadingSettings())
    # as movies were taken: by dose
    order = np.argsort([view.names[0] for view in theirs.views])
    table = table_of([theirs.views[i].stage or 0.0 for i in order])
    match = match_views(found, table)
    assert "by number" in match.how
    assert [table.tilts[row].angle for row in match.rows] == [view.stage for view in theirs.views]


@pytest.mark.parametrize(
    "folder", ["AlignTiltSeries/job005", "AlignTiltSeries/job005/tilt_series", "Denoise/job008"]
)
def test_relion_jobs(reference_data: Path, folder: str) -> None:
    """A job's folder with its table, and the STAR files of single series: the same alignment."""
    job = reference_data / "real" / "TomoBabel__cets-relion"
    one = read_source(found_in(job / folder)["TS_01"], IMAGES, ReadingSettings())
    two = read_source(found_in(job / "AlignTiltSeries" / "job005")["TS_01"], IMAGES, ReadingSettings())
    assert one.source.program == "relion"
    assert len(one.views) == 40
    # the files hold six digits
    torch.testing.assert_close(one.geometry.shift, two.geometry.shift, atol=1e-5, rtol=0)
    rows = [TiltRow(v.stage or 0.0, f"/raw/{Path(v.names[0]).stem}.tif") for v in reversed(one.views)]
    match = match_views(one, TiltTable("TS_01", "/raw/TS_01.mdoc", "mdoc", tuple(rows)))
    assert match == type(match)(tuple(range(39, -1, -1)), "by the movies' names")


def test_a_relion_job_without_alignment(reference_data: Path) -> None:
    source = found_in(reference_data / "real" / "TomoBabel__cets-relion" / "Import" / "job001")["TS_01"]
    with pytest.raises(FormatError, match="it is not aligned"):
        read_source(source, IMAGES, ReadingSettings())


def test_warp_reads_an_xf_as_we_do(reference_data: Path) -> None:
    """Warp's own import of an .xf: both sources of one folder say the same, but for IMOD's half pixel."""
    folder = reference_data / "real" / "warpem__warpylib" / "xf_import"
    if not folder.exists():
        pytest.skip(f"{folder} is not there")
    sources, _ = find_sources([folder])
    assert [source.program for source in sources] == ["imod", "warp"]
    images = SessionImages(WARP_PIXEL, None)
    one, two = (read_source(source, images, ReadingSettings()) for source in sources)
    np.testing.assert_allclose(one.geometry.angles, two.geometry.angles, atol=0.02)
    np.testing.assert_allclose(one.geometry.axis, two.geometry.axis.expand(len(two.views)), atol=1e-4)
    away = (one.geometry.shift - two.geometry.shift).numpy()
    np.testing.assert_allclose(away, -0.5 * WARP_PIXEL, atol=0.01)
    match = match_views(two, TiltTable("00254", "x", "mdoc", tuple(
        TiltRow(-v.angle, f"/frames/{Path(v.names[0]).name}") for v in two.views)))  # fmt: skip
    assert match.how == "by the movies' names, angles of opposite sign"


def test_files_that_are_no_alignments(reference_data: Path) -> None:
    """Dynamo's tables of particles and RELION's of other things are passed over; if named, it is said."""
    folder = reference_data / "real" / "alisterburt__dynamo2m"
    if not folder.exists():
        pytest.skip(f"{folder} is not there")
    assert find_sources([folder]) == ([], [])
    named = folder / "warp2dynamo" / "example.star"
    sources, problems = find_sources([named])
    assert sources == []
    assert problems == [f"{named} holds no alignment of a tilt series."]


def test_what_others_have_left(reference_data: Path) -> None:
    """Of cryoet-alignment's samples one is cut short, and one lacks its solved angles: both say so."""
    folder = reference_data / "real" / "uermel__cryoet-alignment"
    if not folder.exists():
        pytest.skip(f"{folder} is not there")
    sources, problems = find_sources([folder])
    assert problems == []
    assert {source.program for source in sources} == {"imod", "aretomo"}
    for source in sources:
        with pytest.raises((FormatError, TruncatedError), match=r"test\.tlt|not the 90 of the raw stack"):
            read_source(source, IMAGES, ReadingSettings())
    whole = found_in(folder / "convert")["tilt_1"]
    assert whole.program == "imod"
    assert whole.command is not None
    assert len(read_source(whole, IMAGES, ReadingSettings()).views) == 59
