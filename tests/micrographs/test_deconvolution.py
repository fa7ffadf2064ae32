"""The filter against its formula written out with NumPy."""

from __future__ import annotations

import numpy as np
import torch

from weft.micrographs.deconvolution import DeconvolutionSettings, deconvolve
from weft.physics.optics import Optics


def test_filter_is_the_papers_formula() -> None:
    rng = np.random.default_rng(0)
    image = rng.normal(size=(96, 120)).astype(np.float32)
    optics = Optics(2.0, 300, 2.7, 0.07)
    got = deconvolve(
        torch.from_numpy(image), (20000.0, 18000.0, 40.0), optics, DeconvolutionSettings()
    ).numpy()
    ky, kx = np.fft.fftfreq(96, 2.0)[:, None], np.fft.fftfreq(120, 2.0)[None]
    f2 = kx**2 + ky**2
    f = np.sqrt(f2)
    z = 19000.0 + 1000.0 * np.cos(2 * (np.arctan2(ky, kx) - np.deg2rad(40.0)))
    c = np.sin(np.pi * 0.0196875 * f2 * z - 0.5 * np.pi * 2.7e7 * 0.0196875**3 * f2**2 + np.arcsin(0.07))
    snr = np.exp(-100 * f) * 1000.0 * (0.5 - 0.5 * np.cos(np.pi * np.minimum(f * 300.0, 1)))
    with np.errstate(divide="ignore"):
        expected = np.fft.ifft2(np.fft.fft2(image - image.mean()) * c / (c**2 + 1 / snr)).real
    # single precision against double, and the wavelength's fifth digit
    np.testing.assert_allclose(got, expected, atol=3e-3 * np.abs(expected).max())


def test_low_frequencies_come_back_with_their_sign() -> None:
    optics = Optics(4.0, 300, 2.7, 0.07)
    y, x = np.mgrid[:128, :128] - 64
    blob = -np.exp(-(x**2 + y**2) / (2 * 6.0**2))
    ky, kx = np.fft.fftfreq(128, 4.0)[:, None], np.fft.fftfreq(128, 4.0)[None]
    f2 = kx**2 + ky**2
    c = np.sin(np.pi * 0.0196875 * f2 * 15000 - 0.5 * np.pi * 2.7e7 * 0.0196875**3 * f2**2 + np.arcsin(0.07))
    seen = np.fft.ifft2(np.fft.fft2(blob) * c).real.astype(np.float32)
    got = deconvolve(torch.from_numpy(seen), (15000.0, 15000.0, 0.0), optics).numpy()
    centred = blob - blob.mean()
    correlation = np.corrcoef(got.ravel(), centred.ravel())[0, 1]
    assert correlation > np.corrcoef(seen.ravel(), centred.ravel())[0, 1]
    assert got[64, 64] < 0  # protein stays dark
