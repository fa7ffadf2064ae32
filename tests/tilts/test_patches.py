"""Alignment without fiducials against exact truth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tilts.alignment_truth import alignment_errors, reference_series

from weft.tilts.alignment import AlignmentSettings
from weft.tilts.patches import align_by_patches


def test_plain_series(reference_data: Path) -> None:
    """The issue's targets are 12 Å, 0.5° and 2°; 0.6 Å, 0.05° and 0.6° were measured."""
    series = reference_series(reference_data, "tilts_plain")
    found = align_by_patches(series.images, series.angles, series.pixel_size, series.axis + 1.0)
    errors = alignment_errors(found.geometry, series)
    assert found.verdict == "good", found.notes
    assert errors.rms < 2.0
    assert errors.tilt_rms.max() < 4.0
    assert found.axis == pytest.approx(series.axis, abs=0.25)
    assert max(abs(v) for v in errors.level) < 2.0
    assert abs(float(found.geometry.level_x) - series.truth["level"][0]) < 2.0
    assert abs(float(found.geometry.level_y) - series.truth["level"][1]) < 2.0
    figures = found.metrics()
    assert figures["halves_error"] < 2.0
    assert figures["markers"] > 60


@pytest.mark.slow
def test_plain_series_with_a_black_tilt_a_gap_and_no_axis(reference_data: Path) -> None:
    series = reference_series(reference_data, "tilts_plain")
    images = series.images.clone()
    images[12] = torch.poisson(torch.full_like(images[12], 2.0), generator=torch.Generator().manual_seed(1))
    found = align_by_patches(images, series.angles, series.pixel_size, None)
    assert torch.nonzero(~found.aligned)[:, 0].tolist() == [12]
    assert (found.axis - series.axis + 90.0) % 180.0 - 90.0 == pytest.approx(0.0, abs=0.25)
    errors = alignment_errors(found.geometry, series)
    assert np.delete(errors.tilt_rms, 12).max() < 5.0


def test_noise_is_not_called_aligned() -> None:
    rng = torch.Generator().manual_seed(4)
    images = torch.poisson(torch.full((15, 128, 128), 40.0), generator=rng)
    found = align_by_patches(images, torch.arange(-42.0, 43.0, 6.0), 16.0, 0.0, AlignmentSettings())
    assert found.verdict == "bad"
    assert found.notes
