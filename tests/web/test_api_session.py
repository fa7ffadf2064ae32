"""Status, selection, settings, columns and advice."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

import weft
from weft.formats.star import read_star
from weft.session.advice import Advice, AdviceSettings
from weft.web import listing


def read(client: TestClient, address: str) -> Any:
    answer = client.get(f"/api/{address}")
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_the_status(owner: TestClient, connect: Callable[..., TestClient], web_session: Any) -> None:
    status = read(owner, "status")
    assert status["session"] == str(web_session.root)
    assert status["version"] == weft.__version__
    assert (status["items"]["total"], status["items"]["done"], status["items"]["selected"]) == (3, 3, 3)
    assert status["disk"]["free"] > 0
    assert status["readonly"] is False
    reader = connect("reader-token-of-the-tests")
    assert read(reader, "status")["readonly"] is True


def test_columns_are_in_the_units_of_screens(owner: TestClient, web_session: Any) -> None:
    columns = read(owner, "columns")
    assert columns["ids"] == ["movie_000", "movie_001", "movie_002"]
    assert (columns["state"], columns["selected"]) == (["done"] * 3, [1, 1, 1])
    defocus = columns["metrics"]["defocus"]
    assert (defocus["label"], defocus["unit"]) == ("Defocus", "µm")
    expected = [web_session[name].metrics["defocus"] * 1e-4 for name in columns["ids"]]
    np.testing.assert_allclose(defocus["values"], expected, rtol=1e-6)
    assert columns["metrics"]["astigmatism_angle"]["unit"] == "°"
    particles = [web_session[name].metrics["particles"] for name in columns["ids"]]
    assert columns["metrics"]["particles"]["values"] == particles
    assert "tilts" not in columns["metrics"], "nobody has measured them"


def test_columns_follow_the_session(owner: TestClient) -> None:
    before = read(owner, "columns")
    owner.post("/api/decisions", json={"items": ["movie_001"], "accept": False})
    after = read(owner, "columns")
    assert after["version"] > before["version"]
    assert after["selected"] == [1, 0, 1]


def test_a_range_is_counted_and_written(owner: TestClient, web_session: Any) -> None:
    defocus = {
        name: web_session[name].metrics["defocus"] * 1e-4 for name in ("movie_000", "movie_001", "movie_002")
    }
    lowest = min(defocus, key=defocus.__getitem__)
    limit = sorted(defocus.values())[0] + 1e-3
    answer = owner.put("/api/selection", json={"ranges": {"defocus": [limit, None], "motion": [0, 1e6]}})
    assert answer.status_code == 200
    selection = answer.json()
    assert selection == read(owner, "selection")
    assert selection["ranges"] == {"defocus": [limit, None], "motion": [0.0, 1e6]}
    assert selection["selected"] == 2
    by_name = {quantity["name"]: quantity for quantity in selection["quantities"]}
    assert (by_name["defocus"]["passes"], by_name["defocus"]["only"]) == (2, 1)
    assert (by_name["motion"]["passes"], by_name["resolution"]["passes"]) == (3, 3)
    assert by_name["defocus"]["min"] == pytest.approx(min(defocus.values()))
    assert by_name["particles"]["min"] == min(web_session[name].metrics["particles"] for name in defocus)
    table = read_star(web_session.root / "micrographs_selected.star")["micrographs"]
    assert len(table) == 2
    assert not any(lowest in name for name in table.strings("rlnMicrographName"))
    # null removes one range, the other stays
    after = owner.put("/api/selection", json={"ranges": {"defocus": None}}).json()
    assert after["ranges"] == {"motion": [0.0, 1e6]}
    assert after["selected"] == 3


@pytest.mark.parametrize(
    "bad",
    [
        {"ranges": {"size": [1, 2]}},
        {"ranges": {"defocus": [2, 1]}},
        {"ranges": {"defocus": [1]}},
        {"ranges": {"defocus": ["low", None]}},
        {"ranges": [1, 2]},
        {},
    ],
)
def test_bad_ranges_change_nothing(owner: TestClient, web_session: Any, bad: Any) -> None:
    answer = owner.put("/api/selection", json=bad)
    assert answer.status_code == 422
    assert isinstance(answer.json()["detail"], str)
    assert not (web_session.root / "selection.json").exists()


def test_the_form_of_the_settings(owner: TestClient) -> None:
    sections = {section["name"]: section for section in read(owner, "settings")["sections"]}
    assert {"input", "motion", "average", "ctf", "engine"} <= set(sections)
    ctf = {field["name"]: field for field in sections["ctf"]["fields"]}
    assert ctf["range_max"] == {
        "name": "range_max",
        "key": "ctf.range_max",
        "description": ctf["range_max"]["description"],
        "unit": "Å",
        "kind": "float",
        "choices": [],
        "allowed": "a number, ≥ 1, ≤ 15",
        "required": False,
        "default": 4.0,
        "value": 8.0,
    }
    assert (ctf["source"]["kind"], ctf["source"]["choices"]) == ("choice", ["average", "movie"])
    assert (ctf["grid"]["kind"], ctf["grid"]["value"]) == ("list", [5, 5])
    assert (ctf["fit_phase"]["kind"], ctf["window"]["kind"]) == ("bool", "int")
    engine = {field["name"]: field for field in sections["engine"]["fields"]}
    assert (engine["workers"]["kind"], engine["workers"]["choices"]) == ("text", ["auto"])
    given = {field["name"]: field for field in sections["input"]["fields"]}
    assert next(iter(given)) == "frames"
    # movies, or tilt series: one of them
    assert (given["frames"]["required"], given["mdoc"]["required"]) == (False, False)
    assert given["pixel_size"]["required"] is True


def test_a_change_is_shown_before_it_is_made(owner: TestClient, web_session: Any) -> None:
    changes = {"changes": {"ctf.range_max": "6"}}
    preview = owner.post("/api/settings/preview", json=changes).json()
    assert preview == {"errors": {}, "steps": {"ctf": 3}, "items": 3}
    assert web_session.settings.plain()["ctf"]["range_max"] == 8.0
    both = owner.post("/api/settings/preview", json={"changes": {"motion.patch": "300"}}).json()
    assert both["steps"] == {"motion": 3, "ctf": 3, "pick": 3}
    applied = owner.post("/api/settings", json=changes)
    assert applied.status_code == 200
    assert web_session.settings.plain()["ctf"]["range_max"] == 6.0
    assert applied.json() == read(owner, "settings")
    items = read(owner, "items")["items"]
    assert {(item["state"], item["reason"]) for item in items} == {("stale", "changed: ctf.range_max")}


def test_bad_settings_are_named_and_nothing_is_changed(owner: TestClient, web_session: Any) -> None:
    before = (web_session.root / "weft.toml").read_text()
    changes = {"changes": {"ctf.range_max": "100", "ctf.nonsense": "1", "motion.patch": "300"}}
    errors = owner.post("/api/settings/preview", json=changes).json()["errors"]
    assert set(errors) == {"ctf.range_max", "ctf.nonsense"}
    assert "100" in errors["ctf.range_max"]
    answer = owner.post("/api/settings", json=changes)
    assert answer.status_code == 422
    assert set(answer.json()["errors"]) == set(errors)
    assert (web_session.root / "weft.toml").read_text() == before


def test_advice_is_off_by_default_and_carries_its_evidence(
    owner: TestClient, web_session: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read(owner, "advice") == []
    web_session.set("advice.settle", "true")

    def advise(entries: Any, verdicts: Any, settings: AdviceSettings) -> list[Advice]:
        assert settings.settle
        assert [entry.name for entry in entries] == list(verdicts)
        return [Advice("settle", "", "Wait longer.", {"early_motion": {"value": 7.5, "n": 3}})]

    monkeypatch.setattr("weft.web.api_session.advise", advise)
    expected = {"kind": "settle", "folder": "", "text": "Wait longer."}
    assert read(owner, "advice") == [expected | {"evidence": {"early_motion": {"value": 7.5, "n": 3}}}]


def test_pause_and_resume(owner: TestClient) -> None:
    assert read(owner, "status")["paused"] is None
    assert owner.post("/api/pause").status_code == 204
    assert read(owner, "status")["paused"]
    assert owner.post("/api/resume").status_code == 204
    assert read(owner, "status")["paused"] is None


def test_a_broken_settings_file_is_a_sentence(owner: TestClient, web_session: Any) -> None:
    (web_session.root / "weft.toml").write_text("[ctf\n")
    answer = owner.get("/api/settings")
    assert answer.status_code == 422
    assert "weft.toml" in answer.json()["detail"]


# ---------------------------------------------------------------------- ten thousand items


class Crowd:
    """A board of ten thousand items, as the lists need it."""

    def __init__(self, like: Any, verdict: Any, selection: Any) -> None:
        rng = np.random.default_rng(3)
        self.version = 1
        self.selection = selection
        self.entries = {}
        for i in range(10_000):
            name = f"grid{i % 40}_square{i % 7}_movie_{i:05d}"
            metrics = dict(like.metrics) | {"defocus": float(rng.uniform(3e3, 3e4))}
            self.entries[name] = replace(like, name=name, metrics=metrics, mtime=float(rng.uniform(1, 9e8)))
        self.verdicts = dict.fromkeys(self.entries, verdict)


@pytest.fixture
def crowd(application: Any) -> Crowd:
    board = application.hub.manager.board
    return Crowd(board.entries["movie_000"], board.verdicts["movie_000"], board.selection)


def test_ten_thousand_items_are_listed_at_once(crowd: Any) -> None:
    """Not a test of speed, but of its order: benchmarks are elsewhere; a second would be felt."""
    for given in (
        {"sort": "-defocus"},
        {"sort": "time", "search": "square3 99"},
        {"sort": "astigmatism_sigma"},
    ):
        begin = time.perf_counter()
        names = listing.find(crowd, **given)
        page = listing.items(crowd, names[:100])
        assert time.perf_counter() - begin < 1.0
        assert len(page) == min(100, len(names))
    values = [crowd.entries[name].metrics["defocus"] for name in listing.find(crowd, sort="-defocus")]
    assert values == sorted(values, reverse=True)


def test_ten_thousand_items_by_column_are_packed(crowd: Any) -> None:
    cache = listing.ColumnCache()
    packed, plain = cache.get(crowd, True), cache.get(crowd, False)
    assert gzip.decompress(packed) == plain
    assert len(packed) < 0.5 * len(plain)
    columns = json.loads(plain)
    assert len(columns["ids"]) == len(columns["metrics"]["defocus"]["values"]) == 10_000
    assert cache.get(crowd, True) is packed, "made once for a version"


def test_columns_are_packed_for_those_who_can_unpack(owner: TestClient) -> None:
    packed = owner.get("/api/columns", headers={"Accept-Encoding": "gzip"})
    assert packed.headers["content-encoding"] == "gzip"
    plain = owner.get("/api/columns", headers={"Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers
    assert packed.json() == plain.json()


def test_what_is_not_measured_comes_last_both_ways(crowd: Any) -> None:
    some = next(iter(crowd.entries))
    crowd.entries[some] = replace(crowd.entries[some], metrics={})
    assert listing.find(crowd, sort="defocus")[-1] == some
    assert listing.find(crowd, sort="-defocus")[-1] == some
