"""Examples for picking networks as files: simulated ones in a folder that grows, and reading them again."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from weft.errors import CorruptError
from weft.formats.atomic import atomic_write_bytes
from weft.picking.examples import Example

__all__ = ["GRID", "read_example", "simulate_examples", "simulated_example", "write_example"]

#: Å: pixels of the network's grid, and of the simulation before it is scaled to that.
GRID, _FINE = 8.0, 4.0
#: Pixels of a simulated micrograph before it is scaled.
_SIDE = 1024


def simulated_example(seed: int, number: int) -> Example:
    """One micrograph of a made-up structure; the same for the same numbers."""
    from weft.simulation.micrograph_settings import random_settings
    from weft.simulation.micrographs import downsampled, simulate_micrograph
    from weft.simulation.phantoms import random_structure

    rng = np.random.default_rng([seed, number])
    settings = random_settings(rng, pixel_size=_FINE, width=_SIDE, height=_SIDE)
    seen = simulate_micrograph(random_structure(rng), settings, rng)
    image = downsampled(seen.signal, _FINE, GRID)
    ny, nx = image.shape
    rows, columns = ((np.arange(n) * (_SIDE / n)).round().astype(int).clip(0, _SIDE - 1) for n in (ny, nx))
    crowded = np.asarray(seen.crowded, dtype=bool)
    radius = 0.5 * seen.diameter
    hidden = np.concatenate([seen.xy[crowded], seen.cut_xy])
    return Example(
        image.astype(np.float16),
        (_SIDE * _FINE, _SIDE * _FINE),
        seen.xy[~crowded],
        seen.diameter,
        seen.artefact[np.ix_(rows, columns)],
        np.concatenate([hidden, np.full((len(hidden), 1), radius)], axis=1),
        settings.dose,
        f"{seed}/{number}",
    )


def simulate_examples(folder: Path, seed: int, count: int, processes: int = 1) -> Iterator[int]:
    """Fill a folder with simulated examples, leaving those that are there; how many there are after each."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [i for i in range(count) if not _place(folder, i).exists()]
    done = count - len(missing)
    yield done
    if not missing:
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        for _ in pool.map(_simulate, [(folder, seed, i) for i in missing]):
            done += 1
            yield done


def _simulate(task: tuple[Path, int, int]) -> None:
    folder, seed, number = task
    write_example(_place(folder, number), simulated_example(seed, number))


def _place(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.npz"


def write_example(path: Path, example: Example) -> None:
    """Keep an example."""
    buffer = io.BytesIO()
    np.savez(
        buffer,
        image=example.image,
        size=example.size,
        xy=example.xy,
        diameter=example.diameter,
        artefact=np.packbits(example.artefact, axis=1),
        unknown=example.unknown,
        exposure=example.exposure,
        name=example.name,
    )
    atomic_write_bytes(path, buffer.getvalue())


def read_example(path: Path) -> Example:
    """Inverse of :func:`write_example`.

    Raises
    ------
    CorruptError
    """
    try:
        with np.load(path, allow_pickle=False) as data:
            image = data["image"]
            artefact = np.unpackbits(data["artefact"], axis=1, count=image.shape[1]).astype(bool)
            width, height = data["size"].tolist()
            return Example(
                image,
                (width, height),
                data["xy"],
                float(data["diameter"]),
                artefact,
                data["unknown"],
                float(data["exposure"]) if "exposure" in data else math.inf,
                str(data["name"]),
            )
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise CorruptError(
            path, f"is no example for training ({error}); delete it, and it is made anew"
        ) from None
