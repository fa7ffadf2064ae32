"""`weft pick train`: what it says to people, and to programs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

import weft
from weft.cli import main
from weft.picking.training import Accuracies
from weft.session import retraining
from weft.session.retraining import Retrained


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A session whose trainings are over at once."""
    (tmp_path / "frames").mkdir()
    frames = tmp_path / "frames" / "*.tif"
    microscope = {"pixel_size": 1.5, "voltage": 300.0, "cs": 2.7, "amplitude": 0.07}
    weft.new(tmp_path / "session", frames=frames, **microscope, dose_per_frame=1.0)

    def train(session: Any, name: str, settings: Any, **given: Any) -> Retrained:
        given["say"]("20 particles in 2 micrographs")
        found = Accuracies(10, math.nan, 0.5, math.nan, 0.75)
        given["progress"](found)
        path = session.root / "models" / "picking" / f"{name}.safetensors"
        return Retrained(path, 2, 20, [found], ("movie_002: it has no average yet",))

    monkeypatch.setattr(retraining, "train_picker", train)
    return tmp_path / "session"


def test_programs_get_a_line_of_json_for_each_thing(
    session: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pick", "train", str(session), "--name", "mine", "--steps", "20", "--json", "--no-use"]) == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert told[0] == {"say": "20 particles in 2 micrographs"}
    assert told[1] == {
        "steps": 20, "step": 10, "old_on_old": None, "old_on_new": 0.5, "new_on_old": None, "new_on_new": 0.75
    }  # fmt: skip
    assert told[2] == {"left_out": "movie_002: it has no average yet"}
    assert (told[3]["particles"], told[3]["micrographs"]) == (20, 2)
    assert told[3]["model"].endswith("models/picking/mine.safetensors")
    assert "mine" not in (session / "weft.toml").read_text()


def test_people_get_sentences_and_the_model_picks(session: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pick", "train", str(session), "--name", "mine"]) == 0
    said = capsys.readouterr()
    assert "on new data 50.0 % before, 75.0 % now" in said.err
    assert "trained on 20 particles in 2 micrographs" in said.out
    assert "left out: movie_002" in said.out
    assert 'model = "mine"' in (session / "weft.toml").read_text()
