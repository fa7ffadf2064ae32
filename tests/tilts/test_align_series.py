"""Whole tilt series: the reference series with beads, and what may be wrong with a series."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from alignment_truth import ReferenceSeries, alignment_errors, reference_series

from weft.errors import ItemError
from weft.tilts.align import align_series
from weft.tilts.alignment import AlignmentSettings, TiltAlignment


@pytest.fixture(scope="module")
def series(reference_data: Path) -> ReferenceSeries:
    return reference_series(reference_data, "tilts_beads")


@pytest.fixture(scope="module")
def aligned(series: ReferenceSeries) -> TiltAlignment:
    return align_series(series.images, series.angles, series.pixel_size, axis=84.0)


def chosen(series: ReferenceSeries, tilts: list[int]) -> ReferenceSeries:
    order = tuple(series.order[i] for i in tilts)
    return replace(series, images=series.images[tilts], angles=series.angles[tilts], order=order)


def by_beads(series: ReferenceSeries, axis: float | None = 85.3) -> TiltAlignment:
    settings = AlignmentSettings(method="fiducials", bead_diameter=10.0)
    return align_series(series.images, series.angles, series.pixel_size, axis, settings)


def test_accuracy(series: ReferenceSeries, aligned: TiltAlignment) -> None:
    """Beads are chosen and found unasked. The demand is 3 Å and 0.15°; measured are 0.4 Å and 0.01°."""
    assert aligned.method == "fiducials"
    assert aligned.verdict == "good"
    error = alignment_errors(aligned.geometry, series)
    assert error.rms < 0.8
    assert error.tilt_rms.max() < 2.0
    assert abs(aligned.axis - series.axis) < 0.03
    metrics = aligned.metrics()
    assert metrics["residual_mean_px"] < 0.3
    assert metrics["markers"] == 18
    assert metrics["observations_per_tilt_min"] >= 12
    # the alignment knows how good it is: a factor of 2 either way
    assert 0.5 < error.rms / float(aligned.expected_error.square().mean().sqrt()) < 2.0


def test_level(series: ReferenceSeries, aligned: TiltAlignment) -> None:
    """Beads lie on both surfaces of a slab that is inclined by 2° and −4°; its surfaces are 900 Å apart.

    1° is what the tomogram's thickness forgives (25 Å at the edge of the field).
    """
    error = alignment_errors(aligned.geometry, series)
    assert max(abs(v) for v in error.level) < 1.0
    assert abs(aligned.levelling.thickness - 900.0) < 100.0
    assert float(aligned.markers[:, 2].abs().max()) < 550.0


def test_stage_angles_stay(series: ReferenceSeries, aligned: TiltAlignment) -> None:
    assert torch.equal(aligned.stage_angles, series.angles)
    assert float((aligned.geometry.angles - series.angles).abs().max()) < 0.3


def test_round_trip(aligned: TiltAlignment) -> None:
    text = json.dumps(aligned.to_dict(), allow_nan=False)
    again = TiltAlignment.from_dict(json.loads(text))
    assert json.dumps(again.to_dict(), allow_nan=False) == text
    assert torch.equal(again.geometry.matrices, aligned.geometry.matrices)
    assert torch.equal(again.observations.residuals, aligned.observations.residuals)
    assert again.metrics() == aligned.metrics()


def test_predictions_are_the_geometry_s(aligned: TiltAlignment) -> None:
    """Markers (levelled, relative to the volume's centre) project to where observations say they should."""
    g, o = aligned.geometry, aligned.observations
    places = g.project(aligned.markers + 0.5 * g.volume_size)[o.tilt, o.marker, :2] - 0.5 * g.image_size
    torch.testing.assert_close(places, o.predicted, rtol=0, atol=1e-4)
    columns = aligned.per_tilt()
    assert all(len(column) == len(aligned) for column in columns.values())
    assert int(columns["observations"].sum()) == int((o.weight > 0).sum())


def test_order_does_not_matter(series: ReferenceSeries) -> None:
    """Every second tilt, once sorted and once shuffled, with one angle twice."""
    tilts = [*range(0, 41, 2), 20]
    mixed = [
        tilts[i] for i in torch.randperm(len(tilts), generator=torch.Generator().manual_seed(1)).tolist()
    ]
    a, b = by_beads(chosen(series, tilts)), by_beads(chosen(series, mixed))
    assert torch.equal(b.stage_angles, series.angles[mixed])
    errors = alignment_errors(b.geometry, chosen(series, mixed))
    assert errors.rms < 1.0
    torch.testing.assert_close(
        b.geometry.angles.sort().values, a.geometry.angles.sort().values, rtol=0, atol=0.02
    )


def test_empty_tilts_are_named_and_cost_nothing_else(series: ReferenceSeries) -> None:
    """One image of zeros, one of not-a-number, one of a closed shutter's noise."""
    part = chosen(series, list(range(0, 41, 2)))
    images = part.images.clone()
    images[3] = 0.0
    images[5, 0, 0] = torch.nan
    images[14] = torch.poisson(torch.full((720, 720), 0.5), generator=torch.Generator().manual_seed(1))
    result = by_beads(replace(part, images=images))
    assert torch.nonzero(~result.aligned)[:, 0].tolist() == [3, 5, 14]
    assert "-42.0°, -30.0°" in result.notes[0]
    assert any("24.0°" in note for note in result.notes)
    good = result.aligned
    error = alignment_errors(result.geometry.select(good), chosen(part, torch.nonzero(good)[:, 0].tolist()))
    assert error.rms < 1.0


def test_an_axis_far_off_or_unknown(series: ReferenceSeries) -> None:
    """15° wrong, and not given: found; turned by 180°: that side is kept."""
    part = chosen(series, list(range(1, 41, 3)))
    assert abs(by_beads(part, 100.0).axis - series.axis) < 0.15
    unknown = by_beads(part, None)
    assert abs(unknown.axis - series.axis) < 0.15
    assert any("180°" in note for note in unknown.notes)
    assert abs(by_beads(part, 264.0).axis - series.axis - 180.0) < 0.15


def test_sparse_and_short_series(series: ReferenceSeries) -> None:
    """Steps of 12°, and three tilts: aligned as well as beads allow; the short one is not called good."""
    for first in (0, 2):  # some tilts are put in the wrong place at first
        sparse = chosen(series, list(range(first, 41, 4)))
        result = by_beads(sparse)
        assert bool(result.aligned.all())
        assert alignment_errors(result.geometry, sparse).rms < 1.0
    short = chosen(series, [19, 20, 21])
    result = by_beads(short)
    assert result.verdict == "doubtful"
    assert any("3 tilts" in note for note in result.notes)
    assert alignment_errors(result.geometry, short).rms < 3.0


def test_large_shifts(series: ReferenceSeries) -> None:
    """Images rolled by up to ±500 Å: what leaves one side comes in at the other, where no bead should be."""
    part = chosen(series, list(range(0, 41, 2)))
    g = torch.Generator().manual_seed(4)
    by = (60 * torch.randn(len(part.images), 2, generator=g)).round().long().clamp(-125, 125)
    images = torch.stack(
        [torch.roll(image, tuple(b), (0, 1)) for image, b in zip(part.images, by.tolist(), strict=True)]
    )
    result = by_beads(replace(part, images=images))
    moved = series.pixel_size * by.flip(1).double()
    geometry = replace(result.geometry, shift=result.geometry.shift - moved)
    assert alignment_errors(geometry, part).rms < 1.0


def test_too_few_images() -> None:
    images = torch.zeros(5, 64, 64)
    images[:2] = torch.randn(2, 64, 64, generator=torch.Generator().manual_seed(1))
    with pytest.raises(ItemError, match="2 of 5 tilt images"):
        align_series(images, torch.arange(5.0), 10.0, 0.0)
    with pytest.raises(ItemError, match="4 tilt angles"):
        align_series(images, torch.arange(4.0), 10.0, 0.0)


def test_no_alignment_at_all() -> None:
    images = torch.randn(5, 64, 48, generator=torch.Generator().manual_seed(1))
    angles = torch.tensor([0.0, 3.0, -3.0, 6.0, -6.0])
    result = align_series(images, angles, 10.0, 12.0, AlignmentSettings(method="none"))
    assert (result.method, result.verdict, result.axis) == ("none", "doubtful", 12.0)
    assert torch.equal(result.geometry.angles, angles.double())
    assert result.geometry.volume_size.tolist() == [480.0, 640.0, 2000.0]
    again = TiltAlignment.from_dict(json.loads(json.dumps(result.to_dict(), allow_nan=False)))
    assert again.metrics() == result.metrics()
    assert len(again.observations) == 0
