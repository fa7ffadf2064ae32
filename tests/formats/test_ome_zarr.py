"""OME-Zarr: what other readers find in it, whatever happens while it is written."""

from __future__ import annotations

import json
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from numcodecs import get_codec
from numpy.typing import NDArray

from weft.errors import SettingsError
from weft.formats.ome_zarr import require_zarr, volume_writer

SHAPE = (37, 150, 201)


def volume(shape: tuple[int, int, int] = SHAPE) -> NDArray[np.float32]:
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def write(path: Path, data: NDArray[np.float32], pixel_size: Any = 10.0, **more: Any) -> int:
    given = {"chunk": 32, "sync": False} | more
    with volume_writer(path, data.shape, pixel_size, **given) as writer:  # type: ignore[arg-type]
        for section in data:
            writer.append(section)
    return writer.levels


def halved(data: NDArray[Any]) -> NDArray[Any]:
    """Means of 2×2×2 voxels, and of those that are left at the end of an odd size."""
    for axis in range(3):
        first = np.arange(0, data.shape[axis], 2)
        count = np.minimum(2, data.shape[axis] - first).reshape([-1 if a == axis else 1 for a in range(3)])
        data = np.add.reduceat(data.astype(np.float64), first, axis=axis) / count
    return data


def test_all_levels_are_means_of_the_one_before(tmp_path: Path) -> None:
    data = volume()
    levels = write(tmp_path / "a.zarr", data)
    group = zarr.open_group(tmp_path / "a.zarr", mode="r")
    assert levels == len(list(group.array_keys())) == 4
    expected: NDArray[Any] = data
    for level in range(levels):
        array = group[str(level)]
        assert array.dtype == np.float32
        assert array.chunks == tuple(min(32, n) for n in expected.shape)
        # single precision
        np.testing.assert_allclose(array[:], expected, atol=0 if level == 0 else 1e-6)
        expected = halved(expected)
    assert array.shape == (5, 19, 26)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.zarr"]


def test_the_files_are_those_of_the_specification(tmp_path: Path) -> None:
    """Read without zarr: JSON, and one file for each chunk, in folders."""
    data = volume()
    write(tmp_path / "a.zarr", data)
    assert json.loads((tmp_path / "a.zarr" / ".zgroup").read_text()) == {"zarr_format": 2}
    about = json.loads((tmp_path / "a.zarr" / "0" / ".zarray").read_text())
    assert (about["zarr_format"], about["dimension_separator"], about["order"]) == (2, "/", "C")
    assert (about["dtype"], about["filters"], about["shape"]) == ("<f4", None, [37, 150, 201])
    assert about["compressor"]["id"] == "blosc"
    packed = (tmp_path / "a.zarr" / "0" / "1" / "2" / "3").read_bytes()
    chunk = np.frombuffer(get_codec(about["compressor"]).decode(packed), "<f4").reshape(about["chunks"])
    np.testing.assert_array_equal(chunk[:5, :, :], data[32:, 64:96, 96:128])


def test_all_levels_lie_in_the_same_place(tmp_path: Path) -> None:
    """A blob's centre of mass in Å, by the metadata of each level."""
    z, y, x = np.ogrid[:64, :96, :80]
    blob = np.exp(-((z - 30.3) ** 2 + (y - 51.2) ** 2 + (x - 33.7) ** 2) / 50.0).astype(np.float32)
    write(tmp_path / "a.zarr", blob, (8.0, 9.0, 10.0), origin=(100.0, -200.0, 50.0), name="TS_01")
    attributes = json.loads((tmp_path / "a.zarr" / ".zattrs").read_text())
    (scales,) = attributes["multiscales"]
    assert (scales["version"], scales["name"]) == ("0.4", "TS_01")
    assert scales["axes"] == [{"name": a, "type": "space", "unit": "angstrom"} for a in "zyx"]
    assert [d["path"] for d in scales["datasets"]] == ["0", "1", "2"]
    for level, dataset in enumerate(scales["datasets"]):
        scale, translation = dataset["coordinateTransformations"]
        # the specification's order: the scale, then the translation
        assert (scale["type"], translation["type"]) == ("scale", "translation")
        assert scale["scale"] == [10.0 * 2**level, 9.0 * 2**level, 8.0 * 2**level]
        array = zarr.open_array(tmp_path / "a.zarr" / dataset["path"], mode="r")[:].astype(np.float64)
        for axis, true in enumerate((50.0 + 303.0, -200.0 + 460.8, 100.0 + 269.6)):
            others = tuple(a for a in range(3) if a != axis)
            profile = array.sum(others)
            middle = (profile * np.arange(len(profile))).sum() / profile.sum()
            # the blob's tails are cut at 1e-8
            assert middle * scale["scale"][axis] + translation["translation"][axis] == pytest.approx(
                true, abs=0.01
            )


def test_float16_and_tensors(tmp_path: Path) -> None:
    data = volume((3, 40, 50))
    with volume_writer(tmp_path / "a.zarr", (3, 40, 50), 10.0, dtype=np.float16, sync=False) as writer:
        for section in torch.from_numpy(data):
            writer.append(section)
    array = zarr.open_array(tmp_path / "a.zarr" / "0", mode="r")
    assert array.dtype == np.float16
    np.testing.assert_array_equal(array[:], data.astype(np.float16))
    with pytest.raises(ValueError, match="float16 cannot hold"):
        write(tmp_path / "b.zarr", data * 1e6, dtype=np.float16)
    with pytest.raises(ValueError, match="float32 or float16, not int16"):
        write(tmp_path / "b.zarr", data, dtype=np.int16)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 65, 3), (64, 64, 64), (65, 1, 2)])
def test_odd_shapes(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    data = volume(shape)
    levels = write(tmp_path / "a.zarr", data, chunk=64)
    assert levels == (1 if max(shape) <= 64 else 2)
    group = zarr.open_group(tmp_path / "a.zarr", mode="r")
    np.testing.assert_array_equal(group["0"][:], data)
    if levels == 2:
        np.testing.assert_allclose(group["1"][:], halved(data), atol=1e-6)


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    first = volume((4, 40, 40))

    def interrupted(error: BaseException) -> None:
        with volume_writer(path, (4, 40, 40), 10.0) as writer:
            writer.append(np.zeros((40, 40)))
            raise error

    with pytest.raises(KeyboardInterrupt):
        interrupted(KeyboardInterrupt())
    assert list(tmp_path.iterdir()) == []
    write(path, first, sync=True)
    with pytest.raises(RuntimeError):
        interrupted(RuntimeError())
    for sections, message in (
        ([(40, 40)], "1 sections of 4"),
        ([(40, 40)] * 5, "more than the 4 sections"),
        ([(40, 40), (40, 41)], r"section 1 .* \(40, 41\), not \(40, 40\)"),
    ):
        with pytest.raises(ValueError, match=message):
            write_zeros(path, sections)
    assert [p.name for p in tmp_path.iterdir()] == ["a.zarr"]
    np.testing.assert_array_equal(zarr.open_array(path / "0", mode="r")[:], first)
    # a whole new one takes its place, and nothing of the old stays
    second = volume((3, 20, 20))
    write(path, second)
    assert [p.name for p in tmp_path.iterdir()] == ["a.zarr"]
    np.testing.assert_array_equal(zarr.open_array(path / "0", mode="r")[:], second)
    # as readable as any other new folder
    (tmp_path / "other").mkdir()
    assert path.stat().st_mode == (tmp_path / "other").stat().st_mode


def write_zeros(path: Path, shapes: list[tuple[int, int]]) -> None:
    with volume_writer(path, (4, 40, 40), 10.0) as writer:
        for shape in shapes:
            writer.append(np.zeros(shape))


def test_memory_is_a_layer_of_chunks(tmp_path: Path) -> None:
    """Of a volume of 34 MB, 32 sections of 66 kB and what the coarser levels and packing need."""
    section = np.random.default_rng(2).normal(size=(128, 128)).astype(np.float32)
    tracemalloc.start()
    with volume_writer(tmp_path / "a.zarr", (512, 128, 128), 10.0, chunk=32, sync=False) as writer:
        for _ in range(512):
            writer.append(section)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    layer = 32 * section.nbytes
    # layers of all levels are 4/3, a layer's chunks while they are packed up to 2 more
    assert peak < 5 * layer


def test_without_zarr(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zarr", None)
    with pytest.raises(SettingsError, match=r"pip install 'weft\[zarr\]'"):
        require_zarr()
    with pytest.raises(SettingsError, match="needs the package zarr"):
        write(tmp_path / "a.zarr", volume((2, 4, 4)))
    assert list(tmp_path.iterdir()) == []
