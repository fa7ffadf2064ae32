"""``weft simulate movies``."""

from __future__ import annotations

import json
import re

import pytest

from weft.cli import main
from weft.movies.source import SourceSettings, open_movie

TINY = ["--width", "96", "--height", "64", "--frames", "2", "--coverage", "0", "--ice-thickness", "50"]


def test_movies(tmp_path, capsys):
    assert main(["simulate", "movies", str(tmp_path), "-n", "2", "--workers", "1", "--seed", "5", *TINY]) == 0
    truth = json.loads((tmp_path / "truth" / "movie_001.json").read_text())
    assert (truth["shape"], truth["frames"]) == ([64, 96], 2)
    assert (tmp_path / "frames" / "movie_001.tif").is_file()
    out = capsys.readouterr().out
    # what to do next can be copied: every value that a session needs is in it
    for part in ("weft new", "--gain", "--pixel-size 1", "--voltage 300", "--cs 2.7", "--dose 2"):
        assert part in out


def test_eer_says_how_to_group(tmp_path, capsys):
    assert main(["simulate", "movies", str(tmp_path), "-n", "1", "--format", "eer", *TINY]) == 0
    group = int(re.search(r"--eer-frames (\d+)", capsys.readouterr().out)[1])
    with open_movie(tmp_path / "frames" / "movie_000.eer", SourceSettings(eer_frames=group)) as movie:
        assert len(movie) == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--format", "png"], "tiff, mrc or eer"),
        (["--seed", "-1"], "seed"),
        (["--voltage", "3"], "voltage"),
        (["--dead-pixels", "90000"], "fewer than half"),
        (["--specimen", "none.pdb"], "none.pdb"),
    ],
)
def test_wrong_requests(tmp_path, capsys, arguments, said):
    assert main(["simulate", "movies", str(tmp_path), "--workers", "1", *TINY, *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "unexpected" not in error
