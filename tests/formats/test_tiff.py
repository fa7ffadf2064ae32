"""TIFF beyond the contract: rows flipped, files still being written, other programs."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
import tifffile

from weft.errors import CorruptError, FormatError, TruncatedError
from weft.formats import mrc
from weft.formats.tiff import TiffMovie, read_tiff, write_tiff
from weft.formats.tiff_layout import read_layout

RNG = np.random.default_rng(3)
DATA = RNG.poisson(1.0, (4, 40, 50)).astype("u1")


def test_rows_are_flipped_both_ways(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    write_tiff(path, DATA)
    np.testing.assert_array_equal(tifffile.imread(path), DATA[:, ::-1])
    np.testing.assert_array_equal(read_tiff(path), DATA)
    np.testing.assert_array_equal(read_tiff(path, flip=False), DATA[:, ::-1])


def test_dead_pixels_of_the_reference_movie_lie_where_its_gain_is_zero(reference_data: Path) -> None:
    """The gain is MRC, the frames are TIFF: only with flipped rows do the 40 zeros of the gain fall on
    the pixels that never count (unflipped, an average of a pixel there counts about 30)."""
    gain, _ = mrc.read(reference_data / "reference" / "movie_flat_gain.mrc")
    with TiffMovie(reference_data / "reference" / "movie_flat.tif") as movie:
        total = sum(movie.read(i).astype("u4") for i in range(len(movie)))
    assert np.count_nonzero(gain == 0) == 40
    assert np.all(total[gain == 0] == 0)
    assert np.all(total[gain != 0] > 0)


@pytest.mark.skipif(shutil.which("relion_convert_to_tiff") is None, reason="RELION is not installed")
def test_relion_writes_the_same_rows(tmp_path: Path) -> None:
    mrc.write(tmp_path / "a.mrcs", DATA.astype("i2"), 1.0, volume=False)
    subprocess.run(
        ["relion_convert_to_tiff", "--i", "a.mrcs", "--o", "out/", "--compression", "lzw"],
        cwd=tmp_path, check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    np.testing.assert_array_equal(read_tiff(tmp_path / "out" / "a.tif"), DATA)


def test_a_file_still_being_written(tmp_path: Path) -> None:
    """tifffile reads each of these as a shorter movie; the contract is that nobody does so in silence."""
    path = tmp_path / "a.tif"
    states = []
    frames = RNG.poisson(1.0, (4, 120, 160)).astype("u1")
    with tifffile.TiffWriter(path) as writer:
        for frame in frames:
            writer.write(frame, compression="lzw", contiguous=False, metadata=None)
            states.append(path.read_bytes())
    whole = path.read_bytes()
    # complete frames only: nothing shows that more will follow but the number expected
    path.write_bytes(states[1])
    assert len(read_layout(path).pages) == 2
    # a frame's data has begun to arrive, its directory has not
    for extra in (2000, len(whole) - len(states[2]) - 1):
        path.write_bytes(states[1] + whole[len(states[1]) : len(states[1]) + extra])
        try:
            layout = read_layout(path)
        except TruncatedError:
            continue
        raise AssertionError(f"{len(layout.pages)} frames read")
    # libtiff reserves the strips of a frame before it fills them
    with tifffile.TiffWriter(tmp_path / "b.tif") as writer:
        writer.write(DATA[0], contiguous=False, metadata=None)
    raw = bytearray((tmp_path / "b.tif").read_bytes())
    with tifffile.TiffFile(tmp_path / "b.tif") as file:
        tag = file.pages[0].tags["StripByteCounts"]
    raw[tag.valueoffset : tag.valueoffset + 2] = b"\0\0"
    (tmp_path / "b.tif").write_bytes(bytes(raw))
    with pytest.raises(TruncatedError, match="never written"):
        TiffMovie(tmp_path / "b.tif")
    # the header alone: the link to the first frame is zero
    (tmp_path / "c.tif").write_bytes(b"II*\0" + bytes(4) + DATA.tobytes())
    with pytest.raises(TruncatedError, match="no frame is complete"):
        TiffMovie(tmp_path / "c.tif")


def test_tail_rule(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    write_tiff(path, DATA)
    whole = path.read_bytes()
    path.write_bytes(whole + bytes(100_000))
    assert len(read_layout(path).pages) == 4, "padding with zeros is harmless"
    path.write_bytes(whole + b"\1" * 5000)
    with pytest.raises(TruncatedError, match="5000 bytes follow its 4 complete frames") as raised:
        read_layout(path)
    assert raised.value.frame == 4
    assert len(read_layout(path, allow_tail=True).pages) == 4


def test_corrupt_chain_and_strips(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as writer:
        for frame in DATA:
            writer.write(frame, compression="lzw", contiguous=False, metadata=None, rowsperstrip=8)
    with tifffile.TiffFile(path) as file:
        offsets = [page.offset for page in file.pages]
        n_tags = len(file.pages[3].tags)
        strip = file.pages[2].dataoffsets[1], file.pages[2].databytecounts[1]
    raw = bytearray(path.read_bytes())
    link = offsets[3] + 2 + 12 * n_tags
    raw[link : link + 4] = offsets[1].to_bytes(4, "little")
    path.write_bytes(bytes(raw))
    with pytest.raises(CorruptError, match="a loop"):
        TiffMovie(path)
    raw[link : link + 4] = bytes(4)
    # an end-of-information code at once: the strip decodes to nothing, without an error from the codec
    raw[strip[0] : strip[0] + 3] = b"\x80\x40\x40"
    path.write_bytes(bytes(raw))
    with TiffMovie(path) as movie:
        movie.read(1)
        with pytest.raises(CorruptError, match=r"strip 1 (holds|cannot)") as raised:
            movie.read(2)
    assert raised.value.frame == 2


def test_pages_must_be_alike_and_thumbnails_are_none(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as writer:
        writer.write(DATA[0], contiguous=False, metadata=None)
        writer.write(DATA[1][:20, :25], contiguous=False, metadata=None, subfiletype=1)
        writer.write(DATA[2], contiguous=False, metadata=None)
    with TiffMovie(path) as movie:
        np.testing.assert_array_equal([movie.read(0), movie.read(1)], DATA[[0, 2]][:, ::-1])
    with tifffile.TiffWriter(path) as writer:
        writer.write(DATA[0], contiguous=False, metadata=None)
        writer.write(DATA[1][:20], contiguous=False, metadata=None)
    with pytest.raises(FormatError, match="50 x 20 of 8 bits, but frame 0 is 50 x 40") as raised:
        TiffMovie(path)
    assert raised.value.frame == 1


@pytest.mark.parametrize("how", [{"imagej": True}, {"metadata": {}}])
def test_stacks_with_one_directory(tmp_path: Path, how: dict[str, object]) -> None:
    path = tmp_path / "a.tif"
    if "imagej" in how:
        tifffile.imwrite(path, DATA, imagej=True)
        # ImageJ itself writes one directory for stacks above 4 GB: cut the chain behind the first
        with tifffile.TiffFile(path) as file:
            page = file.pages[0]
            link = page.offset + 2 + 12 * len(page.tags)
        raw = bytearray(path.read_bytes())
        raw[link : link + 4] = bytes(4)
        path.write_bytes(bytes(raw))
    else:
        with tifffile.TiffWriter(path) as writer:
            writer.write(DATA, truncate=True, photometric="minisblack")
    np.testing.assert_array_equal(read_tiff(path), DATA[:, ::-1])
    path.write_bytes(path.read_bytes()[: -(40 * 50 + 60)])
    with pytest.raises(TruncatedError):
        read_tiff(path)


def test_four_bits(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    image = (np.arange(6 * 10) % 16).reshape(6, 10).astype("u1")
    packed = (image[:, 0::2] << 4) | image[:, 1::2]
    _write_4_bit(path, packed.tobytes())
    np.testing.assert_array_equal(read_tiff(path), image[::-1])


def _write_4_bit(path: Path, data: bytes) -> None:
    tags = [(256, 3, 10), (257, 3, 6), (258, 3, 4), (259, 3, 1), (262, 3, 1), (273, 4, 200), (277, 3, 1),
            (278, 3, 6), (279, 4, len(data))]  # fmt: skip
    raw = bytearray(200)
    raw[:8] = b"II*\0" + struct.pack("<I", 8)
    body = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", t, k, 1, v) for t, k, v in tags)
    raw[8 : 8 + len(body) + 4] = body + bytes(4)
    path.write_bytes(bytes(raw) + data)


def test_what_is_not_supported_is_said(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, RNG.integers(0, 255, (16, 16, 3)).astype("u1"), photometric="rgb")
    with pytest.raises(FormatError, match="3 colours"):
        TiffMovie(path)
    tifffile.imwrite(path, DATA[0], compression="lzma")
    with pytest.raises(FormatError, match="compression 34925 is not supported"):
        TiffMovie(path)
    with pytest.raises(ValueError, match="no TIFF compression"):
        write_tiff(path, DATA, compression="jpeg")
    with pytest.raises(ValueError, match="no frames"):
        write_tiff(path, [])
    assert [p.name for p in tmp_path.iterdir()] == ["a.tif"]
