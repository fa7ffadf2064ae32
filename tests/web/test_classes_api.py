"""Classes of particles over the API: what `weft vae map-back` has put into the session."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from class_session import LABELS, add_classes
from series_session import NAME, Made, make
from starlette.testclient import TestClient

import weft
from weft.session.heterogeneity.class_colours import class_colour
from weft.web.app import Application
from weft.web.security import Access

READER = "reader-token-of-the-tests"


@pytest.fixture
def made(tmp_path: Path) -> Made:
    """A session of one series."""
    return make(tmp_path / "session")


@pytest.fixture
def client(made: Made, idle_manager: Callable[[Any], Any]) -> Iterator[TestClient]:
    """A reader, over a server that processes nothing."""
    application = Application(idle_manager(weft.open(made.root)), Access("owner-token-of-the-tests", READER))
    with TestClient(application):
        headers = {"Authorization": f"Bearer {READER}"}
        yield TestClient(application, "http://127.0.0.1:8765", False, headers=headers)


def ask(client: TestClient) -> Any:
    reply = client.get(f"/api/series/{NAME}/classes")
    assert reply.status_code == 200, reply.text
    return reply.json()


def test_a_session_without_a_training_has_none(client: TestClient) -> None:
    assert ask(client) == {"trainings": [], "problems": []}
    assert client.get("/api/series/nothing/classes").status_code == 404


def test_particles_have_their_places_and_classes(client: TestClient, made: Made) -> None:
    places = add_classes(made, "first")
    add_classes(made, "second", seed=9, elsewhere=True)
    found = ask(client)
    assert found["problems"] == []
    assert [one["name"] for one in found["trainings"]] == ["first"], "the second is of another series"
    one = found["trainings"][0]
    np.testing.assert_allclose(np.stack([one[axis] for axis in "xyz"], axis=1), places, atol=0.006)
    assert one["label"] == LABELS.tolist()
    assert one["diameter"] == 90.0
    assert one["folder"].endswith("/trainings/first")
    counts = {1: 7, 2: 3, 3: 2}
    assert one["classes"] == [
        {"number": n, "colour": class_colour(n), "particles": count} for n, count in counts.items()
    ]


def test_tables_that_cannot_be_shown_are_named(client: TestClient, made: Made, tmp_path: Path) -> None:
    add_classes(made, "good")
    folder = made.root / "heterogeneity"
    (folder / "bad.star").write_text("data_\n\nloop_\n_rlnTomoName #1\nTS_01\n")
    secret = tmp_path / "secret.star"
    secret.write_bytes((folder / "good.star").read_bytes())
    (folder / "out.star").symlink_to(secret)
    found = ask(client)
    assert [one["name"] for one in found["trainings"]] == ["good"]
    assert [text.split(":")[0] for text in found["problems"]] == ["bad.star", "out.star"]
    assert "no table of classes" in found["problems"][0]
    assert "outside the session" in found["problems"][1]
