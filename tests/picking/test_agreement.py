"""Counting which picks are right."""

from __future__ import annotations

import numpy as np
import pytest

from weft.picking.agreement import Agreement, agreement, average_precision, pairs_within
from weft.picking.picks import Picks


def test_each_particle_counts_once() -> None:
    truth = np.array([[100.0, 100.0], [300.0, 100.0]])
    xy = np.array([[103.0, 100.0], [97.0, 100.0], [300.0, 130.0], [305.0, 100.0]])
    found = agreement(xy, truth, 20.0)
    assert (found.found, found.picks, found.particles) == (2, 4, 2)
    assert (found.precision, found.recall, found.f1) == (0.5, 1.0, pytest.approx(2 / 3))


def test_pairs_are_as_many_as_can_be() -> None:
    """A pick between two particles takes the one that no other pick can have."""
    truth = np.array([[0.0, 0.0], [10.0, 0.0]])
    xy = np.array([[6.0, 0.0], [11.0, 0.0]])
    assert len(pairs_within(xy, truth, 7.0)) == 2


def test_empty_fields() -> None:
    none, one = np.zeros((0, 2)), np.zeros((1, 2))
    assert agreement(none, none, 1.0).f1 == 1.0
    assert agreement(one, none, 1.0).precision == 0.0
    assert agreement(none, one, 1.0).recall == 0.0
    assert agreement(one, one, 1.0) + agreement(none, one, 1.0) == Agreement(1, 1, 2)


def test_average_precision() -> None:
    truth = [np.array([[0.0, 0.0], [100.0, 0.0]])]
    xy = np.array([[0.0, 0.0], [50.0, 0.0], [100.0, 0.0]])
    # right, wrong, right: precision 1 up to recall 1/2, 2/3 from there on
    picks = Picks(xy, np.array([0.9, 0.8, 0.7]), 10.0)
    assert average_precision([picks], truth, 5.0) == pytest.approx(0.5 * 1.0 + 0.5 * 2 / 3)
    perfect = Picks(xy, np.array([0.9, 0.1, 0.7]), 10.0)
    assert average_precision([perfect], truth, 5.0) == pytest.approx(1.0)
