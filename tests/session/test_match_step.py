"""The match and candidates steps of a small session: what they write, what reruns, interruptions, errors."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from match_files import BOX, DIAMETER, VOXEL, write_mask, write_template

import weft
from weft.errors import ItemError, RequestError
from weft.formats import mrc
from weft.formats.star import read_star
from weft.matching import search
from weft.session import matching
from weft.session.match_job import MatchJob
from weft.session.matching import MatchingSettings, match_tomogram
from weft.session.session import Session
from weft.session.tomogram_source import session_tomogram

STEPS = ["match", "candidates"]


@pytest.fixture(scope="module")
def maps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``barrel.mrc``, ``shell.mrc`` and ``mask.mrc``."""
    folder = tmp_path_factory.mktemp("maps")
    write_template(folder / "barrel.mrc")
    write_template(folder / "shell.mrc", source="shell")
    write_mask(folder / "mask.mrc")
    return folder


def options(maps: Path, **changes: Any) -> dict[str, Any]:
    given = {
        "template": (str(maps / "barrel.mrc"),),
        "mask": str(maps / "mask.mrc"),
        "particle_diameter": DIAMETER,
        "angular_step": 40.0,
        "refine": 20,
    }
    return given | changes


def asked(session: Session, maps: Path, **changes: Any) -> Session:
    from weft.session import config

    for key, value in options(maps, **changes).items():
        text = json.dumps(list(value)) if isinstance(value, tuple) else str(value)
        config.edit_file(session.root, {f"matching.{key}": text})
    return weft.open(session.root)


@pytest.fixture(scope="module")
def matched(done_tilts: Path, maps: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A session whose tomogram has been searched: not to be changed."""
    root = tmp_path_factory.mktemp("matched") / "session"
    copy(done_tilts, root)
    report = asked(weft.open(root), maps).run(steps=STEPS, workers=0)
    assert not report.failed
    return root


def copy(source: Path, root: Path) -> Session:
    shutil.copytree(source, root)
    for path in (root / "records").glob("*.json"):
        path.write_text(path.read_text().replace(str(source), str(root)))
    return weft.open(root)


def name_of(root: Path) -> str:
    return next(iter(weft.open(root).series))


def job_of(root: Path, stem: str = "barrel") -> tuple[Path, MatchJob]:
    path = root / "matching" / f"{name_of(root)}_{stem}.json"
    return path, MatchJob.read(path)


def test_what_is_written(matched: Path, maps: Path) -> None:
    path, job = job_of(matched)
    tomogram = session_tomogram(weft.open(matched)[name_of(matched)])
    assert job.shape == tomogram.shape
    assert job.voxel_size == VOXEL
    assert (path.parent / job.tomogram).resolve() == tomogram.path.resolve()
    assert job.hand == round(tomogram.geometry.hand)
    assert job.templates[0].path == str(maps / "barrel.mrc")
    scores, info = mrc.read(path.parent / job.files["scores"])
    numbers, _ = mrc.read(path.parent / job.files["angles"])
    rotations = np.load(path.parent / job.rotations)
    assert info.voxel_size == pytest.approx((VOXEL,) * 3)
    assert scores.shape == numbers.shape == job.shape
    assert np.isfinite(scores).all()
    assert scores.max() <= 1.0
    assert 0 <= numbers.min() <= numbers.max() < len(rotations) == job.statistics["rotations"]
    assert job.statistics["search_space"] == scores.size * len(rotations)
    refined = np.load(path.parent / job.files["refined"])
    assert len(refined["xyz"]) == len(refined["euler"]) == len(refined["score"]) <= 20
    assert (refined["score"] >= scores.reshape(-1)[refined["index"]] - 1e-3).all()
    assert not (path.parent / ".partial").exists()
    metrics = weft.open(matched)[name_of(matched)].metrics
    assert metrics["match_std"] == pytest.approx(job.statistics["std"])
    assert metrics["candidates"] > 5


def test_candidates_lie_on_particles(matched: Path, tilt_frames: Path) -> None:
    """The best of them; the specimen of the alignment may be shifted against the true one along the beam."""
    table = read_star(matched / "matching" / f"{name_of(matched)}_barrel_candidates.star")
    particles = table["particles"] if "particles" in table else next(iter(table.values()))
    columns = [f"rlnCenteredCoordinate{axis}Angst" for axis in "XYZ"]
    found = np.stack([np.asarray(particles[c], float) for c in columns], axis=1)[:12]
    truth = json.loads(next(tilt_frames.glob("*.json")).read_text())
    true = np.array(truth["particles_xyz_centered"])
    away = np.linalg.norm(found[:, None] - true[None], axis=2)
    print(np.round(np.sort(away.min(1))), np.asarray(particles["rlnLCCmax"], float)[:12])
    assert (away.min(1) < 3 * VOXEL).mean() > 0.7
