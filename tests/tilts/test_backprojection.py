"""Sampling of images by voxels: the compiled kernel against plain torch, and whole images back-projected."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tomogram_truth import locate, tilt_images

from weft.physics import fourier
from weft.physics.geometry import TiltGeometry
from weft.physics.optics import Optics
from weft.tilts.backprojection import (
    backproject,
    backproject_plain,
    interpolation_response,
    oversample,
)
from weft.tilts.gridding import TiltContrast
from weft.tilts.images import TiltImages
from weft.tilts.reconstruction import ReconstructionSettings, reconstruct
from weft.tilts.volumes import VolumeGrid


@pytest.mark.parametrize("offset", [0.0, -9.3, 17.4], ids=["inside", "over one edge", "over the other"])
def test_both_kernels_agree(offset: float) -> None:
    torch.manual_seed(1)
    images = torch.randn(5, 40, 44)
    shape = (6, 9, 11)
    first = 12.0 + 3.0 * torch.randn(5, 2, dtype=torch.float64) + offset
    step = torch.rand(5, 3, 2, dtype=torch.float64) * 1.2 - 0.2
    out = torch.ones(shape)
    backproject(out, images, first, step)
    # both work in single precision: places differ by 1e-6 of 40 px, grey values by their slope times that
    torch.testing.assert_close(out - 1.0, backproject_plain(shape, images, first, step), atol=2e-4, rtol=0)


def test_threads_change_nothing() -> None:
    torch.manual_seed(2)
    images, shape = torch.randn(2, 300, 300), (130, 100, 100)
    first = torch.tensor([[10.0, 20.0], [30.0, 5.0]], dtype=torch.float64)
    step = torch.rand(2, 3, 2, dtype=torch.float64)
    before = torch.get_num_threads()
    found = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        found.append(torch.zeros(shape))
        backproject(found[-1], images, first, step)
    torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])


def test_oversampled_images_are_sampled_without_loss() -> None:
    """A wave at 0.8 of Nyquist, between the pixels: its amplitude comes back within 3 %."""
    n, k = 40, 16
    x = torch.arange(n, dtype=torch.float64)
    wave = torch.cos(2 * torch.pi * k * x / n).expand(n, n).float()
    spectrum = fourier.rfft2(wave) / interpolation_response((n, n))
    fine = oversample(spectrum, (n, n))
    places = torch.linspace(8.0, 24.0, 500, dtype=torch.float64)
    out = torch.zeros(1, 1, 500)
    first = torch.tensor([[16.0, 20.0]], dtype=torch.float64)
    step = torch.zeros(1, 3, 2, dtype=torch.float64)
    step[0, 0, 0] = 2.0 * float(places[1] - places[0])
    backproject(out, fine[None], first, step)
    expected = torch.cos(2 * torch.pi * k * places / n).float()
    amplitude = float((out[0, 0] * expected).sum() / (expected**2).sum())
    assert amplitude == pytest.approx(1.0, abs=0.03)
    # what is left is the interpolation's own images of the wave: 6 % of it, and less, at most in step
    assert float((out[0, 0] - expected).abs().max()) < 0.15


ANGLES = np.arange(-60.0, 61.0, 3.0)
POINTS = np.array([[320.0, 300.0, 150.0], [203.0, 411.0, 97.0], [455.0, 188.0, 214.0]])


def back_projected(method: str, images: torch.Tensor, geometry: TiltGeometry) -> np.ndarray:
    pixel = 8.0
    grid = VolumeGrid.of(geometry.volume_size, pixel)
    volume = np.zeros(grid.shape, np.float32)

    def write(name: str, first: int, slab: torch.Tensor) -> None:
        volume[first : first + len(slab)] = slab.numpy()

    settings = ReconstructionSettings(pixel_size=pixel, method=method, dose_weighting="none")
    contrast = TiltContrast.of(Optics(pixel, 300.0, 2.7, 0.1), len(geometry))
    reconstruct(TiltImages.prepare(iter(images), pixel, pixel), geometry, contrast, grid, write, settings)
    return volume


@pytest.fixture(scope="module")
def geometry() -> TiltGeometry:
    return TiltGeometry.of(
        ANGLES,
        axis=20.0,
        shift=np.random.default_rng(3).normal(0, 15, (len(ANGLES), 2)),
        defocus=30000.0,
        volume_size=(640.0, 608.0, 304.0),
        image_size=(800.0, 800.0),
        level=(2.0, -3.0),
    )


@pytest.mark.parametrize("method", ["wbp", "sirt"])
def test_whole_images_bring_points_back(method: str, geometry: TiltGeometry) -> None:
    images = tilt_images(POINTS, geometry, (100, 100), 8.0, sigma=14.0)
    volume = back_projected(method, images, geometry)
    for place in POINTS / 8.0:
        # the wedge draws points out along z, so their place there is known less well
        assert locate(volume, place) == pytest.approx(place, abs=0.1)
    assert volume.max() > 5.0 * volume.std()


def test_flipped_phases_are_those_of_the_specimen(geometry: TiltGeometry) -> None:
    """The CTF changes its sign at 24 Å: without a correction waves beyond are upside down."""
    optics = Optics(8.0, 300.0, 2.7, 0.1)
    expected = back_projected("wbp", tilt_images(POINTS, geometry, (100, 100), 8.0, sigma=4.0), geometry)
    images = tilt_images(POINTS, geometry, (100, 100), 8.0, sigma=4.0, optics=optics)
    k = np.sqrt(sum(np.square(np.meshgrid(*map(np.fft.fftfreq, expected.shape), indexing="ij")))) / 8.0
    beyond = (k > 1 / 23.0) & (k < 1 / 18.0)

    def agreement(method: str) -> float:
        a, b = (np.fft.fftn(v)[beyond] for v in (expected, back_projected(method, images, geometry)))
        return float((a * b.conj()).real.sum() / np.sqrt((abs(a) ** 2).sum() * (abs(b) ** 2).sum()))

    assert agreement("wbp") < -0.6
    assert agreement("wbp_flipped") > 0.8
