"""Particles of two classes as tilt images: projections of Gaussian blobs, written down as they are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from weft.formats import mrc
from weft.formats.star import Table, write_star

BOX, PIXEL = 24, 8.0
#: x, y, z (Å) and weight; the second class lacks the last one.
BLOBS = np.array(
    [
        *([0, 0, 0, 3.0], [30, 5, -10, 2.0], [-25, 20, 15, 2.0]),
        *([5, -30, 20, 2.0], [-20, -15, -30, 1.5], [25, 25, 30, 4.0]),
    ]
)
WIDTH = 11.0  # Å, standard deviation
VOLTAGE, CS, AMPLITUDE = 300.0, 2.7, 0.1


@dataclass(frozen=True)
class TwoClasses:
    """What was written, and the truth."""

    star: Path
    stack: Path
    names: list[str]
    classes: NDArray[np.int64]


def _matrix(rot: float, tilt: float, psi: float) -> NDArray[np.float64]:
    a, b, g = np.deg2rad([rot, tilt, psi])

    def z(t: float) -> NDArray[np.float64]:
        return np.array([[np.cos(t), np.sin(t), 0], [-np.sin(t), np.cos(t), 0], [0, 0, 1]])

    y = np.array([[np.cos(b), 0, -np.sin(b)], [0, 1, 0], [np.sin(b), 0, np.cos(b)]])
    return np.asarray(z(g) @ y @ z(a))


def _angles(m: NDArray[np.float64]) -> tuple[float, float, float]:
    tilt = np.arccos(np.clip(m[2, 2], -1, 1))
    return tuple(np.rad2deg([np.arctan2(m[2, 1], m[2, 0]), tilt, np.arctan2(m[1, 2], -m[0, 2])]))  # type: ignore[return-value]


def blob_map(classes: int, box: int = BOX, pixel: float = PIXEL) -> NDArray[np.float32]:
    """(box, box, box): the structure of a class, particles light."""
    at = (np.arange(box) - box // 2) * pixel
    out = np.zeros((box,) * 3)
    for x, y, z, weight in BLOBS[: len(BLOBS) - classes]:
        r2 = ((at - z) ** 2)[:, None, None] + ((at - y) ** 2)[:, None] + (at - x) ** 2
        out += weight * np.exp(-r2 / (2 * WIDTH**2))
    return out.astype(np.float32)


def write_two_classes(
    folder: Path,
    particles: int = 40,
    *,
    tilts: tuple[int, ...] = (5, 7),
    noise: float = 3.0,
    classes: int = 2,
    dark: bool = True,
    seed: int = 0,
) -> TwoClasses:
    """Write particles.star and stack.mrcs in Warp's columns; classes and numbers of tilts take turns."""
    random = np.random.default_rng(seed)
    at = (np.arange(BOX) - BOX // 2) * PIXEL
    k = np.fft.fftfreq(BOX, PIXEL)
    k2 = k[:, None] ** 2 + k**2
    # Kirkland (2010), eq. 2.5
    volts = VOLTAGE * 1e3
    wave = 12.2643 / np.sqrt(volts + 0.978466e-6 * volts * volts)
    images, rows, truth, names = [], [], [], []
    for p in range(particles):
        kind = p % classes
        truth.append(kind)
        names.append(f"001_{p:06d}")
        rot, psi = random.uniform(-180, 180, 2)
        pose = _matrix(rot, np.rad2deg(np.arccos(random.uniform(-1, 1))), psi)
        count = tilts[(p // 2) % len(tilts)]
        for t in range(count):
            angle = (t + 1) // 2 * (5.0 if t % 2 else -5.0)
            turn = np.deg2rad(angle)
            stage = np.array([[np.cos(turn), 0, -np.sin(turn)], [0, 1, 0], [np.sin(turn), 0, np.cos(turn)]])
            m = stage @ pose
            shift = random.uniform(-1.5, 1.5, 2) * PIXEL
            image = np.zeros((BOX, BOX))
            for x, y, z, weight in BLOBS[: len(BLOBS) - kind]:
                u, v, _ = m @ (x, y, z)
                gx = np.exp(-((at - u - shift[0]) ** 2) / (2 * WIDTH**2))
                gy = np.exp(-((at - v - shift[1]) ** 2) / (2 * WIDTH**2))
                # the third dimension of the Gaussian, summed over voxels
                image += weight * np.sqrt(2 * np.pi) * WIDTH / PIXEL * gy[:, None] * gx
            defocus = random.uniform(15000, 25000)
            dose = 3.0 * (t + 1)
            chi = np.pi * wave * k2 * (defocus - 0.5 * CS * 1e7 * wave**2 * k2) + np.deg2rad(90.0)
            chi += np.arcsin(AMPLITUDE)
            critical = 0.24499 * np.maximum(np.sqrt(k2), 1e-6) ** -1.6649 + 2.8141
            weight = np.exp(-dose / (2 * critical)) * np.cos(turn)
            image = np.fft.ifft2(np.fft.fft2(image) * np.sin(chi) * weight).real
            images.append((-image if dark else image) + random.normal(0, noise, (BOX, BOX)))
            rot, tilt, psi = _angles(m)
            rows.append((names[-1], rot, tilt, psi, *(-shift / PIXEL), defocus, -4 * dose, np.cos(turn)))
    stack = folder / "stack.mrcs"
    mrc.write_stack(stack, (np.asarray(image, np.float32) for image in images), PIXEL)
    columns = list(zip(*rows, strict=True))
    m_ = len(rows)
    labels = ["GroupName", "AngleRot", "AngleTilt", "AnglePsi", "OriginX", "OriginY"]
    labels += ["DefocusU", "CtfBfactor", "CtfScalefactor"]
    table = {f"rln{label}": list(values) for label, values in zip(labels, columns, strict=True)}
    table |= {
        "rlnImageName": [f"{i + 1:06d}@stack.mrcs" for i in range(m_)],
        "rlnDetectorPixelSize": [PIXEL] * m_,
        "rlnDefocusV": table["rlnDefocusU"],
        "rlnDefocusAngle": [0.0] * m_,
        "rlnVoltage": [VOLTAGE] * m_,
        "rlnSphericalAberration": [CS] * m_,
        "rlnAmplitudeContrast": [AMPLITUDE] * m_,
        "rlnPhaseShift": [90.0] * m_,
    }
    star = folder / "particles.star"
    write_star(star, {"": Table(table)})
    return TwoClasses(star, stack, names, np.array(truth))
