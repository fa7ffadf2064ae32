"""Conventions of tilt particles against images that others have made: only the right ones correlate.

A wrong rotation, shift or hand is not a bit worse: it is another particle. So every test compares what is
read with its neighbours among the conventions, and asks for a clear margin, in standard errors of the mean.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from weft.errors import FormatError
from weft.formats import mrc
from weft.formats.particle_star import euler_matrices
from weft.formats.star import read_star
from weft.formats.tilt_particles import TiltParticles, read_tilt_particles
from weft.physics.ctf import astigmatic_defocus, ctf
from weft.physics.optics import Optics

_Array = NDArray[np.float64]
Variant = Callable[[_Array, _Array], tuple[_Array, _Array]]
MIRROR = np.diag([1.0, 1.0, -1.0])
#: Other conventions that somebody might have: (rotation, shift) → the same in theirs.
OTHERS: dict[str, Variant] = {
    "transposed": lambda m, s: (m.T, s),
    "map mirrored": lambda m, s: (m @ MIRROR, s),
    "image mirrored": lambda m, s: (np.diag([-1.0, 1.0, 1.0]) @ m, s),
}
SHIFTS: dict[str, Variant] = {
    "shift negated": lambda m, s: (m, -s),
    "no shift": lambda m, s: (m, 0.0 * s),
    "x and y exchanged": lambda m, s: (m, s[::-1]),
}


def same(m: _Array, s: _Array) -> tuple[_Array, _Array]:
    return m, s


@pytest.fixture(scope="module")
def folder(reference_data: Path) -> Path:
    path = reference_data / "real" / "bpowell122__tomodrgn"
    if not path.is_dir():
        pytest.skip(f"no {path}")
    return path


def _projection(volume: _Array, rotation: _Array) -> _Array:
    """The sum along z of the map as the rotation turns it: (y, x) with the centre at n//2."""
    n = len(volume)
    z, y, x = np.meshgrid(*[np.arange(n) - n // 2] * 3, indexing="ij")
    at = np.stack([x, y, z], axis=-1) @ rotation + n // 2
    return np.asarray(map_coordinates(volume, [at[..., 2], at[..., 1], at[..., 0]], order=1).sum(0))


def _frequencies(found: TiltParticles) -> tuple[torch.Tensor, torch.Tensor]:
    ky = torch.as_tensor(np.fft.fftfreq(found.box, found.pixel_size))[:, None]
    return ky, torch.as_tensor(np.fft.rfftfreq(found.box, found.pixel_size))[None]


def _ctf(found: TiltParticles, image: Any, more: Any = 0.0) -> _Array:
    """(..., n, n//2+1), of one image or several; `more` is added to the defocus."""

    def of(values: Any) -> torch.Tensor:
        return torch.as_tensor(np.asarray(values))[..., None, None]

    ky, kx = _frequencies(found)
    first = int(np.ravel(image)[0])
    optics = Optics(
        pixel_size=found.pixel_size,
        voltage=float(found.voltage[first]),
        cs=float(found.cs[first]),
        amplitude=float(found.amplitude[first]),
    )
    defocus = astigmatic_defocus(
        *(of(found.defocus_u[image] + more), of(found.defocus_v[image] + more), of(found.angle[image])),
        torch.atan2(ky, kx),
    )
    return np.asarray(ctf(kx * kx + ky * ky, defocus, optics, of(found.phase_shift[image])))


def _expected(found: TiltParticles, image: int, volume: _Array, variant: Variant, power: int) -> _Array:
    rotation, shift = variant(found.rotation[image], found.shift[image])
    ky, kx = (k.numpy() for k in _frequencies(found))
    f = np.fft.rfft2(np.fft.ifftshift(_projection(volume, rotation))) * _ctf(found, image) ** power
    f *= np.exp(-2j * np.pi * (kx * shift[0] + ky * shift[1]))
    return np.asarray(np.fft.fftshift(np.fft.irfft2(f, s=(found.box, found.box))))


def _correlations(
    found: TiltParticles, images: NDArray[np.int64], volume: _Array, variant: Variant, power: int = 1
) -> _Array:
    out = []
    for i in images.tolist():
        with mrc.MrcStack(found.files[found.file[i]]) as stack:
            image = stack.read(found.section[i]).astype(np.float64)
        out.append(np.corrcoef(image.ravel(), _expected(found, i, volume, variant, power).ravel())[0, 1])
    return np.array(out)


def _clearly_less(others: _Array, right: _Array) -> bool:
    """Whether the mean of the paired differences is more than four standard errors from 0."""
    gain = right - others
    return bool(gain.mean() > 4.0 * gain.std() / np.sqrt(len(gain)))


@pytest.mark.parametrize("kind", ["D", "E"])
def test_simulated_images_are_projections_of_their_map(folder: Path, kind: str) -> None:
    found = read_tilt_particles(folder / f"10076_class{kind}_32_sim.star")
    assert found.flavour == "cryosrpnt"
    assert found.pixel_size == pytest.approx(13.1)
    assert (found.phase_shift == 90.0).all()
    assert found.cos_tilt.min() == pytest.approx(np.cos(np.radians({"D": 12.0, "E": 15.0}[kind])), abs=1e-6)
    volume = np.asarray(mrc.read(folder / f"10076_class{kind}_32.mrc")[0], np.float64)
    images = np.random.default_rng(0).choice(found.images, 40, replace=False)
    # dark on light: these are as a microscope shows them
    right = -_correlations(found, images, volume, same)
    assert right.mean() > 0.2
    for name, variant in (OTHERS | SHIFTS).items():
        assert _clearly_less(-_correlations(found, images, volume, variant), right), name
    other = np.asarray(mrc.read(folder / f"10076_class{'DE'.replace(kind, '')}_32.mrc")[0], np.float64)
    assert right.mean() > -_correlations(found, images, other, same).mean()


def test_classes_are_ragged(folder: Path) -> None:
    found = read_tilt_particles(folder / "10076_both_32_sim.star")
    assert (len(found), found.images) == (144, 1296)
    assert found.count.tolist() == [8] * 72 + [10] * 72
    assert [path.name for path in found.files] == ["10076_classD_32_sim.mrcs", "10076_classE_32_sim.mrcs"]
    np.testing.assert_allclose(found.dose[:8], 2.0 * np.arange(1, 9))
    np.testing.assert_allclose(found.dose[-10:], 3.0 * np.arange(1, 11))
    # whatever folder the file says, and with it
    again = read_tilt_particles(folder / "10076_both_32_sim.star", datadir=folder)
    assert again.files == found.files


@pytest.fixture(scope="module")
def warptools(folder: Path) -> TiltParticles:
    return read_tilt_particles(
        folder / "warptools_test_4-tomos_10-ptcls_box-32_angpix-12_optimisation_set.star"
    )


def test_warptools_sections_are_tilts(warptools: TiltParticles) -> None:
    assert (len(warptools), warptools.flavour, warptools.premultiplied) == (40, "warptools", True)
    assert set(warptools.count.tolist()) == {34, 35, 37}
    # 37 sections, of which those that are not visible are empty
    for i, path in enumerate(warptools.files):
        with mrc.MrcStack(path) as stack:
            spread = [float(stack.read(t).astype(np.float64).std()) for t in range(len(stack))]
        full = {t for t, value in enumerate(spread) if value > 0.05 * max(spread)}
        mine = slice(*warptools.start[i : i + 2])
        assert set(warptools.section[mine].tolist()) == full
    assert warptools.dose.min() == 0.0
    assert warptools.cos_tilt.min() == 0.5


def test_warptools_images_are_projections_of_their_map(folder: Path, warptools: TiltParticles) -> None:
    # the map that comes with the set has nature's hand, its matrices turn a mirror image
    volume = np.asarray(mrc.read(folder / "warptools_test_box-32_angpix-12_reconstruct.mrc")[0], np.float64)
    rng = np.random.default_rng(0)
    images = rng.choice(np.flatnonzero(warptools.dose < 45.0), 120, replace=False)
    right = _correlations(warptools, images, volume, same, power=2)
    assert right.mean() > 0.04
    for name, variant in OTHERS.items():
        assert _clearly_less(_correlations(warptools, images, volume, variant, power=2), right), name
    # the tilt's own sign: the specimen mirrored, but the particles not
    table = warptools.blocks["particles"]
    pose = euler_matrices(np.stack([table.floats(f"rlnAngle{n}") for n in ("Rot", "Tilt", "Psi")], axis=1))
    turn = np.einsum("mij,mkj->mik", warptools.rotation, pose[warptools.row])
    flipped = {int(i): MIRROR @ turn[i] @ MIRROR @ pose[warptools.row[i]] for i in images}
    wrong = [
        _correlations(warptools, np.array([i]), volume, lambda m, s, i=i: (flipped[i], s), power=2)[0]
        for i in flipped
    ]
    assert _clearly_less(np.array(wrong), right)


def test_warptools_defocus_is_that_of_the_particle(folder: Path, warptools: TiltParticles) -> None:
    # the noise of premultiplied images is CTF² times something smooth: its likelihood by the depth's factor
    tomograms = read_star(next(folder.glob("warptools*_tomograms.star")))["global"]
    size = np.array([tomograms.floats(f"rlnTomoSize{axis}")[0] for axis in "XYZ"])
    size *= tomograms.floats("rlnTomoTiltSeriesPixelSize")[0]
    table = warptools.blocks["particles"]
    pose = euler_matrices(np.stack([table.floats(f"rlnAngle{n}") for n in ("Rot", "Tilt", "Psi")], axis=1))
    images = np.arange(0, warptools.images, 3)
    beam = np.einsum("mj,mkj->mk", warptools.rotation[images, 2], pose[warptools.row[images]])
    centred = (warptools.place - 0.5 * size)[warptools.row[images]]
    depth = np.einsum("mj,mj->m", beam, centred)
    ky, kx = (k.numpy() for k in _frequencies(warptools))
    k = np.hypot(ky, kx)
    used = (k > 1.0 / 60.0) & (k < 1.0 / 17.5)
    ring = np.round(k[used] * warptools.box * warptools.pixel_size).astype(int)
    power = []
    for i in images.tolist():
        with mrc.MrcStack(warptools.files[warptools.file[i]]) as stack:
            power.append(np.abs(np.fft.rfft2(stack.read(warptools.section[i]).astype(np.float64)))[used] ** 2)
    spectra = np.array(power)

    def likelihood(more: _Array) -> float:
        """Of exponentially distributed power with mean (image) × (ring) × (CTF² + a little)."""
        model = _ctf(warptools, images, more)[:, used] ** 2 + 0.05
        whiter = spectra / model
        image = np.ones(len(images))
        for _ in range(5):
            rings = np.bincount(ring, (whiter / image[:, None]).sum(0)) / np.maximum(np.bincount(ring), 1)
            rings /= len(images)
            image = (whiter / rings[ring]).mean(1)
        mean = model * rings[ring] * image[:, None]
        return float(-(spectra / mean + np.log(mean)).sum())

    # what is read has the depth with the factor 1; -1 is none of it, -2 the other sign
    found = {factor: likelihood(factor * depth) for factor in (-2.0, -1.0, -0.5, 0.0, 0.5)}
    assert max(found, key=lambda factor: found[factor]) == 0.0
    assert found[0.0] - found[-1.0] > 1000.0


def test_a_particle_series_of_m(reference_data: Path) -> None:
    path = reference_data / "real" / "ml-struct-bio__cryodrgn" / "sta_testing_bin8.star"
    if not path.is_file():
        pytest.skip(f"no {path}")
    found = read_tilt_particles(path)
    assert (found.flavour, len(found), found.images, found.box) == ("warp1", 6, 219, 64)
    assert set(found.tomogram) == {"ay19102021_L3_position6"}
    np.testing.assert_allclose(found.dose[:3], [3.25, 6.5, 9.75])
    assert not found.shift.any()
    # the first image of each particle is the untilted one: within 1e-4, as the file has four digits
    np.testing.assert_allclose(found.cos_tilt[found.start[:-2]], 1.0, atol=1e-4)
    with pytest.raises(FormatError, match=r"bin1_1.82A.mrcs .*not there"):
        read_tilt_particles(path.with_name("sta_testing.star"))
