"""CTF fits of simulated tilt series: noise as a specimen, with every place's own defocus."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from simulated_tilts import OPTICS, Series, dose_symmetric, series

from weft.defocus import tilt_model
from weft.defocus.tilt_fit import Freedom, TiltSolution
from weft.defocus.tilt_planes import gradients, level_derivatives
from weft.defocus.tilt_series import TiltCTF, TiltCTFSettings, fit_tilt_ctf, series_spectra
from weft.errors import FitError


def rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def errors_of(fit: TiltCTF, truth: Series) -> np.ndarray:
    return fit.defocus - truth.defocus


@pytest.mark.parametrize("hand", [1.0, -1.0])
def test_gradients_are_those_of_the_turned_plane(hand: float) -> None:
    truth = series(60, 7, level=(5.0, -7.0), hand=hand)
    expected = np.array([truth.gradient(t) for t in range(7)])
    np.testing.assert_allclose(gradients(truth.geometry(), np.zeros(2)), expected, atol=1e-9)
    # a geometry without levels, corrected by them, is the same
    flat = truth.geometry(level=(0.0, 0.0))
    np.testing.assert_allclose(gradients(flat, np.array([5.0, -7.0])), expected, atol=1e-9)
    step = np.array([1e-4, 0.0])
    slope = (gradients(flat, step) - gradients(flat, -step)) / 2e-4
    np.testing.assert_allclose(level_derivatives(flat, np.zeros(2))[..., 0], slope, atol=1e-8)


def test_slopes_are_the_derivatives_of_the_log_likelihood() -> None:
    truth = series(40, 3, seed=1)
    spectra = series_spectra(truth.images(), OPTICS)
    curves = tilt_model.initial_curves(spectra)
    freedom = Freedom(np.linspace(0, 1, 3), 1, False, 15.0)
    waves = TiltSolution.start(truth.geometry(), freedom, curves, truth.defocus + 150.0, 0.1).waves(spectra)
    waves = replace(waves, astigmatism=np.full((3, 2), 120.0))
    before = tilt_model.TEXTURE
    tilt_model.TEXTURE = 0.0  # down-weighting of texture is no derivative of the likelihood
    try:
        slopes = tilt_model.evaluate(spectra, OPTICS, curves, waves)

        def value(dz: float = 0.0, da: float = 0.0, dp: float = 0.0) -> np.ndarray:
            moved = replace(
                waves,
                defocus=waves.defocus + dz,
                astigmatism=waves.astigmatism + np.array([da, 0.0]),
                phase=waves.phase + dp,
            )
            return tilt_model.evaluate(spectra, OPTICS, curves, moved, slopes=False).log_likelihood.sum(1)

        total = slopes.gradient.sum(1)
        # D, which depends on defocus a little, is held in the derivatives; sums are in single precision
        np.testing.assert_allclose(total[:, 0], (value(dz=20) - value(dz=-20)) / 40, rtol=0.05, atol=0.02)
        np.testing.assert_allclose(total[:, 1], (value(da=20) - value(da=-20)) / 40, rtol=0.05, atol=0.02)
        np.testing.assert_allclose(
            total[:, 3], (value(dp=0.02) - value(dp=-0.02)) / 0.04, rtol=0.05, atol=20.0
        )
    finally:
        tilt_model.TEXTURE = before


def test_defocus_astigmatism_and_inclination() -> None:
    """Scattered defoci, astigmatism that drifts, and an inclination that the geometry does not know."""
    n = 11
    dose = dose_symmetric(np.linspace(-50, 50, n))
    delta = 450.0 + 100.0 * dose / dose.max()
    truth = series(50, n, level=(6.0, -5.0), seed=2, delta=delta, angle=30.0)
    fit = fit_tilt_ctf(truth.images(), truth.geometry(level=(0.0, 0.0)), OPTICS, dose)
    assert fit.verdict == "good"
    assert fit.fitted.all()
    # expected errors are 45 to 70 Å; two of them for the mean square
    assert rms(errors_of(fit, truth)) < 110.0
    assert rms(errors_of(fit, truth) / fit.defocus_error) < 2.0  # and they are honest
    assert float(np.median(fit.defocus_error)) < 120.0
    # an expected error of some 30 Å for a component (half of U − V)
    np.testing.assert_allclose(fit.delta, delta, atol=170.0)
    assert np.abs(fit.angle - 30.0).max() < 12.0
    found = np.array([fit.level_x, fit.level_y]) - [6.0, -5.0]
    assert (np.abs(found) < 3.0 * np.array(fit.level_error)).all()
    assert max(fit.level_error) < 3.0
    assert fit.series_resolution < 11.0
    assert fit.picture is not None
    assert fit.picture.shape == (512, 512)
    # an alignment that knows better is believed more
    near, near_error = fit.level_beside(0.01)
    assert max(map(abs, near)) < 0.01
    assert max(near_error) < 0.011
    data = json.loads(json.dumps(fit.to_dict()))
    again = TiltCTF.from_dict(data)
    np.testing.assert_allclose(again.defocus, fit.defocus, atol=0.01)
    np.testing.assert_allclose(again.curves[3].model, fit.curves[3].model, atol=1e-4)
    assert again.metrics().keys() == fit.metrics().keys()
    assert again.fitted.all()


def test_phase_plate() -> None:
    truth = series(40, 9, mean=12000.0, scatter=500.0, phase=70.0, seed=4)
    images = truth.images()
    fit = fit_tilt_ctf(images, truth.geometry(), OPTICS, settings=TiltCTFSettings(fit_phase=True))
    # phase and defocus trade against each other: 2° are worth 60 Å at 15 Å resolution
    np.testing.assert_allclose(fit.phase, 70.0, atol=8.0)
    assert rms(errors_of(fit, truth)) < 300.0
    known = fit_tilt_ctf(images, truth.geometry(), OPTICS, settings=TiltCTFSettings(phase_shift=70.0))
    assert rms(errors_of(known, truth)) < 120.0


def test_black_broken_and_excluded_tilts_cost_only_themselves() -> None:
    truth = series(45, 9, seed=7)
    images = truth.images()
    images[2] = 0.0
    images[5] = float("nan")
    include = np.ones(9, dtype=bool)
    include[7] = False
    fit = fit_tilt_ctf(images, truth.geometry(), OPTICS, include=include)
    lost = np.isin(np.arange(9), [2, 5, 7])
    assert (fit.fitted == ~lost).all()
    assert rms(errors_of(fit, truth)[~lost]) < 120.0
    np.testing.assert_allclose(
        fit.defocus[2], np.interp(truth.angles[2], truth.angles[~lost], fit.defocus[~lost])
    )
    assert (fit.quality[lost] == 0.0).all()
    assert (fit.quality[~lost] > 0.5).all()
    assert (fit.defocus_error[lost] > 5.0 * fit.defocus_error[~lost].max()).all()
    assert len(fit.notes) == 3
    assert fit.notes[0].startswith("tilt 2 ")
    for value in (fit.defocus, fit.delta, fit.angle, fit.defocus_error, fit.resolution, fit.evidence):
        assert np.isfinite(value).all()


def test_noise_is_called_bad() -> None:
    truth = series(50, 9, signal=0.0, seed=9)
    fit = fit_tilt_ctf(truth.images(), truth.geometry(), OPTICS)
    assert fit.verdict == "bad"
    assert not fit.fitted.any()
    assert (fit.quality == 0.0).all()
    assert fit.score == 0.0
    assert fit.series_resolution == pytest.approx(fit.fit_range[0])
    assert fit.defocus_error.min() > 10000.0  # all that was searched is possible
    assert "no tilt shows rings" in fit.notes[0]
    assert np.isfinite(fit.defocus).all()
    assert (fit.delta == 0.0).all()


def test_a_search_that_stops_short_says_so() -> None:
    truth = series(30, 5, mean=27000.0, scatter=300.0, seed=8)
    settings = TiltCTFSettings(defocus_min=2.8)
    fit = fit_tilt_ctf(truth.images(), truth.geometry(), OPTICS, settings=settings)
    assert rms(errors_of(fit, truth)) < 150.0  # near enough that the fit gets there
    assert "outside of the searched 2.8 to 8 µm" in fit.notes[-1]


def test_three_tilts_and_images_one_at_a_time() -> None:
    """Half images in a sequence give what their sums in a stack give; three tilts are enough for a fit."""
    truth = series(30, 3, seed=6)
    images = truth.images()
    fit = fit_tilt_ctf(images, truth.geometry(), OPTICS)
    assert rms(errors_of(fit, truth)) < 150.0
    halves = [torch.stack([0.25 * image, 0.75 * image]) for image in images]
    other = fit_tilt_ctf(halves, truth.geometry(), OPTICS)
    np.testing.assert_allclose(other.defocus, fit.defocus, atol=1.0)


def test_requests_that_cannot_be_met() -> None:
    truth = series(30, 3)
    images = truth.images()
    with pytest.raises(FitError, match="3 images"):
        fit_tilt_ctf(images, series(30, 5).geometry(), OPTICS)
    with pytest.raises(FitError, match="dose has 2"):
        fit_tilt_ctf(images, truth.geometry(), OPTICS, [0.0, 3.0])
    with pytest.raises(FitError, match="excluded"):
        fit_tilt_ctf(images, truth.geometry(), OPTICS, include=[False] * 3)
    with pytest.raises(FitError, match="no tilt of the series holds any contrast"):
        fit_tilt_ctf(torch.ones(3, 400, 400), truth.geometry(), OPTICS)
    with pytest.raises(FitError, match="binning"):
        fit_tilt_ctf(images, truth.geometry(), replace(OPTICS, pixel_size=14.0))
    with pytest.raises(FitError, match="one size"):
        fit_tilt_ctf([images[0], images[1][:300], images[2]], truth.geometry(), OPTICS)
    with pytest.raises(ValueError, match="range_max"):
        TiltCTFSettings(range_min=10.0, range_max=12.0)
