"""Denoised micrographs of a session: off until asked for, by the shipped model or by one trained on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import mrcfile
import numpy as np
import pytest

import weft
from weft.cli import main
from weft.denoising.network import Denoiser
from weft.session.session import Session

STEP = "denoise_micrograph"
QUICK = ["--tile=32", "--channels=8", "--levels=2", "--steps=24", "--learning-rate=0.01"]


def read(path: Path) -> tuple[np.ndarray, float]:
    with mrcfile.open(path) as file:
        return np.array(file.data, np.float32), float(file.voxel_size.x)


def test_from_movies_to_denoised_micrographs(
    new_session: Callable[..., Session], capsys: pytest.CaptureFixture[str]
) -> None:
    session = new_session()
    root = session.root
    assert not session.run(workers=0).failed
    assert not (root / "denoised").exists()

    # the shipped model, with halves that are made from the movie and not kept
    assert main(["denoise", "apply", str(root), "--workers", "0"]) == 0
    name = "movie_000"
    image, pixel_size = read(root / "denoised" / f"{name}.mrc")
    assert image.shape == (96, 96)
    assert pixel_size == pytest.approx(5.0)
    assert np.isfinite(image).all()
    assert session[name].paths["denoised_picture"].read_bytes().startswith(b"\x89PNG")
    about = session[name].results[STEP]["denoised"]
    assert about["deconvolved"] is True
    assert not (root / "average" / "even").exists()
    assert not session.run(workers=0).done

    # a network of its own needs halves: which setting makes them
    capsys.readouterr()
    assert main(["denoise", "train", str(root), *QUICK]) == 2
    assert "set average.halves to true" in capsys.readouterr().err
    session.set("average.halves", "true")
    assert not session.run(workers=0).failed
    assert (root / "average" / "even" / f"{name}.mrc").exists()
    from_halves, _ = read(root / "denoised" / f"{name}.mrc")
    # they are the same as those that are written
    np.testing.assert_allclose(from_halves, image, rtol=1e-5, atol=1e-5 * image.std())

    # trained on the session
    assert main(["denoise", "train", str(root), *QUICK, "--micrographs", "2", "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert "trained on 2 micrographs" in said
    path = root / "models" / "denoise_micrographs.safetensors"
    model = Denoiser.from_bytes(path.read_bytes())
    assert (model.dims, len(model.sources), model.pixel_size) == (2, 2, pytest.approx(5.0))
    assert model.deconvolution == {"strength": 1.0, "falloff": 1.0, "highpass": 300.0}
    before = session[name].record.steps["motion"]
    assert main(["denoise", "apply", str(root), "--model", str(path), "--workers", "0"]) == 0
    assert session[name].record.steps["motion"] == before
    assert not np.array_equal(read(root / "denoised" / f"{name}.mrc")[0], from_halves)

    # how networks are trained is nothing to a trained one; on which grid it is written is
    session.set("denoising.steps", "70")
    assert session.status()[name].steps[STEP].state == "done"
    session.set("denoising.full_size", "true")
    assert session.status()[name].steps[STEP].state == "stale"
    assert not session.run(workers=0).failed
    image, pixel_size = read(root / "denoised" / f"{name}.mrc")
    average, own = read(session[name].paths["average"])
    assert image.shape == average.shape
    assert pixel_size == own

    # it knows deconvolved micrographs only
    session.set("denoising.deconvolve", "false")
    assert session.run(workers=0, only=name).exit_code == 1
    assert "trained on deconvolved micrographs" in session[name].error


def test_files(
    new_session: Callable[..., Session], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    session = new_session(average={"halves": True})
    session.run(["motion"], only="movie_000", workers=0)
    average = session["movie_000"].paths["average"]
    bad = tmp_path / "bad.mrc"
    bad.write_bytes(b"nothing")
    out = tmp_path / "out"
    assert main(["denoise", "apply", str(average)]) == 2
    assert "--output" in capsys.readouterr().err
    assert main(["denoise", "apply", str(average), str(bad), "--output", str(out)]) == 1
    assert "bad.mrc: has no averages of even and odd frames beside it" in capsys.readouterr().err
    found, pixel_size = read(out / "movie_000.mrc")
    assert pixel_size == pytest.approx(5.0)
    raw, _ = read(average)
    # the grey values of the input, less noise
    assert float(found.mean()) == pytest.approx(float(raw.mean()), rel=1e-3)
    assert found.std() < raw.std()
    assert main(["denoise", "apply", str(average), "--output", str(average.parent)]) == 2
    assert "would be overwritten" in capsys.readouterr().err

    # as other programs name halves; what they are is not denoised for itself
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    for source, end in ((average, ""), *((average.parent / h / average.name, h) for h in ("even", "odd"))):
        name = "m" + {"": "", "even": "_EVN", "odd": "_ODD"}[end]
        (theirs / f"{name}.mrc").write_bytes(source.read_bytes())
    given = [str(path) for path in sorted(theirs.glob("*.mrc"))]
    assert main(["denoise", "apply", *given, "--output", str(tmp_path / "out2")]) == 0
    assert [path.name for path in (tmp_path / "out2").iterdir()] == ["m.mrc"]
    np.testing.assert_array_equal(read(tmp_path / "out2" / "m.mrc")[0], found)


def test_a_single_frame_is_refused(new_session: Callable[..., Session]) -> None:
    """Nothing tells its signal from its noise."""
    session = new_session(denoising={"write": True})
    name = "movie_000"
    session.run(["motion", "ctf"], only=name, workers=0)
    session.set("input.skip_first", str(session[name].metrics["frames"] - 1))
    assert session.run(only=name, workers=0).exit_code == 1
    assert "a movie of one frame has no halves" in session[name].error


def test_a_model_of_the_other_kind(
    new_session: Callable[..., Session], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from weft.denoising.training import DenoisingSettings, TrainingPair, train

    rng = np.random.default_rng(1)
    volume = rng.normal(size=(32, 32, 64)).astype(np.float32)
    settings = DenoisingSettings(cube=16, channels=4, levels=1, steps=8)
    other = tmp_path / "tomograms.safetensors"
    other.write_bytes(train([TrainingPair(volume, volume)], 10.0, settings).to_bytes())
    session = new_session()
    assert main(["denoise", "apply", str(session.root), "--model", str(other)]) == 2
    assert "is a model for tomograms" in capsys.readouterr().err
    assert main(["denoise", "apply", str(session.root), "--model", str(tmp_path / "none")]) == 2
    assert 'set it to "default"' in capsys.readouterr().err
    assert not weft.open(session.root).settings.plain()["denoising"]["write"]
    assert main(["denoise", "train", str(session.root), "--cube", "48"]) == 2
    assert "--cube" in capsys.readouterr().err
