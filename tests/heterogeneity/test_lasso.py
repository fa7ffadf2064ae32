"""What lies in a polygon, beside matplotlib's answer and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.path import Path as Outline

from weft.heterogeneity.lasso import inside_lasso

SQUARE = [(0.0, 0.0), (2.0, 0.0), (2.0, 2.0), (0.0, 2.0)]


@pytest.mark.parametrize("seed", range(5))
def test_star_shaped_polygons_as_matplotlib_has_them(seed: int) -> None:
    random = np.random.default_rng(seed)
    angle = np.sort(random.uniform(0, 2 * np.pi, 12))
    radius = random.uniform(0.2, 1.0, 12)
    corners = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    points = random.uniform(-1, 1, (2000, 2))
    expected = Outline(corners).contains_points(points)
    # no random point lies on a line, so every answer must agree
    assert 100 < expected.sum() < 1900
    assert (inside_lasso(points, corners) == expected).all()
    assert (inside_lasso(points, corners[::-1]) == expected).all(), "drawn the other way round"


def test_corners_and_sides_belong_to_it() -> None:
    assert inside_lasso([*SQUARE, (1.0, 0.0), (2.0, 1.0), (0.0, 1.3)], SQUARE).all()
    assert not inside_lasso([(2.0 + 1e-9, 1.0), (-1e-9, 0.5), (3.0, 0.0), (1.0, 2.1)], SQUARE).any()


def test_a_slanted_side_far_from_the_origin_belongs_to_it() -> None:
    corners = np.array([(1e4, 1e4), (1e4 + 3, 1e4 + 1), (1e4 + 1, 1e4 + 4)])
    assert inside_lasso(0.5 * (corners + np.roll(corners, -1, axis=0)), corners).all()


def test_what_is_gone_round_twice_is_inside() -> None:
    twice = [*SQUARE, *SQUARE]
    assert inside_lasso([(1.0, 1.0)], twice).all()
    # the middle of a five-pointed star drawn in one line
    angle = np.pi / 2 + np.arange(5) * 4 * np.pi / 5
    star = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    assert inside_lasso([(0.0, 0.0), (0.0, 0.9)], star).all()
    assert not inside_lasso([(0.6, 0.6)], star).any()


def test_both_loops_of_an_eight() -> None:
    eight = [(0.0, 0.0), (2.0, 2.0), (2.0, 0.0), (0.0, 2.0)]
    assert inside_lasso([(0.2, 1.0), (1.8, 1.0)], eight).all()
    assert not inside_lasso([(1.0, 0.2), (1.0, 1.8)], eight).any()


def test_points_that_are_none_are_outside() -> None:
    assert not inside_lasso([(np.nan, 1.0), (1.0, np.inf)], SQUARE).any()
    assert len(inside_lasso(np.zeros((0, 2)), SQUARE)) == 0


@pytest.mark.parametrize(
    ("corners", "about"),
    [
        ([(0, 0), (1, 1)], "2 different corners"),
        ([(0, 0), (1, 1), (0, 0), (1, 1)], "2 different corners"),
        ([(0, 0), (1, 1), (3, 3)], "one line"),
        ([(0, 0), (1, 1), (np.nan, 0)], "no finite"),
    ],
)
def test_lines_that_hold_nothing(corners: list[tuple[float, float]], about: str) -> None:
    with pytest.raises(ValueError, match=about):
        inside_lasso([(0.5, 0.5)], corners)
