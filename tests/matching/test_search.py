"""Searches of small tomograms: their parts, regions, templates, interruptions and errors."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scipy.fft
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from weft.errors import ItemError, SettingsError
from weft.matching.angles import angular_distance, rotation_grid
from weft.matching.filters import radial_gain
from weft.matching.kernel import Found, Part, correlate
from weft.matching.mask import ellipsoid_mask
from weft.matching.matcher import Matcher
from weft.matching.parts import blocks
from weft.matching.plan import SearchSettings, Template
from weft.matching.search import SearchResult, run_search, search
from weft.matching.weights import Imaging, local_weights
from weft.physics.fourier import radius_3d
from weft.physics.geometry import TiltGeometry, euler_angles, euler_matrix
from weft.physics.optics import Optics
from weft.physics.symmetry import symmetry_operators
from weft.tilts.gridding import TiltContrast

Floats = NDArray[np.float32]
BOX, VOXEL, STEP = 14, 10.0, 60.0
SHAPE = (30, 36, 42)
#: Two structures of points: x, y, z, voxels from the centre.
FIRST = np.array([[3.5, 0.0, 0.0], [0.0, 3.0, 0.0], [-2.0, -2.0, 2.0], [0.0, 0.0, -3.0]])
SECOND = np.array([[2.0, 2.0, 2.0], [-2.0, -2.0, 2.0], [0.0, 0.0, -3.5], [1.0, -3.0, 0.0]])


def points(places: NDArray[np.float64], shape: tuple[int, ...], centre: Any) -> Floats:
    """Gaussians of 1.3 voxels, x y z from a centre z y x."""
    z, y, x = np.meshgrid(*(np.arange(n) - c for n, c in zip(shape, centre, strict=True)), indexing="ij")
    out = np.zeros(shape)
    for px, py, pz in places:
        out += np.exp(-((x - px) ** 2 + (y - py) ** 2 + (z - pz) ** 2) / (2.0 * 1.3**2))
    return out.astype(np.float32)


def template(structure: NDArray[np.float64] = FIRST, symmetry: str = "C1", box: int = BOX) -> Template:
    volume = torch.from_numpy(points(structure, (box,) * 3, [box // 2] * 3))
    return Template(volume, ellipsoid_mask(box, (5.0, 5.0, 5.0), 0.5), 100.0, symmetry)


def noisy(seed: int = 1, level: float = 0.15) -> Floats:
    return np.random.default_rng(seed).normal(0.0, level, SHAPE).astype(np.float32)


def plant(volume: Floats, structure: NDArray[np.float64], place: tuple[int, int, int], matrix: Any) -> None:
    volume += points(structure @ np.asarray(matrix).T, SHAPE, place)


def grid_matrix(number: int) -> Any:
    return euler_matrix(*rotation_grid(STEP)[number])


def plain(**changes: Any) -> SearchSettings:
    """Nothing is filtered."""
    return SearchSettings(**({"angular_step": STEP, "weighting": "none", "whiten": False} | changes))


def imaging(hand: float = 1.0) -> Imaging:
    angles = np.arange(-54.0, 55.0, 6.0)
    size = [n * VOXEL for n in SHAPE[::-1]]
    geometry = TiltGeometry.of(angles, defocus=40000.0, volume_size=size, image_size=size[:2], hand=hand)
    contrast = TiltContrast.of(Optics(2.5, 300.0, 2.7, 0.07), len(angles), dose=3.0 * np.arange(len(angles)))
    return Imaging(geometry, contrast)


def best(found: SearchResult) -> tuple[tuple[int, ...], int]:
    at = np.unravel_index(int(found.scores.argmax()), found.scores.shape)
    return tuple(int(a) + s for a, s in zip(at, found.start, strict=True)), int(found.numbers[at])


# ------------------------------------------------------------------------------------------------- parts


def test_parts_cover_every_place_once_and_stay_in_the_memory() -> None:
    for shape, reach, longest, memory in (
        ((200, 464, 480), 12, np.inf, 2e8),
        ((200, 464, 480), 12, 17.3, 2e8),
        ((40, 500, 300), 30, 60.0, 2e7),
        ((61, 67, 71), 3, np.inf, 1e6),
    ):
        region = ((3, 5, 7), tuple(n - 11 for n in shape))
        count = np.zeros(shape, np.int8)
        for block in blocks(region, shape, reach, longest, memory, 40.0):
            count[tuple(slice(a, a + n) for a, n in zip(block.start, block.shape, strict=True))] += 1
            assert max(block.shape) <= max(longest, 1.0)
            # sizes are rounded up to those that transform fast, by a tenth at most
            assert np.prod([float(n) for n in block.size]) * 40.0 <= 1.35 * memory
            assert all(s >= n + reach for s, n in zip(block.size, block.shape, strict=True))
        inside = np.zeros(shape, bool)
        inside[tuple(slice(a, a + n) for a, n in zip(*region, strict=True))] = True
        assert (count == inside).all()


def test_memory_that_no_part_fits_into() -> None:
    with pytest.raises(ItemError, match="allow more memory"):
        blocks(((0, 0, 0), (50, 50, 50)), (50, 50, 50), 20, np.inf, 1e6, 40.0)


@pytest.mark.parametrize("turns", [False, True])
def test_scores_do_not_depend_on_the_parts(turns: bool) -> None:
    """Unfiltered, a part's halo holds all that its places see: single precision alone differs."""
    volume = noisy()
    plant(volume, FIRST, (14, 15, 20), grid_matrix(31))
    whole = search(volume, VOXEL, [template()], None, plain(mask_turns=turns))
    parts = in_parts(volume, plain(mask_turns=turns), 14)
    assert whole.parts == 1
    assert parts.parts > 20
    assert np.abs(whole.scores - parts.scores).max() < 1e-5
    close = np.abs(whole.scores - parts.scores) < 1e-6
    assert (whole.numbers == parts.numbers)[close].mean() > 0.999
    assert best(whole) == best(parts) == ((14, 15, 20), 31)
    assert whole.statistics.search_space == parts.statistics.search_space == volume.size * 72
    assert whole.statistics.std == pytest.approx(parts.statistics.std, rel=1e-4)


def in_parts(
    volume: Floats, settings: SearchSettings, longest: int, given: Imaging | None = None
) -> SearchResult:
    """A search of the same with parts of so many places, and nothing else changed."""
    matcher = Matcher.of(volume, VOXEL, [template()], given, settings)
    parts = blocks(matcher.plan.region, SHAPE, matcher.plan.reach, longest, 1e9, 40.0)
    return run_search(replace(matcher, plan=replace(matcher.plan, parts=parts)))


def coloured(given: Imaging, seed: int) -> Floats:
    """Noise as a reconstruction leaves it: a wedge, dose, and the CTF at the volume's centre."""
    middle = 0.5 * given.geometry.volume_size
    power = local_weights(given, middle, SHAPE, VOXEL, BOX * VOXEL).noise.numpy()
    spectrum = scipy.fft.rfftn(np.random.default_rng(seed).normal(size=SHAPE)) * np.sqrt(power)
    noise = scipy.fft.irfftn(spectrum, s=SHAPE)
    return np.asarray(0.15 * noise / noise.std(), dtype=np.float32)


# a spectrum's inverse is smooth, and its kernel hardly longer than a part's margin; the noise of tilts has
# edges at the wedge and at zeros of the CTF, so that its kernel is long: measured rms 0.09 σ, at most 0.65 σ
@pytest.mark.parametrize(("noise", "largest", "typical"), [(False, 2e-3, 4e-4), (True, 0.06, 0.012)])
def test_filtered_parts_agree(noise: bool, largest: float, typical: float) -> None:
    """All parts have one CTF here, so that nothing but the filters' reach makes them differ."""
    given = imaging(hand=0.0)
    volume = coloured(given, 2)
    plant(volume, FIRST, (14, 15, 20), grid_matrix(31))
    settings = SearchSettings(angular_step=STEP, hand="0", low_pass=25.0, whiten_noise=noise)
    whole, parts = in_parts(volume, settings, 1000, given), in_parts(volume, settings, 20, given)
    assert (whole.parts, parts.parts) == (1, 12)
    away = np.abs(whole.scores - parts.scores)
    assert away.max() < largest
    assert np.sqrt((away**2).mean()) < typical
    assert best(whole) == best(parts) == ((14, 15, 20), 31)
    assert whole.scores.max() > 8.0 * whole.statistics.std


def test_parts_with_ctfs_of_their_own_agree_with_the_whole() -> None:
    """Phases that differ by less than was asked for change a score little."""
    given = imaging()
    volume = coloured(given, 3)
    plant(volume, FIRST, (14, 15, 20), grid_matrix(31))
    found = []
    for phase_error in (3.0, 0.02):
        settings = SearchSettings(
            angular_step=STEP, low_pass=25.0, phase_error=phase_error, whiten_noise=False
        )
        found.append(search(volume, VOXEL, [template()], given, settings))
    assert found[0].parts == 1 < found[1].parts
    # a phase of 0.02 rad at the corners, at the highest frequency: its sine differs by as much at most
    assert np.abs(found[0].scores - found[1].scores).max() < 0.02
    assert best(found[0]) == best(found[1]) == ((14, 15, 20), 31)


def test_a_smaller_phase_error_makes_more_parts() -> None:
    volume, given = noisy(), imaging()
    counts = []
    for phase_error in (3.0, 0.03, 0.01):
        settings = SearchSettings(angular_step=STEP, phase_error=phase_error)
        counts.append(len(Matcher.of(volume, VOXEL, [template()], given, settings).plan.parts))
    assert counts == sorted(counts)
    assert counts[0] == 1 < counts[1] < counts[2]


# ---------------------------------------------------------------------------------------- what is searched


def test_a_region_is_a_part_of_the_whole() -> None:
    volume = noisy()
    whole = search(volume, VOXEL, [template()], None, plain())
    # first and last place: x 100 … 305, y 0 … 99, z 95 … 1e9 Å
    found = search(volume, VOXEL, [template()], None, plain(region=(100.0, 305.0, -50.0, 99.0, 95.0, 1e9)))
    assert found.start == (10, 0, 10)
    assert found.scores.shape == (20, 10, 21)
    assert np.abs(found.scores - whole.scores[10:, :10, 10:31]).max() < 1e-5


def test_only_what_is_allowed_is_searched() -> None:
    volume = noisy()
    plant(volume, FIRST, (8, 9, 10), grid_matrix(11))
    plant(volume, FIRST, (20, 24, 30), grid_matrix(40))
    allowed = np.zeros(SHAPE, bool)
    allowed[15:, 12:, :] = True
    matcher = Matcher.of(volume, VOXEL, [template()], None, plain())
    whole, found = run_search(matcher), run_search(matcher, allowed=allowed)
    assert best(found) == ((20, 24, 30), 40)
    assert np.abs(found.scores - whole.scores)[allowed].max() < 1e-6
    assert (found.scores[~allowed] == -1.0).all()
    assert found.statistics.search_space == allowed.sum() * 72


def test_templates_compete() -> None:
    volume = noisy(3)
    turns = Rotation.random(4, random_state=1).as_matrix()
    planted = [((8, 9, 10), FIRST), ((20, 26, 30), SECOND), ((8, 26, 12), SECOND), ((20, 9, 32), FIRST)]
    for (place, structure), turn in zip(planted, turns, strict=True):
        plant(volume, structure, place, turn)
    both = [template(FIRST), template(SECOND)]
    found = search(volume, VOXEL, both, None, plain(angular_step=36.0))
    alone = [search(volume, VOXEL, [one], None, plain(angular_step=36.0)) for one in both]
    assert len(found.rotations) == 2 * len(alone[0].rotations)
    for place, structure in planted:
        near = tuple(slice(p - 1, p + 2) for p in place)
        at = np.unravel_index(int(found.scores[near].argmax()), (3, 3, 3))
        assert int(found.owner[found.numbers[near][at]]) == (structure is SECOND)
    assert np.array_equal(found.scores, np.maximum(alone[0].scores, alone[1].scores))
    squares = [a.statistics.std**2 + a.statistics.mean**2 for a in alone]
    assert found.statistics.std**2 + found.statistics.mean**2 == pytest.approx(np.mean(squares), rel=1e-5)


def test_a_symmetric_template_takes_fewer_rotations() -> None:
    operators = symmetry_operators("D2").numpy()
    structure = np.concatenate([np.array([[2.8, 1.3, 2.0]]) @ g.T for g in operators])
    volume = noisy(4)
    turn = Rotation.random(random_state=5).as_matrix()
    plant(volume, structure, (14, 16, 20), turn)
    settings = plain(angular_step=24.0)
    full = search(volume, VOXEL, [template(structure)], None, settings)
    fewer = search(volume, VOXEL, [template(structure, "D2")], None, settings)
    assert len(fewer.rotations) < 0.3 * len(full.rotations)
    for found in (full, fewer):
        place, number = best(found)
        assert place == (14, 16, 20)
        wanted = euler_of(turn)
        # a grid rotation lies within one step of every rotation
        assert float(angular_distance(found.rotations[number][None], wanted, "D2")) < 24.0
    # the nearest orientation may lie elsewhere in its cell
    assert fewer.scores.max() > 0.9 * full.scores.max()


def euler_of(matrix: Any) -> torch.Tensor:
    return euler_angles(torch.from_numpy(np.asarray(matrix)))[None]


def test_random_phases_take_away_what_any_structure_scores() -> None:
    """A block that is much stronger than the structure: with random phases the template likes it as much."""
    volume = noisy(6, 0.05)
    plant(volume, FIRST, (14, 9, 11), grid_matrix(31))
    volume[10:20, 22:30, 26:36] += 20.0
    without = search(volume, VOXEL, [template()], None, plain())
    found = search(volume, VOXEL, [template()], None, plain(random_phase=True))
    here, block = (slice(12, 17), slice(7, 12), slice(9, 14)), (slice(8, 22), slice(20, 32), slice(24, 38))
    gain = found.scores[here].max() / found.scores[block].max()
    assert gain > 1.05 * without.scores[here].max() / without.scores[block].max()
    assert best(found) == ((14, 9, 11), 31)
    # the background keeps its level, so that scores compare with those of other searches
    assert np.median(found.scores) == pytest.approx(np.median(without.scores), abs=0.1)


# -------------------------------------------------------------------------------------------- interruptions


class Stop(Exception):
    pass


class Shelf:
    """A keeper in memory that is interrupted after a few parts."""

    def __init__(self, after: int) -> None:
        self.kept: dict[int, tuple[int, Found]] = {}
        self.after = after

    def load(self, unit: int) -> tuple[int, Found] | None:
        return self.kept.get(unit)

    def save(self, unit: int, done: int, found: Found) -> None:
        if len(self.kept) >= self.after:
            raise Stop
        self.kept[unit] = (done, found)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("random_phase", [False, True])
def test_an_interrupted_search_goes_on(threads: int, random_phase: bool) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        volume, settings = noisy(7), plain(random_phase=random_phase)
        matcher = Matcher.of(volume, VOXEL, [template(), template(SECOND)], None, settings)
        parts = blocks(matcher.plan.region, SHAPE, matcher.plan.reach, 20, 1e9, 40.0)
        matcher = replace(matcher, plan=replace(matcher.plan, parts=parts))
        whole = run_search(matcher)
        shelf = Shelf(5)
        with pytest.raises(Stop):
            run_search(matcher, keeper=shelf)
        assert len(shelf.kept) == 5 < len(parts)
        shelf.after = 10**6
        seen: list[tuple[float, float]] = []
        resumed = run_search(matcher, keeper=shelf, progress=lambda done, left: seen.append((done, left)))
    finally:
        torch.set_num_threads(before)
    assert np.array_equal(resumed.scores, whole.scores)
    assert np.array_equal(resumed.numbers, whole.numbers)
    assert resumed.statistics.search_space == whole.statistics.search_space
    assert resumed.statistics.std == pytest.approx(whole.statistics.std, rel=1e-9)
    assert seen[0][0] > 5 / len(parts)
    assert max(done for done, _ in seen) == pytest.approx(1.0)
    assert seen[-1][1] == pytest.approx(0.0, abs=1e-6)


def test_a_search_goes_on_within_a_part() -> None:
    """What is kept may be a part's first orientations."""
    volume = noisy(8)
    matcher = Matcher.of(volume, VOXEL, [template(), template(SECOND)], None, plain())
    whole, shelf = run_search(matcher), Shelf(10**6)
    run_search(matcher, keeper=shelf)
    shares = len(shelf.kept)
    # the first share has come as far as its 30th orientation
    mine = torch.arange(len(matcher.plan.rotations))[::shares][:30]
    few = Found.empty(SHAPE, False)
    block = matcher.plan.parts[0]
    for index in range(2):
        own = mine[matcher.plan.owner[mine] == index]
        if len(own):
            fine, deviation = matcher.fine(index), matcher.filters.deviation
            part = Part.of(matcher.filtered(block), fine, block.shape, deviation)
            correlate(part, fine, None, euler_matrix(*matcher.plan.rotations[own].unbind(-1)), own, few)
    shelf.kept[0] = (30, few)
    again = run_search(matcher, keeper=shelf)
    assert np.array_equal(again.scores, whole.scores)
    assert again.statistics.search_space == whole.statistics.search_space
    assert shelf.kept[0][0] == len(torch.arange(len(matcher.plan.rotations))[::shares])


# --------------------------------------------------------------------------------------------- what is wrong


def wrong(message: str, volume: Floats, templates: list[Template], **changes: Any) -> None:
    with pytest.raises(ItemError, match=message):
        search(volume, VOXEL, templates, None, plain(**changes))


def test_templates_that_do_not_fit() -> None:
    good = template()
    flat = Template(torch.zeros(14, 14, 12), torch.ones(14, 14, 12), 100.0)
    wrong("not a cube", noisy(), [flat])
    wrong(r"mask has \(12, 12, 12\).*--box", noisy(), [Template(good.volume, torch.ones(12, 12, 12), 100.0)])
    wrong("template is 32 voxels wide and the tomogram only 30", noisy(), [template(box=32)])
    wrong("boxes of one size", noisy(), [good, template(box=16)])
    wrong("mask is empty", noisy(), [Template(good.volume, torch.zeros(14, 14, 14), 100.0)])
    wrong("template is flat", noisy(), [Template(torch.ones(14, 14, 14), good.mask, 100.0)])
    broken = good.volume.clone()
    broken[3, 4, 5] = float("nan")
    wrong("template holds values that are not finite", noisy(), [Template(broken, good.mask, 100.0)])
    with pytest.raises(SettingsError, match="X9"):
        search(noisy(), VOXEL, [template(symmetry="X9")], None, plain())


def test_tomograms_that_cannot_be_searched() -> None:
    for value in (np.nan, np.inf):
        volume = noisy()
        volume[7, 20, 33] = value
        wrong("not finite at voxel x 33, y 20, z 7", volume, [template()])
    wrong("one value", np.full(SHAPE, 3.0, np.float32), [template()])
    wrong("three axes", noisy()[0], [template()])


def test_regions_that_are_not_there() -> None:
    beyond, upside_down = (900.0, 990.0, 0.0, 9e9, 0.0, 9e9), (0.0, 9e9, 0.0, 9e9, 80.0, 20.0)
    wrong("region from 900 to 990 Å along x", noisy(), [template()], region=beyond)
    wrong("region from 80 to 20 Å along z", noisy(), [template()], region=upside_down)
    wrong("six numbers, not 5", noisy(), [template()], region=(0.0, 9e9, 0.0, 9e9, 80.0))


# ------------------------------------------------------------------------------------------------- filters


def test_band_passes() -> None:
    k = radius_3d((20, 20, 20), VOXEL)
    gain = radial_gain(k, 40.0, 120.0)
    assert float(gain[k * 40.0 > 1.16].abs().max()) < 1e-6
    assert float(gain[k * 120.0 < 0.84].abs().max()) < 1e-6
    assert float(gain[(k * 40.0 < 0.84) & (k * 120.0 > 1.16)].min()) == 1.0
    assert float(radial_gain(torch.tensor([1.0 / 40.0]), 40.0, 0.0)) == pytest.approx(0.5)


def test_filtered_noise_is_white() -> None:
    """Noise of 1/k amplitude becomes equally strong at all frequencies finer than the template."""
    random = np.random.default_rng(3)
    spectrum = np.fft.rfftn(random.normal(size=(48, 48, 48)))
    k = radius_3d((48, 48, 48), VOXEL).numpy()
    volume = np.fft.irfftn(spectrum / np.maximum(k, 0.005), s=(48, 48, 48), axes=(0, 1, 2)).astype(np.float32)
    settings = SearchSettings(angular_step=STEP, weighting="none")
    matcher = Matcher.of(volume, VOXEL, [template()], None, settings)
    block = blocks(((0, 0, 0), (48, 48, 48)), (48, 48, 48), matcher.plan.reach, 1000, 1e9, 40.0)[0]
    reach = matcher.plan.reach
    white = matcher.filtered(block)[reach : reach + 48, reach : reach + 48, reach : reach + 48].numpy()
    window = np.hanning(48)
    power = np.abs(np.fft.rfftn(white * window[:, None, None] * window[:, None] * window)) ** 2
    edges = np.linspace(0.2, 0.9, 8) / (2.0 * VOXEL)
    shells = [np.sqrt(power[(k >= a) & (k < b)].mean()) for a, b in itertools.pairwise(edges)]
    assert max(shells) / min(shells) < 1.2
    # as large as the search takes for granted when it looks for empty places
    assert matcher.filters.deviation / 2.0 < white.std() < matcher.filters.deviation * 2.0
