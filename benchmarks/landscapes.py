"""How well a landscape tells known classes, and structures each other: written out here, not Weft's own."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from measuring import Usage, measure
from numpy.typing import NDArray

__all__ = ["WEFT", "adjusted_rand", "linear_auc", "mean_fsc", "shell_fsc", "soft_ball", "two_means", "user"]

Array = NDArray[Any]
WEFT = (sys.executable, "-m", "weft")
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def user(*words: object, log: Path, show: bool = True) -> Usage:
    """What a user types after `weft`, on one thread; stops where it fails."""
    command = [str(word) for word in words]
    if show:
        print("weft", *command, flush=True)
    return measure([*WEFT, *command], env={**os.environ, **_ONE_THREAD}, log=log)


def adjusted_rand(one: Array, other: Array) -> float:
    """Hubert & Arabie 1985: 1 for the same partition, 0 on average for chance."""
    table = np.zeros((int(one.max()) + 1, int(other.max()) + 1))
    np.add.at(table, (one, other), 1.0)
    both, rows, columns = ((v * (v - 1.0) / 2.0).sum() for v in (table, table.sum(1), table.sum(0)))
    expected = rows * columns / (len(one) * (len(one) - 1.0) / 2.0)
    return float((both - expected) / (0.5 * (rows + columns) - expected))


def two_means(points: Array, starts: int = 50) -> Array:
    """Which of two clusters each point is in: Lloyd's k-means, the best of several random starts."""
    rng, best, found = np.random.default_rng(0), np.inf, np.zeros(len(points), int)
    for _ in range(starts):
        centres = points[rng.choice(len(points), 2, replace=False)]
        for _ in range(100):
            label = ((points[:, None] - centres) ** 2).sum(-1).argmin(1)
            if label.min() == label.max():
                break
            moved = np.stack([points[label == k].mean(0) for k in range(2)])
            if np.array_equal(moved, centres):
                break
            centres = moved
        spread = float(((points - centres[label]) ** 2).sum())
        if spread < best:
            best, found = spread, label
    return found


def linear_auc(points: Array, classes: Array, ridge: float = 1.0) -> float:
    """Area under the ROC curve of ridge regression on the class; every particle is left out once."""
    x = (points - points.mean(0)) / points.std(0).clip(1e-9)
    x = np.column_stack([x, np.ones(len(x))])
    y = 2.0 * classes - 1.0
    penalty = ridge * np.eye(x.shape[1])
    penalty[-1, -1] = 1e-9
    hat = x @ np.linalg.solve(x.T @ x + penalty, x.T)
    # the prediction without the particle itself, in closed form
    left_out = y - (y - hat @ y) / (1.0 - np.diag(hat))
    apart = left_out[classes == 1][:, None] - left_out[classes == 0]
    return float((apart > 0.0).mean() + 0.5 * (apart == 0.0).mean())


def soft_ball(box: int, diameter: float, edge: float = 4.0) -> Array:
    """A ball of so many voxels with a cosine's edge."""
    x = np.arange(box) - box // 2
    radius = np.sqrt(x[:, None, None] ** 2 + x[:, None] ** 2 + x**2)
    result: Array = 0.5 + 0.5 * np.cos(np.pi * np.clip((radius - 0.5 * diameter) / edge, 0.0, 1.0))
    return result


def shell_fsc(one: Array, other: Array, mask: Array | float = 1.0) -> Array:
    """Of the shells 0 ... n/2."""
    a, b = np.fft.fftn(one * mask), np.fft.fftn(other * mask)
    n = len(one)
    k = np.fft.fftfreq(n, 1.0 / n)
    shell = np.sqrt(k[:, None, None] ** 2 + k[:, None] ** 2 + k**2).round().astype(int).ravel()
    top = np.bincount(shell, (a * b.conj()).real.ravel())
    low = np.bincount(shell, (np.abs(a) ** 2).ravel()) * np.bincount(shell, (np.abs(b) ** 2).ravel())
    result: Array = (top / np.sqrt(low.clip(1e-300)))[: n // 2 + 1]
    return result


def mean_fsc(one: Array, other: Array, mask: Array | float = 1.0) -> float:
    """Over the shells from the second to half of Nyquist's."""
    return float(shell_fsc(one, other, mask)[2 : len(one) // 4 + 1].mean())
