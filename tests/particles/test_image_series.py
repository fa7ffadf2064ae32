"""Particles cut out of tilt images: exact places, pixel sizes, CTFs and weights."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from weft.errors import ItemError, RequestError
from weft.particles.cutting import ImageSeriesSettings, image_series_batches, visible_tilts
from weft.particles.image_series import ImageSeries, series_transfer
from weft.physics.ctf import ctf
from weft.physics.geometry import TiltGeometry, euler_matrix
from weft.physics.optics import Optics
from weft.tilts.gridding import TiltContrast

PIXEL, SIZE = 2.0, 200
OPTICS = Optics(PIXEL, 300.0, 2.7, 0.07)
PLAIN = {"normalise": False, "invert": False, "tilt_weighting": "none"}


def _geometry(angles: list[float] | None = None, **changes: object) -> TiltGeometry:
    given = {
        "axis": 85.0,
        "defocus": 20000.0,
        "volume_size": (SIZE * PIXEL, SIZE * PIXEL, 200.0),
        "image_size": (SIZE * PIXEL, SIZE * PIXEL),
    }
    return TiltGeometry.of(angles or [0.0], **{**given, **changes})


def _cut(*given: Any, **named: Any) -> ImageSeries:
    return ImageSeries.join(list(image_series_batches(*given, **named)))


def _blobs(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Two Gaussians, the narrowest of which has no power beyond 1/6 Å."""
    return torch.exp(-((x - 203.3) ** 2 + (y - 190.7) ** 2) / 392.0) + 0.7 * torch.exp(
        -((x - 223.3) ** 2 + (y - 215.7) ** 2) / 162.0
    )


def _image() -> torch.Tensor:
    at = torch.arange(SIZE, dtype=torch.float64) * PIXEL
    return _blobs(at[None], at[:, None]).float()[None]


@pytest.mark.parametrize("pixel", [3.0, 3.77, 5.0])
def test_any_pixel_size_and_any_place_between_pixels_is_exact(pixel: float) -> None:
    geometry = _geometry(axis=0.0)
    settings = ImageSeriesSettings(box=32, pixel_size=pixel, diameter=50.0, **PLAIN)
    place = torch.tensor([[203.3, 190.7, 100.0]])
    found = _cut(_image(), PIXEL, geometry, TiltContrast.of(OPTICS, 1), place, torch.zeros(1, 3), settings)
    offset = (torch.arange(32, dtype=torch.float64) - 16) * pixel
    true = _blobs(203.3 + offset[None], 190.7 + offset[:, None]).float()
    difference = found.images[0, 0] - true
    # the background's mean is taken away; what else remains is rounding and the patch's edge
    assert float((difference - difference.mean()).abs().max()) < 1e-4
    assert found.images[0, 0].argmax() == 16 * 32 + 16


def test_centres_land_on_the_middle_pixel_in_every_tilt() -> None:
    torch.manual_seed(1)
    geometry = _geometry([-40.0, 0.0, 25.0], shift=torch.randn(3, 2) * 8.0)
    xyz = torch.tensor([[180.0, 221.0, 77.0], [205.0, 190.0, 140.0]], dtype=torch.float64)
    at = torch.arange(SIZE, dtype=torch.float64) * PIXEL
    for i in range(2):
        images = torch.stack(
            [
                torch.exp(-((at[None] - x) ** 2 + (at[:, None] - y) ** 2) / 100.0)
                for x, y in geometry.project(xyz)[:, i, :2].tolist()
            ]
        ).float()
        settings = ImageSeriesSettings(box=24, pixel_size=3.1, diameter=50.0, **PLAIN)
        found = _cut(
            images, PIXEL, geometry, TiltContrast.of(OPTICS, 3), xyz[i : i + 1], torch.zeros(1, 3), settings
        )
        values = (found.images[0] - found.images[0].amin((1, 2), keepdim=True)).double() ** 2
        grid = torch.arange(24, dtype=torch.float64) - 12
        total = values.sum((1, 2))
        centre = torch.stack([(values.sum(1) @ grid) / total, (values.sum(2) @ grid) / total])
        # squared Gaussians' centres of mass: what the box cuts off of them is less than this
        assert float(centre.abs().max()) < 0.002
        assert not found.shift.any()


def test_poses_defocus_and_weights_are_the_geometry_s() -> None:
    geometry = _geometry([-60.0, 0.0, 60.0], level=(2.0, -3.0), hand=-1.0)
    xyz = torch.tensor([[150.0, 230.0, 60.0]], dtype=torch.float64)
    euler = torch.tensor([[30.0, 50.0, -70.0]], dtype=torch.float64)
    contrast = TiltContrast.of(
        OPTICS, 3, dose=[6.0, 3.0, 9.0], astigmatism=300.0, angle=20.0, weight=[1.0, 0.5, 1.0]
    )
    settings = ImageSeriesSettings(box=16, pixel_size=4.0, diameter=40.0)
    found = _cut(torch.randn(3, SIZE, SIZE), PIXEL, geometry, contrast, xyz, euler, settings)
    torch.testing.assert_close(
        found.rotation[0], (geometry.matrices @ euler_matrix(*euler.T)).float(), atol=1e-6, rtol=0.0
    )
    torch.testing.assert_close(found.defocus[0], geometry.project(xyz)[:, 0, 2].float())
    cosine = geometry.matrices[:, 2, 2].abs()
    torch.testing.assert_close(found.weight[0], (contrast.weight * cosine).float())
    assert found.dose[0].tolist() == [6.0, 3.0, 9.0]
    counts = settings.model_copy(update={"tilt_weighting": "counts"})
    means = torch.tensor([4.0, 16.0, 9.0])
    found = _cut(torch.randn(3, SIZE, SIZE), PIXEL, geometry, contrast, xyz, euler, counts, means=means)
    torch.testing.assert_close(found.weight[0], torch.tensor([0.5, 0.5, 0.75]))


def test_the_transfer_is_the_ctf_with_dose_and_weight() -> None:
    geometry = _geometry([0.0])
    contrast = TiltContrast.of(OPTICS, 1, dose=10.0, phase_shift=30.0, weight=0.7)
    settings = ImageSeriesSettings(box=32, pixel_size=4.0, tilt_weighting="none")
    place = torch.tensor([[200.0, 200.0, 100.0]])
    series = _cut(torch.randn(1, SIZE, SIZE), PIXEL, geometry, contrast, place, torch.zeros(1, 3), settings)
    k = torch.fft.rfftfreq(32, 4.0, dtype=torch.float64)
    true = 0.7 * torch.exp(-10.0 * k * k) * ctf(k * k, 20000.0, OPTICS, 30.0)
    # single precision of a phase of some ten radians
    torch.testing.assert_close(series_transfer(series, 32)[0, 0, 0], true.float(), atol=2e-5, rtol=0.0)


def test_premultiplied_images_are_multiplied_before_they_are_cropped() -> None:
    """Multiplying the whole image, whose edges are far away, is the truth."""
    torch.manual_seed(0)
    geometry = _geometry([0.0], axis=0.0, defocus=8000.0)
    image = torch.randn(1, SIZE, SIZE)
    image -= image.mean()
    contrast = TiltContrast.of(OPTICS, 1, dose=0.0)
    settings = ImageSeriesSettings(
        box=32, pixel_size=PIXEL, diameter=40.0, premultiply=True, padding=3.0, **PLAIN
    )
    place = torch.tensor([[200.0, 200.0, 100.0]])
    cut = _cut(image, PIXEL, geometry, contrast, place, torch.zeros(1, 3), settings)
    ky = torch.fft.fftfreq(SIZE, PIXEL, dtype=torch.float64)[:, None]
    kx = torch.fft.rfftfreq(SIZE, PIXEL, dtype=torch.float64)[None]
    whole = torch.fft.irfft2(torch.fft.rfft2(image[0]) * ctf(ky**2 + kx**2, 8000.0, OPTICS), s=(SIZE, SIZE))
    true = whole[84:116, 84:116].float()
    both = torch.stack([cut.images[0, 0].reshape(-1), true.reshape(-1)])
    # a CTF spreads over λ · defocus · frequency, here 39 Å each way; the patch has 64 Å around the box
    assert float(torch.corrcoef(both)[0, 1]) > 0.98
    small = settings.model_copy(update={"padding": 1.0})
    poor = _cut(image, PIXEL, geometry, contrast, place, torch.zeros(1, 3), small)
    both[0] = poor.images[0, 0].reshape(-1)
    assert float(torch.corrcoef(both)[0, 1]) < 0.9


def test_background_is_normalised_and_density_is_positive() -> None:
    torch.manual_seed(2)
    at = torch.arange(SIZE) * PIXEL
    radius = torch.hypot(at[None] - 200.0, at[:, None] - 200.0)
    image = 40.0 + 3.0 * torch.randn(1, SIZE, SIZE) - 12.0 * (radius < 30.0)
    settings = ImageSeriesSettings(box=64, pixel_size=PIXEL, diameter=80.0, tilt_weighting="none")
    place = torch.tensor([[200.0, 200.0, 100.0]])
    found = _cut(
        image, PIXEL, _geometry(), TiltContrast.of(OPTICS, 1), place, torch.zeros(1, 3), settings
    ).images[0, 0]
    offset = (torch.arange(64) - 32) * PIXEL
    ground = torch.hypot(offset[:, None], offset[None]) > 40.0
    # 2,800 pixels of noise: the mean is known to 0.02, the deviation to 0.013
    assert abs(float(found[ground].mean())) < 0.02
    assert abs(float(found[ground].std()) - 1.0) < 0.02
    assert abs(float(found[28:36, 28:36].mean()) - 4.0) < 0.5


def test_tilts_that_do_not_show_a_particle_are_empty() -> None:
    geometry = _geometry([0.0, 0.0], shift=torch.tensor([[0.0, 0.0], [190.0, 0.0]]))
    place = torch.tensor([[240.0, 200.0, 100.0]], dtype=torch.float64)
    seen = visible_tilts(geometry.project(place), geometry.image_size, 60.0)
    assert seen.tolist() == [[True, False]]
    settings = ImageSeriesSettings(box=32, pixel_size=4.0, diameter=60.0)
    images = torch.randn(2, SIZE, SIZE)
    contrast = TiltContrast.of(OPTICS, 2)
    found = _cut(images, PIXEL, geometry, contrast, place, torch.zeros(1, 3), settings)
    assert found.images[0, 0].any()
    assert not found.images[0, 1].any()
    assert found.weight[0, 1] == 0.0
    assert found.weight[0, 0] == 1.0


def test_batches_together_are_the_whole_and_halves_alternate() -> None:
    torch.manual_seed(3)
    geometry = _geometry([-20.0, 0.0, 20.0])
    images = torch.randn(3, SIZE, SIZE)
    xyz = torch.rand(150, 3) * torch.tensor([200.0, 200.0, 100.0]) + torch.tensor([100.0, 100.0, 50.0])
    contrast, euler = TiltContrast.of(OPTICS, 3), torch.rand(150, 3) * 90.0
    settings = ImageSeriesSettings(box=16, pixel_size=5.0)
    parts = list(image_series_batches(images, PIXEL, geometry, contrast, xyz, euler, settings))
    assert len(parts) > 1
    whole = _cut(images, PIXEL, geometry, contrast, xyz, euler, settings)
    assert len(whole) == 150
    torch.testing.assert_close(ImageSeries.join(parts).images, whole.images, atol=0.0, rtol=0.0)
    assert whole.half[:4].tolist() == [0, 1, 0, 1]
    alone = _cut(images, PIXEL, geometry, contrast, xyz[77:78], euler[77:78], settings)
    # sums of another length in the transforms: single precision
    torch.testing.assert_close(alone.images[0], whole.images[77], atol=1e-4, rtol=0.0)


def test_requests_that_cannot_be_met_are_refused() -> None:
    with pytest.raises(ValueError, match="even number"):
        ImageSeriesSettings(box=33)
    geometry, contrast = _geometry(), TiltContrast.of(OPTICS, 1)
    images, place, euler = torch.randn(1, SIZE, SIZE), torch.full((2, 3), 100.0), torch.zeros(2, 3)

    def cut(settings: ImageSeriesSettings, place: torch.Tensor = place, euler: torch.Tensor = euler) -> None:
        _cut(images, PIXEL, geometry, contrast, place, euler, settings)

    good = ImageSeriesSettings(box=16, pixel_size=4.0)
    with pytest.raises(ItemError, match=r"pixels of 1\.5 Å"):
        cut(ImageSeriesSettings(box=16, pixel_size=1.5))
    with pytest.raises(RequestError, match="does not fit"):
        cut(ImageSeriesSettings(box=16, pixel_size=4.0, diameter=80.0))
    with pytest.raises(ItemError, match="1 of 2 particles"):
        cut(good, torch.tensor([[100.0, 100.0, 100.0], [math.nan, 0.0, 0.0]]))
    with pytest.raises(ItemError, match="one for each"):
        cut(good, euler=torch.zeros(3, 3))
    with pytest.raises(ItemError, match="same tilts"):
        _cut(torch.randn(2, 9, 9), PIXEL, geometry, contrast, place, euler, good)
