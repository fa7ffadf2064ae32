"""Cutting the particles of one micrograph into stacks: the particles step and ``weft export particles``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from weft.errors import InputFileError
from weft.formats import mrc
from weft.particles.extraction import Extracted, ExtractionSettings, sort_out
from weft.session.particle_parts import Part, read_part, write_part
from weft.session.processed_micrograph import ProcessedMicrograph
from weft.session.step import Job
from weft.session.wanted_particles import ParticleSettings, Wanted

__all__ = ["cut_item"]


def cut_item(
    job: Job,
    wanted: Wanted,
    settings: ParticleSettings,
    folder: Path,
    on_batch: Callable[[int], None] | None = None,
) -> tuple[Part, bool]:
    """Cut the particles of one micrograph into stacks, where that has not been done before.

    Parameters
    ----------
    job : Job
        The item, with the settings that its frames were read by.
    wanted : Wanted
    settings : ParticleSettings
    folder : Path
        Where the stacks are.
    on_batch : callable, optional
        Called with how many particles more are seen to.

    Returns
    -------
    Part, bool
        What lies in the folder now, and whether images were cut.

    Raises
    ------
    ItemError
        Motion or CTF are not known, or the frames cannot be used.
    """
    micrograph = ProcessedMicrograph.of(job, settings)
    images, table = micrograph.fingerprints(wanted)
    try:
        known = read_part(folder / f"{job.item}.json")
    except InputFileError:
        known = None  # it is made again
    if known is not None and known.images == images and _are_there(known, folder, settings):
        if known.table == table:
            return known, False
        part = micrograph.part(wanted, np.array(known.kept, np.int64), known.skipped, images, table)
        write_part(folder, part)
        return part, False
    keep, skipped = sort_out(
        wanted.pixels * micrograph.pixel_size, micrograph.extent, settings, micrograph.output
    )
    chosen = np.flatnonzero(keep)
    folder.mkdir(parents=True, exist_ok=True)
    # until the stacks are new, the list must not vouch for them
    (folder / f"{job.item}.json").unlink(missing_ok=True)
    if len(chosen):
        rows = _write_stacks(folder, job.item, micrograph, wanted.pixels[chosen], settings, on_batch)
        if len(rows) < len(chosen):
            skipped["without any contrast around them"] = len(chosen) - len(rows)
        chosen = chosen[rows]
    part = micrograph.part(wanted, chosen, skipped, images, table)
    write_part(folder, part)
    return part, True


def _are_there(part: Part, folder: Path, settings: ExtractionSettings) -> bool:
    """Whether the stacks have the length that they must have."""
    size = 1024 + len(part) * settings.box**2 * (2 if settings.float16 else 4)
    try:
        return all((folder / name).stat().st_size == size for name in part.stacks().values())
    except OSError:
        return False


def _write_stacks(
    folder: Path,
    item: str,
    micrograph: ProcessedMicrograph,
    pixels: NDArray[np.float64],
    settings: ExtractionSettings,
    on_batch: Callable[[int], None] | None,
) -> NDArray[np.int64]:
    """Which of the particles were written."""
    dtype = np.float16 if settings.float16 else np.float32
    done: list[NDArray[np.int64]] = []
    batches = micrograph.extracted(pixels)
    first = next(batches)
    while not len(first.rows) and (following := next(batches, None)) is not None:
        first = following
    if not len(first.rows):
        return np.zeros(0, np.int64)
    with ExitStack() as stack:
        halves = ("",) if first.even is None else ("", "even", "odd")
        writers = [
            stack.enter_context(
                mrc.stack_writer(
                    folder / (f"{item}_{half}.mrcs" if half else f"{item}.mrcs"),
                    micrograph.output,
                    dtype=dtype,
                )
            )
            for half in halves
        ]
        for batch in _chained(first, batches):
            for writer, images in zip(writers, (batch.images, batch.even, batch.odd), strict=False):
                assert images is not None
                for image in images.cpu().numpy():
                    writer.append(image)
            done.append(batch.rows)
            if on_batch is not None:
                on_batch(len(batch.rows))
    return np.concatenate(done)


def _chained(first: Extracted, rest: Iterator[Extracted]) -> Iterator[Extracted]:
    yield first
    yield from rest
