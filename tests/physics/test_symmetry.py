"""Point groups: that they are groups, and that their axes lie as RELION's."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from weft.errors import SettingsError
from weft.physics.symmetry import symmetry_operators

SIZES = {"C1": 1, "C2": 2, "C7": 7, "D2": 4, "D7": 14, "T": 12, "O": 24, "I": 60, "I1": 60, "I2": 60}


def same_set(first: NDArray[np.float64], second: NDArray[np.float64], tolerance: float) -> bool:
    """Whether each matrix of one has its like in the other."""
    away = np.abs(first[:, None] - second[None]).max(axis=(2, 3))
    return bool(away.min(1).max() < tolerance and away.min(0).max() < tolerance)


@pytest.mark.parametrize("name", SIZES)
def test_groups(name: str) -> None:
    group = symmetry_operators(name)
    assert group.shape == (SIZES[name], 3, 3)
    assert torch.allclose(group[0], torch.eye(3, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(group @ group.mT, torch.eye(3, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(torch.linalg.det(group), torch.ones(len(group), dtype=torch.float64))
    products = (group[:, None] @ group[None]).reshape(-1, 3, 3).numpy()
    assert same_set(products, group.numpy(), 1e-9)
    away = (group[:, None] - group[None]).abs().amax(dim=(2, 3)) + 10.0 * torch.eye(len(group))
    assert len(group) == 1 or float(away.min()) > 1e-3, "an operator that is there twice"


def test_names() -> None:
    assert torch.equal(symmetry_operators(" d7 "), symmetry_operators("D7"))
    assert torch.equal(symmetry_operators("I"), symmetry_operators("I2"))
    for name in ("", "C0", "C", "D", "X3", "I7", "T2", "C-1", "O2"):
        with pytest.raises(SettingsError, match="point group"):
            symmetry_operators(name)


# D1 is a two-fold axis along x
@pytest.mark.parametrize("name", ["C3", "C7", "D1", "D2", "D3", "D7", "T", "O", "I", "I1", "I2"])
def test_axes_are_relions(name: str, tmp_path: Path) -> None:
    """The transformation matrices of RELION 3.1.3, which it prints with five to eight digits."""
    if shutil.which("relion_refine") is None:
        assert os.environ.get("CI") != "true", (
            "relion_refine is not installed (Debian: apt-get install relion)"
        )
        pytest.skip("relion_refine is not installed")
    command = ["relion_refine", "--sym", name, "--print_symmetry_ops", "--o", str(tmp_path / "run")]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
    number = r"\s*(-?[\d.]+(?:e-?\d+)?)"
    rows = re.findall(rf"^{number}{number}{number}\s*$", said, re.MULTILINE)
    theirs = np.array(rows, dtype=np.float64).reshape(-1, 3, 3)
    ours = symmetry_operators(name).numpy()
    assert len(theirs) == len(ours)
    # T's and I's constants have five digits in RELION's source
    assert same_set(theirs, ours, 5e-5)
