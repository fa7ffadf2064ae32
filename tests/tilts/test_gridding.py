"""Which coefficients of which images share a place in Fourier space, and with which weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from weft.physics.geometry import TiltGeometry
from weft.physics.optics import Optics
from weft.tilts.gridding import Overlaps, Sections, TiltContrast, radial_transfer, transfer_volume
from weft.tilts.reconstruction import magnification


def geometry_of(angles: np.ndarray, **more: object) -> TiltGeometry:
    given: dict[str, object] = {
        "axis": 30.0,
        "defocus": 25000.0,
        "volume_size": (3000.0, 3000.0, 1000.0),
        "image_size": (3000.0, 3000.0),
        "level": (3.0, 1.0),
    }
    return TiltGeometry.of(angles, **(given | more))  # type: ignore[arg-type]


ANGLES = np.arange(-48.0, 49.0, 6.0)


@pytest.fixture(scope="module")
def sections() -> Sections:
    return Sections.of(24, (10.0, 9.0), geometry_of(ANGLES).matrices, 0.05, magnification(4.0, 25.0))


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
def test_both_products_agree(sections: Sections) -> None:
    overlaps = Overlaps.between(sections, 200.0)
    torch.manual_seed(1)
    weights = torch.rand(3, len(ANGLES), *sections.kx.shape)
    torch.testing.assert_close(overlaps.gather(weights), overlaps.gather_plain(weights))


def test_equal_weights_count_sections(sections: Sections) -> None:
    """With w = 1 the sum is Harauz and van Heel's count, which needs no neighbours' coefficients."""
    thickness = 200.0
    found = Overlaps.between(sections, thickness).gather(torch.ones(1, len(ANGLES), *sections.kx.shape))[0]
    m = sections.matrices.numpy()
    k = np.stack([sections.kx.numpy(), sections.ky.numpy()], -1)
    inside = sections.k.numpy() < 0.045  # further out a neighbour may lie beyond the last row of its patch
    for t in range(len(ANGLES)):
        space = k @ m[t, :2]
        expected = sum(np.maximum(0.0, 1.0 - abs(space @ m[q, 2]) * thickness) for q in range(len(ANGLES)))
        np.testing.assert_allclose(found[t].numpy()[inside], expected[inside], rtol=1e-5)
    assert not found[:, ~sections.within].any()


def test_neighbours_are_looked_up_where_they_lie(sections: Sections) -> None:
    """Weights that are a smooth function of the place in space come back as their own smoothed selves."""

    def value(space: np.ndarray) -> np.ndarray:
        return np.asarray(2.0 + np.cos(60.0 * space @ [1.0, 0.4, -0.3]))

    m = sections.matrices.numpy()
    k = np.stack([sections.kx.numpy(), sections.ky.numpy()], -1)
    weights = torch.from_numpy(np.stack([value(k @ m[t, :2]) for t in range(len(m))])).float()
    overlaps = Overlaps.between(sections, 300.0)
    mean = overlaps.gather(weights[None])[0] / overlaps.gather(torch.ones_like(weights)[None])[0]
    inside = sections.k < 0.045
    # the nearest coefficient is at most half a step (0.004 / Å) away in each direction, and so is the plane
    error = (mean - weights)[:, inside].abs()
    assert float(error.mean()) < 0.03
    assert float(error.max()) < 0.4


def test_frequencies_of_distorted_images() -> None:
    """The image shows at A·d what lies at d: the wave k of the specimen is Aᵀ⁻¹ k in the image."""
    a = magnification(6.0, 40.0)
    sections = Sections.of(16, (10.0, 12.0), torch.eye(3, dtype=torch.float64)[None], 0.05, a)
    k = torch.stack([sections.kx[3, 2], sections.ky[3, 2]])
    assert torch.allclose(sections.to_index @ k, torch.tensor([2.0, 3.0], dtype=torch.float64))
    image = torch.linalg.inv(a.T) @ k
    assert torch.allclose(image, torch.tensor([2 / 160.0, 3 / 192.0], dtype=torch.float64))


def test_magnification_is_that_of_averages() -> None:
    """Pixels 2 % larger along y: what lies 100 Å along y is shown 99 Å from the centre, in nominal Å."""
    a = magnification(2.0, 90.0)
    shown = a @ torch.tensor([0.0, 100.0], dtype=torch.float64)
    assert shown.numpy() == pytest.approx([0.0, 100.0 / 1.01])
    assert (a @ torch.tensor([100.0, 0.0], dtype=torch.float64)).numpy() == pytest.approx([100.0 / 0.99, 0.0])


def test_contrast_has_ctf_and_astigmatism() -> None:
    optics = Optics(1.0, 300.0, 2.7, 0.1)
    contrast = TiltContrast.of(optics, 2, astigmatism=[0.0, 800.0], angle=30.0, phase_shift=[0.0, 50.0])
    k, azimuth = 1 / 12.0, np.deg2rad(75.0)
    kx, ky = (torch.tensor([[k * f(azimuth)]]) for f in (np.cos, np.sin))
    constant, slope = contrast.phase(kx, ky)
    wl = optics.wavelength
    for t, (defocus, plate) in enumerate(((20000.0, 0.0), (20000.0 + 400.0 * np.cos(np.pi / 2), 50.0))):
        chi = np.pi * wl * defocus * k**2 - 0.5 * np.pi * 2.7e7 * wl**3 * k**4
        expected = chi + np.deg2rad(plate) + np.arcsin(0.1)
        assert float(constant[t, 0, 0] + 20000.0 * slope[0, 0]) == pytest.approx(expected, abs=1e-4)


def test_reliability_follows_dose_and_tilt() -> None:
    geometry = geometry_of(np.array([0.0, 60.0]), level=(0.0, 0.0))
    contrast = TiltContrast.of(Optics(1.0), 2, dose=[0.0, 100.0], weight=[1.0, 0.5])
    k = torch.tensor([0.05])
    found = contrast.reliability(k, geometry, "warp", True)[:, 0]
    assert found.numpy() == pytest.approx([1.0, 0.5 * 0.5 * np.exp(-100.0 * 0.05**2)], rel=1e-5)
    assert contrast.reliability(k, geometry, "none", False)[:, 0].numpy() == pytest.approx([1.0, 0.5])


def test_transfer_is_the_ctf_on_a_section_and_nothing_in_the_wedge() -> None:
    geometry = geometry_of(np.array([0.0]), level=(0.0, 0.0), axis=0.0)
    optics = Optics(1.0, 300.0, 2.7, 0.07)
    contrast = TiltContrast.of(optics, 1)
    place = 0.5 * geometry.volume_size + torch.tensor([0.0, 0.0, 300.0], dtype=torch.float64)
    found = transfer_volume(
        place, 32, 10.0, geometry, contrast, regularisation=0.0, dose_model="none", cosine=False
    )
    # |c|, at the depth of the place: 300 Å along the beam
    k2 = (torch.fft.rfftfreq(32, 10.0) ** 2).double()
    c = torch.sin(
        np.pi * optics.wavelength * k2 * (25300.0 - 0.5 * 2.7e7 * optics.wavelength**2 * k2) + np.arcsin(0.07)
    )
    assert torch.allclose(found[0, 0], c.abs().float(), atol=1e-4)
    assert not found[1:].any()
    assert float(
        transfer_volume(
            place, 32, 10.0, geometry, contrast, power=2, regularisation=0.0, dose_model="none"
        ).max()
    ) == pytest.approx(1.0)


def test_radial_transfer() -> None:
    geometry = geometry_of(ANGLES)
    contrast = TiltContrast.of(Optics(1.0, 300.0, 2.7, 0.07), len(ANGLES), astigmatism=500.0)
    k = torch.tensor([0.0, 0.02])
    wl = contrast.optics.wavelength
    c = np.sin(np.pi * wl * 0.02**2 * (25000.0 - 0.5 * 2.7e7 * wl**2 * 0.02**2) + np.arcsin(0.07))
    assert radial_transfer(k, geometry, contrast).numpy() == pytest.approx([0.07, c], rel=1e-3)
    assert float(radial_transfer(torch.tensor([0.06]), geometry, contrast, flipped=False)[0]) < 0.0
