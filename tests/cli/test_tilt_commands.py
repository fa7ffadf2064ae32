"""`weft tilts`, as a person at a terminal meets it."""

from __future__ import annotations

from pathlib import Path

import pytest

from weft.cli import main
from weft.session.session import Session


def _say(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = main([str(word) for word in words])
    out, err = capsys.readouterr()
    return code, out, err


def test_new_shows_what_matched(
    tilt_frames: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    physics = ["--pixel-size", 5, "--voltage", 300, "--cs", 2.7, "--amplitude", 0.07, "--dose", 3]
    frames = ["--frames", f"{tilt_frames}/frames/*.tif", "--mdoc", tilt_frames / "mdoc"]
    code, out, _ = _say(capsys, "new", tmp_path / "s", *frames, *physics)
    assert code == 0
    assert "with 19 tilts" in out
    assert "TS_01   19/19" in out
    code, out, _ = _say(capsys, "tilts", "import", tmp_path / "s", "--verbose")
    assert code == 0
    assert out.count("to be processed") == 19
    code, _, err = _say(capsys, "new", tmp_path / "t", *physics)
    assert code == 2
    assert "--frames" in err
    assert "--mdoc" in err


def test_another_folder_of_mdocs(
    tilt_session: Session, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is kept in weft.toml; one without mdocs is a problem that is named."""
    (tmp_path / "none").mkdir()
    code, out, _ = _say(capsys, "tilts", "import", tilt_session.root, "--mdoc", tmp_path / "none")
    assert code == 1
    assert str(tmp_path / "none") in out
    assert tilt_session.settings.input.mdoc == (str(tmp_path / "none"),)


def test_options_are_kept_and_only_that_step_runs(
    tilt_session: Session, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tilt_session["TS_01"].record.steps
    options = ["--pixel-size", 25, "--region", "200,1000,200,1000,300,900", "--workers", 0]
    code, out, _ = _say(capsys, "tilts", "reconstruct", tilt_session.root, *options)
    assert code == 0, out
    assert tilt_session.settings.values["reconstruction"].pixel_size == 25.0
    series = tilt_session["TS_01"]
    assert series.paths["tomogram"].name == "TS_01_25.00Apx.mrc"
    assert [series.metrics[f"tomogram_{axis}"] for axis in "xyz"] == [33, 33, 25]
    for step in ("stack", "align", "tilt_ctf"):
        assert series.record.steps[step].fingerprint == before[step].fingerprint
    code, _, err = _say(capsys, "tilts", "reconstruct", tilt_session.root, "--region", "5,1,0,1,0,1")
    assert code == 2
    assert "six numbers" in err


def test_handedness_is_shown_and_set(tilt_session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = _say(capsys, "tilts", "handedness", tilt_session.root, "--workers", 0)
    assert code == 0
    assert "score of +1  score of -1" in out
    assert "session: -1" in out
    assert f"weft tilts handedness {tilt_session.root} --set -1" in out
    code, out, _ = _say(capsys, "tilts", "handedness", tilt_session.root, "--set", "-1", "--workers", 0)
    assert code == 0
    assert "used for all series: -1" in out
    assert tilt_session["TS_01"].metrics["hand_from"] == "set"
    code, _, err = _say(capsys, "tilts", "handedness", tilt_session.root, "--set", "left")
    assert code == 2
    assert "handedness.hand" in err


def test_exclude(tilt_session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    root = tilt_session.root
    code, out, _ = _say(capsys, "tilts", "exclude", root, "TS_01", 3, "--angle", 53.9)
    assert code == 0
    assert out.splitlines() == ["TS_01 tilt 3 (-6°): left out", "TS_01 tilt 17 (54°): left out"] or (
        "left out" in out and "(54°)" in out
    )
    code, out, _ = _say(capsys, "status", root)
    assert "its tilts have changed" in out
    code, out, _ = _say(capsys, "tilts", "exclude", root, "TS_01", 3, "--reset")
    assert "left to Weft" in out
    for words, said in (
        (("TS_02", 1), "there are TS_01"),
        (("TS_01", 77), "there is no 77"),
        (("TS_01", "--angle", 75), "no tilt within 1°"),
        (("TS_01",), "give the numbers"),
    ):
        code, _, err = _say(capsys, "tilts", "exclude", root, *words)
        assert code == 2
        assert said in err


def test_show_says_what_each_step_has_to_say(
    tilt_session: Session, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = _say(capsys, "show", tilt_session.root, "TS_01")
    assert code == 0
    assert "hand: hand -1 is" in out
    assert "alignment_verdict" in out
