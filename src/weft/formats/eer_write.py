"""Writing EER files: for tests and simulations, since only detectors make them otherwise."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO
from xml.etree import ElementTree

import numpy as np
from numpy.typing import ArrayLike, NDArray

from weft.formats.atomic import atomic_write
from weft.formats.eer_codec import EerBits, encode_frame
from weft.formats.tiff_layout import EER_HORIZONTAL_BITS, EER_SKIP_BITS, EER_VERTICAL_BITS, EER_XML

__all__ = ["split_counts", "write_eer"]

_XML_ROOM = 2048


def split_counts(frames: Iterable[ArrayLike], per_frame: int, seed: int = 0) -> Iterable[NDArray[np.uint8]]:
    """Spread counted frames over ``per_frame`` raw frames each, at most one electron a pixel in each.

    Parameters
    ----------
    frames : iterable of (ny, nx) integers
        None above ``per_frame``.
    per_frame : int
    seed : int
        Which electron goes to which raw frame.
    """
    rng = np.random.default_rng(seed)
    for index, frame in enumerate(frames):
        counts = np.asarray(frame)
        if counts.min() < 0 or counts.max() > per_frame:
            raise ValueError(
                f"frame {index} has {counts.max()} electrons in a pixel, for {per_frame} raw frames"
            )
        left = counts.astype(np.int64)
        for remaining in range(per_frame, 0, -1):
            # each electron left is in this raw frame with the chance that leaves room for all of them
            hit = rng.random(counts.shape) * remaining < left
            left -= hit
            yield hit.astype(np.uint8)


def write_eer(
    path: str | Path,
    frames: Iterable[ArrayLike],
    *,
    raw_per_frame: int = 1,
    upsampling: int = 1,
    compression: int = 65002,
    bits: EerBits | None = None,
    pixel_size: float | None = None,
    total_dose: float | None = None,
    seed: int = 0,
) -> int:
    """Write an EER file, for tests and simulations; returns the number of raw frames.

    Parameters
    ----------
    path : path-like
    frames : (n, ny, nx) array or iterable of (ny, nx)
        Counted electrons.
    raw_per_frame : int
        Spread each frame over so many raw frames; none of its pixels may count more. Only with
        ``upsampling`` = 1; otherwise the frames are raw ones.
    upsampling : {1, 2, 4}
        Of the grid of ``frames`` over the sensor's.
    compression : {65000, 65001, 65002}
        8 bits of run length (the prototype), 7, or as ``bits`` says.
    bits : EerBits, optional
        Only for 65002.
    pixel_size : float, optional
        Å of the sensor's pixels, for the metadata.
    total_dose : float, optional
        e/Å² of the whole exposure, for the metadata.
    """
    if compression == 65000:
        bits = EerBits(skip=8, wasteful=True)
    elif compression == 65001 or bits is None:
        bits = EerBits()
    level = upsampling.bit_length() - 1
    raw = split_counts(frames, raw_per_frame, seed) if raw_per_frame > 1 else (np.asarray(f) for f in frames)
    count = 0
    sensor = (0, 0)
    with atomic_write(path) as file:
        # BigTIFF: the link to the first directory is patched when that directory is written
        file.write(b"II" + struct.pack("<HHHQ", 43, 8, 0, 0))
        link, xml_link = 8, 0
        for image in raw:
            if count and image.shape != (sensor[0] << level, sensor[1] << level):
                raise ValueError(f"raw frame {count} has the shape {image.shape}, unlike the first")
            if image.min() < 0 or image.max() > 1:
                raise ValueError(f"raw frame {count} has pixels other than 0 and 1; see raw_per_frame")
            sensor = (image.shape[0] >> level, image.shape[1] >> level)
            stream = encode_frame(image, bits, level)
            offset = file.tell()
            file.write(stream)
            tags = _frame_tags(sensor, compression, bits, offset, len(stream))
            if count == 0:
                # its number of frames is known at the end: room is kept, and spaces follow the text
                tags.append((EER_XML, 7, _XML_ROOM, file.tell()))
                xml_link = file.tell()
                file.write(bytes(_XML_ROOM))
            link = _write_directory(file, link, tags)
            count += 1
        if count == 0:
            raise ValueError(f"no frames to write to {path}")
        file.seek(xml_link)
        file.write(_make_xml(count, sensor, pixel_size, total_dose).ljust(_XML_ROOM))
    return count


def _frame_tags(
    shape: tuple[int, int], compression: int, bits: EerBits, offset: int, length: int
) -> list[tuple[int, int, int, int]]:
    """(tag, type, count, value) of one frame; type 3 is 16 bits, 4 is 32, 16 is 64."""
    tags = [
        (256, 4, 1, shape[1]),
        (257, 4, 1, shape[0]),
        (258, 3, 1, 8),
        (259, 3, 1, compression),
        (262, 3, 1, 1),
        (273, 16, 1, offset),
        (277, 3, 1, 1),
        (278, 4, 1, shape[0]),
        (279, 16, 1, length),
    ]
    if compression == 65002:
        widths = (bits.skip, bits.horizontal, bits.vertical)
        names = (EER_SKIP_BITS, EER_HORIZONTAL_BITS, EER_VERTICAL_BITS)
        tags += [(tag, 3, 1, width) for tag, width in zip(names, widths)]
    return tags


def _write_directory(file: BinaryIO, link: int, tags: list[tuple[int, int, int, int]]) -> int:
    """Write one image directory at the end and link it; returns where its own link is."""
    file.write(bytes(-file.tell() % 8))
    start = file.tell()
    entries = b"".join(struct.pack("<HHQQ", *entry) for entry in sorted(tags))
    file.write(struct.pack("<Q", len(tags)) + entries + bytes(8))
    end = file.tell()
    file.seek(link)
    file.write(struct.pack("<Q", start))
    file.seek(end)
    return end - 8


def _make_xml(n: int, shape: tuple[int, int], pixel_size: float | None, total_dose: float | None) -> bytes:
    root = ElementTree.Element("metadata")

    def add(name: str, value: object, unit: str = "") -> None:
        ElementTree.SubElement(
            root, "item", {"name": name, "unit": unit} if unit else {"name": name}
        ).text = str(value)

    add("cameraName", "Weft simulation")
    add("numberOfFrames", n)
    add("sensorImageHeight", shape[0], "pixel")
    add("sensorImageWidth", shape[1], "pixel")
    if pixel_size is not None:
        add("sensorPixelSize.height", pixel_size * 1e-10, "m")
        add("sensorPixelSize.width", pixel_size * 1e-10, "m")
        if total_dose is not None:
            add("totalDose", total_dose * pixel_size**2, "e/pixel")
    return bytes(ElementTree.tostring(root, encoding="utf-8"))
