"""What cannot be reached through names, links and bodies. Each test is an attack that must fail."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from starlette.testclient import TestClient

from weft.web.app import Application
from weft.web.security import BODY_LIMIT, Access

OWNER = "owner-token-of-the-tests"
OWN = "http://127.0.0.1:8765"


def written(root: Path) -> dict[str, bytes]:
    """What a request could touch; tables and index are the manager's own, and come and go."""
    found = [path for name in ("picks", "records") for path in (root / name).rglob("*")]
    found += [root / "weft.toml", root / "selection.json"]
    return {str(path.relative_to(root)): path.read_bytes() for path in found if path.is_file()}


# ---------------------------------------------------------------------- files


@pytest.mark.parametrize(
    "name",
    [
        "../weft.toml",
        "..%2f..%2fweft.toml",
        "%2e%2e%2fselection",
        "..%252fweft",
        "%2fetc%2fpasswd",
        "....//....//etc/passwd",
        "..\\..\\etc\\passwd",
        "movie_000%00.png",
        "records%2fmovie_000.json",
        "./movie_000",
        "movie_000/../movie_001",
        "C:%5Cwindows",
        "%c0%ae%c0%ae/",
        "x" * 5000,
    ],
)
def test_paths_lead_nowhere(owner: TestClient, name: str, web_session: Any) -> None:
    before = written(web_session.root)
    for after in ("", "/view", "/picture/thumbnail", "/picks", "/curve"):
        answer = owner.get(f"/api/items/{name}{after}")
        # what a client shortens to the name of an item is that item and nothing else
        if answer.status_code == 200:
            assert "movie_00" in name
            continue
        assert answer.status_code in (400, 404, 405, 422)
        assert "root:" not in answer.text
        assert "[input]" not in answer.text
    owner.put(f"/api/items/{name}/picks", json={"picks": [{"x": 1, "y": 1}]})
    after_put = written(web_session.root)
    assert set(after_put) - set(before) <= {"picks/manual/movie_000.star", "picks/manual/movie_001.star"}
    for address in (f"/{name}", f"/assets/{name}", f"/assets/../{name}"):
        answer = owner.get(address)
        assert "[input]" not in answer.text
        assert "root:" not in answer.text


def test_the_built_page_is_served_and_nothing_beside_it(application: Application, tmp_path: Path) -> None:
    static = tmp_path / "static"
    (static / "assets").mkdir(parents=True)
    (static / "index.html").write_text("<!doctype html><title>built</title>")
    (static / "assets" / "index-abc.js").write_text("export {}")
    (tmp_path / "secret.txt").write_text("secret")
    (static / "link.txt").symlink_to(tmp_path / "secret.txt")
    built = Application(application.hub.manager, Access(OWNER), static=static)
    client = TestClient(built, OWN, headers={"Authorization": f"Bearer {OWNER}"})
    assert "built" in client.get("/").text
    script = client.get("/assets/index-abc.js")
    assert script.headers["content-type"].startswith("text/javascript")
    assert "immutable" in script.headers["cache-control"]
    for address in ("/link.txt", "/..%2fsecret.txt", "/assets/..%2f..%2fsecret.txt", "/assets", "/index.htm"):
        answer = client.get(address)
        assert answer.status_code == 404, address
        assert "secret" not in answer.text
    client.close()


def test_the_page_that_was_not_built_says_how(application: Application, tmp_path: Path) -> None:
    bare = Application(application.hub.manager, Access(OWNER), static=tmp_path)
    client = TestClient(bare, OWN, headers={"Authorization": f"Bearer {OWNER}"})
    answer = client.get("/")
    assert answer.status_code == 200
    assert "npm run build" in answer.text
    client.close()


def test_links_out_of_the_session_are_not_followed(
    owner: TestClient, web_session: Any, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    for relative, address in (
        ("thumbnails/movie_000.png", "picture/thumbnail"),
        ("average/movie_000.mrc", "view"),
        ("powerspectrum/movie_000.npz", "curve"),
    ):
        path = web_session.root / relative
        moved = outside / path.name
        path.rename(moved)
        path.symlink_to(moved)
        answer = owner.get(f"/api/items/movie_000/{address}")
        assert answer.status_code == 404
        assert "outside the session" in answer.json()["detail"]
        # a link that stays inside is a file like any other
        inside = web_session.root / "reports"
        inside.mkdir(exist_ok=True)
        path.unlink()
        moved.rename(inside / path.name)
        path.symlink_to(inside / path.name)
        assert owner.get(f"/api/items/movie_000/{address}").status_code == 200


def test_a_folder_that_leads_out_is_neither_read_nor_written(
    owner: TestClient, web_session: Any, tmp_path: Path
) -> None:
    secret = tmp_path / "outside" / "manual" / "movie_000.star"
    secret.parent.mkdir(parents=True)
    secret.write_text("data_\n\nloop_\n_rlnCoordinateX\n_rlnCoordinateY\n1 1\n")
    before = secret.read_bytes()
    shutil.rmtree(web_session.root / "picks", ignore_errors=True)
    (web_session.root / "picks").symlink_to(tmp_path / "outside")
    assert owner.get("/api/items/movie_000/picks").status_code == 404
    # the same for the folder of one picker
    whole = owner.put("/api/items/movie_001/picks", json={"picks": [{"x": 1, "y": 1}]})
    (web_session.root / "picks").unlink()
    (web_session.root / "picks").mkdir()
    (web_session.root / "picks" / "manual").symlink_to(secret.parent)
    part = owner.put("/api/items/movie_001/picks", json={"picks": [{"x": 1, "y": 1}]})
    assert (whole.status_code, part.status_code) == (404, 404)
    assert owner.get("/api/items/movie_000/picks").json()["picks"] == [], "it is as if it was not there"
    assert owner.get("/api/items/movie_000/picks?picker=manual").status_code == 404
    assert [path.name for path in secret.parent.iterdir()] == ["movie_000.star"]
    assert secret.read_bytes() == before


def test_a_link_in_the_place_of_picks_is_replaced_not_followed(
    owner: TestClient, web_session: Any, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (web_session.root / "picks" / "manual").mkdir(parents=True, exist_ok=True)
    (web_session.root / "picks" / "manual" / "movie_000.star").symlink_to(victim)
    assert owner.get("/api/items/movie_000/picks").status_code == 404
    owner.put("/api/items/movie_000/picks", json={"picks": [{"x": 1, "y": 1}]})
    assert victim.read_text() == "mine"


def test_a_record_that_names_a_path_outside_is_not_believed(
    owner: TestClient, web_session: Any, application: Application
) -> None:
    record = web_session.store.path("movie_000")
    text = record.read_text()
    for path in ("/etc/passwd", "../../../../../../etc/passwd", "thumbnails/../../../x"):
        record.write_text(text.replace("thumbnails/movie_000.png", path))
        application.hub.manager.board.update(["movie_000"])
        answer = owner.get("/api/items/movie_000/picture/thumbnail")
        assert answer.status_code == 404, path
        assert "root:" not in answer.text


def test_pipes_and_folders_are_no_pictures(owner: TestClient, web_session: Any) -> None:
    path = web_session.root / "thumbnails" / "movie_000.png"
    path.unlink()
    os.mkfifo(path)
    assert owner.get("/api/items/movie_000/picture/thumbnail").status_code == 404
    path.unlink()
    path.mkdir()
    assert owner.get("/api/items/movie_000/picture/thumbnail").status_code == 404


# ---------------------------------------------------------------------- sizes


def test_a_large_body_is_refused_before_it_is_read(owner: TestClient) -> None:
    answer = owner.put(
        "/api/selection", content=b" " * (BODY_LIMIT + 1), headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 413
    assert isinstance(answer.json()["detail"], str)

    def chunks() -> Any:
        for _ in range(BODY_LIMIT // (1 << 20) + 2):
            yield b" " * (1 << 20)

    answer = owner.put("/api/selection", content=chunks(), headers={"Content-Type": "application/json"})
    assert answer.status_code == 413, "a length that is not told does not help"


# ---------------------------------------------------------------------- stored scripts

EVIL = "<img src=x onerror=alert(1)>\"'--></script><script>alert(2)</script>&lt;"


def test_a_script_in_a_name_stays_text(owner: TestClient, web_session: Any, application: Application) -> None:
    """Folders and reasons hold whatever somebody called a file; it travels as JSON only."""
    record = web_session.store.path("movie_000")
    held = json.loads(record.read_text())
    held["input"]["path"] = f"/data/{EVIL.replace('/', '-')}/{EVIL.replace('/', '-')}.tif"
    record.write_text(json.dumps(held))
    application.hub.manager.board.update(["movie_000"])
    for address in ("/api/items", "/api/items/movie_000", "/api/items?search=onerror"):
        answer = owner.get(address)
        assert EVIL.replace("/", "-") in json.dumps(answer.json()).replace('\\"', '"')
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["x-content-type-options"] == "nosniff"
    for address in (
        f"/api/items/{quote(EVIL, safe='')}",
        f"/{quote(EVIL, safe='')}",
        f"/api/items?sort={quote(EVIL)}",
    ):
        answer = owner.get(address)
        assert answer.headers["content-type"] == "application/json", "an error repeats it as JSON at most"


def test_a_script_in_a_start_address_stays_out_of_the_page(connect: Callable[..., TestClient]) -> None:
    assert "alert" not in connect(None).get(f"/?token={quote(EVIL)}").text
