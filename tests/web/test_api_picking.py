"""Picks of a micrograph by picker, what people make of them, and teaching the network."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from weft.formats.star import Table, read_star, write_star
from weft.web.app import Application

#: What stands in for `weft pick train`: says what it was asked, and what a training says.
STUB = """
import json, sys, time
words = sys.argv[1:]
open(words[0] + "/asked.json", "w").write(json.dumps(words))
print("a library says something", flush=True)
print(json.dumps({"say": "20 particles in 2 micrographs"}), flush=True)
for step in (10, 20):
    print(json.dumps({"step": step, "steps": 20, "old_on_old": None, "new_on_old": 0.9,
                      "old_on_new": 0.5, "new_on_new": 0.5 + step / 50}), flush=True)
print(json.dumps({"left_out": "movie_002: no average"}), flush=True)
MIDDLE
print(json.dumps({"model": "x", "particles": 20, "micrographs": 2}), flush=True)
"""


def read(client: TestClient, address: str, **query: str) -> Any:
    answer = client.get(f"/api/{address}", params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


def put_picks(root: Path, picker: str, item: str, **columns: list[float]) -> Path:
    """A list of picks as another program writes it."""
    path = root / "picks" / picker / f"{item}.star"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_star(path, {"": Table({f"rln{name}": values for name, values in columns.items()})})
    return path


def table_of(root: Path, picker: str, item: str) -> Table:
    blocks = read_star(root / "picks" / picker / f"{item}.star")
    assert len(blocks) == 1, "other programs read a plain table"
    return next(iter(blocks.values()))


# ---------------------------------------------------------------------- picks


def test_picks_are_kept_in_relions_pixels(owner: TestClient, web_session: Any) -> None:
    given: dict[str, Any] = {"picks": [{"x": 0.0, "y": 3.0}, {"x": 480.0, "y": 150.75}], "diameter": 180.0}
    answer = owner.put("/api/items/movie_000/picks", json=given)
    assert answer.status_code == 200
    expected = [{**pick, "score": None} for pick in given["picks"]]
    assert answer.json()["picks"] == expected
    assert (answer.json()["picker"], answer.json()["diameter"]) == ("manual", 180.0)
    assert read(owner, "items/movie_000/picks") == answer.json()
    table = table_of(web_session.root, "manual", "movie_000")
    np.testing.assert_allclose(table.floats("rlnCoordinateX"), [0.0, 320.0])
    np.testing.assert_allclose(table.floats("rlnCoordinateY"), [2.0, 100.5])
    assert owner.put("/api/items/movie_000/picks", json={"picks": []}).json()["picks"] == []


def test_each_picker_has_its_own_picks(owner: TestClient, web_session: Any) -> None:
    at = {"CoordinateX": [100.0, 20.0], "CoordinateY": [10.0, 30.0]}
    put_picks(web_session.root, "topaz", "movie_000", **at, AutopickFigureOfMerit=[2.5, -0.25])
    put_picks(web_session.root, "topaz", "movie_001", **at)
    by_network = read(owner, "items/movie_000/picks")
    assert by_network["picker"] == "default", "that of the model that is set"
    assert by_network["pickers"] == ["default", "topaz"]
    by_topaz = read(owner, "items/movie_000/picks", picker="topaz")
    assert by_topaz["picks"] == [{"x": 150, "y": 15, "score": 2.5}, {"x": 30, "y": 45, "score": -0.25}]
    assert by_topaz["diameter"] is None
    owner.put("/api/items/movie_000/picks", json={"picks": [{"x": 9, "y": 9}]})
    by_hand = read(owner, "items/movie_000/picks")
    assert by_hand["picker"] == "manual"
    assert by_hand["pickers"] == ["default", "manual", "topaz"]
    # of one who has picked elsewhere there are none here; of others nothing is known
    assert read(owner, "items/movie_002/picks", picker="topaz")["picks"] == []
    assert owner.get("/api/items/movie_000/picks?picker=nobody").status_code == 404


@pytest.mark.parametrize("picker", ["../records", ".", "..", "", "a/b", "a\\b", ".hidden", "%00", "x" * 300])
def test_pickers_are_names_and_no_paths(owner: TestClient, picker: str) -> None:
    assert owner.get("/api/items/movie_000/picks", params={"picker": picker}).status_code in (404, 422)
    body = {"picks": [{"x": 1, "y": 1}], "picker": picker}
    assert owner.put("/api/items/movie_000/picks", json=body).status_code in (404, 422)


def test_scores_of_picks_that_stay_are_kept_and_the_pickers_file_is_not_touched(
    owner: TestClient, web_session: Any
) -> None:
    source = put_picks(
        web_session.root,
        "topaz",
        "movie_000",
        CoordinateX=[10.01, 50.5, 100.0],
        CoordinateY=[20.0, 60.33, 200.0],
        AutopickFigureOfMerit=[0.9, 0.8, 0.7],
        ClassNumber=[1, 2, 3],
    )
    before = source.read_bytes()
    picks = read(owner, "items/movie_000/picks", picker="topaz")
    changed = [{"x": 30.0, "y": 30.0}, picks["picks"][2], picks["picks"][0]]
    body = {"picks": changed, "picker": "topaz", "diameter": 120}
    answer = owner.put("/api/items/movie_000/picks", json=body)
    assert [pick["score"] for pick in answer.json()["picks"]] == [None, 0.7, 0.9]
    table = table_of(web_session.root, "manual", "movie_000")
    assert table.floats("rlnAutopickFigureOfMerit").tolist() == [-999.0, 0.7, 0.9]
    assert table.ints("rlnClassNumber").tolist() == [0, 3, 1]
    assert source.read_bytes() == before
    # and again, from the picks of people
    again = owner.put("/api/items/movie_000/picks", json={"picks": answer.json()["picks"][1:]})
    assert [pick["score"] for pick in again.json()["picks"]] == [0.7, 0.9]


@pytest.mark.parametrize(
    "bad",
    [
        {"picks": [{"x": -1.0, "y": 0.0}]},
        {"picks": [{"x": 0.0, "y": 481.0}]},
        {"picks": [{"x": "left", "y": 0.0}]},
        {"picks": [{"x": 1.0}]},
        {"picks": [], "diameter": 0},
        {"picks": [], "diameter": -5.0},
        {"picks": [], "picker": "nobody"},
        {},
        [],
    ],
)
def test_bad_picks_change_nothing(owner: TestClient, web_session: Any, bad: Any) -> None:
    assert owner.put("/api/items/movie_000/picks", json=bad).status_code in (404, 422)
    assert not (web_session.root / "picks" / "manual").exists()


def test_numbers_that_are_none_are_refused(owner: TestClient) -> None:
    for text in ("NaN", "Infinity", "1e999"):
        body = f'{{"picks": [{{"x": {text}, "y": 1}}]}}'
        answer = owner.put(
            "/api/items/movie_000/picks", content=body, headers={"Content-Type": "application/json"}
        )
        assert answer.status_code == 422


def test_positions_that_are_no_numbers_are_left_out(owner: TestClient, web_session: Any) -> None:
    path = web_session.root / "picks" / "manual" / "movie_000.star"
    path.parent.mkdir(parents=True)
    path.write_text("data_\nloop_\n_rlnCoordinateX\n_rlnCoordinateY\nnan 1\n2 inf\n4 8\n")
    assert read(owner, "items/movie_000/picks")["picks"] == [{"x": 6, "y": 12, "score": None}]
    body = {"picks": [{"x": 6, "y": 12}, {"x": 3, "y": 3}]}
    assert len(owner.put("/api/items/movie_000/picks", json=body).json()["picks"]) == 2


def test_damaged_picks_are_a_sentence(owner: TestClient, web_session: Any) -> None:
    path = web_session.root / "picks" / "manual" / "movie_000.star"
    path.parent.mkdir(parents=True)
    path.write_text("data_\nloop_\n_rlnCoordinateX\n_rlnCoordinateY\n1 x\n")
    answer = owner.get("/api/items/movie_000/picks")
    assert answer.status_code == 409
    assert "movie_000.star" in answer.json()["detail"]
    assert owner.put("/api/items/movie_000/picks", json={"picks": [{"x": 1.5, "y": 3}]}).status_code == 200


def test_particles_and_artefacts_are_columns(owner: TestClient, web_session: Any) -> None:
    columns = read(owner, "columns")["metrics"]
    picks = [len(read(owner, f"items/movie_00{i}/picks")["picks"]) for i in range(3)]
    assert columns["particles"]["values"] == picks
    assert all(0.0 <= value <= 100.0 for value in columns["artefacts"]["values"])
    assert columns["artefacts"]["unit"] == "%"


# ---------------------------------------------------------------------- teaching


@pytest.fixture
def taught(application: Application, web_session: Any, tmp_path: Path) -> Callable[[str], None]:
    """Give the training a process that does this in its middle."""
    put_picks(web_session.root, "manual", "movie_000", CoordinateX=[10.0], CoordinateY=[20.0])

    def use(middle: str) -> None:
        stub = tmp_path / "stub.py"
        stub.write_text(STUB.replace("MIDDLE", middle))
        application.api.state.room.training.command = (sys.executable, str(stub))

    return use


def until(owner: TestClient, condition: Callable[[Any], Any]) -> Any:
    deadline = time.monotonic() + 60
    while not condition(state := read(owner, "picking/train")):
        assert time.monotonic() < deadline, state
        time.sleep(0.05)
    return state


def test_a_training_is_followed_and_its_model_picks(
    owner: TestClient, web_session: Any, taught: Callable[[str], None]
) -> None:
    # as the real one leaves it: any file will do here, for nothing is picked
    model = web_session.root / "models" / "picking" / "mine.safetensors"
    model.parent.mkdir(parents=True)
    taught(f"open({str(model)!r}, 'w').close()")
    assert read(owner, "picking/train")["state"] == "none"
    assert read(owner, "picking/train")["pickers"] == {"default": 3, "manual": 1}
    answer = owner.post("/api/picking/train", json={"picks": "manual", "name": "mine", "diameter": 130})
    assert answer.status_code == 200, answer.text
    assert answer.json()["state"] in ("running", "done")
    done = until(owner, lambda state: state["state"] != "running")
    assert done["state"] == "done", done
    assert "20 particles in 2 micrographs" in done["text"]
    assert [one["step"] for one in done["history"]] == [10, 20]
    assert done["history"][1] == {
        "step": 20, "old_on_old": None, "new_on_old": 0.9, "old_on_new": 0.5, "new_on_new": 0.9
    }  # fmt: skip
    assert done["steps"] == 20
    assert done["left_out"] == ["movie_002: no average"]
    assert done["model"] == "mine"
    assert done["models"] == ["default", "mine"]
    assert 'model = "mine"' in (web_session.root / "weft.toml").read_text()
    asked = (web_session.root / "asked.json").read_text()
    for word in (
        "--json",
        "--no-use",
        "--picks=manual",
        "--name=mine",
        "--start=default",
        "--diameter=130.0",
    ):
        assert f'"{word}"' in asked


def test_one_at_a_time_and_it_can_be_stopped(
    owner: TestClient, web_session: Any, taught: Callable[[str], None]
) -> None:
    taught("time.sleep(600)")
    assert owner.post("/api/picking/train", json={"name": "mine"}).status_code == 200
    second = owner.post("/api/picking/train", json={"name": "other"})
    assert second.status_code == 409
    assert "'mine' is being trained" in second.json()["detail"]
    running = until(owner, lambda state: len(state["history"]) == 2)
    assert running["text"] == "step 20 of 20"
    began = time.monotonic()
    stopped = owner.post("/api/picking/train/stop").json()
    assert time.monotonic() - began < 30
    assert stopped["state"] == "stopped"
    assert stopped["model"] == "default", "what was learned is not used"
    assert owner.post("/api/picking/train/stop").status_code == 409
    # and another one may begin
    taught("")
    assert owner.post("/api/picking/train", json={"name": "other"}).status_code == 200
    until(owner, lambda state: state["state"] != "running")


def test_a_training_that_fails_says_why(
    owner: TestClient, web_session: Any, taught: Callable[[str], None]
) -> None:
    taught("sys.exit('weft: the disk is full')")
    owner.post("/api/picking/train", json={"name": "mine"})
    failed = until(owner, lambda state: state["state"] != "running")
    assert (failed["state"], failed["text"]) == ("failed", "the disk is full")
    assert failed["model"] == "default"


def test_what_cannot_be_taught_is_a_sentence(owner: TestClient, web_session: Any) -> None:
    nothing = owner.post("/api/picking/train", json={})
    assert nothing.status_code == 409
    assert "nobody has picked by hand yet" in nothing.json()["detail"]
    put_picks(web_session.root, "topaz", "movie_000", CoordinateX=[10.0], CoordinateY=[20.0])
    for order, said in (
        ({"picks": "nobody"}, "no picks of 'nobody'"),
        ({"picks": "topaz", "start": "gone"}, "no model 'gone'"),
        ({"picks": "topaz", "name": "default"}, "a model 'default' already"),
        ({"picks": "topaz", "name": "manual"}, "cannot be called 'manual'"),
        ({"picks": "topaz", "name": "topaz"}, "cannot be called 'topaz'"),
    ):
        answer = owner.post("/api/picking/train", json=order)
        assert answer.status_code == 409, order
        assert said in answer.json()["detail"]
    for bad in (
        {"name": "../x"},
        {"name": "-x"},
        {"name": ".x"},
        {"name": ""},
        {"picks": "a/b"},
        {"diameter": 0},
    ):
        assert owner.post("/api/picking/train", json=bad).status_code == 422, bad
    assert read(owner, "picking/train")["state"] == "none"
