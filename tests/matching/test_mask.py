"""Masks: a published constant, distances against brute force, masks from maps."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from weft.errors import ItemError, SettingsError
from weft.matching.mask import MaskSettings, create_mask, ellipsoid_mask, map_mask, soft_edge


def mask(**given: Any) -> torch.Tensor:
    return create_mask(MaskSettings(**given))


def distances(box: int, centre: float) -> torch.Tensor:
    i = torch.arange(box, dtype=torch.float64) - centre
    return (i[:, None, None] ** 2 + i[:, None] ** 2 + i**2).sqrt()


def test_the_published_sum_of_pytom_match_pick() -> None:
    # pytom_create_mask.py -b 60 -r 14 -s 1, centred on the middle of the box, 29.5
    made = mask(box=60, radius=14, soft=1, centre="box")
    assert float(made.double().sum()) == pytest.approx(13849.44, abs=0.01)
    # its profile, read off its mask by radius: exp(-(d/s)²), and nothing beyond 2.12 s
    r = distances(60, 29.5)
    for radius, value in ((14.309088, 0.9088865), (15.124483, 0.2823909), (15.898113, 0.0272465)):
        at = (r - radius).abs() < 1e-6
        assert made[at].numel() > 0
        assert made[at].tolist() == pytest.approx([value] * int(at.sum()), abs=1e-6)
    assert float(made[r > 14 + 3 / math.sqrt(2)].max()) == 0.0


def test_spheres_are_centred_on_the_voxel_that_templates_turn_about() -> None:
    made = mask(box=60, radius=14, soft=1)
    # half a voxel away from the middle the lattice points are others: 0.012 % more than the constant
    assert float(made.double().sum()) == pytest.approx(13849.44, rel=2e-4)
    for axis in range(3):
        inner = made.narrow(axis, 1, 59)
        assert torch.equal(inner, inner.flip(axis))
    assert made.shape == (60, 60, 60)
    assert made.dtype == torch.float32
    assert float(made[30, 30, 44]) == 1.0
    assert float(made[30, 30, 45]) == pytest.approx(math.exp(-1.0))
    odd = {"box": 61, "radius": 14, "soft": 1}
    assert torch.equal(mask(**odd), mask(**odd, centre="box"))


def test_hard_spheres_hold_their_voxels() -> None:
    made = mask(box=41, radius=12.5)
    assert torch.equal(made, (distances(41, 20) <= 12.5).float())


def test_ellipsoids_lie_along_the_right_axes() -> None:
    made = mask(box=64, radius=24, radius_minor1=15, radius_minor2=9)
    assert [int(made[32, 32].sum()), int(made[32, :, 32].sum()), int(made[:, 32, 32].sum())] == [49, 31, 19]
    assert float(made.sum()) == pytest.approx(4 / 3 * math.pi * 24 * 15 * 9, rel=0.01)
    assert torch.equal(
        mask(box=64, radius=24, radius_minor1=15), mask(box=64, radius=24, radius_minor1=15, radius_minor2=15)
    )


def test_soft_edges_of_ellipsoids_follow_the_true_distance() -> None:
    soft = 4.0
    made = ellipsoid_mask(48, (14.0, 9.0, 5.0), soft).numpy()
    # a dense cloud of points on the surface: the nearest is at most 0.12 voxels from the true foot
    u, v = np.meshgrid(np.linspace(0, math.pi, 300), np.linspace(0, 2 * math.pi, 500), indexing="ij")
    surface = np.stack([14 * np.sin(u) * np.cos(v), 9 * np.sin(u) * np.sin(v), 5 * np.cos(u)], -1).reshape(
        -1, 3
    )
    rng = np.random.default_rng(2)
    zyx = rng.integers(4, 44, (150, 3))
    xyz = (zyx[:, ::-1] - 24).astype(float)
    outside = (xyz[:, 0] / 14) ** 2 + (xyz[:, 1] / 9) ** 2 + (xyz[:, 2] / 5) ** 2 > 1
    d = np.array([np.sqrt(((surface - p) ** 2).sum(1).min()) for p in xyz])
    truth = np.where(outside, soft_edge(torch.from_numpy(d), soft).numpy(), 1.0)
    near_end = np.abs(d - 3 / math.sqrt(2) * soft) < 0.02
    found = made[zyx[:, 0], zyx[:, 1], zyx[:, 2]]
    assert int((truth[outside] > 0).sum()) > 20
    assert np.abs(found - truth)[~near_end].max() < 2e-3


def test_masks_of_maps_are_their_density_extended() -> None:
    r = distances(64, 32)
    map_ = torch.exp(-((r / 12.0) ** 2)).float()
    threshold = math.exp(-((10.0 / 12.0) ** 2))
    plain = map_mask(map_, 4.0, MaskSettings(box=64, threshold=threshold))
    assert torch.equal(plain, (map_ >= threshold).float())
    wider = map_mask(map_, 4.0, MaskSettings(box=64, threshold=threshold, extend=16.0))
    # distances go from voxel to voxel: the surface is uncertain by one
    assert torch.all(wider[r <= 13.0] == 1.0)
    assert torch.all(wider[r > 14.0] == 0.0)
    soft = map_mask(map_, 4.0, MaskSettings(box=64, threshold=threshold, soft=3.0))
    assert float(soft[32, 32, 45]) == pytest.approx(math.exp(-1.0))
    assert torch.equal((soft == 1.0), (plain == 1.0))


def test_a_map_without_a_threshold_decides_itself() -> None:
    r = distances(64, 32)
    ball = torch.sigmoid((15.0 - r) / 0.7).float()
    ball[5, 5, 5] = 1.0  # dust
    for map_ in (ball, -ball):
        made = map_mask(map_, 4.0, MaskSettings(box=64))
        assert float(made.sum()) == pytest.approx(4 / 3 * math.pi * 15**3, rel=0.1)
        assert float(made[5, 5, 5]) == 0.0


def test_wrong_requests_are_one_sentence() -> None:
    with pytest.raises(
        SettingsError, match=r"radius of 40 voxels does not fit into a box of 60.*at least 81"
    ):
        mask(box=60, radius=40)
    assert float(mask(box=81, radius=40).sum()) > 0
    with pytest.raises(SettingsError, match="needs a radius"):
        mask(box=60)
    with pytest.raises(ValueError, match="an ellipsoid needs radius"):
        MaskSettings(box=60, radius_minor1=3)
    map_ = torch.rand(20, 20, 20)
    with pytest.raises(ItemError, match=r"20 × 20 × 20 voxels, not 24"):
        map_mask(map_, 4.0, MaskSettings(box=24))
    with pytest.raises(SettingsError, match="no voxel of the map reaches the threshold 2"):
        map_mask(map_, 4.0, MaskSettings(box=20, threshold=2.0))
    with pytest.raises(SettingsError, match="every voxel"):
        map_mask(map_, 4.0, MaskSettings(box=20, threshold=-1.0))
