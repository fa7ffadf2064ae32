"""Small scenes that the simulator's tests share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="session")
def small_pdb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A molecule of 40 carbon atoms within 12 Å: its whole image fits into a small frame."""
    rng = np.random.default_rng(3)
    directions = rng.normal(size=(40, 3))
    places = directions / np.linalg.norm(directions, axis=1, keepdims=True) * rng.uniform(2, 12, (40, 1))
    lines = [
        f"ATOM  {i + 1:5d}  C   ALA A{i + 1:4d}    {x:8.3f}{y:8.3f}{z:8.3f}  1.00 20.00           C"
        for i, (x, y, z) in enumerate(places)
    ]
    path = tmp_path_factory.mktemp("pdb") / "small.pdb"
    path.write_text("\n".join([*lines, "END", ""]))
    return path
