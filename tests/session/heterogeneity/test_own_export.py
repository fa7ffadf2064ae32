"""Particles that Weft itself has exported, with images of two structures: the training tells them apart."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from two_classes import BLOBS, WIDTH

from weft.formats.tomo_particles import TomoParticles
from weft.heterogeneity.model import NetworkSettings
from weft.heterogeneity.preparation import PreparationSettings
from weft.heterogeneity.training import VAETrainingSettings
from weft.particles.image_series import ImageSeries, series_transfer
from weft.session import subtomogram_export
from weft.session.heterogeneity.training import train_vae
from weft.session.session import open as open_session

BOX, PIXEL, COUNT = 24, 8.0, 32
CONTRAST = 0.6  # of the blobs, in standard deviations of an image's noise
#: Where the last blob is in every second particle, Å: their mass does not tell the classes.
MOVED = np.array([-25.0, 20.0, -35.0])


def _projections(series: ImageSeries, first: int, rng: np.random.Generator) -> torch.Tensor:
    """Images of the blobs, the last elsewhere in every second particle, in the poses and optics of a series.

    Everything is written out: Kirkland (2010) eq. 2.5, Grant & Grigorieff (2015) eq. 3.
    """
    k = np.fft.fftfreq(BOX, PIXEL)
    ky, kx = k[:, None], k[None, : BOX // 2 + 1]
    k2, azimuth = kx**2 + ky**2, np.arctan2(ky, np.abs(kx))
    volts = 1e3 * series.voltage
    wave = 12.2643 / np.sqrt(volts + 0.978466e-6 * volts**2)
    critical = 0.24499 * np.maximum(np.sqrt(k2), 1e-6) ** -1.6649 + 2.8141
    images = np.zeros(series.images.shape, np.float32)
    for p, t in np.ndindex(*images.shape[:2]):
        blobs = BLOBS.copy()
        if (first + p) % 2:
            blobs[-1, :3] = MOVED
        at = blobs[:, :3] @ series.rotation[p, t].numpy().T.astype(float)
        x, y = at[:, 0] + float(series.shift[p, t, 0]), at[:, 1] + float(series.shift[p, t, 1])
        waves = np.exp(-2j * np.pi * (x[:, None, None] * kx + y[:, None, None] * ky))
        spectrum = (blobs[:, 3, None, None] * waves).sum(0) * np.exp(-2.0 * (np.pi * WIDTH) ** 2 * k2)
        turn = 2.0 * (azimuth - np.deg2rad(float(series.angle[p, t])))
        defocus = float(series.defocus[p, t]) + 0.5 * float(series.astigmatism[p, t]) * np.cos(turn)
        chi = np.pi * wave * k2 * (defocus - 0.5e7 * series.cs * wave**2 * k2)
        left = np.exp(-0.5 * float(series.dose[p, t]) / critical) * float(series.weight[p, t])
        seen = spectrum * np.sin(chi + np.arcsin(series.amplitude)) * left
        area = 2.0 * np.pi * (WIDTH / PIXEL) ** 2
        images[p, t] = np.fft.fftshift(np.fft.irfft2(seen, (BOX, BOX))) * CONTRAST * area
    images += rng.normal(size=images.shape).astype(np.float32)
    return torch.from_numpy(images) * (series.weight > 0.0)[..., None, None]


def _linear_auc(mu: NDArray[Any], classes: NDArray[Any]) -> float:
    """Of a ridge regression on the class that leaves every particle out once."""
    x = np.column_stack([mu / mu.std(), np.ones(len(mu))])
    hat = x @ np.linalg.solve(x.T @ x + np.eye(x.shape[1]), x.T)
    y = 2.0 * classes - 1.0
    score = y - (y - hat @ y) / (1.0 - np.diag(hat))
    return float((score[classes == 1][:, None] > score[classes == 0]).mean())


@pytest.mark.parametrize("flavour", ["relion5", "warp"])
def test_two_structures_are_told_apart(
    flavour: str, done_tilts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, rng = open_session(done_tilts), np.random.default_rng(1)
    made = subtomogram_export._made

    def simulated(
        item: Any, particles: TomoParticles, settings: Any, group: int, device: Any
    ) -> Iterator[tuple[int, ImageSeries, Any]]:
        for first, series, volumes in made(item, particles, settings, group, device):
            images = _projections(series, first, rng)
            if series.premultiplied:
                by = series_transfer(series, BOX, settings.cutting.dose_weighting)
                images = torch.fft.irfft2(torch.fft.rfft2(images) * by, s=(BOX, BOX))
            yield first, replace(series, images=images), volumes

    monkeypatch.setattr(subtomogram_export, "_made", simulated)
    name = next(iter(session.series.values())).name
    xyz = rng.uniform(-0.1, 0.1, (COUNT, 3)) * np.array(session[name].volume_size)  # type: ignore[union-attr]
    euler = np.column_stack([rng.uniform(-180, 180, (COUNT, 2)), rng.uniform(-180, 180, COUNT)])
    euler[:, 1] = np.rad2deg(np.arccos(rng.uniform(-1.0, 1.0, COUNT)))
    listed = TomoParticles([name] * COUNT, xyz, euler, np.full(COUNT, np.nan))
    settings = subtomogram_export.ParticleExportSettings.model_validate(
        {"kind": "2d", "flavour": flavour, "box": BOX, "pixel_size": PIXEL, "diameter": 150.0}
    )
    report = subtomogram_export.export_subtomograms(session, tmp_path / "out", listed, settings)
    assert report.exit_code == 0
    done = train_vae(
        tmp_path / "out" / "optimisation_set.star",
        tmp_path / "run",
        NetworkSettings(latent=2),
        VAETrainingSettings(epochs=3),
        PreparationSettings(diameter=150.0),
    )
    assert done.particles == COUNT
    # Weft's images are light, and the training finds that out by itself
    assert done.run.facts.sign == 1.0
    auc = _linear_auc(done.run.latent().mu, np.arange(COUNT) % 2)
    # 1.0; with transposed poses 0.70
    assert auc > 0.95
