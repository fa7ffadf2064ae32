"""EER: the specification's own bytes, tifffile's and imagecodecs' decoding, groups, damaged streams."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from weft.errors import FormatError, SettingsError, TruncatedError
from weft.formats.eer import EerMovie, Grouping, split_counts, write_eer
from weft.formats.eer_codec import EerBits, StreamError, add_frame, decode_buffer, encode_frame

SHAPE = (40, 64)
WIDTHS = [EerBits(), EerBits(8), EerBits(8, wasteful=True), EerBits(7, 1, 1), EerBits(5, 2, 3)]


def raw_frame(rate: float, level: int = 0, seed: int = 0) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    y, x = np.nonzero(rng.random(SHAPE) < rate)
    image = np.zeros((SHAPE[0] << level, SHAPE[1] << level), np.uint8)
    image[
        (y << level) + rng.integers(0, 1 << level, y.size), (x << level) + rng.integers(0, 1 << level, y.size)
    ] = 1
    return image


def decode(data: bytes, bits: EerBits, level: int = 0, shape: tuple[int, int] = SHAPE) -> NDArray[Any]:
    buffer = decode_buffer(shape, level, 1)
    add_frame(data, buffer, shape, bits, level)
    assert not buffer[shape[0] << level :].any()
    return buffer[: shape[0] << level]


def test_vector_of_the_specification() -> None:
    """The example of the EER specification, as imagecodecs' own tests have it: 7, 1 and 1 bits."""
    image = decode(b"\x03\x1b\xfc\xb1\x35\xfb", EerBits(7, 1, 1), shape=(1, 312))
    assert np.flatnonzero(image).tolist() == [3, 17, 233, 311]


@pytest.mark.parametrize("bits", WIDTHS, ids=str)
@pytest.mark.parametrize("rate", [0.0, 0.001, 0.03, 0.5, 1.0])
@pytest.mark.parametrize("level", [0, 1, 2])
def test_round_trip(bits: EerBits, rate: float, level: int) -> None:
    if level and (bits.horizontal, bits.vertical) != (2, 2):
        pytest.skip("imagecodecs places electrons wrongly; EerMovie refuses")
    image = raw_frame(rate, level)
    data = encode_frame(image, bits, level)
    np.testing.assert_array_equal(decode(data, bits, level), image)
    # any finer grid sums to the sensor's
    coarse = image.reshape(SHAPE[0], 1 << level, SHAPE[1], 1 << level).sum((1, 3))
    np.testing.assert_array_equal(decode(data, bits), coarse)
    if not bits.wasteful:
        # without a word to follow, imagecodecs may leave out the last electron
        theirs = imagecodecs.eer_decode(
            data + bytes(2), image.shape, bits.skip, bits.horizontal, bits.vertical, superres=level
        )
        np.testing.assert_array_equal(theirs, image)


@pytest.mark.parametrize("bits", WIDTHS, ids=str)
@pytest.mark.parametrize("rate", [0.0005, 0.03, 0.9])
def test_every_cut_of_a_stream_is_noticed(bits: EerBits, rate: float) -> None:
    """imagecodecs decodes a stream that was cut without a word; every cut must be found, unless what is
    left still describes all but the last few pixels (the bits that were lost were padding)."""
    image = raw_frame(rate)
    data = encode_frame(image, bits)
    for length in range(len(data)):
        fault: StreamError | None = None
        try:
            got = decode(data[:length], bits)
        except StreamError as error:
            fault = error
        if fault is not None:
            assert fault.short or bits.wasteful
            continue
        assert length >= len(data) - 6
        np.testing.assert_array_equal(got.reshape(-1)[:-4], image.reshape(-1)[:-4])


@pytest.mark.parametrize("bits", WIDTHS[:2], ids=str)
def test_most_lost_bits_are_noticed(bits: EerBits) -> None:
    """A bit lost in the middle moves all that follows. That the stream then ends where it should is luck:
    the end can lie within one run length of the sensor's, of a few thousand places."""
    data = encode_frame(raw_frame(0.03), bits)
    stream = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
    noticed = 0
    for at in range(20, stream.size - 60, 7):
        broken = np.packbits(np.delete(stream, at), bitorder="little").tobytes()
        try:
            decode(broken, bits)
        except StreamError:
            noticed += 1
    assert noticed > 0.75 * len(range(20, stream.size - 60, 7))


def test_padding_is_no_fault() -> None:
    image = raw_frame(0.03)
    data = encode_frame(image, EerBits())
    for tail in (bytes(2), bytes(4096)):
        np.testing.assert_array_equal(decode(data + tail, EerBits()), image)


def test_tifffile_reads_what_is_written(tmp_path: Path) -> None:
    frames = np.stack([raw_frame(0.03, seed=i) for i in range(6)])
    for compression in (65001, 65002):
        write_eer(tmp_path / "a.eer", frames, compression=compression, pixel_size=1.2, total_dose=36.0)
        np.testing.assert_array_equal(tifffile.imread(tmp_path / "a.eer"), frames)
        with tifffile.TiffFile(tmp_path / "a.eer") as file:
            assert file.is_eer
            assert file.eer_metadata["numberOfFrames"] == 6


@pytest.mark.parametrize(
    ("grouping", "sizes"),
    [
        (Grouping(groups=4), [2, 3, 2, 3]),
        (Grouping(groups=100), [1] * 10),
        (Grouping(frames=3), [3, 3, 3]),
        (Grouping(frames=50), [10]),
        (Grouping(dose=7.6), [2] * 5),
        (Grouping(dose=0.1), [1] * 10),
    ],
)
def test_groups(tmp_path: Path, grouping: Grouping, sizes: list[int]) -> None:
    """10 raw frames of 4 e/Å² each."""
    frames = np.stack([raw_frame(0.05, seed=i) for i in range(10)])
    path = tmp_path / "a.eer"
    write_eer(path, frames, pixel_size=1.2, total_dose=40.0)
    with EerMovie(path, grouping=grouping) as movie:
        edges = np.cumsum([0, *sizes])
        assert len(movie) == len(sizes)
        for i in range(len(movie)):
            np.testing.assert_array_equal(movie.read(i), frames[edges[i] : edges[i + 1]].sum(0))
        assert movie.raw_frames == 10
        assert movie.dose_per_frame == pytest.approx(4.0 * np.mean(sizes))
        if sum(sizes) < 10:
            assert "the last 1 (10.0 % of the electrons) fill no group" in movie.note
        elif len(set(sizes)) > 1:
            assert "groups of 2 to 3" in movie.note
    np.testing.assert_array_equal(sum(frames[: sum(sizes)]), frames[: sum(sizes)].sum(0))


def test_super_resolution(tmp_path: Path) -> None:
    fine = np.stack([raw_frame(0.05, 2, seed=i) for i in range(4)])
    path = tmp_path / "a.eer"
    write_eer(path, fine, upsampling=4, pixel_size=1.2)
    ny, nx = SHAPE
    for factor in (1, 2, 4):
        with EerMovie(path, upsampling=factor, grouping=Grouping(frames=4)) as movie:
            assert movie.pixel_size == pytest.approx(1.2 / factor)
            step = 4 // factor
            wanted = fine.sum(0).reshape(ny * factor, step, nx * factor, step).sum((1, 3))
            np.testing.assert_array_equal(movie.read(0), wanted)


def test_many_raw_frames_do_not_overflow(tmp_path: Path) -> None:
    frame = np.zeros((8, 8), np.uint8)
    frame[3, 5] = 1
    path = tmp_path / "a.eer"
    write_eer(path, (frame for _ in range(300)))
    with EerMovie(path, grouping=Grouping(groups=1)) as movie:
        assert movie.dtype == np.uint16
        assert movie.read(0)[3, 5] == 300


def test_split_counts() -> None:
    frames = np.random.default_rng(0).poisson(1.0, (3, 30, 30))
    parts = np.stack(list(split_counts(frames, 8)))
    assert parts.shape == (24, 30, 30)
    assert parts.max() == 1
    np.testing.assert_array_equal(parts.reshape(3, 8, 30, 30).sum(1), frames)
    # no raw frame is preferred: 1/8 of about 2700 electrons each, within 5 standard deviations
    share = parts.reshape(3, 8, -1).sum((0, 2))
    assert np.all(abs(share - frames.sum() / 8) < 5 * np.sqrt(frames.sum() / 8))
    with pytest.raises(ValueError, match="for 2 raw frames"):
        list(split_counts(frames, 2))


def test_a_frame_cut_short_is_named(tmp_path: Path) -> None:
    """The directory says that the strip is shorter than it was: a file that is whole for TIFF."""
    path = tmp_path / "a.eer"
    write_eer(path, [raw_frame(0.05, seed=i) for i in range(6)])
    with tifffile.TiffFile(path) as file:
        tag = file.pages[4].tags["StripByteCounts"]
        size = file.pages[4].databytecounts[0]
    raw = bytearray(path.read_bytes())
    raw[tag.valueoffset : tag.valueoffset + 8] = (size // 2).to_bytes(8, "little")
    path.write_bytes(bytes(raw))
    with EerMovie(path, grouping=Grouping(frames=2)) as movie:
        movie.read(1)
        with pytest.raises(TruncatedError, match="before the end of the sensor") as raised:
            movie.read(2)
    assert raised.value.frame == 4


def test_fewer_frames_than_the_metadata_say(tmp_path: Path) -> None:
    path = tmp_path / "a.eer"
    write_eer(path, [raw_frame(0.05, seed=i) for i in range(6)])
    raw = path.read_bytes().replace(b'"numberOfFrames">6<', b'"numberOfFrames">9<')
    path.write_bytes(raw)
    with pytest.raises(TruncatedError, match="holds 6 raw frames where its own metadata say 9"):
        EerMovie(path)
    with EerMovie(path, expected_frames=6) as movie:
        assert movie.raw_frames == 6


def test_metadata_units(tmp_path: Path) -> None:
    path = tmp_path / "a.eer"
    write_eer(path, [raw_frame(0.05)], pixel_size=1.5, total_dose=10.0)
    with EerMovie(path) as movie:
        assert movie.dose_per_frame == pytest.approx(10.0)
        assert movie.metadata["cameraName"] == "Weft simulation"
    # the pitch of the sensor, 14 µm, is no pixel size on the specimen, and e/pixel no dose without one
    text = path.read_bytes()
    value = str(1.5 * 1e-10).encode()
    path.write_bytes(text.replace(value, b"1.4e-05".ljust(len(value))))
    with EerMovie(path) as movie:
        assert movie.pixel_size is None
        assert movie.dose_per_frame is None
    with pytest.raises(SettingsError, match="cannot be grouped by dose"):
        EerMovie(path, grouping=Grouping(dose=1.0))
    path.write_bytes(text.replace(b"<metadata>", b"<metadata<"))
    with EerMovie(path) as movie:
        assert movie.metadata == {}


def test_not_eer(tmp_path: Path) -> None:
    path = tmp_path / "a.eer"
    tifffile.imwrite(path, raw_frame(0.5))
    with pytest.raises(FormatError, match="no EER frames"):
        EerMovie(path)
    write_eer(path, [raw_frame(0.1)], bits=EerBits(7, 1, 1))
    with pytest.raises(FormatError, match=r"7 \+ 1 \+ 1 bits are not supported with upsampling 4"):
        EerMovie(path, upsampling=4)
    write_eer(path, [raw_frame(0.1)], bits=EerBits(4, 2, 2))
    with pytest.raises(FormatError, match=r"4 \+ 2 \+ 2 bits are not supported"):
        EerMovie(path)
    with pytest.raises(SettingsError, match="upsampling is 1, 2 or 4"):
        EerMovie(path, upsampling=3)


def test_writer_refuses_what_eer_cannot_hold(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="other than 0 and 1"):
        write_eer(tmp_path / "a.eer", [np.full((4, 4), 2)])
    two = np.zeros((8, 8), np.uint8)
    two[0, :2] = 1
    with pytest.raises(ValueError, match="at most one electron"):
        write_eer(tmp_path / "a.eer", [two], upsampling=2)
    with pytest.raises(ValueError, match="no frames"):
        write_eer(tmp_path / "a.eer", [])
    assert list(tmp_path.iterdir()) == []


def test_random_damage_is_an_error_or_a_whole_frame() -> None:
    rng = np.random.default_rng(0)
    data = encode_frame(raw_frame(0.03), EerBits())
    for _ in range(200):
        raw = bytearray(data)
        for at in rng.integers(0, len(raw), 3):
            raw[at] = rng.integers(0, 256)
        with contextlib.suppress(StreamError):
            assert decode(bytes(raw), EerBits()).shape == SHAPE
