"""``weft vae volumes``: places in latent space as people give them, and the files of their volumes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from weft.errors import RequestError
from weft.formats import mrc
from weft.session.heterogeneity.run_folder import VAERun

__all__ = ["read_places", "write_volumes"]


def read_places(
    run: VAERun,
    written: Sequence[str],
    file: Path | None,
    particles: Sequence[str],
    epoch: int | None = None,
) -> NDArray[np.float32]:
    """Places in latent space, (n, latent); the one of a homogeneous training has no coordinates.

    Parameters
    ----------
    run : VAERun
    written : list of str
        ``"0.5,-1,2"``.
    file : Path, optional
        One place a line, in text or CSV, or an array in .npy.
    particles : list of str
        Names.
    epoch : int, optional
        Of the latent space that the particles are in.

    Raises
    ------
    RequestError
        No place, another number of coordinates, something that is no number, an unknown particle.
    """
    if run.facts.homogeneous:
        if written or file or particles:
            raise RequestError(f"{run.path}: a homogeneous training has one structure and no places")
        return np.zeros((1, 0), np.float32)
    wanted = run.facts.network.latent
    found = [_numbers(text, f"--at {text}", wanted) for text in written]
    if file is not None:
        found += _of_file(file, wanted)
    if particles:
        latent = run.latent(epoch)
        at = {name: i for i, name in enumerate(latent.particle)}
        unknown = [name for name in particles if name not in at]
        if unknown:
            raise RequestError(f"{run.path}: no particle is called {unknown[0]}; one is {latent.particle[0]}")
        found += [latent.mu[at[name]] for name in particles]
    if not found:
        raise RequestError("say which places: --at, --points or --particle")
    places = np.array(found, np.float32)
    if not np.isfinite(places).all():
        raise RequestError("a place has a coordinate that is no finite number")
    return places


def _numbers(text: str, source: str, wanted: int) -> NDArray[np.float32]:
    try:
        values = np.array([float(x) for x in text.replace(",", " ").split()], np.float32)
    except ValueError:
        raise RequestError(f"{source}: give {wanted} numbers, separated by commas") from None
    if len(values) != wanted:
        raise RequestError(
            f"{source}: places in this latent space have {wanted} coordinates, not {len(values)}"
        )
    return values


def _of_file(file: Path, wanted: int) -> list[NDArray[np.float32]]:
    if not file.is_file():
        raise RequestError(f"--points {file}: there is no such file.")
    if file.suffix == ".npy":
        array = np.atleast_2d(np.load(file, allow_pickle=False))
        if array.ndim != 2 or array.shape[1] != wanted or not np.issubdtype(array.dtype, np.number):
            raise RequestError(f"{file}: an array of numbers (n, {wanted}) is needed, this is {array.shape}")
        return [np.asarray(row, np.float32) for row in array]
    lines = [line.split("#")[0].strip() for line in file.read_text().splitlines()]
    return [_numbers(line, f"{file}, line {i}", wanted) for i, line in enumerate(lines, 1) if line]


def write_volumes(
    run: VAERun,
    places: NDArray[np.float32],
    output: str | Path,
    *,
    epoch: int | None = None,
    size: int | None = None,
) -> Iterator[Path]:
    """Write ``vol_000.mrc``, ... and, beside them, ``places.txt``; gives each path when it is written."""
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    pixel_size = run.pixel_size * run.box / (size or run.box)
    for i, place in enumerate(places):
        path = folder / f"vol_{i:03d}.mrc"
        mrc.write(path, run.volumes(place[None], epoch, size)[0], pixel_size)
        yield path
    np.savetxt(folder / "places.txt", places, fmt="%.6g")
