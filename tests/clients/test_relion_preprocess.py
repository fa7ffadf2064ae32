"""RELION beside `weft preprocess`: the same downsampling, and tables that it takes."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from weft.formats import mrc
from weft.formats.star import read_star
from weft.micrographs.preprocessing import PreprocessSettings, preprocess
from weft.session.micrograph_set import preprocess_set

STAR = """
data_optics

loop_
_rlnOpticsGroupName
_rlnOpticsGroup
_rlnVoltage
_rlnSphericalAberration
_rlnAmplitudeContrast
_rlnMicrographOriginalPixelSize
_rlnMicrographPixelSize
opticsGroup1 1 300 2.7 0.1 1.25 1.25

data_micrographs

loop_
_rlnMicrographName
_rlnOpticsGroup
_rlnDefocusU
_rlnDefocusV
_rlnDefocusAngle
"""


def run(program: str, *arguments: object, cwd: Path) -> None:
    path = shutil.which(f"relion_{program}")
    if path is None:
        if os.environ.get("CI") == "true":
            pytest.fail(f"relion_{program} is not installed")
        pytest.skip(f"relion_{program} is not installed")
    done = subprocess.run([path, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    rows = []
    for i in range(2):
        mrc.write(tmp_path / f"m{i}.mrc", rng.normal(20, 3, (512, 512)).astype(np.float32), 1.25)
        rows.append(f"m{i}.mrc 1 10000 9800 30")
    (tmp_path / "micrographs.star").write_text(STAR + "\n".join(rows) + "\n")
    return tmp_path


def test_downsampling_is_relions(folder: Path) -> None:
    # square, since RELION fills up other shapes to squares before
    run(
        "image_handler",
        "--i",
        "m0.mrc",
        "--o",
        "small.mrc",
        "--angpix",
        1.25,
        "--rescale_angpix",
        2.5,
        cwd=folder,
    )
    theirs = mrc.read(folder / "small.mrc")[0]
    ours = preprocess(mrc.read(folder / "m0.mrc")[0], PreprocessSettings(downsample=2.0), 1.25)
    assert theirs.shape == ours.image.shape == (256, 256)
    difference = ours.image.numpy() - theirs
    # only what the two do at the Nyquist frequency differs
    spectrum = np.fft.rfft2(difference)
    spectrum[128, :] = 0.0
    spectrum[:, 128] = 0.0
    assert np.abs(np.fft.irfft2(spectrum, s=difference.shape)).max() < 1e-4
    assert difference.std() < 0.1 * theirs.std()


def test_relion_extracts_from_prepared_micrographs(folder: Path) -> None:
    settings = PreprocessSettings(crop=20, downsample=2.0, invert=True)
    preprocess_set([folder / "micrographs.star"], folder / "prepared", settings)
    (folder / "coords").mkdir()
    # the same place in both: (x - crop) / factor
    for name, x, y in (("old", 260, 320), ("new", 120, 150)):
        (folder / name).mkdir()
        text = f"\ndata_\n\nloop_\n_rlnCoordinateX #1\n_rlnCoordinateY #2\n{x} {y}\n"
        for i in range(2):
            # relion looks for the coordinates of an absolute name under the whole path
            place = folder / name / ("" if name == "old" else str(folder / "prepared").lstrip("/"))
            place.mkdir(parents=True, exist_ok=True)
            (place / f"m{i}_pick.star").write_text(text)
    common = ("--extract", "--coord_suffix", "_pick.star")
    old = ["--i", "micrographs.star", "--coord_dir", "old/", "--part_star", "old.star"]
    run(
        "preprocess",
        *old,
        "--part_dir",
        "old_parts/",
        "--extract_size",
        64,
        "--scale",
        32,
        *common,
        cwd=folder,
    )
    new = ["--i", "prepared/micrographs.star", "--coord_dir", "new/", "--part_star", "new.star"]
    run("preprocess", *new, "--part_dir", "new_parts/", "--extract_size", 32, *common, cwd=folder)
    sizes, images = [], []
    for name in ("old", "new"):
        table = read_star(folder / f"{name}.star")
        sizes.append(table["optics"].floats("rlnImagePixelSize")[0])
        stack = table["particles"].strings("rlnImageName")[0].split("@")[1]
        images.append(np.atleast_3d(mrc.read(folder / stack)[0]).reshape(-1, 32, 32)[0])
    assert sizes == pytest.approx([2.5, 2.5])
    # cut out and then made smaller, or the other way round: the same but for the edges of the box
    inner = np.s_[6:-6, 6:-6]
    assert np.corrcoef(images[0][inner].ravel(), -images[1][inner].ravel())[0, 1] > 0.95
