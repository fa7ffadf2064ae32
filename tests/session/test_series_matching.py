"""Which movie a tilt series means, what its series is called, and what the session and people see of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from series_files import (
    SCHEME,
    Folder,
    angles_of,
    done,
    mdoc,
    movie_names,
    section,
)

from weft.session.series_import import (
    completeness,
    find_origins,
    import_series,
    with_motion,
)
from weft.session.series_summary import describe, series_row, tilt_rows


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


@pytest.mark.parametrize(
    "on_disk",
    ["{}.tif", "{}.TIF", "{}.eer", "{}.mrc", "{}_fractions.tif", "{}_Fractions.mrc", "{}_EER.eer"],
)
def test_endings_do_not_matter(folder: Folder, on_disk: str) -> None:
    folder.write("TS_01.mdoc", mdoc())
    folder.add_frames(on_disk.format(name[:-4]) for name in movie_names())
    table = folder.table()
    assert angles_of(table) == list(SCHEME)
    by_stem = "7 movies were found by their names without the endings, such as "
    expected = () if on_disk.lower() == "{}.tif" else (by_stem + Path(table.tilts[0].movie).name,)
    assert table.notes == expected


def test_same_name_in_two_folders(folder: Folder) -> None:
    """The folders that the mdoc states decide, then the nearest; otherwise nobody knows."""
    names = movie_names()
    folder.add_frames(names, "frames/grid")
    folder.add_frames(names, "frames/lamella")
    folder.write("TS_01.mdoc", mdoc())  # D:\DATA\grid\...
    assert {Path(row.movie).parent.name for row in folder.table().tilts} == {"grid"}
    folder.write("TS_01.mdoc", mdoc().replace("\\grid\\", "\\unknown\\"))
    table = folder.table()
    assert angles_of(table) == []
    assert "several frames fit its movie" in table.tilts[0].left_out


def test_two_series_of_one_name(folder: Folder) -> None:
    for grid in ("grid1", "grid2"):
        folder.add_frames(movie_names(), f"frames/{grid}")
        path = folder.root / "mdoc" / grid / "TS_01.mdoc"
        path.parent.mkdir()
        path.write_text(mdoc().replace("\\grid\\", f"\\{grid}\\"))
    result = import_series(find_origins("mdoc/*", folder.root), folder.movies())
    assert sorted(result.tables) == ["TS_01", "TS_01__grid2"]
    for name, grid in (("TS_01", "grid1"), ("TS_01__grid2", "grid2")):
        assert {Path(row.movie).parent.name for row in result.tables[name].tilts} == {grid}
    # and they keep their names when the first one is gone
    (folder.root / "mdoc" / "grid1" / "TS_01.mdoc").unlink()
    again = import_series(find_origins("mdoc/*", folder.root), folder.movies(), result.tables)
    assert list(again.tables) == ["TS_01__grid2"]


def test_copied_mdoc_is_no_second_series(folder: Folder) -> None:
    folder.write("TS_01.mdoc", mdoc())
    folder.write("TS_01_copy.mdoc", mdoc())
    folder.add_frames(movie_names())
    result = folder.run()
    assert list(result.tables) == ["TS_01"]
    assert "TS_01_copy.mdoc" in result.tables["TS_01"].notes[0]


def test_series_called_like_a_movie(folder: Folder) -> None:
    folder.write("TS_01.mdoc", mdoc())
    folder.add_frames([*movie_names(), "TS_01.tif"])
    assert list(folder.run().tables) == ["TS_01__series"]


def test_odd_names_are_cleaned(folder: Folder) -> None:
    folder.write("grid 2 'x'.mrc.mdoc", mdoc())
    folder.write("TS_1.5.mdoc", mdoc(series="TS_1.5"))
    assert sorted(folder.run().tables) == ["TS_1.5", "grid_2__x_"]


def test_movies_without_a_path_are_found_by_number_and_angle(folder: Folder) -> None:
    """Also where the name of one series begins with another's."""
    for series in ("Position_1", "Position_1_2"):
        bare = mdoc(series=series, change=lambda i, more: more.update(SubFramePath=None))
        folder.write(f"{series}.mdoc", bare)
        names = (name[:-4] for name in movie_names(series=series))
        folder.add_frames(f"{name}_20230324_121311_EER.eer" for name in names)
    for series in ("Position_1", "Position_1_2"):
        table = folder.table(series)
        stems = [name[:-4] for name in movie_names(series=series)]
        assert [row.item[: len(s)] for row, s in zip(table.tilts, stems, strict=True)] == stems
        assert "7 movies were found by the series' name and the angle" in table.notes[0]


def test_repeated_angles_without_a_path_need_one_movie_each(folder: Folder) -> None:
    angles = [0.0, 3.0, 3.0, -3.0]
    folder.write("TS_01.mdoc", mdoc(angles, change=lambda i, more: more.update(SubFramePath=None)))
    folder.add_frames(movie_names(angles))
    table = folder.table()
    assert [row.item for row in table.tilts] == [name[:-4] for name in movie_names(angles)]
    assert table.tilts[1].left_out.startswith("taken again later")
    (folder.frames / movie_names(angles)[2]).unlink()
    # which of the two it is, nobody knows
    assert [bool(row.item) for row in folder.table().tilts] == [True, False, False, True]


def test_a_movie_that_is_named_is_not_found_again_by_its_angle(folder: Folder) -> None:
    """Of two exposures at 3°, the second names its movie and the first does not."""
    angles = [0.0, 3.0, 3.0, -3.0]
    drop: dict[str, object] = {"SubFramePath": None}
    folder.write("TS_01.mdoc", mdoc(angles, change=lambda i, more: more.update(drop if i == 1 else {})))
    folder.add_frames(movie_names(angles))
    assert [row.item for row in folder.table().tilts] == [name[:-4] for name in movie_names(angles)]


def test_folder_of_movies_is_no_folder_of_stacks(folder: Folder) -> None:
    folder.write("TS_01.mdoc", mdoc())
    folder.add_frames(f"TS_01_{i:05d}.mrc" for i in range(50))
    (folder.frames / "TS_01_00007.mrc.mdoc").write_text("[FrameSet = 0]\nTiltAngle = 0\n")
    assert find_origins("frames", folder.root) == []
    assert [path.name for path in find_origins("*", folder.root)] == ["TS_01.mdoc"]


def test_two_mdocs_that_may_be_one_series(folder: Folder) -> None:
    for series, angles in (("TS_01", [0.0, 3.0, 6.0, 9.0]), ("TS_01_2", [-3.0, -6.0, -9.0])):
        folder.write(f"{series}.mdoc", mdoc(angles, series))
        folder.add_frames(movie_names(angles, series))
    result = folder.run()
    assert sorted(result.tables) == ["TS_01", "TS_01_2"]
    assert result.tables["TS_01_2"].notes == ("may be the other part of TS_01: if it is, join their mdocs",)


def test_motion_is_filled_in(folder: Folder) -> None:
    folder.write("TS_01.mdoc", mdoc())
    folder.add_frames(movie_names())
    table = folder.table()
    items = [row.item for row in table.tilts]
    assert len(table.waiting) == 7
    filled = with_motion(table, {items[0]: done(items[0]), items[1]: done(items[1], "failed")})
    assert filled.tilts[0].motion == f"print-{items[0]}"
    assert filled.tilts[1].failure == "frame 2 is cut short"
    assert len(filled.waiting) == 5
    # results that are gone are gone
    assert with_motion(filled, {}) == table


def test_completeness(folder: Folder) -> None:
    folder.write("TS_01.mdoc", mdoc())
    folder.add_frames(movie_names()[:6])
    limits = {"quiet": 60.0, "deadline": 3600.0}
    table = folder.table()
    assert completeness(table, still=1e6, **limits) == (False, "6 of its 7 movies are still to be processed")
    # what nobody works on is waited for until the deadline, what somebody does for ever
    some = [row.item for row in table.waiting][:1]
    assert completeness(table, still=1e6, to_come=some, **limits)[0] is False
    assert completeness(table, still=1e3, to_come=(), **limits)[0] is False
    complete, reason = completeness(table, still=1e6, to_come=(), **limits)
    assert complete
    assert "6 of its 7 movies have not been processed" in reason
    records = {row.item: done(row.item) for row in table.tilts if row.item}
    table = with_motion(table, records)
    lack = f"1 of its 7 movies have not arrived: {movie_names()[6]}"
    assert completeness(table, still=100.0, **limits) == (False, lack)
    assert completeness(table, still=3600.0, **limits) == (True, f"{lack}; nothing has come for 3600 s")
    folder.add_frames(movie_names()[6:])
    item = movie_names()[6][:-4]
    table = with_motion(folder.table(), records | {item: done(item, "failed")})
    assert completeness(table, still=59.0, **limits) == (False, "more tilts may come")
    assert completeness(table, still=61.0, **limits) == (True, "")


def test_decisions_and_names_outlive_a_new_import(folder: Folder) -> None:
    folder.write("TS_01.mdoc", mdoc())
    folder.add_frames(movie_names())
    table = folder.table()
    rows = (replace(table.tilts[0], decision=False), *table.tilts[1:])
    old = {"TS_01": replace(table, tilts=rows, alignment="x.aln", alignment_content="1")}
    folder.write("TS_01.mdoc", mdoc() + section(7, 12.0, "late.tif"))
    new = folder.run(old=old).tables["TS_01"]
    assert len(new.tilts) == 8
    assert [row.decision for row in new.tilts] == [False, *[None] * 7]
    assert new.alignment == "x.aln"


def test_what_people_see(folder: Folder) -> None:
    folder.write("TS_01.mdoc", mdoc())
    folder.write("TS_02.mdoc", "")
    folder.add_frames([*movie_names()[:6], "other.tif"])
    result = folder.run()
    row = series_row(result.tables["TS_01"])
    assert row[:5] == ("TS_01", "6/7", "-6.0 … 9.0", "85.3", "21.0")
    assert "-9°: its movie TS_01_006_-9.0.tif is not among the frames" in row[5]
    text = describe(result)
    assert text.splitlines()[0].split() == ["series", "tilts", "range", "axis", "dose", "remarks"]
    assert "Not understood:" in text
    assert "1 movies belong to no series: other" in text
    assert len(tilt_rows(result.tables["TS_01"])) == 7
    assert "TS_01_003_-6.0" in describe(result, verbose=True)
    assert "TS_01_003_-6.0" not in text
