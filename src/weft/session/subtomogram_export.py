"""``weft export subtomograms``: particles cut from tilt images, for averaging and heterogeneity analysis.

Particles come from `weft candidates` or from another program's list; what is written is described by
:mod:`weft.session.export_particle_files`, a flavour each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from weft.errors import ItemError, RequestError
from weft.formats import mrc
from weft.formats.tomo_particles import TomoParticles, join_particles, read_tomo_particles
from weft.particles.cutting import (
    ImageSeriesSettings,
    image_series_batches,
    tilt_weights,
    visible_tilts,
)
from weft.particles.image_series import ImageSeries
from weft.particles.subtomograms import SubTomogramMaker, SubTomogramSettings
from weft.session.export_particle_files import Written, particle_files
from weft.session.tomogram_export import AlignedSeries, SeriesExport, aligned_series, check_inside
from weft.settings import Settings, setting
from weft.tilts.gridding import TiltContrast
from weft.tilts.images import TiltImages

if TYPE_CHECKING:
    from weft.session.session import Session

__all__ = ["ParticleExportSettings", "SubtomogramReport", "export_subtomograms", "find_particles"]

Kind = Literal["3d", "2d"]
ParticleFlavour = Literal["relion5", "warp", "relion3", "dynamo"]
#: What each kind can be written for; the first is taken where nothing is said.
_FLAVOURS: dict[str, tuple[ParticleFlavour, ...]] = {
    "3d": ("relion3", "warp", "dynamo"),
    "2d": ("relion5", "warp", "relion3"),
}
#: Images are brought to the output's pixel size as a whole first where that makes them so much smaller.
_WHOLE = 1.5
_NAMED = 6  # of the names that a message lists


class ParticleExportSettings(Settings):
    """What is written for the particles of tomograms, and how."""

    kind: Kind = setting("3d", "3d: a sub-volume for each particle; 2d: a stack of its tilt images.")
    flavour: ParticleFlavour | None = setting(
        None,
        "The program that goes on: relion3, warp or dynamo for 3d (relion3 by default); relion5, warp or "
        "relion3 (a row for every image) for 2d (relion5 by default).",
    )
    box: int = setting(64, "Side of the box; even.", unit="px", ge=8, le=2048)
    pixel_size: float = setting(8.0, "Pixel size of what is written.", unit="Å", gt=0.1, le=200.0)
    diameter: float = setting(
        0.0,
        "Diameter of the particle: what lies outside is background. 0 is three quarters of the box.",
        unit="Å",
        ge=0.0,
        le=20000.0,
    )
    premultiply: bool | None = setting(
        None,
        "Multiply by the CTF and the weights of dose and tilt. By default what the program expects: yes for "
        "2d of relion5 and warp, else no.",
    )
    dose_weighting: Literal["warp", "grant", "none"] | None = setting(
        None,
        "What the dose leaves of the signal: a B-factor of 4 Å² for each e/Å² (warp), the critical exposure "
        "(grant), or all. By default grant for relion5, which supposes it, else warp.",
    )
    tilt_weighting: Literal["cosine", "counts", "none"] = setting(
        "cosine",
        "What the tilt leaves of the signal: the cosine of its angle, the square root of the electrons that "
        "came through, or all of it.",
    )
    weighting: Literal["white", "amplitude"] = setting(
        "white",
        "3d: white makes noise of the same strength at all places of Fourier space, which is what RELION "
        "supposes; amplitude divides by the sum of |CTF| weights as Warp does.",
    )
    min_tilts: int = setting(1, "Leave out particles that fewer tilt images show.", ge=1, le=1000)
    padding: float = setting(
        2.0, "Particles are cut out so many times as large as their box, and cropped last.", ge=1.0, le=4.0
    )

    @property
    def program(self) -> ParticleFlavour:
        """The flavour, or the usual one of this kind.

        Raises
        ------
        RequestError
            A flavour that this kind has not.
        """
        known = _FLAVOURS[self.kind]
        if self.flavour is None:
            return known[0]
        if self.flavour not in known:
            raise RequestError(
                f"{self.flavour} takes no {self.kind} particles from here: --kind {self.kind} is written for "
                f"{', '.join(known)}."
            )
        return self.flavour

    @property
    def cutting(self) -> ImageSeriesSettings:
        """How images are cut.

        Raises
        ------
        RequestError
            An odd box.
        """
        if self.box % 2:
            raise RequestError(f"--box {self.box}: a box has an even number of pixels.")
        usual = self.kind == "2d" and self.program != "relion3"
        dose = self.dose_weighting or ("grant" if self.program == "relion5" else "warp")
        return ImageSeriesSettings(
            box=self.box,
            pixel_size=self.pixel_size,
            diameter=self.diameter,
            premultiply=self.kind == "2d" and (usual if self.premultiply is None else self.premultiply),
            dose_weighting=dose,
            tilt_weighting=self.tilt_weighting,
            padding=self.padding,
        )

    @property
    def volumes(self) -> SubTomogramSettings:
        """How sub-volumes are reconstructed."""
        if self.program == "dynamo":  # which takes no CTF volumes
            return SubTomogramSettings(weighting="filtered")
        return SubTomogramSettings(weighting="premultiplied" if self.premultiply else self.weighting)


@dataclass(frozen=True)
class SubtomogramReport:
    """What was written.

    Attributes
    ----------
    path : Path or None
        The table of particles; None where there are none.
    written : dict of str to int
        Tomogram → particles.
    skipped : dict of str to int
        Why particles were left out → how many.
    problems, notes : list of str
        Series that were not written, and why; what else is worth knowing.
    """

    path: Path | None = None
    written: dict[str, int] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        """Particles that were written."""
        return sum(self.written.values())

    @property
    def exit_code(self) -> int:
        """0, or 1 where a series failed or nothing was written."""
        return 1 if self.problems or not self.count else 0


class _Sizes(dict[str, tuple[float, float, float]]):
    """Volumes' sizes by name; places in tomograms that are not there are no numbers, and found out later."""

    def __contains__(self, key: object) -> bool:
        return True

    def __missing__(self, key: str) -> tuple[float, float, float]:
        return (0.0, 0.0, 0.0)


def find_particles(
    session: Session,
    *,
    template: str | None = None,
    particles: str | Path | None = None,
    only: str | None = None,
    pixel_size: float | None = None,
) -> TomoParticles:
    """The particles of a session: candidates of a template, or another program's list.

    Parameters
    ----------
    session : Session
    template : str, optional
        Stem of the template whose candidates are meant; not needed where there is only one.
    particles : path-like, optional
        A STAR file of RELION 3, 4, 5, WarpTools, pytom-match-pick ..., or Dynamo's table.
    only : str, optional
        Series by a shell pattern on their names.
    pixel_size : float, optional
        Å: of coordinates in pixels, where their file does not say it.

    Raises
    ------
    RequestError
        No candidates, candidates of several templates, or both kinds of source.
    """
    from fnmatch import fnmatchcase

    known = {s.name: s for s in session.series.values() if only is None or fnmatchcase(s.name, only)}
    sizes = _Sizes()
    for name, series in known.items():
        done = series.record.steps.get("align") if series.record else None
        if done is not None and done.status == "done":
            sizes[name] = series.volume_size
    if particles is not None:
        if template is not None:
            raise RequestError("give --template or --particles, not both.")
        return read_tomo_particles(particles, pixel_size=pixel_size, volume_size=sizes)
    folder = session.root / "matching"
    found: dict[str, list[Path]] = {}
    for name in known:
        for path in sorted(folder.glob(f"{name}_*_candidates.star")):
            stem = path.name.removeprefix(f"{name}_").removesuffix("_candidates.star")
            # another series' name may begin with this one's
            if not any(other != name and other.startswith(name) and path.name.startswith(f"{other}_")
                       for other in known):  # fmt: skip
                found.setdefault(stem, []).append(path)
    hint = "run `weft match` and `weft candidates`, or give --particles FILE"
    have = ", ".join(found)
    if template is not None:
        template = Path(template).stem if template.endswith((".mrc", ".map")) else template
        if template not in found:
            raise RequestError(
                f"{folder} has no candidates of a template {template!r}, only: {have or 'none'}; {hint}."
            )
    elif not found:
        raise RequestError(f"{folder} has no candidates; {hint}.")
    elif len(found) > 1:
        raise RequestError(f"there are candidates of several templates, {have}: choose one with --template.")
    files = found[template or next(iter(found))]
    return join_particles([read_tomo_particles(path, volume_size=sizes) for path in files])


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
) -> SubtomogramReport:
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
    report = SubtomogramReport()
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
    return replace(report, path=files.finish(written))


def _strangers(
    session: Session, particles: TomoParticles, only: str | None, report: SubtomogramReport
) -> None:
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
    report: SubtomogramReport,
) -> NDArray[np.int64]:
    """Those that can be cut out; why others cannot is counted in the report."""

    def leave(keep: NDArray[np.bool_], why: str) -> None:
        nonlocal mine
        lost = int((~keep).sum())
        if lost:
            report.skipped[why] = report.skipped.get(why, 0) + lost
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


def _contrast(item: AlignedSeries) -> TiltContrast:
    ctf = item.series.ctf
    return TiltContrast.of(
        item.session.settings.input.optics(),
        len(item.tilts),
        dose=[tilt["dose"] for tilt in item.tilts],
        astigmatism=ctf.delta,
        angle=ctf.angle,
        phase_shift=ctf.phase,
    )


def _means(item: AlignedSeries) -> torch.Tensor:
    """Electrons in every image of the stack."""
    with mrc.MrcStack(_stack(item)) as stack:
        return torch.tensor([float(np.mean(stack.read(t), dtype=np.float64)) for t in range(len(stack))])


def _weights(item: AlignedSeries, cutting: ImageSeriesSettings) -> NDArray[np.float64]:
    means = _means(item) if cutting.tilt_weighting == "counts" else None
    return np.asarray(tilt_weights(item.geometry, _contrast(item), cutting, means).numpy())


def _stack(item: AlignedSeries) -> Path:
    return item.session.root / item.record.steps["stack"].outputs["stack"]


def _images(
    item: AlignedSeries, pixel_size: float, device: torch.device | str
) -> tuple[torch.Tensor, tuple[float, float]]:
    """The tilt images, reduced where the output is coarser, else mapped from their file."""
    size = item.pixel_size
    if pixel_size >= _WHOLE * size or torch.device(device).type != "cpu":
        with mrc.MrcStack(_stack(item)) as stack:
            sections = (torch.from_numpy(np.asarray(stack.read(t), np.float32)) for t in range(len(stack)))
            found = TiltImages.prepare(sections, size, pixel_size, device)
        return found.images, found.pixel_size
    values, info = mrc.read(_stack(item), mmap=True)
    if values.dtype == np.float32 and values.dtype.isnative and values.ndim == 3:
        # mapped once more as private: torch wants an array that may be written to
        private = np.memmap(str(_stack(item)), np.float32, "c", info.data_offset, info.shape)
        return torch.from_numpy(private), (size, size)
    return torch.from_numpy(np.array(values, np.float32).reshape(info.shape)), (size, size)


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
    contrast = _contrast(item)
    distortion = _distortion(item)
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
        half=_halves(particles),
        group=group,
        distortion=distortion,
        uncropped=maker is not None,
    )
    first = 0
    for series in batches:
        yield first, series, None if maker is None else maker.reconstruct(series)
        first += len(series)


def _distortion(item: AlignedSeries) -> torch.Tensor | None:
    """Anisotropic magnification that the tomograms were corrected for."""
    from weft.tilts.reconstruction import ReconstructionSettings, magnification

    chosen = item.session.settings.get(ReconstructionSettings)
    return magnification(chosen.anisotropy, chosen.anisotropy_angle) if chosen.anisotropy else None


def _halves(particles: TomoParticles) -> torch.Tensor:
    """Half-sets that the list gives, or every second particle."""
    given: Sequence[Any] | None = particles.extra.get("rlnRandomSubset")
    if given is not None:
        numbers = [int(float(value)) for value in given]
        if set(numbers) <= {1, 2}:
            return torch.tensor(numbers) - 1
    return torch.arange(len(particles)) % 2
