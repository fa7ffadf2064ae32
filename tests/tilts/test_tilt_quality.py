"""Which tilts are bad: on counts made by a law that is written here, and on the reference series."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch

from weft.tilts.quality import TiltJudgement, TiltQualitySettings, block_means, judge_tilts

DOSE_SYMMETRIC = [0.0] + [s * a for a in range(3, 61, 3) for s in (1.0, -1.0)]


def counts(angles: list[float], t: float = 0.6, offset: float = 0.0, noise: float = 0.03) -> torch.Tensor:
    """(tilts, 16, 16): Lambert and Beer for a slab, each image and each block off by some percent."""
    rng = np.random.default_rng(3)
    path = 1.0 / np.cos(np.radians(np.asarray(angles) - offset))
    image = 40.0 * np.exp(-t * path) * (1.0 + noise * rng.standard_normal(len(angles)))
    blocks = image[:, None, None] * (1.0 + 0.05 * rng.standard_normal((len(angles), 16, 16)))
    return torch.from_numpy(blocks)


def judge(
    angles: list[float], means: torch.Tensor, masked: torch.Tensor | None = None, **settings: float
) -> TiltJudgement:
    hidden = torch.zeros(len(angles)) if masked is None else masked
    return judge_tilts(torch.tensor(angles), means, hidden, TiltQualitySettings(**settings))


def flagged(judgement: TiltJudgement) -> list[int]:
    return [i for i, reason in enumerate(judgement.bad) if reason]


@pytest.mark.parametrize("t", [0.1, 0.6, 1.4])
@pytest.mark.parametrize("offset", [-12.0, 0.0, 10.0])
def test_good_series_have_no_bad_tilts(t: float, offset: float) -> None:
    """Thin and thick specimens, lamellae inclined to the stage; angles as they were taken, not sorted."""
    judgement = judge(DOSE_SYMMETRIC, counts(DOSE_SYMMETRIC, t, offset))
    assert flagged(judgement) == []
    assert judgement.notes == ()
    # images are off by 3 %: four standard deviations, and what the fit adds
    assert (judgement.relative - 1.0).abs().max() < 0.15


def test_fit_finds_thickness_and_inclination() -> None:
    judgement = judge(DOSE_SYMMETRIC, counts(DOSE_SYMMETRIC, 0.8, 10.0, noise=0.01))
    # the slope is known to 0.01 / (spread of 1/cos, 0.3) / √41 ≈ 0.005; offsets are tried in steps of 2.5°
    assert judgement.thickness == pytest.approx(0.8, abs=0.05)
    assert judgement.inclination == pytest.approx(10.0, abs=2.5)


@pytest.mark.parametrize("power", [0.5, 1.0, 1.5])
def test_exposure_growing_with_the_tilt(power: float) -> None:
    """Saxton's scheme and weaker ones: counts hardly fall, or rise."""
    cosine = torch.cos(torch.deg2rad(torch.tensor(DOSE_SYMMETRIC)))
    means = counts(DOSE_SYMMETRIC, 0.3) * (cosine**-power)[:, None, None]
    means[11] *= 0.3
    judgement = judge(DOSE_SYMMETRIC, means)
    assert flagged(judgement) == [11]
    # 1/cos^n is not quite exponential in 1/cos: a few percent beside the 3 % of the images
    good = torch.arange(41) != 11
    assert (judgement.relative[good] - 1.0).abs().max() < 0.15


def test_known_exposures_explain_any_scheme() -> None:
    """Every second image with a fifth of the dose: nothing is wrong once that is known."""
    dose = torch.where(torch.arange(41) % 2 == 0, 5.0, 1.0).to(torch.float64)
    means = counts(DOSE_SYMMETRIC) * dose[:, None, None]
    masked = torch.zeros(41)
    known = judge_tilts(torch.tensor(DOSE_SYMMETRIC), means, masked, exposures=dose)
    assert flagged(known) == []
    assert flagged(judge(DOSE_SYMMETRIC, means)) != []


def test_each_fault_has_its_reason_and_others_none() -> None:
    means = counts(DOSE_SYMMETRIC)
    masked = torch.zeros(41)
    means[4] = 0.0  # the shutter
    means[7] *= 0.03  # nearly nothing came through
    means[10] *= 0.35
    means[15, :, :7] *= 0.04  # a grid bar over 44 %
    means[20] = math.nan
    means[22] = 8.0
    masked[25] = 0.4
    bad = judge(DOSE_SYMMETRIC, means, masked).bad
    starts = {
        4: "empty: no counts",
        7: "dark: 3",
        10: "too few counts: 3",
        15: "blocked: 4",
        20: "not a number: 100%",
        22: "empty: all its pixels are the same",
        25: "masked: 40%",
    }
    for i, reason in enumerate(bad):
        assert reason.startswith(starts[i]) if i in starts else not reason, (i, reason)
    assert "blocked" not in bad[10]
    assert "counts" not in bad[15]


def test_grid_bar_that_moves_in_with_the_tilt() -> None:
    """Neighbours of a blocked tilt are blocked as well: that does not excuse it."""
    means = counts(DOSE_SYMMETRIC)
    for i, angle in enumerate(DOSE_SYMMETRIC):
        if angle > 30:
            means[i, :, : int((angle - 30) / 3)] *= 0.05
    judgement = judge(DOSE_SYMMETRIC, means)
    share = [int((a - 30) / 3) / 16 if a > 30 else 0.0 for a in DOSE_SYMMETRIC]
    assert flagged(judgement) == [i for i, s in enumerate(share) if s > 0.25]
    np.testing.assert_allclose(judgement.blocked.numpy(), share, atol=1e-12)


def test_what_is_dark_in_every_tilt_belongs_to_the_specimen() -> None:
    means = counts(DOSE_SYMMETRIC)
    means[3:, :5] *= 0.05  # and three that show another field
    judgement = judge(DOSE_SYMMETRIC, means)
    assert flagged(judgement) == []
    assert "31% of the field is dark in every tilt" in judgement.notes[0]


@pytest.mark.parametrize("bad", [0, 1, 2])
def test_series_of_three_tilts(bad: int) -> None:
    angles = [60.0, -60.0, 0.0]
    means = counts(angles)
    assert flagged(judge(angles, means)) == []
    means[bad] *= 0.01
    assert flagged(judge(angles, means)) == [bad]


@pytest.mark.parametrize("n", [0, 1, 2])
def test_hardly_any_tilts(n: int) -> None:
    angles = [30.0, 0.0][:n]
    judgement = judge(angles, counts(angles))
    assert judgement.bad == ("",) * n
    assert len(judgement.relative) == n


def test_more_than_half_in_comparison_is_doubted() -> None:
    """With 12 bright images among 41 whose exposure is not known, nobody can tell who is wrong."""
    means = counts(DOSE_SYMMETRIC)
    faint = [i for i in range(41) if i % 10 < 7]
    means[faint] *= 0.3
    judgement = judge(DOSE_SYMMETRIC, means)
    assert flagged(judgement) == []
    assert [i for i, text in enumerate(judgement.doubts) if text] == faint
    assert "29 of 41 tilts" in judgement.notes[0]
    assert "doubtful" in judgement.notes[0]


def test_beam_lost_half_way_leaves_the_dark_ones_out_and_says_so() -> None:
    means = counts(DOSE_SYMMETRIC)
    means[18:] *= 0.01
    judgement = judge(DOSE_SYMMETRIC, means)
    assert flagged(judgement) == list(range(18, 41))
    assert "doubtful" in judgement.notes[0]


def test_images_that_are_no_counts_are_not_compared() -> None:
    means = torch.from_numpy(np.random.default_rng(0).standard_normal((41, 16, 16)))
    means[3] = math.nan
    judgement = judge(DOSE_SYMMETRIC, means)
    assert flagged(judgement) == [3]
    assert "no counts" in judgement.notes[0]


def test_thresholds_are_settings() -> None:
    means = counts(DOSE_SYMMETRIC)
    means[6] *= 0.7
    assert flagged(judge(DOSE_SYMMETRIC, means)) == []
    assert flagged(judge(DOSE_SYMMETRIC, means, fewest_counts=0.8)) == [6]
    only_said = judge(DOSE_SYMMETRIC, means, fewest_counts=0.8, leave_out_bad=False)
    assert flagged(only_said) == []
    assert only_said.doubts[6].startswith("too few counts: 6")  # 0.7 of an image that is 3 % off


def test_scale_of_the_counts_does_not_matter() -> None:
    means = counts(DOSE_SYMMETRIC)
    means[9] *= 0.2
    one, other = judge(DOSE_SYMMETRIC, means), judge(DOSE_SYMMETRIC, means * 3e-4)
    assert one.bad == other.bad
    torch.testing.assert_close(one.relative, other.relative)


def test_shapes_must_belong_together() -> None:
    with pytest.raises(ValueError, match="3 angles"):
        judge_tilts(torch.zeros(3), torch.ones(2, 4, 4), torch.zeros(3))


def test_block_means_are_means() -> None:
    image = torch.arange(64 * 48, dtype=torch.float32).reshape(64, 48)
    expected = image.double().reshape(16, 4, 16, 3).mean((1, 3))
    torch.testing.assert_close(block_means(image), expected)
    assert block_means(torch.ones(5, 700)).shape == (5, 16)
    assert block_means(torch.full((33, 31), 7.0)).eq(7.0).all()


@pytest.mark.parametrize(("name", "folder"), [("TS_A", "tilts_beads"), ("TS_B", "tilts_plain")])
def test_reference_series(reference_data: Path, name: str, folder: str) -> None:
    """Exact simulations: all 41 tilts are good; with one black it alone is bad."""
    files = sorted((reference_data / "reference" / folder / "frames").glob(f"{name}_*.tif"))
    assert len(files) == 41
    angles = [float(path.stem.split("_")[-1]) for path in files]
    # every 4th row: 180 rows of counts are enough
    images = [tifffile.imread(path)[:, ::4].astype(np.float32).sum(0) for path in files]
    means = torch.stack([block_means(torch.from_numpy(image)) for image in images])
    judgement = judge(angles, means)
    assert flagged(judgement) == []
    # 800 counts in a block of 16 × 45 pixels of 1.5 electrons, and beads: the level is good to 1 %
    assert (judgement.relative - 1.0).abs().max() < 0.02
    means[17] = 0.0
    assert flagged(judge(angles, means)) == [17]
