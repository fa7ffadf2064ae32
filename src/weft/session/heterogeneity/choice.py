"""Which particles a command works on: files of names or indices, as Weft and other programs write them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weft.errors import FormatError, RequestError
from weft.formats.tilt_particles import TiltParticles

__all__ = ["choose_particles"]

_SHOWN = 3  # names in a message
_UNREADABLE = (ValueError, pickle.UnpicklingError, EOFError, AttributeError, ImportError, IndexError)
#: What an array of numbers in a pickle is made of; anything else in one could run a program.
_HARMLESS = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy._core.numeric", "_frombuffer"),
    ("numpy.core.numeric", "_frombuffer"),
}


def choose_particles(path: str | Path, particles: TiltParticles) -> NDArray[np.int64]:
    """The particles that a file names.

    Parameters
    ----------
    path : path-like
        Text with a name, or an index from 0, on each line; an array of indices or a mask in NumPy's
        ``.npy``; or a pickled one as tomoDRGN and cryoDRGN have it (``.pkl``).
    particles : TiltParticles
        To choose from.

    Returns
    -------
    (k) int64
        Indices, each once, in the order of `particles`.

    Raises
    ------
    RequestError
        There is no such file, it chooses nothing, or something that is not there.
    FormatError
        It cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        raise RequestError(f"{path}: there is no such file of particles.")
    values = _read(path)
    if isinstance(values, list):
        chosen = _named(path, values, particles)
    elif values.dtype == bool:
        if len(values) != len(particles):
            raise RequestError(f"{path}: a mask of {len(values)} particles does not fit {len(particles)}.")
        chosen = values.nonzero()[0]
    else:
        chosen = _checked(path, values, particles)
    if len(chosen) == 0:
        raise RequestError(f"{path}: it names none of the {len(particles)} particles of {particles.path}.")
    return np.unique(chosen).astype(np.int64)


def _named(path: Path, names: list[str], particles: TiltParticles) -> NDArray[np.int64]:
    known = {name: i for i, name in enumerate(particles.particle)}
    missing = [name for name in names if name not in known]
    if len(missing) == len(names) and all(name.isdecimal() for name in names):
        return _checked(path, np.array([int(name) for name in names], np.int64), particles)
    if missing:
        shown = ", ".join(missing[:_SHOWN]) + (" ..." if len(missing) > _SHOWN else "")
        raise RequestError(
            f"{path}: {len(missing)} of its {len(names)} names are not among the particles of "
            f"{particles.path} ({shown}); those are called like {particles.particle[0]}."
        )
    return np.array([known[name] for name in names], np.int64)


def _checked(path: Path, numbers: NDArray[Any], particles: TiltParticles) -> NDArray[np.int64]:
    wrong = (numbers < 0) | (numbers >= len(particles))
    if wrong.any():
        raise RequestError(
            f"{path}: there is no particle {int(numbers[wrong][0])}; they count from 0 to "
            f"{len(particles) - 1} in {particles.path}."
        )
    return numbers.astype(np.int64)


def _read(path: Path) -> list[str] | NDArray[Any]:
    if path.suffix in (".npy", ".pkl"):
        try:
            with path.open("rb") as file:
                found = np.load(file, allow_pickle=False) if path.suffix == ".npy" else _Careful(file).load()
            values = np.asarray(found).reshape(-1)
        except (
            ValueError,
            pickle.UnpicklingError,
            EOFError,
            AttributeError,
            ImportError,
            IndexError,
        ) as error:
            raise FormatError(path, f"it holds no array of indices ({error})") from error
        if values.dtype != bool and not (np.issubdtype(values.dtype, np.integer) or values.size == 0):
            raise FormatError(path, "it holds no whole numbers and no mask")
        return values if values.size else values.astype(np.int64)
    lines = (line.strip() for line in path.read_text(errors="replace").splitlines())
    return [line for line in lines if line and not line.startswith("#")]


class _Careful(pickle.Unpickler):
    """Unpickles arrays of numbers, and nothing that could run a program."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _HARMLESS:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it holds a {module}.{name}")
