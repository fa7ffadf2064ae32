"""Components, paths, convergence, eigenvolumes, correlates and advice on landscapes with known truth."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from weft.errors import FitError, ItemError
from weft.heterogeneity.advice import Advice, ClusterFacts, Facts, advise, kl_by_dimension
from weft.heterogeneity.components import along_component, principal_components
from weft.heterogeneity.convergence import (
    LossTrend,
    Movement,
    VolumeAgreement,
    latent_movement,
    loss_trend,
    volume_agreement,
)
from weft.heterogeneity.correlates import Correlate, correlates, group_share, rank_correlation
from weft.heterogeneity.neighbours import join, local_density, nearest, neighbour_graph
from weft.heterogeneity.paths import order_of_visits, path_through, spaced
from weft.heterogeneity.volume_components import density_mask, masked_voxels, volume_components


def rotation(d: int, seed: int = 0) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(d, d)))[0]


# ------------------------------------------------------------ components


def test_principal_components_are_those_the_points_were_made_with() -> None:
    random = np.random.default_rng(0)
    turn = rotation(5)
    spread = np.array([5.0, 3.0, 1.0, 0.3, 0.1])
    points = random.normal(size=(20000, 5)) * spread @ turn.T + 7.0
    found = principal_components(points)
    # 20,000 points give a variance to 1 % (standard error √(2/n))
    assert found.variance == pytest.approx(spread**2, rel=0.04)
    assert np.abs(np.einsum("ij,ji->i", found.axes, turn)) == pytest.approx(1.0, abs=1e-3)
    assert found.explained.sum() == pytest.approx(1.0)
    assert found.points(found.scores(points)) == pytest.approx(points)
    assert (np.take_along_axis(found.axes, np.abs(found.axes).argmax(1)[:, None], 1) > 0).all()


def test_traversals_lie_at_percentiles_on_the_line_or_on_the_data() -> None:
    random = np.random.default_rng(0)
    points = random.normal(size=(999, 3)) * (4.0, 1.0, 0.5)
    components = principal_components(points)
    line = along_component(components, points, 0, (5.0, 50.0, 95.0))
    scores = components.scores(line)
    assert scores[:, 0] == pytest.approx(np.percentile(components.scores(points)[:, 0], (5, 50, 95)))
    assert scores[:, 1:] == pytest.approx(0.0, abs=1e-9)
    own = along_component(components, points, 0, (5.0, 50.0, 95.0), on_data=True)
    assert all((points == place).all(1).any() for place in own)


# ------------------------------------------------------------ neighbours and paths


def test_neighbours_leave_out_the_point_itself_also_where_points_coincide() -> None:
    points = np.array([[0.0], [0.0], [0.0], [1.0], [5.0]])
    distance, index = nearest(points, 2)
    assert (index != np.arange(5)[:, None]).all()
    assert distance[0].tolist() == [0.0, 0.0]
    assert sorted(index[4].tolist())[-1] == 3


def test_density_is_larger_where_points_are_closer() -> None:
    random = np.random.default_rng(0)
    points = np.concatenate([random.normal(0, 0.1, (300, 2)), random.normal(10, 1.0, (300, 2))])
    density = local_density(points)
    # ten times closer
    assert np.median(density[:300]) / np.median(density[300:]) == pytest.approx(10.0, rel=0.15)
    assert np.isfinite(local_density(np.zeros((50, 2)))).all()


def test_a_path_follows_the_arc_and_not_the_chord() -> None:
    random = np.random.default_rng(0)
    angle = np.sort(random.uniform(0, np.pi, 600))
    points = np.stack([np.cos(angle), np.sin(angle)], 1) + random.normal(0, 0.01, (600, 2))
    path = path_through(points, [0, 599])
    assert {0, 599} == {int(path[0]), int(path[-1])}
    radius = np.linalg.norm(points[path], axis=1)
    assert radius.min() > 0.93
    steps = np.linalg.norm(np.diff(points[spaced(points, path, 10)], axis=0), axis=1)
    assert len(steps) == 9
    # a tenth of the way each, as far as particles lie there
    assert steps == pytest.approx(np.pi / 9, rel=0.25)


def test_separate_pieces_are_joined_by_the_shortest_edges() -> None:
    points = np.concatenate([np.linspace(0, 1, 20), np.linspace(3, 4, 20), np.linspace(9, 10, 20)])[:, None]
    graph = join(neighbour_graph(points, 3), points)
    assert graph[19, 20] == pytest.approx(2.0)
    assert graph[39, 40] == pytest.approx(5.0)
    path = path_through(points, [0, 59, 30])
    assert path[0] in (0, 59)
    assert 30 in path
    assert (np.diff(points[path, 0]) > 0).all() or (np.diff(points[path, 0]) < 0).all()


def test_stops_are_visited_in_a_short_order() -> None:
    places = np.random.default_rng(0).permutation(9).astype(float)
    order = order_of_visits(np.abs(places[:, None] - places))
    assert places[order].tolist() in (sorted(places), sorted(places, reverse=True))


# ------------------------------------------------------------ convergence


def test_turning_mirroring_and_scaling_is_no_movement_and_noise_is() -> None:
    random = np.random.default_rng(0)
    after = random.normal(size=(400, 4)) * (3.0, 2.0, 1.0, 0.5)
    mirror = rotation(4)
    mirror[:, 0] *= -1
    still = latent_movement(2.5 * after @ mirror + 4.0, after, (10, 20))
    assert still.moved < 1e-6
    assert still.neighbours == 1.0
    assert np.isnan(still.agreement)
    # noise as large as the spread in every direction: half of the variance is noise, of which the best scale
    # leaves a residue of √½ of the spread
    noisy = latent_movement(after + random.normal(size=after.shape) * after.std(0), after, (10, 20))
    assert noisy.moved == pytest.approx(np.sqrt(0.5), abs=0.06)
    assert noisy.chance < noisy.neighbours < 0.5
    unrelated = latent_movement(random.normal(size=after.shape), after, (10, 20))
    assert unrelated.moved > 0.9
    assert unrelated.neighbours == pytest.approx(unrelated.chance, abs=0.02)


def test_agreement_of_clusters_between_epochs() -> None:
    random = np.random.default_rng(0)
    truth = np.arange(200) % 2
    after = random.normal(size=(200, 3)) + 8.0 * truth[:, None]
    same = latent_movement(after[:, ::-1], after, (1, 2), 2)
    assert same.agreement == 1.0
    other = latent_movement(random.normal(size=(200, 3)), after, (1, 2), 2)
    assert abs(other.agreement) < 0.1


def test_volumes_of_two_epochs() -> None:
    random = np.random.default_rng(0)
    volume = random.normal(size=(32, 32, 32)).astype(np.float32)
    mask = np.ones_like(volume)
    same = volume_agreement(volume, 3.0 * volume + 1.0, (1, 2), 4.0, mask)
    assert same.correlation == pytest.approx(1.0)
    # the last shell of 32 voxels is 15
    assert same.resolution == pytest.approx(32 * 4.0 / 15)
    other = volume_agreement(volume, random.normal(size=volume.shape).astype(np.float32), (1, 2), 4.0, mask)
    assert abs(other.correlation) < 0.03


@pytest.mark.parametrize(("scale", "falling"), [(0.05, False), (1.0, True)])
def test_a_loss_that_still_falls(scale: float, falling: bool) -> None:
    random = np.random.default_rng(0)
    epochs = np.arange(1, 51)
    loss = 0.83 + 0.17 * np.exp(-epochs / (50 * scale)) + random.normal(0, 1e-4, 50)
    trend = loss_trend([{"epoch": int(e), "loss": 9.0, "reconstruction": v} for e, v in zip(epochs, loss)])
    assert trend is not None
    assert (trend.certain and trend.recent > 0.05) == falling
    if falling:
        # from the curve itself
        fallen = 0.17 * (np.exp(-1 / 50) - np.exp(-epochs[-10:] / 50).mean())
        assert trend.recent == pytest.approx(0.17 * (np.exp(-0.8) - np.exp(-1.0)) / fallen, rel=0.05)
    assert loss_trend([{"epoch": 1, "loss": 1.0}] * 4) is None


# ------------------------------------------------------------ volumes


def blobs(places: np.ndarray, n: int = 24) -> np.ndarray:
    i = np.arange(n) - n // 2
    z, y, x = np.meshgrid(i, i, i, indexing="ij")
    fixed = np.exp(-(z**2 + y**2 + (x + 5) ** 2) / 8.0)
    return np.array(
        [fixed + np.exp(-(z**2 + (y - p) ** 2 + (x - 5) ** 2) / 8.0) for p in places], dtype=np.float32
    )


def test_eigenvolumes_order_volumes_by_what_moves() -> None:
    places = np.linspace(-2.0, 2.0, 9)
    volumes = blobs(places) * np.linspace(0.7, 1.4, 9)[:, None, None, None].astype(np.float32)
    mask = density_mask(volumes)
    assert mask[12, 12, 17] == 1.0
    assert mask[1, 1, 1] == 0.0
    voxels = np.stack([masked_voxels(volume, mask) for volume in volumes])
    found = volume_components(voxels, 3)
    # brightness was taken out, so that the movement is all that is left
    assert found.explained[0] > 0.85
    assert abs(stats.spearmanr(found.scores[:, 0], places)[0]) == 1.0
    # as numpy's singular values of the same matrix
    values = np.linalg.svd(voxels - voxels.mean(0), compute_uv=False)
    assert found.variance == pytest.approx(values[:3] ** 2 / 8, rel=1e-4)
    assert found.axes @ found.axes.T == pytest.approx(np.eye(3), abs=1e-4)
    assert found.scores == pytest.approx((voxels - found.mean) @ found.axes.T, abs=1e-3)


def test_what_eigenvolumes_cannot_be_made_of() -> None:
    volume = blobs(np.zeros(1))[0]
    mask = density_mask([volume])
    voxels = masked_voxels(volume, mask)
    with pytest.raises(FitError, match="at least two volumes"):
        volume_components(voxels[None], 2)
    with pytest.raises(FitError, match="all the same"):
        volume_components(np.stack([voxels, voxels]), 2)
    with pytest.raises(ItemError, match="must be the same"):
        masked_voxels(volume[1:], mask)
    with pytest.raises(ItemError, match="same everywhere"):
        masked_voxels(np.ones_like(volume), mask)


# ------------------------------------------------------------ correlates


def test_ranks_are_compared_as_scipy_does() -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=60).round(1)
    y = (x + random.normal(size=60)).round(1)
    size, p = rank_correlation(x, y)
    known = stats.spearmanr(x, y)
    assert (size, p) == pytest.approx((known.statistic, known.pvalue), rel=1e-9)
    group = np.arange(60) % 4
    share, p = group_share(random.permutation(60).astype(float), group)
    values = np.random.default_rng(0)
    values = random.permutation(60).astype(float)
    share, p = group_share(values, group)
    h = stats.kruskal(*(values[group == g] for g in range(4)))
    assert (share * 59, p) == pytest.approx((h.statistic, h.pvalue), rel=1e-9)


def test_only_what_goes_with_the_landscape_is_significant() -> None:
    random = np.random.default_rng(0)
    n = 500
    pc = {"pc1": random.normal(size=n), "pc2": random.normal(size=n)}
    numbers = {f"noise{i}": random.normal(size=n) for i in range(40)}
    numbers |= {"score": pc["pc1"] ** 3 + 0.5 * random.normal(size=n), "constant": np.ones(n)}
    numbers["holes"] = np.where(np.arange(n) % 2, np.nan, pc["pc2"])
    tomogram = [f"TS_{int(value > 0)}{i % 3}" for i, value in enumerate(pc["pc2"])]
    found = correlates(
        pc, numbers, {"tomogram": tomogram, "all alike": ["a"] * n, "own": list(map(str, range(n)))}
    )
    significant = {(one.coordinate, one.known) for one in found if one.p < 0.01}
    assert significant == {("pc1", "score"), ("pc2", "holes"), ("pc2", "tomogram")}
    assert not {"constant", "all alike", "own"} & {one.known for one in found}
    assert next(one for one in found if one.known == "holes").count == 250
    # Holm: the smallest of m p-values is multiplied by m
    raw = rank_correlation(pc["pc1"], numbers["noise0"])[1]
    assert next(o.p for o in found if (o.coordinate, o.known) == ("pc1", "noise0")) >= raw


# ------------------------------------------------------------ advice


def told(**facts: object) -> dict[str, Advice]:
    usual = {
        "particles": 500,
        "kl": np.array([2.0, 1.0]),
        "heaps": 3,
        "loss": LossTrend(0.1, 0.01, True, False, 8),
    }
    return {one.about: one for one in advise(Facts(**{**usual, **facts}))}  # type: ignore[arg-type]


def test_advice_about_the_training() -> None:
    still = Movement(20, 30, 0.05, 0.9, 0.05, 1.0)
    assert told(movement=[still])["converged"].level == "good"
    moving = told(movement=[Movement(20, 30, 0.6, 0.2, 0.05, 1.0)])["not converged"]
    assert "60 % of its spread between epochs 20 and 30" in moving.text
    falling = told(loss=LossTrend(0.1, 0.2, True, False, 8), movement=[still])["not converged"]
    assert "2.5 % of its whole fall in each of the last 8 epochs" in falling.text
    assert "not converged" not in told(loss=LossTrend(0.1, 0.2, False, False, 8), movement=[still])
    assert "not converged" in told(volumes=[VolumeAgreement(20, 30, 0.7, 20.0)])
    assert "not converged" in told(movement=[Movement(20, 30, 0.05, 0.9, 0.05, 0.3)])
    assert "overfitted" in told(loss=LossTrend(0.1, 0.01, True, True, 8))
    assert "convergence unknown" in told(loss=None)


def test_advice_about_the_latent() -> None:
    random = np.random.default_rng(0)
    mu = random.normal(size=(4000, 2)) * (2.0, 0.01)
    kl = kl_by_dimension(mu, np.log(np.array([[0.25, 0.999]])).repeat(4000, 0))
    # ½ (4 + ¼ − 1 − ln ¼), to the 2 % that 4000 draws give
    assert kl[0] == pytest.approx(0.5 * (4.0 + 0.25 - 1.0 + np.log(4.0)), rel=0.04)
    assert kl[1] < 0.001
    assert "1 of 2 latent dimensions carries" in told(kl=kl)["unused dimensions"].text
    assert told(kl=kl[1:])["posterior collapsed"].level == "warning"
    assert told(particles=72)["few particles"].level == "warning"


def test_advice_about_clusters() -> None:
    assert told()["clusters"].text.startswith("The particles fall into 3 clusters")
    assert "The 7 that were asked for are not those" in told(asked=7)["clusters"].text
    assert "no gap" in told(heaps=1)["no cluster structure"].text
    assert "cut where k-means pleased" in told(heaps=1, asked=5)["no cluster structure"].text
    even = np.full(10, 20)
    good = [ClusterFacts(str(i), 200, 1.0, even) for i in (1, 2, 3)]
    assert "junk cluster" not in told(clusters=good)
    faint = told(clusters=[*good, ClusterFacts("4", 200, 0.2, even)])["junk cluster"]
    assert "Cluster 4" in faint.text
    assert "20 % of the usual contrast" in faint.text
    here = np.zeros(10, int)
    here[3] = 200
    assert (
        "come from 1.0 tomograms"
        in told(clusters=[*good, ClusterFacts("4", 200, 1.0, here)])["junk cluster"].text
    )
    assert (
        "3 particles, perhaps outliers"
        in told(clusters=[*good, ClusterFacts("4", 3, 1.0, even)])["junk cluster"].text
    )


def test_advice_about_what_components_follow() -> None:
    follows = Correlate("pc1", "rlnDefocusU", "number", -0.8, 1e-9, 500)
    weak = Correlate("pc2", "rlnDefocusU", "number", 0.3, 1e-9, 500)
    text = told(correlates=[follows, weak])["follows the experiment"].text
    assert text.startswith("PC1 goes with rlnDefocusU (ρ = −0.80)")
    assert "follows the experiment" not in told(correlates=[weak])
