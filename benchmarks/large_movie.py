"""A full-size movie (3838 × 3710 × 40 by default) with realistic noise, motion and Thon rings.

Its only purpose is to be processed against the clock; accuracy is measured on exact simulations. The
specimen is a random texture filtered by the CTF and shifted in Fourier space, so that every frame costs
two transforms instead of millions of scatterers.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import scipy.fft
import tifffile


def make(
    path: Path, *, width: int = 3838, height: int = 3710, frames: int = 40, pixel: float = 0.85, seed: int = 1
) -> dict[str, object]:
    """Write ``path`` (LZW TIFF, uint8) and a gain reference beside it; return the truth."""
    rng = np.random.default_rng(seed)
    ny, nx = height, width
    ky = np.fft.fftfreq(ny, pixel)[:, None]
    kx = np.fft.rfftfreq(nx, pixel)[None, :]
    k2 = (ky**2 + kx**2).astype(np.float32)
    defocus, wavelength, cs = 14000.0, 0.019687, 2.7e7
    chi = np.pi * wavelength * k2 * (defocus - 0.5 * cs * wavelength**2 * k2) + 0.07
    texture = scipy.fft.rfft2(rng.standard_normal((ny, nx), dtype=np.float32), workers=2)
    texture *= np.sin(chi) * np.exp(-k2 * 20.0)
    t = np.arange(frames)
    drift = np.stack([12.0 * (1 - np.exp(-t / 6.0)), -9.0 * (1 - np.exp(-t / 8.0)) + 0.1 * t], axis=1)
    drift += rng.normal(0, 0.1, drift.shape).cumsum(0) * 0.5
    scale = None
    gain = rng.normal(1.0, 0.04, (ny, nx)).astype(np.float32)
    dead = rng.integers(0, ny * nx, 200)
    gain.reshape(-1)[dead] = 0.0
    with tifffile.TiffWriter(path) as out:
        for f in range(frames):
            phase = np.exp(-2j * np.pi * (ky * drift[f, 1] + kx * drift[f, 0])).astype(np.complex64)
            image = scipy.fft.irfft2(texture * phase, s=(ny, nx), workers=2)
            scale = scale or 0.35 / float(image.std())
            expected = np.clip(1.0 - scale * image, 0.05, None)
            counts = rng.poisson(expected / np.where(gain > 0, gain, np.inf)).astype(np.uint8)
            out.write(counts[::-1], compression="lzw", rowsperstrip=128, contiguous=False)
    import mrcfile

    gain_path = path.with_name(path.stem + "_gain.mrc")
    with mrcfile.new(gain_path, gain, overwrite=True) as m:
        m.voxel_size = pixel
    truth = {
        "pixel": pixel,
        "dose_per_frame": 1.0,
        "defocus": defocus,
        "drift": (drift - drift.mean(0)).tolist(),
        "gain": gain_path.name,
    }
    path.with_suffix(".json").write_text(json.dumps(truth))
    return truth


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path)
    parser.add_argument("--frames", type=int, default=40)
    arguments = parser.parse_args()
    make(arguments.path, frames=arguments.frames)
