"""Back-projection of tilt images, against a molecule whose images and map are exact sums."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from particle_truth import exact_map, molecule, simulate

from weft.errors import ItemError
from weft.formats.tilt_particles import TiltParticles
from weft.particles.averaging import Average, average
from weft.particles.backprojection import (
    Backprojection,
    BackprojectionSettings,
    batches,
    brightness,
    half_sets,
    low_passed,
)
from weft.particles.fsc import shell_correlation, soft_sphere
from weft.particles.image_series import ImageSeries
from weft.physics.fourier import rfft3, shells_3d

SIZE, PIXEL, PARTICLES, TILTS = 48, 5.0, 60, 9
PLAIN = BackprojectionSettings(dose_weighting="none", mask_diameter=150.0, flatten=False)


def as_particles(series: ImageSeries) -> tuple[TiltParticles, torch.Tensor]:
    """The same as a flat list; images of weight 0 are left out, other weights are cosines of tilts."""
    seen = series.weight > 0
    count = seen.sum(1).numpy()

    def flat(values: torch.Tensor) -> np.ndarray:
        return values[seen].double().numpy()

    images = int(seen.sum())
    constant = np.ones(images)
    particles = TiltParticles(
        path=Path("made.star"),
        flavour="warp1",
        particle=[f"p{i}" for i in range(len(series))],
        tomogram=[""] * len(series),
        place=np.full((len(series), 3), np.nan),
        start=np.concatenate([[0], np.cumsum(count)]),
        files=[Path("made.mrcs")],
        file=np.zeros(images, np.int64),
        section=np.arange(images),
        rotation=flat(series.rotation),
        shift=flat(series.shift),
        defocus_u=flat(series.defocus + 0.5 * series.astigmatism),
        defocus_v=flat(series.defocus - 0.5 * series.astigmatism),
        angle=flat(series.angle),
        phase_shift=flat(series.phase_shift),
        has_ctf=True,
        dose=flat(series.dose),
        cos_tilt=flat(series.weight),
        voltage=constant * series.voltage,
        cs=constant * series.cs,
        amplitude=constant * series.amplitude,
        pixel_size=series.pixel_size,
        box=series.images.shape[-1],
        premultiplied=series.premultiplied,
        half=series.half.numpy(),
        columns={},
        blocks={},
        row=np.arange(images),
    )
    return particles, series.images[seen]


def project(
    particles: TiltParticles,
    images: torch.Tensor,
    settings: BackprojectionSettings = PLAIN,
    invert: bool | None = False,
) -> Average:
    work = Backprojection(particles, half_sets(particles), settings)
    for which in batches(particles):
        at = np.concatenate([np.arange(particles.start[i], particles.start[i + 1]) for i in which])
        work.add(which, images[at])
    return work.finish(invert=invert)[0]


@pytest.fixture(scope="module")
def truth() -> torch.Tensor:
    return exact_map(molecule(), SIZE, PIXEL)


@pytest.fixture(scope="module")
def ragged() -> ImageSeries:
    """Noisy, damaged by the dose; every particle lacks some tilts; with cosines of the tilt as weights."""
    series, _ = simulate(molecule(), PARTICLES, tilts=TILTS, noise=1.0, damage=True)
    weight = torch.cos(torch.deg2rad(torch.linspace(-50.0, 50.0, TILTS))).expand(PARTICLES, TILTS).clone()
    weight[torch.rand(PARTICLES, TILTS, generator=torch.Generator().manual_seed(1)) < 0.3] = 0.0
    return replace(series, weight=weight)


def test_particles_with_different_numbers_of_tilts_as_in_the_average(ragged: ImageSeries) -> None:
    """The flat list gives the map that the rectangular series with weights of 0 gives; single precision."""
    particles, images = as_particles(ragged)
    assert len(set(particles.count.tolist())) > 3
    settings = PLAIN.model_copy(update={"dose_weighting": "warp"})
    found, expected = project(particles, images, settings), average(ragged, settings)
    assert found.particles == expected.particles
    assert float((found.halves - expected.halves).abs().max()) < 1e-4 * float(expected.halves.abs().max())
    assert float((found.map - expected.map).abs().max()) < 1e-4 * float(expected.map.abs().max())


def test_the_molecule_comes_out(truth: torch.Tensor) -> None:
    """No noise: what is left is the interpolation, and places between the sections."""
    particles, images = as_particles(simulate(molecule(), PARTICLES, tilts=TILTS)[0])
    found = project(particles, images)
    mask = soft_sphere(SIZE, 30.0, 5.0)
    assert float(shell_correlation(found.map * mask, truth * mask)[1:20].min()) > 0.99
    scale = float((found.map * mask * truth).sum() / (truth * mask * truth).sum())
    assert scale == pytest.approx(1.0, abs=0.05)


def test_premultiplied_images_are_not_multiplied_again(truth: torch.Tensor) -> None:
    particles, images = as_particles(simulate(molecule(), PARTICLES, tilts=TILTS, premultiplied=True)[0])
    assert particles.premultiplied
    mask = soft_sphere(SIZE, 30.0, 5.0)
    right = project(particles, images).sums.map()
    wrong = project(replace(particles, premultiplied=False), images).sums.map()

    def power(volume: torch.Tensor) -> torch.Tensor:
        """Of shells, over the truth's."""
        shells = shells_3d(SIZE).reshape(-1)
        sums = [
            torch.bincount(shells, rfft3(v * mask).abs().square().reshape(-1), 50)[2:18]
            for v in (volume, truth)
        ]
        return sums[0] / sums[1]

    assert float((power(right) - 1.0).abs().max()) < 0.15
    # the CTF's zeros would be there twice, and its small values at low frequencies
    assert float((power(wrong) - 1.0).abs().max()) > 0.4


def test_the_dose_mask_holds_for_premultiplied_images() -> None:
    """Images beyond the optimal exposure of all frequencies are as if they were not there."""
    particles, images = as_particles(simulate(molecule(), 10, tilts=4, premultiplied=True)[0])
    late = np.arange(particles.images) % 4 == 3
    spoilt = replace(particles, dose=np.where(late, 1e6, 0.0))
    worse = images + 100.0 * torch.from_numpy(late)[:, None, None] * torch.randn(images.shape)
    settings = PLAIN.model_copy(update={"dose_mask": True})
    torch.testing.assert_close(
        project(spoilt, worse, settings).halves, project(spoilt, images, settings).halves
    )


def test_dark_density_is_found_out(truth: torch.Tensor) -> None:
    particles, images = as_particles(simulate(molecule(), 30, tilts=TILTS, noise=1.0)[0])
    work = Backprojection(particles, half_sets(particles), PLAIN)
    work.add(np.arange(len(particles)), -images)
    found, contrast = work.finish()
    assert contrast < -0.3
    assert float((found.map * truth).sum()) > 0.0
    # the sums follow, so that a map made from them later is the same
    assert float((work.sums.map() * truth).sum()) > 0.0


def test_mirror_image(truth: torch.Tensor) -> None:
    particles, images = as_particles(simulate(molecule(), PARTICLES, tilts=TILTS)[0])
    found = project(particles, images, PLAIN.model_copy(update={"mirror": True})).map
    # z is turned round about the central section
    turned = truth.flip(0).roll(1, 0)
    assert float(shell_correlation(found, turned)[1:16].min()) > 0.97
    assert float(shell_correlation(found, truth)[4:16].max()) < 0.8


def test_images_without_a_ctf(truth: torch.Tensor) -> None:
    """H is 1: what comes out is the map as the microscope's CTF left it, and optics are not asked for."""
    particles, _images = as_particles(simulate(molecule(), 20, tilts=TILTS)[0])
    nil = np.zeros(particles.images)
    bare = replace(particles, has_ctf=False, voltage=nil, cs=nil, amplitude=nil, dose=nil)
    work = Backprojection(bare, half_sets(bare))
    assert bool((work.transfer(bare) == 1.0).all())
    with pytest.raises(ItemError, match="not the voltage"):
        Backprojection(bare, half_sets(bare)).transfer(replace(bare, dose=nil + 10.0))


def test_weights_are_the_published_ones() -> None:
    """Grant & Grigorieff 2015: critical exposure 0.24499 k^−1.6649 + 2.8141, optimal 2.51284 times that."""
    particles, _ = as_particles(simulate(molecule(), 1, tilts=2)[0])
    nil = np.zeros(2)
    dose, cosine = np.array([10.0, 60.0]), np.cos(np.deg2rad([0.0, 15.0]))
    bare = replace(particles, has_ctf=False, dose=dose, cos_tilt=cosine, voltage=nil + 300.0)
    settings = BackprojectionSettings(dose_weighting="grant", dose_mask=True)
    work = Backprojection(bare, half_sets(bare), settings)
    k = work.band.k.double().numpy()
    critical = 0.24499 * k**-1.6649 + 2.8141
    expected = cosine[:, None] * np.exp(-dose[:, None] / (2.0 * critical))
    expected *= dose[:, None] <= 2.51284 * critical
    assert cosine[1] == pytest.approx(0.966, abs=5e-4)
    np.testing.assert_allclose(work.transfer(bare).numpy(), expected, atol=1e-5)
    # the coarse half of the band survives 60 e/Å², the fine one does not
    assert 0 < int((expected[1] == 0.0).sum()) < len(k)
    assert bool((expected[0] > 0.0).all())


def test_microscopes_may_differ(ragged: ImageSeries) -> None:
    """Half of the images are of 200 kV: each is treated by its own constants."""
    particles, _ = as_particles(ragged)
    voltage = np.where(np.arange(particles.images) % 2, 200.0, 300.0)
    mixed = replace(particles, voltage=voltage)
    work = Backprojection(particles, half_sets(particles), PLAIN)
    both = [
        work.transfer(replace(particles, voltage=np.full(particles.images, value)))
        for value in (300.0, 200.0)
    ]
    found = work.transfer(mixed)
    assert torch.equal(found[::2], both[0][::2])
    assert torch.equal(found[1::2], both[1][1::2])


def test_half_sets(ragged: ImageSeries) -> None:
    particles, _ = as_particles(ragged)
    assert half_sets(particles).tolist() == particles.half.tolist()
    none = replace(particles, half=np.full(len(particles), -1))
    drawn = half_sets(none, 3)
    assert int(drawn.sum()) == len(particles) // 2
    assert drawn.tolist() == half_sets(none, 3).tolist() != half_sets(none, 4).tolist()
    some = none.half.copy()
    some[0] = 1
    with pytest.raises(ItemError, match="1 of 60 particles have a half-set"):
        half_sets(replace(none, half=some))


def test_batches_hold_every_particle_once(ragged: ImageSeries, monkeypatch: pytest.MonkeyPatch) -> None:
    particles, _ = as_particles(ragged)
    monkeypatch.setattr("weft.particles.backprojection._BATCH", 20 * SIZE * SIZE // 2)
    parts = list(batches(particles))
    assert np.concatenate(parts).tolist() == list(range(len(particles)))
    assert len(parts) > 10
    assert max(int(particles.count[part].sum()) for part in parts) <= 20
    # a particle with more images than fit is a batch of its own
    monkeypatch.setattr("weft.particles.backprojection._BATCH", 1)
    assert [len(part) for part in batches(particles)] == [1] * len(particles)


def test_regularisation(ragged: ImageSeries) -> None:
    """A constant damps what little has been seen; the halves stay as they are."""
    particles, images = as_particles(ragged)
    plain = project(particles, images)
    strong = project(particles, images, PLAIN.model_copy(update={"regularise": "constant", "constant": 10.0}))
    assert torch.equal(plain.halves, strong.halves)
    unfiltered = plain.sums.map()
    assert float(strong.map.square().sum()) < 0.1 * float(unfiltered.square().sum())
    none = project(particles, images, PLAIN.model_copy(update={"regularise": "constant", "constant": 0.0}))
    torch.testing.assert_close(none.map, unfiltered)


def test_the_map_is_flattened_and_the_halves_are_not(ragged: ImageSeries) -> None:
    particles, images = as_particles(ragged)
    plain = project(particles, images)
    flat = project(particles, images, PLAIN.model_copy(update={"flatten": True}))
    mask = soft_sphere(SIZE, 30.0, 5.0)
    torch.testing.assert_close(flat.map, plain.map * mask)
    assert torch.equal(flat.halves, plain.halves)
    assert float(plain.map[0, 0].abs().max()) > 0.0 == float(flat.map[0, 0].abs().max())


def test_low_pass(truth: torch.Tensor) -> None:
    shells = shells_3d(SIZE)
    before, after = rfft3(truth).abs(), rfft3(low_passed(truth, PIXEL, 20.0)).abs()
    # shell s is 240 / s Å; the edge is a tenth of its frequency to either side
    torch.testing.assert_close(after[shells <= 10], before[shells <= 10], atol=1e-2, rtol=1e-3)
    assert float(after[shells >= 14].max()) < 1e-4 * float(before.max())


def test_brightness() -> None:
    mask = soft_sphere(32, 12.0, 3.0)
    assert brightness(mask * 5.0 + 2.0, mask) == pytest.approx(1.0, abs=1e-5)
    assert brightness(-mask, mask) == pytest.approx(-1.0, abs=1e-5)
    assert abs(brightness(torch.randn(32, 32, 32, generator=torch.Generator().manual_seed(1)), mask)) < 0.05
