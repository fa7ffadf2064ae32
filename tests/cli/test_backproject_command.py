"""weft backproject."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from weft.cli import main
from weft.formats import mrc

Weft = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run_weft(capsys: pytest.CaptureFixture[str]) -> Weft:
    def call(*arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        out = capsys.readouterr()
        return code, out.out, out.err

    return call


@pytest.fixture
def star(reference_data: Path) -> Path:
    return reference_data / "real" / "bpowell122__tomodrgn" / "10076_classD_32_sim.star"


def test_a_map_and_what_belongs_to_it(run_weft: Weft, star: Path, tmp_path: Path) -> None:
    output = tmp_path / "deep" / "map.mrc"
    code, said, _ = run_weft("backproject", star, "--output", output, "--device", "cpu")
    assert code == 0
    assert "72 particles, 576 images, box 32 px of 13.1 Å" in said
    assert "dark in the images: the map is inverted" in said
    assert "at FSC 0.143" in said
    assert "at 0.5, from 36 + 36 particles" in said
    assert sorted(path.name for path in output.parent.iterdir()) == [
        *("map.mrc", "map.png", "map_fsc.star", "map_half1.mrc", "map_half2.mrc")
    ]
    data, info = mrc.read(output)
    assert info.voxel_size[0] == pytest.approx(13.1)
    assert data.shape == (32, 32, 32)


def test_options(run_weft: Weft, star: Path, tmp_path: Path) -> None:
    """Stacks elsewhere, some of the particles, no inversion."""
    table = shutil.copy(star, tmp_path / "moved.star")
    stacks = tmp_path / "elsewhere"
    stacks.mkdir()
    shutil.copy(star.with_name("10076_classD_32_sim.mrcs"), stacks)
    chosen = tmp_path / "chosen.txt"
    chosen.write_text("\n".join(str(i) for i in range(2, 30)))
    output = tmp_path / "map.mrc"
    options = (
        "--particles",
        chosen,
        "--first",
        10,
        "--no-invert",
        "--lowpass",
        60,
        "--dose-mask",
        "--seed",
        4,
    )
    code, said, error = run_weft("backproject", table, "-o", output, "--datadir", stacks, *options)
    assert code == 0, error
    assert "10 particles, 80 images" in said
    assert "from 5 + 5 particles" in said
    assert "inverted" not in said
    code, said, _ = run_weft("backproject", table, "-o", output, "--datadir", stacks, "--first", 10)
    assert code == 0
    assert "10 particles" in said


def test_requests_that_cannot_be(run_weft: Weft, star: Path, tmp_path: Path) -> None:
    output = tmp_path / "map.mrc"
    code, _, error = run_weft("backproject", star, "--output", tmp_path / "map.map")
    assert code == 2
    assert "map.map: name a map, FILE.mrc" in error
    code, _, error = run_weft("backproject", tmp_path / "none.star", "--output", output)
    assert code == 2
    assert "none.star: there is no such STAR file" in error
    nobody = tmp_path / "nobody.txt"
    nobody.write_text("# nobody\n")
    code, _, error = run_weft("backproject", star, "--output", output, "--particles", nobody)
    assert code == 2
    assert "names none of the 72 particles" in error
    code, _, error = run_weft("backproject", star, "--output", output, "--mask", tmp_path / "none.mrc")
    assert code == 2
    assert "none.mrc" in error
    code, _, error = run_weft("backproject", star, "--output", output, "--mask-diameter", 500)
    assert code == 1
    assert "a mask of 500 Å does not fit" in error
    assert not output.exists()


def test_a_broken_stack_is_counted(run_weft: Weft, star: Path, tmp_path: Path) -> None:
    """A NaN in the stack: its particle is left out, named, and the exit code says so."""
    table = shutil.copy(star, tmp_path)
    stack = np.array(mrc.read(star.with_name("10076_classD_32_sim.mrcs"))[0])
    stack[11] = np.nan
    mrc.write(tmp_path / "10076_classD_32_sim.mrcs", stack, 13.1, volume=False)
    output = tmp_path / "map.mrc"
    code, said, error = run_weft("backproject", table, "--output", output)
    assert code == 1
    assert output.is_file()
    assert "weft: 1 of 72 particles were left out" in error
    assert "10076_classD_32_sim.mrcs" in error
    assert "from 36 + 35 particles" in said or "from 35 + 36 particles" in said
