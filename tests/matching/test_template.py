"""Templates: resampling against analytic maps, filters, centring; density of atoms against direct sums."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gemmi
import numpy as np
import pytest
import torch

from weft.errors import ItemError, SettingsError
from weft.formats import mrc
from weft.formats.structure import Atoms, read_atoms
from weft.matching.density import find_particle, otsu_threshold
from weft.matching.scattering import (
    AtomSettings,
    density_from_atoms,
    density_from_points,
    water_scattering,
)
from weft.matching.template import (
    TemplateSettings,
    band_pass,
    create_template,
    mirrored,
    resample,
)

VOLT = 47.878  # V Å^2: h^2 / (2 pi m e), from scattering length density to potential

# z, y, x in Å from the centre, standard deviation in Å, height: lopsided, and no symmetry
BLOBS = [((0.0, 0.0, 0.0), 22.0, 1.0), ((30.0, -20.0, 10.0), 18.0, 0.7), ((-10.0, 35.0, -25.0), 20.0, 0.5)]


def blobs(n: int, voxel_size: float, shift: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> torch.Tensor:
    """The sum of Gaussians at the places of voxels, `shift` (Å) away from index n//2."""
    i = (torch.arange(n, dtype=torch.float64) - n // 2) * voxel_size
    out = torch.zeros(n, n, n, dtype=torch.float64)
    for place, sigma, height in BLOBS:
        g = [torch.exp(-0.5 * ((i - p - s) / sigma) ** 2) for p, s in zip(place, shift, strict=True)]
        out += height * g[0][:, None, None] * g[1][:, None] * g[2]
    return out.float()


def settings(**given: Any) -> TemplateSettings:
    return TemplateSettings(**({"voxel_size": 8.0, "box": 40, "normalise": False} | given))


# ratios of whole and of no small numbers, finer and coarser, even and odd boxes
@pytest.mark.parametrize(
    ("n", "voxel_size", "box", "new"),
    [
        (64, 5.0, 32, 10.0),
        (65, 5.0, 32, 10.0),
        (64, 5.0, 45, 7.3456),
        (48, 8.0, 97, 3.1416),
        (63, 5.0, 41, 8.66),
        (48, 8.0, 64, 8.0),
    ],
)
def test_resampling_gives_the_analytic_map(n: int, voxel_size: float, box: int, new: float) -> None:
    made = resample(blobs(n, voxel_size), voxel_size, new, box)
    # 2e-3 of the highest density: what the blobs have beyond the coarsest Nyquist frequency and box
    assert made.dtype == torch.float32
    assert float((made - blobs(box, new)).abs().max()) < 2e-3


def test_resampling_by_a_whole_ratio_is_a_fourier_crop() -> None:
    map_ = torch.from_numpy(np.random.default_rng(3).normal(size=(24, 24, 24))).float()
    made = resample(map_, 4.0, 8.0, 12)
    # by another road: average over both signs of the Nyquist frequency, crop, transform back
    spectrum = np.fft.fftn(map_.double().numpy())
    for axis in range(3):
        kept = np.concatenate([np.arange(7), np.arange(19, 24)])
        moved = np.moveaxis(spectrum, axis, 0)
        half = 0.5 * (moved[6] + moved[18])
        moved = moved[kept]
        moved[6] = half
        spectrum = np.moveaxis(moved, 0, axis)
    truth = np.fft.ifftn(spectrum).real / 8.0
    # rounding of single precision on noise of standard deviation 1
    assert np.abs(made.numpy() - truth).max() < 1e-5


def test_resampling_moves_a_place_between_voxels_to_the_centre() -> None:
    shift = (7.7, -11.2, 13.9)
    centre = torch.tensor([32.0 + s / 5.0 for s in shift])
    made = resample(blobs(64, 5.0, shift), 5.0, 8.0, 40, centre)
    assert float((made - blobs(40, 8.0)).abs().max()) < 2e-3


def test_padding_is_solvent() -> None:
    made = resample(blobs(48, 8.0) + 3.0, 8.0, 8.0, 80)
    assert made[0, 0, 0] == 3.0
    assert torch.all((made[:15] - 3.0).abs() < 1e-4)


@pytest.mark.parametrize("shape", ["cosine", "gaussian"])
def test_filters_halve_amplitudes_at_their_resolution(shape: str) -> None:
    n, voxel_size = 48, 5.0
    x = torch.arange(n) * voxel_size
    for cycles, given in ((8, {"low_pass": 30.0}), (3, {"high_pass": 80.0})):
        wave = torch.cos(2 * math.pi * cycles * x / (n * voxel_size)).expand(n, n, n)
        chosen = settings(voxel_size=voxel_size, box=n, filter_shape=shape, **given)
        assert torch.allclose(band_pass(wave, chosen), 0.5 * wave, atol=1e-5)


def test_the_cosine_edge_ends_where_it_says() -> None:
    n, voxel_size = 60, 5.0
    chosen = settings(voxel_size=voxel_size, box=n, low_pass=30.0, filter_edge=0.2)
    x = torch.arange(n) * voxel_size
    for cycles, left in ((8, 1.0), (12, 0.0)):  # 0.8 and 1.2 of 10 cycles
        wave = torch.cos(2 * math.pi * cycles * x / (n * voxel_size)).expand(n, n, n)
        assert torch.allclose(band_pass(wave, chosen), left * wave, atol=1e-5)


def test_mirroring_is_about_the_centre() -> None:
    for n in (10, 11):
        map_ = torch.zeros(n, n, n)
        map_[2, 3, n // 2 + 3] = 1.0
        assert mirrored(map_)[2, 3, n // 2 - 3] == 1.0
        assert torch.equal(mirrored(mirrored(map_)), map_)


def test_centring_brings_the_centre_of_mass_to_the_centre() -> None:
    shift = (21.3, -9.1, 4.4)
    off = create_template(blobs(64, 5.0, shift), 5.0, settings())
    made = create_template(blobs(64, 5.0, shift), 5.0, settings(center=True))
    again = create_template(blobs(64, 5.0), 5.0, settings(center=True))
    # wherever the map lay on its grid, the template is the same: 0.3 % of the maximum are 0.02 voxels
    assert float((made.map - again.map).abs().max()) < 3e-3
    assert made.offset == (0.0, 0.0, 0.0)
    found = np.array(off.offset)[::-1] - shift
    truth = np.array(create_template(blobs(64, 5.0), 5.0, settings()).offset)[::-1]
    assert np.abs(found - truth).max() < 0.1  # Å


def test_mirrored_templates_know_where_their_particle_is() -> None:
    plain = create_template(blobs(64, 5.0, (0.0, 0.0, 20.0)), 5.0, settings())
    turned = create_template(blobs(64, 5.0, (0.0, 0.0, 20.0)), 5.0, settings(mirror=True))
    assert turned.offset[0] == -plain.offset[0]
    assert turned.offset[1:] == plain.offset[1:]


def test_templates_are_light_on_dark_unless_inverted() -> None:
    map_ = blobs(64, 5.0) + 2.0
    made = create_template(map_, 5.0, settings(normalise=True, low_pass=30.0))
    assert not made.dark
    assert float(made.map.std()) == pytest.approx(1.0, abs=1e-5)
    assert float(made.map[20, 20, 20]) > 5.0
    assert abs(float(made.map[0, 0, 0])) < 0.01  # solvent
    turned = create_template(map_, 5.0, settings(normalise=True, low_pass=30.0, invert=True))
    assert turned.dark
    assert torch.equal(turned.map, -made.map)
    assert create_template(-map_, 5.0, settings()).dark
    assert not create_template(-map_, 5.0, settings(invert=True)).dark


def test_the_diameter_is_that_of_a_sphere() -> None:
    i = torch.arange(96) - 48.0
    r = (i[:, None, None] ** 2 + i[:, None] ** 2 + i**2).sqrt()
    sphere = torch.sigmoid((30.0 - r) / 0.5)
    sphere[3, 3, 3] = 1.0  # dust
    made = create_template(sphere, 4.0, settings(box=70))
    # half a voxel on either side
    assert made.diameter == pytest.approx(240.0, abs=4.0)
    big = torch.nn.functional.interpolate(sphere[None, None], scale_factor=2.5, mode="trilinear")[0, 0]
    found = find_particle(big)
    assert found.step == 2
    assert found.radius() == pytest.approx(75.0, abs=2.0)
    # the centre of voxels 2.5 times finer: (48 + 0.5) 2.5 - 0.5
    assert found.centre.tolist() == pytest.approx([120.75] * 3, abs=0.02)


def test_otsu_parts_two_classes() -> None:
    rng = np.random.default_rng(1)
    values = torch.from_numpy(np.concatenate([rng.normal(0, 1, 9000), rng.normal(10, 1, 1000)]))
    assert 3.0 < otsu_threshold(values) < 7.0


@pytest.mark.parametrize(
    ("map_", "voxel_size", "given", "said"),
    [
        (torch.zeros(10, 12, 10), 5.0, {}, "not a cube, it has 10 × 12 × 10"),
        (torch.full((12, 12, 12), math.nan), 5.0, {}, "1728 of the map's 1728 voxels are not finite"),
        (torch.ones(12, 12, 12), 5.0, {}, "the same everywhere"),
        (blobs(32, 8.0), 0.0, {}, "--input-voxel-size"),
    ],
)
def test_maps_that_cannot_be_used(map_: torch.Tensor, voxel_size: float, given: Any, said: str) -> None:
    with pytest.raises(ItemError, match=said):
        create_template(map_, voxel_size, settings(**given))


def test_a_box_that_cuts_the_particle_is_named_with_the_one_it_needs() -> None:
    map_ = blobs(64, 5.0)
    with pytest.raises(
        SettingsError, match=r"a box of 12 voxels of 8 Å cuts away \d+ %.*a box of (\d+)"
    ) as e:
        create_template(map_, 5.0, settings(box=12))
    needed = int(str(e.value).split("a box of ")[-1].rstrip("."))
    assert create_template(map_, 5.0, settings(box=needed)).map.shape[0] == needed
    with pytest.raises(SettingsError, match="--center"):
        create_template(blobs(64, 5.0, (60.0, 0.0, 0.0)), 5.0, settings(box=22))


def test_filters_that_contradict_the_voxels() -> None:
    with pytest.raises(ValueError, match="finer than voxels of 8 Å can show"):
        settings(low_pass=15.0)
    with pytest.raises(ValueError, match="must be coarser"):
        settings(low_pass=40.0, high_pass=30.0)


# Density of atoms -------------------------------------------------------------------------------------


def _structure_factors(places: np.ndarray, weights: np.ndarray, k: np.ndarray) -> np.ndarray:
    """Sum of w exp(-2 pi i k r) over points x, y, z: (kz, ky, kx)."""
    px, py, pz = (np.exp(-2j * np.pi * k[:, None] * places[:, axis]) for axis in range(3))
    out = np.zeros((len(k),) * 3, complex)
    for start in range(0, len(places), 2000):
        part = slice(start, start + 2000)
        plane = (py[:, None, part] * px[None, :, part]).reshape(len(k) ** 2, -1)
        out += ((pz[:, part] * weights[part]) @ plane.T).reshape(out.shape)
    return out


# Fraser, MacRae & Suzuki 1978
_FRASER = {"H": 5.15, "C": 16.44, "N": 2.49, "O": 9.13, "S": 19.86, "Mg": 17.16}


def _direct(atoms: Atoms, centre: Any, b_factor: float, k: np.ndarray, water: float) -> np.ndarray:
    """The transform of atoms' density as the textbook has it, element by element."""
    squares = k[:, None, None] ** 2 + k[:, None] ** 2 + k**2
    out = np.zeros(squares.shape, complex)
    names = np.array(atoms.elements)
    for name in {*atoms.elements, "H"}:
        # hydrogens that are not in the file are where their atoms are
        amount = (atoms.hydrogens if name == "H" else 0.0) + (names == name)
        amount = amount * atoms.occupancy
        used = amount > 0
        a, b = np.array(gemmi.Element(name).c4322.get_coefs()).reshape(2, 5)
        factor = sum(ai * np.exp(-bi * squares / 4) for ai, bi in zip(a, b, strict=True))
        factor = factor * np.exp(-b_factor * squares / 4)
        volume = _FRASER.get(name, 16.0)
        factor -= water * volume * np.exp(-math.pi * volume ** (2 / 3) * squares)
        out += factor * _structure_factors(atoms.xyz[used] - centre, amount[used], k)
    return out


def _transform(map_: torch.Tensor, voxel_size: float) -> np.ndarray:
    spectrum = np.fft.fftn(np.fft.ifftshift(map_.double().numpy())) * voxel_size**3
    return np.asarray(spectrum)


@pytest.fixture(scope="module")
def galactosidase(reference_data: Path) -> Atoms:
    """One of the four chains of β-galactosidase, with its ions."""
    atoms = read_atoms(reference_data / "real/lewis841214__PCA_recon/5a1a.pdb")
    chain = slice(0, len(atoms) // 4)
    return Atoms(
        atoms.elements[chain],
        atoms.xyz[chain],
        atoms.occupancy[chain],
        atoms.b_factor[chain],
        atoms.hydrogens[chain],
    )


@pytest.mark.parametrize("solvent", [0.0, 0.93])
def test_atoms_give_the_sum_of_their_gaussians(solvent: float) -> None:
    rng = np.random.default_rng(5)
    n = 80
    atoms = Atoms(
        tuple(rng.choice(["C", "N", "O", "S", "H", "Mg"], n)),
        rng.uniform(-30, 30, (n, 3)),
        rng.uniform(0.3, 1.0, n),
        np.full(n, 35.0),
        rng.uniform(0, 3, n),
    )
    density, centre = density_from_atoms(atoms, 3.0, AtomSettings(solvent=solvent))
    k = np.fft.fftfreq(len(density), 3.0)
    truth = _direct(atoms, centre, 35.0, k, water_scattering(solvent))
    band = k[:, None, None] ** 2 + k[:, None] ** 2 + k**2 < (0.5 / 3.0) ** 2
    error = np.abs(_transform(density, 3.0) - truth)[band]
    # single precision, and what gemmi leaves out at the rims: 2e-6 measured
    assert np.sqrt((error**2).sum() / (np.abs(truth[band]) ** 2).sum()) < 2e-5


def test_a_protein_gives_the_sum_of_its_gaussians(galactosidase: Atoms) -> None:
    chosen = AtomSettings(b_factor=60.0)
    density, centre = density_from_atoms(galactosidase, 16.0, chosen)
    k = np.fft.fftfreq(len(density), 16.0)
    truth = _direct(galactosidase, centre, 60.0, k, water_scattering(0.93))
    band = k[:, None, None] ** 2 + k[:, None] ** 2 + k**2 < (0.5 / 16.0) ** 2
    error = np.abs(_transform(density, 16.0) - truth)[band]
    assert np.sqrt((error**2).sum() / (np.abs(truth[band]) ** 2).sum()) < 1e-4


def test_potentials_are_those_of_protein_in_ice(galactosidase: Atoms) -> None:
    # the independent-atom potential of vitreous ice: Vulović et al. 2013, J. Struct. Biol. 183, 19: 4.5301 V
    assert water_scattering(0.93) * VOLT == pytest.approx(4.5301, rel=0.005)
    in_ice, _ = density_from_atoms(galactosidase, 6.0)
    in_vacuum, _ = density_from_atoms(galactosidase, 6.0, AtomSettings(solvent=0.0))
    elements = [gemmi.Element(name) for name in galactosidase.elements]
    mass = sum(e.weight for e in elements) + 1.008 * galactosidase.hydrogens.sum()
    displaced = float((in_vacuum - in_ice).double().sum()) * 216.0 / water_scattering(0.93)
    # 0.73 to 0.75 cm^3/g are what proteins have
    assert 0.72 < displaced / mass * 0.602214 < 0.76
    # UniProt P00722: 116.48 kDa a chain
    assert mass == pytest.approx(116483, rel=0.01)
    inside = find_particle(in_vacuum).density > 0
    assert 7.0 < float(in_vacuum[inside].mean()) * VOLT < 8.5
    assert 2.5 < float(in_ice[inside].mean()) * VOLT < 4.0


# a box as large as the grid loses nothing; from a smaller one the rims of a map that is not blurred are cut
@pytest.mark.parametrize(("box", "blur", "tolerance"), [(40, 200.0, 1e-5), (31, 6000.0, 1e-3)])
def test_points_give_their_transform(reference_data: Path, box: int, blur: float, tolerance: float) -> None:
    points = np.load(reference_data / "reference/tilts_beads/TS_A_mol.npy")
    map_ = density_from_points(torch.from_numpy(points), 10.0, box, blur)
    assert float(map_.double().sum()) * 1000.0 == pytest.approx(len(points), rel=1e-4)
    k = np.fft.fftfreq(box, 10.0)
    squares = k[:, None, None] ** 2 + k[:, None] ** 2 + k**2
    truth = _structure_factors(points[:, :3], points[:, 3], k) * np.exp(-0.25 * blur * squares)
    band = squares < 0.05**2
    error = np.abs(_transform(map_, 10.0) - truth)[band]
    assert np.sqrt((error**2).sum() / (np.abs(truth[band]) ** 2).sum()) < tolerance


def test_points_must_fit() -> None:
    point = torch.tensor([[200.0, 0.0, 0.0, 1.0]])
    with pytest.raises(ItemError, match=r"points reach 200 Å from the centre.*at least 42"):
        density_from_points(point, 10.0, 32)
    with pytest.raises(ItemError, match="none or not all finite"):
        density_from_points(point[:0], 10.0, 32)


def test_a_model_looks_like_the_map_that_another_program_made_of_it(reference_data: Path) -> None:
    folder = reference_data / "real/anmartinezs__polnet/data/templates"
    density, _ = density_from_atoms(read_atoms(folder / "pdbs/3j9i.pdb"), 10.0)
    chosen = settings(voxel_size=10.0, box=32, low_pass=30.0, normalise=True)
    ours = create_template(density, 10.0, chosen).map
    other, info = mrc.read(folder / "mrcs_5A/3j9i.mrc")
    assert info.pixel_size == pytest.approx(5.0)
    theirs = create_template(torch.from_numpy(other), 5.0, chosen).map
    # 0.98 measured: the other is without solvent
    assert torch.corrcoef(torch.stack([ours.reshape(-1), theirs.reshape(-1)]))[0, 1] > 0.97
    assert float(create_template(density, 10.0, chosen).diameter) == pytest.approx(165, abs=15)
