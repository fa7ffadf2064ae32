"""Each operation against NumPy and SciPy, written here from the formulas; order, guards, outliers."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import scipy.ndimage
import scipy.optimize
import torch
from numpy.typing import NDArray

from weft.errors import ItemError
from weft.micrographs import bad_pixels, filters, total_variation
from weft.micrographs.preprocessing import OPERATIONS, PreprocessSettings, preprocess

Image = NDArray[np.float64]
SHAPES = [(96, 96), (97, 101), (90, 113)]


# ------------------------------------------------------------------ references


def ref_crop(x: Image, pixels: int = 10) -> Image:
    return x[pixels : x.shape[0] - pixels, pixels : x.shape[1] - pixels]


def ref_log(x: Image, a: float = 4.431, b: float = 0.402, c: float = 336.6) -> Image:
    return a - b * np.log(x + c)


def ref_fill(x: Image, bad: NDArray[np.bool_]) -> Image:
    """Layer by layer: the median of the good pixels of the 5×5 around."""
    out = np.where(bad, np.nan, x)
    while np.isnan(out).any():
        padded = np.pad(out, 2, constant_values=np.nan)
        windows = np.lib.stride_tricks.sliding_window_view(padded, (5, 5)).reshape(*x.shape, 25)
        todo = np.isnan(out) & ~np.isnan(windows).all(-1)
        out[todo] = np.nanmedian(windows[todo], axis=-1)
    return out


def ref_outliers(x: Image, multiple: float) -> NDArray[np.bool_]:
    """Away from the median by so many of the standard deviation that the MAD speaks for, until stable."""
    bad = ~np.isfinite(x)
    while True:
        good = np.sort(x[~bad])
        median = good[(len(good) - 1) // 2]
        mad = np.sort(abs(good - median))[(len(good) - 1) // 2]
        found = ~(abs(x - median) <= multiple * 1.482602218505602 * mad)
        if found.sum() - bad.sum() <= 1e-3 * x.size:
            return found
        bad = found


def ref_bad_pixels(x: Image, multiple: float = 5.0) -> Image:
    return ref_fill(x, ref_outliers(x, multiple))


def ref_invert(x: Image) -> Image:
    return -x


def ref_downsample(x: Image, factor: float = 2.0) -> Image:
    """Keep the coefficients that the smaller grid holds; its Nyquist frequency is the mean of both signs."""
    spectrum = np.fft.fft2(x)
    for axis in (0, 1):
        n, m = x.shape[axis], int(x.shape[axis] / factor)
        frequencies = np.rint(np.fft.fftfreq(m) * m).astype(int)
        kept = np.take(spectrum, frequencies % n, axis=axis)
        if m % 2 == 0:
            other = np.take(spectrum, [m // 2], axis=axis)
            nyquist = np.take(kept, [m // 2], axis=axis)
            place = [slice(None)] * 2
            place[axis] = slice(m // 2, m // 2 + 1)
            kept[tuple(place)] = 0.5 * (nyquist + other)
        spectrum = kept * (m / n)
    return np.fft.ifft2(spectrum).real


def ref_gaussian(x: Image, sigma: float = 2.0) -> Image:
    return scipy.ndimage.gaussian_filter(x, sigma, mode="wrap", truncate=8.0)


def _radius(shape: tuple[int, int]) -> Image:
    return np.hypot(np.fft.fftfreq(shape[0])[:, None], np.fft.fftfreq(shape[1])[None, :])


def _filtered(x: Image, gain: Image) -> Image:
    return np.fft.ifft2(np.fft.fft2(x) * gain).real


def ref_highpass(x: Image, cut: float = 0.05, width: float = 0.02) -> Image:
    k = _radius(x.shape)
    edge = 0.5 * (1 + np.cos(np.pi * (cut - k) / width))
    return _filtered(x, np.where(k > cut, 1.0, np.where(k > cut - width, edge, 0.0)))


def ref_lowpass(x: Image, cut: float = 0.3, width: float = 0.05) -> Image:
    k = _radius(x.shape)
    edge = 0.5 * (1 + np.cos(np.pi * (k - cut) / width))
    return _filtered(x, np.where(k < cut, 1.0, np.where(k < cut + width, edge, 0.0)))


def ref_normalize(x: Image) -> Image:
    return (x - x.mean()) / x.std()


def _tv_problem(x: Image) -> tuple[Image, Image, float]:
    start = (x - x.min()) / (x.max() - x.min())
    transformed = 2.0 * np.sqrt(255.0 * start + 3.0 / 8.0 + 5.8**2)
    return start, transformed / transformed.max(), transformed.max()


def ref_denoise(x: Image, rounds: int = 2000) -> Image:
    """Plain primal-dual in double precision; its proximal map by bisection."""
    x0, y, s = _tv_problem(x)
    tau, sigma, mu = 0.5, 0.25, 0.03
    u, bar = x0.copy(), x0.copy()
    p = np.zeros((2, *x.shape))
    for _ in range(rounds):
        p += sigma * np.stack([np.roll(bar, -1, 1) - bar, np.roll(bar, -1, 0) - bar])
        p /= np.maximum(1.0, np.sqrt((p**2).sum(0)) / mu)
        z = u + tau * (p[0] - np.roll(p[0], 1, 1) + p[1] - np.roll(p[1], 1, 0))
        low, high = np.zeros_like(u), np.ones_like(u)
        for _ in range(26):
            middle = 0.5 * (low + high)
            root = np.sqrt(255.0 * middle + 3.0 / 8.0 + 5.8**2)
            slope = (middle - z) / tau + (2.0 / s * root - y) * 255.0 / (s * root)
            low, high = np.where(slope < 0, middle, low), np.where(slope < 0, high, middle)
        new = 0.5 * (low + high)
        bar, u = 2 * new - u, new
    return u * (x.max() - x.min()) + x.min()


#: operation → its reference, and the setting that asks for the same
REFERENCES: dict[str, tuple[Any, dict[str, Any]]] = {
    "crop": (ref_crop, {"crop": 10}),
    "log": (ref_log, {"log": True}),
    "bad_pixels": (ref_bad_pixels, {"bad_pixels": 5.0}),
    "invert": (ref_invert, {"invert": True}),
    "downsample": (ref_downsample, {"downsample": 2.0}),
    "denoise": (ref_denoise, {"denoise": 50}),
    "gaussian": (ref_gaussian, {"gaussian": 2.0}),
    "highpass": (ref_highpass, {"highpass": 0.05, "highpass_width": 0.02}),
    "lowpass": (ref_lowpass, {"lowpass": 0.3, "lowpass_width": 0.05}),
    "normalize": (ref_normalize, {"normalize": True}),
}


# ------------------------------------------------------------------ images


def noise(shape: tuple[int, int], seed: int = 0) -> NDArray[np.float32]:
    """Counts with something to see in them, and a few outliers."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[0], : shape[1]]
    discs = sum(np.hypot(y - cy, x - cx) < 9 for cy, cx in rng.uniform(10, min(shape) - 10, (5, 2)))
    image = rng.poisson(60.0 - 8.0 * np.asarray(discs, dtype=float)).astype(np.float32)
    image += rng.normal(0, 0.3, shape).astype(np.float32)
    image[rng.integers(0, shape[0], 6), rng.integers(0, shape[1], 6)] = 700.0
    return image


@pytest.fixture(scope="module", params=[*SHAPES, "real", "real odd"])
def image(request: pytest.FixtureRequest) -> NDArray[np.float32]:
    if not isinstance(request.param, str):
        return noise(request.param)
    folder: Path = request.getfixturevalue("reference_data") / "real" / "jianlin-cheng__AutoCryoPicker"
    path = sorted(folder.rglob("*.png"))[0]
    whole = imagecodecs.png_decode(path.read_bytes()).astype(np.float32)
    return whole[300:500, 200:420] if request.param == "real" else whole[300:501, 200:423]


def ours(x: Any, given: dict[str, Any]) -> Image:
    return preprocess(x, PreprocessSettings(**given)).image.numpy().astype(np.float64)


def relative(found: Image, wanted: Image) -> float:
    assert found.shape == wanted.shape
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


@pytest.mark.parametrize("operation", [name for name in OPERATIONS if name != "denoise"])
def test_each_operation_against_its_formula(image: NDArray[np.float32], operation: str) -> None:
    reference, given = REFERENCES[operation]
    assert relative(ours(image, given), reference(image.astype(np.float64))) < 1e-5


def test_denoising_finds_the_minimum(image: NDArray[np.float32]) -> None:
    # outliers would stretch the range: they are removed before
    part = np.minimum(
        image[:80, :81], np.median(image) + 5.0 * np.std(np.minimum(image, 2 * np.median(image)))
    )
    wanted = ref_denoise(part.astype(np.float64))
    found = ours(part, {"denoise": 50})
    assert np.linalg.norm(found - wanted) < 1e-3 * np.linalg.norm(wanted)
    # whatever finds descents in general finds none that matters from here
    x0, y, s = _tv_problem(part.astype(np.float64))
    start = (found - part.min()) / (float(part.max()) - float(part.min()))

    def cost(flat: Image) -> tuple[float, Image]:
        x = torch.tensor(flat.reshape(x0.shape), requires_grad=True)
        dx, dy = x.roll(-1, 1) - x, x.roll(-1, 0) - x
        misfit = 2.0 / s * torch.sqrt(255.0 * x + 3.0 / 8.0 + 5.8**2) - torch.from_numpy(y)
        total = 0.5 * (misfit**2).sum() + 0.03 * torch.sqrt(dx**2 + dy**2 + 1e-8).sum()
        (slope,) = torch.autograd.grad(total, x)
        return float(total.detach()), slope.numpy().reshape(-1)

    best = scipy.optimize.minimize(
        cost,
        start.reshape(-1),
        jac=True,
        method="L-BFGS-B",
        bounds=[(0, 1)] * start.size,
        options={"maxiter": 300},
    )
    assert best.fun > cost(start.reshape(-1))[0] * (1 - 3e-3)
    assert found.mean() == pytest.approx(float(part.mean()), rel=0.02), "the grey scale is kept"


def test_xmipps_denoising_stops_early_and_loses_the_grey_scale() -> None:
    image = torch.from_numpy(noise((96, 96))).clamp(max=90)
    stopped = total_variation.denoise(image, 50, xmipp_compatible=True)
    assert 0.0 <= float(stopped.min()) <= float(stopped.max()) <= 1.0
    _, y, s = _tv_problem(image.double().numpy())
    low, high = float(image.min()), float(image.max())
    full = (total_variation.denoise(image, 100).double() - low) / (high - low)

    def energy(x: torch.Tensor) -> float:
        return total_variation.energy(x.double(), torch.from_numpy(y), 2.0 / s)

    beginning = energy((image.double() - low) / (high - low))
    assert energy(full) < energy(stopped) < beginning
    further = total_variation.denoise(image, 400, xmipp_compatible=True)
    assert energy(further) < energy(stopped), "more rounds, another image"


def test_kernels_do_what_plain_torch_does() -> None:
    rng = np.random.default_rng(3)
    x, y = torch.rand(33, 37), torch.rand(33, 37) * 0.5 + 0.4
    px, py = (torch.rand(33, 37) * 0.04 - 0.02 for _ in range(2))
    compiled = [t.clone() for t in (x, x, px, py)]
    plain = [t.clone() for t in compiled]
    for _ in range(3):
        total_variation._image_step(*(t.numpy() for t in compiled), y.numpy(), 0.0588, 1.9)
        total_variation._field_step(*(t.numpy() for t in compiled[1:]))
        total_variation.image_step_plain(*plain, y, 0.0588, 1.9)
        total_variation.field_step_plain(*plain[1:])
    for a, b in zip(compiled, plain, strict=True):
        assert torch.allclose(a, b, atol=2e-6)

    image = torch.from_numpy(noise((61, 67)))
    bad = torch.from_numpy(np.sort(rng.choice(image.numel(), 1500, replace=False)))
    filled = image.clone()
    bad_pixels.fill(filled, bad)
    good = torch.ones_like(image, dtype=torch.bool)
    good.view(-1)[bad] = False
    bad_pixels.fill_plain(image, good, bad)
    assert torch.equal(filled, image)

    wanted = filters.Filter(1.3, (0.06, 0.03), (0.31, 0.07))
    for shape in SHAPES:
        spectrum = torch.fft.rfft2(torch.rand(shape))
        expected = spectrum * filters.filter_gain(wanted, shape) * 0.25
        filters.apply_filter(spectrum, wanted, shape, 0.25)
        assert torch.allclose(spectrum.to(expected.dtype), expected, rtol=1e-6, atol=1e-7)


# ------------------------------------------------------------------ order


def chained(x: Image, names: tuple[str, ...]) -> Image:
    for name in names:
        x = REFERENCES[name][0](x)
    return x


def subsets() -> list[tuple[str, ...]]:
    """All pairs, and triples and larger sets picked by chance; denoising has its own."""
    names = [name for name in OPERATIONS if name != "denoise"]
    rng = np.random.default_rng(1)
    out = list(itertools.combinations(names, 2))
    for size in (3, 4, 5, 6, 7, 8):
        for _ in range(5):
            chosen = set(rng.choice(len(names), size, replace=False))
            out.append(tuple(name for i, name in enumerate(names) if i in chosen))
    return [*out, tuple(names)]


@pytest.mark.parametrize("names", subsets(), ids="-".join)
def test_any_subset_equals_the_chained_references(names: tuple[str, ...]) -> None:
    image = noise((97, 101))
    given = {key: value for name in names for key, value in REFERENCES[name][1].items()}
    assert PreprocessSettings(**given).operations() == names
    assert relative(ours(image, given), chained(image.astype(np.float64), names)) < 1e-5


def test_denoising_stands_between_downsampling_and_filters() -> None:
    image = noise((120, 121))
    names = OPERATIONS
    given = {key: value for name in names for key, value in REFERENCES[name][1].items()}
    wanted = chained(image.astype(np.float64), names)
    found = ours(image, given)
    # what denoising is off by, the normalisation after a high-pass enlarges
    assert np.linalg.norm(found - wanted) < 1e-2 * np.linalg.norm(wanted)


@pytest.mark.parametrize(
    ("first", "second"),
    [("log", "invert"), ("bad_pixels", "gaussian"), ("downsample", "gaussian"), ("invert", "log")],
)
def test_a_permuted_chain_differs(first: str, second: str) -> None:
    image = noise((96, 96))
    given = REFERENCES[first][1] | REFERENCES[second][1]
    right = tuple(sorted((first, second), key=OPERATIONS.index))
    with np.errstate(invalid="ignore"):
        swapped = chained(image.astype(np.float64), right[::-1])
    assert not relative(ours(image, given), swapped) < 1e-3


# ------------------------------------------------------------------ outliers


def planted(kind: str) -> NDArray[np.bool_]:
    rng = np.random.default_rng(8)
    bad = np.zeros((200, 211), dtype=bool)
    if kind == "single":
        bad[rng.integers(0, 200, 40), rng.integers(0, 211, 40)] = True
    elif kind == "clusters":
        for y, x in rng.integers(10, 180, (12, 2)):
            bad[y : y + 9, x : x + 7] = True
    elif kind == "edges":
        bad[0], bad[:, -1], bad[-3:, 40:90], bad[100:130, :6] = True, True, True, True
    else:
        bad[rng.random(bad.shape) < 0.3] = True
    return bad


@pytest.mark.parametrize("kind", ["single", "clusters", "edges", "30 %"])
@pytest.mark.parametrize("sign", ["above", "below", "both", "not numbers"])
def test_no_outlier_is_left_and_nothing_else_is_touched(kind: str, sign: str) -> None:
    rng = np.random.default_rng(4)
    clean = rng.normal(50.0, 3.0, (200, 211)).clip(38, 62).astype(np.float32)
    bad = planted(kind)
    image = clean.copy()
    size = rng.uniform(20, 400, bad.sum()) * 3.0
    signs = {"above": 1.0, "below": -1.0, "both": rng.choice([-1.0, 1.0], bad.sum())}
    image[bad] = np.nan if sign == "not numbers" else 50.0 + signs[sign] * size
    done = preprocess(image, PreprocessSettings(bad_pixels=5.0))
    found = done.image.numpy()
    assert np.array_equal(found[~bad], clean[~bad])
    assert np.abs(found[bad] - 50.0).max() < 12.0, "medians of good pixels"
    assert done.facts["bad_pixels"] == pytest.approx(bad.mean())
    assert relative(found, ref_bad_pixels(image.astype(np.float64))) < 1e-5


def test_xmipps_threshold_misses_many_outliers_and_fills_in_raster_order() -> None:
    image = np.full((40, 40), 1.0, np.float32) + np.random.default_rng(0).normal(0, 0.1, (40, 40)).astype(
        "f4"
    )
    many = image.copy()
    many[::2, ::2] = 100.0
    same = preprocess(many, PreprocessSettings(bad_pixels=5.0, xmipp_compatible=True))
    assert np.array_equal(same.image.numpy(), many), "a quarter of the image, none found"

    few = image.copy()
    few[5, 5:8] = 1e4
    wanted = few.copy()
    good = np.ones_like(few, dtype=bool)
    good[5, 5:8] = False
    for x in (5, 6, 7):
        window = np.s_[3:8, x - 2 : x + 3]
        wanted[5, x] = np.median(wanted[window][good[window]])
        good[5, x] = True
    done = preprocess(few, PreprocessSettings(bad_pixels=5.0, xmipp_compatible=True))
    assert np.allclose(done.image.numpy(), wanted, rtol=1e-6)


def test_no_result_depends_on_the_number_of_threads() -> None:
    image = noise((700, 701))
    given = {key: value for name in OPERATIONS for key, value in REFERENCES[name][1].items()}
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(preprocess(image, PreprocessSettings(**given)))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0].image, results[1].image)
    assert results[0].facts == results[1].facts


def test_medians_are_exact() -> None:
    rng = np.random.default_rng(2)
    for n in (1, 2, 5, 8192, 8193, 40001):
        for values in (rng.normal(0, 3, n), rng.normal(500, 1, n), rng.poisson(3.0, n) - 3.0, -np.ones(n)):
            x = values.astype(np.float32)
            ordered = np.sort(x)
            assert bad_pixels._middle(torch.from_numpy(x)) == ordered[(n - 1) // 2]
            away = np.sort(np.abs(x - np.float32(0.7)))
            assert bad_pixels._middle(torch.from_numpy(x), 0.7) == away[(n - 1) // 2]


def test_counts_of_few_electrons_keep_their_electrons() -> None:
    rare = (np.random.default_rng(0).random((128, 128)) < 0.05).astype(np.float32)
    done = preprocess(rare, PreprocessSettings(bad_pixels=5.0))
    assert np.array_equal(done.image.numpy(), rare)


# ------------------------------------------------------------------ guards, types, scale


def test_guards() -> None:
    image = noise((64, 64))
    image[3, 4], image[10:13, 20] = -400.0, -336.6
    done = preprocess(image, PreprocessSettings(log=True))
    assert done.facts["unloggable"] == pytest.approx(4 / 64**2)
    bad = image <= -336.6
    wanted = ref_fill(np.where(bad, np.nan, ref_log(np.where(bad, 1.0, image.astype(np.float64)))), bad)
    assert relative(done.image.numpy(), wanted) < 1e-5
    cases: list[tuple[Any, dict[str, Any], str]] = [
        (image - 2000.0, {"log": True}, "set log_c above"),
        (
            np.full((8, 8), np.nan, np.float32),
            {"bad_pixels": 5.0},
            "no pixel of the image is a finite number",
        ),
        (np.where(image > 60, np.inf, image), {"normalize": True}, "switch bad_pixels on"),
        (np.ones((32, 32), np.float32), {"normalize": True}, "the same value"),
        (image, {"crop": 32}, "leaves nothing of 64×64"),
        (image, {"downsample": 40.0}, "leaves no image"),
        (image[None], {"invert": True}, "two dimensions"),
    ]
    for bad_image, given, words in cases:
        with pytest.raises(ItemError, match=words):
            preprocess(bad_image, PreprocessSettings(**given))
    flat = preprocess(np.ones((32, 32), np.float32), PreprocessSettings(denoise=5, bad_pixels=5.0))
    assert np.array_equal(flat.image.numpy(), np.ones((32, 32)))


@pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "f2", "f8", ">f4"])
def test_types_and_the_input_is_left_alone(dtype: str) -> None:
    values = np.clip(noise((50, 52)), 0, 120).astype(dtype)
    if dtype.startswith(">"):
        values = values.astype("f4")
    values.flags.writeable = False
    before = values.copy()
    done = preprocess(values, PreprocessSettings(crop=3, bad_pixels=5.0, gaussian=1.0, normalize=True))
    assert np.array_equal(values, before)
    assert done.image.dtype == torch.float32
    assert done.image.shape == (44, 46)
    assert abs(float(done.image.mean())) < 1e-6


def test_the_pixel_size_is_the_true_one() -> None:
    image = noise((101, 90))
    done = preprocess(image, PreprocessSettings(downsample=2.5), pixel_size=1.5)
    assert tuple(done.image.shape) == (40, 36)
    assert done.factor == (101 / 40, 2.5)
    assert done.pixel_size == pytest.approx((1.5 * 101 / 40, 3.75), rel=1e-12)
    said = preprocess(image, PreprocessSettings(downsample=2.5, xmipp_compatible=True), pixel_size=1.5)
    assert said.pixel_size == (3.75, 3.75)
    # 1640 / 1.025 is 1600 but for rounding
    assert preprocess(noise((1640, 1640)), PreprocessSettings(downsample=1.025)).image.shape == (1600, 1600)
    # a wave keeps its place and its height
    y, x = np.mgrid[:120, :120]
    wave = np.cos(2 * np.pi * (5 * x + 3 * y) / 120)
    found = ours(wave, {"downsample": 2.5})
    y, x = np.mgrid[:48, :48] * 2.5
    assert np.abs(found - np.cos(2 * np.pi * (5 * x + 3 * y) / 120)).max() < 1e-5


def test_cutoffs_in_angstrom_are_those_of_the_downsampled_image() -> None:
    image = noise((100, 100))
    in_angstrom = preprocess(
        image, PreprocessSettings(downsample=2.0, highpass_angstrom=60.0, lowpass_angstrom=10.0), 1.5
    )
    in_pixels = preprocess(image, PreprocessSettings(downsample=2.0, highpass=3 / 60, lowpass=3 / 10))
    assert torch.allclose(in_angstrom.image, in_pixels.image, atol=1e-4)


def test_xmipps_gaussian_is_narrower() -> None:
    image = noise((64, 64))
    ours_ = ours(image, {"gaussian": 2.0, "xmipp_compatible": True})
    assert relative(ours_, ref_gaussian(image.astype(np.float64), 2.0 / np.sqrt(2.0))) < 1e-5


def test_settings_say_what_true_stands_for() -> None:
    usual = PreprocessSettings.model_validate(dict.fromkeys(OPERATIONS, True))
    assert usual.operations() == OPERATIONS
    assert (usual.crop, usual.bad_pixels, usual.downsample, usual.denoise) == (10, 5.0, 2.0, 50)
    assert (usual.gaussian, usual.highpass, usual.lowpass) == (2.0, 0.002, 0.4)
    assert (usual.log_a, usual.log_b, usual.log_c) == (4.431, 0.402, 336.6)
    assert PreprocessSettings.model_validate(dict.fromkeys(OPERATIONS, False)).operations() == ()
    for wrong in (
        {"downsample": 1.0},
        {"lowpass": 0.6},
        {"crop": -1},
        {"highpass": 0.1, "highpass_angstrom": 9},
    ):
        with pytest.raises(ValueError, match=r"downsample|lowpass|crop|same cut-off"):
            PreprocessSettings(**wrong)
