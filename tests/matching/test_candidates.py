"""Candidates of score maps, and estimates of how many are particles."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, maximum_filter, white_tophat
from scipy.special import ndtri

from weft.errors import FitError, ItemError
from weft.matching.candidates import (
    Candidates,
    CandidateSettings,
    SearchStatistics,
    cut_off,
    extract_candidates,
    false_alarm_threshold,
    merge_candidates,
)
from weft.matching.peaks import suppressed
from weft.matching.recall import estimate_recall, recall_figure

ROTATIONS = np.random.default_rng(1).uniform(0, 180, (50, 3))


def noise(shape: tuple[int, int, int], seed: int = 0, smooth: float = 1.0) -> np.ndarray:
    field = gaussian_filter(np.random.default_rng(seed).standard_normal(shape).astype(np.float32), smooth)
    return field / field.std()


def take(scores: Any, **given: Any) -> Candidates:
    names = CandidateSettings.model_fields
    settings = CandidateSettings(**{"margin": 0.0, **{k: v for k, v in given.items() if k in names}})
    rest = {k: v for k, v in given.items() if k not in names}
    shape = np.shape(scores)
    rest.setdefault("angles", np.arange(np.prod(shape)).reshape(shape) % len(ROTATIONS))
    rest.setdefault("statistics", SearchStatistics(10**9, 0.0, 0.02))
    return extract_candidates(
        scores, rotations=ROTATIONS, **{"voxel_size": 10.0, "diameter": 80.0, "settings": settings, **rest}
    )


def test_published_threshold() -> None:
    """510×720×74 voxels and 248,400 rotations: 7.30 σ (Chaillet 2024), 7.296 in issue 6."""
    space = 510 * 720 * 74 * 248_400
    assert space == 6_749_723_520_000
    assert false_alarm_threshold(1.0, space) == pytest.approx(7.296, abs=5e-4)
    assert false_alarm_threshold(0.02, space) == pytest.approx(0.02 * 7.296, abs=1e-5)
    # the tail of the normal distribution, told by another function
    for tail in (1e-3, 1e-12, 1e-30):
        assert false_alarm_threshold(1.0, 1.0 / tail) == pytest.approx(-ndtri(tail), rel=1e-9)
    # more that are allowed lower it
    assert false_alarm_threshold(1.0, space, 100.0) < false_alarm_threshold(1.0, space)


@pytest.mark.parametrize(("space", "wanted"), [(100, 0.0), (100, 100.0), (0, 1.0), (100, -1.0)])
def test_threshold_of_what_cannot_be(space: int, wanted: float) -> None:
    with pytest.raises(ValueError, match="not possible"):
        false_alarm_threshold(1.0, space, wanted)


def test_false_alarms_are_as_many_as_promised() -> None:
    """Poisson: of 4·10⁶ independent scores 40 lie above the threshold for 40, ± 4 √40."""
    scores = np.random.default_rng(0).standard_normal(4_000_000)
    above = (scores >= false_alarm_threshold(1.0, scores.size, 40.0)).sum()
    assert abs(above - 40) < 4 * np.sqrt(40)


def brute(scores: np.ndarray, theta: float, radius: float) -> list[int]:
    """Greedy suppression as it is defined, voxel by voxel."""
    peaks = (scores >= theta) & (scores >= maximum_filter(scores, 3, mode="nearest"))
    order = sorted(np.flatnonzero(peaks), key=lambda i: (-scores.flat[i], i))
    kept: list[int] = []
    for i in order:
        here = np.array(np.unravel_index(i, scores.shape))
        near = [j for j in kept if ((here - np.unravel_index(j, scores.shape)) ** 2).sum() < radius**2]
        if not near:
            kept.append(int(i))
    return kept


@pytest.mark.parametrize("origin", [(0.0, 0.0, 0.0), (100.0, -30.0, 5.0)])
def test_greedy_suppression_is_exact(origin: tuple[float, float, float], monkeypatch: Any) -> None:
    scores = 0.1 * noise((20, 30, 40), 2)
    expected = brute(scores, 0.1, 4.0)
    assert len(expected) > 50
    # also where the map comes in slabs, and peaks in blocks
    for slab, block in ((1 << 22, 20000), (2500, 7)):
        monkeypatch.setattr("weft.matching.peaks._SLAB_VOXELS", slab)
        monkeypatch.setattr("weft.matching.peaks._BLOCK", block)
        found = take(scores, cut_off=0.1, origin=origin)
        voxels = np.rint((found.xyz - origin) / 10.0).astype(int)
        index = np.ravel_multi_index(tuple(voxels[:, ::-1].T), scores.shape)
        assert index.tolist() == expected
        np.testing.assert_array_equal(found.score, scores.ravel()[expected])
        np.testing.assert_array_equal(found.euler, ROTATIONS[np.array(expected) % len(ROTATIONS)])
    assert (np.diff(found.score) <= 0).all()
    assert len(take(scores, cut_off=0.1, number=5)) == 5


def test_equal_scores_give_one_candidate() -> None:
    scores = np.zeros((9, 9, 9), np.float32)
    scores[4, 4, 3:6] = 0.5
    found = take(scores, cut_off=0.4)
    assert found.xyz.tolist() == [[30.0, 40.0, 40.0]]


def test_a_flank_outside_the_radius_is_no_candidate() -> None:
    """A broad peak's slope is above the cut-off beyond the exclusion radius, and still no maximum."""
    grid = np.stack(np.meshgrid(*[np.arange(31.0)] * 3, indexing="ij"))
    scores = (0.8 * np.exp(-((grid - 15.0) ** 2).sum(0) / 200.0)).astype(np.float32)
    assert len(take(scores, cut_off=0.2, diameter=40.0)) == 1


def test_mask_margin_and_diameter(tmp_path: Any) -> None:
    scores = np.zeros((20, 20, 20), np.float32)
    for z, y, x, s in ((10, 10, 10, 0.9), (10, 10, 13, 0.8), (1, 10, 10, 0.7), (10, 4, 4, 0.6)):
        scores[z, y, x] = s
    path = tmp_path / "s.npy"
    np.save(path, scores)
    mapped = np.load(path, mmap_mode="r")
    assert take(mapped, cut_off=0.5).score.tolist() == pytest.approx([0.9, 0.7, 0.6])
    # 30 Å apart: both stay where candidates may be 30 Å apart
    assert len(take(mapped, cut_off=0.5, particle_diameter=60.0)) == 4
    assert take(mapped, cut_off=0.5, margin=0.2).score.tolist() == pytest.approx([0.9, 0.6])
    # a part from the middle of a larger volume has no faces of its own
    part = {"margin": 0.2, "origin": (0.0, 0.0, 200.0), "volume_size": (200.0, 200.0, 600.0)}
    assert len(take(mapped, cut_off=0.5, **part)) == 3
    mask = np.zeros_like(scores)
    mask[:, :6] = 1.0
    assert take(torch.from_numpy(scores), cut_off=0.5, mask=mask).score.tolist() == pytest.approx([0.6])


def test_what_was_not_searched_gives_nothing() -> None:
    scores = np.full((10, 10, 10), np.nan, np.float32)
    scores[5, 5, 5], scores[2, 2, 2] = 0.6, 0.1
    found = take(scores, cut_off=0.05)
    assert found.score.tolist() == pytest.approx([0.6, 0.1])
    assert np.isfinite(found.score).all()
    with pytest.raises(ItemError, match="no finite score"):
        take(np.full((5, 5, 5), np.nan))


def test_templates_compete() -> None:
    scores = np.zeros((12, 12, 12), np.float32)
    scores[3, 3, 3], scores[9, 9, 9] = 0.5, 0.6
    which = np.zeros_like(scores)
    which[9, 9, 9] = 2
    assert take(scores, cut_off=0.3, template=which).template.tolist() == [2, 0]


def test_clear_errors() -> None:
    scores = np.zeros((6, 6, 6), np.float32)
    scores[3, 3, 3] = 0.9
    with pytest.raises(ItemError, match="rotation 77, but there are 50"):
        take(scores, cut_off=0.5, angles=np.full(scores.shape, 77))
    with pytest.raises(ItemError, match="map of angles has the shape"):
        take(scores, cut_off=0.5, angles=np.zeros((5, 6, 6)))
    with pytest.raises(ItemError, match="diameter is not known"):
        take(scores, cut_off=0.5, diameter=0.0)
    with pytest.raises(ItemError, match="no standard deviation"):
        take(scores, statistics=SearchStatistics(10**9, 0.0, 0.0))


def test_the_mean_counts_too() -> None:
    here = cut_off(SearchStatistics(10**9, 0.01, 0.02), CandidateSettings())
    assert here == pytest.approx(0.01 + false_alarm_threshold(0.02, 10**9))
    assert cut_off(SearchStatistics(10**9, 0.01, 0.02), CandidateSettings(cut_off=0.3)) == 0.3


def test_tophat_keeps_particles_and_drops_broad_features(monkeypatch: Any) -> None:
    """30 sharp peaks (σ 1 voxel) and 10 broad blobs (σ 5) of the same height, 0.25, on noise of σ 0.02."""
    random = np.random.default_rng(5)
    places = np.stack([random.permutation(np.arange(8, 88, 2))[:40] for _ in range(3)], 1)
    impulses = np.zeros((2, 96, 96, 96), np.float32)
    for i, place in enumerate(places):
        impulses[0 if i < 30 else 1][tuple(place)] = 1.0
    peaks = [gaussian_filter(one, s) * (s * np.sqrt(2 * np.pi)) ** 3 for one, s in zip(impulses, (1.0, 5.0))]
    scores = (0.25 * (peaks[0] + peaks[1]) + 0.02 * noise((96, 96, 96), 6, 0.8)).astype(np.float32)
    statistics = SearchStatistics(96**3 * 1000, 0.0, 0.02)
    plain = take(scores, statistics=statistics)
    kept = take(scores, statistics=statistics, tophat=True)

    def hit(found: Candidates, which: np.ndarray) -> int:
        distance = np.linalg.norm(found.xyz[:, None] / 10.0 - which[None, :, ::-1], axis=2)
        return int((distance.min(0) < 2.0).sum())

    assert hit(plain, places[:30]) >= 28
    assert len(plain) > 36, "without the filter, broad blobs are among them"
    assert hit(kept, places[:30]) >= 28
    assert len(kept) <= 32
    # in slabs the filter is the same as on the whole
    monkeypatch.setattr("weft.matching.peaks._SLAB_VOXELS", 5 * 96 * 96)
    again = take(scores, statistics=statistics, tophat=True)
    np.testing.assert_array_equal(again.xyz, kept.xyz)
    assert white_tophat(scores, size=3)[tuple(places[0])] > 0.05


def test_tophat_cut_off_on_pure_noise() -> None:
    """Of 10⁶ voxels of noise about as many as wanted exceed the cut-off: within a factor of 3."""
    scores = 0.02 * noise((100, 100, 100), 8, 0.8)
    for connectivity in (1, 2, 3):
        settings = {"tophat": True, "tophat_connectivity": connectivity, "false_positives": 100.0}
        found = take(scores, cut_off=1e-6, **settings, diameter=1.0, number=10**6)
        # every voxel above the top-hat's cut-off is nearly always a local maximum
        assert 30 < len(found) < 300


def test_merging_keeps_the_better_of_two() -> None:
    a = Candidates(
        np.array([[0.0, 0, 0], [100, 0, 0]]), np.zeros((2, 3)), np.array([0.9, 0.5]), np.zeros(2, int)
    )
    b = Candidates(
        np.array([[95.0, 0, 0], [300, 0, 0]]), np.ones((2, 3)), np.array([0.7, 0.4]), np.ones(2, int)
    )
    merged = merge_candidates([a, b], 50.0)
    assert merged.score.tolist() == [0.9, 0.7, 0.4]
    assert merged.template.tolist() == [0, 1, 1]
    assert len(merge_candidates([a, b], 1.0)) == 4


def test_suppression_keeps_what_is_exactly_as_far() -> None:
    assert suppressed([[0.0, 0, 0], [4, 0, 0], [7.9, 0, 0]], 4.0).tolist() == [0, 1]
    assert suppressed([[0.0, 0, 0], [4, 0, 0], [8, 0, 0]], 4.0).tolist() == [0, 1, 2]
    assert suppressed(np.zeros((0, 3)), 4.0).tolist() == []


def mixture(
    seed: int, particles: int, mean: float, spread: float, wide: float = 1.0, listed: int = 1000
) -> tuple[np.ndarray, np.ndarray]:
    """The best scores over σ of 20000 maxima of 10⁵ looks each and of particles, and which these are."""
    random = np.random.default_rng(seed)
    background = -ndtri(-np.expm1(np.log(random.random(20000)) / 1e5)) * wide
    scores = np.concatenate([background, random.normal(mean, spread, particles)])
    order = np.argsort(-scores)[:listed]
    return scores[order], order >= len(background)


@pytest.mark.parametrize(
    ("particles", "mean", "spread", "wide"),
    [
        (140, 12.0, 1.5, 1.0),
        (140, 8.0, 1.0, 1.0),
        (600, 7.5, 1.5, 1.0),
        (20, 9.0, 0.7, 1.0),
        (140, 10.0, 1.5, 1.2),
    ],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_recall_of_known_mixtures(seed: int, particles: int, mean: float, spread: float, wide: float) -> None:
    scores, truth = mixture(seed, particles, mean, spread, wide)
    estimate = estimate_recall(0.02 * scores, SearchStatistics(2 * 10**10, 0.0, 0.02))
    # the count: counting statistics of the overlap; 10 % is twice what these cases show
    assert estimate.particles == pytest.approx(particles, rel=0.1, abs=2.0)
    assert estimate.mean / 0.02 == pytest.approx(mean, abs=4 * spread / np.sqrt(particles) + 0.1)
    assert estimate.sigma / 0.02 == pytest.approx(wide, abs=0.06)
    for c in (estimate.best, estimate.cut_off_for(0.05)):
        above = 0.02 * scores >= c
        recall, wrong = (above & truth).sum() / particles, (above & ~truth).sum() / max(above.sum(), 1)
        guess = estimate.at(c)
        assert guess[0] == pytest.approx(recall, abs=0.07)
        # as many as 5 % of those above are a Poisson number themselves
        assert guess[1] == pytest.approx(wrong, abs=0.02 + 2.0 * np.sqrt(0.05 / above.sum()))
    figure = recall_figure(0.02 * scores, estimate, estimate.best, "test")
    assert len(figure.axes) == 2


@pytest.mark.parametrize("seed", range(4))
def test_background_alone_has_no_particles(seed: int) -> None:
    scores, _ = mixture(seed, 0, 0.0, 1.0)
    estimate = estimate_recall(0.02 * scores, SearchStatistics(2 * 10**10, 0.0, 0.02))
    assert estimate.particles == 0.0
    assert estimate.best == np.inf
    assert estimate.cut_off_for(0.5) == np.inf
    recall_figure(0.02 * scores, estimate)


def test_too_few_scores() -> None:
    with pytest.raises(FitError, match="too few"):
        estimate_recall(np.ones(5), SearchStatistics(10**9, 0.0, 0.02))
    with pytest.raises(FitError, match="standard deviation"):
        estimate_recall(np.linspace(0, 1, 100), SearchStatistics(10**9, 0.0, 0.0))
