"""Defocus, microscope and dose of a tomogram by another program: as a person says, else as its files do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from weft.errors import FormatError, RequestError
from weft.physics.optics import Optics
from weft.session.foreign_ctfs import TiltCtfs, read_column, read_ctfs
from weft.session.foreign_settings import ForeignTomogramSettings
from weft.session.foreign_tilts import ForeignTilts

__all__ = ["ctfs_of", "dose_of", "optics_of"]

Numbers = NDArray[np.float64]


def ctfs_of(path: Path, tilts: ForeignTilts, settings: ForeignTomogramSettings) -> TiltCtfs | None:
    """The CTF of every tilt, as given, else as the file of tilts says; None where it is not to be used.

    Raises
    ------
    RequestError
        It is to be used, but not known; or the direction of its astigmatism is not.
    """
    if settings.ctf == "no":
        return None
    found = tilts.ctfs
    if settings.defocus:
        try:
            found = TiltCtfs.constant(1e4 * float(settings.defocus), len(tilts))
        except ValueError:
            found = read_ctfs(Path(settings.defocus), tilts)
    if found is None:
        if settings.ctf == "yes":
            raise RequestError(
                f"{path}: its defocus is not known, so that its CTF cannot be used: give --defocus (µm or a "
                "file), or --ctf no."
            )
        return None
    axis_known = tilts.axis_known or settings.tilt_axis is not None
    if not axis_known and np.abs(found.astigmatism).max() > 0.0:
        raise RequestError(
            f"{path}: the astigmatism in {settings.defocus} counts from the images' x axis: say where the "
            "tilt axis is in them (--tilt-axis)."
        )
    if settings.phase_shift is not None and not found.phase_shift.any():
        found = replace(found, phase_shift=np.full(len(tilts), settings.phase_shift))
    return found


def optics_of(
    path: Path, tilts: ForeignTilts, settings: ForeignTomogramSettings, ctf: bool, dose: bool
) -> Optics:
    """The microscope: as given, else as the files say.

    Parameters
    ----------
    path : Path
        The tomogram, for messages.
    tilts : ForeignTilts
    settings : ForeignTomogramSettings
    ctf, dose : bool
        What is to be used of it.

    Raises
    ------
    RequestError
        Something that this needs is not known.
    """
    needed = {"voltage": ctf or dose, "cs": ctf, "amplitude": ctf}
    values = {}
    for name, need in needed.items():
        given = getattr(settings, name)
        value = getattr(tilts, name) if given is None else given
        if value is None and need:
            what = {"voltage": "voltage", "cs": "spherical aberration", "amplitude": "amplitude contrast"}
            why = "its CTF" if ctf else "its dose"
            raise RequestError(f"{path}: {why} cannot be used without the {what[name]}: give --{name}.")
        if value is not None:
            values[name] = float(value)
    return Optics(settings.image_pixel_size or tilts.image_pixel_size or 0.0, **values)


def dose_of(tilts: ForeignTilts, settings: ForeignTomogramSettings) -> Numbers | None:
    """(tilts,): e/Å² by each tilt, as given, else as the file of tilts says; None where it is not known.

    Raises
    ------
    RequestError
        The dose of one tilt without the order of all.
    """
    if settings.dose:
        return read_column(Path(settings.dose), tilts, "doses")
    if settings.dose_per_tilt is None:
        return tilts.dose
    if not settings.acquisition:
        raise RequestError(
            "the dose of a tilt depends on the order in which tilts were recorded: give --acquisition "
            "(symmetric, bidirectional, up, down, or a file)."
        )
    # in the order of the tilts: how many were recorded before each
    return settings.dose_per_tilt * (_order(tilts, settings) + 1.0)


def _order(tilts: ForeignTilts, settings: ForeignTomogramSettings) -> Numbers:
    angles = tilts.sign * tilts.geometry.angles.numpy()
    away = angles - settings.start_angle
    keys: dict[str, tuple[Numbers, ...]] = {
        "up": (angles,),
        "down": (-angles,),
        # one direction first, and the start belongs to it
        "bidirectional": (np.abs(away), (away < -1e-3).astype(float)),
        "symmetric": (-away, np.abs(away).round(1).astype(np.float64)),
    }
    if settings.acquisition in keys:
        return np.asarray(np.lexsort(keys[settings.acquisition]).argsort(), np.float64)
    path = Path(settings.acquisition)
    numbers = read_column(path, tilts, "numbers of tilts")
    if len(np.unique(numbers)) < len(numbers):
        raise FormatError(path, "a number of a tilt occurs twice")
    # those that are left out have exposed the specimen, too: count from the first of all
    return numbers - min(float(numbers.min()), 1.0)
