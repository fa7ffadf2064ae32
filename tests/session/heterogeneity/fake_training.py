"""A training that never was: latent coordinates with known clusters, volumes of three blobs moved by them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np


@dataclass
class FakeLatent:
    mu: np.ndarray
    log_var: np.ndarray
    particle: list[str]


class FakeRun:
    """What analysis and selection ask of :class:`weft.session.heterogeneity.run_folder.VAERun`."""

    def __init__(
        self, path: Path, mu: np.ndarray, *, epochs: tuple[int, ...] = (10, 20, 30), settled: bool = True
    ) -> None:
        self.path = path
        self.epochs = list(epochs)
        self.mu = mu.astype(np.float32)
        self.names = [f"particle{i:04d}" for i in range(len(mu))]
        self.pixel_size, self.box = 4.0, 24
        self.settled = settled
        last = max(epochs)
        scale = 0.3 * last if not settled else 0.04 * last
        self.history: list[dict[str, Any]] = [
            {
                "epoch": e,
                "loss": 0.83 + 0.17 * float(np.exp(-e / scale)) + 0.01,
                "reconstruction": 0.83 + 0.17 * float(np.exp(-e / scale)),
                "kl": 8.0 * (1 - float(np.exp(-e / scale))),
                "beta": 1.0,
                "validation": 0.84 + 0.17 * float(np.exp(-e / scale)),
            }
            for e in range(1, last + 1)
        ]
        # an earlier epoch means the same, turned and mirrored
        turn = np.linalg.qr(np.random.default_rng(1).normal(size=(mu.shape[1],) * 2))[0]
        self.turned = {e: turn if i % 2 else np.eye(mu.shape[1]) for i, e in enumerate(self.epochs[::-1])}
        tomogram = [f"TS_{i % 6:02d}" for i in range(len(mu))]
        random = np.random.default_rng(2)
        self.known = SimpleNamespace(
            path=path / "particles.star",
            particle=self.names,
            tomogram=tomogram,
            place=random.uniform(0, 1000, (len(mu), 3)),
            start=np.arange(len(mu) + 1) * 2,
            columns={"rlnMeanScore": self.mu[:, 0] + 0.3 * random.normal(size=len(mu))},
            has_ctf=True,
            images=2 * len(mu),
            defocus_u=random.uniform(2e4, 4e4, 2 * len(mu)),
            defocus_v=random.uniform(2e4, 4e4, 2 * len(mu)),
            half=np.arange(len(mu)) % 2,
        )

    def latent(self, epoch: int | None = None) -> FakeLatent:
        mu = self.mu @ self.turned[epoch or self.epochs[-1]].astype(np.float32)
        if not self.settled and epoch not in (None, self.epochs[-1]):
            mu = mu + np.random.default_rng(epoch).normal(0, 1.5, mu.shape).astype(np.float32)
        return FakeLatent(mu, np.full(mu.shape, -2.0, np.float32), list(self.names))

    def particles(self) -> Any:
        return self.known

    def volumes(self, z: np.ndarray, epoch: int | None = None, size: int | None = None) -> np.ndarray:
        n = size or self.box
        back = np.linalg.inv(self.turned[epoch or self.epochs[-1]])
        i = (np.arange(n) - n // 2) * (24 / n)
        zz, yy, xx = np.meshgrid(i, i, i, indexing="ij")
        out = []
        for point in np.asarray(z, np.float64) @ back:
            volume = np.exp(-(zz**2 + yy**2 + xx**2) / 8.0)
            volume += 0.8 * np.exp(-((xx - 5) ** 2 + (yy - point[0]) ** 2 + zz**2) / 5.0)
            volume += 0.8 * np.exp(-((xx + 5) ** 2 + (yy - 2) ** 2 + zz**2) / 5.0)
            out.append(volume)
        return np.asarray(out, np.float32)


def two_clusters(
    n: int = 120, d: int = 4, apart: float = 6.0, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Latent coordinates and true classes, a third of the particles in the second."""
    random = np.random.default_rng(seed)
    truth = (np.arange(n) % 3 == 0).astype(np.int64)
    mu = random.normal(0, 0.6, (n, d))
    mu[:, 0] += 0.6 * apart * (truth - 0.5)
    mu[:, 2:] *= 0.02
    return mu, truth


def one_cluster(n: int = 120, d: int = 4, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.normal(0, (1.0, 0.7, 0.1, 0.02)[:d], (n, d))
