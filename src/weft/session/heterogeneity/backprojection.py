"""``weft backproject``: tilt images of any program in, a map in two halves with its FSC and a picture out."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from weft.errors import ItemError, RequestError
from weft.formats import mrc
from weft.formats.atomic import atomic_write_bytes
from weft.formats.tilt_particles import TiltParticles
from weft.particles.averaging import Average
from weft.particles.backprojection import Backprojection, BackprojectionSettings, batches, half_sets
from weft.particles.fsc import draw_fsc
from weft.session.averages import map_picture, write_fsc
from weft.session.heterogeneity.inputs import TiltImageFiles

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "BackprojectionResult",
    "backproject",
    "backprojection_figure",
    "read_mask",
    "write_backprojection",
]


@dataclass(frozen=True)
class BackprojectionResult:
    """What has been made.

    Attributes
    ----------
    average : Average
    contrast : float
        How much brighter than its surroundings the map was in the contrast of the images, −1 to 1.
    inverted : bool
        Whether it was inverted.
    pixel_size : float
        Å.
    images : int
        That are in it.
    failed : dict of str to str
        Particles whose images cannot be read, and why.
    seconds : float
        Reading and inserting.
    """

    average: Average
    contrast: float
    inverted: bool
    pixel_size: float
    images: int
    failed: dict[str, str]
    seconds: float


def backproject(
    particles: TiltParticles,
    settings: BackprojectionSettings | None = None,
    *,
    mask: torch.Tensor | None = None,
    invert: bool | None = None,
    seed: int = 0,
    device: str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> BackprojectionResult:
    """Reconstruct particles in two halves; a particle whose images cannot be read is left out.

    Parameters
    ----------
    particles : TiltParticles
    settings : BackprojectionSettings, optional
    mask : (n, n, n) float32, optional
        For the FSC; by default a soft sphere.
    invert : bool, optional
        Whether density is dark in the images; by default the map decides.
    seed : int
        Of the half-sets, where the file names none.
    device : str
    progress : callable, optional
        Takes how many particles are done, of how many.

    Raises
    ------
    RequestError
        The mask does not fit.
    ItemError
        There are no particles, or a half-set has none that can be read.
    """
    if len(particles) == 0 or particles.images == 0:
        raise ItemError(f"{particles.path}: there is no image to project back")
    if mask is not None and mask.shape != (particles.box,) * 3:
        raise RequestError(
            f"the mask has {' × '.join(map(str, mask.shape))} voxels where images have {particles.box} each "
            "way."
        )
    begin = time.perf_counter()
    half = half_sets(particles, seed)
    work = Backprojection(particles, half, settings, device)
    failed: dict[str, str] = {}
    done = images = 0
    for which, readable, stack in _read_ahead(particles, failed):
        if len(readable):
            work.add(readable, torch.from_numpy(stack))
        done += len(which)
        images += len(stack)
        if progress is not None:
            progress(done, len(particles))
    seconds = time.perf_counter() - begin
    if len(failed) == len(particles):
        raise ItemError(f"no particle can be read; the first: {next(iter(failed.values()))}")
    found, contrast = work.finish(mask, invert)
    inverted = contrast < 0.0 if invert is None else invert
    return BackprojectionResult(found, contrast, inverted, particles.pixel_size, images, failed, seconds)


_Batch = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]


def _read_ahead(particles: TiltParticles, failed: dict[str, str]) -> Iterator[_Batch]:
    """Batches of particles, those of them that can be read and their images; the next is read meanwhile."""
    files = TiltImageFiles(particles)
    size = particles.box

    def read(which: NDArray[np.int64]) -> _Batch:
        stacks: list[NDArray[np.float32]] = [np.empty((0, size, size), np.float32)]
        readable = []
        for i in which.tolist():
            try:
                stacks.append(files.read(i))
                readable.append(i)
            except (ItemError, OSError) as error:
                failed[particles.particle[i]] = str(error)
        return which, np.array(readable, np.int64), np.concatenate(stacks)

    with ThreadPoolExecutor(1) as pool:
        coming = None
        for which in batches(particles):
            ready, coming = coming, pool.submit(read, which)
            if ready is not None:
                yield ready.result()
        if coming is not None:
            yield coming.result()


def read_mask(path: Path, box: int) -> torch.Tensor:
    """A soft mask from a map, (box, box, box) float32.

    Raises
    ------
    RequestError
        Another size, values beyond 0 ... 1, or nothing inside.
    """
    values = np.ascontiguousarray(mrc.read(path)[0], np.float32)
    if values.shape != (box,) * 3:
        shape = " × ".join(map(str, values.shape))
        raise RequestError(f"{path}: the mask has {shape} voxels where images have {box} each way.")
    if not (np.isfinite(values).all() and values.min() >= -1e-3 and values.max() <= 1.0 + 1e-3):
        raise RequestError(f"{path}: a mask has values from 0 to 1.")
    if values.max() < 0.5:
        raise RequestError(f"{path}: there is nothing inside of this mask.")
    return torch.from_numpy(values)


# ------------------------------------------------------------------------------------------------- files


def write_backprojection(result: BackprojectionResult, output: Path) -> dict[str, Path]:
    """Write the map to `output`, and beside it both halves, the FSC and a picture.

    Returns
    -------
    dict of str to Path
        "map", "half1", "half2", "fsc", "picture".
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    found, pixel = result.average, result.pixel_size
    paths = {"map": output} | {
        name: output.with_name(f"{output.stem}_{name}.mrc") for name in ("half1", "half2")
    }
    for path, volume in zip(paths.values(), (found.map, *found.halves), strict=True):
        mrc.write(path, volume.cpu().numpy(), pixel, volume=True)
    paths["fsc"] = output.with_name(f"{output.stem}_fsc.star")
    write_fsc(found.fsc, paths["fsc"])
    paths["picture"] = output.with_suffix(".png")
    title = f"{sum(found.particles)} particles, {result.images} images"
    picture = io.BytesIO()
    backprojection_figure(found, title).savefig(picture, format="png", dpi=130)
    atomic_write_bytes(paths["picture"], picture.getvalue())
    return paths


def backprojection_figure(average: Average, title: str = "") -> Figure:
    """Central sections and projections of the map beside its FSC."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.0, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.3, 1.0))
    left.imshow(map_picture(average.map.cpu()), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    left.set_axis_off()
    left.set_title("central sections and projections along z, y, x", fontsize=10)
    draw_fsc(right, average.fsc, title)
    return figure
