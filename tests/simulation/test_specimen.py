"""Specimens: symmetry, structure files, the Euler convention."""

from __future__ import annotations

import json

import numpy as np
import pytest
import scipy.fft
import tifffile
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from weft.errors import FormatError, SettingsError
from weft.simulation.specimen import (
    PHANTOMS,
    load_conformations,
    load_specimen,
    phantom,
    projection_matrix,
    random_orientations,
)


@pytest.mark.parametrize("name", PHANTOMS)
def test_phantoms_are_centred_and_repeatable(name):
    phantom.cache_clear()
    first = phantom(name)
    phantom.cache_clear()
    np.testing.assert_array_equal(first.points, phantom(name).points)
    np.testing.assert_allclose(first.points.mean(axis=0), 0.0, atol=1e-9)
    # residues must not pile up: that would be a bright spot that no protein has
    nearest = cKDTree(first.points).query(first.points, k=2)[0][:, 1]
    assert np.percentile(nearest, 5) > 2.0


@pytest.mark.parametrize(
    ("name", "operations"),
    [
        ("barrel", [Rotation.from_rotvec([0, 0, 2 * np.pi / 7]), Rotation.from_rotvec([np.pi, 0, 0])]),
        ("shell", [Rotation.from_rotvec([0, 0, np.pi / 2]), Rotation.from_rotvec([np.pi / 2, 0, 0])]),
    ],
)
def test_symmetry(name, operations):
    points = phantom(name).points
    for operation in operations:
        distance = cKDTree(points).query(operation.apply(points))[0]
        assert distance.max() < 1e-6


def test_globule_has_no_symmetry():
    spread = np.linalg.eigvalsh(np.cov(phantom("globule").points.T))
    assert (np.diff(spread) > 0.05 * spread[-1]).all()


def test_conformations_of_the_clamp_share_their_body():
    closed, opened, core = (phantom(f"clamp{suffix}").points for suffix in ("", "-open", "-core"))
    assert (len(closed), len(opened), len(core)) == (12_000, 12_000, 9_000)
    np.testing.assert_allclose(closed[:9000], core, atol=1e-9)
    np.testing.assert_allclose(opened[:9000], core, atol=1e-9)
    turn, rms = Rotation.align_vectors(
        opened[9000:] - opened[9000:].mean(axis=0), closed[9000:] - closed[9000:].mean(axis=0)
    )
    assert rms < 1e-3  # the root of a difference of sums of squares of 1e6
    assert np.degrees(turn.magnitude()) == pytest.approx(40.0)
    # neither arm runs into the body
    for arm in (closed[9000:], opened[9000:]):
        assert cKDTree(core).query(arm)[0].min() > 3.0


def test_conformations_of_files_keep_their_places(small_pdb, tmp_path):
    lines = small_pdb.read_text().splitlines()
    shorter = tmp_path / "shorter.pdb"
    shorter.write_text("\n".join([*lines[:30], "END", ""]))
    whole, part = load_conformations(str(small_pdb), str(shorter))
    np.testing.assert_allclose(part.points, whole.points[:30], atol=1e-9)
    with pytest.raises(SettingsError, match="together"):
        load_conformations(str(small_pdb), "globule")


def test_projection_matrix_is_the_passive_zyz_rotation():
    for angles in random_orientations(20, np.random.default_rng(0)):
        expected = Rotation.from_euler("ZYZ", angles, degrees=True).inv().as_matrix()
        np.testing.assert_allclose(projection_matrix(*angles), expected, atol=1e-12)


def test_orientations_are_even():
    angles = random_orientations(20000, np.random.default_rng(0))
    views = np.stack([projection_matrix(*a)[2] for a in angles])
    # an even distribution on the sphere has mean 0 and covariance 1/3; 20000 draws: standard error 0.004
    np.testing.assert_allclose(views.mean(axis=0), 0.0, atol=0.02)
    np.testing.assert_allclose(views.T @ views / len(views), np.eye(3) / 3, atol=0.015)


def test_structure_file(small_pdb):
    specimen = load_specimen(str(small_pdb))
    assert specimen.points.shape == (40, 3)
    np.testing.assert_allclose(specimen.points.mean(axis=0), 0.0, atol=1e-9)
    # Peng 1996: carbon 2.51 Å, and a hydrogen of 0.53 Å that the file does not show
    np.testing.assert_allclose(specimen.strengths, 2.51 + 0.53, atol=0.02)
    assert 8.0 < specimen.radius < 15.0


def test_water_and_second_conformations_are_left_out(tmp_path):
    path = tmp_path / "a.pdb"
    path.write_text(
        "ATOM      1  CA AALA A   1       0.000   0.000   0.000  0.60 20.00           C\n"
        "ATOM      2  CA BALA A   1       5.000   0.000   0.000  0.40 20.00           C\n"
        "ATOM      3  CB  ALA A   1       0.000   2.000   0.000  1.00 20.00           C\n"
        "HETATM    4  O   HOH A   2      50.000   0.000   0.000  1.00 20.00           O\nEND\n"
    )
    specimen = load_specimen(str(path))
    assert len(specimen.points) == 2
    assert specimen.radius <= 2.0


def test_mmcif(tmp_path, small_pdb):
    import gemmi

    structure = gemmi.read_structure(str(small_pdb))
    path = tmp_path / "small.cif"
    structure.make_mmcif_document().write_file(str(path))
    np.testing.assert_allclose(
        load_specimen(str(path)).points, load_specimen(str(small_pdb)).points, atol=1e-3
    )


def test_wrong_specimens_say_what_to_do(tmp_path):
    with pytest.raises(SettingsError, match="barrel, shell, globule"):
        load_specimen("barell")
    empty = tmp_path / "empty.pdb"
    empty.write_text("REMARK nothing\nEND\n")
    with pytest.raises(FormatError, match=r"empty\.pdb"):
        load_specimen(str(empty))
    bad = tmp_path / "bad.cif"
    bad.write_text("this is not a structure")
    with pytest.raises(FormatError, match=r"bad\.cif"):
        load_specimen(str(bad))


def test_convention_agrees_with_the_reference_movie(reference_data):
    """Another program's movie: its particles' points, turned by our matrix, must fit its image."""
    folder = reference_data / "reference"
    truth = json.loads((folder / "movie_weak.json").read_text())
    molecule = np.load(folder / "movie_weak_mol.npy")[:, :3]
    frames = tifffile.imread(folder / "movie_weak.tif")[:, ::-1].astype(np.float32)
    pixel = truth["optics"]["pixel"]
    ny, nx = frames.shape[1:]
    ky, kx = scipy.fft.fftfreq(ny, pixel)[:, None], scipy.fft.rfftfreq(nx, pixel)[None, :]
    average = np.zeros((ny, nx // 2 + 1), complex)
    for frame, (x, y) in zip(frames, np.mean(truth["tracks"], axis=1), strict=True):
        average += scipy.fft.rfft2(frame) * np.exp(2j * np.pi * (kx * x + ky * y))
    k = np.hypot(ky, kx)
    band = (k > 1 / 60) & (k < 1 / 20)  # below the first zero of a 1.2 µm CTF: its sign is one

    def correlation(transposed):
        density = np.zeros((ny, nx))
        for place, angles in zip(truth["particles_xy"], truth["eulers"], strict=True):
            matrix = projection_matrix(*angles)
            turned = molecule @ (matrix if transposed else matrix.T)
            cells = np.rint((turned[:, :2] + place) / pixel).astype(int)
            cells = cells[((cells >= 0) & (cells < [nx, ny])).all(axis=1)]
            np.add.at(density, (cells[:, 1], cells[:, 0]), 1.0)
        model = scipy.fft.rfft2(density)[band]
        image = average[band]
        return float((model * image.conj()).real.sum() / np.linalg.norm(model) / np.linalg.norm(image))

    right, wrong = correlation(False), correlation(True)
    # protein is dark; the transposed matrix keeps the particles' outlines and little else
    assert right < -0.15
    assert abs(wrong) < 0.7 * abs(right)
