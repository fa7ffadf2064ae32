"""`weft vae volumes-analyze`."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from fake_training import FakeRun
from typer.testing import CliRunner

from weft.cli.vae_analyze import app
from weft.errors import FitError, InputFileError, RequestError
from weft.formats import mrc
from weft.session.heterogeneity.volume_analysis import VolumeAnalysisSettings, analyze_volumes, find_volumes

PLACES = np.linspace(-3, 3, 7)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    run = FakeRun(tmp_path, np.zeros((5, 1)))
    place = tmp_path / "volumes"
    place.mkdir()
    for i, volume in enumerate(run.volumes(PLACES[:, None])):
        mrc.write(place / f"v{i}.mrc", volume, 3.5)
    (place / "notes.txt").write_text("no volume")
    return place


def test_scores_order_the_volumes_by_the_movement(folder: Path, tmp_path: Path) -> None:
    found = analyze_volumes(find_volumes([folder]), tmp_path / "out", VolumeAnalysisSettings(components=2))
    score = found.components.scores[:, 0]
    assert (np.diff(score) > 0).all() or (np.diff(score) < 0).all()
    with (tmp_path / "out" / "components.csv").open() as file:
        table = list(csv.DictReader(file))
    assert table[0]["volume"] == "explained"
    assert [float(row["pc1"]) for row in table[1:]] == pytest.approx(score.tolist(), rel=1e-5)
    mask, info = mrc.read(tmp_path / "out" / "mask.mrc")
    assert info.voxel_size[0] == pytest.approx(3.5)
    axis = mrc.read(tmp_path / "out" / "pc1.mrc")[0]
    assert not axis[mask <= 0.05].any()
    # two standard deviations along the component, in five steps of which the third is the mean
    mean = mrc.read(tmp_path / "out" / "mean.mrc")[0]
    assert mrc.read(tmp_path / "out" / "pc1_03.mrc")[0] == pytest.approx(mean)
    step = 2.0 * score.std(ddof=1)
    assert mrc.read(tmp_path / "out" / "pc1_05.mrc")[0] == pytest.approx(mean + step * axis, abs=1e-4)


def test_a_mask_decides_what_is_compared(folder: Path, tmp_path: Path) -> None:
    mask = np.zeros((24, 24, 24), np.float32)
    mask[:, :, :9] = 1.0  # the blob that stands still
    mrc.write(tmp_path / "mask.mrc", mask, 3.5)
    with pytest.raises(FitError, match="all the same"):
        analyze_volumes(find_volumes([folder]), tmp_path / "out", mask=tmp_path / "mask.mrc")
    mrc.write(tmp_path / "mask.mrc", mask[:, :, ::-1].copy(), 3.5)
    found = analyze_volumes(find_volumes([folder]), tmp_path / "out", mask=tmp_path / "mask.mrc")
    assert found.components.explained[0] > 0.7


def test_volumes_that_cannot_be_compared(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no such file or folder"):
        find_volumes([folder / "missing.mrc"])
    with pytest.raises(RequestError, match="at least two volumes; 1 found"):
        find_volumes([folder / "v0.mrc", folder / "v0.mrc"])
    mrc.write(folder / "v9.mrc", np.ones((8, 8, 8), np.float32), 3.5)
    with pytest.raises(InputFileError, match=r"v9.mrc: it has 8 × 8 × 8 voxels"):
        analyze_volumes(find_volumes([folder]), tmp_path / "out")


def test_the_command(folder: Path, tmp_path: Path) -> None:
    asked = ["volumes-analyze", str(folder), "--output", str(tmp_path / "out"), "--components", "1", "--json"]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert len(facts["scores"]) == 7
    assert facts["explained"][0] > 0.7
