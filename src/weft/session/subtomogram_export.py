"""``weft export subtomograms``: particles cut from tilt images, for averaging and heterogeneity analysis.

Which particles is for :mod:`weft.session.particle_lists` to say; what is written is described by
:mod:`weft.session.particle_files`, a layout each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from weft.errors import ItemError, RequestError
from weft.formats import mrc
from weft.formats.tomo_particles import TomoParticles
from weft.particles.cutting import ImageSeriesSettings, image_series_batches, tilt_weights, visible_tilts
from weft.particles.image_series import ImageSeries
from weft.particles.subtomograms import SubTomogramMaker
from weft.session.particle_cutting import contrast_of, distortion_of, half_sets, mapped_stack
from weft.session.particle_export_settings import ParticleExportSettings
from weft.session.particle_files import Written, particle_files
from weft.session.particle_report import ParticleReport
from weft.session.tomogram_export import AlignedSeries, SeriesExport, aligned_series, check_inside
from weft.tilts.images import TiltImages

if TYPE_CHECKING:
    from weft.session.session import Session

__all__ = ["ParticleExportSettings", "export_subtomograms"]

#: Images are brought to the output's pixel size as a whole first where that makes them so much smaller.
_WHOLE = 1.5
_NAMED = 6  # of the names that a message lists


def export_subtomograms(
    session: Session,
    output: str | Path,
    particles: TomoParticles,
    settings: ParticleExportSettings | None = None,
    *,
    only: str | None = None,
    project: str | Path | None = None,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> ParticleReport:
    """Cut particles out of the session's tilt images and write them with their tables.

    Parameters
    ----------
    session : Session
    output : path-like
        A folder; made where it is missing.
    particles : TomoParticles
        Also of tomograms that are not exported.
    settings : ParticleExportSettings, optional
    only : str, optional
        Series by a shell pattern on their names.
    project : path-like, optional
        Where RELION is started, from which names of files count; by default `output`.
    device : torch device
    progress : callable, optional
        Takes how many particles are done, and how many there are.

    Raises
    ------
    RequestError
        A kind and a flavour that do not go together, an odd box, a particle larger than its box, an output
        outside the project, particles of tomograms of which the session has none.
    """
    settings = settings or ParticleExportSettings()
    cutting, program = settings.cutting, settings.program
    if cutting.particle_diameter > settings.box * settings.pixel_size:
        raise RequestError(
            f"a particle of {cutting.particle_diameter:g} Å does not fit into a box of {settings.box} × "
            f"{settings.pixel_size:g} Å; take a larger --box."
        )
    out = Path(output).absolute()
    base = out if project is None else Path(project).absolute()
    check_inside(out, base)
    states = SeriesExport()
    ready = {item.name: item for item in aligned_series(session, only, states)}
    listed = set(particles.tomogram)
    report = ParticleReport()
    report.problems.extend(p for p in states.problems if p.split(":", 1)[0] in listed)
    _strangers(session, particles, only, report)
    tasks = []
    for name, item in ready.items():
        mine = np.array([i for i, other in enumerate(particles.tomogram) if other == name], dtype=int)
        if not len(mine):
            continue
        if not item.has_ctf:
            report.problems.append(f"{name}: its CTF is not known yet; `weft tilts ctf` fits it")
            continue
        tasks.append((item, _usable(item, particles, mine, cutting, settings.min_tilts, report)))
    total, done = sum(len(chosen) for _, chosen in tasks), 0
    files = particle_files(program, settings.kind, out, base, cutting, settings.volumes)
    for number, (item, chosen) in enumerate(tasks):
        if not len(chosen):
            continue
        try:
            for first, series, volumes in _made(item, particles.select(chosen), settings, number, device):
                files.write(item, series, volumes, particles.select(chosen[first : first + len(series)]))
                done += len(series)
                if progress is not None:
                    progress(done, total)
        except ItemError as error:
            report.problems.append(f"{item.name}: {error}")
            files.forget(item.name)
            continue
        report.written[item.name] = len(chosen)
    if not report.written:
        return report
    weights = {item.name: _weights(item, cutting) for item, _ in tasks if item.name in report.written}
    written = Written([item for item, _ in tasks if item.name in report.written], weights)
    report.path = files.finish(written)
    return report


def _strangers(session: Session, particles: TomoParticles, only: str | None, report: ParticleReport) -> None:
    """Particles of tomograms that the session does not know."""
    names = {series.name for series in session.series.values()}
    strange = [name for name in dict.fromkeys(particles.tomogram) if name not in names]
    if not strange:
        return
    count = sum(name not in names for name in particles.tomogram)
    shown = ", ".join(strange[:_NAMED]) + (", ..." if len(strange) > _NAMED else "")
    if count == len(particles):
        have = ", ".join(sorted(names)[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
        raise RequestError(
            f"the particles are in tomograms that the session does not have ({shown}); it has "
            f"{have or 'none'}."
        )
    report.skipped["in tomograms that the session does not have"] = count
    report.notes.append(f"the session has no tomograms {shown}: {count} particles are left out")


def _places(item: AlignedSeries, xyz: NDArray[np.float64]) -> torch.Tensor:
    """From the centre of the volume's first voxel, Å."""
    return torch.as_tensor(xyz) + 0.5 * item.geometry.volume_size


def _usable(
    item: AlignedSeries,
    particles: TomoParticles,
    mine: NDArray[np.int64],
    cutting: ImageSeriesSettings,
    min_tilts: int,
    report: ParticleReport,
) -> NDArray[np.int64]:
    """Those that can be cut out; why others cannot is counted in the report."""

    def leave(keep: NDArray[np.bool_], why: str) -> None:
        nonlocal mine
        lost = int((~keep).sum())
        if lost:
            report.leave_out({why: lost})
            mine = mine[keep]

    numbers = np.concatenate([particles.xyz[mine], particles.euler[mine]], axis=1)
    leave(np.isfinite(numbers).all(1), "with coordinates or angles that are not numbers")
    at = _places(item, particles.xyz[mine])
    inside = ((at >= 0.0) & (at <= item.geometry.volume_size)).all(1)
    leave(inside.numpy(), "outside their tomogram")
    places = item.geometry.project(_places(item, particles.xyz[mine]))
    seen = visible_tilts(places, item.geometry.image_size, cutting.particle_diameter)
    leave((seen.sum(1) >= min_tilts).numpy(), f"shown whole by fewer than {min_tilts} tilt images")
    return mine


def _means(item: AlignedSeries) -> torch.Tensor:
    """Electrons in every image of the stack."""
    with mrc.MrcStack(item.series.paths["stack"]) as stack:
        return torch.tensor([float(np.mean(stack.read(t), dtype=np.float64)) for t in range(len(stack))])


def _weights(item: AlignedSeries, cutting: ImageSeriesSettings) -> NDArray[np.float64]:
    means = _means(item) if cutting.tilt_weighting == "counts" else None
    return np.asarray(
        tilt_weights(item.geometry, contrast_of(item.series, item.session), cutting, means).numpy()
    )


def _images(
    item: AlignedSeries, pixel_size: float, device: torch.device | str
) -> tuple[torch.Tensor, tuple[float, float]]:
    """The tilt images, reduced where the output is coarser, else mapped from their file."""
    size, stack = item.pixel_size, item.series.paths["stack"]
    if pixel_size >= _WHOLE * size or torch.device(device).type != "cpu":
        with mrc.MrcStack(stack) as file:
            sections = (torch.from_numpy(np.asarray(file.read(t), np.float32)) for t in range(len(file)))
            found = TiltImages.prepare(sections, size, pixel_size, device)
        return found.images, found.pixel_size
    return mapped_stack(stack), (size, size)


def _made(
    item: AlignedSeries,
    particles: TomoParticles,
    settings: ParticleExportSettings,
    group: int,
    device: torch.device | str,
) -> Iterator[tuple[int, ImageSeries, Any]]:
    """(first particle, its images and those of the next ones, their sub-volumes or None)."""
    cutting = settings.cutting
    images, pixel = _images(item, cutting.pixel_size, device)
    contrast = contrast_of(item.series, item.session)
    distortion = distortion_of(item.session)
    maker = None
    if settings.kind == "3d":
        patch = cutting.padded(cutting.box)
        maker = SubTomogramMaker.of(
            *(item.geometry.matrices, cutting.box, patch, cutting.pixel_size, cutting.particle_diameter),
            settings=settings.volumes,
            dose_model=cutting.dose_weighting,
            device=device,
        )
    batches = image_series_batches(
        *(images, pixel, item.geometry, contrast),
        *(_places(item, particles.xyz), torch.as_tensor(particles.euler), cutting),
        means=_means(item) if cutting.tilt_weighting == "counts" else None,
        half=half_sets(particles),
        group=group,
        distortion=distortion,
        uncropped=maker is not None,
    )
    first = 0
    for series in batches:
        yield first, series, None if maker is None else maker.reconstruct(series)
        first += len(series)
