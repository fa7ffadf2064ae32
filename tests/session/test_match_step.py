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
from weft.session import match_keeper
from weft.session.match_inputs import MatchingSettings
from weft.session.match_job import MatchJob
from weft.session.matching import match_tomogram
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
    """The best twelve of 24; the alignment leaves the specimen where it was to half a voxel."""
    table = read_star(matched / "matching" / f"{name_of(matched)}_barrel_candidates.star")
    particles = table["particles"] if "particles" in table else next(iter(table.values()))
    columns = [f"rlnCenteredCoordinate{axis}Angst" for axis in "XYZ"]
    found = np.stack([np.asarray(particles[c], float) for c in columns], axis=1)[:12]
    truth = json.loads(next(tilt_frames.glob("*.json")).read_text())
    true = np.array(truth["particles_xyz_centered"])
    away = np.linalg.norm(found[:, None] - true[None], axis=2)
    # measured 7 to 21 Å
    assert away.min(1).max() < 1.5 * VOXEL
    assert len(set(away.argmin(1))) == 12


def test_only_what_changed_is_done_again(matched: Path, maps: Path, tmp_path: Path) -> None:
    session = copy(matched, tmp_path / "session")
    path, _ = job_of(session.root)
    before = path.stat().st_mtime_ns
    star = path.with_name(f"{path.stem}_candidates.star")
    written = star.stat().st_mtime_ns
    report = session.run(steps=STEPS, workers=0)
    assert not report.done
    assert not report.failed
    assert (path.stat().st_mtime_ns, star.stat().st_mtime_ns) == (before, written)
    # candidates alone
    session.set("candidates.number", "3")
    assert not weft.open(session.root).run(steps=STEPS, workers=0).failed
    assert path.stat().st_mtime_ns == before
    assert star.stat().st_mtime_ns > written
    assert weft.open(session.root)[name_of(session.root)].metrics["candidates"] == 3
    # how much memory was allowed changes no result
    session.set("matching.memory", "2")
    weft.open(session.root).run(steps=STEPS, workers=0)
    assert path.stat().st_mtime_ns == before
    # another mask of the same name
    mask = tmp_path / "mask.mrc"
    shutil.copy(maps / "mask.mrc", mask)
    session.set("matching.mask", str(mask))
    assert not weft.open(session.root).run(steps=STEPS, workers=0).failed
    assert path.stat().st_mtime_ns > before


def test_several_templates_compete(done_tilts: Path, maps: Path, tmp_path: Path) -> None:
    copy(done_tilts, tmp_path / "session")
    source = session_tomogram(weft.open(tmp_path / "session")[name_of(tmp_path / "session")])
    both = (str(maps / "barrel.mrc"), str(maps / "shell.mrc"))
    middle = 0.5 * np.array(source.size)
    region = tuple(float(v) for m in middle for v in (m - 200.0, m + 200.0))
    settings = MatchingSettings(**options(maps, template=both, region=region, refine=0))
    path, job = match_tomogram(source, settings, tmp_path / "found", root=tmp_path)
    assert path.name == f"{source.name}_barrel+shell.json"
    owner, _ = mrc.read(path.parent / job.files["templates"])
    numbers, _ = mrc.read(path.parent / job.files["angles"])
    half = len(np.load(path.parent / job.rotations)) // 2
    assert np.array_equal(owner, numbers >= half)
    assert 0.0 < owner.mean() < 1.0
    assert job.shape == owner.shape
    assert set(job.shape) <= {20, 21}
    assert job.origin == pytest.approx(
        np.ceil((middle - 200.0) / VOXEL) * VOXEL + np.array(source.origin), abs=1e-6
    )


def test_an_interrupted_search_goes_on(
    done_tilts: Path, maps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped as by Ctrl-C after some parts: they are kept and not searched again, and all is the same."""
    copy(done_tilts, tmp_path / "session")
    source = session_tomogram(weft.open(tmp_path / "session")[name_of(tmp_path / "session")])
    # parts of few places, for each has to have its CTF
    settings = MatchingSettings(**options(maps, refine=0, phase_error=0.01, angular_step=90.0))
    folder = tmp_path / "found"
    real, calls = search.correlate, []

    def stop_later(*arguments: Any) -> None:
        calls.append(1)
        if len(calls) > 5:
            raise KeyboardInterrupt
        real(*arguments)

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        monkeypatch.setattr(search, "correlate", stop_later)
        with pytest.raises(KeyboardInterrupt):
            match_tomogram(source, settings, folder, root=tmp_path)
        kept = folder / ".partial" / f"{source.name}_barrel"
        assert len(list(kept.glob("*.npz"))) == 5
        assert not list(folder.glob("*.json"))
        calls.clear()

        def count(*arguments: Any) -> None:
            calls.append(1)
            real(*arguments)

        monkeypatch.setattr(search, "correlate", count)
        path, job = match_tomogram(source, settings, folder, root=tmp_path)
        resumed = len(calls)
        calls.clear()
        whole, other = match_tomogram(source, settings, tmp_path / "whole", root=tmp_path)
        assert len(calls) == resumed + 5 > 8
    finally:
        torch.set_num_threads(before)
    assert not (folder / ".partial").exists()
    for key in ("scores", "angles"):
        assert np.array_equal(
            mrc.read(path.parent / job.files[key])[0], mrc.read(whole.parent / other.files[key])[0]
        )
    assert job.statistics["std"] == pytest.approx(other.statistics["std"], rel=1e-9)


def test_parts_of_another_search_are_not_taken(done_tilts: Path, maps: Path, tmp_path: Path) -> None:
    copy(done_tilts, tmp_path / "session")
    source = session_tomogram(weft.open(tmp_path / "session")[name_of(tmp_path / "session")])
    settings = MatchingSettings(**options(maps))

    def opened(source: Any = source, settings: MatchingSettings = settings) -> list[str]:
        keeper = match_keeper.PartKeeper.of(tmp_path / "kept", source, settings, tmp_path)
        left = sorted(p.name for p in keeper.folder.glob("*.npz"))
        (keeper.folder / "0.npz").write_bytes(b"")
        return left

    assert opened() == []
    assert opened() == ["0.npz"]
    from dataclasses import replace

    changed = replace(
        source, contrast=replace(source.contrast, astigmatism=source.contrast.astigmatism + 10.0)
    )
    assert opened(changed) == []
    assert (
        opened(
            replace(source, geometry=replace(source.geometry, level_x=torch.tensor(1.0, dtype=torch.float64)))
        )
        == []
    )
    assert opened() == []
    assert opened(settings=settings.model_copy(update={"refine": 7})) == ["0.npz"]
    assert opened(settings=settings.model_copy(update={"angular_step": 41.0})) == []
    # a file that is broken counts as none
    assert match_keeper.PartKeeper(tmp_path / "kept").load(0) is None


# --------------------------------------------------------------------------------------------- what is wrong


def fails(
    done_tilts: Path,
    tmp_path: Path,
    kind: type[Exception],
    message: str,
    given: dict[str, Any],
    **source: Any,
) -> None:
    from dataclasses import replace

    tomogram = session_tomogram(weft.open(done_tilts)[name_of(done_tilts)])
    with pytest.raises(kind, match=message) as error:
        match_tomogram(
            replace(tomogram, **source), MatchingSettings(**given), tmp_path / "found", root=tmp_path
        )
    assert "\n" not in str(error.value)


Maker = Callable[[Path], Path]


def test_maps_that_do_not_fit(done_tilts: Path, maps: Path, tmp_path: Path) -> None:
    def ask(kind: type[Exception], message: str, **changes: Any) -> None:
        fails(done_tilts, tmp_path, kind, message, options(maps, **changes))

    other = str(write_template(tmp_path / "other.mrc", voxel=10.0))
    ask(
        ItemError, "other.mrc has voxels of 10 Å and the tomogram of 20 Å.*--voxel-size 20", template=(other,)
    )
    large = str(write_template(tmp_path / "large.mrc", box=90))
    ask(ItemError, "template is 90 voxels wide and the tomogram only", template=(large,), mask="")
    wide = str(write_mask(tmp_path / "wide.mrc", box=BOX + 2))
    ask(ItemError, r"the mask has \(18, 18, 18\).*same --box", mask=wide)
    ask(ItemError, "too small for a particle of 400 Å.*--box", mask="", particle_diameter=400.0)
    ask(RequestError, "no template .*nowhere.mrc", template=("nowhere.mrc",))
    ask(RequestError, "no mask .*nowhere.mrc", mask="nowhere.mrc")
    ask(RequestError, "--template", template=())
    ask(RequestError, "--particle-diameter", particle_diameter=0.0)
    ask(ItemError, "no tomogram mask", tomogram_mask="{name}_mask.mrc")
    mrc.write(tmp_path / "few.mrc", np.ones((5, 6, 7), np.float32), VOXEL, volume=True)
    ask(ItemError, "few.mrc has 7×6×5 voxels and the tomogram of", tomogram_mask="few.mrc")
    mrc.write(tmp_path / "two.mrc", np.full((BOX,) * 3, 2.0, np.float32), VOXEL, volume=True)
    ask(ItemError, "between 0 and 1", mask="two.mrc")
    broken = np.ones((BOX,) * 3, np.float32)
    broken[3] = np.nan
    mrc.write(tmp_path / "nan.mrc", broken, VOXEL, volume=True)
    ask(ItemError, "nan.mrc: the template holds values that are not finite", template=("nan.mrc",))
    mrc.write(tmp_path / "slab.mrc", np.ones((4, BOX, BOX), np.float32), VOXEL, volume=True)
    ask(ItemError, "slab.mrc: a template is a cube, this has 16×16×4", template=("slab.mrc",))


def test_tomograms_that_do_not_do(done_tilts: Path, maps: Path, tmp_path: Path) -> None:
    tomogram = session_tomogram(weft.open(done_tilts)[name_of(done_tilts)])
    fails(
        done_tilts,
        tmp_path,
        ItemError,
        "defocus is not known.*--weighting wedge",
        options(maps),
        has_ctf=False,
    )
    volume = np.array(mrc.read(tomogram.path)[0], dtype=np.float32)
    volume[4, 5, 6] = np.inf
    mrc.write(tmp_path / "inf.mrc", volume, VOXEL, volume=True)
    at = "not finite at voxel x 6, y 5, z 4"
    fails(done_tilts, tmp_path, ItemError, at, options(maps), path=tmp_path / "inf.mrc")
    mrc.write(tmp_path / "flat.mrc", np.ones_like(volume), VOXEL, volume=True)
    fails(done_tilts, tmp_path, ItemError, "one value", options(maps), path=tmp_path / "flat.mrc")
