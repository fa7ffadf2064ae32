"""Alignment without fiducials against exact truth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation
from tilts.alignment_truth import alignment_errors, reference_series

from weft.physics.geometry import TiltGeometry
from weft.tilts.alignment import AlignmentSettings, TiltAlignment
from weft.tilts.cameras import Cameras
from weft.tilts.patch_tracks import PatchTracks, Response
from weft.tilts.patches import align_by_patches


def believable(found: TiltAlignment, true: float) -> None:
    """What is expected is within a factor of 2 of what is true: it stands for one draw of the noise."""
    expected = found.expected_error[found.aligned].square().mean().sqrt()
    assert 0.5 * true < float(expected) < 2.0 * true + 1.0


def test_plain_series(reference_data: Path) -> None:
    """The issue's targets are 12 Å, 0.5° and 2°; 0.9 Å, 0.04° and 0.5° were measured."""
    series = reference_series(reference_data, "tilts_plain")
    found = align_by_patches(series.images, series.angles, series.pixel_size, series.axis + 1.0)
    errors = alignment_errors(found.geometry, series)
    assert found.verdict == "good", found.notes
    assert errors.rms < 2.0
    assert errors.tilt_rms.max() < 4.0
    assert found.axis == pytest.approx(series.axis, abs=0.25)
    assert max(abs(v) for v in errors.level) < 2.0
    assert abs(float(found.geometry.level_x) - series.truth["level"][0]) < 2.0
    assert abs(float(found.geometry.level_y) - series.truth["level"][1]) < 2.0
    figures = found.metrics()
    assert figures["halves_error"] < 2.0
    assert figures["markers"] > 60
    believable(found, errors.rms)


@pytest.mark.slow
def test_plain_series_with_a_black_tilt_a_gap_and_no_axis(reference_data: Path) -> None:
    series = reference_series(reference_data, "tilts_plain")
    images = series.images.clone()
    images[12] = torch.poisson(torch.full_like(images[12], 2.0), generator=torch.Generator().manual_seed(1))
    found = align_by_patches(images, series.angles, series.pixel_size, None)
    assert torch.nonzero(~found.aligned)[:, 0].tolist() == [12]
    assert (found.axis - series.axis + 90.0) % 180.0 - 90.0 == pytest.approx(0.0, abs=0.25)
    errors = alignment_errors(found.geometry, series)
    kept = np.delete(errors.tilt_rms, 12)
    assert kept.max() < 5.0
    believable(found, float(np.sqrt((kept**2).mean())))


def texture() -> tuple[torch.Tensor, TiltGeometry, NDArray[np.float64]]:
    """Counted images, 320 px of 8 Å, of 30000 overlapping blobs in 500 Å: nothing stands out."""
    rng, n, pixel = np.random.default_rng(1), 320, 8.0
    xyz = np.c_[rng.uniform(-0.8, 0.8, (30000, 2)) * n * pixel, rng.uniform(-250.0, 250.0, 30000)]
    strength = rng.normal(1.0, 0.5, len(xyz))
    angles = np.arange(-60.0, 60.1, 3.0)
    shift = rng.normal(0.0, 40.0, (len(angles), 2))
    geometry = TiltGeometry.of(
        angles, axis=84.0, shift=shift, image_size=(n * pixel, n * pixel), level=(2.0, -3.0)
    )
    edges = [np.arange(n + 1) - 0.5] * 2
    density = []
    for at in geometry.project(torch.from_numpy(xyz)).numpy()[..., :2] / pixel:
        hits, _, _ = np.histogram2d(at[:, 1], at[:, 0], bins=edges, weights=strength)  # type: ignore[arg-type]
        blurred = gaussian_filter(hits, 25.0 / pixel)
        density.append(blurred - blurred.mean())
    scale = density[len(angles) // 2].std()
    counts = [rng.poisson(60.0 * (1.0 - 0.06 * one / scale).clip(0.0)) for one in density]
    return torch.from_numpy(np.array(counts, np.float32)), geometry, xyz[np.abs(xyz[:, :2]).max(1) < 1000.0]


@pytest.mark.slow
def test_continuous_texture() -> None:
    """Whole images are placed to 2.5 Å; patches must not spoil that, nor pretend to."""
    images, geometry, xyz = texture()
    found = align_by_patches(images, geometry.angles, 8.0, 83.0)
    places = xyz[:200]
    true = geometry.project(torch.from_numpy(places)).numpy()[..., :2]
    centre = 0.5 * found.geometry.volume_size.numpy()

    def wrong(p: NDArray[np.float64]) -> NDArray[np.float64]:
        moved = places @ Rotation.from_rotvec(p[:3]).as_matrix().T + p[3:] + centre
        seen: NDArray[np.float64] = found.geometry.project(torch.from_numpy(moved)).numpy()[..., :2] - true
        return seen

    best = least_squares(
        lambda p: wrong(p).ravel() / 10.0, np.zeros(6), x_scale=np.r_[0.05, 0.05, 0.05, 50, 50, 50]
    ).x
    rms = float(np.sqrt((wrong(best) ** 2).sum(-1).mean()))
    assert rms < 4.0  # 2.6 and 3.6 Å for two draws
    assert found.axis == pytest.approx(84.0, abs=0.6)
    believable(found, rms)


def drift(size: float) -> tuple[torch.Tensor, torch.Tensor, Cameras]:
    """e: the same slow movement (Å, u and v) of all places; stage angles; cameras."""
    angles = torch.arange(-60.0, 61.0, 3.0, dtype=torch.float64)
    slow = size * torch.deg2rad(2.0 * angles).sin()
    return torch.stack([slow, slow], -1).expand(30, -1, -1), angles, Cameras.of(angles, 0.0)


@pytest.mark.parametrize("looseness", [0.0, 10.0])
def test_slow_drift_is_found_as_far_as_it_is_known(looseness: float) -> None:
    """d hardly shows a slow drift. Known exactly it is found; known worse than its size, it is not."""
    true, angles, cameras = drift(4.0)
    usable = torch.ones(len(angles), dtype=torch.bool)
    response = Response.of(angles, usable, 300.0, looseness)
    d = torch.einsum("ts,nsc->ntc", response.apart, true)
    assert d.square().mean() < 0.05 * true.square().mean()
    seen = torch.ones(d.shape[:2], dtype=torch.bool)
    found = PatchTracks(torch.zeros(30, 3, dtype=torch.float64), d, d, seen.double(), seen)
    error = response.common(response.errors(found, cameras, cameras)) - response.common(true)
    left = float(error.square().sum(-1).mean().sqrt() / response.common(true).square().sum(-1).mean().sqrt())
    assert left < 0.02 if looseness == 0.0 else left > 0.9
    # what `left` says of errors of that size is about that; it knows only how slow they usually are
    said = float(response.left(4.0).square().mean().sqrt() / 4.0)
    assert said == pytest.approx(left, abs=0.2)


def test_noise_is_not_called_aligned() -> None:
    rng = torch.Generator().manual_seed(4)
    images = torch.poisson(torch.full((15, 128, 128), 40.0), generator=rng)
    found = align_by_patches(images, torch.arange(-42.0, 43.0, 6.0), 16.0, 0.0, AlignmentSettings())
    assert found.verdict == "bad"
    assert found.notes
