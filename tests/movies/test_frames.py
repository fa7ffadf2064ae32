"""Corrected frames: gain, defects, hot and dead pixels; what must not be taken for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from weft.errors import CorruptError, FormatError, GainError, TruncatedError
from weft.formats import mrc
from weft.formats.eer import write_eer
from weft.formats.gain import load_gain
from weft.formats.tiff import write_tiff
from weft.movies.frames import Frames, load_frames
from weft.movies.hot_pixels import good_neighbours
from weft.movies.source import SourceSettings

NY, NX, N = 200, 230, 24


def movie(
    rate: float | NDArray[Any] = 1.0, n: int = N, dtype: str = "u1", seed: int = 0
) -> list[NDArray[Any]]:
    rng = np.random.default_rng(seed)
    return [rng.poisson(rate, (NY, NX)).astype(dtype) for _ in range(n)]


def test_is_raw_times_gain() -> None:
    raw = movie()
    gain = np.random.default_rng(1).normal(1, 0.1, (NY, NX)).astype("f4")
    frames = Frames(raw, gain)
    assert frames.shape == (N, NY, NX)
    assert len(frames) == N
    assert frames.bad is None
    assert (frames.n_hot, frames.n_dead) == (0, 0)
    for i in (0, 7, N - 1):
        assert frames[i].dtype == torch.float32
        np.testing.assert_array_equal(frames[i].numpy(), raw[i] * gain)
    np.testing.assert_array_equal(frames[-1].numpy(), frames[N - 1].numpy())
    np.testing.assert_array_equal(frames.raw_sum(), np.sum(raw, 0))
    np.testing.assert_allclose(frames.mean_counts, [f.mean() for f in raw])
    assert len(list(frames)) == N
    with pytest.raises(IndexError):
        frames[N]


def test_filling_a_part_of_a_padded_picture() -> None:
    frames = Frames(movie(), defects=np.eye(NY, NX, dtype=bool))
    padded = torch.zeros(256, 256)
    frames.fill(3, padded[:NY, :NX])
    torch.testing.assert_close(padded[:NY, :NX], frames[3], rtol=0, atol=0)
    assert float(padded[NY:].abs().sum() + padded[:, NX:].abs().sum()) == 0


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "i4", "u4", "f2", "f4", "f8"])
def test_every_type(dtype: str) -> None:
    raw = movie(dtype=dtype)
    for gain in (None, np.full((NY, NX), 2.0, "f4")):
        frames = Frames(raw, gain)
        np.testing.assert_array_equal(frames[2].numpy(), raw[2].astype("f4") * (1 if gain is None else 2))


def test_hot_pixels_five_times_as_bright_are_found_and_nothing_else() -> None:
    """Mean 1 a frame, 24 in the sum. 60 single hot pixels at 5 times the rate, some at the border, a pair,
    a cluster of four; the rest is Poisson noise with a gain of 5 %: none of 46,000 pixels may be flagged."""
    rng = np.random.default_rng(3)
    gain = rng.normal(1, 0.05, (NY, NX)).astype("f4")
    rate = 1.0 / gain
    places = {(0, 0), (0, 57), (NY - 1, 3), (90, NX - 1), (50, 50), (50, 51)}
    places |= {(120, 120), (120, 121), (121, 120), (121, 121)}
    while len(places) < 68:
        places.add((int(rng.integers(3, NY - 3)), int(rng.integers(3, NX - 3))))
    for y, x in places:
        rate[y, x] *= 5
    frames = Frames(movie(rate), gain)
    found = {(int(y), int(x)) for x, y in frames.hot_pixels}
    assert found == places
    assert frames.n_hot == len(places)
    assert frames.bad is not None
    assert frames.bad.sum() == len(places)


def test_dead_pixels_without_a_gain() -> None:
    rate = np.ones((NY, NX))
    dead = [(10, 10), (77, 100), (0, 5), (150, 229), (60, 60), (60, 61)]
    for y, x in dead:
        rate[y, x] = 0
    frames = Frames(movie(rate))
    assert frames.n_dead == len(dead)
    assert frames.bad is not None
    assert all(frames.bad[y, x] for y, x in dead)
    assert frames[0].numpy()[10, 10] in frames[0].numpy()[8:13, 8:13]


@pytest.mark.parametrize("rate", [0.02, 0.1, 0.5, 3.0, 20.0])
def test_noise_alone_is_left_alone(rate: float) -> None:
    """From 0.5 electrons in the whole sum (EER on a fine grid) to 480: no false alarm in 46,000 pixels
    (the thresholds let one in 10^7 pass)."""
    frames = Frames(movie(rate, dtype="u2"))
    assert (frames.n_hot, frames.n_dead) == (0, 0)


def test_scaled_and_gain_corrected_counts() -> None:
    """Counts times 32, or floats: what one electron weighs is found from the noise itself."""
    rate = np.ones((NY, NX))
    rate[40, 40] = 6
    raw = movie(rate)
    for factor, dtype in ((32, "i2"), (0.01, "f4")):
        frames = Frames([(f * factor).astype(dtype) for f in raw])
        assert frames.hot_pixels.tolist() == [[40, 40]]


def test_features_of_a_specimen_are_no_hot_pixels() -> None:
    """Gold beads (5 times darker, edge blurred over 1.5 pixels as by motion and optics), a bright hole
    with a sharp ice edge (1.6 times brighter), and Fresnel-like fringes, at 48 counts a pixel."""
    y, x = np.mgrid[:NY, :NX]
    rate = np.full((NY, NX), 2.0)
    rate *= np.where(x > 140, 1.6, 1.0)
    rng = np.random.default_rng(0)
    for _ in range(12):
        cy, cx, r = rng.uniform(15, NY - 15), rng.uniform(15, NX - 15), rng.uniform(3, 9)
        distance = np.hypot(y - cy, x - cx) - r
        bead = 1 / (1 + np.exp(distance / 0.75))
        fringe = 0.4 * np.exp(-((distance - 2) ** 2) / 2)
        rate *= (1 - 0.8 * bead) * (1 + fringe)
    frames = Frames(movie(rate))
    assert (frames.n_hot, frames.n_dead) == (0, 0)


def test_replaced_pixels_look_like_their_neighbours_and_never_alike() -> None:
    """A stuck pixel correlates with itself in all frames; what replaces it must have the local mean and
    noise, and be independent from frame to frame: 200 pixels × 200 frames, so the mean correlation of
    consecutive frames is 0 ± 0.005, and the mean and variance are right within 5 %."""
    n = 200
    defects = np.zeros((NY, NX), bool)
    rng = np.random.default_rng(2)
    flat = rng.choice(NY * NX, 200, replace=False)
    defects.reshape(-1)[flat] = True
    raw = movie(4.0, n=n)
    for frame in raw:
        frame.reshape(-1)[flat] = 200
    frames = Frames(raw, defects=defects)
    values = np.stack([frames[i].numpy().reshape(-1)[flat] for i in range(n)])
    assert values.mean() == pytest.approx(4.0, rel=0.05)
    assert values.var() == pytest.approx(4.0, rel=0.05)
    centred = values - values.mean()
    correlation = (centred[1:] * centred[:-1]).mean() / values.var()
    assert abs(correlation) < 0.02
    assert np.array_equal(frames[5].numpy(), frames[5].numpy()), "the same each time"


def test_dead_columns_and_corners_are_filled() -> None:
    defects = np.zeros((NY, NX), bool)
    defects[:, 100:103] = True
    defects[:40, :40] = True
    gain = np.ones((NY, NX), "f4")
    gain[170:, 200:] = 0
    gain[0, 150] = np.nan
    frames = Frames([np.where(defects, 99, f).astype("u1") for f in movie(2.0)], gain, defects)
    for i in range(3):
        image = frames[i].numpy()
        assert np.isfinite(image).all()
        assert image.max() < 20
        # three columns, a corner: each filled with counts of mean 2; 600 to 1600 pixels, 10 % is 4 sigma
        for part in (image[:, 100:103], image[:40, :40], image[170:, 200:]):
            assert part.mean() == pytest.approx(2.0, rel=0.15)


def test_neighbours_are_good_and_near() -> None:
    bad = np.random.default_rng(0).random((60, 70)) < 0.3
    pixels, neighbours = good_neighbours(bad)
    assert not bad.reshape(-1)[neighbours].any()
    np.testing.assert_array_equal(pixels, np.flatnonzero(bad))
    distance = np.hypot(neighbours // 70 - (pixels // 70)[:, None], neighbours % 70 - (pixels % 70)[:, None])
    assert distance.max() <= np.hypot(6, 6)
    one = np.ones((50, 50), bool)
    one[49, 0] = False
    pixels, neighbours = good_neighbours(one)
    assert np.all(neighbours == 49 * 50)
    assert good_neighbours(np.ones((4, 4), bool))[1].shape[0] == 0


def test_faults() -> None:
    raw = movie()
    with pytest.raises(GainError, match=f"is 10 x 20 pixels, the frames are {NX} x {NY}"):
        Frames(raw, np.ones((20, 10), "f4"))
    with pytest.raises(GainError, match="defect map is 10 x 20"):
        Frames(raw, defects=np.zeros((20, 10), bool))
    with pytest.raises(GainError, match="no good pixel"):
        Frames(raw, np.zeros((NY, NX), "f4"))
    with pytest.raises(FormatError, match="no frames"):
        Frames([])
    with pytest.raises(FormatError, match="frame 1: its shape"):
        Frames([raw[0], raw[1][:-1]])
    for value in (np.nan, np.inf):
        wrong = [f.astype("f4") for f in raw]
        wrong[4][17, 3] = value
        with pytest.raises(CorruptError, match="1 of 46000 pixels are not numbers") as raised:
            Frames(wrong, path="movie.mrc")
        assert (raised.value.frame, str(raised.value.path)) == (4, "movie.mrc")


def test_tiny_and_constant_movies() -> None:
    for shape in ((1, 1), (3, 3), (5, 5), (16, 7), (17, 33)):
        frames = Frames([np.full(shape, 3, "u1")] * 2)
        assert frames[0].shape == shape
        assert frames.n_hot == 0
    assert Frames([np.zeros((40, 40), "u1")]).n_dead == 0


def test_load_frames(tmp_path: Path) -> None:
    raw = np.stack(movie(0.5, n=6))
    gain = np.random.default_rng(1).normal(1, 0.1, (NY, NX)).astype("f4")
    gain[5, 6] = 0
    mrc.write(tmp_path / "gain.mrc", gain, 1.0)
    write_tiff(tmp_path / "a.tif", raw)
    mrc.write(tmp_path / "a.mrc", raw, 1.0)
    write_eer(tmp_path / "a.eer", raw, raw_per_frame=8)
    loaded = load_gain(tmp_path / "gain.mrc", (NY, NX))
    results = []
    for name, options in (("a.tif", {}), ("a.mrc", {}), ("a.eer", {"eer_frames": 8})):
        frames = load_frames(tmp_path / name, SourceSettings(**options), gain=loaded)
        assert frames.info is not None
        assert frames.info.path == tmp_path / name
        assert frames.info.n_frames == 6
        results.append(np.stack([f.numpy() for f in frames]))
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])
    with pytest.raises(GainError, match=r"a\.tif: the gain reference is 5 x 5"):
        load_frames(tmp_path / "a.tif", gain=np.ones((5, 5), "f4"))
    with pytest.raises(TruncatedError):
        load_frames(tmp_path / "a.tif", SourceSettings(expected_frames=7))


def test_reference_movie(reference_data: Path) -> None:
    """movie_flat: its 40 zeros of the gain are replaced; hot pixels, where simulated, are above their
    neighbours by far."""
    folder = reference_data / "reference"
    frames = load_frames(
        folder / "movie_flat.tif", gain=load_gain(folder / "movie_flat_gain.mrc", (2048, 2048))
    )
    assert frames.bad is not None
    gain = load_gain(folder / "movie_flat_gain.mrc")
    assert frames.bad[gain == 0].all()
    total = frames.raw_sum() * gain
    # whatever is flagged is no feature: it exceeds twice, or is below half, the median of its neighbours
    for x, y in frames.hot_pixels:
        box = total[max(y - 2, 0) : y + 3, max(x - 2, 0) : x + 3]
        assert total[y, x] > 1.5 * np.median(box)
    assert frames.n_hot + frames.n_dead < 200
