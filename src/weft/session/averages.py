"""``weft average``: particles in, a map in two halves with its FSC, pictures and refined poses out."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import imagecodecs
import numpy as np
import torch
from numpy.typing import NDArray

from weft.errors import RequestError
from weft.formats import mrc
from weft.formats.atomic import atomic_write_bytes
from weft.formats.star import Table, write_star
from weft.formats.tomo_particles import TomoParticles, write_tomo_particles
from weft.particles.alignment import AlignmentSettings, Iteration, iterate
from weft.particles.averaging import Average, AveragingSettings, fsc_mask
from weft.particles.cutting import ImageSeriesSettings
from weft.particles.fsc import FSC, fsc_figure
from weft.particles.pose_search import Poses
from weft.session.particle_cutting import cut_from_session
from weft.session.particle_images import ParticleImages
from weft.session.particle_lists import searched_template
from weft.settings import setting

if TYPE_CHECKING:
    from weft.session.session import Session

__all__ = [
    "AverageResult",
    "AverageSettings",
    "average_particles",
    "cut_images",
    "map_picture",
    "with_template",
    "write_average",
    "write_fsc",
]

#: Pixels across the diameter, and the box in diameters, where nothing is said: a look within minutes.
_ACROSS, _BOXES = 36.0, 1.8
#: The mask of the FSC is wider than the particle.
_WIDER = 1.1
_SCALE = 3  # screen pixels of a voxel in pictures
_GAP = 4


class AverageSettings(AveragingSettings, AlignmentSettings):
    """What `weft average` can be told."""

    box: int = setting(
        0,
        "Side of the box that images are cut in; even; 0 is 1.8 particle diameters.",
        unit="px",
        ge=0,
        le=1024,
    )
    pixel_size: float = setting(
        0.0,
        "Pixel size of the images that are cut; 0 is a 36th of the diameter, but no less than the tilt "
        "images'.",
        unit="Å",
        ge=0.0,
        le=200.0,
    )


@dataclass(frozen=True)
class AverageResult:
    """What has been made.

    Attributes
    ----------
    average : Average
    particles : TomoParticles
        With refined places, orientations and scores.
    half : (n,) int array
        0 or 1.
    pixel_size : float
        Å.
    rounds : list of Iteration
    """

    average: Average
    particles: TomoParticles
    half: NDArray[np.int64]
    pixel_size: float
    rounds: list[Iteration]


def with_template(session: Session, stem: str, settings: AverageSettings) -> AverageSettings:
    """Settings filled in with what searches know of a template: its diameter and symmetry."""
    template, given = searched_template(session, stem), settings.model_fields_set
    if template is None:
        return settings
    changes: dict[str, object] = {}
    if "diameter" not in given and template.diameter > 0.0:
        changes["diameter"] = template.diameter
    if "symmetry" not in given:
        changes["symmetry"] = template.symmetry
    return settings.model_copy(update=changes)


def cut_images(
    session: Session,
    particles: TomoParticles,
    settings: AverageSettings,
    progress: Callable[[int, int], None] | None = None,
) -> ParticleImages:
    """Cut the images, in a box that suits the diameter unless the settings say otherwise.

    Raises
    ------
    RequestError
        Neither the diameter nor box and pixel size are known.
    """
    names = list(dict.fromkeys(particles.tomogram))
    known = session.series
    coarsest = max((known[name].alignment.pixel_size for name in names if name in known), default=0.0)
    diameter = settings.diameter
    if not diameter and not (settings.box and settings.pixel_size):
        raise RequestError("the particle's size is not known: give --diameter, or --box and --pixel-size.")
    pixel = settings.pixel_size or max(coarsest, diameter / _ACROSS)
    box = settings.box or 2 * math.ceil(0.5 * _BOXES * diameter / pixel)
    cutting = ImageSeriesSettings(
        box=box, pixel_size=pixel, diameter=diameter, dose_weighting=settings.dose_weighting
    )
    return cut_from_session(session, particles, cutting, progress)


def average_particles(
    images: ParticleImages,
    settings: AverageSettings,
    *,
    mask: torch.Tensor | None = None,
    device: str = "cpu",
    report: Callable[[Iteration], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> AverageResult:
    """Average, after as many rounds of alignment as the settings say.

    Raises
    ------
    ItemError
        Nothing to average or to align against; the mask does not fit.
    """
    series = images.series
    size, pixel = series.images.shape[-1], series.pixel_size
    if not settings.mask_diameter and settings.diameter:
        # a soft edge must fit between the mask and the box
        widest = (size - 4.0) * pixel
        settings = settings.model_copy(update={"mask_diameter": min(_WIDER * settings.diameter, widest)})
    if device != "cpu":
        there: dict[str, Any] = {name: value.to(device) for name, value in series.tensors.items()}
        series = replace(series, **there)
    rounds: list[Iteration] = []

    def tell(done: Iteration) -> None:
        rounds.append(done)
        if report is not None:
            report(done)

    if mask is None:
        mask = fsc_mask(size, pixel, settings)
    elif mask.shape != (size,) * 3:
        raise RequestError(f"the mask has {tuple(mask.shape)} voxels where the box has {size} each way.")
    before = Poses.given(images.euler)
    found, after = iterate(series, before, settings, settings, mask=mask, report=tell, progress=progress)
    listed = images.particles
    score = after.score.numpy()
    particles = replace(
        listed,
        xyz=listed.xyz + after.offset.numpy(),
        euler=after.euler.numpy(),
        # scores of a search that was not made remain those of the candidates
        score=listed.score if np.isnan(score).all() else score,
    )
    return AverageResult(found, particles, series.half.cpu().numpy(), pixel, rounds)


# ------------------------------------------------------------------------------------------------- files


def write_average(result: AverageResult, folder: Path) -> dict[str, Path]:
    """Write maps, FSC, pictures and particles.

    Returns
    -------
    dict of str to Path
    """
    folder.mkdir(parents=True, exist_ok=True)
    found, pixel = result.average, result.pixel_size
    paths = {name: folder / f"{name}.mrc" for name in ("half1", "half2", "map")}
    for path, volume in zip(paths.values(), (*found.halves, found.map), strict=True):
        mrc.write(path, volume.cpu().numpy(), pixel, volume=True)
    paths |= {"fsc": folder / "fsc.star", "fsc_figure": folder / "fsc.png"}
    write_fsc(found.fsc, paths["fsc"])
    figure = io.BytesIO()
    count = sum(found.particles)
    fsc_figure(found.fsc, f"{count} particles").savefig(figure, format="png", dpi=130)
    atomic_write_bytes(paths["fsc_figure"], figure.getvalue())
    paths["slices"] = folder / "slices.png"
    picture = imagecodecs.png_encode(map_picture(found.map.cpu()))
    atomic_write_bytes(paths["slices"], bytes(picture))
    paths["particles"] = folder / "particles.star"
    write_tomo_particles(
        paths["particles"], result.particles, "relion5", extra={"rlnRandomSubset": result.half + 1}
    )
    return paths


def write_fsc(fsc: FSC, path: Path) -> None:
    """Write the table of RELION's postprocess.star."""
    k = fsc.k.numpy()
    general = {
        "rlnFinalResolution": [_plain(fsc.resolution())],
        "rlnRandomiseFrom": [_plain(fsc.randomised_from)],
    }
    columns = {
        "rlnSpectralIndex": np.arange(len(k)),
        "rlnResolution": k,
        "rlnAngstromResolution": np.concatenate([[999.0], 1.0 / k[1:]]),
        "rlnFourierShellCorrelationCorrected": fsc.corrected.numpy(),
        "rlnFourierShellCorrelationUnmaskedMaps": fsc.unmasked.numpy(),
        "rlnFourierShellCorrelationMaskedMaps": fsc.masked.numpy(),
        "rlnCorrectedFourierShellCorrelationPhaseRandomizedMaskedMaps": fsc.randomised.numpy(),
    }
    write_star(path, {"general": Table(dict(general), loop=False), "fsc": Table(dict(columns))})


def _plain(value: float) -> float:
    return value if math.isfinite(value) else 999.0


def map_picture(volume: torch.Tensor) -> NDArray[np.uint8]:
    """Central sections above, projections below: along z, y and x."""
    n = len(volume)
    middle = n // 2
    sections = (volume[middle], volume[:, middle], volume[:, :, middle])
    projections = tuple(volume.mean(axis) for axis in range(3))
    side = n * _SCALE
    out = np.full((2 * side + _GAP, 3 * side + 2 * _GAP), 255, np.uint8)
    for row, planes in enumerate((sections, projections)):
        values = torch.stack(planes)
        low, high = (float(np.quantile(values.numpy(), q)) for q in (0.01, 0.999))
        grey = ((values - low) / max(high - low, 1e-12)).clamp(0.0, 1.0) * 255.0
        for column, plane in enumerate(grey.round().to(torch.uint8).numpy()):
            large = plane.repeat(_SCALE, 0).repeat(_SCALE, 1)
            y, x = row * (side + _GAP), column * (side + _GAP)
            out[y : y + side, x : x + side] = large
    return out
