"""Alignments made elsewhere: what `weft import alignments` keeps of them in the session."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch

from weft.errors import ItemError, SessionError
from weft.formats.atomic import atomic_write_text
from weft.physics.geometry import TiltGeometry
from weft.tilts.alignment import AlignmentSettings, Observations, TiltAlignment

__all__ = ["FOLDER", "ImportedAlignment"]

#: Where they are, in the session.
FOLDER = "tiltseries/alignments"


@dataclass(frozen=True)
class ImportedAlignment:
    """An alignment of some tilts of a series, as another program has found it.

    Attributes
    ----------
    program, file : str
        Where it comes from.
    rows : tuple of int
        Rows of the series' table, one for each tilt of the geometry.
    geometry : TiltGeometry
        Its sizes are not used: images and volume are the session's.
    """

    program: str
    file: str
    rows: tuple[int, ...]
    geometry: TiltGeometry

    def write(self, path: Path) -> None:
        """Keep it."""
        g = self.geometry
        plain = {
            f.name: value.tolist() if isinstance(value := getattr(g, f.name), torch.Tensor) else value
            for f in fields(g)
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        data = {"program": self.program, "file": self.file, "rows": list(self.rows), "geometry": plain}
        atomic_write_text(path, json.dumps(data, indent=1))

    @classmethod
    def read(cls, path: Path) -> ImportedAlignment:
        """Inverse of :meth:`write`.

        Raises
        ------
        SessionError
        """
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            given = data["geometry"]
            hand = float(given.pop("hand"))
            parts = {key: torch.tensor(value, dtype=torch.float64) for key, value in given.items()}
            parts["shift"] = parts["shift"].reshape(-1, 2)
            geometry = TiltGeometry(**parts, hand=hand)
            return cls(data["program"], data["file"], tuple(data["rows"]), geometry)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SessionError(
                f"{path} is not a readable alignment ({error}); import it again with `weft import "
                "alignments`."
            ) from None

    def of_tilts(
        self,
        rows: Sequence[int],
        stage_angles: torch.Tensor,
        image_size: tuple[float, float],
        pixel_size: float,
        settings: AlignmentSettings,
    ) -> TiltAlignment:
        """What it says about these rows of the table.

        Raises
        ------
        ItemError
            When it says nothing about one of them.
        """
        known = {row: i for i, row in enumerate(self.rows)}
        missing = [float(a) for row, a in zip(rows, stage_angles.tolist(), strict=True) if row not in known]
        if missing:
            named = ", ".join(f"{angle:g}°" for angle in missing)
            raise ItemError(
                f"the alignment from {self.file} says nothing about the tilts at {named}; leave them out "
                "with `weft tilts exclude`, or align the series here"
            )
        geometry = self.geometry.select(torch.tensor([known[row] for row in rows]))
        geometry = replace(
            geometry,
            defocus=torch.zeros_like(geometry.defocus),
            hand=1.0,
            image_size=torch.tensor(image_size, dtype=torch.float64),
            volume_size=torch.tensor([*image_size, settings.thickness], dtype=torch.float64),
        )
        n = len(rows)
        return TiltAlignment(
            geometry=geometry,
            method="none",
            stage_angles=stage_angles,
            pixel_size=pixel_size,
            markers=torch.zeros(0, 3, dtype=torch.float64),
            observations=Observations.none(),
            expected_error=torch.full((n,), math.nan, dtype=torch.float64),
            aligned=torch.ones(n, dtype=torch.bool),
            verdict="good",
            notes=(f"imported from {self.program}: {self.file}",),
        )
