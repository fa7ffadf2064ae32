"""weft preprocess: a folder kept in accord with its inputs, offline and while they come."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import weft
from weft.cli import main
from weft.errors import RequestError, SessionError
from weft.formats import mrc
from weft.formats.star import read_star
from weft.micrographs.preprocessing import PreprocessSettings, preprocess
from weft.session.micrograph_set import SetOptions, close, preprocess_set

SETTINGS = PreprocessSettings(crop=4, bad_pixels=5.0, downsample=1.7, gaussian=1.0, normalize=True)


def image(seed: int, side: int = 128) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(50, 7, (side, side + 6)).astype(np.float32)


@pytest.fixture
def micrographs(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(3):
        mrc.write(folder / f"m{i}.mrc", image(i), 1.25, labels=["from the microscope"])
    return folder


def stamps(folder: Path) -> dict[str, int]:
    return {p.name: p.stat().st_mtime_ns for p in folder.glob("*.mrc")}


def test_files_in_files_out(micrographs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = preprocess_set([micrographs], out, SETTINGS, SetOptions(pictures=True))
    assert (sorted(report.done), report.failed, report.exit_code) == (["m0", "m1", "m2"], {}, 0)
    for i in range(3):
        found, info = mrc.read(out / f"m{i}.mrc")
        wanted = preprocess(image(i), SETTINGS, 1.25)
        assert np.array_equal(found, wanted.image.numpy())
        y, x = wanted.pixel_size
        assert info.voxel_size == pytest.approx((x, y, y), rel=1e-6)
        assert "from the microscope" in info.labels
        assert any("downsampled by 1.7" in label for label in info.labels)
        assert (out / f"pictures/m{i}.png").read_bytes().startswith(b"\x89PNG")
    summary = (out / "summary.txt").read_text()
    assert summary.startswith("3 micrographs prepared")
    assert "1. 4 pixels cropped" in summary
    before = stamps(out)
    again = preprocess_set([micrographs / "*.mrc"], out, SETTINGS, SetOptions(pictures=True))
    assert (again.done, sorted(again.current)) == ([], ["m0", "m1", "m2"])
    assert stamps(out) == before

    # a replaced input, another setting, a lost output: what is concerned is done again, and nothing else
    mrc.write(micrographs / "m1.mrc", image(7), 1.25)
    (out / "m2.mrc").unlink()
    third = preprocess_set([micrographs], out, SETTINGS, SetOptions(pictures=True))
    assert (sorted(third.done), third.current) == (["m1", "m2"], ["m0"])
    other = PreprocessSettings(invert=True)
    assert sorted(preprocess_set([micrographs], out, other, workers=2).done) == ["m0", "m1", "m2"]
    assert np.array_equal(mrc.read(out / "m1.mrc")[0], -image(7))


def test_a_table_in_a_table_out(micrographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    star = tmp_path / "CtfFind" / "micrographs_ctf.star"
    star.parent.mkdir()
    names = "\n".join(f"in/m{i}.mrc 1 {10000 + i}" for i in (2, 0, 9))
    star.write_text(
        "data_optics\n\nloop_\n_rlnOpticsGroup\n_rlnMicrographPixelSize\n1 1.5\n\n"
        f"data_micrographs\n\nloop_\n_rlnMicrographName\n_rlnOpticsGroup\n_rlnDefocusU\n{names}\n"
    )
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "out"
    assert main(["preprocess", str(star), "-o", str(out), "--downsample", "2", "--quiet"]) == 0
    blocks = read_star(out / "micrographs_ctf.star")
    rows = blocks["micrographs"]
    assert rows.strings("rlnMicrographName") == [str(out / "m2.mrc"), str(out / "m0.mrc")]
    assert rows.floats("rlnDefocusU").tolist() == [10002, 10000]
    # 134 / 67 and 128 / 64: the table's pixel size counts, not the header's
    assert blocks["optics"].floats("rlnMicrographPixelSize").tolist() == [3.0]
    assert mrc.read(out / "m0.mrc")[1].pixel_size == pytest.approx(3.0)


def test_bad_micrographs_cost_themselves(
    micrographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (micrographs / "m0.mrc").read_bytes()
    (micrographs / "short.mrc").write_bytes(whole[:-1000])
    mrc.write(micrographs / "movie.mrc", np.zeros((3, 64, 64), np.float32), 1.0, volume=False)
    mrc.write(micrographs / "empty.mrc", np.full((64, 64), np.nan, np.float32), 1.0)
    (micrographs / "text.mrc").write_text("no image")
    out = tmp_path / "out"
    command = ["preprocess", str(micrographs), "--output", str(out), "--bad-pixels", "true", "--quiet"]
    assert main(command) == 1
    report = preprocess_set([micrographs], out, PreprocessSettings(bad_pixels=5.0))
    assert sorted(report.current) == ["m0", "m1", "m2"]
    assert sorted(report.failed) == ["empty", "movie", "short", "text"]
    for name, words in {
        "empty": "no pixel of the image is a finite number",
        "movie": "holds 3 images",
        "short": "bytes",
        "text": "",
    }.items():
        assert str(micrographs / f"{name}.mrc") in report.failed[name]
        assert words in report.failed[name]
    assert "failed: short" in capsys.readouterr().out
    assert not list(out.glob(".*part*"))
    (micrographs / "short.mrc").write_bytes(whole)
    assert preprocess_set([micrographs], out, PreprocessSettings(bad_pixels=5.0)).done == ["short"]


def test_requests_that_make_no_sense(
    micrographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RequestError, match="no operation"):
        preprocess_set([micrographs], tmp_path / "out", PreprocessSettings())
    with pytest.raises(RequestError, match="no micrograph was found"):
        preprocess_set([tmp_path / "*.mrc"], tmp_path / "out", SETTINGS)
    with pytest.raises(SessionError, match="not there"):
        close(tmp_path / "nowhere")
    for arguments, words in (
        (["--downsample", "0.5"], "downsample = 0.5 is not allowed"),
        (["--highpass", "0.1", "--highpass-angstrom", "90"], "the same cut-off"),
        ([], "no operation"),
    ):
        assert main(["preprocess", str(micrographs), "-o", str(tmp_path / "out"), *arguments]) == 2
        assert words in capsys.readouterr().err
    # a cut-off in Å of a file that does not say its scale
    mrc.write(micrographs / "m0.mrc", image(0), 0.0)
    report = preprocess_set(
        [micrographs / "m0.mrc"], tmp_path / "o", PreprocessSettings(lowpass_angstrom=9.0)
    )
    assert "--pixel-size" in report.failed["m0"]
    options = SetOptions(pixel_size=1.25)
    report = preprocess_set(
        [micrographs / "m0.mrc"], tmp_path / "o", PreprocessSettings(lowpass_angstrom=9.0), options
    )
    assert report.done == ["m0"]


_WATCHER = """
import json, sys
from weft.micrographs.preprocessing import PreprocessSettings
from weft.session.micrograph_set import SetOptions, preprocess_set
folder, output, log = sys.argv[1:4]
settings = PreprocessSettings(**json.loads(sys.argv[4]))
options = SetOptions(watch=True, settle=0.4, poll_interval=0.1, give_up=1.5)
def tell(p):
    with open(log, "a") as file:
        file.write(json.dumps([p.item, p.error]) + "\\n")
report = preprocess_set([folder], output, settings, options, workers=int(sys.argv[5]), progress=tell)
sys.exit(report.exit_code)
"""


def _watch(folder: Path, output: Path, log: Path, workers: int) -> subprocess.Popen[bytes]:
    given = SETTINGS.model_dump(exclude_defaults=True)
    command = [sys.executable, "-c", _WATCHER, str(folder), str(output), str(log), json.dumps(given)]
    environment = os.environ | {"PYTHONPATH": str(Path(weft.__file__).parent.parent)}
    return subprocess.Popen([*command, str(workers)], env=environment)


def _events(log: Path) -> list[Any]:
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def _until(condition: Any, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.05)


@pytest.mark.parametrize("workers", [0, 1])
def test_streaming_is_done_once_and_equals_offline(tmp_path: Path, workers: int) -> None:
    folder, live, log = tmp_path / "in", tmp_path / "live", tmp_path / "log"
    folder.mkdir()
    side = 1024 if workers == 0 else 256
    watcher = _watch(folder, live, log, workers)
    try:
        # a file that grows: not one event before it is complete
        whole = tmp_path / "whole.mrc"
        mrc.write(whole, image(0, side), 1.25)
        content = whole.read_bytes()
        with (folder / "m0.mrc").open("wb") as file:
            for part in range(4):
                file.write(content[part * len(content) // 4 : (part + 1) * len(content) // 4])
                file.flush()
                time.sleep(0.25)
        mrc.write(folder / "m1.mrc", image(1, side), 1.25)
        (folder / "broken.mrc").write_bytes(content[:-4096])
        _until(lambda: {"m0", "m1", "broken"} <= {item for item, _ in _events(log)})
        assert "broken" in {item for item, error in _events(log) if error}

        # killed in the middle, and started again: nothing twice, nothing left out
        mrc.write(folder / "m2.mrc", image(2, side), 1.25)
        watcher.send_signal(signal.SIGKILL)
        watcher.wait()
        mrc.write(folder / "m3.mrc", image(3, side), 1.25)
        mrc.write(folder / "m1.mrc", image(11, side), 1.25)  # replaced
        done = stamps(live)
        watcher = _watch(folder, live, log, workers)
        _until(lambda: {"m2", "m3"} <= {item for item, _ in _events(log)})
        mrc.write(folder / "m4.mrc", image(4, side), 1.25)
        _until(lambda: "m4" in {item for item, _ in _events(log)})
        close(live)
        assert watcher.wait(timeout=60) == 1, "one is broken"
    finally:
        watcher.kill()
        watcher.wait()
    assert stamps(live)["m0.mrc"] == done["m0.mrc"], "what was done was left alone"
    finished = [item for item, error in _events(log) if item and not error]
    assert sorted(finished) == sorted([*(f"m{i}" for i in range(5)), "m1"])
    summary = (live / "summary.txt").read_text()
    assert "5 micrographs prepared" in summary
    assert "failed: broken" in summary

    offline = tmp_path / "offline"
    assert preprocess_set([folder], offline, SETTINGS, workers=0).exit_code == 1
    for i in range(5):
        assert (live / f"m{i}.mrc").read_bytes()[1024:] == (offline / f"m{i}.mrc").read_bytes()[1024:]


def test_as_a_step_of_a_session(new_session: Any, tmp_path: Path) -> None:
    session = new_session(preprocess={"downsample": 2.0, "normalize": True})
    report = session.run(steps=["preprocess"], workers=0, only="movie_000")
    assert report.failed == {}
    movie = session["movie_000"]
    average, info = mrc.read(movie.paths["average"])
    found, prepared = mrc.read(movie.paths["preprocessed"])
    settings = PreprocessSettings(downsample=2.0, normalize=True)
    wanted = preprocess(average, settings, movie.metrics["pixel_size"])
    assert np.array_equal(found, wanted.image.numpy())
    assert prepared.pixel_size == pytest.approx(2 * info.pixel_size)
    assert movie.metrics["pixel_size"] == pytest.approx(info.pixel_size), "that of the average"
    table = read_star(session.root / "micrographs_preprocessed.star")
    assert table["micrographs"].strings("rlnMicrographName") == [str(movie.paths["preprocessed"])]
    assert table["optics"].floats("rlnMicrographPixelSize")[0] == pytest.approx(2 * info.pixel_size)
    assert session.run(steps=["preprocess"], workers=0, only="movie_000").current == ["movie_000"]
    # switched off, it is nothing that a session waits for
    session.set("preprocess.downsample", "false")
    session.set("preprocess.normalize", "false")
    assert "preprocess" not in session.status()["movie_000"].steps
    # and a session is an input, too
    whole = tmp_path / "prepared"
    preprocess_set([session.root], whole, PreprocessSettings(invert=True))
    assert read_star(whole / "micrographs.star")["micrographs"].strings("rlnMicrographName") == [
        str(whole / "movie_000.mrc")
    ]
