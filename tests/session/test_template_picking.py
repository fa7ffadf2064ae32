"""Template picking of sessions: files, what is searched again, thresholds, commands."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

import weft
from weft.cli.pick_templates import app
from weft.errors import CorruptError, RequestError
from weft.formats import mrc
from weft.matching.scattering import density_from_points
from weft.session import template_picking
from weft.session.pick_files import pickers, read_picks
from weft.session.session import Session
from weft.session.template_files import read_peaks
from weft.session.template_picking import PickTemplate, pick_with_template, rethreshold

POINTS = torch.tensor([[-30.0, 0, 0, 1], [0, 0, 10, 1], [25, 15, 0, 1], [10, -25, -10, 1]])
TEMPLATE = density_from_points(POINTS, 4.0, 40, blur=200.0)
SETTINGS = {"angular_step": 60.0, "low_pass": 20.0, "particle_diameter": 80.0}


@pytest.fixture(scope="module")
def processed(tiny_movies: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three tiny movies with averages and CTFs: not to be changed."""
    root = tmp_path_factory.mktemp("templates") / "session"
    given = {"pixel_size": 1.5, "voltage": 300.0, "cs": 2.7, "amplitude": 0.07, "dose_per_frame": 4.0}
    session = weft.new(root, frames=tiny_movies / "frames" / "*.tif", gain=tiny_movies / "gain.mrc", **given)
    assert not session.run(steps=["motion", "ctf"], workers=0).failed
    return root


@pytest.fixture
def session(processed: Path, tmp_path: Path) -> Session:
    return weft.open(shutil.copytree(processed, tmp_path / "session"))


@pytest.fixture
def template(tmp_path: Path) -> PickTemplate:
    mrc.write(tmp_path / "hook.mrc", TEMPLATE.numpy(), 4.0)
    return PickTemplate(tmp_path / "hook.mrc", TEMPLATE, 4.0)


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """One entry for every search that is made."""
    made: list[Any] = []
    search = template_picking.match_template

    def counted(*arguments: Any, **options: Any) -> Any:
        made.append(options)
        return search(*arguments, **options)

    monkeypatch.setattr(template_picking, "match_template", counted)
    return made


def test_picks_are_filed_and_only_what_changed_is_searched(
    session: Session, template: PickTemplate, searches: list[Any]
) -> None:
    names = list(session.items)
    report = pick_with_template(session, template, SETTINGS, {"threshold": 3.5})
    assert (report.exit_code, report.done, len(searches)) == (0, names, 3)
    assert pickers(session.root) == ["hook"]
    first = session.root / "picks" / "hook" / f"{names[0]}.star"
    picks = read_picks(first, 1.5)
    assert len(picks) == report.counts[names[0]]
    assert picks.diameter == 80.0
    assert picks.eulers is not None
    assert (picks.score >= 3.5).all()
    assert ((picks.xy >= 0) & (picks.xy <= 319 * 1.5)).all()
    # the same again: options that are not given stay
    before = first.stat().st_mtime_ns
    report = pick_with_template(session, template)
    assert (report.current, report.settings.angular_step, len(searches)) == (names, 60.0, 3)
    assert first.stat().st_mtime_ns == before
    # another threshold writes picks, other settings search
    pick_with_template(session, template, threshold={"threshold": 50.0})
    assert len(searches) == 3
    assert len(read_picks(first, 1.5)) == 0
    pick_with_template(session, template, {"whiten": False}, only=names[1])
    assert len(searches) == 4
    # a mask of artefacts is an input, too
    (session.root / "mask").mkdir()
    mrc.write(session.root / "mask" / f"{names[2]}.mrc", np.eye(60, dtype=np.int8), 8.0, dtype=np.int8)
    report = pick_with_template(session, template, {"whiten": True})
    assert report.done == names[1:]
    assert [bool(options["excluded"] is not None) for options in searches[-2:]] == [False, True]


def test_a_threshold_is_changed_without_a_search(
    session: Session, template: PickTemplate, searches: list[Any]
) -> None:
    pick_with_template(session, template, SETTINGS)
    name = next(iter(session.items))
    peaks, _ = read_peaks(session.root / "picks" / "hook" / "peaks" / f"{name}.npz")
    assert len(peaks) > 1
    assert (np.diff(peaks.score) <= 1e-6).all()
    low = rethreshold(session, "hook", {"threshold": 3.0, "separation": 0.5})
    high = rethreshold(session, "hook", {"threshold": 1000.0})
    assert low.counts[name] == len(peaks)
    assert sum(high.counts.values()) == 0
    assert len(searches) == 3
    # later searches keep it
    assert pick_with_template(session, template).threshold.threshold == 1000.0
    with pytest.raises(RequestError, match="there are: hook"):
        rethreshold(session, "nothing")


def test_items_fail_alone_and_names_are_not_taken_away(
    session: Session, template: PickTemplate, searches: list[Any]
) -> None:
    names = list(session.items)
    path = session.root / "average" / f"{names[0]}.mrc"
    path.write_bytes(path.read_bytes()[:5000])
    report = pick_with_template(session, template, SETTINGS)
    assert list(report.failed) == names[:1]
    assert report.exit_code == 1
    assert report.done == names[1:]
    # peaks that are broken are found again
    broken = session.root / "picks" / "hook" / "peaks" / f"{names[1]}.npz"
    broken.write_bytes(b"PK\x03\x04")
    with pytest.raises(CorruptError, match="finds them anew"):
        read_peaks(broken)
    assert pick_with_template(session, template).done == [names[1]]
    for name in ("manual", "default", "a b"):
        with pytest.raises(RequestError, match="--name"):
            pick_with_template(session, template, name=name)
    (session.root / "picks" / "other").mkdir()
    (session.root / "picks" / "other" / "x.star").write_text("")
    with pytest.raises(RequestError, match="no template has made"):
        pick_with_template(session, template, name="other")


def test_commands(session: Session, template: PickTemplate, monkeypatch: pytest.MonkeyPatch) -> None:
    command: Callable[..., Any] = CliRunner().invoke
    root, map_ = str(session.root), str(template.path)
    name = next(iter(session.items))
    given = ["--template", map_, "--angular-step", "60", "--low-pass", "20", "--only", name]
    found = command(app, ["templates", root, *given, "--threshold", "3.2", "--device", "cpu"])
    assert found.exit_code == 0, found.output
    assert "1 searched" in found.output
    assert "above 3.2 σ" in found.output
    found = command(app, ["threshold", root, "--picks", "hook", "--threshold", "90"])
    assert found.exit_code == 0, found.output
    assert "0 particles in 1 micrograph" in found.output
    assert isinstance(app, typer.Typer)
