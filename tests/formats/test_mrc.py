"""MRC: all modes and byte orders against mrcfile and against bytes written by hand; broken headers."""

from __future__ import annotations

import bz2
import gzip
import struct
import warnings
from pathlib import Path

import mrcfile
import numpy as np
import pytest

from weft.errors import CorruptError, FormatError, TruncatedError
from weft.formats import mrc


def header(nx: int, ny: int, nz: int, mode: int, order: str = "<", **fields: object) -> bytearray:
    """A minimal MRC2014 header, written without the code under test."""
    raw = bytearray(1024)
    struct.pack_into(order + "4i", raw, 0, nx, ny, nz, mode)
    struct.pack_into(order + "3i3f3f", raw, 28, nx, ny, nz, nx * 1.5, ny * 1.5, nz * 1.5, 90, 90, 90)
    struct.pack_into(order + "3i", raw, 64, 1, 2, 3)
    raw[208:212] = b"MAP "
    raw[212:216] = b"\x44\x44\0\0" if order == "<" else b"\x11\x11\0\0"
    for name, value in fields.items():
        offset, form = {
            "nsymbt": (92, "i"),
            "imod": (152, "i"),
            "flags": (156, "i"),
            "dmin": (76, "f"),
            "dmax": (80, "f"),
            "mx": (28, "i"),
        }[name]
        struct.pack_into(order + form, raw, offset, value)
    return raw


DATA = {
    0: np.arange(-60, 60).reshape(2, 6, 10).astype("i1"),
    1: (np.arange(120).reshape(2, 6, 10) * 300 - 9000).astype("i2"),
    2: np.linspace(-3, 7, 120).reshape(2, 6, 10).astype("f4"),
    4: (np.linspace(-3, 7, 120) * (1 + 2j)).reshape(2, 6, 10).astype("c8"),
    6: (np.arange(120).reshape(2, 6, 10) * 500).astype("u2"),
    12: np.linspace(-3, 7, 120).reshape(2, 6, 10).astype("f2"),
}


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("mode", DATA)
@pytest.mark.parametrize("extended", [0, 512])
def test_reads_every_mode_in_both_byte_orders(tmp_path: Path, mode: int, order: str, extended: int) -> None:
    path = tmp_path / "a.mrc"
    stored = DATA[mode].astype(DATA[mode].dtype.newbyteorder(order))
    path.write_bytes(
        bytes(header(10, 6, 2, mode, order, nsymbt=extended)) + bytes(extended) + stored.tobytes()
    )
    data, info = mrc.read(path)
    np.testing.assert_array_equal(data, DATA[mode])
    assert data.dtype.isnative
    assert info.pixel_size == pytest.approx(1.5)
    assert info.notes == ()
    mapped, _ = mrc.read(path, mmap=True)
    np.testing.assert_array_equal(mapped, DATA[mode])
    assert isinstance(mapped, np.memmap)
    with mrc.MrcStack(path) as stack:
        np.testing.assert_array_equal(stack.read(1), DATA[mode][1])


@pytest.mark.parametrize("nx", [10, 11])
def test_four_bit_data(tmp_path: Path, nx: int) -> None:
    pixels = np.arange(6 * nx).reshape(6, nx) % 16
    padded = np.pad(pixels, ((0, 0), (0, nx % 2)))
    packed = (padded[:, 0::2] | (padded[:, 1::2] << 4)).astype("u1")
    path = tmp_path / "a.mrc"
    path.write_bytes(bytes(header(nx, 6, 1, 101)) + packed.tobytes())
    data, _ = mrc.read(path)
    np.testing.assert_array_equal(data, pixels)


def test_serialem_packed_bytes_double_the_width(tmp_path: Path) -> None:
    path = tmp_path / "a.mrc"
    packed = np.full((4, 5), 0x21, "u1")
    path.write_bytes(bytes(header(5, 4, 1, 0, imod=1146047817, flags=16)) + packed.tobytes())
    data, info = mrc.read(path)
    assert data.shape == (4, 10)
    assert data[0].tolist() == [1, 2] * 5
    assert "4-bit" in info.notes[0]


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({}, "i1"),
        ({"imod": 1146047817, "flags": 0}, "u1"),
        ({"imod": 1146047817, "flags": 1}, "i1"),
        ({"dmin": 0.0, "dmax": 200.0}, "u1"),
        ({"dmin": -5.0, "dmax": 100.0}, "i1"),
    ],
)
def test_sign_of_bytes(tmp_path: Path, fields: dict[str, float], wanted: str) -> None:
    path = tmp_path / "a.mrc"
    raw = np.arange(256, dtype="u1").reshape(16, 16)
    path.write_bytes(bytes(header(16, 16, 1, 0, **fields)) + raw.tobytes())
    data, _ = mrc.read(path)
    assert data.dtype == wanted
    np.testing.assert_array_equal(data.view("u1"), raw)
    assert mrc.read(path, signed_bytes=False)[0].dtype == "u1"


def test_headers_that_leave_one_reading(tmp_path: Path) -> None:
    path = tmp_path / "a.mrc"
    image = DATA[2].tobytes()
    old = header(10, 6, 2, 2)
    old[208:216] = bytes(8)
    path.write_bytes(bytes(old) + image)
    data, info = mrc.read(path)
    np.testing.assert_array_equal(data, DATA[2])
    assert len(info.notes) == 2
    lying = header(10, 6, 2, 2)
    lying[212:214] = b"\x11\x11"
    path.write_bytes(bytes(lying) + image)
    np.testing.assert_array_equal(mrc.read(path)[0], DATA[2])
    for wrong in (99999, -7):
        path.write_bytes(bytes(header(10, 6, 2, 2, nsymbt=wrong)) + image)
        data, info = mrc.read(path)
        np.testing.assert_array_equal(data, DATA[2])
        assert "extended header" in info.notes[0]
    path.write_bytes(bytes(header(10, 6, 2, 2, mx=0)) + image + b"tail")
    _, info = mrc.read(path)
    assert info.pixel_size is None
    assert "4 bytes follow" in info.notes[0]


def test_refuses_what_it_cannot_read(tmp_path: Path) -> None:
    path = tmp_path / "a.mrc"
    path.write_bytes(bytes(header(4, 4, 1, 3)) + bytes(64))
    with pytest.raises(FormatError, match="mode 3"):
        mrc.read(path)
    path.write_bytes(bytes(header(4, 4, 1, 2, nsymbt=-9)) + bytes(4))
    with pytest.raises(CorruptError, match="extended header of -9"):
        mrc.read(path)


@pytest.mark.parametrize("packer", [gzip.compress, bz2.compress])
def test_packed_files(tmp_path: Path, packer) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / ("a.mrc.gz" if packer is gzip.compress else "a.mrc.bz2")
    whole = packer(bytes(header(10, 6, 2, 2)) + DATA[2].tobytes())
    path.write_bytes(whole)
    np.testing.assert_array_equal(mrc.read(path)[0], DATA[2])
    path.write_bytes(whole[:-12])
    with pytest.raises((TruncatedError, CorruptError)):
        mrc.read(path)
    path.write_bytes(b"no archive")
    with pytest.raises(CorruptError, match="decompressed"):
        mrc.read(path)


@pytest.mark.parametrize("dtype", ["f4", "f2", "i2", "u2", "i1", "u1", "f8", "i4", "c8"])
def test_written_files_are_valid_for_mrcfile(tmp_path: Path, dtype: str) -> None:
    rng = np.random.default_rng(1)
    # mrcfile's validator adds up float16 in float16, so its numbers must be small
    data = (rng.random((3, 8, 6)) * (10 if dtype == "f2" else 100)).astype(dtype)
    path = tmp_path / "a.mrc"
    mrc.write(path, data, 1.25, labels=["made for a test"])
    assert mrcfile.validate(path)
    # MRC has no wider floats and integers: they become float32
    data = data.astype("f4") if dtype in ("f8", "i4") else data
    with mrcfile.open(path) as other:
        np.testing.assert_array_equal(other.data, data)
        assert other.voxel_size.x == pytest.approx(1.25)
        assert other.is_volume()
        if dtype != "c8":
            # float16 sums and float32 statistics in the header: 6 digits
            assert other.header.dmean == pytest.approx(data.astype("f8").mean(), rel=1e-6)
            assert other.header.rms == pytest.approx(data.astype("f8").std(), rel=1e-4)
            assert (other.header.dmin, other.header.dmax) == (data.min(), data.max())
    back, info = mrc.read(path)
    np.testing.assert_array_equal(back, data)
    assert info.labels == ("Weft", "made for a test")
    assert [p.name for p in tmp_path.iterdir()] == ["a.mrc"]


def test_bytes_above_127_survive_other_readers(tmp_path: Path) -> None:
    data = np.arange(256, dtype="u1").reshape(16, 16)
    mrc.write(tmp_path / "a.mrc", data, 1.0)
    with mrcfile.open(tmp_path / "a.mrc") as other:
        np.testing.assert_array_equal(other.data, data)
    mrc.write(tmp_path / "b.mrc", data, 1.0, dtype="u1")
    back, info = mrc.read(tmp_path / "b.mrc")
    np.testing.assert_array_equal(back, data)
    assert info.mode == 0


def test_stack_and_float16(tmp_path: Path) -> None:
    frames = (np.full((4, 5), i, "f4") for i in range(7))
    path = tmp_path / "s.mrcs"
    assert mrc.write_stack(path, frames, 2.0, dtype=np.float16) == 7
    with mrcfile.open(path) as other:
        assert other.is_image_stack()
        assert other.data.dtype == np.float16
        assert other.data[:, 0, 0].tolist() == list(range(7))
    with pytest.raises(ValueError, match="float16 cannot hold"):
        mrc.write(path, np.full((2, 2), 1e6, "f4"), 1.0, dtype=np.float16)
    with pytest.raises(ValueError, match="does not fit"):
        mrc.write(path, np.full((2, 2), 1e6, "f4"), 1.0, dtype="i2")
    # the failed writes left the old file as it was, and nothing beside it
    assert len(mrc.MrcStack(path)) == 7
    assert [p.name for p in tmp_path.iterdir()] == ["s.mrcs"]


def test_real_files_read_as_mrcfile_reads_them(reference_data: Path) -> None:
    """Headers by a dozen programs, some of them broken; mrcfile (permissive) must see the same numbers."""
    seen = 0
    for path in sorted((reference_data / "real").rglob("*")):
        if path.suffix not in (".mrc", ".mrcs", ".map", ".st") and not path.name.endswith(
            ("map.gz", "map.bz2")
        ):
            continue
        if path.stat().st_size > 1_700_000:
            continue
        data, info = mrc.read(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with mrcfile.open(path, permissive=True) as other:
                np.testing.assert_array_equal(np.squeeze(data), np.squeeze(other.data), err_msg=str(path))
                if info.voxel_size is not None:
                    assert info.voxel_size[0] == pytest.approx(float(other.voxel_size.x), rel=1e-5)
        seen += 1
    assert seen > 40
