"""`weft vae volumes-analyze`: how any set of volumes differs, by the principal components of their voxels."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from weft.errors import InputFileError, ItemError, RequestError
from weft.formats import mrc
from weft.formats.atomic import atomic_write_text
from weft.heterogeneity.volume_components import (
    VolumeComponents,
    density_mask,
    masked_voxels,
    volume_components,
)
from weft.settings import Settings, setting

__all__ = ["VolumeAnalysis", "VolumeAnalysisSettings", "analyze_volumes", "find_volumes"]

Volume = NDArray[np.float32]

#: Voxels with less weight are not analysed; as in masked_voxels.
_LEAST_WEIGHT = 0.05
#: Volumes along a component are shown to so many standard deviations of the scores, in so many steps.
_REACH, _STEPS = 2.0, 5


class VolumeAnalysisSettings(Settings):
    """How volumes are compared."""

    components: int = setting(5, "Principal components, at most.", ge=1, le=100)
    normalise: bool = setting(
        True,
        "Give every volume the same mean and standard deviation under the mask first: differences of "
        "brightness and contrast are no differences of structure.",
    )
    extend: float = setting(
        3.0, "Without --mask: how far the mask reaches beyond the density.", unit="px", ge=0.0, le=100.0
    )
    soft: float = setting(3.0, "Without --mask: width of its soft edge.", unit="px", ge=0.0, le=100.0)


@dataclass(frozen=True)
class VolumeAnalysis:
    """What was found.

    Attributes
    ----------
    files : list of Path
        The volumes, in the order of the scores.
    components : VolumeComponents
    output : Path
        The folder with ``mean.mrc``, ``pc*.mrc`` (the components), ``pc*_*.mrc`` (volumes along them),
        ``mask.mrc`` and ``components.csv`` (a line a volume).
    """

    files: list[Path]
    components: VolumeComponents
    output: Path


def find_volumes(inputs: Sequence[Path]) -> list[Path]:
    """Files, and what folders hold of ``.mrc`` and ``.map`` files, each once.

    Raises
    ------
    RequestError
        Something is not there, or there are fewer than two.
    """
    out: list[Path] = []
    for one in inputs:
        if one.is_dir():
            out += sorted(p for p in one.iterdir() if p.suffix in {".mrc", ".map"} and p.is_file())
        elif one.is_file():
            out.append(one)
        else:
            raise RequestError(f"{one}: there is no such file or folder of volumes.")
    out = list(dict.fromkeys(out))
    if len(out) < 2:
        raise RequestError(f"components need at least two volumes; {len(out)} found.")
    return out


def analyze_volumes(
    files: Sequence[Path],
    output: Path,
    settings: VolumeAnalysisSettings | None = None,
    mask: Path | None = None,
) -> VolumeAnalysis:
    """Principal components of the voxels of volumes under a mask.

    Volumes are read one by one, and only their voxels under the mask are kept.

    Parameters
    ----------
    files : sequence of Path
        Of the same box and pixel size.
    output : Path
        A folder.
    settings : VolumeAnalysisSettings, optional
    mask : Path, optional
        Soft, between 0 and 1; by default where any of the volumes has density or where they differ.

    Raises
    ------
    InputFileError
        A file is no volume, or of another size than the first.
    FitError
        The volumes are all the same.
    """
    settings = settings or VolumeAnalysisSettings()
    first, pixel_size = _volume(files[0])
    if mask is None:
        weight = density_mask((_like(f, first) for f in files), settings.extend, settings.soft)
    else:
        weight = np.clip(_like(mask, first), 0.0, 1.0)
        if not (weight > _LEAST_WEIGHT).any():
            raise InputFileError(mask, "the mask lets nothing through; it must be 1 inside")
    inside = weight > _LEAST_WEIGHT
    voxels = np.empty((len(files), int(inside.sum())), np.float32)
    for i, file in enumerate(files):
        try:
            voxels[i] = masked_voxels(_like(file, first), weight, normalise=settings.normalise)
        except InputFileError:
            raise
        except ItemError as error:
            raise InputFileError(file, str(error)) from error
    found = volume_components(voxels, settings.components)
    output.mkdir(parents=True, exist_ok=True)

    def write(name: str, values: NDArray[np.float64]) -> None:
        volume = np.zeros(first.shape, np.float32)
        volume[inside] = values
        mrc.write(output / name, volume, pixel_size)

    mrc.write(output / "mask.mrc", weight, pixel_size)
    write("mean.mrc", found.mean)
    for i, axis in enumerate(found.axes):
        write(f"pc{i + 1}.mrc", axis)
        spread = float(np.sqrt(found.variance[i]))
        for j, place in enumerate(np.linspace(-_REACH, _REACH, _STEPS)):
            write(f"pc{i + 1}_{j + 1:02d}.mrc", found.mean + place * spread * axis)
    atomic_write_text(output / "components.csv", _table(files, found))
    return VolumeAnalysis(list(files), found, output)


def _table(files: Sequence[Path], found: VolumeComponents) -> str:
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    out.writerow(["volume", *(f"pc{i + 1}" for i in range(len(found.axes)))])
    out.writerow(["explained", *(f"{value:.6g}" for value in found.explained)])
    for file, scores in zip(files, found.scores, strict=True):
        out.writerow([str(file), *(f"{value:.6g}" for value in scores)])
    return text.getvalue()


def _volume(path: Path) -> tuple[Volume, float]:
    data, info = mrc.read(path)
    if data.ndim != 3 or data.dtype.kind == "c":
        raise InputFileError(path, "it is not a volume of real numbers")
    sizes = info.voxel_size
    return np.asarray(data, np.float32), float(sizes[0]) if sizes is not None and sizes[0] > 0 else 1.0


def _like(path: Path, first: Volume) -> Volume:
    volume = _volume(path)[0]
    if volume.shape != first.shape:
        there, here = (" × ".join(map(str, shape)) for shape in (volume.shape, first.shape))
        raise InputFileError(
            path, f"it has {there} voxels and the first volume {here}; they must be the same"
        )
    return volume
