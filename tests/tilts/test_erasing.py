"""Gold beads taken out of images whose background is known, and out of the reference series."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from test_reconstruction import make, series_contrast
from tomogram_truth import Specimen

from weft.errors import ItemError
from weft.physics.optics import electron_wavelength
from weft.tilts.erasing import BeadErasingSettings, erase_beads, fringe_width

PIXEL, DIAMETER = 4.0, 100.0
RADIUS = 1.2 * DIAMETER / 2 / PIXEL  # of the discs, without fringes: 15 px
# one in the middle, two that overlap, one at the edge, one in the corner, one outside that reaches in
BEADS = np.array(
    [[150.3, 160.8], [60.0, 90.5], [70.2, 104.0], [299.4, 40.0], [2.0, 3.0], [120.0, -9.0]]
)  # x, y, px
FAR = np.array([[-40.0, 100.0], [500.0, 500.0]])


def background(size: int = 300, seed: int = 1) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Slowly varying counts, and noise whose power falls to a tenth at the Nyquist frequency."""
    y, x = np.mgrid[:size, :size] / size
    smooth = 60.0 + 25.0 * x - 15.0 * y + 6.0 * np.sin(4.0 * x + 3.0 * y)
    k2 = np.fft.fftfreq(size)[:, None] ** 2 + np.fft.rfftfreq(size) ** 2
    white = np.random.default_rng(seed).normal(0.0, 7.0, (size, size))
    return smooth, np.fft.irfft2(np.fft.rfft2(white) * np.sqrt(noise_power(np.sqrt(k2))), (size, size))


def noise_power(k: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(0.1 ** (k / 0.5))


def distances(size: int, beads: NDArray[np.float64]) -> NDArray[np.float64]:
    """To the nearest bead, px."""
    y, x = np.mgrid[:size, :size]
    return np.asarray(np.min([np.hypot(x - u, y - v) for u, v in beads], axis=0))


def with_beads(image: NDArray[np.float64], beads: NDArray[np.float64]) -> torch.Tensor:
    """Beads that absorb up to nine tenths, with a bright ring."""
    out = image.copy()
    y, x = np.mgrid[: len(image), : len(image)]
    for u, v in beads:
        r = np.hypot(x - u, y - v)
        out *= 1.0 - 0.9 * np.sqrt(np.clip(1.0 - (r / 12.5) ** 2, 0.0, 1.0)) + 0.1 * (abs(r - 12.5) < 0.5)
    return torch.from_numpy(out.astype(np.float32))


def places(beads: NDArray[np.float64]) -> torch.Tensor:
    return torch.from_numpy(beads * PIXEL)


def test_only_discs_change() -> None:
    smooth, noise = background()
    image = with_beads(smooth + noise, BEADS)
    before = image.clone()
    found, mask = erase_beads(image, places(np.vstack([BEADS, FAR])), DIAMETER, PIXEL)
    assert torch.equal(image, before)
    assert found.dtype == torch.float32
    assert mask.dtype == torch.bool
    r = distances(300, BEADS)
    # a pixel whose centre is on the edge may fall on either side
    np.testing.assert_array_equal(mask.numpy()[abs(r - RADIUS) > 1e-3], (r < RADIUS)[abs(r - RADIUS) > 1e-3])
    assert torch.equal(found[~mask], before[~mask])
    assert torch.isfinite(found).all()
    wide, larger = erase_beads(
        image, places(BEADS), DIAMETER, PIXEL, BeadErasingSettings(margin=1.0, fringes=1.5), fringe=20.0
    )
    # 50 Å and 1.5 fringes of 20 Å are 20 px
    np.testing.assert_array_equal(larger.numpy()[abs(r - 20.0) > 1e-3], (r < 20.0)[abs(r - 20.0) > 1e-3])
    assert torch.equal(wide[~larger], before[~larger])


def test_the_mean_is_that_of_the_surroundings() -> None:
    """Harmonics follow the slope and most of the curvature of the counts, which change by 3 over a disc."""
    smooth, _ = background()
    image, settings = with_beads(smooth, BEADS), BeadErasingSettings(noise=False)
    found, _ = erase_beads(image, places(BEADS), DIAMETER, PIXEL, settings)
    error = np.abs(found.numpy() - smooth)
    # in the corner three quarters of the ring are missing, at an edge a half
    for bead, allowed in zip(BEADS, (0.2, 0.2, 0.2, 0.3, 2.0, 0.5)):
        assert error[distances(300, bead[None]) < RADIUS].max() < allowed, bead
    # a seam would be a step; the greatest is in the corner
    step = np.abs(np.diff(found.numpy() - smooth, axis=0))
    assert step.max() < 0.7


def test_the_noise_is_that_of_the_surroundings() -> None:
    """Variance and spectrum of many filled discs, and no seam at their rims."""
    rng = np.random.default_rng(2)
    step = np.arange(50.0, 551.0, 62.5)
    beads = np.stack(np.meshgrid(step, step), -1).reshape(-1, 2) + rng.uniform(-5.0, 5.0, (81, 2))
    smooth, noise = background(600)
    found, mask = erase_beads(with_beads(smooth + noise, beads), places(beads), DIAMETER, PIXEL)
    rest = found.numpy() - smooth
    inside = mask.numpy()
    # 81 discs of some hundred independent pixels: 2 % from chance, and waves between mean and noise
    assert rest[inside].std() / noise.std() == pytest.approx(1.0, abs=0.08)
    assert abs(rest[inside].mean()) < 0.1 * noise.std()
    # rings of a fifteenth of the radius across the rim: none stands out in mean or variance
    r = distances(600, beads) / RADIUS
    for low in np.arange(0.0, 1.3, 0.1):
        ring = (r >= low) & (r < low + 0.1)
        allowed = 4.0 / np.sqrt(ring.sum())  # pixels are correlated over about two
        assert abs(rest[ring].mean()) < 0.05 + allowed * noise.std()
        assert rest[ring].std() / noise.std() == pytest.approx(1.0, abs=0.06 + allowed)
    # nor do differences of neighbours across the rim
    jump = np.diff(rest, axis=1)
    rim = np.diff(inside.astype(int), axis=1) != 0
    assert jump[rim].std() / np.diff(noise, axis=1).std() == pytest.approx(1.0, abs=0.15)
    # boxes of 20 px inscribed in the discs, beside those of the noise itself
    taper = np.hanning(22)[1:-1, None] * np.hanning(22)[1:-1]
    spectra = []
    for picture in (rest, noise):
        boxes = [picture[v - 10 : v + 10, u - 10 : u + 10] * taper for u, v in np.round(beads).astype(int)]
        spectra.append((abs(np.fft.rfft2(boxes)) ** 2).mean(0))
    k = np.hypot(np.fft.fftfreq(20)[:, None], np.fft.rfftfreq(20))
    for low in (0.1, 0.2, 0.3, 0.4):
        band = (k >= low) & (k < low + 0.1)
        assert spectra[0][band].mean() / spectra[1][band].mean() == pytest.approx(1.0, abs=0.2)


def test_the_noise_belongs_to_a_place_and_a_seed() -> None:
    smooth, noise = background()
    image = with_beads(smooth + noise, BEADS)
    first, _ = erase_beads(image, places(BEADS), DIAMETER, PIXEL)
    again, _ = erase_beads(image, places(BEADS), DIAMETER, PIXEL)
    assert torch.equal(first, again)
    # another bead far away changes nothing for those that are there
    fewer, _ = erase_beads(image, places(BEADS[:3]), DIAMETER, PIXEL)
    assert torch.equal(fewer[50:200, 20:200], first[50:200, 20:200])
    plain, _ = erase_beads(image, places(BEADS), DIAMETER, PIXEL, BeadErasingSettings(noise=False))
    other, _ = erase_beads(image, places(BEADS), DIAMETER, PIXEL, seed=1)
    moved, _ = erase_beads(image, places(BEADS) + 0.02, DIAMETER, PIXEL)
    core = torch.from_numpy(distances(300, BEADS) < 0.75 * RADIUS)
    for one in (other, moved):
        pair = torch.stack([(first - plain)[core], (one - plain)[core]])
        # 2000 pixels
        assert abs(float(torch.corrcoef(pair)[0, 1])) < 0.15
    assert float((first - plain)[core].std()) > 3.0


def test_nothing_to_do() -> None:
    image = torch.rand(60, 60)
    for none in (torch.zeros(0, 2), torch.from_numpy(FAR) * 100.0):
        found, mask = erase_beads(image, none, DIAMETER, PIXEL)
        assert torch.equal(found, image)
        assert not mask.any()


def test_crowds_are_filled_from_further_away() -> None:
    """49 beads side by side: no clean ring for most of them."""
    smooth, noise = background()
    at = np.arange(80.0, 200.0, 18.0)
    crowd = np.stack(np.meshgrid(at, at), -1).reshape(-1, 2)
    found, mask = erase_beads(with_beads(smooth + noise, crowd), places(crowd), DIAMETER, PIXEL)
    assert float(mask.float().mean()) > 0.2
    error = found.numpy()[mask.numpy()] - smooth[mask.numpy()]
    assert abs(error.mean()) < 1.5  # counts of 60: the background's sine over 130 px is not seen from outside
    assert error.std() < 1.3 * noise.std()


def test_clear_words_for_what_cannot_be_done() -> None:
    image = torch.rand(60, 60)
    middle = torch.tensor([[120.0, 120.0]])
    with pytest.raises(ItemError, match=r"not finite"):
        erase_beads(image, middle * torch.nan, DIAMETER, PIXEL)
    with pytest.raises(ItemError, match=r"discs of 300 Å .* 60×60 pixels"):
        erase_beads(image, middle, 250.0, PIXEL)
    everywhere = torch.cartesian_prod(torch.arange(0.0, 240.0, 40.0), torch.arange(0.0, 240.0, 40.0))
    with pytest.raises(ItemError, match="cover the whole image"):
        erase_beads(image, everywhere, DIAMETER, PIXEL)


def test_reference_series(reference_data: Path) -> None:
    """At 20 Å: beads of 15 standard deviations are gone with their rings, particles stay."""
    specimen = Specimen.read(reference_data / "reference" / "tilts_beads")
    geometry = specimen.geometry
    beads = torch.tensor(specimen.truth["beads_xyz_centered"]) + 0.5 * geometry.volume_size
    seen = geometry.project(beads)
    wavelength = electron_wavelength(300.0)
    images, share = [], []
    for t, image in enumerate(specimen.images):
        fringe = fringe_width(wavelength, float(geometry.defocus[t]))
        erased, mask = erase_beads(
            image, seen[t, :, :2], specimen.truth["bead_diameter"], 4.0, fringe=fringe, seed=t
        )
        images.append(erased)
        share.append(float(mask.float().mean()))
    assert 0.03 < np.mean(share) < 0.05  # 18 discs of 164 Å in 2880² Å², less those outside

    z, y, x = np.mgrid[-5:6, -5:6, -5:6]
    shell = np.sqrt(x**2 + y**2 + z**2).astype(int)
    found = []
    for stack in (specimen.images, torch.stack(images)):
        maps, _, _ = make(stack, geometry, series_contrast(specimen), 4.0, pixel_size=20.0)
        volume = maps["map"]
        profiles = []
        for place in np.round(beads.numpy() / 20.0).astype(int):
            box = volume[tuple(slice(max(v - 5, 0), v + 6) for v in place[::-1])]
            if box.shape == shell.shape:
                sums = np.bincount(shell.ravel(), box.ravel()) / np.bincount(shell.ravel())
                profiles.append(sums[:6] / volume.std())
        assert len(profiles) >= 12
        found.append((np.mean(profiles, axis=0), specimen.agreement(volume, 20.0)))
    (bead, before), (nothing, after) = found
    assert bead.max() > 5.0
    # up to 120 Å; 17 places leave 0.1
    assert np.abs(nothing).max() < 0.5
    # a third of the particles lies under a bead in a fifth of the tilts: measured 0.838 and 0.830
    assert after.correlation > before.correlation - 0.012
    assert after.at(60.0, 20.0) > before.at(60.0, 20.0) - 0.015


def test_each_bead_may_have_its_own_size() -> None:
    smooth, noise = background()
    image = with_beads(smooth + noise, BEADS[:2])
    sizes = torch.tensor([DIAMETER, 0.5 * DIAMETER])
    _, mask = erase_beads(image, places(BEADS[:2]), sizes, PIXEL)
    for (x, y), radius in zip(BEADS[:2], (RADIUS, 0.5 * RADIUS), strict=True):
        rows, columns = torch.meshgrid(torch.arange(300), torch.arange(300), indexing="ij")
        near = torch.hypot(columns - x, rows - y) < 40
        assert int((mask & near).sum()) == pytest.approx(np.pi * radius**2, rel=0.03)
