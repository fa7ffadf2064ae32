"""Searches over the API: their candidates at any cut-off, what is saved, score maps, the hand."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
from match_session import DIAMETER, PARTICLES, ROTATIONS, SIGMA, add_search, star_of
from series_session import NAME, TOMOGRAM_PIXEL, Made, make
from starlette.testclient import TestClient

import weft
from weft.formats import mrc
from weft.formats.tomo_particles import read_tomo_particles
from weft.matching.candidates import CandidateSettings, false_alarm_threshold
from weft.session.candidate_files import take_candidates
from weft.web.app import Application
from weft.web.security import Access

OWNER, READER = "owner-token-of-the-tests", "reader-token-of-the-tests"
HOST = "http://127.0.0.1:8765"
JOB = f"{NAME}_ribosome"
Clients = tuple[TestClient, TestClient]


@pytest.fixture
def made(tmp_path: Path) -> Made:
    """A session of one series, without a search."""
    return make(tmp_path / "session")


@pytest.fixture
def clients(made: Made, idle_manager: Callable[[Any], Any]) -> Iterator[Clients]:
    """The owner and a reader, over a server that processes nothing."""
    application = Application(idle_manager(weft.open(made.root)), Access(OWNER, READER))
    with TestClient(application):
        yield tuple(  # type: ignore[misc]
            TestClient(application, HOST, False, headers={"Authorization": f"Bearer {token}"})
            for token in (OWNER, READER)
        )


def ask(client: TestClient, rest: str = "", **parameters: Any) -> Any:
    reply = client.get(f"/api/series/{NAME}/matches{rest}", params=parameters)
    assert reply.status_code == 200, reply.text
    return reply.json()


def save(client: TestClient, job: str = JOB, **changes: Any) -> Any:
    rules = {"cut_off": 0.0, "false_positives": 1.0, "number": 1000, "tophat": False} | changes
    return client.post(f"/api/series/{NAME}/matches/{job}/candidates", json=rules)


def test_a_series_without_a_search_has_none(clients: Clients) -> None:
    found = ask(clients[0])
    assert found["searches"] == []
    assert found["problems"] == []
    assert found["rules"]["number"] == 1000
    assert clients[0].get(f"/api/series/{NAME}/matches/{JOB}/candidates").status_code == 404


def test_a_search_says_what_was_searched_with(clients: Clients, made: Made) -> None:
    add_search(made, hand=True)
    add_search(made, ("apoferritin", "proteasome"))
    both = ask(clients[1])
    assert [one["job"] for one in both["searches"]] == [f"{NAME}_apoferritin+proteasome", JOB]
    one = both["searches"][1]
    assert one["templates"] == [
        {"stem": "ribosome", "diameter": DIAMETER, "symmetry": "C1"}
        | dict.fromkeys(("file", "written", "cut_off"))
    ]
    assert one["shape"] == list(made.tomogram.shape)
    assert one["search_space"] == made.tomogram.size * ROTATIONS
    assert (one["std"], one["rotations"], one["seconds"], one["angular_step"]) == (SIGMA, 40, 12.5, [15.0])
    assert one["high"] == pytest.approx(14.0 * SIGMA)
    assert one["verdict"]["p"] == 0.0004
    assert "+1" in one["verdict"]["sentence"]
    picture = clients[1].get(f"/api/series/{NAME}/matches/{JOB}/hand")
    assert picture.headers["content-type"] == "image/svg+xml"
    assert "script-src 'self'" in picture.headers["content-security-policy"]
    assert both["searches"][0]["verdict"] is None
    assert clients[0].get(f"/api/series/{NAME}/matches/{NAME}_apoferritin+proteasome/hand").status_code == 404


def test_candidates_are_those_of_every_higher_cut_off(clients: Clients, made: Made) -> None:
    truth = add_search(made)
    found = ask(clients[1], f"/{JOB}/candidates")
    path = made.root / "matching" / f"{JOB}.json"
    space = made.tomogram.size * ROTATIONS
    assert found["automatic"] == pytest.approx(false_alarm_threshold(SIGMA, space))
    assert found["complete"]
    assert len(found["score"]) > 2 * PARTICLES, "background is among them"
    assert found["score"] == sorted(found["score"], reverse=True)
    xyz = np.stack([found[axis] for axis in "xyz"], axis=1)
    # the list is in order, so a cut-off and a number are a matter of where it is cut
    for cut_off, number in ((found["automatic"], 1000), (0.2, 1000), (0.15, 12)):
        shown = xyz[np.array(found["score"]) >= cut_off][:number]
        wanted = take_candidates(path, CandidateSettings(cut_off=cut_off, number=number))
        assert np.allclose(shown, wanted.xyz, atol=0.01), "as the command takes them, to the rounding"
    # a score of 6 σ and more is that of a particle: noise ends at 5.5 σ
    best = xyz[:PARTICLES]
    assert np.allclose(best, truth, atol=0.01)
    assert len(ask(clients[1], f"/{JOB}/candidates", limit=7)["x"]) == 7
    assert not ask(clients[1], f"/{JOB}/candidates", limit=7)["complete"]
    wider = ask(clients[1], f"/{JOB}/candidates", false_positives=100)
    assert wider["automatic"] == pytest.approx(false_alarm_threshold(SIGMA, space, 100))


def test_nothing_is_written_by_looking(clients: Clients, made: Made) -> None:
    add_search(made)
    before = {path: path.stat().st_mtime_ns for path in made.root.rglob("*") if "index" not in path.name}
    ask(clients[0])
    ask(clients[0], f"/{JOB}/candidates", tophat=True)
    ask(clients[0], f"/{JOB}/estimate")
    clients[0].get(f"/api/series/{NAME}/matches/{JOB}/slice")
    assert {p: p.stat().st_mtime_ns for p in made.root.rglob("*") if "index" not in p.name} == before


def test_saving_changes_the_settings_and_writes_the_candidates(clients: Clients, made: Made) -> None:
    add_search(made)
    reply = save(clients[0], cut_off=0.2, number=500)
    assert reply.status_code == 200, reply.text
    wanted = take_candidates(made.root / "matching" / f"{JOB}.json", CandidateSettings(cut_off=0.2))
    said = reply.json()
    assert said["count"] == len(wanted) > 0
    assert said["files"] == [f"matching/{NAME}_ribosome_candidates.star", "matching/ribosome_candidates.star"]
    written = read_tomo_particles(star_of(made.root))
    assert np.allclose(written.score, wanted.score, atol=1e-5)
    sheet = tomllib.loads((made.root / "weft.toml").read_text())["candidates"]
    assert (sheet["cut_off"], sheet["number"], sheet["tophat"]) == (0.2, 500, False)
    assert said["matches"]["rules"]["cut_off"] == 0.2
    template = said["matches"]["searches"][0]["templates"][0]
    assert (template["written"], template["cut_off"]) == (len(wanted), pytest.approx(0.2))
    # back to what noise allows
    assert save(clients[0]).json()["cut_off"] == pytest.approx(
        ask(clients[0], f"/{JOB}/candidates")["automatic"]
    )


def test_competing_templates_get_a_file_each(clients: Clients, made: Made) -> None:
    add_search(made, ("apoferritin", "proteasome"))
    job = f"{NAME}_apoferritin+proteasome"
    found = ask(clients[0], f"/{job}/candidates")
    assert found["template"][:4] == [0, 1, 0, 1]
    assert save(clients[0], job, cut_off=0.11).status_code == 200
    counts = [len(read_tomo_particles(star_of(made.root, stem))) for stem in ("apoferritin", "proteasome")]
    assert sum(counts) == sum(score >= 0.11 for score in found["score"])
    assert min(counts) > 0


def test_who_may_only_look_saves_nothing(clients: Clients, made: Made) -> None:
    add_search(made)
    assert save(clients[1], cut_off=0.2).status_code == 403
    foreign = clients[0].post(
        f"/api/series/{NAME}/matches/{JOB}/candidates",
        json={"cut_off": 0.2, "false_positives": 1, "number": 10, "tophat": False},
        headers={"Origin": "http://elsewhere"},
    )
    assert foreign.status_code == 403
    assert not star_of(made.root).exists()
    assert "cut_off = 0.2" not in (made.root / "weft.toml").read_text()


@pytest.mark.parametrize("wrong", [{"cut_off": -0.1}, {"cut_off": 2}, {"number": 0}, {"false_positives": 0}])
def test_wrong_rules_are_refused(clients: Clients, made: Made, wrong: dict[str, float]) -> None:
    add_search(made)
    assert save(clients[0], **wrong).status_code == 422
    assert not star_of(made.root).exists()


def test_more_false_positives_than_scores_are_refused_before_anything_changes(
    clients: Clients, made: Made
) -> None:
    add_search(made)
    before = (made.root / "weft.toml").read_bytes()
    reply = save(clients[0], false_positives=1e9)
    assert reply.status_code == 409
    assert "not possible" in reply.json()["detail"]
    assert (made.root / "weft.toml").read_bytes() == before
    assert not star_of(made.root).exists()


def test_sections_of_the_score_map(clients: Clients, made: Made) -> None:
    truth = add_search(made)
    x, y, z = np.rint(truth[0] / TOMOGRAM_PIXEL).astype(int)
    one = ask(clients[0])["searches"][0]
    address = f"/api/series/{NAME}/matches/{JOB}/slice"
    scores, _ = mrc.read(made.root / "matching" / f"{JOB}_scores.mrc")
    reply = clients[0].get(address, params={"axis": "z", "index": int(z)})
    grey = imagecodecs.png_decode(reply.content).astype(float)
    assert grey[y, x] == 255, "the best score of all"
    told = (scores[z] - one["low"]) / (one["high"] - one["low"]) * 255
    assert np.abs(grey - told.clip(0, 255)).max() <= 0.5
    across = imagecodecs.png_decode(clients[0].get(address, params={"axis": "x", "index": int(x)}).content)
    assert across[y, z] == 255
    assert clients[0].get(address, params={"index": 100_000}).status_code == 404


def test_recall_is_estimated_when_it_is_asked_for(clients: Clients, made: Made) -> None:
    add_search(made)
    found = ask(clients[1], f"/{JOB}/estimate")
    assert len(found["cut_offs"]) == len(found["recall"]) == len(found["false_discovery"])
    assert min(found["recall"]) >= 0
    # the mixture has a model of its own for noise: only the scale of the answer is looked at
    assert 0.5 * PARTICLES < found["particles"] < 2 * PARTICLES


def test_a_job_leads_nowhere_outside_the_session(clients: Clients, made: Made, tmp_path: Path) -> None:
    add_search(made)
    secret = tmp_path / "secret.mrc"
    scores = made.root / "matching" / f"{JOB}_scores.mrc"
    secret.write_bytes(scores.read_bytes())
    path = made.root / "matching" / f"{JOB}.json"
    text = path.read_text()
    for elsewhere in ("../../secret.mrc", str(secret)):
        job = json.loads(text)
        job["files"]["scores"] = elsewhere
        path.write_text(json.dumps(job))
        found = ask(clients[0])
        assert found["searches"] == []
        assert "outside the session" in found["problems"][0]
        for rest in ("candidates", "slice", "estimate"):
            assert clients[0].get(f"/api/series/{NAME}/matches/{JOB}/{rest}").status_code == 404
        assert save(clients[0]).status_code == 404
    path.write_text(text)
    scores.unlink()
    scores.symlink_to(secret)
    assert ask(clients[0])["searches"] == []


def test_damaged_searches_are_said(clients: Clients, made: Made) -> None:
    add_search(made)
    add_search(made, ("proteasome",), name="TS_99")  # that of another series
    folder = made.root / "matching"
    (folder / f"{NAME}_broken.json").write_text("{")
    (folder / f"{JOB}_angles.mrc").unlink()
    found = ask(clients[0])
    assert found["searches"] == []
    assert [said.partition(":")[0] for said in found["problems"]] == [f"{NAME}_broken.json", f"{JOB}.json"]
    assert "gone" in found["problems"][1]
