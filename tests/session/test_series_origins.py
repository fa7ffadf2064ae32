"""Files that describe tilt series: odd and broken mdocs, stacks, .tomostar, RELION, and real ones."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from series_files import (
    HEAD,
    SCHEME,
    Folder,
    angles_of,
    left_out,
    mdoc,
    movie_names,
    section,
    write_stack,
)

from weft.formats.imod import write_tlt
from weft.formats.tomostar import Tomostar, write_tomostar
from weft.session.series_import import (
    completeness,
    find_origins,
    import_series,
    why_no_origins,
)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


@pytest.mark.parametrize("encoding", ["latin-1", "utf-8", "utf-8-sig", "utf-16"])
def test_encodings(folder: Folder, encoding: str) -> None:
    folder.write("TS_01.mdoc", mdoc().replace("written by a test", "5 µm, 20 °"), encoding)
    folder.add_frames(movie_names())
    assert len(angles_of(folder.table())) == 7


def test_keys_in_any_order(folder: Folder) -> None:
    sections = mdoc().split("[ZValue")
    turned = [sections[0]]
    for part in sections[1:]:
        first, *lines = part.strip().splitlines()
        turned.append("\r\n".join([first, *reversed(lines), "", ""]))
    folder.write("TS_01.mdoc", "[ZValue".join(turned))
    folder.add_frames(movie_names())
    table = folder.table()
    assert [(r.angle, r.exposure) for r in table.tilts] == [(angle, 3.0) for angle in SCHEME]
    assert table.notes == ()


def test_override_replaces_its_mdoc(folder: Folder) -> None:
    folder.write("TS_01.mdoc", mdoc(SCHEME[:5]))
    folder.write("TS_01_override.mdoc", mdoc())
    folder.add_frames(movie_names())
    assert [path.name for path in find_origins("mdoc", folder.root)] == ["TS_01_override.mdoc"]
    table = folder.table()
    assert len(table.tilts) == 7
    assert table.notes == ("TS_01_override.mdoc is used in place of TS_01.mdoc",)


@pytest.mark.parametrize("cut", ["line", "angle", "path"])
def test_truncated_mdoc(folder: Folder, cut: str) -> None:
    text = mdoc()
    last = text.rindex("[ZValue")
    where = {
        "line": text.index("ExposureDose", last) + 6,  # "Exposu"
        "angle": text.index("TiltAngle", last) + len("TiltAngle = -"),
        "path": text.index("SubFramePath", last) + len("SubFramePath = D:\\DATA\\grid\\TS_01"),
    }[cut]
    folder.write("TS_01.mdoc", text[:where])
    folder.add_frames(movie_names())
    table = folder.table()
    assert angles_of(table) == list(SCHEME[:6])
    assert [row.left_out for row in table.tilts if row.left_out] == ["its section of the mdoc is cut short"]
    assert any("stops in the middle" in n or "cut short" in n for n in table.notes)


def test_no_truncation_gives_a_tilt_a_wrong_angle(folder: Folder) -> None:
    """Cut at every byte of the last two sections: what is used is true, and nothing raises."""
    text = mdoc()
    folder.add_frames(movie_names())
    movies = folder.movies()
    truth = dict(zip((name[:-4] for name in movie_names()), SCHEME, strict=True))
    start = text.rindex("[ZValue", 0, text.rindex("[ZValue"))
    for end in range(start, len(text)):
        path = folder.write("TS_01.mdoc", text[:end])
        result = import_series([path], movies)
        used = [row for row in result.tables["TS_01"].tilts if not row.left_out]
        assert len(used) >= 5
        assert all(row.angle == truth[row.item] for row in used), text[start:end]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("\0\0\0", "empty"),
        ("PixelSpacing = 1\n", "without any image"),
        ("%PDF-1.4\nx", "not an mdoc"),
    ],
)
def test_files_that_cannot_be_understood(folder: Folder, text: str, words: str) -> None:
    bad = folder.write("TS_00.mdoc", text)
    folder.write("TS_01.mdoc", mdoc())
    folder.add_frames(movie_names())
    result = import_series([bad, folder.mdocs / "gone.mdoc", folder.mdocs / "TS_01.mdoc"], folder.movies())
    assert len(result.problems) == 2
    assert str(bad) in result.problems[0]
    assert words in result.problems[0]
    assert "gone.mdoc" in result.problems[1]
    assert angles_of(result.tables["TS_01"]) == list(SCHEME)


def test_mdoc_without_any_movie(folder: Folder) -> None:
    folder.write("TS_01.mdoc", mdoc())
    folder.add_frames(movie_names(series="TS_02"))
    result = folder.run()
    table = result.tables["TS_01"]
    assert not any(row.movie for row in table.tilts)
    assert "none of its 7 movies is among the frames" in table.notes
    assert len(result.unmatched_movies) == 7
    assert completeness(table, still=100, quiet=60, deadline=3600)[0] is False


def test_mdocs_of_movies_and_montages_are_no_series(folder: Folder) -> None:
    folder.write("TS_01_000_0.0.tif.mdoc", "Voltage = 300\n[FrameSet = 0]\nTiltAngle = 0.0\n")
    folder.write("TS_01_001_3.0.eer.mdoc", HEAD + section(0, 3.0, "TS_01_001_3.0.eer"))
    montage = "Montage = 1\n" + "".join(section(i, 0.0, None, PieceCoordinates=f"{i} 0 0") for i in range(4))
    folder.write("LMM.mrc.mdoc", montage)
    assert find_origins("mdoc", folder.root) == []
    assert "mdocs of 2 single movies" in why_no_origins("mdoc", folder.root)
    named = find_origins("mdoc/LMM.mrc.mdoc", folder.root)
    assert "of a montage, not of a tilt series" in import_series(named, {}).problems[0]
    assert "no mdoc" in why_no_origins("nowhere", folder.root)


def test_stack_with_rawtlt(folder: Folder) -> None:
    write_stack(folder.mdocs / "TS_01.st", 5)
    write_tlt(folder.mdocs / "TS_01.rawtlt", [-6, -3, 0, 3, 6])
    write_tlt(folder.mdocs / "TS_01.tlt", [-6.1, -3.1, 0, 3, 6])
    (folder.mdocs / "other.mrc").touch()
    table = folder.table()
    assert (table.form, table.stack) == ("stack", str(folder.mdocs / "TS_01.st"))
    assert table.pixel_size == pytest.approx(2.7)
    assert [(row.angle, row.image) for row in table.tilts] == [(-6, 0), (-3, 1), (0, 2), (3, 3), (6, 4)]
    assert all(row.usable and not row.waiting for row in table.tilts)
    assert table.notes[0] == "angles from TS_01.rawtlt"


def test_stack_with_fewer_sections_than_angles(folder: Folder) -> None:
    """Which section is missing nobody knows from a list of angles; an mdoc numbers them."""
    write_stack(folder.mdocs / "TS_01.st", 5)
    write_tlt(folder.mdocs / "TS_01.rawtlt", SCHEME)
    result = folder.run()
    assert result.tables == {}
    assert "5 sections, but 7 angles in TS_01.rawtlt" in result.problems[0]
    folder.write("TS_01.st.mdoc", mdoc(change=lambda i, more: more.update(SubFramePath=None)))
    table = folder.table()
    assert table.form == "stack"
    assert angles_of(table) == list(SCHEME[:5])
    assert [row.left_out for row in table.tilts[5:]] == ["the stack has only 5 sections"] * 2
    assert "5 sections in the stack, but 7 sections in TS_01.st.mdoc" in table.notes[-1]


def test_stack_with_more_sections_than_its_mdoc(folder: Folder) -> None:
    write_stack(folder.mdocs / "TS_01.mrc", 8)
    folder.write("TS_01.mrc.mdoc", mdoc(change=lambda i, more: more.update(SubFramePath=None)))
    table = folder.table("TS_01__series")  # the stack is among the .mrc files that the test takes for movies
    assert "its stack is also taken for the movie TS_01: let frames leave it out" in table.notes
    assert len(table.tilts) == 8
    assert [row.left_out for row in table.tilts if row.left_out] == ["the mdoc has no angle for it"]


def test_section_of_a_stack_that_was_written_again(folder: Folder) -> None:
    text = mdoc(SCHEME[:3], change=lambda i, more: more.update(SubFramePath=None))
    text += section(2, -3.2, None, DateTime="30-Nov-15  15:40:00", PriorRecordDose=9)
    folder.write("TS_01.mdoc", text)
    write_stack(folder.mdocs / "TS_01.st", 3)
    table = folder.table()
    assert angles_of(table) == [0.0, 3.0, -3.2]
    assert [r.left_out for r in table.tilts if r.left_out] == [
        "its section of the stack was written again later"
    ]


def test_mdoc_beside_its_stack_means_the_movies(folder: Folder) -> None:
    folder.write("TS_01.st.mdoc", mdoc())
    write_stack(folder.mdocs / "TS_01.st", 7)
    folder.add_frames(movie_names())
    assert folder.table().form == "mdoc"
    for name in movie_names():
        (folder.frames / name).unlink()
    # live, the movies may still come
    assert folder.table().form == "mdoc"
    alone = folder.run(frames_expected=False).tables["TS_01"]
    assert alone.form == "stack"
    assert angles_of(alone) == list(SCHEME)


def test_truncated_stack(folder: Folder) -> None:
    path = folder.mdocs / "TS_01.st"
    write_stack(path, 5)
    write_tlt(folder.mdocs / "TS_01.tlt", [-6, -3, 0, 3, 6])
    path.write_bytes(path.read_bytes()[:-300])
    result = folder.run()
    assert result.tables == {}
    assert str(path) in result.problems[0]


def test_tomostar_with_missing_movies(folder: Folder) -> None:
    movies = [f"../frames/{name}" for name in movie_names()]
    dose = 3.0 * np.arange(7)
    order = np.argsort(SCHEME)
    star = Tomostar([movies[i] for i in order], np.array(SCHEME)[order], dose[order], axis=np.full(7, -85.0))
    write_tomostar(folder.mdocs / "TS_01.tomostar", star)
    folder.add_frames(movie_names()[:6])
    table = folder.table()
    assert (table.form, table.tilt_axis) == ("tomostar", -85.0)
    assert [row.angle for row in table.tilts] == list(SCHEME)
    assert [row.prior_dose for row in table.tilts] == pytest.approx(list(dose))
    assert list(left_out(table)) == [movie_names()[6]]
    assert "1 of 7 movies missing" in table.notes


def test_relion_table(folder: Folder, reference_data: Path) -> None:
    """RELION 5's import of EMPIAR-10164: three series are there, two STAR files are not."""
    job = reference_data / "real" / "TomoBabel__cets-relion" / "Import" / "job001"
    shutil.copytree(job, folder.root / "Import" / "job001")
    names = [
        line.split()[0].split("/")[-1]
        for line in (job / "tilt_series" / "TS_03.star").read_text().splitlines()
        if line.startswith("frames/")
    ]
    folder.add_frames(names)
    result = import_series(find_origins("Import/job001", folder.root), folder.movies())
    assert sorted(result.tables) == ["TS_01", "TS_03", "TS_43"]
    assert len(result.problems) == 2
    assert "TS_45" in result.problems[0]
    table = result.tables["TS_03"]
    assert (table.form, table.tilt_axis, table.pixel_size) == ("relion", 85.0, 0.675)
    assert len(angles_of(table)) == len(names) == 41
    assert [row.prior_dose for row in table.tilts] == pytest.approx([3.0 * i for i in range(41)])
    single = import_series([job / "tilt_series" / "TS_03.star"], folder.movies()).tables["TS_03"]
    assert [row.angle for row in single.tilts] == [row.angle for row in table.tilts]


@pytest.mark.parametrize(
    ("path", "name", "tilts", "axis", "span", "dose"),
    [
        ("reference/tilts_beads/mdoc", "TS_A", 41, 85.3, 120.0, 120.0),
        ("reference/tilts_plain/mdoc", "TS_B", 41, -12.0, 120.0, 120.0),
        ("real/teamtomo__mdocfile/TS_01.mrc.mdoc", "TS_01", 41, 85.3, 120.0, None),
        ("real/turonova__cryoCAT/test_data/TS_017", "017", 60, 82.9, 118.0, 134.379),
        ("real/rosalindfranklininstitute__Ot2Rec/mdoc", "Position_1_2", 3, -171.35, 6.0, 13.58),
    ],
)
def test_real_mdocs(
    reference_data: Path, path: str, name: str, tilts: int, axis: float, span: float, dose: float | None
) -> None:
    """Axis, range and dose as the files state them; SerialEM's and Tomography 5's."""
    origins = find_origins(path, reference_data)
    described = import_series(origins, {}).tables[name]
    # every movie that it names, under another ending and in capitals
    movies = {r.name: Path("/data") / (r.name.rpartition(".")[0].upper() + ".mrc") for r in described.tilts}
    result = import_series(origins, movies)
    table = result.tables[name]
    assert result.problems == result.unmatched_movies == []
    assert left_out(table) == {}
    assert len(table.tilts) == tilts
    assert table.tilt_axis == pytest.approx(axis)
    angles = angles_of(table)
    assert max(angles) - min(angles) == pytest.approx(span, abs=0.1)  # the stage's accuracy
    assert table.tilts[-1].prior_dose == (None if dose is None else pytest.approx(dose))
    dates = [row.date for row in table.tilts]
    assert dates == sorted(dates)


def test_every_real_mdoc_is_a_series_or_has_its_reason(reference_data: Path) -> None:
    paths = sorted((reference_data / "real").rglob("*.mdoc"))
    if not paths:
        pytest.skip("no real mdocs")
    for path in paths:
        result = import_series([path], {})
        assert len(result.tables) + len(result.problems) == 1, path
        assert all(str(path) in problem for problem in result.problems)
