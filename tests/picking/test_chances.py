"""How likely candidates are to be particles, and the threshold that follows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from weft.picking.chances import Chances, Peaks, best_threshold, decoy, fit_chances


def test_a_decoy_has_the_spectrum_and_none_of_the_places() -> None:
    torch.manual_seed(1)
    image = torch.randn(96, 128)
    image[40:44, 60:64] -= 3.0
    other = decoy(image)
    assert other.shape == image.shape
    power = torch.fft.rfft2(image.clamp(-5.0, 5.0)).abs()
    torch.testing.assert_close(torch.fft.rfft2(other).abs(), power, rtol=1e-3, atol=1e-2)
    assert abs(float(torch.corrcoef(torch.stack([image.flatten(), other.flatten()]))[0, 1])) < 0.05


def test_the_threshold_follows_what_can_be_expected() -> None:
    """Clear particles: all that are more likely than not. Weak ones: lower. Noise: nothing."""
    clear = np.array([0.98] * 20 + [0.3] * 20)
    assert 0.3 < best_threshold(clear, clear, 0.2) < 0.98
    weak = np.linspace(0.2, 0.7, 40)
    chosen = best_threshold(weak, weak, 0.2)
    assert 0.25 < chosen < 0.45
    # where it is best: expected F1 is what the definition says
    expected = [2 * weak[weak > t].sum() / ((weak > t).sum() + weak.sum()) for t in np.arange(0.2, 0.7, 0.01)]
    at = 2 * weak[weak > chosen].sum() / ((weak > chosen).sum() + weak.sum())
    assert at == pytest.approx(max(expected), abs=1e-6)
    noise = np.full(10, 0.18)
    assert best_threshold(noise, noise, 0.3) == 1.0
    assert best_threshold(noise[:0], noise[:0], 0.3) == 1.0


def test_chances_are_learnt_from_the_decoy_as_well() -> None:
    """The same probabilities are particles where decoys have none of them, and noise where they do."""
    rng = np.random.default_rng(3)
    peaks, right = [], []
    for _ in range(20):
        noise = rng.uniform(0.06, 0.4, 60)
        decoys = rng.uniform(0.06, 0.4, 60)
        peaks.append(Peaks(noise, decoys, 1.0))
        right.append(np.zeros(60, dtype=bool))
        true = rng.uniform(0.2, 0.4, 40)
        below = rng.uniform(0.06, 0.15, 40)
        peaks.append(Peaks(np.concatenate([true, below]), rng.uniform(0.06, 0.15, 60), 1.0))
        right.append(np.repeat([True, False], 40))
    learnt = fit_chances(peaks, right)
    empty, full = (learnt.of(p) for p in peaks[:2])
    assert np.mean(empty > 0.3) < 0.1
    assert full[:40].min() > 0.7
    assert full[40:].mean() < 0.3
    order = np.argsort(peaks[1].values)
    assert (np.diff(full[order]) >= 0.0).all()
    assert len(Chances((0.0, 1.0, 0.0, 0.0)).of(Peaks(np.zeros(0), np.zeros(0), 1.0))) == 0


def test_a_smaller_decoy_counts_for_its_area() -> None:
    values = np.full(40, 0.3)
    whole = Peaks(values, np.full(20, 0.3), 1.0).features()
    quarter = Peaks(values, np.full(5, 0.3), 0.25).features()
    np.testing.assert_allclose(whole, quarter, atol=0.1)
