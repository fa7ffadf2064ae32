"""Simulated tilt series against formulas that are written out here, and the files that are written."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import scipy.fft
import scipy.ndimage
import torch

from weft.cli import main
from weft.errors import FormatError, RequestError, SettingsError
from weft.formats.mdoc import read_mdoc
from weft.formats.mrc import read as read_mrc
from weft.formats.tiff import read_tiff
from weft.physics.ctf import astigmatic_defocus, ctf
from weft.physics.geometry import TiltGeometry
from weft.physics.optics import Optics
from weft.simulation.imaging import damage_amplitude, ice_amplitude, particle_amplitude
from weft.simulation.membrane import HALF_THICKNESS, random_sheet, random_vesicle
from weft.simulation.tilt_scheme import nominal_angles
from weft.simulation.tilt_series import (
    TiltSimulationSettings,
    simulate_tilt_series,
    write_tilt_session,
)
from weft.simulation.tilt_settings import SMALL_SERIES, camera_settings

TINY = {
    **{"width": 160, "height": 128, "pixel_size": 8.0, "thickness": 400.0, "tilt_range": 20.0},
    **{"tilt_increment": 10.0, "particles": 3, "beads": 3, "specimen": "shell"},
}
# ZYZ angles, the tilt and the projection exactly as the project's scoring script of tilt series has them


def zyz(rot, tilt, psi):
    a, b, g = np.deg2rad([rot, tilt, psi])
    ca, sa, cb, sb, cg, sg = np.cos(a), np.sin(a), np.cos(b), np.sin(b), np.cos(g), np.sin(g)
    return np.array(
        [
            [cg * cb * ca - sg * sa, cg * cb * sa + sg * ca, -cg * sb],
            [-sg * cb * ca - cg * sa, -sg * cb * sa + cg * ca, sg * sb],
            [sb * ca, sb * sa, cb],
        ]
    )


def tilt_matrix(angle, axis, level):
    x = np.deg2rad(level[0])
    rx = np.array([[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]])
    return zyz(0, angle + level[1], -axis) @ rx


def truth_projection(truth, xyz):
    """(tilts, n, 3): x, y on the image and defocus, Å."""
    ny, nx = truth["shape"]
    px = truth["optics"]["pixel"]
    c = np.array([nx * px / 2, ny * px / 2])
    out = []
    for t in truth["tilts"]:
        q = xyz @ tilt_matrix(t["tilt"], truth["axis"], truth["level"]).T
        if truth["hand"] > 0:
            z = q[:, 2]
        else:
            mirrored = tilt_matrix(-t["tilt"], truth["axis"], [-v for v in truth["level"]])
            z = ((xyz * [1, 1, -1]) @ mirrored.T)[:, 2]
        out.append(np.c_[q[:, :2] + c + np.array(t["shift"]), t["defocus"] + z])
    return np.array(out)


def tiny(**changes):
    return TiltSimulationSettings(**{**TINY, **changes})


GEOMETRIES = [
    {"hand": 1, "tilt_axis": 85.0, "level_x": 0.0, "level_y": 0.0},
    {"hand": -1, "tilt_axis": 85.0, "level_x": 4.0, "level_y": -6.0},
    {"hand": 1, "tilt_axis": -12.0, "level_x": -8.0, "level_y": 5.0},
    {"hand": -1, "tilt_axis": -150.0, "level_x": 10.0, "level_y": 3.0},
]


def dark_spots(image, radius):
    """Centres of mass of what is dark, x and y in px, without any knowledge of where it should be."""
    smooth = scipy.ndimage.gaussian_filter(image, 1.5)
    dark = 1.0 - smooth / np.median(smooth)
    labels, count = scipy.ndimage.label(dark > 0.25)
    index = np.arange(1, count + 1)
    area = scipy.ndimage.sum_labels(np.ones_like(dark), labels, index)
    centres = np.array(scipy.ndimage.center_of_mass(np.maximum(dark, 0.0), labels, index)).reshape(-1, 2)
    single = (area > 0.5 * math.pi * radius**2) & (area < 1.4 * math.pi * radius**2)
    return centres[single, ::-1]


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_beads_are_where_the_truth_says(geometry):
    settings = TiltSimulationSettings.small(
        **geometry,
        **{"tilt_range": 50.0, "tilt_increment": 50.0, "particles": 0, "crowding": 0.0},
        **{"drift": 40.0, "field": 0.6, "dose_per_tilt": 30.0},
    )
    series = simulate_tilt_series(settings, seed=11)
    places = truth_projection(series.truth, np.array(series.truth["beads_xyz_centered"]))
    radius = 0.5 * settings.bead_diameter / settings.pixel_size
    found = 0
    for tilt, truth, xyz in zip(series.tilts(), series.truth["tilts"], places, strict=True):
        for image, shift in zip(tilt.frames.astype(float), truth["frame_shifts"], strict=True):
            expected = (xyz[:, :2] + shift) / settings.pixel_size
            spots = dark_spots(image, radius)
            apart = np.linalg.norm(expected[:, None] - expected, axis=2) + 1e9 * np.eye(len(expected))
            inside = ((expected > 2 * radius) & (expected < 288 - 2 * radius)).all(axis=1)
            chosen = expected[inside & (apart.min(axis=1) > 3.5 * radius)]
            distance = np.linalg.norm(chosen[:, None] - spots, axis=2).min(axis=1)
            # noise scatters these centres of mass by a few hundredths of a pixel; neighbours' fringes
            # add as much: measured 0.05 px RMS, 0.13 at worst
            assert distance.max() < 0.2
            found += len(chosen)
    assert found >= 30  # of 48; others overlap in projection


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_the_other_geometry_agrees(geometry):
    """Two implementations that share nothing, over all of the truth's points."""
    series = simulate_tilt_series(tiny(**geometry, angle_error=0.1), seed=3)
    truth = series.truth
    xyz = np.array(truth["particles_xyz_centered"] + truth["beads_xyz_centered"])
    image = [n * truth["optics"]["pixel"] for n in truth["shape"][::-1]]
    other = TiltGeometry.of(
        [t["tilt"] for t in truth["tilts"]],
        axis=truth["axis"],
        shift=[t["shift"] for t in truth["tilts"]],
        defocus=[t["defocus"] for t in truth["tilts"]],
        volume_size=(0.0, 0.0, 0.0),
        image_size=image,
        level=tuple(truth["level"]),
        hand=truth["hand"],
    )
    np.testing.assert_allclose(other.project(torch.from_numpy(xyz)).numpy(), truth_projection(truth, xyz))


def ring_score(image, defocus, s):
    """Correlation of a patch's power spectrum, freed of the ice's form, with a CTF's square."""
    n = len(image)
    window = np.hanning(n)[:, None] * np.hanning(n)
    power = np.abs(scipy.fft.rfft2((image - image.mean()) * window)) ** 2
    ky, kx = scipy.fft.fftfreq(n, s.pixel_size)[:, None], scipy.fft.rfftfreq(n, s.pixel_size)[None]
    k2 = kx**2 + ky**2
    camera = camera_settings(s)
    form = ice_amplitude(np.sqrt(k2), 1.0, s.thickness, camera).astype(float)
    model = (
        ctf(torch.from_numpy(k2), defocus, Optics(s.pixel_size, s.voltage, s.cs, s.amplitude)).numpy() ** 2
    )
    ring = (k2 > (1 / 28) ** 2) & (k2 < (1 / 10.5) ** 2)
    return np.corrcoef((power / form**2)[ring], model[ring])[0, 1]


@pytest.mark.parametrize("geometry", GEOMETRIES[:2] + GEOMETRIES[3:])
def test_the_defocus_gradient_has_the_hand(geometry):
    s = TiltSimulationSettings(
        **{**geometry, "tilt_range": 55.0, "tilt_increment": 55.0, "astigmatism": 0.0, "frames": 1},
        **{"particles": 0, "beads": 0, "crowding": 0.0, "pixel_size": 4.5, "thickness": 200.0},
        **{"slab_thickness": 100.0, "defocus": 3.0, "defocus_scatter": 0.3, "noise": "none"},
    )
    series = simulate_tilt_series(s, seed=2)
    for number in (1, 2):
        truth, scores = series.truth["tilts"][number], {1: [], -1: []}
        (image,) = series.scene.frames(series.exposures[number])
        normal = tilt_matrix(truth["tilt"], s.tilt_axis, (s.level_x, s.level_y))[:, 2]
        for y in range(0, 512, 128):
            for x in range(0, 512, 128):
                u, v = (np.array([x, y]) + 64 - 256) * s.pixel_size - truth["shift"]
                height = -(normal[0] * u + normal[1] * v) / normal[2]
                if abs(height) < 1000.0:
                    continue
                patch = image[y : y + 128, x : x + 128].astype(float)
                for hand in (1, -1):
                    scores[hand].append(ring_score(patch, truth["defocus"] + hand * height, s))
        right, wrong = np.mean(scores[s.hand]), np.mean(scores[-s.hand])
        # one patch's spectrum is exponentially distributed about CTF^2: the best possible is about 0.5, less
        # what the gradient within a patch blurs; measured 0.46 to 0.49, and no more than 0.12
        assert right > 0.35
        assert wrong < 0.5 * right


def test_frames_equal_a_direct_sum(small_pdb):
    """Particles alone (the ice cancels) against every point's own wave and own defocus."""
    s = tiny(
        **GEOMETRIES[1],
        **{"width": 96, "height": 96, "specimen": str(small_pdb), "pixel_size": 4.0, "slab_thickness": 4.0},
        **{"field": 0.5, "astigmatism": 0.1, "tilt_increment": 20.0, "frames": 2, "beads": 0},
    )
    series = simulate_tilt_series(s, seed=5)
    empty = simulate_tilt_series(s.model_copy(update={"particles": 0}), seed=5)
    truth = series.truth
    points = series.points
    grid = series.scene.grid
    ky, kx = scipy.fft.fftfreq(grid.ny, 4.0)[:, None], scipy.fft.rfftfreq(grid.nx, 4.0)[None]
    k = np.hypot(ky, kx)
    below_nyquist = (np.abs(ky) < 0.125) & (kx < 0.125)
    azimuth = torch.from_numpy(np.arctan2(*np.broadcast_arrays(ky, kx)))
    camera, optics = camera_settings(s), Optics(4.0, s.voltage, s.cs, s.amplitude)
    form = particle_amplitude(k, series.specimen.particle, camera)
    for number in (0, 2):
        tilt = truth["tilts"][number]
        waves = np.zeros((2, *k.shape), complex)
        for centre, euler, inverse in zip(
            truth["particles_xyz_centered"], truth["eulers_to_specimen"], truth["eulers"], strict=True
        ):
            np.testing.assert_allclose(zyz(*inverse), zyz(*euler).T, atol=1e-12)
            xyz = points[:, :3] @ zyz(*euler).T + centre
            projected = truth_projection({**truth, "tilts": [tilt]}, xyz)[0]
            for (x, y, z), strength in zip(projected, points[:, 3], strict=True):
                along = astigmatic_defocus(z + 500.0, z - 500.0, s.astigmatism_angle, azimuth)
                transfer = ctf(torch.from_numpy(k**2), along, optics).numpy() * strength
                for frame, (dx, dy) in enumerate(tilt["frame_shifts"]):
                    u, v = (x + dx + 4.0 * grid.margin, y + dy + 4.0 * grid.margin)
                    waves[frame] += transfer * np.exp(-2j * np.pi * (kx * u + ky * v))
        exposure = series.exposures[number]
        pairs = zip(series.scene.frames(exposure), empty.scene.frames(exposure), strict=True)
        for frame, (image, background) in enumerate(pairs):
            dose = tilt["dose_before"] + s.dose_per_tilt * (frame + 0.5) / 2
            spectrum = waves[frame] * form * damage_amplitude(k, dose, camera) * below_nyquist
            expected = -2.0 / 16.0 * grid.crop(scipy.fft.irfft2(spectrum))
            found = (image - background) / series.scene.transmission(exposure)
            error = found - expected
            error -= error.mean()  # the mean is the illumination's
            # as docs/simulation.md has it for movies: slabs of 4 Å, points up to 2 Å off; measured 3e-4
            assert np.sqrt((error**2).mean()) < 0.001 * expected.std()


@pytest.mark.parametrize("hand", [1, -1])
def test_beads_are_spheres_at_their_own_defocus(hand):
    s = tiny(
        **{"hand": hand, "particles": 0, "thickness": 2000.0, "pixel_size": 4.0, "defocus": 0.5},
        **{"astigmatism": 0.0, "frames": 1, "width": 256, "height": 256, "field": 0.4, "shift_jitter": 5.0},
    )
    series = simulate_tilt_series(s, seed=6)
    empty = simulate_tilt_series(s.model_copy(update={"beads": 0}), seed=6)
    grid, truth = series.scene.grid, series.truth
    ky, kx = scipy.fft.fftfreq(grid.ny, 4.0)[:, None], scipy.fft.rfftfreq(grid.nx, 4.0)[None]
    k = np.hypot(ky, kx)
    u = 2 * math.pi * np.maximum(k, 1e-9) * 50.0
    # the transform of a sphere's projection whose middle is 0.7 / (2 * 0.5) high, and the envelope
    sphere = 0.7 / 100.0 * 4 / 3 * math.pi * 50.0**3 * 3 * (np.sin(u) - u * np.cos(u)) / u**3
    sphere *= np.exp(-0.25 * s.envelope * k**2) * (np.abs(ky) < 0.125) * (kx < 0.125)
    sphere[0, 0] = 0.0
    beads = truth_projection(truth, np.array(truth["beads_xyz_centered"]))[3]
    assert np.abs(beads[:, :2] - 512.0).max() < 512.0
    waves = np.zeros(k.shape, complex)
    for x, y, z in beads:
        transfer = ctf(torch.from_numpy(k**2), z, Optics(4.0, s.voltage, s.cs, 0.5)).numpy()
        waves += transfer * np.exp(-2j * np.pi * (kx * (x + 4 * grid.margin) + ky * (y + 4 * grid.margin)))
    expected = -2.0 / 16.0 * grid.crop(scipy.fft.irfft2(waves * sphere))
    exposure = series.exposures[3]
    found = series.scene.frames(exposure)[0] - empty.scene.frames(exposure)[0]
    error = found / series.scene.transmission(exposure) - expected
    # single precision; at 0.5 µm the 2,000 Å between the surfaces change every fringe
    assert np.sqrt((error**2).mean()) < 1e-3 * expected.std()


def test_counts_fall_with_the_path_through_the_ice():
    s = tiny(
        **{
            "tilt_range": 60.0,
            "tilt_increment": 30.0,
            "particles": 0,
            "beads": 0,
            "level_y": 8.0,
            "level_x": 5.0,
        },
        **{"thickness": 1500.0, "signal": 0.1},
    )
    series = simulate_tilt_series(s, seed=1)
    for tilt, truth in zip(series.tilts(), series.truth["tilts"], strict=True):
        cosine = tilt_matrix(truth["tilt"], s.tilt_axis, (s.level_x, s.level_y))[2, 2]
        assert cosine == pytest.approx(math.cos(math.radians(truth["tilt"] + 8)) * math.cos(math.radians(5)))
        expected = 3.0 * 64.0 * math.exp(-1500.0 / (s.mean_free_path * cosine))
        # 20,480 px of 100 to 190 electrons: 0.06 %, and the ice's own grain
        assert tilt.frames.sum(axis=0).mean() == pytest.approx(expected, rel=0.005)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"tilt_range": 12.0}, [0, 3, -3, -6, 6, 9, -9, -12, 12]),
        ({"tilt_range": 12.0, "group": 2}, [0, 3, 6, -3, -6, -9, -12, 9, 12]),
        ({"tilt_range": 6.0, "scheme": "bidirectional"}, [0, 3, 6, -3, -6]),
        ({"tilt_range": 6.0, "scheme": "unidirectional"}, [-6, -3, 0, 3, 6]),
        ({"tilt_range": 4.0, "tilt_increment": 2.0, "start_angle": 10.0}, [10, 12, 8, 6, 14]),
        ({"tilt_range": 0.0}, [0]),
    ],
)
def test_schemes(changes, expected):
    assert nominal_angles(TiltSimulationSettings(**changes)) == expected


def test_the_reference_datas_scheme(reference_data):
    truth = json.loads((reference_data / "reference" / "tilts_beads" / "TS_A.json").read_text())
    assert nominal_angles(TiltSimulationSettings()) == [t["tilt"] for t in truth["tilts"]]


def test_truth_has_the_reference_datas_keys(reference_data):
    truth = json.loads((reference_data / "reference" / "tilts_beads" / "TS_A.json").read_text())
    mine = simulate_tilt_series(tiny(), seed=0).truth
    assert set(truth) <= set(mine)
    assert set(truth["optics"]) == set(mine["optics"])
    assert set(truth["tilts"][0]) <= set(mine["tilts"][0])


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("tilts")
    settings = tiny(gain_variation=0.03, dead_pixels=5, hand=-1, start_angle=5.0)
    return out, settings, write_tilt_session(out, settings, series=2, seed=4, workers=2)


def test_files(written):
    out, settings, (first, second) = written
    assert (first.name, second.name) == ("TS_01", "TS_02")
    assert [p.name for p in first.movies] == [
        f"TS_01_{i:03d}_{a}.tif" for i, a in enumerate(("+5.0", "+15.0", "-5.0", "-15.0", "+25.0"))
    ]
    truth = json.loads(first.truth.read_text())
    assert truth["hand"] == -1
    assert truth["gain"] == "gain.mrc"
    assert first.truth == out / "TS_01.json"
    assert (read_mrc(out / "gain.mrc")[0] == 0).sum() == 5
    points = np.load(out / "TS_01_mol.npy")
    assert points.shape == (4200, 4)
    assert np.linalg.norm(points[:, :3], axis=1).max() == pytest.approx(truth["radius"])
    series = simulate_tilt_series(settings, seed=4 * 100_003, gain=read_mrc(out / "gain.mrc")[0])
    for path, tilt in zip(first.movies, series.tilts(), strict=True):
        # TIFF's rows are flipped on both ways
        np.testing.assert_array_equal(read_tiff(path), tilt.frames)
    assert json.loads(second.truth.read_text())["beads_xyz_centered"] != truth["beads_xyz_centered"]


def test_two_conformations(tmp_path):
    settings = tiny(
        specimen="clamp", other_specimen="clamp-core", other_share=0.25, particles=8, beads=0, thickness=600.0
    )
    series = simulate_tilt_series(settings, seed=2)
    classes, specimen = np.array(series.truth["classes"]), series.specimen
    assert classes.sum() == 2
    # every particle's own points lie about its centre, those of the other conformation being fewer
    sizes = np.where(classes == 1, 9000, 12_000)
    assert len(specimen.points) == sizes.sum()
    parts = np.split(specimen.points, np.cumsum(sizes)[:-1])
    centres, eulers = (np.array(series.truth[k]) for k in ("particles_xyz_centered", "eulers_to_specimen"))
    for k, part, centre, euler in zip(classes, parts, centres, eulers, strict=True):
        own = (specimen.other if k else specimen.particle).points
        np.testing.assert_allclose((part - centre) @ zyz(*euler), own, atol=1e-9)
    # places and poses are those of a series with one conformation as large
    same = simulate_tilt_series(settings.model_copy(update={"other_share": 0.0}), seed=2)
    assert same.truth["particles_xyz_centered"] == series.truth["particles_xyz_centered"]
    assert not any(same.truth["classes"])
    written = write_tilt_session(tmp_path, settings, seed=2)
    assert len(np.load(tmp_path / f"{written[0].name}_mol_other.npy")) == 9000


def test_mdoc(written):
    out, settings, (first, _) = written
    mdoc = read_mdoc(first.mdoc)
    assert mdoc.path == out / "mdoc" / "TS_01.mdoc"
    assert mdoc.pixel_size == 8.0
    assert mdoc.tilt_axis == 85.0
    assert mdoc.tilt_axis_from_rotation == pytest.approx(85.0)
    tilts = mdoc.tilts
    assert [t.tilt_angle for t in tilts] == [5, 15, -5, -15, 25]
    assert [t.prior_dose for t in tilts] == [0, 3, 6, 9, 12]
    assert {t.exposure_dose for t in tilts} == {3.0}
    assert [t.sub_frame_name for t in tilts] == [p.name for p in first.movies]
    assert {t.sub_frames for t in tilts} == {settings.frames}
    assert {t.defocus_um for t in tilts} == {-2.5}
    dates = [t.date for t in tilts]
    assert None not in dates
    assert dates == sorted(dates)


def test_mdocfile_reads_it(written):
    mdocfile = pytest.importorskip("mdocfile")
    table = mdocfile.read(written[2][0].mdoc)
    assert list(table["TiltAngle"]) == [5, 15, -5, -15, 25]


def test_the_same_seed_gives_the_same_series():
    first, again, other = (simulate_tilt_series(tiny(), seed=seed) for seed in (7, 7, 8))
    assert first.truth == again.truth
    assert first.truth["tilts"] != other.truth["tilts"]
    threaded = list(again.tilts(workers=3))
    for index in (4, 0, 2):  # in any order
        np.testing.assert_array_equal(first.tilt(index).frames, threaded[index].frames)
    assert (other.tilt(0).frames != threaded[0].frames).any()


def test_changing_the_stage_leaves_the_specimen():
    one = simulate_tilt_series(tiny(), seed=7).truth
    other = simulate_tilt_series(tiny(shift_jitter=0.0, tilt_range=30.0, beads=0), seed=7).truth
    assert one["particles_xyz_centered"] == other["particles_xyz_centered"]


def test_faults(tmp_path):
    settings = tiny(
        **{"black_tilts": (1,), "missing_tilts": (2,), "repeated_tilts": (3,), "duplicate_entries": (0,)},
        **{"unsorted": True, "doses": False},
    )
    (made,) = write_tilt_session(tmp_path, settings, seed=1)
    truth = json.loads(made.truth.read_text())["tilts"]
    assert [t["tilt"] for t in truth] == [0, 10, -10, -20, -20, 20]
    assert [t["black"] for t in truth] == [i == 1 for i in range(6)]
    assert [t["dose_before"] for t in truth] == [0, 3, 6, 9, 12, 15]
    assert sorted(p.name for p in (tmp_path / "frames").iterdir()) == sorted(
        t["file"] for t in truth if not t["missing"]
    )
    assert truth[2]["missing"]
    means = [read_tiff(p).mean() for p in made.movies]
    assert means[1] < 0.01 * means[0]
    entries = read_mdoc(made.mdoc).tilts
    names = [t.sub_frame_name for t in entries]
    assert sorted(names) == sorted([t["file"] for t in truth] + [truth[0]["file"]])
    assert names != sorted(names)
    assert {t.prior_dose for t in entries} == {t.exposure_dose for t in entries} == {None}
    assert sorted(entries, key=lambda t: t.date) != entries


def test_three_tilts():
    series = simulate_tilt_series(tiny(tilt_range=30.0, tilt_increment=30.0), seed=0)
    assert [t["tilt"] for t in series.truth["tilts"]] == [0, 30, -30]


def test_specimen_has_what_was_asked_for():
    s = TiltSimulationSettings(vesicles=2, sheets=1, beads=9, particles=30, thickness=1200.0, tilt_range=0.0)
    series = simulate_tilt_series(s, seed=3)
    truth = series.truth
    particles, beads = (np.array(truth[f"{kind}_xyz_centered"]) for kind in ("particles", "beads"))
    assert (len(particles), len(beads)) == (30, 9)
    assert [m["kind"] for m in truth["membranes"]] == ["sheet", "vesicle", "vesicle"]
    # gold touches either surface from within
    assert set(np.abs(beads[:, 2])) == {550.0}
    assert (beads[:, 2] > 0).sum() == 4
    assert np.abs(particles[:, 2]).max() <= 600.0 - truth["radius"]
    apart = np.linalg.norm(particles[:, None] - particles, axis=2) + 1e9 * np.eye(30)
    assert apart.min() > 2 * truth["radius"]
    for membrane in series.specimen.membranes:
        assert membrane.distance(particles).min() > truth["radius"] + HALF_THICKNESS
    half = 0.5 * s.field * 512 * s.pixel_size
    assert np.abs(np.concatenate([particles, beads])[:, :2]).max() <= half


@pytest.mark.parametrize("make", [random_vesicle, random_sheet])
def test_membranes_have_heads_outside_and_tails_inside(make):
    rng = np.random.default_rng(0)
    membrane = make(800.0, 500.0, rng)
    xyz, strength = membrane.points(500.0, rng)
    depth = membrane.distance(xyz)
    np.testing.assert_allclose(depth[strength > 0], 19.0, atol=1e-9)
    assert depth[strength < 0].max() <= 12.0
    area = 4 * math.pi * membrane.radius**2 if membrane.kind == "vesicle" else 4 * membrane.radius**2
    # one head on 65 Å² of each leaflet (a sphere's two differ by their radii), less what left the ice
    assert (strength > 0).sum() == pytest.approx(2 * area / 65.0, rel=0.03)
    assert np.abs(xyz[:, 2]).max() <= 500.0


def test_damage_takes_detail_from_matter_only():
    changes = {"beads": 0, "crowding": 0.0, "frames": 1, "dose_per_tilt": 60.0, "tilt_range": 0.0}
    damaged, whole, empty = (
        simulate_tilt_series(tiny(**changes, **more), seed=2)
        for more in ({}, {"damage": 0.0}, {"particles": 0})
    )
    images = [s.scene.frames(s.exposures[0])[0].astype(float) for s in (damaged, whole, empty)]
    k = np.hypot(scipy.fft.fftfreq(128, 8.0)[:, None], scipy.fft.rfftfreq(160, 8.0))
    ring = (k > 0.045) & (k < 0.055)
    left, before = (np.abs(scipy.fft.rfft2(image - images[2]))[ring] for image in images[:2])
    critical = 0.24499 * 0.05**-1.6649 + 2.8141
    # Grant & Grigorieff (2015) in the middle of the exposure; the ring is 20 % wide
    assert np.sqrt((left**2).sum() / (before**2).sum()) == pytest.approx(
        math.exp(-30.0 / (2.0 * critical)), rel=0.05
    )


def test_what_does_not_fit_is_refused(tmp_path):
    with pytest.raises(SettingsError, match="particles fit into the ice"):
        simulate_tilt_series(tiny(particles=500))
    with pytest.raises(SettingsError, match="make it thicker"):
        simulate_tilt_series(tiny(thickness=110.0))
    with pytest.raises(SettingsError, match="vesicles need"):
        simulate_tilt_series(tiny(vesicles=1, thickness=300.0))
    with pytest.raises(SettingsError, match="smaller ones"):
        simulate_tilt_series(tiny(bead_diameter=400.0, thickness=300.0))
    with pytest.raises(SettingsError, match=r"nothing\.pdb"):
        simulate_tilt_series(tiny(specimen="nothing.pdb"))
    (tmp_path / "text.pdb").write_text("no atoms here\n")
    with pytest.raises(FormatError, match=r"text\.pdb"):
        simulate_tilt_series(tiny(specimen=str(tmp_path / "text.pdb")))
    for number, seed in ((0, 0), (1, -1)):
        with pytest.raises(RequestError):
            write_tilt_session(tmp_path, tiny(), series=number, seed=seed)


def test_command(tmp_path, capsys):
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in TINY.items()]
    faults = ["--hand", "-1", "--black-tilts", "1", "--black-tilts", "2"]
    out = str(tmp_path / "out")
    assert main(["simulate", "tilts", out, "-n", "1", "--workers", "1", *arguments, *faults]) == 0
    truth = json.loads((tmp_path / "out" / "TS_01.json").read_text())
    assert truth["hand"] == -1
    assert [t["index"] for t in truth["tilts"] if t["black"]] == [1, 2]
    said = capsys.readouterr().out
    for part in ("weft new", "--mdoc", "--pixel-size 8", "--voltage 300", "--cs 2.7", "--dose 1.5"):
        assert part in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--hand", "2"], "1 or -1"),
        (["--black-tilts", "99"], "0 to 18"),
        (["--tilt-range", "75", "--level-y", "9"], "no more than 80"),
        (["--seed", "-1"], "seed"),
        (["--specimen", "none.pdb"], "none.pdb"),
    ],
)
def test_wrong_requests(tmp_path, capsys, arguments, said):
    assert main(["simulate", "tilts", str(tmp_path), "--small", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "unexpected" not in error


def test_small_is_a_whole_series():
    settings = TiltSimulationSettings.small(hand=-1)
    assert settings.hand == -1
    assert settings.width == SMALL_SERIES["width"]
    assert len(nominal_angles(settings)) == 19
