"""Every broken input costs its own movie one clear error: the file, the frame, what to do.

`load_frames` is what a worker calls first; its errors travel between processes.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile

from weft.errors import CorruptError, FormatError, GainError, ItemError, TruncatedError
from weft.formats import mrc
from weft.formats.eer import write_eer
from weft.formats.tiff import write_tiff
from weft.movies.frames import load_frames
from weft.movies.source import SourceSettings

N, NY, NX = 6, 64, 80
DATA = np.random.default_rng(0).poisson(1.0, (N, NY, NX)).astype("u1")


def _tiff(folder: Path) -> Path:
    write_tiff(folder / "movie.tif", DATA, rows_per_strip=16)
    return folder / "movie.tif"


def _mrc(folder: Path) -> Path:
    mrc.write(folder / "movie.mrc", DATA.astype("f4"), 1.0, volume=False)
    return folder / "movie.mrc"


def _eer(folder: Path) -> Path:
    write_eer(folder / "movie.eer", np.minimum(DATA, 1))
    return folder / "movie.eer"


def _cut(path: Path, fraction: float) -> Path:
    raw = path.read_bytes()
    path.write_bytes(raw[: int(len(raw) * fraction)])
    return path


def _corrupt_lzw(folder: Path) -> Path:
    path = _tiff(folder)
    with tifffile.TiffFile(path) as file:
        at, size = file.pages[2].dataoffsets[1], file.pages[2].databytecounts[1]
    raw = bytearray(path.read_bytes())
    raw[at + size // 2 : at + size // 2 + 16] = b"\xff" * 16
    path.write_bytes(bytes(raw))
    return path


def _nan(folder: Path) -> Path:
    data = DATA.astype("f4")
    data[3, 10:20, 10] = np.nan
    mrc.write(folder / "movie.mrc", data, 1.0, volume=False)
    return folder / "movie.mrc"


def _empty(folder: Path) -> Path:
    (folder / "movie.tif").write_bytes(b"")
    return folder / "movie.tif"


def _huge(folder: Path) -> Path:
    path = _mrc(folder)
    raw = bytearray(path.read_bytes())
    raw[0:12] = (2_000_000_000).to_bytes(4, "little") * 3
    path.write_bytes(bytes(raw))
    return path


def _zeros(folder: Path) -> Path:
    # what a full disk or a broken copy leaves: the right length, nothing in it
    path = _tiff(folder)
    path.write_bytes(bytes(path.stat().st_size))
    return path


FAULTS: dict[str, tuple[Callable[[Path], Path], type[ItemError], int | None, str]] = {
    "truncated TIFF": (lambda f: _cut(_tiff(f), 0.6), TruncatedError, 3, "copied again"),
    "truncated MRC": (lambda f: _cut(_mrc(f), 0.6), TruncatedError, 3, "only 3 of 6 sections"),
    "truncated EER": (lambda f: _cut(_eer(f), 0.6), TruncatedError, 2, "copied again"),
    "corrupt LZW": (_corrupt_lzw, CorruptError, 2, "copy the file again"),
    "NaN frame": (_nan, CorruptError, 3, "10 of 5120 pixels are not numbers"),
    "zero bytes": (_empty, TruncatedError, None, "empty"),
    "huge header": (_huge, FormatError, None, "not an MRC file|which no image has"),
    "all zeros": (_zeros, FormatError, None, "first bytes"),
    "no file": (lambda f: f / "movie.tif", FormatError, None, "no such file"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_one_clear_error(tmp_path: Path, name: str) -> None:
    make, kind, frame, words = FAULTS[name]
    path = make(tmp_path)
    with pytest.raises((kind, CorruptError) if name == "huge header" else kind, match=words) as raised:
        load_frames(path)
    error = raised.value
    assert str(error).startswith(str(path))
    assert "\n" not in str(error)
    if frame is not None:
        # data and directories of a TIFF need not lie in order: the frame may be the next one
        assert getattr(error, "frame", None) in (frame, frame + 1)
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)


def test_wrong_gain_size(tmp_path: Path) -> None:
    path = _tiff(tmp_path)
    with pytest.raises(GainError, match="81 x 64 pixels, the frames are 80 x 64"):
        load_frames(path, gain=np.ones((64, 81), "f4"))


@pytest.mark.parametrize("n", [1, 2])
def test_short_movies_are_movies(tmp_path: Path, n: int) -> None:
    write_tiff(tmp_path / "a.tif", DATA[:n])
    frames = load_frames(tmp_path / "a.tif")
    assert frames.shape == (n, NY, NX)
    np.testing.assert_array_equal(frames[n - 1].numpy(), DATA[n - 1])


@pytest.mark.parametrize("make", [_tiff, _mrc, _eer])
def test_too_few_and_too_many_frames(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    path = make(tmp_path)
    assert len(load_frames(path, SourceSettings(expected_frames=N))) == N
    with pytest.raises(TruncatedError, match="6 frames where 7 are expected"):
        load_frames(path, SourceSettings(expected_frames=N + 1))
    with pytest.raises(CorruptError, match="6 frames where 5 are expected"):
        load_frames(path, SourceSettings(expected_frames=N - 1))


def test_a_folder_is_no_movie(tmp_path: Path) -> None:
    with pytest.raises(CorruptError, match="cannot be read"):
        load_frames(tmp_path)


def test_a_broken_movie_does_not_hold_its_file_open(tmp_path: Path) -> None:
    """A session of thousands of broken movies must not run out of file handles."""
    handles = Path("/proc/self/fd")
    if not handles.is_dir():
        pytest.skip("no /proc")
    path = _corrupt_lzw(tmp_path)
    before = len(list(handles.iterdir()))
    for _ in range(20):
        with pytest.raises(CorruptError):
            load_frames(path)
        with pytest.raises(TruncatedError):
            load_frames(path, SourceSettings(expected_frames=N + 1))
    assert len(list(handles.iterdir())) <= before + 2
