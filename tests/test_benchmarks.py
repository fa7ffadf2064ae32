"""The benchmarks' own arithmetic: they are run by hand, so that nothing else would notice a fault."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from weft.formats.star import Table, write_star

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def cases(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """``cases``, which imports the other shared modules."""
    pytest.importorskip("psutil")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = importlib.import_module("cases")
    yield module
    for name in ("cases", "measuring", "large_movie"):  # names too common to leave behind
        sys.modules.pop(name, None)


def _case(module: ModuleType, frames: int = 6) -> Any:
    rng = np.random.default_rng(0)
    places = rng.uniform(0, 600, (25, 2))
    truth = {
        "optics": {"pixel": 1.5, "kv": 300.0, "cs": 2.7, "amplitude": 0.07},
        "shape": [400, 480],
        "track_xy": places.tolist(),
        "tracks": rng.normal(size=(frames, 25, 2)).tolist(),
        "defocus": 15000.0,
        "plane": [0.5, -0.25],
    }
    return module.Case("made_up", Path("m.tif"), Path("g.mrc"), truth)


def test_relion_star_becomes_tracks(cases: ModuleType, tmp_path: Path) -> None:
    """Shifts are minus tracks, in pixels; the polynomial's 36 numbers are those of x, then those of y."""
    case = _case(cases)
    shift = np.array([[0.0, 0.0], [1.0, -2.0], [2.0, -3.0]])
    coefficients = np.zeros(36)
    coefficients[0] = 0.3  # of x: t
    coefficients[3 + 1] = 0.2  # of x: x·t²
    coefficients[18 + 9] = -0.4  # of y: y·t
    whole = {
        "rlnMicrographFrameNumber": [1, 2, 3],
        "rlnMicrographShiftX": shift[:, 0],
        "rlnMicrographShiftY": shift[:, 1],
    }
    model = {"rlnMotionModelCoeffsIdx": np.arange(36), "rlnMotionModelCoeff": coefficients}
    for name, blocks in (("global", {}), ("local", {"local_motion_model": Table(model)})):
        write_star(tmp_path / f"{name}.star", {"global_shift": Table(whole), **blocks})
    found = cases.relion_tracks(tmp_path / "global.star", case)
    np.testing.assert_allclose(found, np.repeat(-1.5 * shift[:, None], 25, axis=1))
    x, y = (case.places / (1.5 * np.array([480, 400])) - 0.5).T
    t = np.arange(3)[:, None]
    local = np.stack([0.3 * t + 0.2 * x * t**2, -0.4 * y * t], axis=-1)
    found = cases.relion_tracks(tmp_path / "local.star", case)
    # STAR files hold all digits of a float
    np.testing.assert_allclose(found, -1.5 * (shift[:, None] + local), rtol=1e-9, atol=1e-9)


def test_rmse_is_blind_to_where_a_place_rests(cases: ModuleType) -> None:
    case = _case(cases)
    moved = case.tracks + np.random.default_rng(1).normal(size=(1, 25, 2))
    assert cases.track_rmse(moved, case) == pytest.approx(0.0, abs=1e-12)
    # one of six frames off by (3, 4): 5·√(1/6 − 1/36)
    moved[2] += (3.0, 4.0)
    assert cases.track_rmse(moved, case) == pytest.approx(5.0 * np.sqrt(5.0) / 6.0)


def test_true_defocus_is_that_of_the_plane(cases: ModuleType) -> None:
    case = _case(cases)
    x, y = case.places.T
    expected = 15000.0 + 0.5 * (x - 360.0) - 0.25 * (y - 300.0)
    np.testing.assert_allclose(cases.true_defocus(case), expected)


def test_angles_of_lines(cases: ModuleType) -> None:
    assert cases.angle_difference(-88.0, 89.0) == pytest.approx(3.0)
    assert cases.angle_difference(10.0, 100.0) == pytest.approx(90.0)


def test_tables(cases: ModuleType) -> None:
    from measuring import table

    text = table([{"what": "a", "n": 1.234}, {"what": "longer", "n": None}, {"what": "b", "n": 12345.6}])
    assert text.splitlines() == [
        "| what   |     n |",
        "|--------|------:|",
        "| a      |  1.23 |",
        "| longer |     – |",
        "| b      | 12346 |",
    ]


def test_children_of_children_are_counted(cases: ModuleType, tmp_path: Path) -> None:
    """A grandchild that its parent does not wait for burns a quarter of a second."""
    from measuring import measure

    burn = "import time\nwhile time.process_time() < 0.25: pass"
    orphan = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {burn!r}])"
    usage = measure([sys.executable, "-c", orphan])
    assert usage.exit_code == 0
    assert 0.25 <= usage.cpu < 5.0
    with pytest.raises(RuntimeError, match="exit code 3"):
        measure([sys.executable, "-c", "raise SystemExit(3)"], log=tmp_path / "log")
