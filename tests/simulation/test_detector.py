"""The camera: gain, dead and hot pixels, counting statistics."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from weft.errors import GainError
from weft.simulation.detector import count_frames, random_gain, random_hot_pixels
from weft.simulation.movie import MovieSimulationSettings, simulate_gain, simulate_movie


def settings(**changes):
    base = {"width": 200, "height": 160, "frames": 30, "dose_per_frame": 1.5, "pixel_size": 1.2}
    return MovieSimulationSettings(**{**base, **changes})


def blank(s):
    return (np.ones((s.height, s.width), np.float32) for _ in range(s.frames))


def test_counts_are_poisson_around_exposure_over_gain():
    s = settings(dead_pixels=50)
    rng = np.random.default_rng(0)
    gain = random_gain(s, rng)
    counts = count_frames(blank(s), gain, np.ones_like(gain), s, rng)
    assert counts.dtype == np.uint8
    alive = gain > 0
    exposure = 1.5 * 1.2**2
    n = alive.sum() * s.frames
    # four standard errors of a mean of n counts
    assert counts[:, alive].mean() == pytest.approx(
        exposure * (1 / gain[alive]).mean(), abs=4 * np.sqrt(exposure / n)
    )
    corrected = counts.sum(axis=0) * gain
    assert corrected[alive].mean() == pytest.approx(exposure * s.frames, rel=0.005)
    # over the frames, each pixel's variance is its mean
    variance = counts[:, alive].var(axis=0, ddof=1).mean()
    assert variance == pytest.approx(counts[:, alive].mean(), rel=0.02)
    assert (counts[:, ~alive] == 0).all()
    assert (~alive).sum() == 50


def test_gain_varies_as_asked_and_multiplies():
    s = settings(gain_variation=0.05, dead_pixels=7, frames=200)
    rng = np.random.default_rng(1)
    gain = random_gain(s, rng)
    assert gain.dtype == np.float32
    assert gain[gain > 0].std() == pytest.approx(0.05, rel=0.1)
    counts = count_frames(blank(s), gain, np.ones_like(gain), s, rng).sum(axis=0)
    alive = gain > 0
    # raw counts go against the gain; raw x gain has only its counting noise left, 1/sqrt(432)
    assert np.corrcoef(counts[alive], gain[alive])[0, 1] < -0.5
    assert (counts * gain)[alive].std() / (counts * gain)[alive].mean() == pytest.approx(
        1 / np.sqrt(200 * 1.5 * 1.44), rel=0.05
    )
    assert abs(np.corrcoef((counts * gain)[alive], gain[alive])[0, 1]) < 0.05


def test_a_perfect_camera():
    gain = random_gain(settings(gain_variation=0.0, dead_pixels=0), np.random.default_rng(0))
    assert (gain == 1.0).all()


def test_hot_pixels_overflow_to_uint16():
    s = settings(hot_pixels=9, dose_per_frame=10.0, ice_thickness=0.0, coverage=0.0, frames=2)
    movie = simulate_movie(s, 0)
    assert movie.hot.shape == (9, 2)
    assert movie.frames.dtype == np.uint16
    x, y = movie.hot.T
    mean = 10.0 * 1.44
    assert (movie.frames[:, y, x] > 5 * mean).all()
    rest = np.ones_like(movie.gain, bool)
    rest[y, x] = False
    assert movie.frames[:, rest].max() < 5 * mean
    # none of the hot pixels is a dead one
    assert (movie.gain[y, x] > 0).all()
    hot = random_hot_pixels(s, movie.gain, np.random.default_rng(0))
    assert (hot > 1).sum() == 9


def test_a_camera_of_another_size_is_refused():
    s = settings(frames=1)
    gain = simulate_gain(settings(width=100), 0)
    with pytest.raises(GainError, match=r"100 x 160 .* 200 x 160"):
        simulate_movie(s, 0, gain)


def test_frames_without_noise_are_the_expectation():
    s = settings(noise="none", frames=1, dose_per_frame=50.0, gain_variation=0.0, dead_pixels=0)
    gain = np.ones((160, 200), np.float32)
    intensity = np.linspace(0.5, 1.5, 160 * 200, dtype=np.float32).reshape(160, 200)
    counts = count_frames([intensity], gain, gain, s, np.random.default_rng(0))
    np.testing.assert_array_equal(counts[0], np.rint(np.float32(50.0 * 1.44) * intensity))


def test_settings_have_limits():
    for wrong in ({"voltage": 3.0}, {"frames": 0}, {"dead_pixels": 99_999}, {"defokus": 1.0}):
        with pytest.raises(ValidationError):
            MovieSimulationSettings(**{"width": 64, "height": 64, **wrong})
