"""Particles cut from frames: where they lie, how they are weighted, binned and normalised.

The movies here are evaluated from formulas at every pixel of every frame: no image is moved.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.interpolate import RectBivariateSpline

from weft.errors import ItemError
from weft.formats import mrc
from weft.movies.frames import load_frames
from weft.particles import frame_sums, windows
from weft.particles.extraction import Extracted, ExtractionSettings, extract_particles, sort_out
from weft.particles.local_ctf import LocalCTF
from weft.physics import fourier
from weft.physics.ctf import astigmatic_defocus, ctf
from weft.physics.geometry import euler_matrix
from weft.physics.optics import Optics
from weft.tilts.reconstruction import magnification

PIXEL, SIZE, FRAMES = 1.1, 300, 5
OPTICS = Optics(PIXEL, dose_per_frame=2.0)
#: x, y, px of the average: all kinds of places between pixels.
PLACES = np.array([[150.0, 140.0], [121.37, 98.81], [200.5, 170.25], [101.93, 188.06]])
PLAIN = {"normalise": False, "invert": False, "dose_weighting": "none"}


def _track(xy: NDArray[np.float64]) -> NDArray[np.float64]:
    """Drift that slows down, and a part that differs from place to place; Å."""
    f = np.arange(FRAMES)[:, None, None]
    drift = np.array([7.3, -4.1]) * np.exp(-f / 2.0)
    local = 0.012 * (xy - 150.0 * PIXEL)[None, :, ::-1] * [1.0, -1.0] * (f / FRAMES - 0.5)
    return drift + local


def _spots(
    at: NDArray[np.float64], shape: tuple[int, int] = (SIZE, SIZE), width: float = 3.0
) -> torch.Tensor:
    """Dark Gaussians at places (pixels) on a ground of 10."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    image = np.full(shape, 10.0)
    for px, py in at:
        image -= 4.0 * np.exp(-((x - px) ** 2 + (y - py) ** 2) / (2.0 * width**2))
    return torch.from_numpy(image.astype(np.float32))


def _movie() -> torch.Tensor:
    tracks = _track(PLACES * PIXEL) / PIXEL
    return torch.stack([_spots(PLACES + shift) for shift in tracks])


def _all(batches: object) -> Extracted:
    found = list(batches)  # type: ignore[call-overload]
    rows = np.concatenate([one.rows for one in found])
    halves = [
        None if getattr(found[0], h) is None else torch.cat([getattr(o, h) for o in found])
        for h in ("even", "odd")
    ]
    return Extracted(rows, torch.cat([one.images for one in found]), *halves)


def _centre(image: torch.Tensor, width: float) -> NDArray[np.float64]:
    """Centre of a spot from the middle pixel, px, within a soft disc that leaves neighbours out."""
    n = len(image)
    values = image.double().numpy() - np.median(image.numpy())
    y, x = np.mgrid[:n, :n] - float(n // 2)
    cx = cy = 0.0
    for _ in range(20):  # a Gaussian window pulls the mean to its own centre: moved until it stands still
        weight = values * np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2.0 * width**2))
        cx, cy = (weight * x).sum() / weight.sum(), (weight * y).sum() / weight.sum()
    return np.array([cx, cy])


@pytest.mark.parametrize("pixel", [None, PIXEL * 1.25, 1.37, 2 * PIXEL, 2.9])
@pytest.mark.parametrize("dose_weighting", ["none", "warp"])
def test_the_particle_lies_on_the_middle_pixel(pixel: float | None, dose_weighting: str) -> None:
    """Within 0.02 px, wherever it lies between pixels, however it moves, whatever the output's pixels."""
    settings = ExtractionSettings(box=48, pixel_size=pixel, dose_weighting=dose_weighting, normalise=False)
    found = _all(extract_particles(_movie(), PLACES * PIXEL, _track, OPTICS, settings))
    assert found.rows.tolist() == [0, 1, 2, 3]
    for image in found.images:
        middle = image[24, 24]
        assert middle == image.max()  # dark in the movie, light here
        width = 4.0 * PIXEL / (pixel or PIXEL)
        assert np.abs(_centre(image, width)).max() < 0.02


def test_without_the_tracks_it_does_not() -> None:
    """The same measurement tells when particles are not followed: their motion is pixels long."""
    settings = ExtractionSettings(box=48, normalise=False)
    found = _all(extract_particles(_movie(), PLACES * PIXEL, lambda xy: _track(xy) + 1.5, OPTICS, settings))
    for image in found.images:
        np.testing.assert_allclose(_centre(image, 4.0), -1.5 / PIXEL, atol=0.05)


def test_frames_on_disk_and_in_memory_are_the_same() -> None:
    """Anything that gives frames one by one will do, and all fit or just a few at a time."""

    class OneByOne:
        def __init__(self, frames: torch.Tensor) -> None:
            self._frames, self.shape = frames, tuple(frames.shape)

        def __len__(self) -> int:
            return len(self._frames)

        def __getitem__(self, index: int) -> torch.Tensor:
            return self._frames[index].clone()

    settings = ExtractionSettings(box=32, normalise=False)
    movie = _movie()
    a, b = (
        _all(extract_particles(m, PLACES * PIXEL, _track, OPTICS, settings)) for m in (movie, OneByOne(movie))
    )
    assert torch.equal(a.images, b.images)


def test_few_at_a_time_is_as_good(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ExtractionSettings(box=32, halves=True, normalise=False)
    whole = _all(extract_particles(_movie(), PLACES * PIXEL, _track, OPTICS, settings))
    monkeypatch.setattr(frame_sums, "SUMS", 1)
    monkeypatch.setattr(windows, "CHUNK", 1)
    batches = list(extract_particles(_movie(), PLACES * PIXEL, _track, OPTICS, settings))
    assert [len(b.rows) for b in batches] == [1, 1, 1, 1]
    single = _all(batches)
    torch.testing.assert_close(single.images, whole.images, atol=1e-4, rtol=0)
    assert single.even is not None
    assert whole.even is not None
    torch.testing.assert_close(single.even, whole.even, atol=1e-4, rtol=0)


def _cropped(image: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """A square image brought to another even size by its centred transform: numpy, not Weft."""
    n = len(image)
    spectrum = np.fft.fftshift(np.fft.fft2(image))
    first = n // 2 - size // 2
    small = spectrum[first : first + size, first : first + size].copy()
    small[0], small[:, 0] = 0.0, 0.0  # the Nyquist frequency has no sign
    return np.fft.ifft2(np.fft.ifftshift(small)).real * (size / n) ** 2


@pytest.mark.parametrize(("factor", "place"), [(1.25, 150), (2.0, 140), (1.5, 150), (3.0, 150)])
def test_binning_is_cropping_in_fourier_space(factor: float, place: int) -> None:
    """As the whole image, binned by numpy, of noise on both sides of the new Nyquist frequency.

    Where the whole image is binned, to 1e-4 of its deviation; where windows are, to 3 %: they end somewhere.
    """
    rng = np.random.default_rng(1)
    spectrum = np.fft.fft2(rng.normal(size=(SIZE, SIZE)))
    k = np.abs(np.fft.fftfreq(SIZE)) * 2.0 * factor
    spectrum *= np.outer(np.abs(k - 1.0) > 0.05, np.abs(k - 1.0) > 0.05)
    image = np.fft.ifft2(spectrum).real
    small = _cropped(image, round(SIZE / factor))
    at, half = round(place / factor), 16
    expected = small[at - half : at + half, at - half : at + half]
    settings = ExtractionSettings(box=32, pixel_size=factor * PIXEL, **PLAIN)
    frames = torch.from_numpy(image.astype(np.float32))[None]
    found = _all(extract_particles(frames, [[place * PIXEL] * 2], None, OPTICS, settings))
    difference = found.images[0].numpy() - expected
    assert difference.std() < (0.03 if factor < 1.5 else 1e-4) * expected.std()


def test_noise_keeps_its_spectrum_under_dose_weights() -> None:
    """White in, white out (5 % in eight rings, of 40 windows), as in the averages; late frames count less."""
    rng = np.random.default_rng(2)
    frames = torch.from_numpy(rng.normal(size=(8, SIZE, SIZE)).astype(np.float32))
    places = rng.uniform(60, 240, (40, 2))
    settings = ExtractionSettings(box=64, normalise=False, dose_weighting="warp")
    strong = Optics(PIXEL, dose_per_frame=5.0)
    found = _all(extract_particles(frames, places * PIXEL, None, strong, settings))
    power = (np.abs(np.fft.fft2(found.images.numpy())) ** 2).mean(0) / 64**2
    k = np.hypot(*np.meshgrid(np.fft.fftfreq(64), np.fft.fftfreq(64)))
    rings = [power[(k >= low) & (k < low + 0.06)].mean() for low in np.arange(0.01, 0.48, 0.06)]
    np.testing.assert_allclose(rings, 1.0 / 8.0, rtol=0.12)


def test_the_background_has_mean_0_and_deviation_1() -> None:
    rng = np.random.default_rng(3)
    y, x = np.mgrid[:SIZE, :SIZE]
    frames = torch.from_numpy((50.0 + 0.05 * x - 0.03 * y + 2.0 * rng.normal(size=(SIZE, SIZE))).astype("f4"))
    settings = ExtractionSettings(box=64, diameter=40 * PIXEL, dust=5.0)
    found = _all(extract_particles(frames[None], PLACES * PIXEL, None, OPTICS, settings)).images.numpy()
    outside = np.hypot(*np.mgrid[-32:32, -32:32]) > 20.0
    for image in found:
        assert abs(image[outside].mean()) < 1e-4
        assert image[outside].std() == pytest.approx(1.0, abs=1e-4)
        # of a ramp of ten times the noise hardly anything is left
        slope = np.polyfit(np.nonzero(outside)[1], image[outside], 1)[0]
        assert abs(slope) < 2e-3
    steep = _all(
        extract_particles(
            frames[None], PLACES * PIXEL, None, OPTICS, settings.model_copy(update={"ramp": False})
        )
    ).images.numpy()
    assert abs(np.polyfit(np.nonzero(outside)[1], steep[0][outside], 1)[0]) > 0.01


def test_dust_becomes_noise() -> None:
    rng = np.random.default_rng(4)
    frames = torch.from_numpy(rng.normal(size=(1, SIZE, SIZE)).astype("f4"))
    frames[0, 140, 155] = 300.0
    settings = ExtractionSettings(box=48, source="average")
    kept, cleaned = (
        _all(
            extract_particles(
                frames, [PLACES[0] * PIXEL], None, OPTICS, settings.model_copy(update={"dust": d})
            )
        ).images[0]
        for d in (None, 5.0)
    )
    assert kept.min() < -20.0  # inverted
    assert cleaned.abs().max() < 5.0
    assert cleaned.std() == pytest.approx(1.0, abs=0.05)


def test_halves_add_up_to_the_whole() -> None:
    movie = _movie()
    settings = ExtractionSettings(box=40, halves=True, **PLAIN)
    found = _all(extract_particles(movie, PLACES * PIXEL, _track, OPTICS, settings))
    assert found.even is not None
    assert found.odd is not None
    torch.testing.assert_close((3.0 * found.even + 2.0 * found.odd) / 5.0, found.images, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["flip", "premultiply"])
def test_the_local_ctf_is_applied_to_each_particle(kind: str) -> None:
    """As on the whole image with the CTF of the place, to 10 % of the standard deviation.

    At this defocus the CTF takes signal no further than the padding of the windows; the sharp signs of a
    flipped one reach further, 30 %. A wrong sign makes 200 %.
    """
    rng = np.random.default_rng(5)
    image = rng.normal(size=(SIZE, SIZE))
    defocus = np.array([2000.0, 2600.0])
    local = LocalCTF(defocus + 150.0, defocus - 150.0, np.array([20.0, -50.0]), 30.0)
    places = np.array([[140, 150], [160, 152]])
    settings = ExtractionSettings(box=48, ctf=kind, **PLAIN)
    frames = torch.from_numpy(image.astype("f4"))[None]
    found = _all(extract_particles(frames, places * PIXEL, None, OPTICS, settings, ctf=local))
    ky, kx = np.meshgrid(np.fft.fftfreq(SIZE, PIXEL), np.fft.fftfreq(SIZE, PIXEL), indexing="ij")
    for i, (x, y) in enumerate(places):
        azimuth = torch.from_numpy(np.arctan2(ky, kx))
        z = astigmatic_defocus(local.defocus_u[i], local.defocus_v[i], local.angle[i], azimuth)
        transfer = ctf(torch.from_numpy(ky**2 + kx**2), z, OPTICS, 30.0).numpy()
        transfer = np.sign(transfer) if kind == "flip" else transfer
        expected = np.fft.ifft2(np.fft.fft2(image) * transfer).real[y - 24 : y + 24, x - 24 : x + 24]
        limit = 0.3 if kind == "flip" else 0.1
        assert (found.images[i].numpy() - expected).std() < limit * expected.std()
    with pytest.raises(ItemError, match="CTF must be known"):
        next(extract_particles(frames, places * PIXEL, None, OPTICS, settings))


def test_anisotropic_magnification_is_undone() -> None:
    """Spots that are round in the average are ellipses in the frames, at other places; 4 % between axes."""
    stretch = magnification(4.0, 25.0)
    middle = SIZE // 2
    there = middle + (PLACES - middle) @ stretch.numpy().T
    y, x = np.mgrid[:SIZE, :SIZE]
    image = np.zeros((SIZE, SIZE))
    inverse = np.linalg.inv(stretch.numpy())
    for px, py in there:
        d = np.stack([x - px, y - py], -1) @ inverse.T
        image -= np.exp(-(d**2).sum(-1) / (2.0 * 5.0**2))
    frames = torch.from_numpy(image.astype("f4"))[None]
    settings = ExtractionSettings(box=56, normalise=False)
    found = _all(extract_particles(frames, PLACES * PIXEL, None, OPTICS, settings, distortion=stretch)).images
    v, u = np.mgrid[-28:28, -28:28].astype(float)
    for one in found.double().numpy():
        assert np.abs(_centre(torch.from_numpy(one), 6.0)).max() < 0.02
        moments = [(one * a * b).sum() / one.sum() for a, b in ((u, u), (v, v), (u, v))]
    # of the last one, which has no neighbours in its box
    assert moments[0] == pytest.approx(25.0, rel=0.002)
    assert moments[1] == pytest.approx(25.0, rel=0.002)
    assert abs(moments[2]) < 0.05


def test_what_lies_beyond_the_border_is_no_signal() -> None:
    rng = np.random.default_rng(6)
    frames = torch.from_numpy((100.0 + rng.normal(size=(3, SIZE, SIZE))).astype("f4"))
    settings = ExtractionSettings(box=64)
    image = _all(extract_particles(frames, [[10.0 * PIXEL, 150.0 * PIXEL]], None, OPTICS, settings)).images[0]
    assert (image[:, : 32 - 10] == 0.0).all()
    inside = image[:, 32 - 10 :].numpy()
    ring = (np.hypot(*np.mgrid[-32:32, -32:32]) > 24.0)[:, 32 - 10 :]
    assert inside[ring].std() == pytest.approx(1.0, abs=1e-3)


def test_particles_that_cannot_be_cut_are_counted() -> None:
    extent = (300.0, 200.0)
    xy = [[100.0, 100.0], [np.nan, 50.0], [50.0, np.inf], [301.0, 100.0], [20.0, 100.0], [150.0, -5.0]]
    keep, skipped = sort_out(xy, extent, ExtractionSettings(box=64), 1.0)
    assert keep.tolist() == [True, False, False, False, True, False]
    assert skipped == {"with coordinates that are not numbers": 2, "outside the micrograph": 2}
    keep, skipped = sort_out(xy, extent, ExtractionSettings(box=64, border="skip"), 1.0)
    assert keep.tolist() == [True] + [False] * 5
    assert skipped["whose box reaches over the border"] == 1
    keep, skipped = sort_out(xy, extent, ExtractionSettings(box=256), 1.0)
    assert not keep.any()
    assert skipped["of which the box is larger than the micrograph"] == 4
    assert sum(skipped.values()) == 6
    assert sort_out(np.zeros((0, 2)), extent, ExtractionSettings(), 1.0)[1] == {}


def test_a_window_without_contrast_is_left_out() -> None:
    frames = torch.full((2, SIZE, SIZE), 3.0)
    frames[:, :, 150:] += torch.randn(2, SIZE, 150, generator=torch.Generator().manual_seed(0))
    places = [[60.0 * PIXEL, 150.0 * PIXEL], [230.0 * PIXEL, 150.0 * PIXEL]]
    found = _all(extract_particles(frames, places, None, OPTICS, ExtractionSettings(box=32)))
    assert found.rows.tolist() == [1]


def test_wrong_requests_are_refused() -> None:
    movie = _movie()
    with pytest.raises(ItemError, match="ask for larger"):
        next(extract_particles(movie, PLACES, None, OPTICS, ExtractionSettings(pixel_size=0.9)))
    with pytest.raises(ItemError, match="not numbers"):
        next(extract_particles(movie, [[np.nan, 1.0]], None, OPTICS))
    with pytest.raises(ItemError, match="5 frames, the movie has 3"):
        next(extract_particles(movie[:3], PLACES, _track, OPTICS))
    with pytest.raises(ValueError, match="even number"):
        ExtractionSettings(box=65)


def test_no_particles_are_no_particles() -> None:
    assert list(extract_particles(_movie(), np.zeros((0, 2)), None, OPTICS)) == []


def test_the_reference_movie(reference_data: Path) -> None:
    """Projections of the known structure at the known orientations lie in the middle of what is cut at the
    known places along the known tracks: the sum of all cross-correlations peaks within 0.15 px of it."""
    folder = reference_data / "reference"
    truth = json.loads((folder / "movie_flat.json").read_text())
    o = truth["optics"]
    optics = Optics(o["pixel"], o["kv"], o["cs"], o["amplitude"], truth["dose_per_frame"])
    frames = load_frames(folder / "movie_flat.tif", gain=mrc.read(folder / "movie_flat_gain.mrc")[0])
    places, tracks = np.array(truth["track_xy"]), np.array(truth["tracks"])
    gx, gy = np.unique(places[:, 0]), np.unique(places[:, 1])

    def track(xy: NDArray[np.float64]) -> NDArray[np.float64]:
        grid = tracks.reshape(len(tracks), len(gy), len(gx), 2)
        if not np.allclose(places.reshape(len(gy), len(gx), 2)[0, :, 0], gx):
            grid = grid.transpose(0, 2, 1, 3)
        splines = [[RectBivariateSpline(gy, gx, g[..., a]) for a in (0, 1)] for g in grid]
        return np.array([[s(xy[:, 1], xy[:, 0], grid=False) for s in pair] for pair in splines]).swapaxes(
            1, 2
        )

    xy, eulers = np.array(truth["particles_xy"])[:40], np.array(truth["eulers"])[:40]
    box, pixel = 100, 1.9
    settings = ExtractionSettings(box=box, pixel_size=pixel, diameter=130.0)
    images = _all(extract_particles(frames, xy, track, optics, settings)).images
    molecule = np.load(folder / "movie_flat_mol.npy")
    ky, kx = fourier.frequencies((box, box), pixel)
    slope = np.array(truth["plane"])
    height = (xy - 0.5 * np.array(truth["shape"][::-1]) * o["pixel"]) @ slope
    total = torch.zeros(box, box)
    for image, euler, z in zip(images, eulers, height, strict=True):
        turn = euler_matrix(*torch.tensor(euler)).numpy()
        at = molecule[:, :3] @ turn.T
        phase = [np.exp(-2j * np.pi * np.outer(at[:, i], k.numpy().ravel())) for i, k in ((1, ky), (0, kx))]
        projected = torch.from_numpy(np.einsum("p,py,px->yx", molecule[:, 3], *phase)).to(torch.complex64)
        defocus = astigmatic_defocus(
            truth["defocus"] + z + 0.5 * truth["astig"],
            truth["defocus"] + z - 0.5 * truth["astig"],
            truth["astig_angle"],
            torch.atan2(ky, kx.expand(box, -1)),
        )
        expected = projected * ctf(ky**2 + kx**2, defocus, optics)
        expected[0, 0] = 0.0
        expected /= expected.abs().square().sum().sqrt()
        total += fourier.irfft2(fourier.rfft2(image) * expected.conj(), (box, box))
    # the projections' centres are at index 0: no shift is the middle pixel
    peak = np.unravel_index(int(total.argmax()), total.shape)
    assert peak == (box // 2, box // 2)
    y, x = peak
    value = total[y - 1 : y + 2, x - 1 : x + 2].double().numpy()
    for line in (value[1], value[:, 1]):
        offset = 0.5 * (line[0] - line[2]) / (line[0] - 2 * line[1] + line[2])
        assert abs(offset) < 0.15
    assert value[1, 1] > 12.0 * total.std()
