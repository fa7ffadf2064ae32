"""How much of the gain's pattern is left in the frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from weft.formats.gain import gain_residual, load_gain, orientations
from weft.movies.frames import Frames, load_frames

RNG = np.random.default_rng(8)
NY, NX = 300, 280
SENSITIVITY = np.clip(1 + 0.05 * RNG.standard_normal((NY, NX)), 0.5, 1.5)
GAIN = (1 / SENSITIVITY).astype("f4")
#: A specimen: smooth, and much stronger than the camera's pattern.
SCENE = 1 + 0.5 * np.sin(np.arange(NX) / 9.0) * np.cos(np.arange(NY) / 7.0)[:, None]
RAW = [RNG.poisson(2.0 * SENSITIVITY * SCENE).astype("u1") for _ in range(20)]


def _measured(gain: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> tuple[float, float]:
    found = gain_residual(gain, RAW)
    assert found is not None
    return found


def test_the_right_gain_leaves_nothing_and_others_print_themselves() -> None:
    residual, error = _measured(GAIN)
    # counting alone: the sum's noise over the gain's deviation and the root of the pixels
    expected = (1 / np.sqrt(40)) / 0.05 / np.sqrt(NY * NX)
    assert error == pytest.approx(expected, rel=0.2)
    assert abs(residual) < 3.5 * error
    for wrong in (GAIN[::-1], GAIN[:, ::-1], np.roll(GAIN, 1, 0)):
        residual, error = _measured(np.ascontiguousarray(wrong))
        assert residual == pytest.approx(1.0, abs=0.1)
    # it should have divided
    residual, error = _measured(SENSITIVITY.astype("f4"))
    assert residual == pytest.approx(2.0, abs=0.1)
    # half of the variance of this one is noise
    noisy = (GAIN * (1 + 0.05 * RNG.standard_normal(GAIN.shape))).astype("f4")
    residual, error = _measured(noisy)
    assert residual == pytest.approx(0.5, abs=0.1)


def test_the_error_is_that_of_the_residual() -> None:
    found = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        raw = [rng.poisson(20.0 * SENSITIVITY[:150, :150]).astype("u1")]
        value = gain_residual(GAIN[:150, :150], raw)
        assert value is not None
        found.append(value)
    values, errors = np.array(found).T
    assert np.mean(errors) == pytest.approx(values.std(), rel=0.3)
    assert abs(values.mean()) < 3 * values.std() / np.sqrt(40)


def test_defects_and_wild_pixels_do_not_decide() -> None:
    gain, raw = GAIN.copy(), [frame.copy() for frame in RAW]
    gain[::17, ::13] = 0.0
    gain[5::40, 5::40] = 30.0
    bad = np.zeros(gain.shape, bool)
    bad[:, 100] = True
    for frame in raw:
        frame[:, 100] = 255
    found = gain_residual(gain, raw, bad)
    assert found is not None
    assert abs(found[0]) < 4 * found[1]


def test_what_cannot_be_told() -> None:
    assert gain_residual(np.ones_like(GAIN), RAW) is None
    assert gain_residual(np.zeros_like(GAIN), RAW) is None
    assert Frames(RAW).gain_residual() is None
    assert Frames(RAW, GAIN).gain_residual() == pytest.approx(_measured(GAIN), abs=1e-3)


def test_simulated_movies(tiny_movies: Path) -> None:
    """Poisson counts of particles in ice, moving, with the gain's own dead pixels."""
    gain = load_gain(tiny_movies / "gain.mrc")
    for path in sorted((tiny_movies / "frames").glob("*.tif")):
        raw = list(load_frames(path)._raw)
        for index, (orientation, turned) in enumerate(orientations(gain)):
            found = gain_residual(np.ascontiguousarray(turned), raw)
            assert found is not None
            if index == 0:
                assert abs(found[0]) < 4 * found[1]
            else:
                # columns share a part of the pattern, which is still right when only rows are flipped
                assert found[0] == pytest.approx(1.0, abs=0.15), orientation
