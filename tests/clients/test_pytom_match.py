"""pytom-match-pick 0.14, run on a NumPy stand-in for CuPy, finds the same in the same tomogram as Weft.

    WEFT_PYTOM=FOLDER python -m pytest tests/clients/test_pytom_match.py

FOLDER is that of benchmarks/pytom.py; pytom is installed into it where it is not there yet. Skipped without
WEFT_PYTOM, and where pip cannot get it.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
STEP = "38.53"  # 480 orientations


@pytest.fixture(scope="module")
def benchmark() -> Iterator[ModuleType]:
    """``benchmarks/pytom.py``, which imports its neighbours."""
    pytest.importorskip("psutil")
    sys.path.insert(0, str(ROOT / "benchmarks"))
    yield importlib.import_module("pytom")
    sys.path.remove(str(ROOT / "benchmarks"))
    for name in ("pytom", "matching_case", "measuring", "weft_match"):  # names too common to leave behind
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def python(benchmark: ModuleType) -> Path:
    """The interpreter that has pytom-match-pick."""
    folder = os.environ.get("WEFT_PYTOM")
    if not folder:
        pytest.skip("pytom-match-pick: set WEFT_PYTOM to a folder that it may be installed into")
    try:
        return Path(benchmark.environment(Path(folder).absolute()))
    except (subprocess.CalledProcessError, OSError) as error:
        pytest.skip(f"pytom-match-pick cannot be installed: {error}")


@pytest.fixture(scope="module")
def case(benchmark: ModuleType, python: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """48³ voxels with eight particles, a template of 17³."""
    scene = benchmark.Scene(size=48, box=17, radius=6, soft=0.5, scale=0.65, corners=(14, 33), wander=2)
    return benchmark.make_case(tmp_path_factory.mktemp("pytom"), python, scene)


@pytest.mark.parametrize("name", ["direct", "same"])
def test_scores_are_those_of_pytom(benchmark: ModuleType, python: Path, case: Any, name: str) -> None:
    """Without weights, and with the same CTF on the template: the maps differ by how templates are turned.

    pytom turns by cubic splines, Weft by a threefold Fourier oversampling; of balls as small as 0.8 voxels
    across that makes 0.0026 at most (on 100³ voxels with a template of 25³ 0.0005).
    """
    agreement, _, _ = benchmark.compare(python, case, name, STEP)
    assert agreement.correlation > 0.9999
    assert agreement.largest < 0.007
    assert agreement.moved <= 1.0
    assert agreement.turned == 0
    assert agreement.found == 8


def test_each_programs_own_weights(benchmark: ModuleType, python: Path, case: Any) -> None:
    """With CTF, dose and tilts by each program itself.

    At low frequencies, where sections overlap, Weft counts as seen what a template of this size cannot tell
    apart, and pytom stretches an odd box's frequencies by n/(n - 1): scores differ by 0.1 and less.
    """
    agreement, weft, other = benchmark.compare(python, case, "ctf", STEP)
    assert agreement.correlation > 0.95
    assert agreement.moved <= 1.5
    assert agreement.turned <= 1
    assert agreement.found == 8
    assert weft.scores.max() == pytest.approx(other.scores.max(), abs=0.03)
