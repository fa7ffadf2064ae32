"""Networks and what they are given: sections, features, poolings, residuals in the particle's frame."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from weft.heterogeneity.consensus import sections
from weft.heterogeneity.decoder import CoordinateDecoder
from weft.heterogeneity.encoders import AlignedEncoder, ImageEncoder, Pooling
from weft.heterogeneity.lattice import Lattice
from weft.heterogeneity.residuals import ResidualGrid
from weft.particles.fourier_volume import padded_transform


def _rotations(m: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(Rotation.random(m, random_state=seed).as_matrix().astype(np.float32))


def test_features_of_a_plane_are_those_of_its_points() -> None:
    lattice = Lattice.of(16, 3.0)
    decoder = CoordinateDecoder(2, 16, 1, 8, 0.3, 16, 0)
    rotation = _rotations(3)
    plane = torch.stack([lattice.ux.float(), lattice.uy.float(), torch.zeros(len(lattice))], 1)
    for image, turned in zip(decoder.plane_features(rotation, lattice, len(lattice)), rotation, strict=True):
        # a row of coordinates times R is Rᵀ times the column
        assert torch.allclose(image, decoder.space_features(plane @ turned), atol=1e-4)


def test_points_of_the_decoder_lie_within_the_particle() -> None:
    decoder = CoordinateDecoder(1, 8, 1, 500, 0.3, 32, 0)
    radius = decoder.points.norm(dim=0)
    assert radius.max() <= 0.3 * 32
    # uniform in a ball: half of them beyond half^(1/3) of its radius
    assert float((radius > 0.3 * 32 * 0.5 ** (1 / 3)).float().mean()) == pytest.approx(0.5, abs=0.07)


def test_a_decoder_begins_with_the_mean_structure() -> None:
    lattice = Lattice.of(16, 3.0)
    decoder = CoordinateDecoder(2, 16, 1, 8, 0.3, 16, 0)
    features = decoder.plane_features(_rotations(2), lattice, 20)
    assert decoder(features, torch.randn(2, 2)).abs().max() == 0.0
    with pytest.raises(ValueError, match="needs z"):
        decoder(features, None)


def test_sections_are_projections() -> None:
    """Against projections of Gaussians that were never transformed."""
    n, width = 32, 2.0
    centres = np.array([[0.0, 0, 0], [4, -2, 3], [-3, 5, -4]])
    at = np.arange(n) - n // 2
    volume = np.zeros((n, n, n))
    for x, y, z in centres:
        r2 = ((at - z) ** 2)[:, None, None] + ((at - y) ** 2)[:, None] + (at - x) ** 2
        volume += np.exp(-r2 / (2 * width**2))
    rotation = _rotations(4, 3)
    images = np.zeros((4, n, n))
    for image, turned in zip(images, rotation.numpy(), strict=True):
        for centre in centres:
            u, v, _ = turned @ centre
            along_x, along_y = (np.exp(-((at - q) ** 2) / (2 * width**2)) for q in (u, v))
            image += np.sqrt(2 * np.pi) * width * along_y[:, None] * along_x
    lattice = Lattice.of(n, 1.0)
    expected = lattice.coefficients(torch.from_numpy(images).float(), torch.zeros(4, 2))
    found = sections(padded_transform(torch.from_numpy(volume).float(), n / 2), rotation, lattice)
    error = (found - expected).abs().square().sum() / expected.abs().square().sum()
    assert float(error) < 1e-3, "trilinear interpolation on a grid twice as fine"


@pytest.mark.parametrize("pooling", ["attention", "mean", "max", "concatenate"])
def test_images_that_are_not_shown_change_nothing(pooling: Pooling) -> None:
    torch.manual_seed(0)
    encoder = ImageEncoder(3, 10, 16, 1, pooling, 5)
    images = torch.randn(2, 5, 10)
    shown = torch.tensor([[True, True, True, False, False], [True] * 5])
    before = encoder(images, shown)
    images[0, 3:] = 1e3
    after = encoder(images, shown)
    assert torch.equal(before[0], after[0])
    assert torch.equal(before[1], after[1])
    if pooling != "concatenate":
        # their order does not matter
        order = torch.tensor([2, 0, 1, 3, 4])
        assert torch.allclose(encoder(images[:, order], shown)[0][0], before[0][0], atol=1e-5)
        # fewer places give the same
        assert torch.allclose(encoder(images[:1, :3], shown[:1, :3])[0][0], before[0][0], atol=1e-5)
    images[0, 1] += 1.0
    assert not torch.equal(encoder(images, shown)[0][0], before[0][0])


def test_an_encoder_has_places_for_so_many_tilts() -> None:
    encoder = ImageEncoder(3, 10, 16, 1, "concatenate", 4)
    with pytest.raises(ValueError, match="5 images, this encoder reads 4"):
        encoder(torch.randn(1, 5, 10), torch.ones(1, 5, dtype=torch.bool))


def test_the_aligned_encoder_begins_with_principal_components() -> None:
    random = np.random.default_rng(0)
    axis = random.normal(size=30)
    axis /= np.linalg.norm(axis)
    along = random.normal(0, 5, 200)
    maps = along[:, None] * axis + random.normal(0, 0.5, (200, 30)) + 7.0
    encoder = AlignedEncoder(2, 6, 30, 16, 1)
    encoder.start_from(torch.from_numpy(maps).float())
    mu, log_var = encoder(torch.from_numpy(maps).float())
    assert abs(np.corrcoef(mu[:, 0].detach(), along)[0, 1]) > 0.99
    assert float(mu[:, 0].detach().std()) == pytest.approx(1.0, abs=0.01)
    assert float(mu[:, 1].detach().std()) < 0.2, "as much less as it has"
    assert (log_var == -1.0).all()
    # fewer particles than components
    encoder.start_from(torch.from_numpy(maps[:4]).float())
    assert torch.isfinite(encoder(torch.from_numpy(maps).float())[0]).all()


def test_residuals_are_the_same_whichever_way_a_particle_lies() -> None:
    """The difference between two structures, seen in two sets of tilts from all around."""
    n = 24
    at = torch.arange(n, dtype=torch.float32) - n // 2
    difference = torch.exp(-((at - 3) ** 2 + (at[:, None] + 2) ** 2 + (at[:, None, None] - 4) ** 2) / 8)
    lattice = Lattice.of(n, 1.0)
    grid = ResidualGrid(lattice, 12, 0.8)
    rotation = _rotations(80, 5)
    values = sections(padded_transform(difference, n / 2), rotation, lattice)
    owner = torch.arange(80) // 40
    sums = grid.sums(values, torch.ones(80, len(lattice)), rotation, owner, 2)
    maps = grid.maps(*sums, 0.5)
    assert maps.shape == (2, grid.features)
    assert np.corrcoef(maps.numpy())[0, 1] > 0.95
    # the brightest place is where the difference is: on a grid of voxels twice as large
    whole = torch.zeros(12, 12, 12)
    centre = torch.arange(12, dtype=torch.float32) - 6
    inside = (centre[:, None, None] ** 2 + centre[:, None] ** 2 + centre**2).sqrt() <= 0.4 * 12
    whole[inside] = maps.mean(0)
    z, y, x = np.unravel_index(int(whole.argmax()), whole.shape)
    assert np.abs(np.array([x, y, z]) - 6 - np.array([1.5, -1.0, 2.0])).max() <= 1.0


def test_images_taken_out_leave_nothing() -> None:
    lattice = Lattice.of(16, 1.0)
    grid = ResidualGrid(lattice, 8, 0.8)
    values = torch.ones(2, len(lattice), dtype=torch.complex64)
    transfer = torch.ones(2, len(lattice))
    transfer[1] = 0.0
    both = grid.sums(values, transfer, _rotations(2), torch.tensor([0, 0]), 1)
    one = grid.sums(values[:1], transfer[:1], _rotations(2)[:1], torch.tensor([0]), 1)
    assert torch.equal(both[0], one[0])
    assert torch.equal(both[1], one[1])
