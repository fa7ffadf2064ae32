"""Motion: the drawn tracks, and that the images follow them exactly."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.fft

from weft.simulation.imaging import particle_amplitude, transfer
from weft.simulation.motion import random_motion
from weft.simulation.movie import MovieSimulationSettings, simulate_movie
from weft.simulation.scene import Scene
from weft.simulation.specimen import projection_matrix
from weft.simulation.truth import movie_truth


def settings(**changes):
    base = {"width": 512, "height": 384, "frames": 12, "pixel_size": 1.3, "dose_per_frame": 2.5}
    return MovieSimulationSettings(**{**base, **changes})


def places(s):
    x, y = np.meshgrid(
        np.linspace(0, s.width * s.pixel_size, 15), np.linspace(0, s.height * s.pixel_size, 15)
    )
    return np.stack([x.ravel(), y.ravel()], axis=1)


@pytest.mark.parametrize("seed", range(4))
def test_sizes_are_those_asked_for(seed):
    s = settings(drift=20.0, local_motion=2.0, jitter=0.0)
    motion = random_motion(s, np.random.default_rng(seed))
    tracks = motion.track(places(s))
    np.testing.assert_allclose(tracks[0], 0.0, atol=1e-9)
    assert np.hypot(*(motion.drift[-1] - motion.drift[0])) == pytest.approx(20.0, rel=1e-6)
    local = tracks - tracks.mean(axis=1, keepdims=True)
    # the local motion is relative to the unexposed specimen; the first frame's middle has had some of it
    from_start = local[-1] - local[0]
    size = np.sqrt((from_start**2).sum(axis=1).mean())
    assert 1.2 < size < 2.0
    # all of the specimen's common motion is in the drift
    np.testing.assert_allclose(tracks.mean(axis=1), motion.drift, atol=1e-6)


def test_fast_at_first():
    s = settings(jitter=0.0)
    drift = random_motion(s, np.random.default_rng(0)).drift
    steps = np.linalg.norm(np.diff(drift, axis=0), axis=1)
    assert steps[0] > 2.0 * steps[-1]


def test_local_motion_is_smooth_in_space():
    s = settings(local_motion=3.0, local_wavelength=1500.0)
    motion = random_motion(s, np.random.default_rng(1))
    x = np.arange(0.0, 600.0, 10.0)
    local = motion.track(np.stack([x, np.full_like(x, 200.0)], axis=1)) - motion.drift[:, None]
    bend = np.diff(local, 2, axis=1) / 10.0**2
    # a wave of amplitude A and wavelength L bends by A (2 pi / L)^2 at most; A stays below 10 Å here
    assert np.abs(bend).max() < 10.0 * (2 * np.pi / 1500.0) ** 2


@pytest.mark.parametrize("changes", [{"frames": 1}, {"drift": 0.0, "local_motion": 0.0, "jitter": 0.0}])
def test_no_motion(changes):
    s = settings(**changes)
    motion = random_motion(s, np.random.default_rng(0))
    np.testing.assert_allclose(motion.track(places(s)), 0.0, atol=1e-12)


def contained(small_pdb, first_seed=0, **changes):
    """A scene of one small molecule well inside the frame, whose whole image can be transformed."""
    s = MovieSimulationSettings(
        **{
            **{"width": 256, "height": 256, "frames": 6, "specimen": str(small_pdb), "signal": 5.0},
            **{"ice_thickness": 0.0, "damage": 0.0, "defocus": 0.25, "envelope": 300.0, "coverage": 0.006},
            **changes,
        }
    )
    for seed in range(first_seed, first_seed + 50):
        scene = Scene(s, np.random.SeedSequence(seed))
        if len(scene.particles.xy) == 1 and np.abs(scene.particles.xy[0] - 128).max() < 45:
            return scene
    raise AssertionError("no scene with its particle in the middle")


def measured_shift(moved, still, highest=0.25):
    """Shift in px from the phases of all coefficients that carry signal, by least squares."""
    a, b = scipy.fft.rfft2(moved - 1.0), scipy.fft.rfft2(still - 1.0)
    cross = a * b.conj()
    ky, kx = scipy.fft.fftfreq(a.shape[0])[:, None], scipy.fft.rfftfreq(still.shape[1])[None, :]
    shift = np.zeros(2)
    for _ in range(8):
        residual = cross * np.exp(2j * np.pi * (kx * shift[0] + ky * shift[1]))
        weight = np.abs(cross)
        design = np.stack(np.broadcast_arrays(-2 * np.pi * kx, -2 * np.pi * ky), axis=-1).reshape(-1, 2)
        w = weight.ravel()
        use = np.hypot(kx, ky).ravel() < highest
        lhs = (design[use] * w[use, None]).T @ design[use]
        rhs = (design[use] * w[use, None]).T @ np.angle(residual).ravel()[use]
        shift += np.linalg.solve(lhs, rhs)
    return shift


def test_images_follow_the_drift_exactly(small_pdb):
    scene = contained(small_pdb, drift=9.0, local_motion=0.0)
    frames = [f.astype(np.float64) for f in scene.frames()]
    for i in range(1, 6):
        expected = scene.motion.drift[i] - scene.motion.drift[0]
        # exact but for the splatting's 1e-4 and the tails that the frame's border cuts
        np.testing.assert_allclose(measured_shift(frames[i], frames[0]), expected, atol=0.002)


def test_images_follow_the_local_track(small_pdb):
    scene = contained(small_pdb, drift=3.0, local_motion=1.0, local_wavelength=3000.0)
    frames = [f.astype(np.float64) for f in scene.frames()]
    track = scene.motion.track(scene.particles.xy)[:, 0]
    far = scene.motion.track(np.array([[0.0, 0.0], [256.0, 256.0]]))
    assert np.abs(far[-1] - track[-1]).max() > 0.2  # the test would be empty if all moved alike
    for i in range(1, 6):
        # the molecule of 25 Å is also stretched by 0.01 Å or so: low frequencies see where its middle goes
        found = measured_shift(frames[i], frames[0], highest=0.04)
        np.testing.assert_allclose(found, track[i] - track[0], atol=0.005)


def direct_image(scene, frame, defocus_of):
    """One frame by sums over points written down here: each at its track, with the CTF of its own defocus.

    `defocus_of` takes heights (n,) in Å to defocus in Å.
    """
    s, grid = scene.settings, scene.grid
    ky, kx = scipy.fft.fftfreq(grid.ny)[:, None], scipy.fft.rfftfreq(grid.nx)[None, :]
    form = particle_amplitude(np.hypot(ky, kx), scene.specimen, s)
    points = scene.specimen.points @ projection_matrix(*scene.particles.eulers[0]).T
    places = points[:, :2] + scene.particles.xy[0]
    moved = places + scene.motion.track(places)[frame] + grid.margin
    total = np.zeros(form.shape, complex)
    defoci = defocus_of(points[:, 2] + scene.particles.height[0])
    for (x, y), strength, defocus in zip(moved, scene.specimen.strengths, defoci, strict=True):
        wave = strength * np.exp(-2j * np.pi * (kx * x + ky * y))
        total += wave * transfer(ky, kx, float(defocus), s)
    total *= form
    total[0, 0] = 0.0
    # a shift has no meaning at the Nyquist frequency of a real image: the simulator leaves it out
    total[grid.ny // 2] = 0.0
    total[:, -1] = 0.0
    return 1.0 - 2.0 * grid.crop(scipy.fft.irfft2(total, s=(grid.ny, grid.nx)))


def test_frames_equal_a_direct_sum(small_pdb):
    scene = contained(small_pdb, drift=5.0, local_motion=3.0, frames=3, slab_thickness=1000.0)
    assert len(scene.slab_defocus) == 1
    for i, frame in enumerate(scene.frames()):
        image = direct_image(scene, i, lambda z: np.full(len(z), scene.slab_defocus[0]))
        contrast = np.sqrt(((image - 1.0) ** 2).mean())
        # the splatting's 1e-4, and single precision's 1e-7 of an intensity of one
        assert np.sqrt(((frame - image) ** 2).mean()) < 2e-4 * contrast + 2e-7


def test_particles_have_the_defocus_of_their_place_and_height(small_pdb):
    """A tilted specimen in thin slabs, against the CTF of every point's own defocus."""
    scene = contained(
        small_pdb,
        first_seed=10,
        frames=1,
        tilt=60.0,
        tilt_axis=30.0,
        slab_thickness=1.0,
        envelope=20.0,
        ice_thickness=100.0,
        coverage=0.006,
    )
    # without the ice itself, but with its room for heights
    scene._ice = scene._ordered(np.empty((0, 2)), None, np.empty(0))
    x, y = scene.particles.xy[0] - 128.0
    slope = math.tan(math.radians(60.0))
    middle = 2500.0 + slope * (x * math.cos(math.radians(30.0)) + y * math.sin(math.radians(30.0)))
    assert abs(middle - 2500.0) > 15.0  # the test would be empty in the middle
    assert abs(scene.particles.height[0]) > 5.0
    (frame,) = scene.frames()
    image = direct_image(scene, 0, lambda z: middle + z)
    contrast = np.sqrt(((image - 1.0) ** 2).mean())
    error = np.sqrt(((frame - image) ** 2).mean())
    # within a slab defocus is off by 0.5 Å at most: a phase of 0.002 at 4 Å
    assert error < 0.002 * contrast
    # turned over, the molecule itself has other defoci by up to 24 Å; its height is the same
    height = scene.particles.height[0]
    turned_over = direct_image(scene, 0, lambda z: middle + height - (z - height))
    assert np.sqrt(((frame - turned_over) ** 2).mean()) > 5.0 * error


def test_ice_moves_with_the_specimen():
    s = MovieSimulationSettings(
        width=256, height=256, frames=2, coverage=0.0, drift=4.0, local_motion=0.0, jitter=0.0,
        ice_diffusion=0.0, ice_thickness=100.0, noise="none",
    )  # fmt: skip
    scene = Scene(s, np.random.SeedSequence(0))
    first, second = (f.astype(np.float64) for f in scene.frames())
    shift = scene.motion.drift[1] - scene.motion.drift[0]
    window = np.hanning(256)[:, None] * np.hanning(256)
    a, b = scipy.fft.rfft2((second - 1) * window), scipy.fft.rfft2((first - 1) * window)
    ky, kx = scipy.fft.fftfreq(256)[:, None], scipy.fft.rfftfreq(256)[None, :]
    ramp = np.exp(2j * np.pi * (kx * shift[0] + ky * shift[1]))
    band = np.hypot(ky, kx) < 0.3
    agreement = (a * ramp * b.conj())[band].real.sum() / np.linalg.norm(a[band]) / np.linalg.norm(b[band])
    # the window sees 4 of 256 px of other ice
    assert agreement > 0.97
    still = (a * b.conj())[band].real.sum() / np.linalg.norm(a[band]) / np.linalg.norm(b[band])
    assert still < 0.6


def test_ice_diffuses():
    s = MovieSimulationSettings(
        width=384, height=384, frames=2, coverage=0.0, drift=0.0, local_motion=0.0, jitter=0.0,
        ice_diffusion=0.4, dose_per_frame=8.0,
    )  # fmt: skip
    frames = [f.astype(np.float64) - 1 for f in Scene(s, np.random.SeedSequence(0)).frames()]
    window = np.hanning(384)[:, None] * np.hanning(384)
    a, b = scipy.fft.rfft2(frames[0] * window), scipy.fft.rfft2(frames[1] * window)
    k = np.hypot(scipy.fft.fftfreq(384)[:, None], scipy.fft.rfftfreq(384)[None, :])
    for low, high in ((0.05, 0.07), (0.09, 0.11)):
        ring = (k > low) & (k < high)
        left = (a * b.conj())[ring].real.sum() / np.linalg.norm(a[ring]) / np.linalg.norm(b[ring])
        k2 = (k[ring] ** 2).mean()
        # a Gaussian step of variance v along each axis leaves exp(-2 pi^2 k^2 v); rings of 560 and 930
        # coefficients, half of them independent under the window, estimate that to about 0.05
        assert left == pytest.approx(np.exp(-2 * np.pi**2 * k2 * 0.4 * 8.0), abs=0.12)


def test_truth_holds_the_tracks():
    s = settings(width=128, height=96, frames=3, specimen="globule", coverage=0.0)
    scene = Scene(s, np.random.SeedSequence(5))
    truth = movie_truth(scene, 5)
    xy = np.array(truth["track_xy"])
    np.testing.assert_allclose(truth["tracks"], scene.motion.track(xy))
    np.testing.assert_allclose(xy[0], [12.8 * 1.3, 9.6 * 1.3])
    np.testing.assert_allclose(xy[1], [0.3 * 128 * 1.3, 9.6 * 1.3])


def test_same_seed_same_movie():
    s = settings(width=96, height=96, frames=2, ice_thickness=100.0)
    first, again, other = (simulate_movie(s, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.frames, again.frames)
    np.testing.assert_array_equal(first.gain, again.gain)
    assert first.truth == again.truth
    assert (first.frames != other.frames).any()
    threaded = simulate_movie(s, 1, workers=2)
    np.testing.assert_array_equal(first.frames, threaded.frames)
