"""Tilt series become tables of the session: each fault has an outcome of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from series_files import (
    HEAD,
    SCHEME,
    Folder,
    angles_of,
    done,
    left_out,
    mdoc,
    movie_names,
    section,
)

from weft.session.series_import import (
    completeness,
    with_motion,
)
from weft.session.tilt_table import read_table, table_path, write_table


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def test_series_without_faults(folder: Folder) -> None:
    folder.write("TS_01.mrc.mdoc", mdoc())
    folder.add_frames([*movie_names(), "other.tif"])
    result = folder.run()
    table = result.tables["TS_01"]
    assert result.problems == []
    assert result.unmatched_movies == ["other"]
    assert (table.form, table.tilt_axis, table.pixel_size, table.notes) == ("mdoc", 85.3, 1.35, ())
    assert [row.angle for row in table.tilts] == list(SCHEME)
    assert [row.item for row in table.tilts] == [name[:-4] for name in movie_names()]
    assert [Path(row.movie) for row in table.tilts] == [folder.frames / name for name in movie_names()]
    assert [row.prior_dose for row in table.tilts] == pytest.approx([3.0 * i for i in range(7)])
    assert all(row.exposure == 3.0 and not row.left_out for row in table.tilts)
    assert table.tilts[1].date == "2015-11-30T15:20:01"


def test_table_survives_its_file(folder: Folder, tmp_path: Path) -> None:
    folder.write("TS_01.mdoc", mdoc())
    folder.add_frames(movie_names())
    table = folder.table()
    assert write_table(tmp_path, table)
    assert read_table(table_path(tmp_path, "TS_01")) == table
    assert not write_table(tmp_path, folder.table())


def test_missing_tilt(folder: Folder) -> None:
    folder.write("TS_01.mdoc", mdoc())
    folder.add_frames(name for i, name in enumerate(movie_names()) if i != 3)
    table = folder.table()
    assert left_out(table) == {"TS_01_003_-6.0.tif": "its movie TS_01_003_-6.0.tif is not among the frames"}
    assert "1 of 7 movies missing" in table.notes
    # what it received counts, though its movie is lost
    assert table.tilts[4].prior_dose == pytest.approx(12.0)


def test_restarted_series(folder: Folder) -> None:
    """The last two tilts were taken again after a stop: the first exposures of them are left out."""
    angles = [0.0, 3.0, -3.0, -6.0, -3.0004, -6.0, 6.0]
    folder.write("TS_01.mdoc", mdoc(angles))
    folder.add_frames(movie_names(angles))
    table = folder.table()
    assert left_out(table) == {
        "TS_01_002_-3.0.tif": "taken again later, as TS_01_004_-3.0.tif",
        "TS_01_003_-6.0.tif": "taken again later, as TS_01_005_-6.0.tif",
    }
    assert angles_of(table) == [0.0, 3.0, -3.0004, -6.0, 6.0]
    assert table.tilts[6].prior_dose == pytest.approx(18.0)  # with the exposures that are left out
    assert "restarted: 2 tilts were taken again, the later exposure counts" in table.notes


def test_repeated_tilt_right_away(folder: Folder) -> None:
    angles = [0.0, 3.0, 3.02, -3.0]
    folder.write("TS_01.mdoc", mdoc(angles))
    folder.add_frames(movie_names(angles))
    assert left_out(folder.table()) == {"TS_01_001_3.0.tif": "taken again later, as TS_01_002_3.0.tif"}


def test_repeated_tilt_whose_later_movie_is_missing(folder: Folder) -> None:
    angles = [0.0, 3.0, 3.02, -3.0]
    folder.write("TS_01.mdoc", mdoc(angles))
    folder.add_frames(name for i, name in enumerate(movie_names(angles)) if i != 2)
    table = folder.table()
    assert angles_of(table) == [0.0, 3.0, -3.0]
    assert "is not among the frames" in table.tilts[2].left_out


def test_aborted_tilt_whose_movie_was_deleted_is_not_waited_for(folder: Folder) -> None:
    angles = [0.0, 3.0, 3.02, -3.0]
    folder.write("TS_01.mdoc", mdoc(angles))
    folder.add_frames(name for i, name in enumerate(movie_names(angles)) if i != 1)
    table = folder.table()
    assert table.tilts[1].left_out.endswith(
        "is not among the frames; taken again later, as TS_01_002_3.0.tif"
    )
    records = {row.item: done(row.item) for row in table.tilts if row.item}
    assert completeness(with_motion(table, records), still=100, quiet=60, deadline=3600) == (True, "")


def test_repeated_angle_that_was_meant_is_kept(folder: Folder) -> None:
    """The untilted specimen at the beginning and at the end of a series."""
    angles = [0.0, 3.0, -3.0, -6.0, 6.0, 0.001]
    folder.write("TS_01.mdoc", mdoc(angles))
    folder.add_frames(movie_names(angles))
    table = folder.table()
    assert left_out(table) == {}
    assert "taken more than once, with other tilts between, and all kept: 0.0°" in table.notes


@pytest.mark.parametrize("number", [0, 5])
def test_section_numbers_tell_what_was_overwritten(folder: Folder, number: int) -> None:
    """The last exposure has the first one's number: it took its place, unless all are called the same."""
    angles = [0.0, 3.0, -3.0, -6.0, 6.0, 0.001]
    text = mdoc(angles).replace("[ZValue = 5]", "[ZValue = 0]")
    for i in range(number, 6):
        text = text.replace(f"[ZValue = {i}]", "[ZValue = 0]")
    folder.write("TS_01.mdoc", text)
    folder.add_frames(movie_names(angles))
    again = [row.left_out for row in folder.table().tilts if row.left_out]
    assert again == ([] if number == 0 else ["taken again later, as TS_01_005_0.0.tif"])


def test_series_taken_twice_as_a_whole_is_kept(folder: Folder) -> None:
    angles = [-6.0, 0.0, 6.0, 6.0, 0.0, -6.0]
    folder.write("TS_01.mdoc", mdoc(angles))
    folder.add_frames(movie_names(angles))
    table = folder.table()
    assert left_out(table) == {}
    assert "every angle was taken more than once: all are kept" in table.notes


@pytest.mark.parametrize("n", [1, 2, 3])
def test_hardly_a_series(folder: Folder, n: int) -> None:
    folder.write("TS_01.mdoc", mdoc(SCHEME[:n]))
    folder.add_frames(movie_names(SCHEME[:n]))
    table = folder.table()
    assert len(table.tilts) == n
    assert left_out(table) == {}
    few = [note for note in table.notes if "series of only" in note]
    assert few == ([] if n == 3 else [f"a series of only {n} tilt{'s' * (n == 2)}"])


def test_unsorted_angles_come_in_the_order_of_their_dates(folder: Folder) -> None:
    """A file sorted by angle, taken dose-symmetrically."""
    parts = sorted(zip(SCHEME, range(7), movie_names(), strict=True))
    text = HEAD.format(name="TS_01") + "".join(section(i, angle, name) for angle, i, name in parts)
    folder.write("TS_01.mdoc", text)
    folder.add_frames(movie_names())
    table = folder.table()
    assert [row.angle for row in table.tilts] == list(SCHEME)
    assert table.notes == ()


def test_missing_dates_leave_the_doses_to_order_by(folder: Folder) -> None:
    parts = sorted(zip(SCHEME, range(7), movie_names(), strict=True))
    text = HEAD.format(name="TS_01")
    text += "".join(section(i, a, name, DateTime="" if i == 2 else None) for a, i, name in parts)
    folder.write("TS_01.mdoc", text)
    folder.add_frames(movie_names())
    table = folder.table()
    assert [row.angle for row in table.tilts] == list(SCHEME)
    assert table.notes == ("no tilt has a date: in the order of the doses before them",)


def test_neither_dates_nor_doses(folder: Folder) -> None:
    angles = sorted(SCHEME)
    nothing = {"DateTime": None, "PriorRecordDose": None}
    folder.write("TS_01.mdoc", mdoc(angles, change=lambda i, more: more.update(nothing)))
    folder.add_frames(movie_names(angles))
    table = folder.table()
    assert [row.angle for row in table.tilts] == angles
    assert "order of acquisition is taken to be the file's, which is sorted by angle" in table.notes[0]
    assert [row.prior_dose for row in table.tilts] == pytest.approx([3.0 * i for i in range(7)])


@pytest.mark.parametrize("dose", [0, None])
def test_dose_missing(folder: Folder, dose: float | None) -> None:
    folder.write("TS_01.mdoc", mdoc(change=lambda i, more: more.update(dose=dose, PriorRecordDose=dose)))
    folder.add_frames(movie_names())
    table = folder.table()
    assert {(row.exposure, row.prior_dose) for row in table.tilts} == {(None, None)}
    assert table.notes == ("no dose is stated: the dose per frame of the settings counts",)


def test_dose_of_one_tilt_missing(folder: Folder) -> None:
    def change(i: int, more: dict[str, object]) -> None:
        more.update(PriorRecordDose=None, dose=0 if i == 2 else 3.0)

    folder.write("TS_01.mdoc", mdoc(change=change))
    folder.add_frames(movie_names())
    table = folder.table()
    assert [row.exposure for row in table.tilts] == [3.0, 3.0, None, 3.0, 3.0, 3.0, 3.0]
    assert {row.prior_dose for row in table.tilts} == {None}
    assert "1 of 7 tilts state no dose" in table.notes[0]


def test_prior_doses_are_summed_up_where_they_are_missing(folder: Folder) -> None:
    folder.write("TS_01.mdoc", mdoc(change=lambda i, more: more.update(PriorRecordDose=0, dose=1.0 + i)))
    folder.add_frames(movie_names())
    assert [r.prior_dose for r in folder.table().tilts] == pytest.approx([0, 1, 3, 6, 10, 15, 21])


def test_prior_doses_that_start_anew(folder: Folder) -> None:
    """After a restart SerialEM may count from 0 again."""
    folder.write("TS_01.mdoc", mdoc(change=lambda i, more: more.update(PriorRecordDose=3.0 * (i % 4))))
    folder.add_frames(movie_names())
    table = folder.table()
    assert [row.prior_dose for row in table.tilts] == pytest.approx([3.0 * i for i in range(7)])
    assert "falls from 9 to 0 e/Å²" in table.notes[0]


def test_prior_doses_beyond_the_exposures_are_believed(folder: Folder) -> None:
    folder.write("TS_01.mdoc", mdoc(change=lambda i, more: more.update(PriorRecordDose=4.5 * i)))
    folder.add_frames(movie_names())
    table = folder.table()
    assert [row.prior_dose for row in table.tilts] == pytest.approx([4.5 * i for i in range(7)])
    assert "9 e/Å² more than the exposures add up to" in table.notes[0]


def test_movie_named_twice(folder: Folder) -> None:
    text = mdoc() + section(7, 12.0, movie_names()[2])
    folder.write("TS_01.mdoc", text)
    folder.add_frames(movie_names())
    table = folder.table()
    assert [i for i, row in enumerate(table.tilts) if row.left_out] == [7]
    assert table.tilts[7].left_out == "its movie is named twice: it is already the tilt at -3°"
    assert len({row.item for row in table.tilts if not row.left_out}) == 7


def test_movie_named_twice_exposed_the_specimen_once(folder: Folder) -> None:
    """Named again in the middle, and a first time without an angle: that one does not count."""
    first = section(0, None, movie_names()[1], PriorRecordDose=None, DateTime="30-Nov-15  15:10:00")
    text = mdoc(change=lambda i, more: more.update(PriorRecordDose=None))
    again = section(1, 3.5, movie_names()[1], PriorRecordDose=None, DateTime="30-Nov-15  15:20:03")
    folder.write("TS_01.mdoc", text.replace("[ZValue = 4]", f"{again}[ZValue = 4]") + first)
    folder.add_frames(movie_names())
    table = folder.table()
    assert [row.left_out for row in table.tilts if row.left_out] == [
        "it has no tilt angle",
        "its movie is named twice: it is already the tilt at 3°",
    ]
    assert angles_of(table) == list(SCHEME)
    used = [row for row in table.tilts if not row.left_out]
    assert [row.prior_dose for row in used] == pytest.approx([3.0 * (i + 1) for i in range(7)])
    assert sum(row.exposure or 0.0 for row in table.tilts) == pytest.approx(24.0)


def test_angle_missing(folder: Folder) -> None:
    folder.write(
        "TS_01.mdoc", mdoc(change=lambda i, more: more.update(TiltAngle=None if i == 4 else SCHEME[i]))
    )
    folder.add_frames(movie_names())
    assert left_out(folder.table()) == {movie_names()[4]: "it has no tilt angle"}
