"""Turned templates against exact ones, and the correlation against its definition, place by place."""

from __future__ import annotations

import itertools
from typing import cast

import healpix
import numpy as np
import pytest
import scipy.fft
import torch
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

from weft.errors import ItemError
from weft.matching.filters import phase_randomised
from weft.matching.kernel import Found, MaskedTemplate, Part, centre_of, correlate, correlate_plain
from weft.matching.mask import ellipsoid_mask
from weft.matching.plan import SearchSettings, Template, mask_reach
from weft.matching.rotation import FineMap
from weft.matching.search import SearchResult, search
from weft.physics import fourier

Floats = NDArray[np.float64]


def points(n: int, xyz: Floats, width: float, matrix: Floats | None = None) -> Floats:
    """A sum of Gaussians at places that count from the voxel n//2, turned exactly."""
    i = np.arange(n) - n // 2
    z, y, x = np.meshgrid(i, i, i, indexing="ij")
    out = np.zeros((n, n, n))
    places = xyz if matrix is None else xyz @ matrix.T
    for height, (px, py, pz) in enumerate(places, start=1):
        out += height * np.exp(-((x - px) ** 2 + (y - py) ** 2 + (z - pz) ** 2) / (2.0 * width**2))
    return out


def tensor(array: Floats) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))


# -------------------------------------------------------------------------------------- turned templates

XYZ = np.array([[3.0, 0.5, -1.0], [-2.0, 2.5, 0.0], [0.0, -3.0, 2.0], [1.0, 1.0, 3.5]])


@pytest.mark.parametrize("n", [20, 21])
@pytest.mark.parametrize(("width", "tolerance"), [(1.5, 0.008), (1.0, 0.016)])
def test_turned_maps_are_the_turned_structure(n: int, width: float, tolerance: float) -> None:
    """At a width of 1.5 voxels all but 1 % lies below half of Nyquist's frequency; at 1 two thirds of it.

    Stated are 1 % there, and 4 % at Nyquist's own.
    """
    axis = np.arange(n) - n // 2
    within = axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2 < (n // 2 - 2) ** 2
    fine = FineMap.of(tensor(points(n, XYZ, width)))
    matrices = Rotation.random(6, random_state=1).as_matrix()
    turned = fine.turned(torch.from_numpy(matrices)).numpy()
    plain = fine.turned_plain(torch.from_numpy(matrices)).numpy()
    for matrix, fast, slow in zip(matrices, turned, plain, strict=True):
        exact = points(n, XYZ, width, matrix)
        assert np.abs(fast - exact)[within].max() < tolerance * exact.max()
        # places in single precision that count from −1 to 1
        assert np.abs(fast - slow)[within].max() < 2e-5 * exact.max()


def test_right_angles_are_exact() -> None:
    """No interpolation: but the boost that undoes its damping elsewhere is 1 % too much here."""
    volume = points(21, XYZ, 1.5)
    quarter = torch.tensor([[[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]])  # x to y
    turned = FineMap.of(tensor(volume)).turned(quarter)[0].numpy()
    assert np.abs(turned - np.rot90(volume, axes=(2, 1))).max() < 0.015 * volume.max()


def test_maps_that_cannot_be_turned() -> None:
    with pytest.raises(ItemError, match="not a cube"):
        FineMap.of(torch.zeros(4, 4, 5))
    with pytest.raises(ItemError, match="not finite"):
        FineMap.of(torch.full((4, 4, 4), float("nan")))


def test_turned_masks_stay_between_0_and_1() -> None:
    mask = ellipsoid_mask(24, (9.0, 5.0, 4.0), 0.0)
    fine = FineMap.of_mask(mask)
    turned = fine.turned(torch.from_numpy(Rotation.random(8, random_state=2).as_matrix()))
    assert float(turned.min()) >= 0.0
    assert float(turned.max()) <= 1.0 + 1e-6
    assert torch.equal(fine.turned(torch.eye(3)[None])[0], mask)
    # linear interpolation moves no weight
    assert torch.allclose(turned.sum(dim=(1, 2, 3)), mask.sum(), rtol=0.02)


# ------------------------------------------------------------------------------------- by the definition


def scores_by_definition(volume: Floats, box: Floats, mask: Floats, reach: int) -> Floats:
    """LCC(x) = Σ m (T − T̄) V(x + r) / (Σ m σ_T σ_V(x)) of every voxel; V is 0 outside."""
    m, t = (centre_of(torch.from_numpy(a), reach).numpy() for a in (mask, box))
    total = m.sum()
    mean = (m * t).sum() / total
    sigma = np.sqrt((m * (t - mean) ** 2).sum() / total)
    wide = np.pad(volume, reach)
    scores = np.zeros(volume.shape)
    for place in itertools.product(*(range(n) for n in volume.shape)):
        v = wide[tuple(slice(p, p + 2 * reach + 1) for p in place)]
        here = (m * v).sum() / total
        local = np.sqrt((m * (v - here) ** 2).sum() / total)
        scores[place] = (m * (t - mean) * v).sum() / (total * sigma * local)
    return scores


def turned(fine: FineMap, matrix: torch.Tensor, plain: bool) -> torch.Tensor:
    return (fine.turned_plain(matrix) if plain else fine.turned(matrix))[0]


SHAPE = (11, 13, 16)
MATRICES = Rotation.random(5, random_state=4).as_matrix()


def tomogram(seed: int = 1) -> Floats:
    random = np.random.default_rng(seed)
    return random.normal(size=SHAPE)


def template(n: int, mask: torch.Tensor, *, turns: bool = False, noise: bool = False) -> MaskedTemplate:
    volume = tensor(points(n, XYZ * 0.7, 1.2))
    return MaskedTemplate(
        FineMap.of(volume),
        mask,
        mask_reach(mask, turns),
        FineMap.of_mask(mask) if turns else None,
        FineMap.of(phase_randomised(volume, 3)) if noise else None,
    )


def part_of(
    volume: Floats, wanted: MaskedTemplate, *, shared: bool = True, allowed: torch.Tensor | None = None
) -> Part:
    """With zeros around it: as many at both ends, or few that serve both."""
    reach = wanted.reach
    size = [fourier.fast_size(n + (reach if shared else 2 * reach)) for n in volume.shape]
    wide = torch.zeros(size)
    wide[tuple(slice(reach, reach + n) for n in volume.shape)] = tensor(volume)
    return Part.of(wide, wanted, SHAPE, float(volume.std()), allowed)


def run(
    part: Part, wanted: MaskedTemplate, weights: torch.Tensor | None = None, *, plain: bool = False
) -> Found:
    found = Found.empty(SHAPE, wanted.fine_noise is not None)
    numbers = torch.arange(len(MATRICES)) + 7
    (correlate_plain if plain else correlate)(
        part, wanted, weights, torch.from_numpy(MATRICES), numbers, found
    )
    return found


def some_weights(n: int) -> torch.Tensor:
    """A wedge and a damping: real, not the same in all directions."""
    k = [np.fft.fftfreq(n)[:, None, None], np.fft.fftfreq(n)[:, None], np.fft.rfftfreq(n)]
    wedge = (np.abs(k[0]) < 0.8 * np.abs(k[2]) + 0.1) * 1.0
    return tensor(wedge * np.exp(-4.0 * sum(a * a for a in k)))


CASES = {
    "sphere": (12, (4.0, 4.0, 4.0), False, False, False),
    "sphere in an odd box": (11, (3.5, 3.5, 3.5), False, False, False),
    "weights": (12, (4.0, 4.0, 4.0), False, True, False),
    "a mask that stays": (12, (4.0, 3.0, 2.0), False, False, False),
    "a mask that turns": (14, (4.5, 3.0, 2.0), True, False, False),
    "random phases": (12, (4.0, 4.0, 4.0), False, True, True),
    "a mask that fills the box": (12, (9.0, 9.0, 9.0), False, False, False),
    "a turning mask that fills the box": (13, (6.0, 5.0, 5.0), True, True, False),
    "all of it": (13, (4.0, 3.0, 3.0), True, True, True),
}


@pytest.mark.parametrize("case", CASES)
def test_scores_are_those_of_the_definition(case: str) -> None:
    n, radii, turns, weighted, noise = CASES[case]
    wanted = template(n, ellipsoid_mask(n, radii, 0.5), turns=turns, noise=noise)
    weights = some_weights(n) if weighted else None
    volume = tomogram()
    for plain in (False, True):
        exact = []
        for fine in [wanted.fine] + ([wanted.fine_noise] if wanted.fine_noise is not None else []):
            for matrix in torch.from_numpy(MATRICES)[:, None]:
                # each with its own interpolation, which differ at the box's faces
                box = turned(fine, matrix, plain).double().numpy()
                if weights is not None:
                    box = scipy.fft.irfftn(scipy.fft.rfftn(box) * weights.numpy(), s=box.shape)
                own = wanted.fine_mask
                mask = wanted.mask if own is None else turned(own, matrix, plain)
                exact.append(scores_by_definition(volume, box, mask.double().numpy(), wanted.reach))
        scores = np.array(exact[: len(MATRICES)])
        assert np.abs(scores).max() < 1.0
        found = run(part_of(volume, wanted), wanted, weights, plain=plain)
        # single precision: sums of some hundred products of transforms of some thousand values
        assert np.abs(found.best.numpy() - scores.max(0)).max() < 1e-5
        close = np.sort(scores, axis=0)
        clear = close[-1] - close[-2] > 1e-4
        assert (found.number.numpy() == scores.argmax(0) + 7)[clear].all()
        assert found.count == scores.size
        assert found.total == pytest.approx(scores.sum(), abs=1e-6 * scores.size)
        assert found.squares == pytest.approx((scores**2).sum(), rel=1e-4)
        if noise:
            assert found.noise is not None
            assert np.abs(found.noise.numpy() - np.array(exact[len(MATRICES) :]).max(0)).max() < 1e-5


def test_zeros_beyond_one_end_serve_the_other() -> None:
    wanted = template(12, ellipsoid_mask(12, (4.0, 4.0, 4.0), 0.5))
    alone, wide = (run(part_of(tomogram(), wanted, shared=s), wanted) for s in (True, False))
    assert part_of(tomogram(), wanted).size < part_of(tomogram(), wanted, shared=False).size
    assert torch.allclose(alone.best, wide.best, atol=2e-6)


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("turns", [False, True])
def test_nothing_is_compared_where_it_is_not_allowed_or_empty(plain: bool, turns: bool) -> None:
    wanted = template(12, ellipsoid_mask(12, (3.0, 3.0, 3.0), 0.5), turns=turns)
    volume = tomogram()
    volume[:, :, 6:] = 0.0
    allowed = torch.ones(SHAPE)
    allowed[:5] = 0.0
    found = run(part_of(volume, wanted, allowed=allowed), wanted, plain=plain)
    free = torch.ones(SHAPE, dtype=torch.bool)
    free[:5] = False
    free[:, :, 6 + 3 + 2 :] = False  # the mask and its soft edge reach no further
    assert bool((found.number[5:, :, :9] >= 7).all())
    assert bool((found.number[~free] == -1).all())
    assert bool((found.best[~free] == -2.0).all())
    assert float(found.best.max()) <= 1.0 + 1e-5
    assert found.count <= int(free.sum()) * len(MATRICES)


def test_no_score_is_above_one() -> None:
    """A sharp mask that turns over a sharp block: weights below 0 would let a score be anything."""
    block = torch.zeros(14, 14, 14)
    block[4:9, 5:9, 4:8] = 1.0
    mask = ellipsoid_mask(14, (5.0, 4.0, 3.0), 0.0)
    wanted = MaskedTemplate(FineMap.of(block), mask, mask_reach(mask, True), FineMap.of_mask(mask))
    volume = np.zeros(SHAPE)
    volume[3:8, 4:8, 5:9] = 1.0
    for plain in (False, True):
        assert float(run(part_of(volume, wanted), wanted, plain=plain).best.max()) <= 1.0 + 1e-4


def test_shares_of_the_orientations_join() -> None:
    wanted = template(12, ellipsoid_mask(12, (4.0, 4.0, 4.0), 0.5), noise=True)
    part = part_of(tomogram(), wanted)
    whole = run(part, wanted)
    shares = [Found.empty(SHAPE, True) for _ in range(2)]
    for share, found in enumerate(shares):
        numbers = torch.arange(len(MATRICES))[share::2]
        correlate(part, wanted, None, torch.from_numpy(MATRICES)[numbers], numbers + 7, found)
    shares[0].join(shares[1])
    assert torch.equal(shares[0].best, whole.best)
    assert torch.equal(shares[0].number, whole.number)
    assert shares[0].noise is not None
    assert torch.equal(shares[0].noise, whole.noise)
    assert shares[0].count == whole.count
    assert shares[0].squares == pytest.approx(whole.squares)


def test_random_phases_keep_the_amplitudes() -> None:
    volume = tensor(points(12, XYZ, 1.2))
    changed = phase_randomised(volume, 5)
    before, after = (torch.fft.rfftn(v).abs() for v in (volume, changed))
    assert torch.allclose(before, after, atol=1e-4 * float(before.max()))
    assert float((volume * changed).sum() / (volume * volume).sum()) < 0.8
    assert not torch.allclose(changed, phase_randomised(volume, 6))


# ------------------------------------------------------------------------------- the published planted block


def planted(side: int, place: tuple[int, int, int], *, turns: bool = False) -> SearchResult:
    """pytom-match-pick's own test: a block of 12³ voxels, turned as rotation 100 of the 38.53° grid.

    Its box has 12 voxels and turns about (n−1)/2; ours turns about n//2, and has a voxel more to each side.
    """
    block = torch.zeros(14, 14, 14)
    block[4:9, 5:9, 4:8] = 1.0
    block[8, 9, 6:8] = 1.0
    template = Template(block, ellipsoid_mask(14, (5.0, 5.0, 5.0), 0.5), 10.0)
    off = SearchSettings(angular_step=38.53, weighting="none", whiten=False, mask_turns=turns, refine=0)
    turned = FineMap.of(block).turned(PLANTED[None])[0]
    volume = torch.zeros(side, side, side)
    volume[tuple(slice(p - 7, p + 7) for p in place)] = turned
    return search(volume.numpy(), 1.0, [template], None, off)


def planted_rotation() -> torch.Tensor:
    from weft.matching.angles import rotation_grid
    from weft.physics.geometry import euler_matrix

    return euler_matrix(*rotation_grid(38.53)[100])


PLANTED = planted_rotation()


@pytest.mark.parametrize("turns", [False, True])
def test_a_planted_block_is_found(turns: bool) -> None:
    place = (21, 12, 19)
    found = planted(32, place, turns=turns)
    at = np.unravel_index(int(found.scores.argmax()), found.scores.shape)
    assert found.scores.max() > 0.99
    assert at == place
    assert found.numbers[at] == 100
    assert len(found.rotations) == 480
    # its ledge of two voxels is all that tells some of its turns and shifts apart
    away = np.linalg.norm(np.stack(np.indices(found.scores.shape), -1) - np.array(place), axis=-1)
    assert found.scores[away > 2.0].max() < 0.96


class Spline:
    """pytom's way of turning: splines, about the box's middle, by Rz(psi) Rx(theta) Rz(phi); axis 0 is x."""

    def __init__(self, volume: Floats, order: int) -> None:
        self.volume, self.size, self.order = volume, len(volume), order

    def turned_plain(self, matrices: torch.Tensor) -> torch.Tensor:
        middle = np.full(3, 0.5 * (self.size - 1))
        inverse = matrices[0].numpy().T
        found = ndimage.affine_transform(self.volume, inverse, middle - inverse @ middle, order=self.order)
        return tensor(found)[None]


def test_scores_of_pytoms_planted_block() -> None:
    """Its own interpolation, angles and mask in our formula: max and deviation of its search of 100³ voxels.

    pytom-match-pick 0.14 on a NumPy stand-in for CuPy: max 0.9933855, standard deviation 0.0050077 of the
    480·10⁶ scores; 0.005006 is published. All that is not 0 lies within 22 voxels of the block.
    """
    block = np.zeros((14, 14, 14))
    block[4:9, 5:9, 4:8] = 1.0
    block[8, 9, 6:8] = 1.0
    directions = np.stack([a % (2.0 * np.pi) for a in healpix.pix2ang(2, np.arange(48))[::-1]], 1)
    angles = sorted((*d, 2.0 * np.pi * k / 10) for d in directions for k in range(10))
    matrices = torch.from_numpy(Rotation.from_euler("zxz", angles).as_matrix())
    spline, mask = Spline(block, 3), ellipsoid_mask(14, (5.0, 5.0, 5.0), 0.5, 6.5)
    wanted = MaskedTemplate(cast(FineMap, spline), mask, mask_reach(mask))
    volume = torch.zeros(44, 44, 44)
    # what is planted was turned linearly; its box of 12 voxels has its voxel 6 at the place, ours its voxel 7
    volume[15:29, 15:29, 15:29] = Spline(block, 1).turned_plain(matrices[100:101])[0]
    places = (44 - 2 * wanted.reach,) * 3
    part = Part.of(volume, wanted, places, float(volume.std()))
    found = Found.empty(places, False)
    correlate_plain(part, wanted, None, matrices, torch.arange(480), found)
    at = np.unravel_index(int(found.best.argmax()), places)
    assert at == (22 - wanted.reach,) * 3
    assert found.number[at] == 100
    assert float(found.best.max()) == pytest.approx(0.9933855, abs=1e-4)
    # its spline's values in single precision
    assert np.sqrt(found.squares / 480e6) == pytest.approx(0.0050077, abs=1e-6)


@pytest.mark.slow
def test_the_published_planted_block() -> None:
    """100³ voxels, z 77, y 26, x 40: published max > 0.99 and standard deviation 0.0050 of 480·10⁶ scores.

    We count the scores of places that are not empty only; over all 480·10⁶ the deviation is 0.0051. How the
    sharp block is interpolated, and whether it turns about n//2 or (n−1)/2, moves it from 0.0048 to 0.0051.
    """
    found = planted(100, (77, 26, 40))
    at = np.unravel_index(int(found.scores.argmax()), found.scores.shape)
    assert found.scores.max() > 0.99
    assert at == (77, 26, 40)
    assert found.numbers[at] == 100
    assert found.scores.size * len(found.rotations) == 480_000_000
    statistics = found.statistics
    squares = (statistics.std**2 + statistics.mean**2) * statistics.search_space
    assert np.sqrt(squares / 480e6) == pytest.approx(0.0050, abs=1.5e-4)


def test_reach_of_a_mask() -> None:
    # even boxes have one more voxel below the centre than above, which is not used
    assert mask_reach(torch.ones(12, 12, 12)) == 5
    assert mask_reach(torch.ones(11, 11, 11)) == 5
    assert mask_reach(ellipsoid_mask(24, (9.0, 4.0, 4.0), 0.0)) == 9
    diagonal = torch.zeros(24, 24, 24)
    diagonal[12 - 5 : 12 + 6, 12 - 5 : 12 + 6, 12] = 1.0
    assert mask_reach(diagonal) == 5
    assert mask_reach(diagonal, turns=True) in (8, 9)
