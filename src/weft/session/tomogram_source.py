"""What a search for a structure needs to know about a tomogram: of a session, or of any other program.

docs/howto/foreign-tomograms.md tells how the specimen lies in other programs' volumes, and what the hand of
the defocus means there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from weft.errors import FormatError, RequestError, SessionError
from weft.formats import mrc
from weft.physics.dose import DoseWeighting
from weft.physics.geometry import TiltGeometry
from weft.physics.optics import Optics
from weft.session.alignment_reading import mirrored
from weft.session.foreign_exposure import ctfs_of, dose_of, optics_of
from weft.session.foreign_settings import ForeignTomogramSettings
from weft.session.foreign_tilts import ForeignTilts, read_tilts, tilts_of_angles
from weft.session.steps.stack import used_tilts
from weft.session.tilt_contrast import stack_contrast
from weft.tilts.gridding import TiltContrast
from weft.tilts.images import TiltImages
from weft.tilts.reconstruction import ReconstructionSettings
from weft.tilts.volumes import VolumeGrid

if TYPE_CHECKING:
    from weft.session.tilt_item import TiltSeries

__all__ = [
    "ForeignTomogramSettings",
    "TomogramMethod",
    "TomogramSource",
    "foreign_tomogram",
    "session_tomogram",
]

TomogramMethod = Literal["power", "amplitude", "uncorrected", "flipped"]
Numbers = NDArray[np.float64]

#: Voxel sizes that differ by less than this fraction are one.
_SAME = 0.01
#: A header's voxel size that nobody has set.
_UNSET = (0.0, 1.0)


@dataclass(frozen=True)
class TomogramSource:
    """A tomogram, where it comes from, and what became of the specimen's signal in it.

    Attributes
    ----------
    name : str
        rlnTomoName.
    path : Path
        Of the map.
    voxel_size : float
        Å.
    shape : (int, int, int)
        z, y, x of the map.
    origin : (float, float, float)
        x, y, z, Å: its first voxel from the first voxel of the full volume.
    geometry : TiltGeometry
        Of the tilts that it was made from; `volume_size` is that of the full volume. With hand 0 the
        defocus does not depend on the place.
    contrast : TiltContrast
        In the weight of each tilt is what the reconstruction made of it.
    method : str
        What the reconstruction did about the CTF: its images were multiplied by it and divided by the sum
        of CTF² ("power") or of |CTF| ("amplitude"); nothing ("uncorrected"); phases were flipped by one
        CTF a tilt ("flipped").
    dose_weighted : bool
        Whether late images were weighted down before or while reconstructing.
    image_pixel_size : float
        Å, of the tilt images; 0 if unknown.
    has_ctf : bool
        Whether the defocus is known.
    density_positive : bool
        Whether dense matter has high values.
    dose_model : "warp", "grant" or "none"
        How signal is lost with dose; "none" where the dose is not known.
    cosine : bool
        Whether tilted images were weighted down by the cosine of their angle.
    regularisation : float
        What was added to the sum that was divided by, in units of one perfect image.
    notes : tuple of str
        What people should know about how this was found out.
    beads : tuple of (x, y, z, radius)
        Gold beads that the alignment has followed: Å from the full volume's first voxel.
    """

    name: str
    path: Path
    voxel_size: float
    shape: tuple[int, int, int]
    origin: tuple[float, float, float]
    geometry: TiltGeometry
    contrast: TiltContrast
    method: TomogramMethod
    dose_weighted: bool
    image_pixel_size: float
    has_ctf: bool
    density_positive: bool
    dose_model: DoseWeighting = "warp"
    cosine: bool = False
    regularisation: float = 0.1
    notes: tuple[str, ...] = ()
    beads: tuple[tuple[float, ...], ...] = ()

    @property
    def size(self) -> tuple[float, float, float]:
        """x, y, z of the map, Å."""
        z, y, x = (n * self.voxel_size for n in self.shape)
        return x, y, z


# ------------------------------------------------------------------------------------------- of a session


def session_tomogram(series: TiltSeries) -> TomogramSource:
    """The tomogram of a session's series, as its reconstruct step has made it.

    Raises
    ------
    SessionError
        When that step is not done, or its file is gone.
    """
    done = series.record.steps.get("reconstruct") if series.record else None
    if done is None or done.status != "done" or series.record is None:
        raise SessionError(
            f"{series.name} has no tomogram, {series.error or 'its reconstruct step has not run'}: run "
            "`weft tilts reconstruct`."
        )
    path = series.paths["tomogram"]
    if not path.is_file():
        raise SessionError(f"{path} is gone: run `weft tilts reconstruct` again.")
    settings = ReconstructionSettings(**done.settings["reconstruction"])
    physics = done.settings["input"]
    geometry, ctf = series.geometry, series.ctf
    tilts = used_tilts(series.record)
    pixel = series.alignment.pixel_size
    counts = np.array([float(tilt["counts"]) for tilt in tilts])
    local = settings.method == "local"
    by_counts = local and settings.tilt_weighting == "counts"
    in_counts = by_counts and _in_counts(series, counts, pixel, settings.pixel_size)
    contrast = stack_contrast(
        series.record,
        ctf,
        Optics(pixel, physics["voltage"], physics["cs"], physics["amplitude"]),
        counts / counts.max() if in_counts else 1.0,
    )
    grid = VolumeGrid.of(geometry.volume_size, settings.pixel_size, settings.box)
    methods: dict[str, TomogramMethod] = {"power": "power", "amplitude": "amplitude", "none": "uncorrected"}
    method: TomogramMethod = methods[settings.ctf_weights] if local else "uncorrected"
    if settings.method == "wbp_flipped":
        method = "flipped"
    weighted = settings.dose_weighting != "none"
    return TomogramSource(
        name=series.name,
        path=path,
        voxel_size=settings.pixel_size,
        shape=mrc.read_header(path).shape,
        origin=grid.origin,
        geometry=geometry,
        contrast=contrast,
        method=method,
        dose_weighted=weighted,
        image_pixel_size=pixel,
        has_ctf=True,
        density_positive=settings.invert,
        dose_model=settings.dose_weighting if weighted else "warp",
        cosine=local and (settings.tilt_weighting == "cosine" or (by_counts and not in_counts)),
        regularisation=settings.regularisation if local else 0.1,
        beads=_beads(series),
    )


def _beads(series: TiltSeries) -> tuple[tuple[float, ...], ...]:
    found = series.alignment
    if "bead_diameter_nm" not in found.extras or not len(found.markers):
        return ()
    radius = 5.0 * float(found.extras["bead_diameter_nm"])
    places = found.markers + 0.5 * found.geometry.volume_size
    return tuple((*place, radius) for place in places.tolist())


def _in_counts(series: TiltSeries, counts: Numbers, pixel: float, target: float) -> bool:
    """What the reconstruction finds out about its images, from the one in the middle."""
    if (counts <= 0.0).any():
        return False

    def middle() -> Iterator[torch.Tensor]:
        with mrc.MrcStack(series.paths["stack"]) as stack:
            section = int(np.argmin(np.abs(series.tilt_angles)))
            yield torch.from_numpy(np.ascontiguousarray(stack.read(section), np.float32))

    return TiltImages.prepare(middle(), pixel, target).in_counts


# ------------------------------------------------------------------------------------ of another program


_METHODS: dict[str, TomogramMethod] = {
    "wbp": "uncorrected",
    "flipped": "flipped",
    "ctf-corrected": "power",
    "warp": "amplitude",
}


def foreign_tomogram(path: str | Path, settings: ForeignTomogramSettings) -> TomogramSource:
    """A tomogram that another program has made.

    Parameters
    ----------
    path : path-like
        MRC, with sections along z.
    settings : ForeignTomogramSettings

    Raises
    ------
    RequestError
        Something that is needed was not given, or a file is not there.
    InputFileError
        A file cannot be read, or does not fit the others.
    """
    path = Path(path)
    if not path.is_file():
        raise RequestError(f"there is no tomogram {path}.")
    if settings.tilts and settings.tilt_range:
        raise RequestError("give a file of tilts (--tilts) or a range of angles (--tilt-range), not both.")
    if settings.dose and settings.dose_per_tilt is not None:
        raise RequestError("give a file of doses (--dose) or the dose of a tilt (--dose-per-tilt), not both.")
    voxel, shape = _header(path, settings)
    tilts = _tilts(path, settings)
    n, notes = len(tilts), list(tilts.notes)
    volume = _volume(path, voxel, shape, tilts, settings)
    ctfs = ctfs_of(path, tilts, settings)
    dose = dose_of(tilts, settings)
    optics = optics_of(path, tilts, settings, ctfs is not None, dose is not None)
    hand = tilts.hand
    if settings.hand is not None:
        # the geometry's angles may have another sign than the file's
        hand = tilts.sign * settings.hand
    elif hand is None and ctfs is not None:
        notes.append(
            "the hand is not known: the defocus is taken to be the same in the whole volume (--hand)"
        )
    geometry = replace(
        tilts.geometry,
        defocus=torch.as_tensor(ctfs.defocus if ctfs else np.zeros(n), dtype=torch.float64),
        volume_size=torch.tensor(volume, dtype=torch.float64),
        hand=float(hand or 0.0),
    )
    if settings.mirrored:
        geometry = mirrored(geometry)
    contrast = TiltContrast.of(
        optics,
        n,
        dose=0.0 if dose is None else dose,
        astigmatism=ctfs.astigmatism if ctfs else 0.0,
        angle=ctfs.angle if ctfs else 0.0,
        phase_shift=ctfs.phase_shift if ctfs else 0.0,
        weight=1.0 if tilts.weight is None else tilts.weight,
    )
    method = _METHODS[settings.tomogram_is]
    return TomogramSource(
        name=settings.name or tilts.name or path.stem,
        path=path,
        voxel_size=voxel,
        shape=shape,
        origin=settings.origin[:3] if len(settings.origin) == 3 else (0.0, 0.0, 0.0),
        geometry=geometry,
        contrast=contrast,
        method=method,
        dose_weighted=settings.dose_weighted,
        image_pixel_size=settings.image_pixel_size or tilts.image_pixel_size or 0.0,
        has_ctf=ctfs is not None,
        density_positive=not settings.dark,
        dose_model="none" if dose is None else settings.dose_model,
        cosine=method in ("power", "amplitude"),
        notes=tuple(notes),
    )


def _header(path: Path, settings: ForeignTomogramSettings) -> tuple[float, tuple[int, int, int]]:
    info = mrc.read_header(path)
    if min(info.shape) < 2:
        raise FormatError(path, f"{info.shape[2]}×{info.shape[1]}×{info.shape[0]} voxels are no volume")
    sizes = info.voxel_size or (0.0, 0.0, 0.0)
    if max(sizes) - min(sizes) > _SAME * max(sizes):
        x, y, z = sizes
        raise FormatError(path, f"its voxels are no cubes but {x:g}×{y:g}×{z:g} Å; correct its header")
    written, given = sizes[0], settings.voxel_size
    if given is None:
        if written == 0.0:
            raise FormatError(path, "its header has no voxel size: give it with --voxel-size")
        return written, info.shape
    if written not in _UNSET and abs(written / given - 1.0) > _SAME:
        raise FormatError(
            path,
            f"its header says {written:g} Å a voxel, --voxel-size {given:g} Å: leave that out, or correct "
            "the header",
        )
    return given, info.shape


def _tilts(path: Path, settings: ForeignTomogramSettings) -> ForeignTilts:
    if settings.tilts:
        return read_tilts(
            Path(settings.tilts),
            settings.series,
            path.stem,
            axis=settings.tilt_axis,
            x_axis_tilt=settings.x_axis_tilt,
            angle_offset=settings.angle_offset,
            image_pixel_size=settings.image_pixel_size,
        )
    if not settings.tilt_range:
        raise RequestError(
            f"{path}: its tilt angles are needed: give a file with --tilts, or --tilt-range LOWEST,HIGHEST."
        )
    low, high = settings.tilt_range
    count = max(2, round((high - low) / settings.tilt_step) + 1)
    return tilts_of_angles(
        Path("the range of angles"),
        np.linspace(low, high, count),
        axis=settings.tilt_axis,
        x_axis_tilt=settings.x_axis_tilt,
        angle_offset=settings.angle_offset,
    )


def _volume(
    path: Path,
    voxel: float,
    shape: tuple[int, int, int],
    tilts: ForeignTilts,
    settings: ForeignTomogramSettings,
) -> tuple[float, ...]:
    """x, y, z, Å: twice where the centre of the full volume lies."""
    if settings.volume_size:
        return settings.volume_size
    if settings.origin:
        raise RequestError(f"{path}: --origin is that of a part; give the full --volume-size, too.")
    # the centre of an odd number of voxels is the middle one, as that of an even number is index n // 2
    own = tuple(2 * (n // 2) * voxel for n in reversed(shape))
    if tilts.volume_size is None:
        return own
    if any(abs(a - b) > max(2.5 * voxel, 0.02 * b) for a, b in zip(own, tilts.volume_size, strict=True)):
        here, there = (" × ".join(f"{v:.0f}" for v in size) for size in (own, tilts.volume_size))
        raise FormatError(
            path,
            f"it is {here} Å large, but its volume is {there} Å in {tilts.path.name}: is it another one, or "
            "its voxel size wrong? Of a part, give --origin and --volume-size",
        )
    return tilts.volume_size
