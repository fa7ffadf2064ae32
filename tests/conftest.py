"""Fixtures that every test may use."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from weft.session.session import Session

# the tests' images are small: a second thread would mostly wait, and slow down whatever runs beside
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def reference_data() -> Path:
    """The folder of reference data; tests that need it skip where it is absent."""
    path = Path(os.environ.get("WEFT_REFERENCE_DATA", ROOT.parent / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"no reference data at {path} (set WEFT_REFERENCE_DATA)")
    return path


@pytest.fixture(scope="session")
def tiny_movies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three simulated movies of 320×320×5 in ``frames/``, ``gain.mrc`` and ``truth/``: not to be changed."""
    from weft.simulation.session import simulate_session
    from weft.simulation.settings import MovieSimulationSettings

    folder = tmp_path_factory.mktemp("tiny")
    size = {"width": 320, "height": 320, "frames": 5}
    settings = MovieSimulationSettings(**size, pixel_size=1.5, dose_per_frame=4.0, drift=6.0)
    simulate_session(folder, 3, settings, seed=5)
    return folder


@pytest.fixture
def new_session(tiny_movies: Path, tmp_path: Path) -> Callable[..., Session]:
    """Make a session for the tiny movies; keywords change its settings."""
    import weft

    def make(name: str = "session", **changes: Any) -> Session:
        given: dict[str, Any] = {
            "frames": tiny_movies / "frames" / "*.tif",
            "gain": tiny_movies / "gain.mrc",
            "pixel_size": 1.5,
            "voltage": 300.0,
            "cs": 2.7,
            "amplitude": 0.07,
            "dose_per_frame": 4.0,
        }
        return weft.new(tmp_path / name, **(given | changes))

    return make


@pytest.fixture(scope="session")
def tilt_frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One small tilt series with beads, its hand −1: not to be changed."""
    from weft.simulation.tilt_series import write_tilt_session
    from weft.simulation.tilt_settings import SMALL_SERIES, TiltSimulationSettings

    folder = tmp_path_factory.mktemp("tilts")
    write_tilt_session(folder, TiltSimulationSettings(**SMALL_SERIES, hand=-1), seed=3)
    return folder


def _new_tilt_session(root: Path, frames: Path, **changes: Any) -> Session:
    """A session for such a series; keywords change its settings."""
    import weft
    from weft.simulation.tilt_settings import SMALL_SERIES

    given: dict[str, Any] = {
        "frames": frames / "frames" / "*.tif",
        "mdoc": frames / "mdoc",
        "pixel_size": SMALL_SERIES["pixel_size"],
        "voltage": 300.0,
        "cs": 2.7,
        "amplitude": 0.07,
        "dose_per_frame": SMALL_SERIES["dose_per_tilt"] / 2,
        # big voxels are quick
        "reconstruction": {"pixel_size": 20.0},
        "alignment": {"thickness": 1200.0},
    }
    return weft.new(root, **(given | changes))


@pytest.fixture
def new_tilt_session(tilt_frames: Path, tmp_path: Path) -> Callable[..., Session]:
    """Make a session for that series; keywords change its settings."""

    def make(**changes: Any) -> Session:
        return _new_tilt_session(tmp_path / "session", tilt_frames, **changes)

    return make


@pytest.fixture(scope="session")
def done_tilts(tilt_frames: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, processed to the tomogram: not to be changed."""
    root = tmp_path_factory.mktemp("done") / "session"
    report = _new_tilt_session(root, tilt_frames).run(workers=0)
    assert not report.failed
    return root


@pytest.fixture
def tilt_session(done_tilts: Path, tmp_path: Path) -> Session:
    """A processed session of one tilt series, which may be changed."""
    import weft

    root = tmp_path / "session"
    shutil.copytree(done_tilts, root)
    for path in (root / "records").glob("*.json"):
        # the table of a series is found where the session was
        path.write_text(path.read_text().replace(str(done_tilts), str(root)))
    return weft.open(root)
