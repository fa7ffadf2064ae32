"""Simulated micrographs: the physics against formulas written here, labels and masks against the image."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.fft
import scipy.ndimage

from weft.simulation.arrangement import particle_places
from weft.simulation.contamination import CONTAMINANTS, contaminate
from weft.simulation.contamination_layer import GOLD, ICE, Contamination
from weft.simulation.micrograph_layers import contaminant_intensity, imaging_optics
from weft.simulation.micrographs import (
    MicrographSimulationSettings,
    counts,
    downsampled,
    random_settings,
    simulate_micrograph,
)
from weft.simulation.phantoms import random_structure
from weft.simulation.projection import projections_spectrum
from weft.simulation.specimen import Specimen, phantom, projection_matrix, random_orientations
from weft.simulation.splatting import PaddedGrid, point_spectrum

# Kirkland's tables: wavelength (Å) and mass ratio at 300 kV
WAVELENGTH, MASS = 0.0196876, 1.58706

# nothing but particles
CLEAN = {"film": 0.0, "clouds": 0.0, "ice_variation": 0.0, "overlapping": 0.0}


def settings(**changes):
    given = {"width": 256, "height": 240, "pixel_size": 4.0, "spacing": 1.3, **CLEAN, **changes}
    return MicrographSimulationSettings(**given)


def simulated(seed=0, specimen=None, **changes):
    rng = np.random.default_rng(seed)
    return simulate_micrograph(specimen or phantom("barrel"), settings(**changes), rng)


def flipped(image, pixel_size, defocus):
    """Phases flipped with the plain CTF of 300 kV, Cs 2.7 mm and amplitude contrast 0.07."""
    ky = np.fft.fftfreq(image.shape[0], pixel_size)[:, None]
    kx = np.fft.rfftfreq(image.shape[1], pixel_size)[None]
    k2 = ky**2 + kx**2
    phase = math.pi * WAVELENGTH * defocus * k2 - 0.5 * math.pi * 2.7e7 * WAVELENGTH**3 * k2**2
    return np.fft.irfft2(np.fft.rfft2(image) * np.sign(np.sin(phase + math.asin(0.07))), s=image.shape)


def one_particle_phase_plate(place, specimen):
    """Zernike contrast without any aberration: the image is minus twice the phase."""
    s = settings(
        defocus=0.0, astigmatism=0.0, cs=0.0, amplitude=0.0, phase_shift=90.0, blur=0.0, dose=1e-3, signal=0.7
    )
    grid = PaddedGrid.around(s.height, s.width, 40)
    optics = imaging_optics(s)
    from weft.simulation.imaging import particle_amplitude, transfer

    ky, kx = grid.frequencies(s.pixel_size)
    spectrum = projections_spectrum(specimen, np.array([place]), np.zeros((1, 3)), grid, s.pixel_size)
    spectrum = spectrum * particle_amplitude(np.sqrt(ky**2 + kx**2), specimen, optics)
    spectrum = spectrum * transfer(ky, kx, 0.0, optics)
    image = scipy.fft.irfft2(spectrum, s=(grid.ny, grid.nx)) * (-2.0 / s.pixel_size**2)
    return grid.crop(image)


def test_projected_phase_is_that_of_the_atoms_less_the_water():
    made = phantom("globule")
    image = one_particle_phase_plate((512.0, 480.0), made)
    # residues of 23.4 Å and 135 Å^3; water: O + 2 H of 1.98 + 2 x 0.53 Å (Peng 1996), 0.0311 in an Å^3
    contrast = len(made.points) * (23.4 - 135.0 * 0.0311 * (1.98 + 2 * 0.53))
    expected = -2.0 * 0.7 * WAVELENGTH * MASS * contrast
    # scattering factors to two digits: the small difference is known to 2 %
    assert image.sum() * 16.0 == pytest.approx(expected, rel=0.03)


def test_positions_count_from_the_centre_of_the_first_pixel():
    image = one_particle_phase_plate((500.3, 431.9), phantom("globule"))
    y, x = np.mgrid[: image.shape[0], : image.shape[1]] * 4.0
    centroid = np.array([(image * x).sum(), (image * y).sum()]) / image.sum()
    # the points' centre of mass is the particle's place: rounding of single precision only
    np.testing.assert_allclose(centroid, [500.3, 431.9], atol=0.05)


def test_projections_agree_with_the_exact_transform():
    rng = np.random.default_rng(3)
    made, grid = phantom("globule"), PaddedGrid.around(100, 120, 20)
    places, eulers = rng.uniform(0.0, 400.0, (5, 2)), random_orientations(5, rng)
    points = np.concatenate(
        [made.points @ projection_matrix(*e).T[:, :2] + p for e, p in zip(eulers, places, strict=True)]
    )
    exact = point_spectrum(points / 4.0, np.tile(made.strengths, 5), grid)
    quick = projections_spectrum(made, places, eulers, grid, 4.0)
    ky, kx = grid.frequencies(4.0)
    half = np.hypot(ky, kx) < 1 / 16.0
    # white points fold back the most; the cubic B-spline's images are 0.2 % each at half of Nyquist
    assert np.abs(quick - exact)[half].max() < 5e-3 * np.sqrt((np.abs(exact[half]) ** 2).mean())


def test_zeros_of_the_transfer_function():
    m = simulated(
        defocus=1.5, cs=0.0, amplitude=0.0, astigmatism=0.0, coverage=0.3, ice_thickness=60.0, blur=0.0
    )
    power = np.abs(np.fft.rfft2(m.particles * np.hanning(240)[:, None] * np.hanning(256))) ** 2
    k = np.hypot(np.fft.fftfreq(240, 4.0)[:, None], np.fft.rfftfreq(256, 4.0)[None])
    for n in (1, 2, 3):
        zero = math.sqrt(n / (WAVELENGTH * 15_000.0))
        top = math.sqrt((n - 0.5) / (WAVELENGTH * 15_000.0))
        at_zero = power[np.abs(k - zero) < 0.0006].mean()
        at_top = power[np.abs(k - top) < 0.0006].mean()
        # the window's width (0.0015 1/Å) lets some of the slopes in
        assert at_zero < 0.1 * at_top, n


def test_particles_are_where_the_labels_say():
    m = simulated(seed=2, width=400, height=400, coverage=0.2, defocus=1.2, blur=50.0, astigmatism=0.0)
    image = flipped(m.particles, 4.0, 12_000.0)
    assert len(m.xy) > 10
    size = 30
    total = np.zeros((2 * size + 1, 2 * size + 1))
    for x, y in m.xy:
        where = np.mgrid[-size : size + 1, -size : size + 1] + np.array([y, x])[:, None, None] / 4.0
        total += scipy.ndimage.map_coordinates(image, where, order=1, mode="wrap")
    total /= len(m.xy)
    yy, xx = np.mgrid[-size : size + 1, -size : size + 1]
    inside = np.hypot(yy, xx) * 4.0 < 0.3 * m.diameter
    around = (np.hypot(yy, xx) * 4.0 > 0.55 * m.diameter) & (np.hypot(yy, xx) * 4.0 < 0.62 * m.diameter)
    assert total[inside].mean() < total[around].mean() - 3.0 * total[around].std()
    dark = np.clip(-total, 0.0, None) * (np.hypot(yy, xx) * 4.0 < 0.5 * m.diameter)
    assert abs((dark * yy).sum() / dark.sum()) < 0.7
    assert abs((dark * xx).sum() / dark.sum()) < 0.7


def test_which_particles_are_labelled():
    m = simulated(
        seed=4, width=512, height=400, coverage=0.5, spacing=0.9, specks=15, beads=10, overlapping=0.1
    )
    assert m.artefact.any()
    assert len(m.hidden_xy)
    assert len(m.xy)
    assert len(m.cut_xy)
    index = np.round(m.xy / 4.0).astype(int)
    assert not m.artefact[index[:, 1], index[:, 0]].any()
    index = np.round(m.hidden_xy / 4.0).astype(int)
    assert m.artefact[index[:, 1], index[:, 0]].all()
    size = np.array([511, 399]) * 4.0
    assert (m.xy >= 0.5 * m.diameter).all()
    assert (m.xy <= size - 0.5 * m.diameter).all()
    border = np.minimum(m.cut_xy, size - m.cut_xy).min(axis=1)
    assert (np.abs(border) <= 0.5 * m.diameter).all()
    everything = np.concatenate([m.xy, m.cut_xy, m.hidden_xy])
    apart = np.sqrt(((m.xy[:, None] - everything) ** 2).sum(axis=2))
    np.fill_diagonal(apart[:, : len(m.xy)], np.inf)
    near = apart.min(axis=1) < 0.7 * m.diameter
    # others beyond the border may crowd too: all that are near are flagged
    assert m.crowded[near].all()
    assert len(m.eulers) == len(m.xy) == len(m.crowded) == len(m.height)


@pytest.mark.parametrize("arrangement", ["random", "dense", "patchy"])
def test_arrangements_keep_their_distance_and_their_number(arrangement):
    s = settings(arrangement=arrangement, coverage=0.25, spacing=1.1)
    size = np.array([4000.0, 3000.0])
    xy = particle_places(100.0, size, s, np.random.default_rng(1))
    wanted = 0.25 * 12e6 / (0.25 * math.pi * 100.0**2)
    # a patch may be too small for all of them
    assert 0.5 * wanted < len(xy) <= wanted + 1
    apart = np.sqrt(((xy[:, None] - xy) ** 2).sum(axis=2)) + 1e9 * np.eye(len(xy))
    # in packed layers places are a little off the lattice
    assert apart.min() > (0.85 if arrangement == "dense" else 1.0) * 110.0 - 1e-6
    if arrangement == "dense":
        assert np.median(apart.min(axis=1)) < 1.1 * 110.0


def test_same_seed_same_micrograph():
    changes = {"coverage": 0.2, "crystals": 1, "broken": 0.02, "small_proteins": 0.02, "film": 0.1}
    first, second, other = (simulated(seed=s, **changes) for s in (7, 7, 8))
    np.testing.assert_array_equal(first.signal, second.signal)
    np.testing.assert_array_equal(first.xy, second.xy)
    assert not np.array_equal(first.signal, other.signal)


def test_the_mean_of_clean_ice_is_one_and_ice_takes_electrons():
    m = simulated(coverage=0.2)
    assert abs(m.signal.mean()) < 0.01
    wedge = simulated(seed=3, coverage=0.0, ice_variation=0.5, signal=0.0)
    # without scattering only the thickness is left: its logarithm over 3200 Å, 350 Å x (1 +- clipped changes)
    thickness = 350.0 - 3200.0 * np.log1p(wedge.signal)
    assert 0.25 * 350 - 1 < thickness.min() < 330
    assert 370 < thickness.max() < 3 * 350 + 1


def uniform_slab(thickness, material, **changes):
    """Half of a field covered; its intensity."""
    s = settings(width=512, height=512, defocus=0.5, **changes)
    grid = PaddedGrid.around(512, 512, 0)
    dirt = Contamination.none((grid.ny, grid.nx))
    cover = np.zeros((grid.ny, grid.nx))
    cover[:, : grid.nx // 2] = thickness
    dirt.add("slab", slice(None), slice(None), cover, material)
    return contaminant_intensity(dirt, s, grid)


@pytest.mark.parametrize("material", [ICE, GOLD])
def test_a_slab_loses_what_its_free_path_says(material):
    thickness = 0.4 * material.free_path
    intensity = uniform_slab(thickness, material)
    assert intensity[:, 100:150].mean() == pytest.approx(math.exp(-0.4), rel=0.02)
    assert intensity[:, 360:410].mean() == pytest.approx(1.0, rel=0.02)


def test_a_thin_slab_has_the_fringe_of_a_weak_phase_object():
    # ice of 10 Å: -2 (phase * transfer), with 0.00295 rad/Å at 300 kV (4.5 V of mean inner potential)
    intensity = uniform_slab(
        10.0, ICE, cs=0.0, astigmatism=0.0, blur=0.0, contaminant_signal=1.0, amplitude=0.0
    )
    k = np.fft.fftfreq(512, 4.0)
    edge = np.zeros(512)
    edge[:256] = 10.0 * 0.00295
    expected = 1.0 - 2.0 * np.fft.ifft(np.fft.fft(edge) * np.sin(math.pi * WAVELENGTH * 5000.0 * k**2)).real
    fringe = intensity.mean(axis=0) + edge / 0.00295 / 3200.0  # without the loss
    # contrast of 5 %; second order of the phase and the loss's own fringe are below 4 % of it
    assert np.abs(fringe - expected).max() < 0.05 * np.ptp(expected)


@pytest.mark.parametrize("kind", sorted(CONTAMINANTS))
def test_masks_are_where_the_contaminants_are_seen(kind):
    s = settings(width=512, height=512, defocus=1.0, amplitude=0.07)
    seen_total = masked_seen = mask_total = 0
    for seed in range(5):
        grid = PaddedGrid.around(512, 512, 0)
        dirt = contaminate((grid.ny, grid.nx), 4.0, {kind: 2}, 350.0, np.random.default_rng(seed))
        assert set(dirt.kinds) <= {kind}
        intensity = contaminant_intensity(dirt, s, grid) * dirt.shadow
        change = np.abs(scipy.ndimage.uniform_filter(intensity, 5) - 1.0)  # seen at 20 Å
        seen = change > 0.06
        seen_total += seen.sum()
        masked_seen += (seen & dirt.mask).sum()
        mask_total += dirt.mask.sum()
        # tight: no further than 24 Å (the fringe and a pixel) from what scatters
        matter = (dirt.phase != 0.0) | (dirt.shadow < 0.95)
        if matter.any():
            away = scipy.ndimage.distance_transform_edt(~matter) * 4.0
            assert away[dirt.mask].max() <= 24.0
    assert masked_seen > 0.93 * seen_total
    assert seen_total > 0.3 * mask_total


def test_contaminants_differ_from_ice_and_cracks_are_bright():
    for kind, sign in (("blobs", -1), ("beads", -1), ("cracks", 1), ("carbon", -1), ("shadows", -1)):
        m = simulated(seed=5, coverage=0.0, width=512, height=512, **{kind: 10 if kind == "beads" else 1})
        inside, outside = m.signal[m.artefact], m.signal[~m.artefact]
        assert len(inside)
        assert len(outside)
        difference = sign * (inside.mean() - outside.mean())
        assert difference > 5.0 * outside.std() / math.sqrt(min(len(inside), len(outside)) / 16.0), kind


def test_no_particle_lies_in_a_hole():
    for seed in range(6):
        m = simulated(seed=seed, coverage=0.4, arrangement="dense", cracks=2, specimen=phantom("shell"))
        index = np.round(np.concatenate([m.xy, m.hidden_xy]) / 4.0).astype(int)
        # the mask is 16 Å wider than the hole; rounded to pixels
        hole = scipy.ndimage.distance_transform_edt(m.kinds.get("crack", np.zeros_like(m.artefact))) > 6.0
        assert not hole[index[:, 1], index[:, 0]].any()


def test_shot_noise():
    m = simulated(coverage=0.0, signal=0.0)
    for poisson in (False, True):
        drawn = counts(m, 10.0, np.random.default_rng(0), poisson=poisson)
        assert drawn.dtype == np.float32
        # 160 electrons a pixel; 61,440 pixels know the variance to 0.6 %
        assert drawn.var() == pytest.approx(1.0 / 160.0, rel=0.03)
        assert drawn.mean() == pytest.approx(1.0, abs=1e-3)
    half = counts(m, 10.0, np.random.default_rng(0), efficiency=0.5)
    assert half.var() == pytest.approx(1.0 / 80.0, rel=0.03)


def test_downsampling_keeps_what_the_coarse_grid_can_hold():
    ny, nx = 372, 410
    y, x = np.mgrid[:ny, :nx]
    image = (
        2.0
        + np.cos(2.0 * math.pi * (7.0 * y / ny - 11.0 * x / nx) + 0.4)
        + np.cos(2.0 * math.pi * 150.0 * y / ny)
    )
    small = downsampled(image, 1.5, 8.0)
    assert small.shape == (70, 76)  # even and nearest to 69.75 and 76.9
    y, x = np.mgrid[:70, :76]
    expected = 2.0 + np.cos(2.0 * math.pi * (7.0 * y / 70 - 11.0 * x / 76) + 0.4)
    np.testing.assert_allclose(small, expected, atol=1e-4)
    np.testing.assert_allclose(downsampled(small, 8.0, 8.0), small)


def test_random_settings_make_varied_micrographs():
    rng = np.random.default_rng(0)
    drawn = [random_settings(rng, width=128, height=128) for _ in range(300)]
    assert all(s.width == 128 for s in drawn)
    assert {s.arrangement for s in drawn} == {"random", "dense", "patchy"}
    assert 0.01 < np.mean([s.coverage == 0.0 for s in drawn]) < 0.15
    assert 0.3 < np.mean([any(s.contaminants().values()) for s in drawn]) < 0.75
    defocus = np.array([s.defocus for s in drawn if s.phase_shift == 0.0])
    assert 0.5 <= defocus.min() < 0.7
    assert 3.5 < defocus.max() <= 4.0
    for seed in range(3):
        rng = np.random.default_rng(seed)
        m = simulate_micrograph(random_structure(rng), random_settings(rng, width=160, height=128), rng)
        assert m.signal.shape == m.particles.shape == m.artefact.shape == (128, 160)
        assert m.signal.dtype == m.particles.dtype == np.float32
        assert np.isfinite(m.signal).all()
        assert m.signal.min() >= -1.0


def test_a_specimen_of_atoms_takes_the_same_path():
    made = phantom("shell")
    atoms = Specimen(made.points, made.strengths / 8.0, volume=17.3, blur=20.0)
    m = simulate_micrograph(atoms, settings(coverage=0.2), np.random.default_rng(0))
    assert len(m.xy)
    assert m.particles.std() > 0.0
