"""Finding, centring and following beads, in images made here and in the reference series."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from alignment_truth import ReferenceSeries, reference_series
from numpy.typing import NDArray

from weft.errors import FitError
from weft.tilts.alignment import AlignmentSettings
from weft.tilts.bead_centres import BeadImages
from weft.tilts.bead_search import find_beads, find_diameter
from weft.tilts.cameras import Cameras
from weft.tilts.fiducials import find_fiducials
from weft.tilts.tracking import track_beads

PIXEL = 5.0


def bead_image(
    places: NDArray[np.float64], diameter: float, *, size: int = 256, seed: int = 0, noise: float = 1.0
) -> torch.Tensor:
    """Dark spheres 4 σ deep at places (n, 2) (pixels from the centre), integrated over 6 × 6 points."""
    fine = (np.arange(size * 6) + 0.5) / 6 - 0.5 - size / 2
    image = np.zeros((size * 6, size * 6))
    radius = 0.5 * diameter / PIXEL
    for x, y in places:
        r2 = (fine[None] - x) ** 2 + (fine[:, None] - y) ** 2
        image -= 4.0 * np.sqrt(np.clip(1.0 - r2 / radius**2, 0.0, None))
    small = image.reshape(size, 6, size, 6).mean(axis=(1, 3))
    small += noise * np.random.default_rng(seed).standard_normal(small.shape)
    return torch.from_numpy(small.astype(np.float32) + 30.0)


def scattered(seed: int, n: int = 12) -> NDArray[np.float64]:
    """Places on a jittered grid: no two beads touch."""
    g = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(np.linspace(-90, 90, 4), np.linspace(-90, 90, 3)), -1).reshape(-1, 2)
    out: NDArray[np.float64] = (grid + g.uniform(-15, 15, grid.shape))[:n]
    return out


@pytest.mark.parametrize("diameter", [50.0, 100.0, 150.0])
def test_all_beads_and_nothing_else_are_found(diameter: float) -> None:
    places = scattered(3)
    image = bead_image(places, diameter)
    found = find_beads(image[None], PIXEL, diameter)
    apart = np.linalg.norm(places[:, None] * PIXEL - found.xy.numpy()[None], axis=-1)
    assert (apart.min(axis=1) < 0.2 * diameter).all()
    assert len(found) == len(places)


@pytest.mark.parametrize("diameter", [50.0, 100.0, 150.0])
def test_the_diameter_is_found(diameter: float) -> None:
    """The best of all diameters is the true one to within the step of the search, 10 %."""
    images = torch.stack([bead_image(scattered(s), diameter, seed=s) for s in (1, 2, 3)])
    scan = find_diameter(images, PIXEL)
    best = max(scan, key=lambda pair: pair[1])
    assert abs(np.log(best[0] / diameter)) < 0.12
    assert best[1] > 0.5


def test_what_is_not_round_is_no_bead() -> None:
    """Rods as long as a bead, and as dark."""
    fine = np.arange(256) - 128.0
    image = np.zeros((256, 256))
    for i, (x, y) in enumerate(scattered(5)):
        turn = 0.5 * i
        u = (fine[None] - x) * np.cos(turn) + (fine[:, None] - y) * np.sin(turn)
        v = -(fine[None] - x) * np.sin(turn) + (fine[:, None] - y) * np.cos(turn)
        image -= 8.0 * np.exp(-((u / 9.0) ** 4) - (v / 3.5) ** 4)
    image += np.random.default_rng(1).standard_normal(image.shape)
    assert len(find_beads(torch.from_numpy(image.astype(np.float32))[None], PIXEL, 100.0)) <= 1


@pytest.mark.parametrize("diameter", [50.0, 100.0, 150.0])
def test_centres(diameter: float) -> None:
    """Started 1.5 or 2 px off, centres come out as well as noise allows: 0.10 to 0.13 px along an axis."""
    images = torch.stack([bead_image(scattered(s), diameter, seed=s) for s in range(6)])
    true = np.concatenate([scattered(s) for s in range(6)]) * PIXEL
    tilt = torch.arange(6).repeat_interleave(12)
    g = torch.Generator().manual_seed(1)
    off = torch.randn(len(true), 2, generator=g, dtype=torch.float64)
    begin = torch.as_tensor(true) + min(2.0 * PIXEL, 0.15 * diameter) * off / off.norm(dim=1, keepdim=True)
    centres = BeadImages(images, PIXEL, diameter).fit(tilt, begin)
    error = (centres.xy.numpy() - true) / PIXEL
    rms = float(np.sqrt((error**2).mean()))
    assert rms < 0.16
    assert rms < 1.3 * float(centres.sigma.median()) / PIXEL
    assert np.abs(error.mean(axis=0)).max() < 3 * rms / np.sqrt(len(true))


def test_a_dark_neighbour_hardly_pulls_a_centre() -> None:
    """A blob twice as dark on the rim of every second bead, in all directions.

    Least squares would be pulled by 1.5 px.
    """
    places = scattered(2)
    image = bead_image(places, 100.0, noise=0.5)
    fine = torch.arange(256) - 128.0
    for i, (x, y) in enumerate(places[::2]):
        u, v = x + 9.0 * np.cos(i), y + 9.0 * np.sin(i)
        image -= 8.0 * torch.exp(-((fine[None] - u) ** 2 + (fine[:, None] - v) ** 2) / 8.0)
    begin = torch.as_tensor(places) * PIXEL
    centres = BeadImages(image[None], PIXEL, 100.0).fit(torch.zeros(12, dtype=torch.int64), begin)
    error = (centres.xy - begin).norm(dim=1) / PIXEL
    assert float(error.max()) < 0.8


@pytest.fixture(scope="module")
def series(reference_data: Path) -> ReferenceSeries:
    return reference_series(reference_data, "tilts_beads")


def test_beads_of_the_reference_series(series: ReferenceSeries) -> None:
    """Low, middle and high tilts: nearly all 18 beads, at most a few others, centres to 0.3 px.

    The noise allows 0.13 px along each axis; particles that lie on a bead add to it.
    """
    some = [0, 10, 20, 30, 40]
    images, true = series.images[some], torch.as_tensor(series.beads[some])
    found = find_beads(images, series.pixel_size, 100.0)
    inside = (true.abs() < 1440.0 - 60.0).all(-1)
    hit = 0
    for t in range(len(some)):
        apart = torch.cdist(true[t][inside[t]], found.xy[found.tilt == t])
        hit += int((apart.min(dim=1).values < 20.0).sum())
    assert hit >= 0.93 * int(inside.sum())
    assert len(found) - hit <= 8
    tilt, bead = torch.nonzero(inside, as_tuple=True)
    centres = BeadImages(images, series.pixel_size, 100.0).fit(tilt, true[tilt, bead] + 5.0)
    error = (centres.xy - true[tilt, bead]).norm(dim=1) / series.pixel_size
    assert float(error.median()) < 0.3


def test_beads_are_followed(series: ReferenceSeries) -> None:
    """Every second tilt, from an axis 2° wrong: tracks hold one bead each, and nearly all of it."""
    some = list(range(0, 41, 2))
    found = find_beads(series.images[some], series.pixel_size, 100.0)
    result = track_beads(found, Cameras.of(series.angles[some], 87.3), (2880.0, 2880.0), 100.0)
    assert bool(result.placed.all())
    true = torch.as_tensor(series.beads[some])
    apart = (true[result.tracks.tilt] - result.tracks.xy[:, None]).norm(dim=-1)
    nearest = apart.argmin(dim=1)
    right = 0
    for marker in range(result.tracks.markers):
        mine = nearest[result.tracks.marker == marker]
        right += int((mine == mine.mode().values).sum())
    assert right >= 0.98 * len(result.tracks)
    assert int((torch.bincount(result.tracks.marker) >= 15).sum()) >= 16


def test_particles_are_no_beads(reference_data: Path) -> None:
    """110 dark particles without a bead among them; also where a diameter is insisted on."""
    plain = reference_series(reference_data, "tilts_plain")
    some = list(range(0, 41, 2))
    for diameter in (0.0, 10.0):
        with pytest.raises(FitError, match="no usable gold beads"):
            find_fiducials(
                plain.images[some],
                plain.angles[some],
                plain.pixel_size,
                plain.axis,
                AlignmentSettings(bead_diameter=diameter),
            )
