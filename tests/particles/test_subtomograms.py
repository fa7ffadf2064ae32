"""Sub-tomograms against points whose images are made exactly, one coefficient after the other."""

from __future__ import annotations

import math

import pytest
import torch

from weft.particles.cutting import ImageSeriesSettings, image_series_batches
from weft.particles.image_series import series_transfer
from weft.particles.subtomograms import SubTomogramMaker, SubTomograms, SubTomogramSettings
from weft.physics.geometry import TiltGeometry
from weft.physics.optics import Optics
from weft.tilts.gridding import TiltContrast

PIXEL, SIZE, BOX = 4.0, 128, 32
PLACE = torch.tensor([[260.3, 243.9, 131.7]], dtype=torch.float64)
#: x, y, z (Å from the particle's centre) and weight: no symmetry, no mirror image of itself.
POINTS = torch.tensor(
    [[20.0, 5.0, -8.0, 1.0], [-14.0, 18.0, 6.0, 1.4], [-6.0, -20.0, 15.0, 0.8], [9.0, 2.0, 22.0, 1.2]],
    dtype=torch.float64,
)


def _geometry() -> TiltGeometry:
    angles = torch.arange(-60.0, 61.0, 6.0)
    return TiltGeometry.of(
        angles,
        axis=83.0,
        defocus=15000.0,
        volume_size=(SIZE * PIXEL, SIZE * PIXEL, 260.0),
        image_size=(SIZE * PIXEL, SIZE * PIXEL),
        level=(1.0, -2.0),
    )


def _contrast(tilts: int) -> TiltContrast:
    return TiltContrast.of(Optics(PIXEL), tilts, dose=torch.linspace(3.0, 40.0, tilts))


def _images(geometry: TiltGeometry, contrast: TiltContrast) -> torch.Tensor:
    """Points with the CTF, the damage and the tilt weight of the particle, dark."""
    settings = ImageSeriesSettings(box=SIZE, pixel_size=PIXEL, normalise=False)
    empty = torch.zeros(len(geometry), SIZE, SIZE)
    series = next(image_series_batches(empty, PIXEL, geometry, contrast, PLACE, torch.zeros(1, 3), settings))
    # the whole image is wider than the particle may be near an edge: weights of a small one
    series.weight[0] = geometry.matrices[:, 2, 2].float()
    transfer = series_transfer(series, SIZE)[0].double()
    ky = torch.fft.fftfreq(SIZE, PIXEL, dtype=torch.float64)[:, None]
    kx = torch.fft.rfftfreq(SIZE, PIXEL, dtype=torch.float64)[None]
    at = geometry.project(PLACE + POINTS[:, :3])[..., :2]
    phase = at[:, :, 0, None, None] * kx + at[:, :, 1, None, None] * ky
    spectra = (POINTS[:, 3, None, None] * torch.exp(-2j * math.pi * phase)).sum(1) * transfer
    return -torch.fft.irfft2(spectra, s=(SIZE, SIZE)).float()


def _reconstructed(images: torch.Tensor, weighting: str = "white", normalise: bool = False) -> SubTomograms:
    geometry = _geometry()
    settings = ImageSeriesSettings(box=BOX, pixel_size=PIXEL, diameter=80.0, normalise=False)
    patch = settings.padded(BOX)
    maker = SubTomogramMaker.of(
        *(geometry.matrices, BOX, patch, PIXEL, 80.0),
        SubTomogramSettings(weighting=weighting, normalise=normalise),
    )
    batches = image_series_batches(
        *(images, PIXEL, geometry, _contrast(len(geometry)), PLACE, torch.zeros(1, 3), settings),
        uncropped=True,
    )
    return maker.reconstruct(next(batches))


def _truth(mirrored: bool = False) -> torch.Tensor:
    """Transform of the points, with the centre at voxel n//2: (n, n, n//2+1)."""
    k = torch.fft.fftfreq(BOX, PIXEL, dtype=torch.float64)
    half = torch.fft.rfftfreq(BOX, PIXEL, dtype=torch.float64)
    z, y, x = torch.meshgrid(k, k, half, indexing="ij")
    xyz = POINTS[:, :3] * torch.tensor([1.0, 1.0, -1.0 if mirrored else 1.0])
    at = xyz + (BOX // 2) * PIXEL
    phase = sum(at[:, i, None, None, None] * v for i, v in enumerate((x, y, z)))
    assert isinstance(phase, torch.Tensor)
    return (POINTS[:, 3, None, None, None] * torch.exp(-2j * math.pi * phase)).sum(0)


def _sphere(diameter: float) -> torch.Tensor:
    x = torch.arange(BOX) - BOX // 2
    radius = (x[:, None, None] ** 2 + x[:, None] ** 2 + x**2).float().sqrt() * PIXEL
    return (0.5 * diameter + PIXEL - radius).div(PIXEL).clamp(0.0, 1.0)


def _similarity(volume: torch.Tensor, spectrum: torch.Tensor) -> float:
    true = torch.fft.irfftn(spectrum, s=(BOX,) * 3).float()
    mask = _sphere(100.0)
    return float(torch.corrcoef(torch.stack([(volume * mask).reshape(-1), (true * mask).reshape(-1)]))[0, 1])


@pytest.mark.parametrize("weighting", ["white", "amplitude", "filtered"])
def test_a_volume_is_its_ctf_volume_times_the_specimen(weighting: str) -> None:
    found = _reconstructed(_images(_geometry(), _contrast(21)), weighting)
    # what remains is the specimen's thickness, over which sections blur a little less than the box says
    assert _similarity(found.volumes[0], _truth() * found.ctf[0]) > 0.97
    assert _similarity(found.volumes[0], _truth(mirrored=True) * found.ctf[0]) < 0.8
    # scale and sign too: light on dark, and as the CTF volume says
    true = torch.fft.irfftn(_truth() * found.ctf[0], s=(BOX,) * 3).float() * _sphere(100.0)
    ratio = float((found.volumes[0] * true).sum() / true.square().sum())
    assert abs(ratio - 1.0) < 0.05


def test_premultiplied_volumes_hold_their_ctf_twice() -> None:
    found = _reconstructed(_images(_geometry(), _contrast(21)), "premultiplied")
    assert float(found.ctf.min()) >= 0.0
    assert _similarity(found.volumes[0], _truth() * found.ctf[0].square()) > 0.97


def test_the_missing_wedge_is_empty() -> None:
    found = _reconstructed(_images(_geometry(), _contrast(21)))
    ctf = found.ctf[0]
    strong = float(ctf.abs().max())
    # along the beam, from the third voxel on, nothing was measured but the box's own sidelobes
    assert float(ctf[3:14, 0, 0].abs().max()) < 0.1 * strong


def test_white_weights_make_white_noise() -> None:
    torch.manual_seed(0)
    power: dict[str, list[torch.Tensor]] = {"white": [], "amplitude": []}
    images = [torch.randn(21, SIZE, SIZE) for _ in range(12)]
    for weighting, spectra in power.items():
        for noise in images:
            found = _reconstructed(noise, weighting)
            spectra.append(torch.fft.rfftn(found.volumes[0]).abs().square())
    strength = found.ctf[0].abs()
    # the first 5 shells are where all sections overlap, shells 9 to 13 are where they have parted
    k = torch.fft.fftfreq(BOX, 1.0 / BOX)
    radius = (k[:, None, None] ** 2 + k[:, None] ** 2 + torch.arange(BOX // 2 + 1) ** 2).sqrt()
    measured = strength > 0.3 * strength.max()
    low, high = (radius > 1.5) & (radius < 4.5) & measured, (radius > 8.5) & (radius < 13.5) & measured
    ratio = {name: float(sum(s)[low].mean() / sum(s)[high].mean()) for name, s in power.items()}  # type: ignore[index]
    assert 0.7 < ratio["white"] < 1.4
    assert ratio["amplitude"] < 0.6 * ratio["white"]


def test_background_is_normalised() -> None:
    torch.manual_seed(1)
    images = _images(_geometry(), _contrast(21)) + 0.01 * torch.randn(21, SIZE, SIZE)
    volume = _reconstructed(images, normalise=True).volumes[0]
    x = (torch.arange(BOX) - BOX // 2).float() * PIXEL
    ground = volume[(x[:, None, None] ** 2 + x[:, None] ** 2 + x**2).sqrt() > 40.0]
    assert abs(float(ground.mean())) < 1e-4
    assert abs(float(ground.std()) - 1.0) < 1e-3


def test_images_of_another_kind_are_refused() -> None:
    geometry = _geometry()
    settings = ImageSeriesSettings(box=BOX, pixel_size=PIXEL)
    maker = SubTomogramMaker.of(geometry.matrices, BOX, settings.padded(BOX), PIXEL, 80.0)
    images = torch.zeros(21, SIZE, SIZE)
    cropped = next(
        image_series_batches(images, PIXEL, geometry, _contrast(21), PLACE, torch.zeros(1, 3), settings)
    )
    with pytest.raises(ValueError, match="images of 64 pixels"):
        maker.reconstruct(cropped)
