"""Draw the pictures of the README from a processed session: ``python docs/make_pictures.py SESSION ITEM``.

Needs matplotlib (``pip install -e '.[docs]'``). The pictures in docs/images were made from

    weft simulate movies sim -n 1 --width 2048 --height 1536 --frames 24 --dose 1.6 \
        --local-motion 3 --drift 18 --defocus 1.2 --astigmatism 0.04 --seed 7
    weft new sim/session --frames 'sim/frames/*.tif' --gain sim/gain.mrc --pixel-size 1 \
        --voltage 300 --cs 2.7 --amplitude 0.07 --dose 1.6
    weft run sim/session
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.collections import LineCollection
from PIL import Image
from scipy.ndimage import gaussian_filter, map_coordinates

import weft
from weft.formats import mrc

IMAGES = Path(__file__).resolve().parent / "images"
MAGNIFIED = 10  # tracks are drawn this many times longer than they are
FIRST_RING = 17.0  # Å, where the drawn spectrum begins
SHOWN_TO = 5.0  # Å, edge of the power spectrum's picture
LARGEST = 150_000  # bytes


def _save(figure: Any, name: str) -> None:
    """As a PNG with a palette of 25 greys and what colours there are, which is small."""
    IMAGES.mkdir(exist_ok=True)
    path = IMAGES / name
    figure.savefig(path, dpi=100, facecolor="white")
    plt.close(figure)
    picture = np.array(Image.open(path).convert("RGB")).astype(int)
    grey = np.ptp(picture, axis=-1) < 8
    picture[grey] = np.round(picture[grey] / 255 * 24) * 255 / 24
    colours = np.round(picture[~grey] / 255 * 7) * 255 / 7
    picture[~grey] = colours
    out = Image.fromarray(picture.astype(np.uint8)).quantize(256, dither=Image.Dither.NONE)
    out.save(path, optimize=True)
    sys.stdout.write(f"{path}: {path.stat().st_size / 1000:.0f} kB\n")
    if path.stat().st_size > LARGEST:
        raise SystemExit(f"{path} is too large for the repository")


def tracks(movie: weft.Movie) -> None:
    """The average, low-passed, with the tracks of places in it."""
    image, _ = mrc.read(movie.paths["average"])
    pixel = movie.metrics["pixel_size"]
    smooth = gaussian_filter(np.asarray(image, dtype=np.float32), 8.0 / pixel)
    smooth -= gaussian_filter(smooth, 150.0 / pixel)
    smooth = smooth[::2, ::2]
    ny, nx = image.shape
    width, height = nx * pixel, ny * pixel
    low, high = np.percentile(smooth, [0.3, 99.7])
    figure = plt.figure(figsize=(6.4, 6.4 * ny / nx))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(smooth, cmap="gray", vmin=low, vmax=high, extent=(0, width, 0, height), origin="lower")
    x, y = np.meshgrid((np.arange(6) + 0.5) / 6 * width, (np.arange(4) + 0.5) / 4 * height)
    places = np.stack([x.ravel(), y.ravel()], axis=1)
    paths = movie.track(places)
    paths = places + MAGNIFIED * (paths - paths.mean(axis=0))
    colours = plt.get_cmap("plasma")(np.linspace(0.25, 1.0, len(paths) - 1))
    for i in range(len(places)):
        pairs = np.stack([paths[:-1, i], paths[1:, i]], axis=1)
        axes.add_collection(LineCollection(list(pairs), colors="black", linewidths=4.2, capstyle="round"))
        axes.add_collection(LineCollection(list(pairs), colors=colours, linewidths=2.4, capstyle="round"))
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.axis("off")
    scale = 500.0
    axes.add_patch(plt.Rectangle((30, 30), scale + 80, 150, color="white", alpha=0.85, lw=0))
    axes.plot([70, 70 + scale], [70, 70], color="black", lw=4, solid_capstyle="butt")
    axes.text(70, 95, f"{scale / 10:.0f} nm, tracks {scale / MAGNIFIED:.0f} Å", fontsize=10)
    _save(figure, "tracks.png")


def spectrum(movie: weft.Movie, optics: weft.Optics) -> None:
    """The power spectrum, half data and half fit, and the rotational average with its fit."""
    image, _ = mrc.read(movie.paths["average"])
    model = weft.fit_ctf(torch.from_numpy(np.array(image, dtype=np.float32)), optics)
    assert model.spectrum is not None
    assert model.model is not None
    assert model.curve is not None
    curve = model.curve
    dk = float(curve.k[1])
    half = round(1.0 / SHOWN_TO / dk)
    cy, cx = (n // 2 for n in model.spectrum.shape)
    # along a ring of equal CTF phase neighbours say the same: average over 12 degrees of it
    radius, angle = np.meshgrid(np.arange(0, half * 1.42, 0.5), np.radians(np.arange(0, 360, 1.0)))
    lobe = 1.0 - 0.5 * model.astigmatism / model.defocus * np.cos(2 * (angle - np.radians(model.angle)))
    stretch = np.sqrt(lobe)
    y, x = cy + radius * stretch * np.sin(angle), cx + radius * stretch * np.cos(angle)
    polar = map_coordinates(model.spectrum, [y, x], order=1, mode="nearest")
    polar = gaussian_filter(polar, (6.0, 0.8), mode=("wrap", "nearest"))
    # every ring with the same contrast, the particles' own shape in the middle left out
    ring = polar.mean(0)
    level = gaussian_filter(ring, 8.0)
    polar = (polar - level) / np.sqrt(gaussian_filter((ring - level) ** 2, 16.0))
    polar[:, : round(2.0 / FIRST_RING / dk)] = 0.0
    yy, xx = np.mgrid[-half : half + 1 : 0.5, -half : half + 1 : 0.5]
    azimuth = np.arctan2(yy, xx)
    along = 1.0 - 0.5 * model.astigmatism / model.defocus * np.cos(2 * (azimuth - np.radians(model.angle)))
    at = np.hypot(yy, xx) / np.sqrt(along)
    data = map_coordinates(polar, [np.degrees(azimuth) % 360.0, at / 0.5], order=1, mode="grid-wrap")
    fit = map_coordinates(model.model, [cy + yy, cx + xx], order=1)
    shown = np.where(xx < 0, 0.5 + data / 3.2, fit)

    figure = plt.figure(figsize=(7.2, 3.4))
    axes = figure.add_axes((0.0, 0.0, 3.4 / 7.2, 1.0))
    axes.imshow(shown, cmap="gray", vmin=0, vmax=1, origin="lower", interpolation="bilinear")
    axes.axis("off")
    n = shown.shape[1]
    for text, where in (("data", 0.03), ("fit", 0.97)):
        axes.text(
            where * n, 0.93 * n, text, ha="left" if where < 0.5 else "right", fontsize=11,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 2.5},
        )  # fmt: skip
    right = figure.add_axes((3.4 / 7.2 + 0.035, 0.15, 0.465, 0.8))
    use = (curve.k >= 1 / 40.0) & (curve.k <= 1 / 3.2)
    flat = curve.power / np.maximum(curve.background, 1e-9) - 1.0
    amplitude = 0.5 * flat / np.maximum(np.sqrt(gaussian_filter(flat**2, 8.0)) * 1.6, 1e-9) + 0.5
    right.plot(curve.k[use], curve.fit[use], color="#c9c9c9", lw=2.5, label="fit")
    right.plot(curve.k[use], amplitude[use], color="#1b4f91", lw=1.0, label="data")
    right.plot(curve.k[use], curve.correlation[use], color="#d1495b", lw=1.5, label="agreement")
    right.axvline(1 / model.resolution, color="#d1495b", lw=1, ls=":")
    ticks = [20, 10, 7, 5, 4, 3.5]
    right.set_xticks([1 / t for t in ticks], [f"{t:g}" for t in ticks])
    right.set(xlabel="resolution (Å)", yticks=[], ylim=(-0.35, 1.6), xlim=(1 / 40, 1 / 3.2))
    right.legend(frameon=False, ncols=3, loc="upper right", fontsize=9)
    for side in ("top", "right", "left"):
        right.spines[side].set_visible(False)
    _save(figure, "spectrum.png")


def main() -> int:
    """Draw both."""
    mpl.use("Agg")
    session = weft.open(sys.argv[1])
    movie = session[sys.argv[2]]
    tracks(movie)
    spectrum(movie, session.settings.input.optics().at_pixel_size(movie.metrics["pixel_size"]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
