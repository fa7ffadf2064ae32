"""Running other programs."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Relion = Callable[..., str]


@pytest.fixture(scope="session")
def relion() -> Relion:
    """Run a program of RELION; what it said. Skips where RELION is missing, and fails there in CI."""

    def call(program: str, *arguments: object, cwd: Path) -> str:
        path = shutil.which(f"relion_{program}")
        if path is None:
            message = f"relion_{program} is not installed (Debian: apt-get install relion)"
            if os.environ.get("CI") == "true":
                pytest.fail(message)
            pytest.skip(message)
        command = [path, *map(str, arguments)]
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)
        said = done.stdout + done.stderr
        assert done.returncode == 0, said
        return said

    return call
