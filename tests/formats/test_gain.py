"""Gain references and defect maps."""

from __future__ import annotations

import struct
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from weft.errors import CorruptError, FormatError, GainError, TruncatedError
from weft.formats import mrc
from weft.formats.em import write_em
from weft.formats.gain import (
    ALL_ORIENTATIONS,
    Orientation,
    best_orientation,
    load_defects,
    load_gain,
    orientations,
)
from weft.formats.tiff import TiffMovie

RNG = np.random.default_rng(5)
GAIN = RNG.normal(1.0, 0.1, (24, 36)).astype("f4")
GAIN[3, 4] = 0.0


def test_formats(tmp_path: Path) -> None:
    mrc.write(tmp_path / "g.mrc", GAIN, 1.0)
    write_em(tmp_path / "g.em", GAIN)
    tifffile.imwrite(tmp_path / "g.tif", GAIN)
    tifffile.imwrite(tmp_path / "g.gain", GAIN)
    # a gain of EER data has more pages, and they are not the gain
    tifffile.imwrite(tmp_path / "g.gain", GAIN[:4], append=True)
    for name in ("g.mrc", "g.em"):
        np.testing.assert_array_equal(load_gain(tmp_path / name, (24, 36)), GAIN)
        np.testing.assert_array_equal(load_gain(tmp_path / name, (24, 36), is_eer=True), GAIN)
    # TIFF lies upside down, but for the .gain of EER data (docs/conventions.md)
    np.testing.assert_array_equal(load_gain(tmp_path / "g.tif"), GAIN[::-1])
    np.testing.assert_array_equal(load_gain(tmp_path / "g.tif", is_eer=True), GAIN[::-1])
    np.testing.assert_array_equal(load_gain(tmp_path / "g.gain", is_eer=True), GAIN)
    np.testing.assert_array_equal(load_gain(tmp_path / "g.gain"), GAIN[::-1])


def test_what_is_no_gain_becomes_zero(tmp_path: Path) -> None:
    gain = GAIN.copy()
    gain[0, :3] = [np.nan, np.inf, -1.0]
    mrc_path = tmp_path / "g.tif"
    tifffile.imwrite(mrc_path, gain)
    loaded = load_gain(mrc_path)[::-1]
    assert loaded[0, :3].tolist() == [0, 0, 0]
    assert np.count_nonzero(loaded == 0) == 4
    tifffile.imwrite(mrc_path, np.zeros((4, 4), "f4"))
    with pytest.raises(GainError, match="no positive number"):
        load_gain(mrc_path)


def test_invert(tmp_path: Path) -> None:
    """A gain to divide by: 1 on average over what it multiplies, and defects stay defects."""
    mrc.write(tmp_path / "g.mrc", GAIN * 250, 1.0)
    inverted = load_gain(tmp_path / "g.mrc", invert=True)
    good = GAIN > 0
    np.testing.assert_allclose(inverted[good], GAIN[good].mean() / GAIN[good], rtol=1e-5)
    assert inverted[3, 4] == 0


def test_wrong_size_names_both(tmp_path: Path) -> None:
    mrc.write(tmp_path / "g.mrc", GAIN, 1.0)
    with pytest.raises(GainError, match=r"is 36 x 24 pixels, the frames are 72 x 48; .* with these frames\Z"):
        load_gain(tmp_path / "g.mrc", (48, 72))
    with pytest.raises(GainError, match="or transpose it"):
        load_gain(tmp_path / "g.mrc", (36, 24))
    assert load_gain(tmp_path / "g.mrc", (36, 24), transpose=True).shape == (36, 24)
    with pytest.raises(GainError, match="36 x 24 pixels"):
        load_gain(tmp_path / "g.mrc", (50, 50), is_eer=True)


def test_eer_gains_follow_the_grid(tmp_path: Path) -> None:
    mrc.write(tmp_path / "g.mrc", GAIN, 1.0)
    fine = load_gain(tmp_path / "g.mrc", (96, 144), is_eer=True)
    np.testing.assert_array_equal(fine[1::4, 2::4], GAIN)
    coarse = load_gain(tmp_path / "g.mrc", (12, 18), is_eer=True)
    assert coarse[1, 2] == 0, "one defect of four makes a defect"
    assert coarse[0, 0] == pytest.approx(GAIN[:2, :2].mean(), rel=1e-6)


def test_not_one_picture(tmp_path: Path) -> None:
    mrc.write(tmp_path / "g.mrc", np.stack([GAIN, GAIN]), 1.0)
    with pytest.raises(GainError, match="2 pictures"):
        load_gain(tmp_path / "g.mrc")
    with pytest.raises(GainError, match="cannot be read"):
        load_gain(tmp_path / "none.mrc")
    (tmp_path / "empty.mrc").write_bytes(b"")
    with pytest.raises(TruncatedError, match="empty"):
        load_gain(tmp_path / "empty.mrc")


def test_orientations_are_all_different_and_complete() -> None:
    image = np.arange(6).reshape(2, 3)
    found = {tuple(map(tuple, turned.tolist())) for _, turned in orientations(image)}
    assert len(found) == 8
    rotated = {tuple(map(tuple, np.rot90(m, k).tolist())) for k in range(4) for m in (image, image[::-1])}
    assert found == rotated
    assert str(Orientation(True, False, True)) == "transpose + flip_y"


def simulated_sum(gain: NDArray[Any], rate: float) -> NDArray[Any]:
    """Counts of a detector with this gain over a specimen with structure of its own."""
    y, x = np.mgrid[: gain.shape[0], : gain.shape[1]]
    specimen = rate * (1 + 0.3 * np.sin(x / 9.0) * np.cos(y / 13.0))
    sensitivity = np.divide(1.0, gain, out=np.zeros_like(gain), where=gain > 0)
    return np.random.default_rng(1).poisson(specimen * sensitivity)


@pytest.mark.parametrize("orientation", ALL_ORIENTATIONS, ids=str)
@pytest.mark.parametrize("shape", [(96, 96), (80, 112)])
def test_every_orientation_is_found_again(orientation: Orientation, shape: tuple[int, int]) -> None:
    """30 counts a pixel, sensitivity varying by 5 %: the right one correlates by 0.05 · √30 ≈ 0.27 at
    most, the wrong ones by chance, 1/√9000 ≈ 0.011."""
    stored = np.random.default_rng(2).normal(1.0, 0.05, shape).astype("f4")
    stored[10, 20] = 0.0
    right = np.ascontiguousarray(orientation.apply(stored))
    raw = simulated_sum(right, 30.0)
    # a hot pixel must not decide
    raw[5, 6] = 100_000
    ranking = best_orientation(stored, raw)
    assert ranking[0][0] == orientation
    assert ranking[0][1] > 0.15
    assert abs(ranking[1][1]) < 0.06
    assert len(ranking) == (8 if shape[0] == shape[1] else 4)


def test_no_orientation_fits() -> None:
    with pytest.raises(GainError, match="36 x 24"):
        best_orientation(GAIN, np.ones((50, 50)))


def test_orientation_of_the_reference_gain(reference_data: Path) -> None:
    gain = load_gain(reference_data / "reference" / "movie_flat_gain.mrc")
    with TiffMovie(reference_data / "reference" / "movie_flat.tif") as movie:
        total = sum(movie.read(i).astype("u4") for i in range(len(movie)))
    ranking = best_orientation(gain, total)
    assert ranking[0][0] == Orientation()
    assert ranking[0][1] > 5 * abs(ranking[1][1])


def test_defect_lists_and_maps(tmp_path: Path) -> None:
    text = tmp_path / "defects.txt"
    text.write_text("# x y w h\n3 1 2 4\n\n35, 23, 1, 1\n")
    mask = load_defects(text, (24, 36))
    wanted = np.zeros((24, 36), bool)
    wanted[1:5, 3:5] = True
    wanted[23, 35] = True
    np.testing.assert_array_equal(mask, wanted)
    np.testing.assert_array_equal(load_defects(text, (24, 36), flip_x=True), wanted[:, ::-1])
    np.testing.assert_array_equal(load_defects(text, (36, 24), transpose=True), wanted.T)
    mrc.write(tmp_path / "d.mrc", wanted.astype("i1"), 1.0)
    tifffile.imwrite(tmp_path / "d.tif", wanted[::-1].astype("u1"))
    for name in ("d.mrc", "d.tif"):
        np.testing.assert_array_equal(load_defects(tmp_path / name, (24, 36)), wanted)
    with pytest.raises(GainError, match="36 x 24 pixels, the frames are 30 x 24"):
        load_defects(tmp_path / "d.mrc", (24, 30))
    for line, error in (("30 1 9 1", GainError), ("1 2 3", FormatError), ("BadColumns 1 2 3", FormatError)):
        text.write_text(line)
        with pytest.raises(error):
            load_defects(text, (24, 36))


def test_dm4_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "g.dm4"
    path.write_bytes(b"\0\0\0\4 not really")
    monkeypatch.setitem(sys.modules, "dm4", None)
    with pytest.raises(FormatError, match=r"pip install 'weft\[dm4\]'"):
        load_gain(path)


def test_dm4_takes_the_large_picture_top_row_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package `dm4` is optional: this stands in for it, with the tree that its documentation shows."""

    class Dir:
        def __init__(self, named: dict[str, Any] | None = None, unnamed: list[Any] | None = None) -> None:
            self.named_subdirs = named or {}
            self.unnamed_subdirs = unnamed or []
            self.named_tags: dict[str, Any] = {}
            self.unnamed_tags: list[Any] = unnamed or []

    def entry(image: NDArray[Any]) -> Dir:
        data = Dir({"Dimensions": Dir(unnamed=[image.shape[1], image.shape[0]])})
        data.named_tags["Data"] = image.reshape(-1)
        return Dir({"ImageData": data})

    class DM4File:
        @classmethod
        def open(cls, path: str) -> DM4File:
            return cls()

        def __enter__(self) -> DM4File:
            return self

        def __exit__(self, *exc: object) -> None: ...

        def read_directory(self) -> Dir:
            return Dir({"ImageList": Dir(unnamed=[entry(np.ones((4, 6), "f4")), entry(GAIN)])})

        def read_tag_data(self, tag: Any) -> Any:
            return tag

    monkeypatch.setitem(sys.modules, "dm4", types.SimpleNamespace(DM4File=DM4File))
    path = tmp_path / "g.dm4"
    path.write_bytes(b"\0\0\0\4")
    np.testing.assert_array_equal(load_gain(path), GAIN[::-1])


def test_dm4_with_the_real_package(tmp_path: Path) -> None:
    """A little-endian DM4 file made by hand: a thumbnail, then the gain."""
    pytest.importorskip("dm4")

    def name(text: str) -> bytes:
        return struct.pack(">H", len(text)) + text.encode()

    def folder(label: str, entries: list[bytes]) -> bytes:
        body = struct.pack(">bbQ", 0, 0, len(entries)) + b"".join(entries)
        return b"\x14" + name(label) + struct.pack(">Q", len(body)) + body

    def tag(label: str, types: list[int], data: bytes) -> bytes:
        body = b"%%%%" + struct.pack(f">Q{len(types)}q", len(types), *types) + data
        return b"\x15" + name(label) + struct.pack(">Q", len(body)) + body

    def image(pixels: NDArray[Any]) -> bytes:
        values = tag("Data", [20, 6, pixels.size], pixels.astype("<f4").tobytes())
        sizes = [tag("", [5], struct.pack("<I", n)) for n in pixels.shape[::-1]]
        return folder("", [folder("ImageData", [values, folder("Dimensions", sizes)])])

    root = [folder("ImageList", [image(np.ones((3, 4))), image(GAIN)])]
    body = struct.pack(">bbQ", 0, 0, len(root)) + b"".join(root)
    path = tmp_path / "g.dm4"
    path.write_bytes(struct.pack(">IQI", 4, len(body), 1) + body)
    np.testing.assert_array_equal(load_gain(path), GAIN[::-1])
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(CorruptError, match="cannot be read as DM4"):
        load_gain(path)
