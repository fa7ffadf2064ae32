"""EM files: byte orders, types, real files."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from weft.errors import CorruptError, FormatError, TruncatedError
from weft.formats.em import read_em, write_em


@pytest.mark.parametrize("machine", [0, 3, 5, 6, 1])
def test_byte_orders(tmp_path: Path, machine: int) -> None:
    order = ">" if machine in (0, 3, 5) else "<"
    data = np.linspace(-3, 9, 60).reshape(3, 4, 5)
    header = bytearray(512)
    header[0], header[3] = machine, 5
    struct.pack_into(order + "3i", header, 4, 5, 4, 3)
    struct.pack_into(order + "i", header, 96 + 24, 216)
    path = tmp_path / "a.em"
    path.write_bytes(bytes(header) + data.astype(order + "f4").tobytes())
    back, info = read_em(path)
    np.testing.assert_array_equal(back, data.astype("f4"))
    assert info.pixel_size == pytest.approx(2.16)


@pytest.mark.parametrize("dtype", ["i1", "i2", "i4", "f4", "f8", "c8", "u2"])
def test_round_trip(tmp_path: Path, dtype: str) -> None:
    data = np.arange(24).reshape(2, 3, 4).astype(dtype)
    write_em(tmp_path / "a.em", data, 1.35)
    back, info = read_em(tmp_path / "a.em")
    np.testing.assert_array_equal(back, data)
    assert info.pixel_size == pytest.approx(1.35)
    write_em(tmp_path / "a.em", data[0])
    back, info = read_em(tmp_path / "a.em")
    np.testing.assert_array_equal(back, data[0])
    assert info.pixel_size is None


def test_faults(tmp_path: Path) -> None:
    path = tmp_path / "a.em"
    write_em(path, np.zeros((3, 4, 5), "f4"))
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(TruncatedError, match="only 2 of 3 sections") as raised:
        read_em(path)
    assert raised.value.frame == 2
    path.write_bytes(whole[:3] + b"\7" + whole[4:])
    with pytest.raises(FormatError, match=r"data type \(7\)"):
        read_em(path)
    path.write_bytes(whole[:4] + b"\xff" * 12 + whole[16:])
    with pytest.raises(CorruptError):
        read_em(path)


def test_real_files(reference_data: Path) -> None:
    """cryoCAT's: 48³ in single precision; the mask holds 0 to 1."""
    folder = reference_data / "real" / "turonova__cryoCAT" / "peak_analysis" / "inputs" / "ribosome"
    for path in folder.glob("*.em"):
        data, info = read_em(path)
        assert data.shape == (48, 48, 48)
        assert np.isfinite(data).all()
        assert info.dtype.itemsize == 4
    mask, _ = read_em(folder / "mask48_r22.em")
    assert 0 <= mask.min() < mask.max() <= 1.0001
