"""Tomograms against points whose images are computed exactly, and against the reference series."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tomogram_truth import Specimen, density, locate, shells, tilt_images

from weft.errors import ItemError, RequestError
from weft.physics.geometry import TiltGeometry
from weft.physics.optics import Optics
from weft.tilts.gridding import TiltContrast, transfer_volume
from weft.tilts.images import TiltImages, half_tilts
from weft.tilts.reconstruction import (
    ReconstructionSettings,
    TomogramDeconvolutionSettings,
    deconvolution_gain,
    magnification,
    reconstruct,
)
from weft.tilts.subvolumes import cell_window
from weft.tilts.volumes import MapSummary, VolumeGrid

Box = tuple[tuple[float, float], tuple[float, float], tuple[float, float]]
ANGLES = np.arange(-60.0, 61.0, 3.0)


def make(
    images: torch.Tensor,
    geometry: TiltGeometry,
    contrast: TiltContrast,
    image_pixel_size: float,
    /,
    *,
    box: Box | None = None,
    deconvolution: TomogramDeconvolutionSettings | None = None,
    **settings: Any,
) -> tuple[dict[str, NDArray[np.float32]], dict[str, MapSummary], list[tuple[str, int, int]]]:
    """Maps, what is known about them, and (name, first section, sections) of every slab."""
    given = ReconstructionSettings(**settings)
    grid = VolumeGrid.of(geometry.volume_size, given.pixel_size, box)
    prepared = TiltImages.prepare(iter(images), image_pixel_size, given.pixel_size)
    maps: dict[str, NDArray[np.float32]] = {}
    slabs = []

    def write(name: str, first: int, slab: torch.Tensor) -> None:
        maps.setdefault(name, np.full(grid.shape, np.nan, np.float32))[first : first + len(slab)] = slab
        slabs.append((name, first, len(slab)))

    found = reconstruct(prepared, geometry, contrast, grid, write, given, deconvolution)
    return maps, dict(found), slabs


def tilted(**more: Any) -> TiltGeometry:
    given: dict[str, Any] = {
        "axis": 85.3,
        "shift": np.random.default_rng(3).normal(0.0, 30.0, (len(ANGLES), 2)),
        "defocus": 25000.0,
        "volume_size": (800.0, 760.0, 400.0),
        "image_size": (1000.0, 1000.0),
        "level": (2.0, -3.0),
    }
    return TiltGeometry.of(ANGLES, **(given | more))


def plain_contrast(**more: Any) -> TiltContrast:
    return TiltContrast.of(Optics(5.0, 300.0, 2.7, 0.1), len(ANGLES), **more)


POINTS = np.array([[400.0, 380.0, 200.0], [203.0, 551.0, 97.0], [655.0, 188.0, 314.0], [158.0, 163.0, 243.0]])


@pytest.mark.parametrize(
    ("size", "target"), [(200, 10.0), (202, 9.0)], ids=["pixels that divide", "pixels that do not"]
)
def test_points_come_back(size: int, target: float) -> None:
    """Right place (0.1 voxel), right sign, right hand: four points that no mirroring maps onto themselves."""
    pixel = 1000.0 / size
    geometry = tilted()
    images = tilt_images(POINTS, geometry, (size, size), pixel, sigma=14.0)
    maps, found, _ = make(
        images, geometry, plain_contrast(), pixel, pixel_size=target, cube=32, ctf_weights="none"
    )
    volume = maps["map"]
    for place in POINTS / target:
        assert locate(volume, place) == pytest.approx(place, abs=0.1)
    assert np.isfinite(volume).all()
    assert found["map"].greatest == volume.max() > 10.0 * volume.std()
    # the density is that of the images: a point's sum over z is what the untilted image shows of it, but for
    # the lowest frequencies, of which a patch knows little
    x, y, _ = np.round(POINTS[0] / target).astype(int)
    column = volume[:, y - 1 : y + 2, x - 1 : x + 2].sum(0).max()
    peak = 1.0 - float(images[20].min()) / 100.0
    assert column == pytest.approx(peak, rel=0.25)


def test_anisotropic_magnification() -> None:
    geometry = tilted()
    warp = magnification(6.0, 25.0).numpy()
    images = tilt_images(POINTS, geometry, (200, 200), 5.0, sigma=14.0, distortion=warp)
    options: dict[str, Any] = {"pixel_size": 10.0, "cube": 32, "ctf_weights": "none"}
    maps, _, _ = make(
        images, geometry, plain_contrast(), 5.0, anisotropy=6.0, anisotropy_angle=25.0, **options
    )
    for place in POINTS / 10.0:
        assert locate(maps["map"], place) == pytest.approx(place, abs=0.1)
    blurred, _, _ = make(images, geometry, plain_contrast(), 5.0, **options)
    assert np.abs(locate(blurred["map"], POINTS[1] / 10.0) - POINTS[1] / 10.0).max() > 0.3


Crowd = tuple[TiltGeometry, NDArray[np.float32], torch.Tensor, Box]


@pytest.fixture(scope="module")
def crowd() -> Crowd:
    """100 points 0.13 µm beside the tilt axis, where a tilt of 60° brings them 0.11 µm nearer to the lens.

    The CTF has zeros at 20, 14, 11.5 and 10 Å; one defocus for all is wrong by 0.9 rad at 9 Å and 60°.
    """
    place = np.array([3100.0, 300.0, 200.0])
    volume = {"volume_size": (3600.0, 600.0, 400.0), "image_size": (880.0, 880.0), "defocus": 20000.0}
    geometry = tilted(**volume, shift=None)
    centre = geometry.project(torch.from_numpy(place)[None])[:, 0, :2].numpy()
    geometry = tilted(**volume, shift=440.0 - centre)
    points = place + np.random.default_rng(5).uniform(-120.0, 120.0, (100, 3))
    images = tilt_images(points, geometry, (220, 220), 4.0, sigma=2.0, optics=Optics(4.0, 300.0, 2.7, 0.1))
    box = tuple((float(p) - 160.0, float(p) + 156.0) for p in place)
    grid = VolumeGrid.of(geometry.volume_size, 4.0, box)  # type: ignore[arg-type]
    true = density(points / 4.0 - np.array(grid.start[::-1]), grid.shape, sigma=0.5)
    assert grid.shape == (80, 80, 80)
    return geometry, true, images, box  # type: ignore[return-value]


def wave_agreement(crowd: Crowd, geometry: TiltGeometry | None = None, **more: Any) -> NDArray[np.float64]:
    """Fourier shell correlation with the truth outside the missing wedge, in shells of 320 Å."""
    true_geometry, true, images, box = crowd
    settings = {"dose_weighting": "none", "tilt_weighting": "none", "cube": 48, "pixel_size": 4.0} | more
    contrast = plain_contrast()
    maps, _, _ = make(images, geometry or true_geometry, contrast, 4.0, box=box, **settings)
    n = len(true)
    taper = np.hanning(n + 2)[1:-1]
    window = taper[:, None, None] * taper[:, None] * taper
    a, b = (np.fft.rfftn((v - v.mean()) * window) for v in (maps["map"], true))
    place = torch.tensor([3100.0, 300.0, 200.0], dtype=torch.float64)
    known = transfer_volume(place, n, 4.0, true_geometry, contrast, dose_model="none").numpy() > 0.05
    ring = np.where(known, shells(true.shape), n).ravel()  # type: ignore[arg-type]
    ab, aa, bb = (
        np.bincount(ring, v.ravel(), n + 1)[: n // 2] for v in ((a * b.conj()).real, abs(a) ** 2, abs(b) ** 2)
    )
    return np.asarray(ab / np.sqrt(aa * bb + 1e-30))


SPAN = slice(18, 37)  # 18 to 9 Å, across three zeros


def test_ctf_correction_restores_phases(crowd: Crowd) -> None:
    corrected = wave_agreement(crowd)
    assert corrected[4:37].min() > 0.5
    assert corrected[SPAN].mean() > 0.8
    assert wave_agreement(crowd, ctf_weights="power")[SPAN].mean() > 0.8
    assert wave_agreement(crowd, ctf_weights="none")[SPAN].min() < -0.3  # upside down somewhere
    # one CTF a tilt is that of the axis
    whole = wave_agreement(crowd, method="wbp_flipped")
    assert corrected[SPAN].mean() > whole[SPAN].mean() + 0.03
    assert corrected[SPAN].min() > whole[SPAN].min() + 0.1


def test_defocus_follows_the_hand(crowd: Crowd) -> None:
    geometry = crowd[0]
    other = TiltGeometry(**{**vars(geometry), "hand": -1.0})
    found, wrong = (wave_agreement(crowd, g)[SPAN].mean() for g in (geometry, other))
    assert found > wrong + 0.15


def test_a_part_is_that_part_of_the_whole() -> None:
    geometry = tilted()
    torch.manual_seed(4)
    images = 100.0 + torch.randn(len(ANGLES), 100, 100)
    whole, _, _ = make(images, geometry, plain_contrast(), 10.0, cube=32)
    box = ((123.0, 560.0), (301.0, 702.0), (95.0, 240.0))
    part, _, slabs = make(images, geometry, plain_contrast(), 10.0, cube=32, box=box)
    expected = whole["map"][10:25, 31:71, 13:57]
    assert part["map"].shape == expected.shape
    np.testing.assert_array_equal(part["map"], expected)
    assert [first for _, first, _ in slabs] == list(np.cumsum([0] + [n for _, _, n in slabs[:-1]]))


def test_half_maps_are_independent() -> None:
    """Noise in, nothing in common out; and each half shows the points."""
    geometry = tilted()
    contrast = plain_contrast()
    torch.manual_seed(6)
    images = 100.0 + 10.0 * torch.randn(len(ANGLES), 100, 100)
    halves = half_tilts(geometry.angles)
    assert sorted(torch.cat(halves).tolist()) == list(range(len(ANGLES)))
    assert abs(len(halves[0]) - len(halves[1])) <= 1
    maps = [make(images[h], geometry.select(h), contrast.select(h), 10.0, cube=32)[0]["map"] for h in halves]
    # 75 × 76 × 40 voxels, some thousand independent ones at these low frequencies
    assert abs(np.corrcoef(maps[0].ravel(), maps[1].ravel())[0, 1]) < 0.02
    point = tilt_images(POINTS, geometry, (100, 100), 10.0, sigma=14.0)
    maps = [
        make(point[h], geometry.select(h), contrast.select(h), 10.0, cube=32, ctf_weights="none")[0]["map"]
        for h in halves
    ]
    for volume in maps:
        for place in POINTS / 10.0:
            assert locate(volume, place) == pytest.approx(place, abs=0.3)


def test_threads_change_nothing() -> None:
    geometry = tilted()
    torch.manual_seed(7)
    images = 100.0 + torch.randn(len(ANGLES), 50, 50)
    before = torch.get_num_threads()
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(make(images, geometry, plain_contrast(), 20.0, pixel_size=20.0, cube=16)[0]["map"])
        assert torch.get_num_threads() == threads
    torch.set_num_threads(before)
    np.testing.assert_array_equal(found[0], found[1])


def test_invert_and_deconvolve() -> None:
    geometry = tilted()
    images = tilt_images(POINTS, geometry, (100, 100), 10.0, sigma=14.0, optics=Optics(10.0, 300.0, 2.7, 0.1))
    settings = TomogramDeconvolutionSettings()
    options: dict[str, Any] = {"cube": 32, "ctf_weights": "amplitude"}
    light, found, slabs = make(images, geometry, plain_contrast(), 10.0, deconvolution=settings, **options)
    dark, _, _ = make(images, geometry, plain_contrast(), 10.0, invert=False, **options)
    np.testing.assert_allclose(light["map"], -dark["map"], atol=1e-7)
    assert set(found) == {"map", "deconvolved"} == {name for name, _, _ in slabs}
    # low frequencies are lifted: most of the power of the deconvolved map is in them
    power = [
        np.sort((abs(np.fft.rfftn(v)[:4, :8, :8]) ** 2).ravel()).sum() / (abs(np.fft.rfftn(v)) ** 2).sum()
        for v in light.values()
    ]
    assert power[1] > 1.5 * power[0]
    only, _, _ = make(
        images,
        geometry,
        plain_contrast(),
        10.0,
        cube=32,
        deconvolution=TomogramDeconvolutionSettings(write=False),
    )
    assert list(only) == ["map"]


def test_gain_of_the_deconvolution() -> None:
    """t / (t² + 1/SNR) with SNR = exp(−100 F k) 10^(3S) H(k): the paper's, by hand."""
    settings = TomogramDeconvolutionSettings(strength=0.8, falloff=1.2, highpass=300.0)
    k, t = torch.tensor([0.0, 1 / 600.0, 0.02]), torch.tensor([0.1, 0.2, 0.7])
    snr = np.exp(-120.0 * k.numpy()) * 10**2.4 * np.array([0.0, 0.5, 1.0])
    expected = np.where(snr > 0, t.numpy() / (t.numpy() ** 2 + 1 / np.maximum(snr, 1e-30)), 0.0)
    assert deconvolution_gain(k, t, settings).numpy() == pytest.approx(expected, rel=1e-5)


def test_only_voxels_that_every_image_shows() -> None:
    geometry = tilted(image_size=(600.0, 700.0))
    torch.manual_seed(8)
    images = 100.0 + torch.randn(len(ANGLES), 70, 60)
    whole, _, _ = make(images, geometry, plain_contrast(), 10.0, cube=32)
    kept, _, _ = make(images, geometry, plain_contrast(), 10.0, cube=32, covered_only=True)
    rng = np.random.default_rng(9)
    index = rng.integers(0, kept["map"].shape, (4000, 3))
    places = geometry.project(torch.from_numpy(index[:, ::-1] * 10.0))[..., :2].numpy()
    seen = ((places >= 0.0) & (places <= [590.0, 690.0])).all((0, 2))
    assert 0.05 < seen.mean() < 0.95
    np.testing.assert_array_equal(
        kept["map"][tuple(index.T)], np.where(seen, whole["map"][tuple(index.T)], 0.0)
    )


def test_pictures_are_the_middle_sections() -> None:
    geometry = tilted()
    torch.manual_seed(10)
    maps, found, _ = make(
        100.0 + torch.randn(41, 50, 50), geometry, plain_contrast(), 20.0, pixel_size=20.0, cube=16
    )
    volume, summary = maps["map"], found["map"]
    nz, ny, nx = volume.shape
    np.testing.assert_array_equal(summary.slices.xy, volume[nz // 2])
    np.testing.assert_array_equal(summary.slices.xz, volume[:, ny // 2])
    np.testing.assert_array_equal(summary.slices.yz, volume[:, :, nx // 2])
    assert summary.mean == pytest.approx(volume.mean(), abs=1e-6)
    assert summary.std == pytest.approx(volume.std(), rel=1e-4)
    assert (summary.least, summary.greatest) == (volume.min(), volume.max())


def test_windows_of_cells_add_up_to_one() -> None:
    total = torch.zeros(3 * 16 + 4)
    for index in range(3):
        total[index * 16 : index * 16 + 20] += cell_window(index, 3, 16, 4)
    assert torch.allclose(total[2:-2], torch.ones(48))


def test_images_in_counts_and_others() -> None:
    torch.manual_seed(11)
    counts = 50.0 + 5.0 * torch.randn(3, 64, 64)
    found = TiltImages.prepare(iter(counts), 2.0, 4.0)
    assert found.in_counts
    assert found.images.shape == (3, 32, 32)
    assert found.pixel_size == (4.0, 4.0)
    assert torch.allclose(found.means, counts.mean((1, 2)).double(), rtol=1e-4)
    other = TiltImages.prepare(iter(counts - 50.0), 2.0, 4.0)
    assert not other.in_counts
    assert torch.allclose(other.images.std((1, 2)), torch.ones(3), atol=1e-3)


def test_clear_words_for_what_cannot_be_done() -> None:
    geometry = tilted()
    images = 100.0 + torch.randn(41, 50, 50)
    with pytest.raises(ItemError, match="41 tilt images, an alignment for 40"):
        make(images, geometry.select(torch.arange(40)), plain_contrast(), 20.0)
    images[7] = 3.0
    with pytest.raises(ItemError, match="tilt 7 is empty"):
        TiltImages.prepare(iter(images), 20.0, 20.0)
    images[7] = torch.nan
    with pytest.raises(ItemError, match="tilt 7 is not finite"):
        TiltImages.prepare(iter(images), 20.0, 20.0)
    with pytest.raises(ItemError, match="one size"):
        TiltImages.prepare([images[0], images[1, :40]], 20.0, 20.0)
    with pytest.raises(RequestError, match="along z holds no voxel"):
        VolumeGrid.of((800.0, 800.0, 400.0), 10.0, ((0.0, 100.0), (0.0, 100.0), (500.0, 600.0)))


MEMORY = """
import resource, sys, torch
torch.set_num_threads(1)
from weft.physics.geometry import TiltGeometry
from weft.physics.optics import Optics
from weft.tilts.gridding import TiltContrast
from weft.tilts.images import TiltImages
from weft.tilts.reconstruction import ReconstructionSettings, TomogramDeconvolutionSettings, reconstruct
from weft.tilts.volumes import VolumeGrid
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
n = 1024
geometry = TiltGeometry.of([-40.0, 0.0, 40.0], defocus=2e4, volume_size=(10240.0, 10240.0, 4000.0),
    image_size=(10240.0, 10240.0))
images = TiltImages.prepare((100.0 + torch.randn(n, n) for _ in range(3)), 10.0, 10.0)
grid = VolumeGrid.of(geometry.volume_size, 10.0, ((0.0, 10239.0), (0.0, 10239.0), (0.0, 2560.0)))
size = 0
def write(name, first, slab):
    global size
    size += slab.numel()
settings = ReconstructionSettings(cube=128, method=sys.argv[1])
reconstruct(images, geometry, TiltContrast.of(Optics(10.0), 3), grid, write, settings)
assert size == 1024 * 1024 * 257
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("method", "limit"), [("local", 0.7), ("wbp", 0.85)])
def test_memory_does_not_grow_with_the_volume(method: str, limit: float) -> None:
    """A volume of 1.1 GB: what is held is a slab of it (0.34 GB; 0.5 GB of whole images), images and code."""
    src = Path(__file__).resolve().parents[2] / "src"
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, method],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(src), "PATH": "/usr/bin:/bin"},
    )
    assert int(done.stdout) / 1024**2 < limit


def series_contrast(specimen: Specimen) -> TiltContrast:
    return TiltContrast.of(
        Optics(4.0, 300.0, 2.7, 0.07), len(specimen.dose), dose=specimen.dose, astigmatism=300.0, angle=40.0
    )


def test_reference_series_small(reference_data: Path) -> None:
    """At 20 Å, in seconds: particles are where and how they should be, light on dark."""
    specimen = Specimen.read(reference_data / "reference" / "tilts_beads")
    contrast = series_contrast(specimen)
    maps, _, _ = make(
        specimen.images,
        specimen.geometry,
        contrast,
        4.0,
        pixel_size=20.0,
        deconvolution=TomogramDeconvolutionSettings(),
    )
    plain = specimen.agreement(maps["map"], 20.0)
    clear = specimen.agreement(maps["deconvolved"], 20.0)
    assert len(plain.correlations) == 140
    assert plain.correlation > 0.70
    assert clear.correlation > 0.80
    assert plain.at(60.0, 20.0) > 0.78  # 0.83, where a sixth of Fourier space is missing


@pytest.mark.slow
def test_reference_series_against_back_projection(reference_data: Path) -> None:
    """At 10 Å: better than back-projection of whole images, plain or phase-flipped by one CTF a tilt."""
    specimen = Specimen.read(reference_data / "reference" / "tilts_beads")
    contrast = series_contrast(specimen)

    def measure(deconvolution: bool = False, **settings: Any) -> list[Any]:
        maps, _, _ = make(
            specimen.images,
            specimen.geometry,
            contrast,
            4.0,
            pixel_size=10.0,
            deconvolution=TomogramDeconvolutionSettings() if deconvolution else None,
            **settings,
        )
        return [specimen.agreement(volume, 10.0) for volume in maps.values()]

    whole = {"dose_weighting": "none"}
    found = {
        "local": measure(True),
        "local, CTF²": measure(ctf_weights="power"),
        "plain, exact filter": measure(method="wbp", **whole),
        "plain, ramp": measure(method="wbp", filter_thickness=400.0, **whole),
        "flipped, exact filter": measure(True, method="wbp_flipped", **whole),
        "flipped, ramp": measure(True, method="wbp_flipped", filter_thickness=400.0, **whole),
    }
    for name, agreements in found.items():
        for kind, a in zip(("map", "deconvolved"), agreements):
            curve = " ".join(f"{d}:{a.at(d, 10.0):.3f}" for d in (100, 60, 45, 35, 30, 27, 24, 22, 20))
            print(f"{name:22s} {kind:12s} CC {a.correlation:.4f}  FSC {curve}")
    local, clear = found["local"]
    for name, (other, *deconvolved) in found.items():
        if not name.startswith("local"):
            for d in (35.0, 30.0, 27.0, 24.0, 22.0, 20.0):
                assert local.at(d, 10.0) > other.at(d, 10.0) - 0.001, (name, d)
            assert clear.correlation > other.correlation + 0.05
            assert all(clear.correlation > other.correlation for other in deconvolved)
            assert found["local, CTF²"][0].correlation > other.correlation + 0.03
