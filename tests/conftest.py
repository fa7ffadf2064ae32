"""Fixtures that every test may use."""

from __future__ import annotations

import os
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
