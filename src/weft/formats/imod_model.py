"""IMOD's binary models: ``.fid`` (tracked beads: one contour a bead, z is the view) and ``.mod``.

Coordinates are IMOD's: pixels from the image's corner, so that the centre of the first pixel is at 0.5 in x
and y; z is the section, whole numbers from 0. Whatever is not points is kept as it is in the file.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from weft.errors import CorruptError, FormatError, TruncatedError
from weft.formats.atomic import atomic_write_bytes

__all__ = ["ImodContour", "ImodModel", "ImodObject", "read_model", "write_model"]

_ID, _VERSIONS = b"IMOD", (b"V1.2",)
_MODEL, _OBJECT, _CONTOUR, _MESH = 232, 176, 16, 16
# name, size x y z, objects, flags, ..., scale z at 208, pixel size and unit at 240 - 8
_MODEL_HEAD = struct.Struct(">128s3iiI4i3f3f5ifi i3f")
_UNITS = {0: None, -9: 10.0, -10: 1.0, -6: 1e4}
#: OBJT: open contours are lines through time, as trackers write; scattered points.
OPEN, SCATTERED = 1 << 3, 1 << 9


@dataclass
class ImodContour:
    """Points (n, 3): x, y in pixels, z in sections; flags, time and surface as stored."""

    points: NDArray[np.float64]
    flags: int = 0
    time: int = 0
    surface: int = 0
    chunks: list[tuple[bytes, bytes]] = field(default_factory=list)


@dataclass
class ImodObject:
    """One object: its contours, and colour, symbols and meshes as stored."""

    contours: list[ImodContour] = field(default_factory=list)
    name: str = ""
    flags: int = OPEN
    color: tuple[float, float, float] = (0.0, 1.0, 0.0)
    header: bytes | None = None
    chunks: list[tuple[bytes, bytes]] = field(default_factory=list)


@dataclass
class ImodModel:
    """A model.

    Attributes
    ----------
    objects : list of ImodObject
    size : (int, int, int)
        x, y, z of the image that it was made on, pixels.
    pixel_size : float, optional
        Å; None where it is in pixels.
    name : str
    header : bytes, optional
        As read, from which everything else is written again.
    chunks : list of (name, bytes)
        Further parts, such as MINX: the image's origin when the model was made.
    """

    objects: list[ImodObject]
    size: tuple[int, int, int]
    pixel_size: float | None = None
    name: str = "IMOD-NewModel"
    header: bytes | None = None
    chunks: list[tuple[bytes, bytes]] = field(default_factory=list)

    @property
    def contours(self) -> list[ImodContour]:
        """Those of all objects."""
        return [contour for item in self.objects for contour in item.contours]

    def tracks(self) -> NDArray[np.float64]:
        """Beads in views: (contours, views, 2), pixels from the image's corner, nan where not seen.

        Raises
        ------
        ValueError
            A bead is twice in one view, or outside the views.
        """
        out = np.full((len(self.contours), self.size[2], 2), np.nan)
        for i, contour in enumerate(self.contours):
            views = np.rint(contour.points[:, 2]).astype(int)
            if len(views) and (views.min() < 0 or views.max() >= self.size[2]):
                raise ValueError(f"contour {i + 1} has points in view {views.max()} of {self.size[2]}")
            if len(set(views.tolist())) != len(views):
                raise ValueError(f"contour {i + 1} has two points in one view")
            out[i, views] = contour.points[:, :2]
        return out

    @classmethod
    def of_tracks(
        cls, tracks: NDArray[np.floating], size: tuple[int, int], pixel_size: float | None = None
    ) -> ImodModel:
        """A fiducial model from (beads, views, 2) positions; see `tracks`. `size` is x, y in pixels."""
        contours = []
        for track in np.asarray(tracks, np.float64):
            seen = np.flatnonzero(np.isfinite(track).all(axis=1))
            contours.append(ImodContour(np.column_stack([track[seen], seen.astype(np.float64)])))
        return cls([ImodObject(contours, "fiducials")], (*size, len(tracks[0])), pixel_size)


def read_model(path: str | Path) -> ImodModel:
    """Read a model.

    Raises
    ------
    FormatError
        No binary model of IMOD.
    TruncatedError
        It ends before its ``IEOF``.
    CorruptError
        Contours without an object, or counts that do not agree.
    """
    path = Path(path)
    data = path.read_bytes()
    if not data:
        raise TruncatedError(path, "the file is empty")
    if data[:4] != _ID or data[4:8] not in _VERSIONS:
        raise FormatError(path, f"not a binary model of IMOD: it starts with {data[:8]!r}")
    reader = _Reader(path, data)
    header = reader.take(_MODEL)
    fields = _MODEL_HEAD.unpack(header)
    unit = _UNITS.get(fields[-5], 0.0)
    scale = float(fields[-6])
    model = ImodModel(
        objects=[],
        size=(fields[1], fields[2], fields[3]),
        pixel_size=None if not unit or scale <= 0 else scale * unit,
        name=_text(fields[0]),
        header=header,
    )
    reader.fill(model)
    if len(model.objects) != fields[4]:
        raise CorruptError(path, f"it has {len(model.objects)} objects where its header says {fields[4]}")
    return model


class _Reader:
    def __init__(self, path: Path, data: bytes) -> None:
        self.path, self.data, self.at = path, data, 8

    def take(self, count: int) -> bytes:
        part = self.data[self.at : self.at + count]
        if count < 0:
            raise CorruptError(self.path, f"a part at byte {self.at} has the length {count}")
        if len(part) < count:
            raise TruncatedError(
                self.path, f"it ends at byte {len(self.data)} within a part that needs {count} bytes more"
            )
        self.at += count
        return part

    def fill(self, model: ImodModel) -> None:
        chunks, left, inside = model.chunks, 0, False
        while True:
            name = self.take(4)
            if name == b"IEOF":
                break
            if name == b"OBJT":
                header = self.take(_OBJECT)
                left = struct.unpack_from(">i", header, 128)[0]
                item = ImodObject(
                    name=_text(header[:64]),
                    flags=struct.unpack_from(">I", header, 132)[0],
                    color=struct.unpack_from(">3f", header, 144),
                    header=header,
                )
                model.objects.append(item)
                chunks, inside = item.chunks, True
            elif name == b"CONT":
                if not inside or left <= 0:
                    raise CorruptError(self.path, f"a contour at byte {self.at - 4} is in no object")
                count, flags, time, surface = struct.unpack(">iIii", self.take(_CONTOUR))
                points = np.frombuffer(self.take(12 * count), ">f4").reshape(-1, 3).astype(np.float64)
                contour = ImodContour(points, flags, time, surface)
                model.objects[-1].contours.append(contour)
                chunks, left = contour.chunks, left - 1
            elif name == b"MESH":
                head = self.take(_MESH)
                vertices, indices = struct.unpack_from(">2i", head)
                body = self.take(12 * vertices + 4 * indices)
                model.objects[-1].chunks.append((name, head + body))
                chunks = model.objects[-1].chunks
            else:
                length = struct.unpack(">i", self.take(4))[0]
                body = self.take(length)
                # what is about objects follows their contours, what is about the model follows all objects
                if name in _OF_MODEL:
                    chunks = model.chunks
                elif name in _OF_OBJECT and model.objects:
                    chunks = model.objects[-1].chunks
                chunks.append((name, body))
        if left > 0:
            raise CorruptError(self.path, f"the last object lacks {left} of its contours")


_OF_MODEL = (b"VIEW", b"MINX", b"MCLP", b"IMNX", b"SLAN", b"MOST", b"UNIT", b"OGRP")
_OF_OBJECT = (b"IMAT", b"CLIP", b"OLBL", b"OBST", b"MEPA", b"MEST")


def write_model(path: str | Path, model: ImodModel, *, sync: bool = True) -> None:
    """Write a model atomically."""
    header = bytearray(model.header or _new_header(model))
    struct.pack_into(">3ii", header, 128, *model.size, len(model.objects))
    out = [_ID, _VERSIONS[0], bytes(header)]
    for item in model.objects:
        head = bytearray(item.header or _new_object(item))
        meshes = sum(name == b"MESH" for name, _ in item.chunks)
        struct.pack_into(">i", head, 128, len(item.contours))
        struct.pack_into(">i", head, 168, meshes)
        out += [b"OBJT", bytes(head)]
        for contour in item.contours:
            points = np.asarray(contour.points, ">f4").reshape(-1, 3)
            out.append(b"CONT")
            out.append(struct.pack(">iIii", len(points), contour.flags, contour.time, contour.surface))
            out.append(points.tobytes())
            out += [part for chunk in contour.chunks for part in _chunk(chunk)]
        out += [part for chunk in item.chunks for part in _chunk(chunk)]
    out += [part for chunk in model.chunks for part in _chunk(chunk)]
    atomic_write_bytes(path, b"".join([*out, b"IEOF"]), sync=sync)


def _chunk(chunk: tuple[bytes, bytes]) -> tuple[bytes, ...]:
    name, body = chunk
    return (name, body) if name == b"MESH" else (name, struct.pack(">i", len(body)), body)


def _text(data: bytes) -> str:
    return data.split(b"\0", 1)[0].decode("latin-1")


def _new_header(model: ImodModel) -> bytes:
    flags = 1 << 12 | 1 << 13  # how clip planes and materials are stored
    scaled = model.pixel_size is not None
    return _MODEL_HEAD.pack(
        model.name.encode("latin-1", "replace")[:127],
        *model.size, len(model.objects), flags, 1, 0, 0, 255, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0,
        0, 0, -1, 3, 128, (model.pixel_size or 10.0) / 10.0, -9 if scaled else 0, 0, 0.0, 0.0, 0.0,
    )  # fmt: skip


def _new_object(item: ImodObject) -> bytes:
    head = bytearray(_OBJECT)
    head[:64] = item.name.encode("latin-1", "replace")[:63].ljust(64, b"\0")
    struct.pack_into(">iIii3fi", head, 128, len(item.contours), item.flags, 0, 1, *item.color, 0)
    # symbol: circle of 8 pixels, 1 pixel wide
    head[160:168] = bytes([1, 8, 0, 1, 1, 0, 0, 0])
    return bytes(head)
