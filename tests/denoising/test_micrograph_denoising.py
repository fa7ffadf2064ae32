"""Denoising of micrographs whose truth is known: what is learnt, what is never lost, what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from weft.denoising.cubes import SQUARES
from weft.denoising.micrographs import (
    ImageCTF,
    MicrographTrainingSettings,
    beginning,
    deconvolution_of,
    default_model,
    denoise_micrograph,
    prepared,
    spread_evenly,
    train_on_micrographs,
)
from weft.denoising.mixing import combined, ring_weights
from weft.denoising.network import Denoiser
from weft.denoising.pretraining import SimulatedHalves, simulated_halves
from weft.denoising.training import DenoisingSettings, TrainingPair, train
from weft.errors import ItemError, SettingsError
from weft.micrographs.deconvolution import DeconvolutionSettings, deconvolve
from weft.physics import fourier
from weft.physics.optics import Optics

SMALL: dict[str, Any] = {"tile": 32, "channels": 8, "levels": 2, "steps": 60, "learning_rate": 0.01}
GRID = 5.0


def ring_correlation(a: torch.Tensor, b: torch.Tensor, rings: int = 20) -> torch.Tensor:
    """(rings,) up to the Nyquist frequency, without the mean."""
    shape = (a.shape[0], a.shape[1])
    ky, kx = fourier.frequencies(shape)
    ring = (torch.sqrt(ky**2 + kx**2) * 2 * rings).long().clamp(max=rings).flatten()
    fa, fb = (torch.fft.rfft2(x.double() - x.double().mean()).flatten() for x in (a, b))
    sums = [
        torch.zeros(rings + 1, dtype=torch.float64).index_add_(0, ring, v)
        for v in ((fa * fb.conj()).real, fa.abs() ** 2, fb.abs() ** 2)
    ]
    return (sums[0] / (sums[1] * sums[2]).sqrt())[:rings]


def error(found: torch.Tensor, true: torch.Tensor) -> float:
    return float((found - true).std())


@pytest.fixture(scope="module")
def simulated() -> SimulatedHalves:
    """A structure that the shipped model has not seen, in an ordinary micrograph."""
    return simulated_halves(
        7_000_001, 1600.0, defocus=1.2, dose=40.0, coverage=0.25, contaminant_signal=0.0, signal=0.6
    )


@pytest.fixture(scope="module")
def balls() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Discs, and twice the same with noise of its own."""
    rng = np.random.default_rng(2)
    y, x = np.mgrid[:192, :256]
    true = np.zeros((192, 256), np.float32)
    for _ in range(60):
        place = rng.uniform((0, 0), (192, 256))
        true -= (np.hypot(y - place[0], x - place[1]) < rng.uniform(4, 9)).astype(np.float32)
    made = [true, *(true + rng.normal(0.0, 1.5, true.shape).astype(np.float32) for _ in range(2))]
    return tuple(torch.from_numpy(image) for image in made)  # type: ignore[return-value]


@pytest.fixture(scope="module")
def model(balls: tuple[torch.Tensor, ...]) -> Denoiser:
    pair = TrainingPair(balls[1].numpy(), balls[2].numpy(), "balls")
    return train_on_micrographs([pair], GRID, MicrographTrainingSettings(**SMALL))


def test_noise_falls(model: Denoiser, balls: tuple[torch.Tensor, ...]) -> None:
    """To less than a third of that of the mean of both; 0.22 was measured."""
    true, a, b = balls
    mean = 0.5 * (a + b)
    both = denoise_micrograph((a, b), model, GRID)
    assert error(both, true) < error(mean, true) / 3.0
    assert float(both.mean()) == pytest.approx(float(mean.mean()), abs=1e-4)


@pytest.mark.parametrize("network", ["perfect", "blind", "blurred", "turned", "wrong sign"])
def test_no_network_makes_it_worse(balls: tuple[torch.Tensor, ...], network: str) -> None:
    """In every ring the correlation with the truth stays what the input's is, whatever the network makes.

    Weights are measured with noise, and an image of 192 pixels has few coefficients in a ring: 0.016 was the
    most that was lost. Nothing is where the network is good.
    """
    true, a, b = balls

    def made(image: torch.Tensor) -> torch.Tensor:
        if network == "perfect":
            return true
        if network == "blind":
            return torch.zeros_like(image)
        if network == "blurred":
            return torch.nn.functional.avg_pool2d(image[None], 9, 1, 4)[0]
        return image.flip(1) if network == "turned" else -image

    mean = 0.5 * (a + b)
    found = (made(a), made(b))
    out = combined((a, b), found)
    gain = ring_correlation(out, true) - ring_correlation(mean, true)
    assert float(gain.min()) > (0.0 if network == "perfect" else -0.03)
    # and noise goes: at least what a Wiener filter takes
    assert error(out, true) < 0.8 * error(mean, true)
    if network == "perfect":
        # 0.073 of 1.06: weights have noise, too, and what may be chance is not believed
        assert error(out, true) < 0.08


def test_weights_are_those_that_the_truth_gives() -> None:
    """Halves alone tell what least squares against the truth says, ring by ring.

    Waves of equal power, so that every ring is known: what is left is chance in the weights, and that the
    network is believed somewhat less than the halves believe it.
    """
    shape = (384, 512)
    rng = torch.Generator().manual_seed(3)
    true, *noise = (torch.randn(shape, generator=rng) for _ in range(5))
    a, b = true + noise[0], true + noise[1]
    found = (0.7 * true + 0.1 * a + 0.5 * noise[2], 0.7 * true + 0.1 * b + 0.5 * noise[3])
    weights = ring_weights((a, b), found)
    ky, kx = fourier.frequencies(shape)
    ring = (torch.sqrt(ky**2 + kx**2) * 96.0).long()  # rings of 4 coefficients of the shorter side
    fx, fd, fs = (fourier.rfft2(image) for image in (0.5 * (a + b), 0.5 * (found[0] + found[1]), true))
    assert weights.shape == (2, 48)
    for i in range(10, 48, 6):
        columns = torch.view_as_real(torch.stack([fx[ring == i], fd[ring == i]], -1)).transpose(1, 2)
        wanted = torch.view_as_real(fs[ring == i]).flatten()
        best = torch.linalg.lstsq(columns.reshape(-1, 2), wanted[:, None]).solution[:, 0]
        torch.testing.assert_close(weights[:, i], best, atol=0.1, rtol=0.0)
        assert weights[1, i] > 0.5


def test_a_network_that_adds_nothing_is_left_out() -> None:
    """One that repeats its input with noise of its own gets next to no weight in any ring."""
    rng = torch.Generator().manual_seed(4)
    true, *noise = (torch.randn((384, 512), generator=rng) for _ in range(5))
    a, b = true + noise[0], true + noise[1]
    of_input, of_network = ring_weights((a, b), (a + noise[2], b + noise[3]))
    # two standard deviations leave one ring in forty; neighbours share
    assert int((of_network > 0.0).sum()) <= 4
    assert float(of_network.max()) < 0.03
    # Wiener: 1 / (1 + 0.5)
    torch.testing.assert_close(of_input[4:], torch.full((44,), 2.0 / 3.0), atol=0.06, rtol=0.0)


def test_the_shipped_model(simulated: SimulatedHalves) -> None:
    """Something that it has not seen, deconvolved or not.

    No ring loses correlation with the truth but by chance (0.0019 was measured, whose standard error is
    0.0010; three are allowed), and on the whole it rises (0.003 and 0.010).
    """
    assert len(default_model().to_bytes()) < 2 << 20
    zero = int(20 * 2 * GRID * (1.0 / np.sqrt(0.0197 * 12000.0)))  # rings below the first zero, about
    for how in (None, DeconvolutionSettings()):
        true, a, b = (
            simulated.prepared(x, GRID, how) for x in (simulated.truth, simulated.even, simulated.odd)
        )
        mean = 0.5 * (a + b)
        before = ring_correlation(mean, true)[:zero]
        out = denoise_micrograph((a, b), default_model(), GRID)
        assert error(out, true) < 0.9 * error(mean, true)
        gain = ring_correlation(out, true)[:zero] - before
        assert float(gain.min()) > -0.003
        assert float(gain.mean()) > 0.002


def test_what_networks_see(simulated: SimulatedHalves) -> None:
    """The coarser grid first, then the deconvolution there; a coarse image stays as it is."""
    image, ctf = simulated.even, simulated.ctf
    settings = DeconvolutionSettings(strength=0.8)
    plain, pixel_size = prepared(image, 2.5, 5.0)
    assert plain.shape == (320, 320)
    assert pixel_size == pytest.approx(5.0)
    found, _ = prepared(image, 2.5, 5.0, ctf, settings)
    expected = deconvolve(plain, ctf.defocus, ctf.optics.at_pixel_size(5.0), settings, ctf.phase_shift)
    torch.testing.assert_close(found, expected)
    same, pixel_size = prepared(image, 2.5, 2.0)
    assert pixel_size == 2.5
    assert torch.equal(same, image)
    spoilt = image.clone()
    spoilt[3, 4] = torch.nan
    with pytest.raises(ItemError, match="micrograph holds values that are not finite"):
        prepared(spoilt, 2.5, 5.0)


def test_a_training_goes_on_where_it_was_stopped(balls: tuple[torch.Tensor, ...]) -> None:
    pairs = [TrainingPair(balls[1].numpy(), balls[2].numpy())]
    settings = MicrographTrainingSettings(tile=32, channels=4, levels=2, steps=24)
    saved: list[bytes] = []
    whole = train(pairs, GRID, settings, keep=saved.append)
    again = train(pairs, GRID, settings, resume=saved[3])
    assert again.losses == whole.losses
    assert all(torch.equal(t, again.state[name]) for name, t in whole.state.items())


def test_a_training_that_begins_with_a_trained_one(model: Denoiser, balls: tuple[torch.Tensor, ...]) -> None:
    pairs = [TrainingPair(balls[1].numpy(), balls[2].numpy())]
    settings = MicrographTrainingSettings(**(SMALL | {"steps": 6, "learning_rate": 1e-4}))
    further = train(pairs, GRID, settings, start=model)
    assert further.losses[0].held_out < model.losses[0].held_out
    assert beginning(MicrographTrainingSettings(), GRID) is default_model()
    assert beginning(MicrographTrainingSettings(levels=2), GRID) is None
    assert beginning(MicrographTrainingSettings(), 8.0) is None


def test_a_model_keeps_to_what_it_has_learnt(model: Denoiser, balls: tuple[torch.Tensor, ...]) -> None:
    assert model.deconvolution is None
    with pytest.raises(SettingsError, match="not deconvolved"):
        deconvolution_of(model, True)
    assert deconvolution_of(model, False) is None
    assert deconvolution_of(default_model(), True) == DeconvolutionSettings()
    assert deconvolution_of(default_model(), False) is None
    pair = TrainingPair(balls[1].numpy(), balls[2].numpy())
    settings = MicrographTrainingSettings(**(SMALL | {"steps": 12}))
    how = DeconvolutionSettings(strength=0.7, highpass=200.0)
    other = Denoiser.from_bytes(train_on_micrographs([pair], GRID, settings, how).to_bytes())
    assert deconvolution_of(other, True) == how
    with pytest.raises(SettingsError, match="deconvolved micrographs, which these would not be"):
        deconvolution_of(other, False)


def test_what_cannot_be_denoised(model: Denoiser, balls: tuple[torch.Tensor, ...]) -> None:
    a, b = balls[1:]
    with pytest.raises(ItemError, match="trained at 5 Å a pixel, the micrograph has 6"):
        denoise_micrograph((a, b), model, 6.0)
    with pytest.raises(ItemError, match="micrograph is constant"):
        denoise_micrograph((torch.ones(64, 64), torch.ones(64, 64)), model, GRID)
    with pytest.raises(ItemError, match="halves have the shapes"):
        denoise_micrograph((a, b[1:]), model, GRID)
    with pytest.raises(ItemError, match=r"M_1 has only 20×20 pixels"):
        train([TrainingPair(np.eye(20), np.eye(20), "M_1")], GRID, MicrographTrainingSettings(**SMALL))
    volume = np.random.default_rng(0).normal(size=(32, 32, 64)).astype(np.float32)
    pair = TrainingPair(volume, volume)
    of_volumes = train([pair], GRID, DenoisingSettings(cube=16, channels=4, levels=1, steps=8))
    with pytest.raises(ItemError, match="trained on tomograms"):
        denoise_micrograph((a, b), of_volumes, GRID)


def test_turns_of_squares() -> None:
    square = torch.arange(9.0).reshape(3, 3)
    assert len({tuple(turn.of_cubes(square).flatten().tolist()) for turn in SQUARES}) == 8


def test_spread_evenly() -> None:
    names = [f"m{i:03d}" for i in range(1000)]
    chosen = spread_evenly(names, 10)
    assert chosen == [f"m{i:03d}" for i in range(50, 1000, 100)]
    assert spread_evenly(names[:7], 10) == names[:7]


def test_simulations_are_what_they_say() -> None:
    """The same seed, the same micrograph; halves differ in their noise alone."""
    one, again = (simulated_halves(5, 640.0) for _ in range(2))
    other = simulated_halves(6, 640.0)
    assert torch.equal(one.even, again.even)
    assert not torch.equal(one.truth, other.truth)
    first, second = one.even - one.truth, one.odd - one.truth
    assert abs(float(torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1])) < 0.02
    assert isinstance(one.ctf, ImageCTF)
    assert one.ctf.optics == Optics(2.5, one.ctf.optics.voltage, one.ctf.optics.cs, one.ctf.optics.amplitude)
