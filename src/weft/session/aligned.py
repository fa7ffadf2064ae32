"""Alignments made elsewhere: what `weft import alignments` keeps of them in the session.

A view belongs to an image, not to a row of the series' table: rows come and go with what the series' file
says and with the movies. So every view keeps what its image is called, and finds its row anew.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import torch

from weft.errors import ItemError, SessionError
from weft.formats.atomic import atomic_write_text
from weft.physics.geometry import TiltGeometry
from weft.session.series_acquisition import REPEATED
from weft.session.tilt_table import TiltRow, TiltTable
from weft.tilts.alignment import AlignmentSettings, Observations, TiltAlignment

__all__ = ["FOLDER", "AlignedImage", "ImportedAlignment"]

#: Where they are, in the session.
FOLDER = "tiltseries/alignments"


@dataclass(frozen=True)
class AlignedImage:
    """Which image of a series a view is of; as in :class:`~weft.session.tilt_table.TiltRow`.

    Attributes
    ----------
    name : str
        What the series' file calls it.
    item : str
        Of its movie; empty where there was none, or for a section of a stack.
    image : int
        Section of the stack; −1 for movies.
    angle : float
        Of the stage, degrees.
    """

    name: str
    item: str
    image: int
    angle: float

    @classmethod
    def of(cls, row: TiltRow) -> AlignedImage:
        """That of a row."""
        return cls(row.name, row.item if row.image < 0 else "", row.image, row.angle)


@dataclass(frozen=True)
class ImportedAlignment:
    """An alignment of some tilts of a series, as another program has found it.

    Attributes
    ----------
    program, file : str
        Where it comes from.
    images : tuple of AlignedImage
        One for each tilt of the geometry.
    geometry : TiltGeometry
        Its sizes are not used: images and volume are the session's.
    stack_content : str
        Of a series that comes as a stack: which content of it the sections are of.
    """

    program: str
    file: str
    images: tuple[AlignedImage, ...]
    geometry: TiltGeometry
    stack_content: str = ""

    @classmethod
    def of_rows(
        cls, program: str, file: str, table: TiltTable, rows: Sequence[int], geometry: TiltGeometry
    ) -> ImportedAlignment:
        """One whose views are these rows of a series' table as it is now."""
        images = tuple(AlignedImage.of(table.tilts[row]) for row in rows)
        return cls(program, file, images, geometry, table.stack_content)

    def write(self, path: Path) -> None:
        """Keep it."""
        g = self.geometry
        plain = {
            f.name: value.tolist() if isinstance(value := getattr(g, f.name), torch.Tensor) else value
            for f in fields(g)
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        data = {
            "program": self.program,
            "file": self.file,
            "images": [asdict(image) for image in self.images],
            "stack_content": self.stack_content,
            "geometry": plain,
        }
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
            images = tuple(AlignedImage(**image) for image in data["images"])
            return cls(data["program"], data["file"], images, geometry, data["stack_content"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SessionError(
                f"{path} is not a readable alignment ({error}); import it again with `weft import "
                "alignments`."
            ) from None

    def rows_of(self, table: TiltTable) -> dict[int, int]:
        """Row of the table → view, of all views whose images are still in the table.

        A movie is known by its name, a section by its number while the stack is the same; otherwise an image
        is known by the angle of the stage, where only one tilt has it.

        Raises
        ------
        ItemError
            When a view could belong to several tilts, or several views to one.
        """
        found: dict[int, int] = {}
        for view, image in enumerate(self.images):
            options = self._options(image, table)
            if len(options) > 1:
                shown = " and ".join(f"{table.tilts[row].name} ({row})" for row in options[:2])
                raise ItemError(
                    f"{table.name}: its tilts are others than when the alignment from {self.file} was "
                    f"imported, and its view at {image.angle:g}° could be {shown} now; import it again"
                )
            for row in options:
                if row in found:
                    raise ItemError(
                        f"{table.name}: its tilts are others than when the alignment from {self.file} was "
                        f"imported, and {table.tilts[row].name} would have two of its views; import it again"
                    )
                found[row] = view
        return found

    def _options(self, image: AlignedImage, table: TiltTable) -> list[int]:
        """The rows that an image may be now."""
        rows = list(enumerate(table.tilts))
        near = [i for i, row in rows if abs(row.angle - image.angle) <= REPEATED]
        if image.image >= 0:
            sections = [i for i, row in rows if row.image == image.image]
            if self.stack_content and self.stack_content == table.stack_content:
                return sections
            return [i for i in sections if i in near] or near
        # where no movie is named, the name is but a number in the file
        name = "" if image.name.isdecimal() else image.name
        by_item = [i for i, row in rows if image.item and row.item == image.item]
        by_name = [i for i, row in rows if name and row.name == name]
        if same := by_item or by_name:
            # what is named twice is one image
            return [i for i in same if not table.tilts[i].left_out][:1] or same[:1]
        # another movie at the angle is another exposure; in a stack it may be this one
        return [i for i in near if table.tilts[i].image >= 0 or not (image.item or name)]

    def of_tilts(
        self,
        table: TiltTable,
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
            When it says nothing about one of them, or when it is not certain any more what it speaks of.
        """
        known = self.rows_of(table)
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
