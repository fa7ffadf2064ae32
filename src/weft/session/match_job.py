"""The job file of a search: all that is needed to take candidates from its results later."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from weft.errors import CorruptError, FormatError
from weft.formats.atomic import atomic_write_text

__all__ = ["MatchJob", "MatchTemplate"]

_KIND = "weft match job"


@dataclass(frozen=True)
class MatchTemplate:
    """One of the templates that competed.

    Attributes
    ----------
    path : str
        Of the map.
    mask : str
        Of the mask, or empty where a sphere was used.
    diameter : float
        Of the particle, Å.
    symmetry : str
        C1, D7, O ...
    """

    path: str
    mask: str
    diameter: float
    symmetry: str = "C1"

    @property
    def stem(self) -> str:
        """What files that belong to it are called."""
        return Path(self.path).stem


@dataclass(frozen=True)
class MatchJob:
    """A finished search of one tomogram. Paths of results are relative to the job file's folder.

    Attributes
    ----------
    name : str
        Of the item, which is rlnTomoName too.
    tomogram : str
        Path of the map that was searched.
    voxel_size : float
        Å.
    shape : (int, int, int)
        z, y, x, voxels of the score map; it may be a part of the tomogram.
    origin : (float, float, float)
        x, y, z, Å: the score map's first voxel from the first voxel of the full volume.
    volume_size : (float, float, float)
        x, y, z, Å, of the full volume; its centre is half of it.
    image_pixel_size : float
        Å, of the tilt series that particles will be cut from; 0 where it is not known.
    templates : list of MatchTemplate
    rotations : list of (rot, tilt, psi) or str
        What the angle map counts: a file (npy, (n, 3) float32 degrees) beside this one.
    statistics : mapping
        search_space, mean, std.
    files : mapping
        scores, angles and, where several templates competed, templates; also candidates, refined, ... that
        were made from them.
    settings : mapping
        Of the search, for the record.
    hand : int
        −1, 0 or +1.
    beads : list of (x, y, z, radius)
        Å from the full volume's first voxel: gold beads that the alignment has followed.
    """

    name: str
    tomogram: str
    voxel_size: float
    shape: tuple[int, int, int]
    origin: tuple[float, float, float]
    volume_size: tuple[float, float, float]
    image_pixel_size: float
    templates: list[MatchTemplate]
    rotations: str
    statistics: Mapping[str, float]
    files: Mapping[str, str]
    settings: Mapping[str, Any] = field(default_factory=dict)
    hand: int = 1
    beads: list[tuple[float, float, float, float]] = field(default_factory=list)

    def write(self, path: Path) -> None:
        """Write it as JSON."""
        atomic_write_text(path, json.dumps({"kind": _KIND, "version": 1, **asdict(self)}, indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> MatchJob:
        """Read a job.

        Raises
        ------
        FormatError
            If it is something else.
        CorruptError
            If something is missing in it.
        """
        try:
            raw = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise FormatError(path, f"it cannot be read as a match job ({error})") from None
        if not isinstance(raw, dict) or raw.pop("kind", None) != _KIND:
            raise FormatError(path, "it is not the job file of a `weft match`")
        raw.pop("version", None)
        try:
            raw["templates"] = [MatchTemplate(**template) for template in raw["templates"]]
            for key in ("shape", "origin", "volume_size"):
                raw[key] = tuple(raw[key])
            return cls(**raw)
        except (KeyError, TypeError) as error:
            raise CorruptError(path, f"it is not complete: {error}") from None
