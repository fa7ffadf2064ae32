"""Template picking: against sums written down here, and on micrographs whose particles are known exactly."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from weft.errors import ItemError
from weft.matching.angles import angular_distance
from weft.matching.scattering import density_from_points
from weft.physics.geometry import euler_matrix
from weft.physics.optics import Optics
from weft.picking import template_matching
from weft.picking.template_filters import prepare_micrograph
from weft.picking.template_matching import TemplateMatchingSettings, match_template, template_diameter
from weft.picking.template_peaks import TemplatePeaks, TemplateThresholdSettings, find_peaks
from weft.picking.template_projections import Projector, centred_images, template_orientations

Floats = NDArray[Any]
OPTICS = Optics(2.5, 300.0, 2.7, 0.07)
SIZE = 400  # px
BLUR = 200.0  # Å², B-factor of the points
#: x, y, z in Å: a hook without symmetry, about 100 Å long.
HOOK = np.array(
    [[-40, 0, 0], [-25, 0, 5], [-10, 0, 8], [5, 0, 5], [20, 5, 0], [30, 20, 0], [30, 35, -10], [15, 0, 25]],
    float,
)
HOOK -= HOOK.mean(0)
VOXEL = 4.0
TEMPLATE = density_from_points(
    torch.from_numpy(np.column_stack([HOOK, np.ones(len(HOOK))])), VOXEL, 48, blur=BLUR
)
QUICK = {"angular_step": 20.0, "low_pass": 20.0}


@dataclass(frozen=True)
class Plane:
    """Defocus that changes evenly: `slope` Å/Å along x, y about the middle of the field."""

    defocus: float = 15000.0
    slope: tuple[float, float] = (0.0, 0.0)
    phase_shift: float = 0.0

    def at(self, xy: Any) -> tuple[Floats, Floats, Floats]:
        away = np.atleast_2d(xy) - 0.5 * SIZE * OPTICS.pixel_size
        middle = self.defocus + away @ np.array(self.slope)
        return middle + 300.0, middle - 300.0, np.full(len(middle), 30.0)


def transfer(ky: Floats, kx: Floats, u: float, v: float, angle: float) -> Floats:
    """sin(χ + φ), written down again."""
    k2, wavelength = ky * ky + kx * kx, OPTICS.wavelength
    z = 0.5 * (u + v) + 0.5 * (u - v) * np.cos(2.0 * (np.arctan2(ky, kx) - np.radians(angle)))
    chi = np.pi * wavelength * z * k2 - 0.5 * np.pi * 2.7e7 * wavelength**3 * k2 * k2
    return np.asarray(np.sin(chi + np.arcsin(0.07)))


def micrograph(xy: Floats, euler: Floats, ctf: Plane, noise: float, seed: int = 0) -> torch.Tensor:
    """Points moved and summed in Fourier space, each particle with the CTF of its own place; protein dark."""
    ky = np.fft.fftfreq(SIZE, OPTICS.pixel_size)[:, None]
    kx = np.fft.rfftfreq(SIZE, OPTICS.pixel_size)[None, :]
    total = np.zeros((SIZE, SIZE // 2 + 1), complex)
    matrices = euler_matrix(*torch.from_numpy(euler).unbind(1)).numpy()
    for place, matrix, u, v, angle in zip(xy, matrices, *ctf.at(xy), strict=True):
        at = HOOK @ matrix.T[:, :2] + place
        waves = np.exp(-2j * np.pi * ky * at[:, 1]) @ np.exp(-2j * np.pi * at[:, :1] * kx)
        total += waves * transfer(ky, kx, u, v, angle)
    total *= np.exp(-0.25 * BLUR * (ky * ky + kx * kx))
    image = -np.fft.irfft2(total, (SIZE, SIZE))
    image += np.random.default_rng(seed).normal(0.0, noise, image.shape)
    return torch.from_numpy((100.0 + image).astype(np.float32))


def arranged(seed: int = 1) -> tuple[Floats, Floats]:
    """Nine places about a grid, and orientations."""
    rng = np.random.default_rng(seed)
    x, y = np.meshgrid([170.0, 500.0, 830.0], [170.0, 500.0, 830.0])
    xy = np.column_stack([x.ravel(), y.ravel()]) + rng.uniform(-40.0, 40.0, (9, 2))
    tilt = np.degrees(np.arccos(rng.uniform(-1.0, 1.0, 9)))
    return xy, np.column_stack([rng.uniform(0.0, 360.0, 9), tilt, rng.uniform(0.0, 360.0, 9)])


def scores_at(peaks: TemplatePeaks, xy: Floats) -> Floats:
    """Of the peak nearest to each place."""
    away, row = cKDTree(peaks.xy).query(xy)
    assert away.max() < 30.0
    return np.asarray(peaks.score[row])


@pytest.mark.parametrize("euler", [(0.0, 0.0, 0.0), (40.0, 70.0, 110.0), (200.0, 130.0, 330.0)])
def test_projections_are_those_of_the_points(euler: tuple[float, float, float]) -> None:
    pixel, box = 5.0, 45
    made = Projector.of(TEMPLATE, VOXEL, pixel, box, 15.0)
    angles = torch.tensor([euler], dtype=torch.float64)
    found = centred_images(made.sections(angles), box)[0].numpy()
    at = HOOK @ euler_matrix(*angles.unbind(1))[0].numpy().T
    k = np.fft.fftfreq(box, pixel)
    ky, kx = k[:, None], np.fft.rfftfreq(box, pixel)[None, :]
    waves = np.exp(-2j * np.pi * ky * at[:, 1]) @ np.exp(-2j * np.pi * at[:, :1] * kx)
    waves *= np.exp(-0.25 * BLUR * (ky * ky + kx * kx)) * (np.hypot(ky, kx) <= 1.0 / 15.0)
    expected = np.roll(np.fft.irfft2(waves, (box, box)), (box // 2, box // 2), (0, 1))
    # a box twice as fine, interpolated linearly: 1 to 2 % of the image's norm is left
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.999
    away = found / np.linalg.norm(found) - expected / np.linalg.norm(expected)
    assert np.linalg.norm(away) < 0.03


def test_pairs_are_turned_by_half_a_turn() -> None:
    grid = template_orientations(30.0)
    assert len(grid.computed) == len(grid.turned) == len(grid) // 2
    some = slice(0, 40, 7)
    one, other = (euler_matrix(*grid.euler[rows[some]].unbind(1)) for rows in (grid.computed, grid.turned))
    np.testing.assert_allclose(other[:, :2], -one[:, :2], atol=1e-12)
    assert not len(template_orientations(24.0).turned)  # 15 turns have no halves
    assert sorted(torch.cat([grid.computed, grid.turned]).tolist()) == list(range(len(grid)))
    assert len(template_orientations(15.0, "D7")) < len(template_orientations(15.0)) / 13


def brute(image: Floats, seen: Floats, kernel: Floats, mask: Floats) -> Floats:
    """Correlations under a mask by sums over pixels, 0 beyond the image."""
    reach = len(mask) // 2
    padded = np.pad(image.astype(np.float64), reach)
    out = np.zeros(image.shape)
    mean = (mask * kernel).sum() / mask.sum()
    spread = np.sqrt((mask * (kernel - mean) ** 2).sum() / mask.sum())
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            part = padded[y : y + len(mask), x : x + len(mask)]
            here = (mask * part).sum() / mask.sum()
            deviation = np.sqrt((mask * (part - here) ** 2).sum() / mask.sum())
            out[y, x] = (mask * (kernel - mean) * part).sum() / (mask.sum() * spread * deviation)
    return np.where(seen, out, -1.0)


@pytest.mark.parametrize(("step", "shape"), [(90.0, (37, 44)), (72.0, (40, 33))])
def test_scores_are_the_correlation_under_the_mask(step: float, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(3)
    image = torch.from_numpy(rng.normal(0.0, 1.0, shape).astype(np.float32)) + 7.0
    optics, ctf = OPTICS.at_pixel_size(8.0), Plane()
    settings = TemplateMatchingSettings(angular_step=step, low_pass=20.0, whiten=False)
    found = match_template(image, optics, TEMPLATE, VOXEL, ctf, settings)
    prepared = prepare_micrograph(image, 8.0, 8.0, 20.0, whiten=False)
    search = template_matching._Search.of(
        prepared,
        optics,
        TEMPLATE,
        VOXEL,
        ctf,
        settings,
        template_diameter(TEMPLATE, VOXEL),
        found.orientations,
    )
    box = search.projector.box
    ky, kx = np.fft.fftfreq(box, 8.0)[:, None], np.fft.rfftfreq(box, 8.0)[None, :]
    # one tile: the CTF of its middle
    middle = np.array([[0.5 * (shape[1] - 1) * 8.0, 0.5 * (shape[0] - 1) * 8.0]])
    u, v, angle = (float(value[0]) for value in ctf.at(middle))
    gain = prepared.gain.at(torch.from_numpy(8.0 * np.hypot(ky, kx)).float()).numpy()
    sections = search.projector.sections(found.orientations.euler)
    factor = torch.from_numpy((-gain * transfer(ky, kx, u, v, angle)).astype(np.float32))
    images = centred_images(sections * factor, box).numpy().astype(np.float64)
    start, mask = box // 2 - search.correlation.reach, search.correlation.mask.numpy().astype(np.float64)
    part = slice(start, start + len(mask))
    all_scores = np.stack(
        [brute(prepared.image.numpy(), prepared.allowed.numpy(), one[part, part], mask) for one in images]
    )
    assert len(all_scores) == len(found.orientations) >= 12
    seen = found.allowed.numpy()
    assert seen[1:-1, 8:-8].all()  # a straight edge hides less than half of the mask
    assert not seen[0].any()
    best = all_scores.max(0)[seen]
    np.testing.assert_allclose(found.cc.numpy()[seen], best, atol=1e-4)  # single precision
    chosen = np.take_along_axis(all_scores, found.number.numpy()[None], 0)[0]
    np.testing.assert_allclose(chosen[seen], best, atol=1e-4)


def test_tiles_give_what_the_whole_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    xy, euler = arranged()
    image = micrograph(xy, euler, Plane(), 0.02)
    settings = TemplateMatchingSettings(angular_step=45.0)
    whole = match_template(image, OPTICS, TEMPLATE, VOXEL, Plane(), settings)
    monkeypatch.setattr(template_matching, "_LARGEST_WINDOW", 80)
    tiles = match_template(image, OPTICS, TEMPLATE, VOXEL, Plane(), settings)
    assert whole.tiles == 1
    assert tiles.tiles >= 4
    np.testing.assert_allclose(tiles.cc, whole.cc, atol=2e-5)  # single precision
    assert (tiles.number == whole.number).float().mean() > 0.999
    assert tiles.sigma == pytest.approx(whole.sigma, rel=0.03)  # of different samples


def test_planted_particles_are_found_with_their_orientations() -> None:
    xy, euler = arranged()
    image = micrograph(xy, euler, Plane(), 0.02)
    found = match_template(image, OPTICS, TEMPLATE, VOXEL, Plane(), TemplateMatchingSettings(**QUICK))
    picks = find_peaks(found).picks()
    assert len(xy) <= len(picks) <= len(xy) + 2
    away, row = cKDTree(picks.xy).query(xy)
    assert len(set(row)) == len(xy)
    # pixels of 6.7 Å, the nearest view up to 16° away
    assert np.sqrt((away**2).mean()) < 5.0
    assert np.median(away) < 3.0
    assert picks.eulers is not None
    wrong = angular_distance(torch.from_numpy(euler), torch.from_numpy(picks.eulers[row]))
    # within a step of 20°, by chance it were 120°; about its long axis the hook hardly changes
    assert float(wrong.median()) < 20.0
    dark = TemplateMatchingSettings(**QUICK, invert=True)
    inverted = match_template(image, OPTICS, -TEMPLATE, VOXEL, Plane(), dark)
    np.testing.assert_allclose(inverted.cc, found.cc, atol=1e-5)


def test_each_tile_has_its_own_ctf() -> None:
    # what 60° do to a micrograph five times as large: the phase at 12 Å is off by 1 rad at the outer places
    ctf = Plane(slope=(8.0, 0.0))
    xy, euler = arranged(2)
    image = micrograph(xy, euler, ctf, 0.02)
    given = {"angular_step": 30.0, "low_pass": 12.0}
    local, mean = (
        find_peaks(
            match_template(image, OPTICS, TEMPLATE, VOXEL, ctf, TemplateMatchingSettings(**given, ctf=which))
        )
        for which in ("local", "mean")
    )
    outer = np.abs(xy[:, 0] - 500.0) > 200.0
    gain = scores_at(local, xy) / scores_at(mean, xy)
    assert gain[outer].mean() > 1.1
    assert gain[~outer].mean() == pytest.approx(1.0, abs=0.1)


def test_artefacts_are_left_out_and_disturb_nothing() -> None:
    xy, euler = arranged()
    image = micrograph(xy, euler, Plane(), 0.02)
    spoilt = image.clone()
    spoilt[:120, 220:] -= 30.0 * torch.rand(120, 180, generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(100, 100, dtype=torch.bool)  # a quarter as fine
    mask[:31, 54:] = True
    settings = TemplateMatchingSettings(**QUICK)
    plain = find_peaks(match_template(image, OPTICS, TEMPLATE, VOXEL, Plane(), settings)).picks()
    found = match_template(spoilt, OPTICS, TEMPLATE, VOXEL, Plane(), settings, excluded=mask)
    picks = find_peaks(found).picks()
    hidden = (picks.xy[:, 0] > 540.0) & (picks.xy[:, 1] < 310.0)
    assert not hidden.any()
    elsewhere = plain.xy[(plain.xy[:, 0] < 480.0) | (plain.xy[:, 1] > 380.0)]
    away, _ = cKDTree(picks.xy).query(elsewhere)
    assert len(elsewhere) >= 6
    assert away.max() < 5.0


def test_noise_has_as_many_picks_as_were_allowed() -> None:
    counts = []
    for seed in range(3):
        noise = torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(seed))
        found = match_template(noise, OPTICS, TEMPLATE, VOXEL, Plane(), TemplateMatchingSettings(**QUICK))
        peaks = find_peaks(found)
        counts.append([len(peaks.picks(TemplateThresholdSettings(false_positives=n))) for n in (1.0, 20.0)])
    one, twenty = np.array(counts).mean(0)
    # of three micrographs, and the Gaussian is not exact at its tail
    assert one <= 3.0
    assert 5.0 <= twenty <= 40.0


def made_peaks(xy: list[tuple[float, float]], score: list[float]) -> TemplatePeaks:
    n = len(score)
    arrays = np.array(xy, float), np.array(score), np.array(score) / 10, np.zeros((n, 3))
    return TemplatePeaks(*arrays, 100.0, 1e6, (1000.0, 1000.0))


def test_picks_of_peaks() -> None:
    peaks = made_peaks([(500, 500), (570, 500), (690, 500), (10, 800), (300, 300)], [9.0, 8.0, 7.0, 6.0, 4.0])
    assert peaks.threshold(TemplateThresholdSettings()) == pytest.approx(
        4.753, abs=0.001
    )  # 1e-6 of a Gaussian
    assert peaks.picks().score.tolist() == [9.0, 7.0, 6.0]
    near = TemplateThresholdSettings(separation=0.5, margin=0.5)
    assert peaks.picks(near).score.tolist() == [9.0, 8.0, 7.0]
    assert len(peaks.picks(TemplateThresholdSettings(threshold=3.0))) == 4
    assert len(peaks.picks(TemplateThresholdSettings(threshold=20.0))) == 0
    assert peaks.picks().diameter == 100.0


def test_what_cannot_be_compared_is_said() -> None:
    image = torch.randn(100, 100, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ItemError, match="CTF is not known"):
        match_template(image, OPTICS, TEMPLATE, VOXEL, None)
    with pytest.raises(ItemError, match="does not fit into a micrograph"):
        match_template(image[:30, :30], OPTICS, TEMPLATE, VOXEL, Plane())
    with pytest.raises(ItemError, match="not a cube"):
        match_template(
            image, OPTICS, TEMPLATE[:10], VOXEL, Plane(), TemplateMatchingSettings(particle_diameter=80)
        )
    with pytest.raises(ItemError, match="not finite"):
        match_template(image / 0.0 * 0.0, OPTICS, TEMPLATE, VOXEL, Plane())
    with pytest.raises(ItemError, match="no contrast"):
        match_template(0.0 * image, OPTICS, TEMPLATE, VOXEL, Plane())
    everywhere = torch.ones(10, 10, dtype=torch.bool)
    with pytest.raises(ItemError, match="nothing is left"):
        match_template(image, OPTICS, TEMPLATE, VOXEL, Plane(), excluded=everywhere)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "pixel", "dose", "low_pass", "least"),
    [("weak", 0.9, 1.0, 15.0, 0.75), ("tilted40", 1.1, 1.8, 20.0, 0.99)],
)
def test_reference_movies(
    reference_data: Path, tmp_path: Path, name: str, pixel: float, dose: float, low_pass: float, least: float
) -> None:
    import weft
    from weft.formats import mrc

    files = reference_data / "reference"
    given = {"pixel_size": pixel, "voltage": 300.0, "cs": 2.7, "amplitude": 0.07, "dose_per_frame": dose}
    session = weft.new(
        tmp_path / "s", frames=files / f"movie_{name}.tif", gain=files / f"movie_{name}_gain.mrc", **given
    )
    assert not session.run(steps=["motion", "ctf"], workers=0).failed
    movie = session[f"movie_{name}"]
    truth = json.loads((files / f"movie_{name}.json").read_text())
    points = torch.from_numpy(np.load(files / f"movie_{name}_mol.npy"))
    template = density_from_points(points, 3.0, 64, blur=100.0)
    image = torch.from_numpy(np.asarray(mrc.read(movie.paths["average"])[0], dtype=np.float32))
    settings = TemplateMatchingSettings(low_pass=low_pass)
    optics = session.settings.input.optics().at_pixel_size(movie.metrics["pixel_size"])
    picks = find_peaks(match_template(image, optics, template, 3.0, movie.ctf, settings)).picks()
    # particles of the average lie where they are in the middle of their tracks
    xy = np.array(truth["particles_xy"]) + np.array(truth["tracks"]).mean((0, 1))
    away, row = cKDTree(xy).query(picks.xy)
    right = away < 0.5 * truth["radius"]
    hits = len(set(row[right]))
    assert 2.0 * hits / (len(picks) + len(xy)) >= least
    assert picks.eulers is not None
    wrong = angular_distance(torch.tensor(truth["eulers"])[row[right]], torch.from_numpy(picks.eulers[right]))
    assert float(wrong.median()) < 12.0  # of a step of 15°
