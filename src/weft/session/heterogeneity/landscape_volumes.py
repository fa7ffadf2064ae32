"""Volumes of a landscape: which latent points are shown, the files, their pictures, and where they differ."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import imagecodecs
import numpy as np
import torch
from numpy.typing import NDArray

from weft.formats import mrc
from weft.heterogeneity.components import along_component
from weft.heterogeneity.convergence import VolumeAgreement, volume_agreement
from weft.heterogeneity.paths import ends, path_through, spaced
from weft.heterogeneity.volume_components import density_mask
from weft.particles.backprojection import low_passed
from weft.session.heterogeneity.analysis_settings import AnalysisSettings
from weft.session.heterogeneity.landscape import Landscape, kept_epochs

if TYPE_CHECKING:
    from weft.session.heterogeneity.run_folder import VAERun

__all__ = [
    "Series",
    "Shown",
    "convergence_of_volumes",
    "make_volumes",
    "planned_series",
    "png_uri",
]

Volume = NDArray[np.float32]
Array = NDArray[np.float64]

#: Voxels decoded at once: half a gigabyte.
_AT_ONCE = 1 << 27
#: Pairs of epochs and particles whose volumes are compared.
_PAIRS = 2
_POINTS = 3
#: Half the width of a low-pass filter's edge, as a part of its frequency.
#: Pixels around the mask in pictures.
_MARGIN = 2


@dataclass(frozen=True)
class Shown:
    """One volume.

    Attributes
    ----------
    file : str
        Its name in ``analysis/volumes``.
    latent : (d,)
    caption : str
    particle : int
        That it belongs to, or −1 where it lies between particles.
    """

    file: str
    latent: Array
    caption: str
    particle: int = -1


@dataclass
class Series:
    """Volumes that are looked at together.

    Attributes
    ----------
    name : str
        ``cluster``, ``pc1`` ..., ``path``.
    title : str
    volumes : list of Shown
    contrast : list of float
        Standard deviation of each under the mask.
    slices, projections : list
        Of each volume, three pictures as data URIs: across z, y and x.
    change : list of str
        Where the volumes differ: the largest standard deviation along z, y and x.
    """

    name: str
    title: str
    volumes: list[Shown]
    contrast: list[float] = field(default_factory=list)
    slices: list[list[str]] = field(default_factory=list)
    projections: list[list[str]] = field(default_factory=list)
    change: list[str] = field(default_factory=list)


def planned_series(found: Landscape, settings: AnalysisSettings) -> list[Series]:
    """What to make volumes of."""
    points = found.latent
    clusters = [
        Shown(f"cluster_{i + 1:02d}.mrc", points[particle], f"cluster {i + 1}", int(particle))
        for i, particle in enumerate(found.representative)
    ]
    out = [Series("cluster", "Clusters" if len(clusters) > 1 else "The middle of the landscape", clusters)]
    varying = int((found.components.variance > 0.0).sum())
    percent = np.linspace(settings.tail, 100.0 - settings.tail, settings.steps)
    for which in range(min(settings.components, varying)):
        line = along_component(found.components, points, which, percent.tolist(), on_data=settings.on_data)
        score = found.components.scores(line)[:, which]
        shown = [
            Shown(f"pc{which + 1}_{i + 1:02d}.mrc", z, f"{value:.2f}".replace("-", "−"))
            for i, (z, value) in enumerate(zip(line, score, strict=True))
        ]
        part = 100.0 * found.components.explained[which]
        out.append(Series(f"pc{which + 1}", f"Along PC{which + 1}, {part:.0f} % of the variance", shown))
    if settings.path and varying and len(points) > 2:
        anchors = found.representative if found.clusters.count > 1 else ends(found.components, points)
        way = spaced(points, path_through(points, anchors), settings.path)
        home = {int(particle): i + 1 for i, particle in enumerate(found.representative)}
        shown = [
            Shown(
                f"path_{i + 1:02d}.mrc",
                points[particle],
                f"cluster {home[int(particle)]}" if home.get(int(particle)) else found.particle[particle],
                int(particle),
            )
            for i, particle in enumerate(way)
        ]
        title = (
            "Through the particles, past all clusters"
            if found.clusters.count > 1
            else "Through the particles"
        )
        out.append(Series("path", title, shown))
    return out


def make_volumes(
    run: VAERun,
    settings: AnalysisSettings,
    series: list[Series],
    folder: Path,
    progress: Callable[[int, int], None] | None = None,
) -> Volume:
    """Write every volume, ``volumes/*.mrc``, and the mask, ``mask.mrc``; fill in pictures and contrast.

    Parameters
    ----------
    run : VAERun
    settings : AnalysisSettings
    series : list of Series
        Changed in place.
    folder : Path
        ``DIR/analysis``.
    progress : callable, optional
        Called with how many volumes are made and how many there will be.

    Returns
    -------
    (n, n, n) float32
        The mask.
    """
    place = folder / "volumes"
    place.mkdir(parents=True, exist_ok=True)
    shown = [one for group in series for one in group.volumes]
    size = settings.size or run.box
    pixel_size = (settings.pixel_size or run.pixel_size) * run.box / size
    step = max(1, _AT_ONCE // size**3)
    for start in range(0, len(shown), step):
        batch = shown[start : start + step]
        z = np.stack([one.latent for one in batch]).astype(np.float32)
        for one, volume in zip(batch, decoded(run, z, settings, settings.epoch or None), strict=True):
            mrc.write(place / one.file, volume, pixel_size, sync=False)
        if progress:
            progress(min(start + step, len(shown)), len(shown))
    mask = density_mask(_read(place, shown))
    mrc.write(folder / "mask.mrc", mask, pixel_size, sync=False)
    for group in series:
        _describe(group, place, mask)
    return mask


def decoded(run: VAERun, z: NDArray[np.float32], settings: AnalysisSettings, epoch: int | None) -> Volume:
    """Volumes (m, n, n, n) of latent points, filtered and with the sign that was asked for."""
    volumes = run.volumes(z, epoch, settings.size or None)
    if settings.invert:
        volumes = -volumes
    if settings.low_pass:
        size = volumes.shape[-1]
        pixel_size = (settings.pixel_size or run.pixel_size) * run.box / size
        filtered = (low_passed(torch.from_numpy(one), pixel_size, settings.low_pass) for one in volumes)
        volumes = np.stack([one.numpy() for one in filtered])
    return np.asarray(volumes, np.float32)


def convergence_of_volumes(
    run: VAERun, found: Landscape, settings: AnalysisSettings, mask: Volume
) -> list[VolumeAgreement]:
    """Volumes of the same particles in the last kept epochs: each with its own network and latent point."""
    epochs = kept_epochs(run, settings)[-_PAIRS - 1 :]
    particles = found.representative[:_POINTS]
    if len(particles) == 1 and len(found.latent) > 2:
        particles = np.concatenate([particles, ends(found.components, found.latent)])
    size = settings.size or run.box
    pixel_size = (settings.pixel_size or run.pixel_size) * run.box / size
    out: list[VolumeAgreement] = []
    before: Volume | None = None
    for i, epoch in enumerate(epochs):
        points = np.asarray(run.latent(epoch).mu, np.float32)[particles]
        after = decoded(run, points, settings, epoch)
        if before is not None:
            out += [
                volume_agreement(a, b, (epochs[i - 1], epoch), pixel_size, mask)
                for a, b in zip(before, after, strict=True)
            ]
        before = after
    return out


def _read(place: Path, shown: list[Shown]) -> Iterator[Volume]:
    for one in shown:
        yield np.asarray(mrc.read(place / one.file)[0], np.float32)


def _describe(group: Series, place: Path, mask: Volume) -> None:
    """Contrast and pictures; grey values are the same in all pictures of a kind, so that they can be "
    "compared."""
    box = _crop(mask)
    middle = [n // 2 for n in mask.shape]
    inside = mask > 0.5
    slices: list[list[Array]] = []
    projections: list[list[Array]] = []
    total, squares = np.zeros(mask.shape), np.zeros(mask.shape)
    for volume in _read(place, group.volumes):
        group.contrast.append(float(volume[inside].std()))
        slices.append([_cut(volume.take(middle[axis], axis), box, axis) for axis in range(3)])
        projections.append([_cut((volume * mask).sum(axis), box, axis) for axis in range(3)])
        total += volume
        squares += np.square(volume, dtype=np.float64)
    group.slices = _pictures(slices)
    group.projections = _pictures(projections)
    count = len(group.volumes)
    if count > 1:
        deviation = np.sqrt(np.maximum(squares / count - (total / count) ** 2, 0.0)) * mask
        shown = [_cut(deviation.max(axis), box, axis) for axis in range(3)]
        top = max(float(deviation.max()), 1e-30)
        group.change = [png_uri(picture, 0.0, top) for picture in shown]


def _crop(mask: Volume) -> list[slice]:
    """The mask's bounds, as a cube where the box allows it."""
    inside = np.argwhere(mask > 0.05)
    low, high = inside.min(0), inside.max(0) + 1
    side = int((high - low).max()) + 2 * _MARGIN
    out = []
    for axis, n in enumerate(mask.shape):
        start = int(np.clip((low[axis] + high[axis] - side) // 2, 0, max(n - side, 0)))
        out.append(slice(start, min(start + side, n)))
    return out


def _cut(picture: Array | Volume, box: list[slice], axis: int) -> Array:
    rows, columns = [bounds for i, bounds in enumerate(box) if i != axis]
    return np.asarray(picture[rows, columns], np.float64)


def _pictures(images: list[list[Array]]) -> list[list[str]]:
    """Of several volumes, each across z, y and x: what is across the same axis has the same grey values."""
    out: list[list[str]] = [[] for _ in images]
    for axis in range(3):
        values = np.concatenate([row[axis].ravel() for row in images])
        low, high = (float(v) for v in np.percentile(values, (0.5, 99.8)))
        for row, pictures in zip(images, out, strict=True):
            pictures.append(png_uri(row[axis], low, high))
    return out


def png_uri(image: Array, low: float, high: float) -> str:
    """A grey picture as a data URI; row 0 is at the top, as in an array."""
    span = high - low if high > low else 1.0
    grey = np.clip((image - low) * (255.0 / span), 0.0, 255.0).round().astype(np.uint8)
    data = imagecodecs.png_encode(np.ascontiguousarray(grey))
    return "data:image/png;base64," + base64.b64encode(data).decode()
