"""Whole images placed and the axis found, on a specimen of points that shares nothing with the method."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from weft.errors import ItemError
from weft.physics.geometry import TiltGeometry
from weft.tilts.coarse import CoarseAlignment, coarse_alignment
from weft.tilts.reprojection import predict, prediction_matrix, to_frame, to_image

PIXEL = 16.0
SIZE = 128
AXIS = -40.0


def series(
    shifts: float = 100.0, step: float = 6.0, seed: int = 3, dose: float = 100.0
) -> tuple[torch.Tensor, TiltGeometry, NDArray[np.float64]]:
    """Images of 90 dark blobs, counted; their geometry; their places."""
    rng = np.random.default_rng(seed)
    field = SIZE * PIXEL
    xyz = rng.uniform(-0.5, 0.5, (90, 3)) * [field, field, 500.0]
    angles = np.arange(-54.0, 54.1, step)
    shift = rng.uniform(-shifts, shifts, (len(angles), 2))
    shift[len(angles) // 2] = 0.0
    geometry = TiltGeometry.of(angles, axis=AXIS, shift=shift, image_size=(field, field))
    places = geometry.project(torch.from_numpy(xyz)).numpy()[..., :2] / PIXEL
    edges = [np.arange(SIZE + 1) - 0.5] * 2
    images = []
    for at in places:
        hits, _, _ = np.histogram2d(at[:, 1], at[:, 0], bins=edges)  # type: ignore[arg-type]
        images.append(rng.poisson(dose * (1.0 - 3.0 * gaussian_filter(hits, 2.0).clip(0, 0.3))))
    return torch.from_numpy(np.array(images, np.float32)), geometry, xyz


def wrong(found: CoarseAlignment, geometry: TiltGeometry) -> NDArray[np.float64]:
    """(tilts,) Å: differences of shifts, less what a shift of the specimen and its depth explain."""
    difference = (found.shift - geometry.shift).numpy()
    matrices = geometry.matrices.numpy()[:, :2]
    keep = ~found.lost.numpy()
    move = np.linalg.lstsq(matrices[keep].reshape(-1, 3), difference[keep].reshape(-1), rcond=None)[0]
    return np.asarray(np.linalg.norm(difference - matrices @ move, axis=1))


# two pixels of the coarse grid, which is 16 Å
TOLERANCE = 32.0


def test_shifts_and_axis() -> None:
    images, geometry, _ = series()
    found = coarse_alignment(images, geometry.angles, PIXEL, AXIS + 3.0)
    assert found.axis == pytest.approx(AXIS, abs=1.5)
    assert not found.lost.any()
    assert wrong(found, geometry).max() < TOLERANCE


def test_shifts_of_a_quarter_of_the_field() -> None:
    images, geometry, _ = series(shifts=0.25 * SIZE * PIXEL)
    found = coarse_alignment(images, geometry.angles, PIXEL, AXIS, search=0.0)
    assert found.axis == AXIS
    assert wrong(found, geometry)[~found.lost.numpy()].max() < TOLERANCE
    assert int(found.lost.sum()) <= 1


def test_unknown_axis() -> None:
    images, geometry, _ = series()
    found = coarse_alignment(images, geometry.angles, PIXEL, None)
    assert found.axis == pytest.approx(AXIS, abs=1.5)
    assert any("images alone cannot tell" in note for note in found.notes)


def test_black_and_blocked_tilts_and_a_gap() -> None:
    images, geometry, _ = series()
    rng = torch.Generator().manual_seed(1)
    images[5] = 0.0
    images[12] = torch.poisson(torch.full_like(images[12], 20.0), generator=rng)
    left = torch.tensor([t for t in range(len(images)) if t not in (8, 9)])
    images, geometry = images[left], geometry.select(left)
    found = coarse_alignment(images, geometry.angles, PIXEL, AXIS)
    assert torch.nonzero(found.lost)[:, 0].tolist() == [5, 10]
    assert wrong(found, geometry)[~found.lost.numpy()].max() < TOLERANCE
    assert any("is empty" in note for note in found.notes)
    assert any("agrees with no other" in note for note in found.notes)


def test_any_order_of_images() -> None:
    images, geometry, _ = series()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(2))
    straight = coarse_alignment(images, geometry.angles, PIXEL, AXIS, search=0.0)
    mixed = coarse_alignment(images[order], geometry.angles[order], PIXEL, AXIS, search=0.0)
    assert torch.allclose(mixed.shift, straight.shift[order], atol=0.5)


def test_nothing_to_align() -> None:
    with pytest.raises(ItemError, match="fewer than 3"):
        coarse_alignment(torch.zeros(5, 64, 64), torch.arange(5.0), PIXEL, 0.0)
    with pytest.raises(ItemError, match="angle for each"):
        coarse_alignment(torch.zeros(5, 64, 64), torch.arange(4.0), PIXEL, 0.0)


def test_frames_of_the_axis() -> None:
    """Along the axis nothing moves with the tilt: v in the frame is the specimen's y."""
    _, geometry, xyz = series(shifts=0.0)
    seen = geometry.project(torch.from_numpy(xyz))[..., :2] - 0.5 * geometry.image_size
    axis = torch.full((len(geometry),), AXIS)
    uv = to_frame(seen, axis)
    assert torch.allclose(uv[..., 1], torch.from_numpy(xyz[:, 1]).expand_as(uv[..., 1]), atol=1e-9)
    assert torch.allclose(to_image(uv, axis), seen, atol=1e-9)


def test_prediction_of_a_thin_specimen_is_exact() -> None:
    """A flat wave seen at 0° and 30° is itself, stretched by cos 30°."""
    size, step, wavelength = 96, 10.0, 150.0
    u = (torch.arange(size) - size // 2) * step
    window = torch.exp(-0.5 * (u / 120.0) ** 2)
    angles = torch.tensor([30.0])
    matrix = prediction_matrix(
        torch.tensor([0.0]), angles, torch.ones(1, 1), size, step, 1.0, width=1e5, regularisation=0.0
    )
    shrink = float(torch.deg2rad(angles[0]).cos())
    seen = torch.exp(-0.5 * (u / shrink / 120.0) ** 2) * torch.cos(2 * torch.pi * u / shrink / wavelength)
    found = predict(matrix, (seen / shrink)[None, None, None])[0, 0, 0]
    # a specimen 1 Å thick loses 1 Å · k · sin 30°, a third of a per cent
    assert torch.allclose(found, window * torch.cos(2 * torch.pi * u / wavelength), atol=0.01)
