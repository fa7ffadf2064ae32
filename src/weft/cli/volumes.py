"""What commands about templates and masks share: reading maps, checking settings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from weft.settings import Settings

if TYPE_CHECKING:
    import torch

__all__ = ["checked", "read_map"]

_Model = TypeVar("_Model", bound=Settings)


def checked(model: type[_Model], given: dict[str, Any]) -> _Model:
    """A settings model from the options that were given.

    Raises
    ------
    SettingsError
        In one sentence: an option is missing, or two contradict each other.
    """
    from pydantic import ValidationError

    from weft.errors import SettingsError
    from weft.session.fields import explain

    try:
        return model(**given)
    except ValidationError as error:
        text = explain(error, model, "--").removeprefix("--: ")
        for name in model.model_fields:
            text = text.replace(f"--{name}", f"--{name.replace('_', '-')}")
        raise SettingsError(text) from None


def read_map(path: Path, voxel_size: float | None = None) -> tuple[torch.Tensor, float]:
    """A map and the size of its voxels.

    Parameters
    ----------
    path : Path
    voxel_size : float, optional
        Å, instead of what the header says.

    Returns
    -------
    map : (z, y, x) float32 tensor
        Whatever the order of axes in the file.
    voxel_size : float
        Å.

    Raises
    ------
    InputFileError
        Not a map, or its header does not tell the size of cubic voxels.
    """
    import numpy as np
    import torch

    from weft.errors import InputFileError, RequestError
    from weft.formats import mrc

    if not path.is_file():
        raise RequestError(f"{path}: there is no such file.")
    data, info = mrc.read(path)
    if data.ndim != 3 or data.dtype.kind == "c":
        raise InputFileError(path, "it is not a volume of real numbers; give a map")
    # axis 1 of the file's columns, rows, sections is x
    axes = info.axes if sorted(info.axes) == [1, 2, 3] else (1, 2, 3)
    stored = {axis: 2 - place for place, axis in enumerate(axes)}
    data = data.transpose(stored[3], stored[2], stored[1])
    if voxel_size is None:
        sizes = info.voxel_size
        if sizes is None or min(sizes) <= 0.0:
            raise InputFileError(
                path, "its header does not tell the voxel size: give it with --input-voxel-size"
            )
        if max(sizes) - min(sizes) > 1e-3 * max(sizes):
            raise InputFileError(
                path,
                "its voxels are not cubes but {:g} × {:g} × {:g} Å; if the header is wrong, give their size "
                "with --input-voxel-size".format(*sizes),
            )
        voxel_size = sum(sizes) / 3.0
    return torch.from_numpy(np.ascontiguousarray(data, np.float32)), float(voxel_size)
