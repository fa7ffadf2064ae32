"""Averages and alignment of particle images, against a molecule whose images and map are exact sums."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from particle_truth import exact_map, molecule, simulate, to_matrix
from scipy.spatial.transform import Rotation

from weft.errors import ItemError
from weft.formats import mrc
from weft.formats.star import Table, write_star
from weft.particles.alignment import AlignmentSettings, iterate
from weft.particles.averaging import AveragingSettings, HalfSums, average
from weft.particles.fourier_volume import (
    Sums,
    insert,
    insert_plain,
    padded_transform,
    sample,
)
from weft.particles.fsc import crossing, half_map_fsc, shell_correlation, soft_sphere
from weft.particles.pose_scores import Observed, score_plain, score_poses
from weft.particles.pose_search import (
    Poses,
    PoseSettings,
    ball,
    moved,
    refine_poses,
)
from weft.particles.spectra import Band
from weft.physics.fourier import rfft3, shells_3d
from weft.physics.geometry import euler_angles, euler_matrix, rotation_angle
from weft.physics.symmetry import symmetry_operators

SIZE, PIXEL = 48, 5.0
PLAIN = AveragingSettings(dose_weighting="none", mask_diameter=150.0)


@pytest.fixture(scope="module")
def points() -> np.ndarray:
    return molecule()


@pytest.fixture(scope="module")
def truth(points: np.ndarray) -> torch.Tensor:
    return exact_map(points, SIZE, PIXEL)


@pytest.fixture(scope="module")
def mask() -> torch.Tensor:
    return soft_sphere(SIZE, 30.0, 5.0)


def perturbed(euler: np.ndarray, degrees: float, angstrom: float, seed: int = 5) -> Poses:
    """Poses off by so much, root mean square."""
    rng = np.random.default_rng(seed)
    n = len(euler)
    turn = Rotation.from_rotvec(rng.normal(0.0, degrees / math.sqrt(3.0), (n, 3)), degrees=True).as_matrix()
    matrices = to_matrix(torch.from_numpy(euler)) @ torch.from_numpy(turn)
    offset = torch.from_numpy(rng.normal(0.0, angstrom / math.sqrt(3.0), (n, 3)))
    return replace(Poses.given(euler_angles(matrices)), offset=offset)


def errors(poses: Poses, euler: np.ndarray) -> tuple[float, float]:
    """Degrees and Å, root mean square, without a motion that all particles share."""
    true = to_matrix(torch.from_numpy(euler))
    found = poses.matrices
    u, _, v = torch.linalg.svd((found.transpose(1, 2) @ true).mean(0))
    turned = rotation_angle(found @ (u @ v), true)
    places = (found.transpose(1, 2) @ poses.offset[..., None])[..., 0]
    shifted = (places - places.mean(0)).norm(dim=1)
    return float(turned.square().mean().sqrt()), float(shifted.square().mean().sqrt())


# ------------------------------------------------------------------------------------------------ kernels


def test_both_ways_to_insert_agree() -> None:
    torch.manual_seed(1)
    band = Band.of(16, 4.0)
    rows = torch.from_numpy(Rotation.random(5, random_state=1).as_matrix()[:, :2]).float()
    values = torch.randn(5, len(band), dtype=torch.complex64)
    weights = torch.rand(5, len(band))
    one, two = Sums.empty(16), Sums.empty(16)
    insert(one, rows, band.ux, band.uy, values, weights)
    insert_plain(two, rows * 1.0, band.ux, band.uy, values, weights)
    # single precision: a corner's share of a point that lies on a grid line may go to its neighbour
    torch.testing.assert_close(one.data, two.data, atol=2e-4, rtol=0)
    torch.testing.assert_close(one.weight, two.weight, atol=2e-4, rtol=0)
    # what was put in is there, in the half space and its mate
    assert float(one.weight.sum()) == pytest.approx(float(weights.sum()), rel=1e-5)


def test_both_scores_agree_and_differentiate(truth: torch.Tensor) -> None:
    torch.manual_seed(2)
    band = Band.of(SIZE, PIXEL, 20.0)
    transform = padded_transform(truth, float(band.radius.max()))
    tilt = torch.from_numpy(Rotation.random(6, random_state=2).as_matrix()).float().reshape(2, 3, 3, 3)
    data = torch.randn(2, 3, len(band), dtype=torch.complex64)
    seen = Observed(
        band, tilt, data, torch.rand(2, 3, len(band)), torch.tensor([[1, 1, 1], [1, 0, 1]]).bool()
    )
    candidates = torch.from_numpy(Rotation.random(8, random_state=3).as_matrix()).reshape(2, 4, 3, 3)
    fast, plain = score_poses(seen, transform, candidates), score_plain(seen, transform, candidates)
    for name in ("product", "gradient", "hessian", "power"):
        a, b = getattr(fast, name), getattr(plain, name)
        # sums of 3,000 single-precision terms
        torch.testing.assert_close(a, b, atol=1e-4 * float(b.abs().max()), rtol=0)
    step = torch.tensor([[0.05, 0.0, 0.0], [0.0, 0.03, -0.04]], dtype=torch.float64)
    before, after = (score_plain(seen.shifted(s * step), transform, candidates).product for s in (-1.0, 1.0))
    slope = (fast.gradient.double() @ step[:, :, None])[..., 0]
    # a central difference of 0.1 Å where the shortest wave is 20 Å: its own error is 2e-4 of the slope
    torch.testing.assert_close(
        (after - before).double() / 2.0, slope, atol=3e-3 * float(slope.abs().max()), rtol=0
    )


def test_sections_of_a_map_are_its_exact_projections(points: np.ndarray, truth: torch.Tensor) -> None:
    band = Band.of(SIZE, PIXEL, 12.0)
    transform = padded_transform(truth, float(band.radius.max()))
    matrix = Rotation.random(random_state=4).as_matrix()
    rows = torch.from_numpy(matrix[:2]).float()
    found = sample(transform, rows[0] * band.ux[:, None] + rows[1] * band.uy[:, None])
    xy = points[:, :3] @ matrix[:2].T / (SIZE * PIXEL)
    phase = np.exp(-2j * np.pi * (band.ux.numpy()[:, None] * xy[:, 0] + band.uy.numpy()[:, None] * xy[:, 1]))
    exact = phase @ points[:, 3] * np.exp(-25.0 * band.k.numpy() ** 2)
    error = np.linalg.norm(found.numpy() - exact) / np.linalg.norm(exact)
    # trilinear on a grid twice as fine leaves sinc²(7/8) / sinc²(1/8) = 2 % of each copy of what lies a
    # quarter of the box from its middle
    assert error < 0.03


# ----------------------------------------------------------------------------------------------- averages


@pytest.mark.parametrize("premultiplied", [False, True])
def test_an_average_is_the_molecule(
    points: np.ndarray, truth: torch.Tensor, mask: torch.Tensor, premultiplied: bool
) -> None:
    series, _ = simulate(points, 120, premultiplied=premultiplied)
    found = average(series, PLAIN, mask)
    shells = shells_3d(SIZE)
    one, two = (rfft3(v * mask) for v in (found.halves.mean(0), truth))
    correlation = shell_correlation(found.map * mask, truth * mask)
    # noise-free: what differs is gridding, near zeros of all CTFs
    assert float(correlation[1:20].min()) > 0.999
    for shell in (4, 8, 12, 16, 20):
        inside = shells == shell
        ratio = float((one.conj() * two).real[inside].sum() / two.abs().square()[inside].sum())
        assert ratio == pytest.approx(1.0, abs=0.02)
    assert found.fsc.resolution() == pytest.approx(2.0 * PIXEL * SIZE / (SIZE - 2), rel=1e-3)
    assert found.particles == (60, 60)


def test_dose_is_undone_where_it_has_been_done(
    points: np.ndarray, truth: torch.Tensor, mask: torch.Tensor
) -> None:
    series, _ = simulate(points, 120, damage=True)
    right = average(series, AveragingSettings(mask_diameter=150.0), mask)
    wrong = average(series, PLAIN, mask)
    inside = shells_3d(SIZE) == 16  # 15 Å: exp(−33/225) of the amplitude is left by the last of the images

    def ratio(volume: torch.Tensor) -> float:
        one, two = rfft3(volume * mask), rfft3(truth * mask)
        return float((one.conj() * two).real[inside].sum() / two.abs().square()[inside].sum())

    assert ratio(right.halves.mean(0)) == pytest.approx(1.0, abs=0.02)
    assert ratio(wrong.halves.mean(0)) < 0.95


def test_the_fsc_tells_the_resolution_against_the_truth(
    points: np.ndarray, truth: torch.Tensor, mask: torch.Tensor
) -> None:
    series, _ = simulate(points, 40, noise=12.0)
    found = average(series, PLAIN, mask)
    against = shell_correlation(found.halves.mean(0) * mask, truth * mask)
    k = found.fsc.k
    # a half-map FSC of 0.143 is a correlation of 0.5 with the truth (Rosenthal & Henderson 2003)
    signal = found.fsc.corrected[2:20].mean()
    expected = torch.sqrt(
        2.0 * found.fsc.corrected.clamp(min=0.0) / (1.0 + found.fsc.corrected.clamp(min=0.0))
    )
    assert 0.05 < float(signal) < 0.9, "the case is neither hopeless nor perfect"
    # shells of 100 to 5,000 coefficients under a mask that correlates them: a tenth, on average
    assert float((expected - against)[2:20].abs().mean()) < 0.1
    assert len(k) == SIZE // 2


def test_symmetry_is_worth_as_many_particles(mask: torch.Tensor) -> None:
    unit = molecule(20, 50.0, seed=3)
    turned = [(unit[:, :3] @ g.T) for g in symmetry_operators("D2").numpy()]
    whole = np.concatenate([np.column_stack([xyz, unit[:, 3]]) for xyz in turned])
    exact = exact_map(whole, SIZE, PIXEL)
    series, _ = simulate(whole, 20, noise=10.0)

    def agreement(symmetry: str) -> float:
        settings = PLAIN.model_copy(update={"symmetry": symmetry})
        found = average(series, settings, mask).halves.mean(0)
        return float(shell_correlation(found * mask, exact * mask)[4:20].mean())

    assert agreement("D2") > agreement("C1") + 0.05
    one = average(series, PLAIN.model_copy(update={"symmetry": "D2"}), mask).map
    # D2's axes are the box's: turned by half a turn about z (the voxel n//2 stays) it is the same
    flipped = one.flip(1, 2).roll((1, 1), (1, 2))
    torch.testing.assert_close(
        one[1:, 1:, 1:], flipped[1:, 1:, 1:], atol=1e-3 * float(one.abs().max()), rtol=0
    )


def test_batches_add_up_to_the_whole(points: np.ndarray, mask: torch.Tensor) -> None:
    series, _ = simulate(points, 12, noise=1.0)
    sums = HalfSums(SIZE, PLAIN)
    for part in torch.arange(12).split(5):
        sums.add(series.select(part))
    whole, parts = average(series, PLAIN, mask), sums.finish(PIXEL, mask)
    torch.testing.assert_close(
        parts.halves, whole.halves, atol=1e-4 * float(whole.halves.abs().max()), rtol=0
    )


def test_images_of_weight_zero_do_not_count(points: np.ndarray, mask: torch.Tensor) -> None:
    series, _ = simulate(points, 12)
    spoiled = series.images.clone()
    spoiled[:, 3] = 1e3
    weight = series.weight.clone()
    weight[:, 3] = 0.0
    kept = [t for t in range(11) if t != 3]
    names = (
        "shift",
        "rotation",
        "defocus",
        "astigmatism",
        "angle",
        "phase_shift",
        "dose",
        "weight",
        "images",
    )
    without = replace(series, **{name: getattr(series, name)[:, kept] for name in names})
    one = average(replace(series, images=spoiled, weight=weight), PLAIN, mask).halves
    torch.testing.assert_close(one, average(without, PLAIN, mask).halves, atol=1e-5, rtol=1e-4)


def test_what_cannot_be_averaged(points: np.ndarray) -> None:
    series, _ = simulate(points, 4, tilts=3)
    with pytest.raises(ItemError, match="half-sets have 4 and 0"):
        average(replace(series, half=torch.zeros(4, dtype=torch.int64)), PLAIN)
    with pytest.raises(ItemError, match="no image"):
        average(replace(series, weight=torch.zeros(4, 3)), PLAIN)
    with pytest.raises(ItemError, match="does not fit into a box"):
        average(series, AveragingSettings(mask_diameter=500.0))


def test_relion_reconstructs_the_same(points: np.ndarray, mask: torch.Tensor, tmp_path: Path) -> None:
    """relion_reconstruct --ctf on the same images, a row for each, with their angles and CTFs."""
    program = shutil.which("relion_reconstruct")
    if program is None:
        assert os.environ.get("CI") != "true", "relion_reconstruct is not installed"
        pytest.skip("relion_reconstruct is not installed (Debian: apt-get install relion)")
    series, _ = simulate(points, 60, noise=6.0)
    images = series.images.flatten(0, 1)
    count = len(images)
    mrc.write(tmp_path / "im.mrcs", images.numpy(), PIXEL, volume=False)
    angles = euler_angles(series.rotation.double().flatten(0, 1)).numpy()
    mean, half_difference = series.defocus.flatten().numpy(), 0.5 * series.astigmatism.flatten().numpy()
    optics = {"OpticsGroup": 1, "OpticsGroupName": "one", "Voltage": 300.0, "SphericalAberration": 2.7}
    optics |= {
        "AmplitudeContrast": 0.07,
        "ImagePixelSize": PIXEL,
        "ImageSize": SIZE,
        "ImageDimensionality": 2,
    }
    columns = {
        "rlnImageName": [f"{i + 1:06d}@im.mrcs" for i in range(count)],
        "rlnOpticsGroup": np.ones(count, int),
        **{f"rlnAngle{name}": column for name, column in zip(("Rot", "Tilt", "Psi"), angles.T, strict=True)},
        # RELION's origins are what is to be added to bring the particle to the middle
        "rlnOriginXAngst": -series.shift[..., 0].flatten().numpy(),
        "rlnOriginYAngst": -series.shift[..., 1].flatten().numpy(),
        "rlnDefocusU": mean + half_difference,
        "rlnDefocusV": mean - half_difference,
        "rlnDefocusAngle": series.angle.flatten().numpy(),
        "rlnRandomSubset": series.half.repeat_interleave(series.images.shape[1]).numpy() + 1,
    }
    blocks = {"optics": Table({f"rln{k}": [v] for k, v in optics.items()}), "particles": Table(columns)}
    write_star(tmp_path / "im.star", blocks)
    theirs = []
    for half in (1, 2):
        command = [program, "--i", "im.star", "--o", f"{half}.mrc", "--ctf", "--subset", str(half)]
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=300)
        theirs.append(torch.from_numpy(mrc.read(tmp_path / f"{half}.mrc")[0].astype(np.float32)))
    ours = average(series, PLAIN, mask)
    fsc = half_map_fsc(theirs[0], theirs[1], PIXEL, mask)
    for threshold in (0.5, 0.143):
        # asked for: 5 %
        assert ours.fsc.resolution(threshold) == pytest.approx(fsc.resolution(threshold), rel=0.02)
    torch.testing.assert_close(ours.fsc.corrected[1:20], fsc.corrected[1:20], atol=0.05, rtol=0)
    for mine, other in zip(ours.halves, theirs, strict=True):
        # both divide by the weights, each with its own treatment of places near the edge of what is known
        assert float(shell_correlation(mine * mask, other * mask)[1:20].min()) > 0.98


# ---------------------------------------------------------------------------------------------- alignment


def test_a_ball_of_rotations_is_even() -> None:
    points = ball(9.0, 3.0)
    assert points[0].abs().max() == 0.0
    assert float(points.norm(dim=1).max()) <= 9.0
    distances = torch.cdist(points, points) + 1e9 * torch.eye(len(points), dtype=torch.float64)
    assert float(distances.min()) == pytest.approx(3.0)
    # no rotation is further from the grid than the holes of a body-centred one, 0.645 steps
    some = torch.from_numpy(np.random.default_rng(1).uniform(-4.0, 4.0, (500, 3)))
    assert float(torch.cdist(some, points).min(1).values.max()) < 0.65 * 3.0


def test_euler_angles_come_back() -> None:
    euler = torch.tensor([[10.0, 20.0, 30.0], [-170.0, 179.0, 12.0], [30.0, 0.0, 0.0]], dtype=torch.float64)
    matrices = euler_matrix(*euler.unbind(1))
    assert float(rotation_angle(euler_matrix(*euler_angles(matrices).unbind(1)), matrices).max()) < 1e-6


def test_poses_are_found_from_six_degrees_and_six_angstrom(
    points: np.ndarray, truth: torch.Tensor, mask: torch.Tensor
) -> None:
    series, euler = simulate(points, 24, noise=3.0)
    true = Poses.given(torch.from_numpy(euler))
    start = perturbed(euler, 6.0, 6.0)
    given = moved(series, true, start)
    found = refine_poses(given, truth * mask, start, resolution=16.0, diameter=120.0, dose_weighting="none")
    before = errors(start, euler)
    after = errors(found, euler)
    assert before[0] > 5.0
    assert before[1] > 5.0
    # images with a hundredth of the noise's power in signal: the exact reference leaves about 0.5° and 0.3 Å
    assert after[0] < 1.0
    assert after[1] < 1.0
    # and moving the images there makes them what they were
    again = moved(given, start, true)
    torch.testing.assert_close(again.rotation, series.rotation, atol=1e-5, rtol=0)
    torch.testing.assert_close(again.shift, series.shift, atol=1e-4, rtol=0)


def test_alignment_does_not_turn_what_is_right(
    points: np.ndarray, truth: torch.Tensor, mask: torch.Tensor
) -> None:
    series, euler = simulate(points, 8)
    true = Poses.given(torch.from_numpy(euler))
    settings = PoseSettings(angle_range=4.0, offset_range=4.0)
    found = refine_poses(
        series, truth * mask, true, settings, resolution=16.0, diameter=120.0, dose_weighting="none"
    )
    # without noise: a few hundredths of the angle at which sections part, 16 Å / 120 Å = 7.6°
    assert errors(found, euler)[0] < 0.4
    assert float(found.offset.norm(dim=1).max()) < 0.2


def test_gold_standard_alignment_recovers_the_map(
    points: np.ndarray, truth: torch.Tensor, mask: torch.Tensor
) -> None:
    series, euler = simulate(points, 48, noise=3.0)
    start = perturbed(euler, 6.0, 6.0)
    given = moved(series, Poses.given(torch.from_numpy(euler)), start)
    rounds = []
    found, poses = iterate(
        given, start, PLAIN, AlignmentSettings(iterations=2, first_resolution=15.0), report=rounds.append
    )
    degrees, angstrom = errors(poses, euler)
    # from 6° and 6 Å; the reference is the half-set's own average, which lies where the given poses were on
    # average: with 24 particles 6 Å / √24 = 1.2 Å away, and each half elsewhere
    assert degrees < 1.0
    assert angstrom < 2.0
    assert [r.number for r in rounds] == [0, 1, 2]
    assert rounds[1].turned > 3.0
    assert rounds[2].turned < 0.5 * rounds[1].turned
    before = rounds[0].fsc
    assert crossing(before.k, before.corrected, 0.5) > 1.2 * found.fsc.resolution(0.5)


def test_nothing_in_common_is_said(points: np.ndarray) -> None:
    series, euler = simulate(points, 8, tilts=3)
    noise = replace(
        series, images=torch.randn(series.images.shape, generator=torch.Generator().manual_seed(1))
    )
    with pytest.raises(ItemError, match="nothing in common"):
        iterate(noise, Poses.given(torch.from_numpy(euler)), PLAIN, AlignmentSettings(iterations=1))
