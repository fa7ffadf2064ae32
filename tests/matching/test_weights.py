"""The local 3D CTF and its noise, coefficient by coefficient, and how large a part may be that has one."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from weft.matching.weights import Imaging, Processing, local_weights, tile_length
from weft.physics.geometry import TiltGeometry
from weft.physics.optics import Optics
from weft.tilts.gridding import TiltContrast, transfer_volume

ANGLES = np.arange(-60.0, 61.0, 6.0)
N = len(ANGLES)
VOXEL, SHAPE = 8.0, (12, 14, 16)
VOLUME = (4000.0, 4000.0, 1000.0)
PLACE = (3400.0, 900.0, 720.0)
OPTICS = Optics(2.0, 300.0, 2.7, 0.07)
PROCESSINGS: list[Processing] = ["power", "amplitude", "flipped", "uncorrected"]


def imaging(hand: float = 1.0, **changes: Any) -> Imaging:
    """Astigmatic, a phase plate, doses, levels, tilts of unequal weight, one left out."""
    random = np.random.default_rng(1)
    geometry = TiltGeometry.of(
        ANGLES,
        axis=84.0,
        defocus=30000.0 + random.normal(0.0, 500.0, N),
        volume_size=VOLUME,
        image_size=(4000.0, 4000.0),
        level=(2.0, -3.0),
        hand=hand,
    )
    weight = random.uniform(0.5, 1.0, N)
    weight[4] = 0.0
    contrast = TiltContrast.of(
        OPTICS,
        N,
        dose=3.0 * np.arange(N),
        astigmatism=random.uniform(0.0, 2000.0, N),
        angle=random.uniform(0.0, 180.0, N),
        phase_shift=20.0,
        weight=weight,
    )
    return Imaging(geometry, contrast, **changes)


def by_the_formulas(
    given: Imaging, k: NDArray[np.float64], thickness: float, *, wedge: bool = False
) -> tuple[float, float]:
    """H and N of the module's first lines at one coefficient (1/Å), tilt by tilt, in double precision."""
    geometry, optics = given.geometry, given.contrast.optics
    matrices = geometry.matrices.numpy()
    floor = given.regularisation if given.processing in ("power", "amplitude") else 0.0
    above = power = nearest = 0.0
    section = np.zeros(3)
    for t in range(N):
        near, n, f, _, c, d = tilt_by_the_formulas(given, t, k, thickness)
        if near > nearest:
            nearest, section = near, matrices[t, 2]
        if n > 0.0:
            above += near * f * c * d
            power += near * f * f / n
    assert optics.voltage == 300.0
    if wedge:
        return float(power > 0.0), float(power > 0.0)
    if nearest == 0.0:
        return 0.0, 0.0
    foot = k - (section @ k) * section
    divided = floor
    for t in range(N):
        near, _, _, g, _, _ = tilt_by_the_formulas(given, t, foot, thickness)
        divided += near * g
    return above / divided, power / divided**2


def tilt_by_the_formulas(
    given: Imaging, t: int, k: NDArray[np.float64], thickness: float
) -> tuple[float, float, float, float, float, float]:
    """κ, n, f, g, c and d of one tilt."""
    geometry, contrast = given.geometry, given.contrast
    wavelength = 12.2643 / math.sqrt(300e3 * (1.0 + 0.978466e-6 * 300e3))
    matrices = geometry.matrices.numpy()
    n = float(contrast.weight[t])
    if given.cosine:
        n *= abs(matrices[t, 2, 2])
    if n == 0.0:
        return 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    u, v, distance = matrices[t] @ k
    near = max(0.0, 1.0 - thickness * abs(distance))
    k2 = u * u + v * v
    # defocus: the tilt's own, and the place's height above the plane through the volume's centre
    height = matrices[t, 2] @ (np.array(PLACE) - 0.5 * np.array(VOLUME))
    z = float(geometry.defocus[t]) + geometry.hand * height
    across = 0.5 * float(contrast.astigmatism[t])
    stretch = across * math.cos(2.0 * (math.atan2(v, u) - math.radians(float(contrast.angle[t]))))

    def ctf(defocus: float) -> float:
        chi = math.pi * wavelength * k2 * (defocus - 0.5 * 2.7e7 * wavelength**2 * k2)
        return math.sin(chi + math.radians(20.0) + math.asin(0.07))

    c = ctf(z + stretch) if given.has_ctf else 1.0
    d = math.exp(-float(contrast.dose[t]) * k2) if given.dose_model == "warp" else 1.0
    w = n * d if given.dose_weighted else n
    f, g = w, 1.0
    if given.has_ctf and given.processing == "power":
        f, g = w * c, w * c * c
    elif given.has_ctf and given.processing == "amplitude":
        f, g = w * c, w * abs(c)
    elif given.has_ctf and given.processing == "flipped":
        f = math.copysign(w, ctf(float(geometry.defocus[t]) + stretch))
    return near, n, f, g, c, d


def compare(given: Imaging, *, tolerance: float = 2e-3) -> None:
    thickness = 100.0
    found = local_weights(given, torch.tensor(PLACE), SHAPE, VOXEL, thickness)
    axes = [np.fft.fftfreq(n, VOXEL) for n in SHAPE[:2]] + [np.fft.rfftfreq(SHAPE[2], VOXEL)]
    signals, noises, exact = [], [], []
    random = np.random.default_rng(2)
    for _ in range(60):
        z, y, x = (int(random.integers(len(axis))) for axis in axes)
        k = np.array([axes[2][x], axes[1][y], axes[0][z]])
        signals.append(float(found.signal[z, y, x]))
        noises.append(float(found.noise[z, y, x]))
        inside = np.linalg.norm(k) <= 0.5 / VOXEL
        exact.append(by_the_formulas(given, k, thickness) if inside else (0.0, 0.0))
    # the dose's table has 512 entries: to half of one
    wanted = np.array(exact)
    assert np.abs(np.array(signals) - wanted[:, 0]).max() < tolerance * np.abs(wanted[:, 0]).max()
    assert np.abs(np.array(noises) - wanted[:, 1]).max() < tolerance * wanted[:, 1].max()
    assert (wanted[:, 1] > 0.0).sum() > 12


@pytest.mark.parametrize("processing", PROCESSINGS)
@pytest.mark.parametrize("hand", [1.0, -1.0])
def test_weights_are_those_of_the_formulas(processing: Processing, hand: float) -> None:
    compare(imaging(hand, processing=processing))


@pytest.mark.parametrize("processing", PROCESSINGS)
def test_without_dose_weights_and_with_cosines(processing: Processing) -> None:
    compare(imaging(processing=processing, dose_weighted=False, cosine=True, regularisation=0.3))


@pytest.mark.parametrize("processing", PROCESSINGS)
def test_without_a_ctf(processing: Processing) -> None:
    """Of tomograms of which nothing but the angles is known."""
    compare(imaging(processing=processing, has_ctf=False, dose_model="none"))


def test_hand_0_gives_all_places_one_defocus() -> None:
    given = imaging(0.0)
    here, there = (
        local_weights(given, torch.tensor(p), SHAPE, VOXEL, 100.0).signal
        for p in (PLACE, (100.0, 2000.0, 500.0))
    )
    assert torch.equal(here, there)
    with_hand = local_weights(imaging(1.0), torch.tensor(PLACE), SHAPE, VOXEL, 100.0).signal
    assert not torch.allclose(here, with_hand, atol=0.01)


def test_hands_are_each_others_mirror() -> None:
    """+1 at a place is −1 at the place on the other side of the volume's centre."""
    middle = 0.5 * torch.tensor(VOLUME, dtype=torch.float64)
    place = torch.tensor(PLACE, dtype=torch.float64)
    one = local_weights(imaging(1.0), place, SHAPE, VOXEL, 100.0)
    other = local_weights(imaging(-1.0), 2.0 * middle - place, SHAPE, VOXEL, 100.0)
    assert torch.allclose(one.signal, other.signal, atol=1e-6)


def test_the_wedge_alone() -> None:
    found = local_weights(imaging(), torch.tensor(PLACE), SHAPE, VOXEL, 100.0, wedge_only=True)
    assert torch.equal(found.signal, found.noise)
    assert set(found.signal.unique().tolist()) == {0.0, 1.0}
    axes = [np.fft.fftfreq(n, VOXEL) for n in SHAPE[:2]] + [np.fft.rfftfreq(SHAPE[2], VOXEL)]
    given = imaging(has_ctf=False, processing="uncorrected")
    for z, y, x in itertools.product(range(0, 12, 3), range(0, 14, 4), range(0, 9, 2)):
        k = np.array([axes[2][x], axes[1][y], axes[0][z]])
        seen = by_the_formulas(given, k, 100.0, wedge=True)[0] * (np.linalg.norm(k) <= 0.5 / VOXEL)
        assert float(found.signal[z, y, x]) == seen


def test_as_the_transfer_of_the_reconstruction() -> None:
    """What :mod:`weft.tilts` says of "power" data without damage by dose, on the sections themselves."""
    given = imaging(dose_model="none", regularisation=1e-6)
    place, n = torch.tensor(PLACE), 16
    found = local_weights(given, place, (n, n, n), VOXEL, n * VOXEL).signal
    wanted = transfer_volume(
        place,
        n,
        VOXEL,
        given.geometry,
        given.contrast,
        power=2,
        regularisation=1e-6,
        dose_model="none",
        cosine=False,
    )
    axis, half = np.fft.fftfreq(n, VOXEL), np.fft.rfftfreq(n, VOXEL)
    k = np.stack(np.meshgrid(axis, axis, half, indexing="ij")[::-1], axis=-1)
    used = given.contrast.weight.numpy() > 0.0
    away = np.abs(k @ given.geometry.matrices.numpy()[used, 2].T).min(axis=-1)
    # that divides by the sum of weights between sections, this by the sum on the nearest section
    on = torch.from_numpy(n * VOXEL * away < 0.02)
    off = (found.double() - wanted).abs()[on]
    # single precision there: phases of some ten radians, and faint coefficients that r still decides
    assert int(on.sum()) > 100
    assert float((off > 0.03).double().mean()) < 0.02
    assert float(off.mean()) < 5e-3
    assert float(found.std()) > 0.1


# ------------------------------------------------------------------------------------------- size of parts


@pytest.mark.parametrize("phase_error", [0.1, 0.25, 1.0])
def test_no_corner_is_off_by_more_than_is_stated(phase_error: float) -> None:
    frequency = 1.0 / 12.0
    side = tile_length(frequency, OPTICS.wavelength, phase_error)
    geometry = TiltGeometry.of(np.arange(-60.0, 61.0, 5.0), volume_size=VOLUME, image_size=(4000.0, 4000.0))
    corners = np.array(list(itertools.product((-0.5, 0.5), repeat=3))) * side
    middle = np.array(PLACE)
    places = torch.from_numpy(np.concatenate([middle[None], middle + corners]))
    defocus = geometry.project(places)[..., 2]
    off = math.pi * OPTICS.wavelength * frequency**2 * (defocus[:, 1:] - defocus[:, :1]).abs()
    assert float(off.max()) <= phase_error * (1.0 + 1e-9)
    # and it is not smaller than it need be: a tilt of 45° takes all of it
    assert float(off.max()) > 0.99 * phase_error
