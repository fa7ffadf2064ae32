"""Tilt series over the API: lists, tilts and decisions about them, alignment, hand, sections of tomograms."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
from series_session import DARK, NAME, PIXEL, TOMOGRAM_PIXEL, Made, change_step, make
from starlette.testclient import TestClient

import weft
from weft.session.records import RecordStore, StepError, StepRecord
from weft.session.tilt_table import read_table, table_path, write_table
from weft.web.app import Application
from weft.web.security import Access
from weft.web.tomogram_slices import Tomograms

OWNER, READER = "owner-token-of-the-tests", "reader-token-of-the-tests"
HOST = "http://127.0.0.1:8765"


@pytest.fixture
def made(tmp_path: Path) -> Made:
    """A session of one series, all of it done."""
    return make(tmp_path / "session")


@pytest.fixture
def clients(made: Made, idle_manager: Callable[[Any], Any]) -> Iterator[tuple[TestClient, TestClient]]:
    """The owner and a reader, over a server that processes nothing."""
    application = Application(idle_manager(weft.open(made.root)), Access(OWNER, READER))
    with TestClient(application):
        yield tuple(  # type: ignore[misc]
            TestClient(application, HOST, False, headers={"Authorization": f"Bearer {token}"})
            for token in (OWNER, READER)
        )


@pytest.fixture
def owner(clients: tuple[TestClient, TestClient]) -> TestClient:
    """A client that may do everything."""
    return clients[0]


def read(client: TestClient, address: str, **parameters: Any) -> Any:
    answer = client.get(f"/api/{address}", params=parameters)
    assert answer.status_code == 200, answer.text
    return answer.json()


def decide(client: TestClient, tilts: list[int], keep: bool | None) -> Any:
    answer = client.post(f"/api/series/{NAME}/tilts", json={"tilts": tilts, "keep": keep})
    assert answer.status_code == 200, answer.text
    return answer.json()


def section(client: TestClient, **parameters: Any) -> np.ndarray:
    answer = client.get(f"/api/series/{NAME}/slice", params=parameters)
    assert answer.status_code == 200, answer.text
    return imagecodecs.png_decode(answer.content)


def test_the_list_has_what_came_of_each_series(owner: TestClient, made: Made) -> None:
    (one,) = read(owner, "series")["series"]
    assert (one["id"], one["state"], one["tilts"], one["used"]) == (NAME, "done", 9, 8)
    assert (one["angle_min"], one["angle_max"], one["dose"]) == (-60.0, 60.0, 27.0)
    assert one["alignment"]["method"] == "fiducials"
    assert one["alignment"]["residual"] == pytest.approx(made.alignment.metrics()["residual_mean"])
    assert one["ctf"]["defocus"] == pytest.approx(float(np.median(made.ctf.defocus)))
    assert (one["hand"]["hand"], one["hand"]["origin"], one["hand"]["verdict"]) == (1.0, "found", "certain")
    assert one["tomogram"]["shape"] == list(made.tomogram.shape)
    assert one["tomogram"]["maps"] == ["raw", "deconvolved"]
    assert set(one["pictures"]) == {"tilt_picture", "series_powerspectrum", "slices"}


def test_lists_of_movies_have_no_series_in_them(owner: TestClient) -> None:
    columns = read(owner, "columns")
    assert len(columns["ids"]) == 9
    assert set(columns["kind"]) == {"tilt"}
    assert "motion" in columns["metrics"]
    assert "resolution" not in columns["metrics"], "only the series has one, which is another thing"
    assert read(owner, "items", kind="movie,tilt")["total"] == 9
    assert [item["id"] for item in read(owner, "items", kind="series")["items"]] == [NAME]
    assert read(owner, "items")["total"] == 10
    assert owner.get("/api/items?kind=film").status_code == 422
    (series,) = read(owner, "items", kind="series", sort="-motion")["items"]
    assert set(series["shown"].values()) == {None}
    assert read(owner, "status")["of_tilts"] is True


def test_one_series_with_its_steps(owner: TestClient) -> None:
    one = read(owner, f"series/{NAME}")
    assert [(step["name"], step["state"]) for step in one["steps"]] == [
        (name, "done") for name in ("stack", "align", "tilt_ctf", "reconstruct")
    ]
    assert one["notes"] == ["counts fall faster than they should"]
    assert (one["changes"], one["error"], one["pixel_size"]) == ([], None, PIXEL)


def test_every_tilt_has_what_was_measured_on_it(owner: TestClient, made: Made) -> None:
    tilts = read(owner, f"series/{NAME}/tilts")["tilts"]
    assert [tilt["angle"] for tilt in tilts] == made.angles
    used = sorted((tilt for tilt in tilts if tilt["used"]), key=lambda tilt: tilt["angle"])
    assert [tilt["position"] for tilt in used] == list(range(8))
    expected = made.alignment.per_tilt()
    assert [tilt["residual"] for tilt in used] == pytest.approx(expected["residual_mean"].tolist())
    assert [tilt["observations"] for tilt in used] == expected["observations"].tolist()
    # the record keeps defocus to a hundredth of an Å
    assert [tilt["defocus"] for tilt in used] == pytest.approx(made.ctf.defocus.tolist(), abs=0.006)
    assert [tilt["motion"] for tilt in tilts] == pytest.approx([1.0 + 0.02 * i for i in range(9)])
    assert used[0]["fitted"] is False
    assert used[0]["resolution"] is None
    assert used[1]["resolution"] == pytest.approx(made.ctf.resolution[1])
    dark = tilts[DARK]
    assert (dark["used"], dark["position"], dark["residual"]) == (False, None, None)
    assert dark["reason"].startswith("dark")
    assert dark["pending"] is False


def test_a_tilt_left_out_makes_stale_what_depends_on_it(owner: TestClient, made: Made) -> None:
    answer = decide(owner, [3], False)
    assert read_table(table_path(made.root, NAME)).tilts[3].decision is False
    tilt = answer["tilts"][3]
    assert (tilt["decision"], tilt["pending"], tilt["used"]) == (False, True, True), (
        "as it was, until it is done"
    )
    states = {step["name"]: (step["state"], step["reason"]) for step in answer["steps"]}
    assert states["stack"] == ("stale", "its tilts have changed")
    assert {state for state, _ in states.values()} == {"stale"}
    one = read(owner, f"series/{NAME}")
    assert one["state"] == "stale"
    assert one["changes"] == [f"{made.angles[3]:.1f}° is to be left out"]
    assert one["revision"] != "", "pictures are asked for again"
    again = decide(owner, [3], None)
    assert again["tilts"][3]["pending"] is False
    assert {step["state"] for step in again["steps"]} == {"done"}, "as if nothing had been decided"


def test_a_bad_tilt_can_be_kept(owner: TestClient) -> None:
    tilt = decide(owner, [DARK], True)["tilts"][DARK]
    assert (tilt["decision"], tilt["pending"], tilt["used"]) == (True, True, False)


def test_who_may_only_look_decides_nothing(clients: tuple[TestClient, TestClient], made: Made) -> None:
    before = table_path(made.root, NAME).read_text()
    answer = clients[1].post(f"/api/series/{NAME}/tilts", json={"tilts": [0], "keep": False})
    assert answer.status_code == 403
    assert table_path(made.root, NAME).read_text() == before
    assert read(clients[1], "series")["series"][0]["id"] == NAME


def test_what_is_not_there_is_said(owner: TestClient) -> None:
    for address in ("series/nobody", "series/TS_01_000_+0.0", f"series/{NAME}/picture/average"):
        assert owner.get(f"/api/{address}").status_code == 404
    answer = owner.post(f"/api/series/{NAME}/tilts", json={"tilts": [0, 99], "keep": False})
    assert answer.status_code == 404
    assert "99" in answer.json()["detail"]
    assert read(owner, f"series/{NAME}/tilts")["tilts"][0]["decision"] is None, "all of them, or none"
    assert owner.get(f"/api/series/{NAME}/tilts/99/view").status_code == 404
    assert owner.get(f"/api/series/{NAME}/slice?map=denoised").status_code == 404


def test_markers_lie_where_the_geometry_says_plus_their_residuals(owner: TestClient, made: Made) -> None:
    found = read(owner, f"series/{NAME}/alignment")
    geometry = made.alignment.geometry
    expected = geometry.project(made.alignment.markers + 0.5 * geometry.volume_size)[..., :2]
    place = {tilt["index"]: i for i, tilt in enumerate(found["tilts"])}
    table = found["observations"]
    for row in range(0, len(table["marker"]), 5):
        x, y = expected[place[table["tilt"][row]], table["marker"][row]].tolist()
        # places are rounded to 0.01 Å, residuals to 0.001 Å
        assert table["x"][row] - table["dx"][row] == pytest.approx(x, abs=0.01)
        assert table["y"][row] - table["dy"][row] == pytest.approx(y, abs=0.01)
    assert found["positions"][3]["observations"] == 7, "one of its eight took no part"
    assert (found["markers"], found["verdict"], found["levelling"]) == (6, "good", "6 beads on two surfaces")


def test_results_of_another_stack_are_not_mixed_with_this_one(owner: TestClient, made: Made) -> None:
    store = RecordStore(made.root)
    record = store.read(NAME)
    assert record is not None
    results = json.loads(json.dumps(record.steps["stack"].results))
    for tilt in results["tilts"]:
        if tilt["section"] is not None:
            tilt["section"] -= 1
        if tilt["section"] == -1:
            tilt |= {"section": None, "used": False, "reason": "left out by hand"}
    change_step(made.root, "stack", results=results)
    assert owner.get(f"/api/series/{NAME}/alignment").status_code == 404
    assert owner.get(f"/api/series/{NAME}/handedness").status_code == 404
    tilts = read(owner, f"series/{NAME}/tilts")["tilts"]
    assert {tilt["residual"] for tilt in tilts} == {None}
    assert {tilt["defocus"] for tilt in tilts} == {None}


def test_a_series_that_was_just_found(made: Made, idle_manager: Callable[[Any], Any]) -> None:
    (made.root / "records" / f"{NAME}.json").unlink()
    table = read_table(table_path(made.root, NAME))
    rows = (replace(table.tilts[0], motion=""), replace(table.tilts[1], motion="", failure="it is cut short"))
    write_table(made.root, replace(table, tilts=(*rows, *table.tilts[2:])))
    # the movies' own records say the same
    store = RecordStore(made.root)
    store.path(rows[0].item).unlink()
    record = store.read(rows[1].item)
    assert record is not None
    failed = StepRecord("failed", "x", error=StepError("TruncatedError", "it is cut short", True))
    store.write(record.with_step("motion", failed))
    application = Application(idle_manager(weft.open(made.root)), Access(OWNER))
    with TestClient(application, HOST, headers={"Authorization": f"Bearer {OWNER}"}) as client:
        (one,) = read(client, "series")["series"]
        assert (one["state"], one["tilts"], one["to_come"]) == ("new", 9, 1)
        assert (one["alignment"], one["ctf"], one["hand"], one["tomogram"]) == (None, None, None, None)
        tilts = read(client, f"series/{NAME}/tilts")["tilts"]
        assert (tilts[0]["used"], tilts[0]["reason"], tilts[0]["dose"]) == (False, "", 3.0), "it is to come"
        assert (tilts[1]["used"], tilts[1]["reason"]) == (False, "its movie failed: it is cut short")
        assert tilts[2]["used"] is True
        assert {step["state"] for step in read(client, f"series/{NAME}")["steps"]} == {"new"}
        for part in ("alignment", "ctf", "handedness", "tomogram", "slice"):
            assert client.get(f"/api/series/{NAME}/{part}").status_code == 404
        assert read(client, "handedness")["hand"] is None


def test_the_hand_with_its_evidence(owner: TestClient, made: Made) -> None:
    found = read(owner, f"series/{NAME}/handedness")
    assert (found["hand"], found["found"], found["origin"]) == (1.0, 1.0, "found")
    assert found["scores"] == [98.0, 0.0]
    assert [tilt["angle"] for tilt in found["tilts"]] == pytest.approx(
        made.handedness.gradients.angles.tolist()
    )
    assert [made.angles[tilt["index"]] for tilt in found["tilts"]] == [
        tilt["angle"] for tilt in found["tilts"]
    ]
    session = read(owner, "handedness")
    assert (session["hand"], session["plus"], session["minus"], session["series"]) == (1.0, 1, 0, 1)
    assert session["setting"] == "auto"
    assert owner.post("/api/settings", json={"changes": {"handedness.hand": "-1"}}).status_code == 200
    assert read(owner, "handedness")["setting"] == "-1"


def test_the_ctf_of_the_series(owner: TestClient, made: Made) -> None:
    found = read(owner, f"series/{NAME}/ctf")
    assert found["resolution"] == pytest.approx(made.ctf.series_resolution)
    assert (found["fitted"], found["notes"]) == (7, list(made.ctf.notes))
    assert len(found["curve"]["frequency"]) == len(found["curve"]["fit"])


def test_sections_are_those_of_the_volume(owner: TestClient, made: Made) -> None:
    info = read(owner, f"series/{NAME}/tomogram")
    assert (info["shape"], info["pixel_size"]) == (list(made.tomogram.shape), TOMOGRAM_PIXEL)

    def grey(part: np.ndarray) -> np.ndarray:
        shown = (part - info["low"]) * 255.0 / (info["high"] - info["low"])
        return np.clip(shown, 0, 255).round()

    volume = made.tomogram
    # one grey value for what lies between two of them
    assert np.abs(section(owner, axis="z", index=3) - grey(volume[3])).max() <= 1
    assert np.abs(section(owner, axis="y", index=40) - grey(volume[:, 40])).max() <= 1
    assert np.abs(section(owner, axis="x", index=33) - grey(volume[:, :, 33].T)).max() <= 1
    assert np.abs(section(owner, axis="z") - grey(volume[volume.shape[0] // 2])).max() <= 1
    thick = section(owner, axis="y", index=20, thickness=3)
    assert np.abs(thick - grey(volume[:, 19:22].mean(1))).max() <= 1
    # columns are averaged after they were rounded and cut off at the ends of the grey scale
    across = section(owner, axis="x", index=0, thickness=3).astype(float)
    assert np.abs(across - grey(volume[:, :, 0:2]).mean(2).T).max() <= 1.5
    low, black, white, high = 0, info["black"], info["white"], 255
    assert low <= black < white <= high
    shown = section(owner, axis="z", index=3, stretched=True)
    part = volume[3]
    assert shown[part <= np.quantile(part, 0.001)].max() == 0


def test_large_sections_are_reduced_by_averaging(made: Made) -> None:
    path = made.root / "reconstruction" / f"{NAME}_{TOMOGRAM_PIXEL:.2f}Apx.mrc"
    tomograms = Tomograms()
    whole = imagecodecs.png_decode(tomograms.section(path, "z", 5)).astype(float)
    half = imagecodecs.png_decode(tomograms.section(path, "z", 5, longest=24))
    ny, nx = (n // 2 * 2 for n in whole.shape)
    expected = whole[:ny, :nx].reshape(ny // 2, 2, nx // 2, 2).mean((1, 3))
    assert np.abs(half - expected).max() <= 0.51
    jpeg = imagecodecs.jpeg8_decode(tomograms.section(path, "z", 5, form="jpeg"))
    # of pure noise, the worst that JPEG can be given
    assert np.abs(jpeg.astype(float) - whole).mean() < 4


def test_a_tomogram_made_again_is_shown_again(made: Made) -> None:
    from weft.formats import mrc

    path = made.root / "reconstruction" / f"{NAME}_{TOMOGRAM_PIXEL:.2f}Apx.mrc"
    tomograms = Tomograms()
    before = tomograms.section(path, "x", 4)
    mrc.write(path, made.tomogram[::-1], TOMOGRAM_PIXEL)
    assert tomograms.section(path, "x", 4) != before


def test_a_tomogram_cut_short_is_an_answer(owner: TestClient, made: Made) -> None:
    path = made.root / "reconstruction" / f"{NAME}_{TOMOGRAM_PIXEL:.2f}Apx.mrc"
    assert owner.get(f"/api/series/{NAME}/slice?axis=z&index=100000").status_code == 404
    path.write_bytes(path.read_bytes()[:2000])
    for part in ("slice?axis=x", "tomogram"):
        answer = owner.get(f"/api/series/{NAME}/{part}")
        assert answer.status_code == 409
        assert path.name in answer.json()["detail"]


def test_pictures_of_tilts(owner: TestClient, made: Made) -> None:
    small = owner.get(f"/api/series/{NAME}/tilts/0/thumbnail")
    assert small.content == (made.root / f"tiltstack/{NAME}/tilt_000.png").read_bytes()
    again = {"If-None-Match": small.headers["etag"]}
    assert owner.get(f"/api/series/{NAME}/tilts/0/thumbnail", headers=again).status_code == 304
    # what was left out has no picture in the stack's folder: there is the movie's own
    dark = owner.get(f"/api/series/{NAME}/tilts/{DARK}/thumbnail")
    item = read(owner, f"series/{NAME}/tilts")["tilts"][DARK]["item"]
    assert dark.content == (made.root / f"thumbnails/{item}.png").read_bytes()
    for index in (0, DARK):
        view = owner.get(f"/api/series/{NAME}/tilts/{index}/view?size=64")
        assert view.status_code == 200, view.text
        assert imagecodecs.png_decode(view.content).shape == (64, 64)
    # the untilted image is the middle one of the stack, not the first
    first = imagecodecs.png_decode(owner.get(f"/api/series/{NAME}/tilts/0/view?size=4096").content)
    from weft.formats import mrc

    stack = mrc.read(made.root / f"tiltstack/{NAME}/{NAME}.st")[0]
    place = read(owner, f"series/{NAME}/tilts")["tilts"][0]["position"]
    match = [float(np.corrcoef(first.ravel(), image.ravel())[0, 1]) for image in stack]
    assert int(np.argmax(match)) == place
    assert match[place] > 0.95
