"""From files to items with distinct names that every program can take."""

from __future__ import annotations

from pathlib import Path

import pytest

from weft.session.discovery import find_movies, item_name, name_items, natural_key
from weft.session.input import InputSettings

PHYSICS = {"pixel_size": 1.0, "voltage": 300.0, "cs": 2.7, "amplitude": 0.1, "dose_per_frame": 1.0}


def _touch(folder: Path, *names: str) -> list[Path]:
    out = []
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
        out.append(path)
    return out


def test_numbers_sort_as_numbers(tmp_path: Path) -> None:
    _touch(tmp_path, "m_10.tif", "m_2.tif", "m_1.tif")
    found = find_movies(InputSettings(frames=str(tmp_path / "*.tif"), **PHYSICS), tmp_path / "s")
    assert [path.name for path in found] == ["m_1.tif", "m_2.tif", "m_10.tif"]
    assert natural_key("a2") < natural_key("a10") < natural_key("b1")


def test_the_gain_and_our_own_results_are_no_movies(tmp_path: Path) -> None:
    _touch(tmp_path, "a.mrc", "gain.mrc", "average/a.mrc", "average/even/a.mrc")
    settings = InputSettings(
        frames=str(tmp_path / "*.mrc"), recursive=True, gain=str(tmp_path / "gain.mrc"), **PHYSICS
    )
    assert [path.name for path in find_movies(settings, tmp_path)] == ["a.mrc"]


def test_recursion_and_folders(tmp_path: Path) -> None:
    _touch(tmp_path, "a.tif", "x/b.tif", "x/y/c.eer", "x/notes.txt")
    root = tmp_path / "s"

    def names(pattern: str, recursive: bool) -> list[str]:
        settings = InputSettings(frames=str(tmp_path / pattern), recursive=recursive, **PHYSICS)
        return [path.name for path in find_movies(settings, root)]

    assert names("*.tif", False) == ["a.tif"]
    assert names("*.tif", True) == ["a.tif", "b.tif"]
    assert names("**/*.tif", False) == ["a.tif", "b.tif"]
    assert names("x", False) == ["b.tif"]
    assert names("x", True) == ["b.tif", "c.eer"]


def test_relative_patterns_belong_to_the_session(tmp_path: Path) -> None:
    _touch(tmp_path, "s/raw/a.tif")
    settings = InputSettings(frames="raw/*.tif", **PHYSICS)
    assert [path.name for path in find_movies(settings, tmp_path / "s")] == ["a.tif"]


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("plain-1.0+2.tif", "plain-1.0+2"),
        ("two words.tif", "two_words"),
        ('it\'s #1 "best".tif', "it_s__1__best_"),
        ("-rf.tif", "_rf"),
        ("Größe_é.tif", "Größe_é"),
        ("a\nb.tif", "a_b"),
    ],
)
def test_odd_names_become_harmless(file: str, name: str) -> None:
    assert item_name(Path(file)) == name


def test_the_longest_file_name_leaves_room_for_suffixes(tmp_path: Path) -> None:
    path = tmp_path / ("é" * 125 + ".tif")
    name = item_name(path)
    assert len(name.encode()) <= 200
    (tmp_path / f".{name}__{'f' * 8}.json.abcdefgh.part").write_bytes(b"")  # the longest we ever write
    assert item_name(tmp_path / ("é" * 124 + "e.tif")) != name


def test_the_same_stem_in_two_folders(tmp_path: Path) -> None:
    files = _touch(tmp_path, "g1/m.tif", "g2/m.tif", "h/g2/m.tif", "g1/m.mrc")
    named = name_items(files, {})
    assert named["m"] == files[0]
    assert named["m__g2"] == files[1]
    assert len(named) == 4
    assert set(named.values()) == set(files)


def test_known_items_keep_their_names_whatever_arrives(tmp_path: Path) -> None:
    files = _touch(tmp_path, "g2/m.tif")
    first = name_items(files, {})
    more = _touch(tmp_path, "g1/m.tif") + files
    second = name_items(more, {str(path): name for name, path in first.items()})
    assert second["m"] == files[0]
    assert second["m__g1"] == more[0]
