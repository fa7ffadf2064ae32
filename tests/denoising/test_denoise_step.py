"""Denoised tomograms of a session: off until asked for, from its own half maps or by a model for all."""

from __future__ import annotations

from pathlib import Path

import mrcfile
import numpy as np
import pytest

from weft.cli import main
from weft.denoising.network import Denoiser
from weft.session.session import Session

STEP = "denoise_tomogram"
QUICK = {"cube": "16", "channels": "4", "steps": "60", "learning_rate": "0.01"}


def test_from_half_maps_to_a_denoised_tomogram(
    tilt_session: Session, capsys: pytest.CaptureFixture[str]
) -> None:
    session, root = tilt_session, tilt_session.root
    name = next(iter(session.series))
    assert STEP not in session[name].record.steps

    # without halves: which setting makes them
    assert main(["denoise", "train", str(root)]) == 2
    assert 'set reconstruction.halves to "frames"' in capsys.readouterr().err
    assert main(["denoise", "apply", str(root), "--workers", "0"]) == 1
    assert 'or to "tilts"' in capsys.readouterr().out
    assert not (root / "reconstruction" / "denoised").exists()

    # each tomogram by its own halves
    session.set("reconstruction.halves", "tilts")
    for key, value in QUICK.items():
        session.set(f"tomogram_denoising.{key}", value)
    report = session.run(workers=0)
    assert not report.failed
    series = session[name]
    done = series.record.steps[STEP]
    assert 0.0 < series.metrics["denoising_explained"] < 1.0
    assert done.results["denoiser"]["trained_on"] == [name]
    with (
        mrcfile.open(series.paths["tomogram"]) as raw,
        mrcfile.open(series.paths["tomogram_denoised"]) as found,
    ):
        assert found.data.shape == raw.data.shape
        assert found.voxel_size == raw.voxel_size
        assert np.isfinite(found.data).all()
        assert np.corrcoef(found.data.ravel(), raw.data.ravel())[0, 1] > 0.3
        first = found.data.copy()
    assert series.paths["slices_denoised"].read_bytes().startswith(b"\x89PNG")
    own = Denoiser.from_bytes(series.paths["denoiser"].read_bytes())
    assert own.steps == done.results["denoiser"]["steps"]
    assert not session.run(workers=0).done

    # by a model for all; only this step runs again
    options = [f"--{key.replace('_', '-')}={value}" for key, value in QUICK.items()]
    model = root / "shared.safetensors"
    command = ["denoise", "train", str(root), "--model", str(model), "--device", "cpu"]
    assert main([*command, *options, "--seed", "5"]) == 0
    assert str(model) in capsys.readouterr().out
    before = session[name].record.steps["reconstruct"]
    assert main(["denoise", "apply", str(root), "--model", str(model), "--workers", "0"]) == 0
    record = session[name].record
    assert record.steps["reconstruct"] == before
    assert "denoiser" not in record.steps[STEP].outputs
    with mrcfile.open(session[name].paths["tomogram_denoised"]) as found:
        assert not np.array_equal(found.data, first)

    # how networks are trained is nothing to a trained one; another model in the same place is
    session.set("tomogram_denoising.steps", "70")
    assert session.status()[name].steps[STEP].state == "done"
    model.write_bytes(own.to_bytes())
    assert session.status()[name].steps[STEP].state == "stale"
    assert not session.run(workers=0).failed
    with mrcfile.open(session[name].paths["tomogram_denoised"]) as found:
        np.testing.assert_allclose(found.data, first, atol=1e-5 * float(first.std()))


def test_a_model_that_is_none(
    tilt_session: Session, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.safetensors"
    for text in ("cannot be read", "is not a denoising model"):
        assert main(["denoise", "apply", str(tilt_session.root), "--model", str(other)]) == 2
        assert text in capsys.readouterr().err
        other.write_bytes(b"something else")
    assert not tilt_session.settings.plain()["tomogram_denoising"]["write"]
