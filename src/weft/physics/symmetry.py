"""Point groups: which rotations leave a structure as it is.

Names and axes are RELION's and Xmipp's: Cn about z; Dn with a two-fold axis along x as well; T with a
three-fold axis along z and a two-fold one in the plane of y and z; O with four-fold axes along x, y and z; I1
and I2 with two-fold axes along x, y and z, the five-fold ones in the plane of x and z being nearer to x in I1
and nearer to z in I2, which is I too.
"""

from __future__ import annotations

import re

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from weft.errors import SettingsError

__all__ = ["symmetry_operators"]

_NAME = re.compile(r"([CD])([1-9]\d*)|T|O|I[12]?")


def symmetry_operators(name: str) -> torch.Tensor:
    """All rotations of a point group.

    Parameters
    ----------
    name : str
        C1, C2 ...; D2, D7 ...; T, O, I, I1, I2.

    Returns
    -------
    (n, 3, 3) float64 tensor
        The first is the identity.

    Raises
    ------
    SettingsError
        For a name that is no point group.
    """
    found = _NAME.fullmatch(name.strip().upper())
    if found is None:
        raise SettingsError(f"{name!r} is not a point group: C1, C2 ..., D2 ..., T, O, I1 or I2")
    text = found[0]
    group = Rotation.create_group(text[0] if text[0] in "TOI" else text, axis="Z").as_matrix()
    if text[0] == "I":
        five = np.array([0.525731112, 0.0, 0.850650808] if text != "I1" else [0.850650808, 0.0, 0.525731112])
        if not _has_axis(group, five, 5):
            group = _turned(group, Rotation.from_euler("z", 90, degrees=True).as_matrix())
    elif text == "T":
        # its diagonal to z, its x axis into the plane of y and z
        z = np.ones(3) / np.sqrt(3.0)
        x = np.cross([1.0, 0.0, 0.0], z) / np.linalg.norm(np.cross([1.0, 0.0, 0.0], z))
        group = _turned(group, np.stack([x, np.cross(z, x), z]))
    order = np.argsort(-np.trace(group, axis1=1, axis2=2), kind="stable")
    return torch.from_numpy(np.ascontiguousarray(group[order]))


def _turned(group: NDArray[np.float64], turn: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(turn @ group @ turn.T)


def _has_axis(group: NDArray[np.float64], axis: NDArray[np.float64], fold: int) -> bool:
    turn = Rotation.from_rotvec(axis * (2.0 * np.pi / fold)).as_matrix()
    return bool((np.abs(group - turn).max(axis=(1, 2)) < 1e-6).any())
