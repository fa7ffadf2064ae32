"""One contract for every movie format: the same frames out, and never fewer of them in silence.

Each case writes a movie with code of its own where there is some (tifffile, mrcfile, numpy), says what
must come back, and where the file may be cut.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from weft.errors import CorruptError, FormatError, InputFileError, SettingsError, TruncatedError
from weft.formats.eer import write_eer
from weft.formats.eer_codec import EerBits
from weft.formats.em import write_em
from weft.formats.tiff import write_tiff
from weft.movies.source import MovieSource, SourceSettings, open_movie

N, NY, NX = 5, 24, 36


def counts(dtype: str) -> NDArray[Any]:
    rng = np.random.default_rng(7)
    data = rng.poisson(1.2, (N, NY, NX))
    if np.dtype(dtype).kind == "f":
        return (data + rng.random((N, NY, NX))).astype(dtype)
    if np.dtype(dtype).kind == "i":
        return (data * 9 - 20).astype(dtype)
    return (data * (1 if np.dtype(dtype).itemsize == 1 else 300)).astype(dtype)


@dataclass
class Case:
    name: str
    suffix: str
    write: Callable[[Path, NDArray[Any]], None]
    dtype: str = "uint8"
    options: dict[str, Any] = field(default_factory=dict)
    format: str = ""
    pixel_size: float | None = None

    def path(self, folder: Path) -> tuple[Path, NDArray[Any]]:
        data = counts(self.dtype)
        if self.format == "eer":
            data = np.minimum(data, 4).astype("u1")
        path = folder / f"movie{self.suffix}"
        self.write(path, data)
        return path, data

    def open(self, path: Path, **more: Any) -> MovieSource:
        return open_movie(path, SourceSettings(**{**self.options, **more}))


def _mrc(path: Path, data: NDArray[Any]) -> None:
    with mrcfile.new(path) as file:
        file.set_data(data)
        file.set_image_stack()
        file.voxel_size = 1.5


def _mrc_big_endian(path: Path, data: NDArray[Any]) -> None:
    _mrc(path, data)
    raw = bytearray(path.read_bytes())
    # every four bytes but the texts (208..212: MAP; 224: labels) and the stamp
    for at in [*range(0, 208, 4), 216, 220]:
        raw[at : at + 4] = raw[at : at + 4][::-1]
    raw[212:216] = b"\x11\x11\0\0"
    raw[1024:] = data.astype(data.dtype.newbyteorder(">")).tobytes()
    path.write_bytes(bytes(raw))


def _tiff(**how: Any) -> Callable[[Path, NDArray[Any]], None]:
    def write(path: Path, data: NDArray[Any]) -> None:
        order = how.pop("byteorder", "<") if "byteorder" in how else "<"
        bigtiff = how.get("bigtiff", False)
        rest = {k: v for k, v in how.items() if k != "bigtiff"}
        with tifffile.TiffWriter(path, byteorder=order, bigtiff=bigtiff) as file:
            for frame in data:
                # rows upside down: what MRC stores first is TIFF's last row
                file.write(frame[::-1], photometric="minisblack", contiguous=False, metadata=None, **rest)

    return write


def _eer(**how: Any) -> Callable[[Path, NDArray[Any]], None]:
    def write(path: Path, data: NDArray[Any]) -> None:
        write_eer(path, data, raw_per_frame=8, pixel_size=1.5, total_dose=40.0, **how)

    return write


def _raw(dtype: str, offset: int) -> Callable[[Path, NDArray[Any]], None]:
    def write(path: Path, data: NDArray[Any]) -> None:
        path.write_bytes(bytes(range(offset)) + data.astype(dtype).tobytes())

    return write


RAW = {"raw_width": NX, "raw_height": NY, "raw_offset": 13}
CASES = [
    *(Case(f"mrc-{d}", ".mrc", _mrc, d, format="mrc", pixel_size=1.5)
      for d in ("int8", "int16", "uint16", "float32", "float16")),
    Case("mrcs-big-endian", ".mrcs", _mrc_big_endian, "int16", format="mrc", pixel_size=1.5),
    *(Case(f"tiff-{d}", ".tif", _tiff(compression="lzw", rowsperstrip=7), d, format="tiff")
      for d in ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32")),
    *(Case(f"tiff-{c}", ".tiff", _tiff(compression=c, rowsperstrip=5), "uint16", format="tiff")
      for c in ("none", "zlib", "zstd", "packbits")),
    Case("tiff-predictor", ".tif", _tiff(compression="zlib", predictor=True), "uint16", format="tiff"),
    Case("tiff-float-predictor", ".tif", _tiff(compression="zlib", predictor=3), "float32", format="tiff"),
    Case("tiff-one-strip", ".tif", _tiff(compression="lzw", rowsperstrip=NY), format="tiff"),
    Case("tiff-tiled", ".tif", _tiff(compression="zlib", tile=(16, 16)), format="tiff"),
    Case("tiff-big-endian", ".tif", _tiff(compression="lzw", byteorder=">"), "uint16", format="tiff"),
    Case("bigtiff", ".tif", _tiff(compression="zlib", bigtiff=True), format="tiff"),
    Case("tiff-resolution", ".tif", _tiff(resolution=(1e8 / 0.83, 1e8 / 0.83), resolutionunit="CENTIMETER"),
         format="tiff", pixel_size=0.83),
    Case("tiff-own", ".tif", lambda p, d: write_tiff(p, d, pixel_size=1.5), format="tiff", pixel_size=1.5),
    *(Case(f"eer-{c}", ".eer", _eer(compression=c), options={"eer_frames": 8}, format="eer", pixel_size=1.5)
      for c in (65000, 65001, 65002)),
    Case("eer-8-bit", ".eer", _eer(bits=EerBits(8, 2, 2)), options={"eer_groups": N}, format="eer",
         pixel_size=1.5),
    Case("eer-1-bit-positions", ".eer", _eer(bits=EerBits(7, 1, 1)), options={"eer_dose": 8.0}, format="eer",
         pixel_size=1.5),
    *(Case(f"em-{d}", ".em", lambda p, x: write_em(p, x, 1.5), d, format="em", pixel_size=1.5)
      for d in ("int8", "int16", "int32", "float32")),
    Case("raw", ".dat", _raw("<u1", 13), options={**RAW}, format="raw"),
    Case("raw-big-endian", ".raw", _raw(">i2", 13), "int16", format="raw",
         options={**RAW, "raw_type": "int16", "raw_byte_order": "big"}),
    Case("raw-counted", ".bin", _raw("<f4", 13), "float32", format="raw",
         options={**RAW, "raw_type": "float32", "raw_frames": N}),
]  # fmt: skip

every_case = pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)


@every_case
def test_same_frames_out(tmp_path: Path, case: Case) -> None:
    path, data = case.path(tmp_path)
    with case.open(path) as movie:
        assert (movie.info.format, movie.info.n_frames, movie.info.shape) == (case.format, N, (NY, NX))
        assert len(movie) == N
        if case.pixel_size is None:
            assert movie.info.pixel_size is None
        else:
            # single precision in headers, whole picometres in EM
            assert movie.info.pixel_size == pytest.approx(case.pixel_size, rel=1e-5)
        for i, frame in enumerate(data):
            got = movie.read(i)
            assert got.dtype == movie.info.dtype == data.dtype
            np.testing.assert_array_equal(got, frame)
        with pytest.raises(IndexError):
            movie.read(N)
        with pytest.raises(IndexError):
            movie.read(-1)


@every_case
@pytest.mark.parametrize("threads", [1, 2, 4])
def test_streaming_equals_random_access(tmp_path: Path, case: Case, threads: int) -> None:
    path, data = case.path(tmp_path)
    with case.open(path) as movie:
        for _ in range(2):
            np.testing.assert_array_equal(np.stack(list(movie.frames(threads))), data)
        order = list(range(N))
        random.Random(0).shuffle(order)
        np.testing.assert_array_equal([movie.read(i) for i in order], data[order])
        # a stream that is left early leaves the source as it was
        stream = movie.frames(threads)
        next(stream)
        stream.close()
        np.testing.assert_array_equal(movie.read(0), data[0])


@every_case
def test_skipping_and_expecting(tmp_path: Path, case: Case) -> None:
    path, data = case.path(tmp_path)
    with case.open(path, skip_first=1, skip_last=2) as movie:
        np.testing.assert_array_equal(np.stack(list(movie.frames())), data[1:-2])
        assert "3 of 5 frames are skipped" in movie.info.note
    with pytest.raises(SettingsError, match="leaves nothing of 5"):
        case.open(path, skip_first=3, skip_last=2)
    stored = N * (8 if case.format == "eer" else 1)
    with case.open(path, expected_frames=stored) as movie:
        assert movie.info.stored_frames == stored
    with pytest.raises(TruncatedError, match=f"{stored} frames where {stored + 1} are expected") as raised:
        case.open(path, expected_frames=stored + 1)
    assert raised.value.path == path
    if case.format != "raw" or "raw_frames" not in case.options:
        with pytest.raises(CorruptError, match="expected"):
            case.open(path, expected_frames=stored - 1)


def read_all(case: Case, path: Path) -> NDArray[Any]:
    with case.open(path) as movie:
        return np.stack(list(movie.frames()))


@every_case
def test_cut_anywhere_is_an_error_or_harmless(tmp_path: Path, case: Case) -> None:
    """Cut after every fraction of the file, in the header, and by one byte: an error with the file's
    name, or exactly the same frames (where the end of the file held no data). Never fewer frames."""
    path, data = case.path(tmp_path)
    whole = path.read_bytes()
    lengths = {1, 2, 7, 15, 17, 100, 511, 600, 1023, len(whole) - 1, len(whole) - 2, len(whole) - 100}
    lengths |= {len(whole) * k // 40 for k in range(1, 40)}
    harmless = 0
    for length in sorted(n for n in lengths if 0 < n < len(whole)):
        path.write_bytes(whole[:length])
        fault: InputFileError | None = None
        try:
            got = read_all(case, path)
        except InputFileError as error:
            fault = error
        if fault is None:
            np.testing.assert_array_equal(got, data, err_msg=f"cut at {length} of {len(whole)}")
            harmless += 1
            continue
        assert fault.path == path
        assert str(path) in str(fault)
        # a stump of a header may look like no header at all; all else is known to be cut
        assert isinstance(fault, TruncatedError | CorruptError | FormatError)
        if length > len(whole) // 2:
            assert isinstance(fault, TruncatedError), (length, fault)
    assert harmless <= (3 if case.format in ("tiff", "eer") else 0)


@every_case
def test_the_frame_is_named(tmp_path: Path, case: Case) -> None:
    if case.format in ("tiff", "eer"):
        pytest.skip("their data need not lie in order; test_tiff and test_eer look at it")
    path, data = case.path(tmp_path)
    frame_bytes = data[0].nbytes
    path.write_bytes(path.read_bytes()[: -frame_bytes - frame_bytes // 2])
    with pytest.raises(TruncatedError) as raised:
        read_all(case, path)
    assert raised.value.frame == N - 2


@every_case
def test_empty_file(tmp_path: Path, case: Case) -> None:
    path = tmp_path / f"movie{case.suffix}"
    path.write_bytes(b"")
    with pytest.raises(TruncatedError, match="empty"):
        case.open(path)


@every_case
def test_missing_file(tmp_path: Path, case: Case) -> None:
    with pytest.raises(FormatError, match="no such file"):
        case.open(tmp_path / f"movie{case.suffix}")


@every_case
@pytest.mark.parametrize("seed", range(3))
def test_garbage(tmp_path: Path, case: Case, seed: int) -> None:
    if case.format == "raw":
        pytest.skip("any bytes are a headerless movie")
    path = tmp_path / f"movie{case.suffix}"
    path.write_bytes(np.random.default_rng(seed).bytes(5000))
    with pytest.raises(InputFileError) as raised:
        read_all(case, path)
    assert raised.value.path == path


@every_case
@pytest.mark.parametrize("seed", range(4))
def test_damaged_bytes_never_crash(tmp_path: Path, case: Case, seed: int) -> None:
    """A damaged file gives an error of ours or frames of the right number and size, nothing else."""
    path, _ = case.path(tmp_path)
    raw = bytearray(path.read_bytes())
    rng = np.random.default_rng(seed)
    # half of the damage in the first kilobyte, where the headers are
    for at in [*rng.integers(0, min(1024, len(raw)), 6), *rng.integers(0, len(raw), 6)]:
        raw[at] = rng.integers(0, 256)
    path.write_bytes(bytes(raw))
    try:
        with case.open(path) as movie:
            if movie.info.shape[0] * movie.info.shape[1] > 1 << 22:
                return
            for frame in movie.frames():
                assert frame.shape == movie.info.shape
    except (InputFileError, SettingsError):
        pass


HUGE = 2_000_000_000


@pytest.mark.parametrize(
    ("name", "offset", "form"),
    [("a.mrc", 0, "<3i"), ("a.mrc", 8, "<i"), ("a.em", 4, "<3i"), ("a.em", 12, "<i")],
)
def test_huge_header_values(tmp_path: Path, name: str, offset: int, form: str) -> None:
    case = next(c for c in CASES if c.suffix == Path(name).suffix)
    path, _ = case.path(tmp_path)
    raw = bytearray(path.read_bytes())
    struct.pack_into(form, raw, offset, *[HUGE] * (3 if "3" in form else 1))
    path.write_bytes(bytes(raw))
    with pytest.raises((CorruptError, FormatError)):
        case.open(path)
    # large, but a size that a detector could have: the file is too short for it
    struct.pack_into(form, raw, offset, *[60_000] * (3 if "3" in form else 1))
    path.write_bytes(bytes(raw))
    with pytest.raises(TruncatedError):
        case.open(path)


def test_format_is_told_by_content(tmp_path: Path) -> None:
    data = counts("uint8")
    path = tmp_path / "movie.mrc"
    _tiff(compression="lzw")(path, data)
    with open_movie(path) as movie:
        assert movie.info.format == "tiff"
    path = tmp_path / "movie.tif"
    _mrc(path, data.astype("i2"))
    with pytest.raises(FormatError, match="its name says TIFF"):
        open_movie(path)
    path = tmp_path / "movie.dat"
    path.write_bytes(bytes(100))
    with pytest.raises(FormatError, match="raw_width"):
        open_movie(path)
    write_eer(tmp_path / "renamed.tif", np.zeros((3, NY, NX), "u1"))
    with open_movie(tmp_path / "renamed.tif") as movie:
        assert movie.info.format == "eer"


def test_complex_images_are_no_movie(tmp_path: Path) -> None:
    path = tmp_path / "a.mrc"
    _mrc(path, counts("float32").astype("c8"))
    with pytest.raises(FormatError, match="complex"):
        open_movie(path)


@pytest.mark.parametrize("n", [1, 2])
def test_one_and_two_frames(tmp_path: Path, n: int) -> None:
    data = counts("uint8")[:n]
    write_tiff(tmp_path / "a.tif", data)
    _mrc(tmp_path / "a.mrc", data.astype("i2"))
    write_eer(tmp_path / "a.eer", np.minimum(data, 1))
    for name in ("a.tif", "a.mrc", "a.eer"):
        with open_movie(tmp_path / name) as movie:
            assert len(movie) == n
            assert len(list(movie.frames())) == n


def test_errors_reach_the_stream_at_their_frame(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    _tiff(compression="lzw")(path, counts("uint8"))
    with tifffile.TiffFile(path) as file:
        at = file.pages[3].dataoffsets[0]
    raw = bytearray(path.read_bytes())
    raw[at : at + 40] = b"\xff" * 40
    path.write_bytes(bytes(raw))
    with open_movie(path) as movie:
        stream = movie.frames(2)
        for _ in range(3):
            next(stream)
        with pytest.raises(CorruptError) as raised:
            next(stream)
    assert raised.value.frame == 3
