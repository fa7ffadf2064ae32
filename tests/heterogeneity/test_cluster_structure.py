"""Clusters that are there are found, and none where there are none."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import linprog

from weft.errors import FitError
from weft.heterogeneity.clusters import adjusted_rand_index, by_size, k_means, representatives
from weft.heterogeneity.structure import fewest, find_structure
from weft.heterogeneity.unimodality import dip, dip_probability


def dip_by_its_definition(x: np.ndarray) -> float:
    """The distance to the nearest unimodal distribution as a linear program, for each place of the mode."""
    n, best = len(x), 1.0
    for mode in range(n):
        # values at the points, two of them at the mode where it may jump, then the distance
        places = [*range(mode + 1), *range(mode, n)]
        rows, bounds = [], []

        def add(coefficients: dict[int, float], bound: float, rows=rows, bounds=bounds) -> None:
            row = np.zeros(n + 2)
            for i, value in coefficients.items():
                row[i] += value
            rows.append(row)
            bounds.append(bound)

        for i, place in enumerate(places):
            steps = (place / n, (place + 1) / n)
            sides = [0] if i == mode else [1] if i == mode + 1 else [0, 1]
            for side in sides:
                add({i: 1.0, n + 1: -1.0}, steps[side])
                add({i: -1.0, n + 1: -1.0}, -steps[side])
            if i:
                add({i - 1: 1.0, i: -1.0}, 0.0)
        for part, sign in ((range(mode + 1), 1.0), (range(mode + 1, n + 1), -1.0)):
            for a, b, c in zip(part, part[1:], part[2:], strict=False):
                weight = (x[places[b]] - x[places[a]]) / (x[places[c]] - x[places[a]])
                add({b: sign, a: -sign * (1 - weight), c: -sign * weight}, 0.0)
        cost = np.zeros(n + 2)
        cost[-1] = 1.0
        found = linprog(cost, A_ub=np.array(rows), b_ub=bounds, bounds=[(0, 1)] * (n + 2))
        best = min(best, found.fun)
    return best


@pytest.mark.parametrize("seed", range(6))
def test_the_dip_is_what_its_definition_says(seed: int) -> None:
    random = np.random.default_rng(seed)
    x = random.normal(size=random.integers(4, 14))
    if seed % 2:
        x = np.concatenate([x, x[::-1] * 0.9 + 6.0])
    # a linear program is solved to 1e-9
    assert dip(x) == pytest.approx(dip_by_its_definition(np.sort(x)), abs=1e-8)


def test_known_quantiles_of_the_dip_of_uniform_samples() -> None:
    """Hartigan & Hartigan 1985, table 1: for n = 200 the dip is above 0.037 in 5 %, above 0.043 in 1 %."""
    random = np.random.default_rng(0)
    dips = [dip(random.random(200)) for _ in range(2000)]
    # of 2000 samples 100 ± 10 and 20 ± 4.5 are expected; the table has three digits
    assert 0.035 < np.mean(np.array(dips) > 0.037) < 0.065
    assert 0.004 < np.mean(np.array(dips) > 0.043) < 0.018
    probabilities = [dip_probability(random.random(200)) for _ in range(500)]
    assert 0.025 < np.mean(np.array(probabilities) < 0.05) < 0.08


def single(name: str, n: int, d: int, random: np.random.Generator) -> np.ndarray:
    z = random.normal(size=(n, d))
    if name == "skewed":
        return random.exponential(size=(n, d))
    if name == "heavy-tailed":
        return z / np.sqrt(random.chisquare(3, size=(n, 1)) / 3)
    if name == "long":
        return z * 0.6 ** np.arange(d)
    if name == "continuum":
        z[:, 0] = random.random(n) * 12.0
        return z
    if name == "arc":
        angle = random.random(n) * np.pi
        z *= 0.3
        z[:, 0] += 3 * np.cos(angle)
        z[:, -1] += 3 * np.sin(angle)
    return z


@pytest.mark.parametrize("name", ["normal", "skewed", "heavy-tailed", "long", "continuum", "arc"])
def test_one_heap_is_no_clusters(name: str) -> None:
    """12 landscapes each. Of 20 of each size: no false alarm, but for arcs (0 to 20 %)."""
    random = np.random.default_rng(7)
    alarms = 0
    for n, d in ((72, 2), (72, 8), (144, 4), (600, 8)):
        for seed in range(3):
            alarms += find_structure(single(name, n, d, random), seed=seed).found
    # 12 tries at 10 % on average give more than 4 four times in 1000
    assert alarms <= (4 if name in ("continuum", "arc") else 0)


@pytest.mark.parametrize(("n", "d", "count"), [(144, 2, 2), (144, 8, 2), (600, 4, 3), (600, 3, 5)])
def test_clusters_are_counted_and_found(n: int, d: int, count: int) -> None:
    random = np.random.default_rng(3)
    # six standard deviations apart
    centres = np.zeros((count, d))
    centres[:, 0] = 6.0 * np.arange(count)
    if count > 3:
        centres[:, 0], centres[:, 1] = 6.0 * (np.arange(count) % 3), 6.0 * (np.arange(count) // 3)
    truth = np.arange(n) % count
    found = find_structure(centres[truth] + random.normal(size=(n, d)))
    assert found.clusters.count == count
    # 0.13 % lie beyond three standard deviations
    assert adjusted_rand_index(found.clusters.label, truth) > 0.95


def test_clusters_beside_a_larger_variation_are_found() -> None:
    """k-means alone would cut the long direction."""
    random = np.random.default_rng(1)
    points = random.normal(size=(800, 2))
    truth = np.arange(800) % 2
    points[:, 0] *= 6.0
    points[:, 1] += 5.0 * truth
    assert adjusted_rand_index(k_means(points, 2).label, truth) < 0.1
    found = find_structure(points)
    assert found.scaled
    assert adjusted_rand_index(found.clusters.label, truth) > 0.9


def test_too_few_and_all_the_same() -> None:
    few = find_structure(np.random.default_rng(0).normal(size=(fewest(3) - 1, 3)))
    assert not few.found
    assert few.first is None
    same = find_structure(np.zeros((100, 3)))
    assert not same.found


def test_k_means_finds_the_best_partition_and_its_representatives() -> None:
    random = np.random.default_rng(5)
    centres = random.uniform(-20, 20, (12, 3))
    truth = np.repeat(np.arange(12), np.arange(20, 140, 10))
    points = centres[truth] + random.normal(0, 0.5, (len(truth), 3))
    found = by_size(k_means(points, 12))
    assert adjusted_rand_index(found.label, truth) == 1.0
    assert found.size.tolist() == sorted(found.size.tolist(), reverse=True)
    nearest = representatives(points, found)
    for one in range(12):
        own = np.flatnonzero(found.label == one)
        distances = np.linalg.norm(points[own] - points[own].mean(0), axis=1)
        assert nearest[one] == own[distances.argmin()]
    with pytest.raises(FitError, match="cannot be put into 5 clusters"):
        k_means(points[:4], 5)
    with pytest.raises(FitError, match="many lie at the same place"):
        k_means(np.zeros((40, 2)), 3)


def test_adjusted_rand_index() -> None:
    """The example of Hubert and Arabie's index in Steinley 2004: known by hand."""
    first = np.array([0, 0, 0, 1, 1, 1])
    # table [[2, 1], [0, 3]]: pairs together 1 + 3 = 4, rows 3 + 3, columns 1 + 6, of 15
    second = np.array([0, 0, 1, 1, 1, 1])
    assert adjusted_rand_index(first, second) == pytest.approx((4 - 6 * 7 / 15) / (6.5 - 6 * 7 / 15))
    assert adjusted_rand_index(first, first + 7) == 1.0
    random = np.random.default_rng(0)
    chance = [adjusted_rand_index(random.integers(0, 3, 300), random.integers(0, 4, 300)) for _ in range(50)]
    assert abs(np.mean(chance)) < 0.005
