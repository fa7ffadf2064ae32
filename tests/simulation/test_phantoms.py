"""Made-up macromolecules: mass, density, size and symmetry."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial import cKDTree

from weft.errors import SettingsError
from weft.simulation.phantoms import (
    KINDS,
    coarsened,
    fragment,
    mass_of,
    mean_diameter,
    random_structure,
)
from weft.simulation.specimen import Specimen, phantom


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_its_mass_and_the_density_of_protein(kind):
    made = random_structure(np.random.default_rng(5), kind, mass=800e3)
    # subunits that share a cell lose some, a weak belt counts 0.4 of its mass, nucleic acid 1.4
    assert 0.5 * 800e3 < mass_of(made) < 1.35 * 800e3
    tree = cKDTree(made.points)
    around = np.array([len(n) for n in tree.query_ball_point(made.points, 12.0)])
    # 135.8 Å^3 a residue: 53 in a ball of 12 Å inside of a body; small subunits are mostly surface
    assert 53 * 0.8 < np.quantile(around, 0.97) < 53 * 1.45
    centre = np.average(made.points, axis=0, weights=made.strengths)
    np.testing.assert_allclose(centre, 0.0, atol=1e-6)
    assert (made.strengths > 0.0).all()


def test_sizes_and_masses_cover_the_range():
    rng = np.random.default_rng(1)
    made = [random_structure(rng) for _ in range(60)]
    sizes = np.array([mean_diameter(s) for s in made])
    masses = np.array([mass_of(s) for s in made])
    assert sizes.min() >= 52.0
    assert sizes.max() <= 355.0
    # log-uniform from 60 kDa to 4 MDa: a third below 243 kDa, a third above 990; 60 draws leave +- 18 points
    assert 0.15 < (masses < 243e3).mean() < 0.55
    assert 0.12 < (masses > 990e3).mean() < 0.52


def test_the_diameter_is_the_mean_caliper():
    rng = np.random.default_rng(2)
    inside = rng.uniform(-1.0, 1.0, (60_000, 3))
    ball = 50.0 * inside[(inside**2).sum(axis=1) < 1.0]
    made = Specimen(ball, np.full(len(ball), 23.4), volume=135.8, blur=100.0)
    # 100 Å and a residue of 5 Å, less the 0.2 % of points at either end: a cap of 2.6 Å
    assert mean_diameter(made) == pytest.approx(105.0 - 2 * 2.6, abs=1.0)
    long = Specimen(ball * [1.0, 1.0, 3.0], made.strengths, volume=135.8, blur=100.0)
    # mean width of a prolate spheroid of semi-axes 50 and 150: integral of sqrt(a^2 sin^2 + c^2 cos^2)
    u = np.linspace(0.0, 1.0, 2001)
    expected = 2.0 * np.sqrt(50.0**2 * (1 - u**2) + 150.0**2 * u**2).mean()
    assert mean_diameter(long) == pytest.approx(expected, rel=0.05)


def test_assemblies_are_symmetric():
    for seed in range(4):
        p = random_structure(np.random.default_rng(seed), "cubic", mass=1.2e6).points
        moments = np.linalg.eigvalsh(p.T @ p / len(p))
        # T, O and I make the second moment isotropic; a few points go where copies overlap
        assert moments[2] / moments[0] < 1.05
    rod = random_structure(np.random.default_rng(0), "rod", mass=3e5).points
    moments = np.linalg.eigvalsh(rod.T @ rod / len(rod))
    assert np.sqrt(moments[2] / moments[0]) > 1.7


def test_a_cage_is_hollow():
    p = random_structure(np.random.default_rng(12), "cage", mass=2e6).points
    away = np.sqrt((p**2).sum(axis=1))
    solid = (away < 0.3 * np.quantile(away, 0.95)).mean()
    assert solid < 0.02  # 2.7 % of a solid sphere lie there


def test_coarsening_conserves():
    made = phantom("barrel")
    coarse = coarsened(made, 9.0)
    assert len(coarse.points) < 0.4 * len(made.points)
    assert coarse.strengths.sum() == pytest.approx(made.strengths.sum())
    assert coarse.volume * len(coarse.points) == pytest.approx(made.volume * len(made.points))
    np.testing.assert_allclose(
        np.average(coarse.points, axis=0, weights=coarse.strengths),
        np.average(made.points, axis=0, weights=made.strengths),
        atol=1e-9,
    )


def test_a_fragment_is_a_part():
    made = phantom("globule")
    part = fragment(made, 0.3, np.random.default_rng(0))
    assert len(part.points) == round(0.3 * len(made.points))
    assert mean_diameter(part) < mean_diameter(made)


def test_reproducible_and_wrong_kinds_are_refused():
    first, second = (random_structure(np.random.default_rng(9)) for _ in range(2))
    np.testing.assert_array_equal(first.points, second.points)
    with pytest.raises(SettingsError, match="globule"):
        random_structure(np.random.default_rng(0), "teapot")  # type: ignore[arg-type]
