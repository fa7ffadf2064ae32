"""The hand of the defocus gradient, told from two searches."""

from __future__ import annotations

import io

import numpy as np
import pytest

from weft.errors import FitError
from weft.matching.candidates import Candidates, SearchStatistics
from weft.matching.handedness import compare_hands, hand_figure, judge_hand, paired

HALF = 1500.0


def scatter(random: np.random.Generator, n: int, kind: str) -> tuple[np.ndarray, np.ndarray]:
    x = random.uniform(-HALF, HALF, n)
    wide = 0.2 + 2.0 * (x / HALF) ** 2
    return x, 0.5 * {
        "normal": lambda: random.standard_normal(n),
        "heavy tails": lambda: random.standard_t(2, n),
        "wide at the edges": lambda: random.standard_normal(n) * wide,
        "both": lambda: random.standard_t(3, n) * wide,
    }[kind]()


@pytest.mark.parametrize("kind", ["normal", "heavy tails", "wide at the edges", "both"])
@pytest.mark.parametrize("n", [60, 300])
def test_no_verdict_without_a_difference(kind: str, n: int) -> None:
    """At p < 0.01 10 of 1000 are expected; 20 is 3 standard deviations more. An offset that is the same
    everywhere, and a slope, are no evidence."""
    random = np.random.default_rng(11)
    verdicts = []
    for i in range(1000):
        x, d = scatter(random, n, kind)
        if i % 2:
            d = d + 0.4 + 0.5 * x / HALF
        base = random.normal(15.0, 3.0, n)
        verdicts.append(judge_hand(x, base + d / 2, base - d / 2).hand)
    assert np.count_nonzero(verdicts) <= 20


@pytest.mark.parametrize("hand", [1, -1])
@pytest.mark.parametrize("kind", ["normal", "heavy tails", "wide at the edges"])
def test_the_right_hand_is_found(hand: int, kind: str) -> None:
    """0.5 σ at the edges, as in the published benchmark, with its number of particles (1000)."""
    random = np.random.default_rng(3)
    right = 0
    for _ in range(50):
        x, d = scatter(random, 1000, kind)
        base = 20.0 - 2.0 * (x / HALF) ** 2 + random.normal(0.0, 3.0, len(x))
        d = d + hand * 0.5 * (x / HALF) ** 2
        verdict = judge_hand(x, base + d / 2, base - d / 2)
        assert verdict.hand != -hand
        right += verdict.hand == hand
    # with two degrees of freedom Student's t has no variance at all
    assert right >= (25 if kind == "heavy tails" else 49)
    assert verdict.difference == pytest.approx(hand * 0.5, abs=4 * verdict.error)
    assert f"{hand:+d}" in verdict.sentence or verdict.hand == 0


def test_a_difference_that_levels_off_is_found_too() -> None:
    random = np.random.default_rng(4)
    x, d = scatter(random, 300, "normal")
    d = d - 1.5 * (1.0 - np.exp(-((x / 500.0) ** 2)))
    assert judge_hand(x, d / 2, -d / 2).hand == -1


def test_bands_cover_the_truth_as_often_as_they_say() -> None:
    """95 % of 400 bands hold the true curve at a place; a standard deviation is 1.1 %."""
    random = np.random.default_rng(6)
    inside = 0
    for _ in range(400):
        x, d = scatter(random, 150, "normal")
        low, high = judge_hand(x, 15.0 - 3.0 * (x / HALF) ** 2 + d, d).fit_plus.band([900.0])
        inside += bool(low[0] <= 15.0 - 3.0 * 0.36 <= high[0])
    assert abs(inside / 400 - 0.95) < 0.035


def found(x: np.ndarray, scores: np.ndarray, offset: float = 0.0) -> Candidates:
    y = np.arange(len(x)) * 100.0
    order = np.argsort(-scores)
    xyz = np.stack([x + HALF + offset, y, np.full(len(x), 200.0)], 1)
    n = len(x)
    return Candidates(xyz[order], np.zeros((n, 3)), scores[order], np.zeros(n, np.int64))


def test_candidates_are_paired_by_place_and_chosen_alike() -> None:
    x = np.linspace(-HALF, HALF, 50)
    plus, minus = found(x, np.linspace(0.5, 0.3, 50)), found(x, np.linspace(0.5, 0.3, 50)[::-1].copy(), 8.0)
    i, j = paired(plus, minus, 20.0)
    np.testing.assert_allclose(plus.xyz[i, 1], minus.xyz[j, 1])
    assert len(i) == 50
    assert len(paired(plus, minus, 5.0)[0]) == 0
    # a list that was cut higher: what is below in the other is left out too
    same = found(x, np.linspace(0.51, 0.31, 50), 8.0)
    short = same.select(same.score > 0.4)
    i, j = paired(plus, short, 20.0)
    assert len(i) == (plus.score >= short.score.min()).sum()
    assert plus.score[i].min() >= short.score.min()
    assert short.score[j].min() > 0.4


def test_choosing_by_scores_makes_no_hand() -> None:
    """Both lists are cut at a score that half of the places pass: no more verdicts than by chance (10 ± 3 of
    1000, here 3 ± 1.7 of 300)."""
    random = np.random.default_rng(9)
    statistics = (SearchStatistics(10**9, 0.0, 0.02), SearchStatistics(10**9, 0.0, 0.0204))
    verdicts = []
    for _ in range(300):
        x, d = scatter(random, 200, "normal")
        base = random.normal(10.0, 1.0, 200) + (x / HALF) ** 2
        plus, minus = (found(x, 0.02 * (base + s * d)) for s in (0.5, -0.5))
        plus, minus = plus.select(plus.score > 0.2), minus.select(minus.score > 0.21)
        verdict = compare_hands(plus, minus, statistics, volume_size=(2 * HALF, 1.0, 1.0), distance=20.0)
        verdicts.append(verdict.hand)
    assert np.abs(verdict.x).max() < HALF
    assert np.count_nonzero(verdicts) <= 9


def test_figure_is_one_svg() -> None:
    random = np.random.default_rng(2)
    x, d = scatter(random, 80, "normal")
    verdict = judge_hand(x, 15 + d, 15 - d)
    out = io.BytesIO()
    hand_figure(verdict, "TS_A").savefig(out, format="svg")
    assert out.getvalue().startswith(b"<?xml")
    assert len(hand_figure(verdict).axes) == 2


def test_identical_searches_have_no_verdict() -> None:
    x = np.linspace(-1000, 1000, 60)
    assert judge_hand(x, x * 0 + 5, x * 0 + 5).hand == 0


def test_too_little_to_judge() -> None:
    with pytest.raises(FitError, match="only 12 places"):
        judge_hand(np.arange(12.0), np.ones(12), np.ones(12))
    with pytest.raises(FitError, match="same distances"):
        judge_hand(np.tile([-5.0, 5.0], 30), np.ones(60), np.ones(60))
    with pytest.raises(ValueError, match="places with"):
        judge_hand(np.arange(40.0), np.ones(40), np.ones(39))
