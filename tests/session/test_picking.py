"""Picking in a session: files, metrics, what makes it stale, teaching."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import starfile

import weft
from weft.errors import RequestError, SettingsError
from weft.picking.picks import Picks
from weft.picking.training import TrainingSettings
from weft.session import config
from weft.session.example_files import read_example, simulate_examples
from weft.session.pick_files import MANUAL, pick_path, pickers, read_picks, write_picks
from weft.session.picking import DEFAULT, model_file, picker_name, read_model
from weft.session.plan import step_states
from weft.session.retraining import train_picker
from weft.session.session import Session


@pytest.fixture
def picked(new_session: Callable[..., Session]) -> Session:
    session = new_session()
    report = session.run(steps=["pick"], workers=0)
    assert not report.failed
    return session


def test_files_and_metrics(picked: Session) -> None:
    for name, movie in picked.items.items():
        metrics = movie.metrics
        table = starfile.read(picked.root / "picks" / "default" / f"{name}.star", always_dict=True)
        (block,) = table.values()  # what reads a plain table of coordinates must find one
        assert {"rlnCoordinateX", "rlnCoordinateY", "rlnAutopickFigureOfMerit"} <= set(block.columns)
        assert len(block) == metrics["particles"]
        with mrcfile.open(picked.root / "mask" / f"{name}.mrc") as file:
            assert file.data.shape == (60, 60)  # 480 Å
            mask = np.array(file.data)
            assert set(np.unique(mask)) <= {0, 1}
            assert float(file.voxel_size.x) == pytest.approx(8.0, rel=1e-3)
        assert metrics["artefacts"] == pytest.approx(float(mask.mean()), abs=1e-5)
        assert 0.0 < metrics["pick_threshold"] <= 1.0
    assert pickers(picked.root) == [DEFAULT]


def test_what_makes_it_stale(picked: Session) -> None:
    first = next(iter(picked.items))
    config.edit_file(picked.root, {"picking.threshold": "0.9"})
    again = weft.open(picked.root)
    states = step_states(again[first].record, again.settings, again.root)
    assert (
        states["pick"].state == "stale"
        if hasattr(states["pick"], "state")
        else "stale" in str(states["pick"])
    )
    assert not again.run(steps=["pick"], workers=0).failed
    assert weft.open(picked.root)[first].metrics["pick_threshold"] == 0.9


def test_it_can_be_switched_off(new_session: Callable[..., Session]) -> None:
    session = new_session(picking={"model": ""})
    assert not session.run(steps=["motion"], workers=0).failed
    assert not session.run(steps=["pick"], workers=0).failed
    assert not (session.root / "picks").exists()


def test_models_that_cannot_be_read(new_session: Callable[..., Session], tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"nowhere\.safetensors cannot be read"):
        read_model(model_file(tmp_path, "nowhere.safetensors"))
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"no model")
    with pytest.raises(RequestError, match=r"broken\.safetensors is not a picking model"):
        read_model(broken)
    assert picker_name(str(broken)) == "broken"
    assert read_model(model_file(None, DEFAULT)).pixel_size == 8.0


def test_picks_come_back_from_their_file(tmp_path: Path) -> None:
    picks = Picks(
        np.array([[10.0, 20.0], [33.3, 4.0]]),
        np.array([0.9, np.nan]),
        84.0,
        np.array([640.0, 128.0]),
        np.array([[10.0, 20.0, 30.0], [-170.0, 80.0, 0.0]]),
        np.array([1, 2]),
    )
    path = tmp_path / "a" / "b.star"
    write_picks(path, picks, 1.5)
    again = read_picks(path, 1.5)
    np.testing.assert_allclose(again.xy, picks.xy, atol=1e-3)
    np.testing.assert_allclose(again.score, picks.score, atol=1e-5)
    np.testing.assert_allclose(again.eulers, picks.eulers, atol=1e-3)
    np.testing.assert_array_equal(again.class_number, picks.class_number)
    assert again.diameter == 84.0
    write_picks(path, Picks(np.zeros((0, 2)), np.zeros(0), np.nan), 1.5)
    assert len(read_picks(path, 1.5)) == 0


def test_teaching(picked: Session, tmp_path: Path) -> None:
    """A new model from picks of the page, kept in the session and used by its name."""
    names = list(picked.items)
    settings = TrainingSettings(steps=2, batch=2, tile=64)
    with pytest.raises(RequestError, match="no micrograph has picks in picks/manual"):
        train_picker(picked, "mine", settings, old=False)
    rng = np.random.default_rng(1)
    for name in names[:2]:
        # one of them outside of the field, one not a number: left out
        xy = np.concatenate([rng.uniform(60.0, 420.0, (5, 2)), [[-50.0, 10.0], [np.nan, 4.0]]])
        write_picks(picked.root / pick_path(MANUAL, name), Picks(xy, np.full(7, np.nan), 90.0), 1.5)
    (picked.root / pick_path(MANUAL, names[2])).write_text("data_\n\nloop_\n_rlnCoordinateX #1\n1\n")
    done = train_picker(picked, "mine", settings, old=False)
    assert (done.micrographs, done.particles) == (2, 10)
    assert len(done.skipped) == 1
    assert names[2] in done.skipped[0]
    assert done.history[-1].step == 2
    model = read_model(done.path)
    assert model.diameter == 90.0
    config.edit_file(picked.root, {"picking.model": "mine"})
    assert not weft.open(picked.root).run(steps=["pick"], workers=0).failed
    assert pickers(picked.root) == [DEFAULT, MANUAL, "mine"]
    with pytest.raises(RequestError, match="cannot be called 'default'"):
        train_picker(picked, DEFAULT, settings)


def test_simulated_examples_are_kept(tmp_path: Path) -> None:
    assert list(simulate_examples(tmp_path / "pool", 7, 1)) == [0, 1]
    (path,) = sorted((tmp_path / "pool").glob("*.npz"))
    first = read_example(path)
    written = path.stat().st_mtime_ns
    assert list(simulate_examples(tmp_path / "pool", 7, 1)) == [1]
    assert path.stat().st_mtime_ns == written
    shutil.rmtree(tmp_path / "pool")
    list(simulate_examples(tmp_path / "pool", 7, 1))
    again = read_example(path)
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.xy, again.xy)
    assert first.image.shape == first.artefact.shape == (512, 512)
