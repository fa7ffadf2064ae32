"""Who gets in, and what cannot be done from outside. Each test is an attack that must fail."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from starlette.testclient import TestClient

from weft.errors import RequestError
from weft.web import security
from weft.web.app import Application
from weft.web.security import Access, exposure, start_url

OWNER, READER = "owner-token-of-the-tests", "reader-token-of-the-tests"
OWN = "http://127.0.0.1:8765"
WRITES = [
    ("PUT", "/api/selection", {"ranges": {"motion": [None, 1]}}),
    ("PUT", "/api/items/movie_000/picks", {"picks": [{"x": 1, "y": 1}]}),
    ("POST", "/api/decisions", {"items": ["movie_000"], "accept": False}),
    ("POST", "/api/retry", {"items": ["movie_000"]}),
    ("POST", "/api/items/movie_000/retry", None),
    ("POST", "/api/settings", {"changes": {"ctf.range_max": "6"}}),
    ("POST", "/api/settings/preview", {"changes": {"ctf.range_max": "6"}}),
    ("POST", "/api/series/movie_000/tilts", {"tilts": [0], "keep": False}),
    ("POST", "/api/series/movie_000/matches/TS_a/candidates", {"cut_off": 0.3}),
    ("POST", "/api/picking/train", {"picks": "manual", "name": "mine"}),
    ("POST", "/api/picking/train/stop", None),
    ("POST", "/api/pause", None),
    ("POST", "/api/resume", None),
]


def signed_in(connect: Callable[..., TestClient], token: str = OWNER, **headers: str) -> TestClient:
    """A browser that has opened the start address."""
    client = connect(None, **headers)
    assert client.get(f"/?token={token}").status_code == 303
    return client


def fingerprint(root: Path) -> dict[str, bytes]:
    """What a change would touch; tables and index are the manager's own, and come and go."""
    folders = ("picks", "records", "average", "thumbnails", "powerspectrum")
    found = [path for name in folders for path in (root / name).rglob("*")]
    found += [root / "weft.toml", root / "selection.json"]
    return {str(path.relative_to(root)): path.read_bytes() for path in found if path.is_file()}


# ---------------------------------------------------------------------- getting in


@pytest.mark.parametrize(
    "address", ["/", "/api/status", "/api/items", "/api/events", "/openapi.json", "/x.js"]
)
def test_nothing_is_shown_without_a_token(connect: Callable[..., TestClient], address: str) -> None:
    for client in (connect(None), connect("wrong"), connect(OWNER[:-1]), connect(OWNER + "x")):
        answer = client.get(address)
        assert answer.status_code == 401
        assert "bearer" in answer.headers["www-authenticate"].lower()
        assert "movie" not in answer.text


def test_the_start_address_is_exchanged_for_a_cookie(connect: Callable[..., TestClient]) -> None:
    client = connect(None)
    answer = client.get(f"/?token={OWNER}")
    assert answer.status_code == 303
    assert answer.headers["location"] == "/", "the token leaves the address bar"
    cookie = answer.headers["set-cookie"]
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= {part.strip() for part in cookie.split(";")}
    assert OWNER not in cookie
    assert client.get("/api/status").status_code == 200
    assert client.get("/").status_code == 200


def test_a_wrong_token_gets_no_cookie(connect: Callable[..., TestClient]) -> None:
    for token in ("wrong", "", "%00", "%ff", OWNER.upper()):
        answer = connect(None).get(f"/?token={token}")
        assert answer.status_code == 401
        assert "set-cookie" not in answer.headers


def test_the_cookie_outlives_a_restart_with_the_same_token(
    connect: Callable[..., TestClient], application: Application
) -> None:
    client = signed_in(connect)
    application.access = Access(OWNER, READER)
    assert client.get("/api/status").status_code == 200
    application.access = Access("another", READER)
    assert client.get("/api/status").status_code == 401


def test_a_forged_cookie_does_not_open(connect: Callable[..., TestClient]) -> None:
    for value in (OWNER, "", "0" * 64, "é"):
        client = connect(None, Cookie=f"weft_8765={quote(value)}")
        assert client.get("/api/status").status_code == 401


def test_bytes_that_are_no_text_do_not_open(connect: Callable[..., TestClient]) -> None:
    for given in ({"Authorization": b"Bearer \xe9\xff"}, {"Cookie": b"weft_8765=\xe9\xff"}):
        assert connect(None).get("/api/status", headers=given).status_code == 401


def test_secrets_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []
    genuine = security.hmac.compare_digest

    def compare(given: bytes, secret: bytes) -> bool:
        compared.append((given, secret))
        return genuine(given, secret)

    monkeypatch.setattr(security.hmac, "compare_digest", compare)
    access = Access(OWNER, READER)
    assert access.role_of_token(OWNER) == "owner"
    assert len(compared) == 2, "every secret is compared, whichever fits"
    assert access.role_of_cookie("x") is None
    assert len(compared) == 4


def test_tokens_cannot_be_guessed() -> None:
    one, two = Access.bound_to("127.0.0.1"), Access.bound_to("127.0.0.1")
    assert len({one.token, one.share_token, two.token, two.share_token}) == 4
    assert len(one.token) >= 43, "256 bits"
    with pytest.raises(RequestError, match="empty"):
        Access("")
    with pytest.raises(RequestError, match="differ"):
        Access("same", "same")
    with pytest.raises(RequestError, match="can be guessed"):
        Access.bound_to("0.0.0.0", "short")
    assert Access.bound_to("127.0.0.1", "short").token == "short"


def test_the_token_is_in_no_answer(owner: TestClient, connect: Callable[..., TestClient]) -> None:
    reader = connect(READER)
    for client in (owner, reader):
        for address in ("/api/status", "/api/settings", "/api/items", "/openapi.json", "/", "/api/selection"):
            answer = client.get(address)
            text = answer.text + str(answer.headers)
            assert OWNER not in text
            assert READER not in text


def test_a_link_on_another_site_needs_no_second_sign_in(connect: Callable[..., TestClient]) -> None:
    """A SameSite=Strict cookie is left at home then: the page reloads itself once, from itself."""
    linked = connect(None).get("/", headers={"Sec-Fetch-Site": "cross-site"})
    assert 'http-equiv="refresh"' in linked.text
    for site in ("none", "same-origin"):
        assert "refresh" not in connect(None).get("/", headers={"Sec-Fetch-Site": site}).text


# ---------------------------------------------------------------------- DNS rebinding


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8765",
        "127.0.0.1.evil.example:8765",
        "localhost.evil.example",
        "evil.example@127.0.0.1:8765",
        "192.168.1.5:8765",
        "[::2]:8765",
        "[::1",
        "",
        "127.0.0.1:port",
        "127.0.0.1:99999999",
        "localhost/..",
    ],
)
def test_a_name_that_was_rebound_is_refused(connect: Callable[..., TestClient], host: str) -> None:
    for client in (connect(), signed_in(connect)):
        answer = client.get("/api/status", headers={"Host": host})
        assert answer.status_code == 400
        assert client.get(f"/?token={OWNER}", headers={"Host": host}).status_code == 400


@pytest.mark.parametrize("host", ["localhost:8765", "127.0.0.1", "[::1]:9000", "LOCALHOST:1"])
def test_a_tunnel_may_use_any_port(connect: Callable[..., TestClient], host: str) -> None:
    assert connect(Host=host).get("/api/status").status_code == 200


def test_an_open_server_is_called_by_address_or_by_its_own_name() -> None:
    access = Access.bound_to("0.0.0.0")
    assert access.knows_host("192.168.1.5:8765")
    assert access.knows_host(f"{security.socket.gethostname()}:8765")
    assert not access.knows_host("evil.example:8765")
    assert not Access.bound_to("127.0.0.1").knows_host("192.168.1.5:8765")


# ---------------------------------------------------------------------- forged requests


@pytest.mark.parametrize(("method", "address", "body"), WRITES)
def test_another_site_changes_nothing(
    connect: Callable[..., TestClient], web_session: Any, method: str, address: str, body: Any
) -> None:
    client = signed_in(connect)
    before = fingerprint(web_session.root)
    origins = (
        "http://evil.example",
        "null",
        "http://127.0.0.1:8766",
        "http://localhost:8765",
        "http://[",
        "",
    )
    for origin in (*origins, "file://", OWN + ".evil.example", "javascript://127.0.0.1:8765"):
        answer = client.request(method, address, json=body, headers={"Origin": origin})
        assert answer.status_code == 403, origin
    assert client.request(method, address, json=body).status_code == 403, "a browser always names its origin"
    with_token = connect().request(method, address, json=body, headers={"Origin": "http://evil.example"})
    assert with_token.status_code == 403
    assert fingerprint(web_session.root) == before


def test_the_page_itself_may_write(connect: Callable[..., TestClient], web_session: Any) -> None:
    client = signed_in(connect, Origin=OWN)
    answer = client.post("/api/decisions", json={"items": ["movie_000"], "accept": False})
    assert answer.status_code == 200
    assert web_session.selection.exclude == {"movie_000"}


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""]
)
def test_what_a_form_can_send_is_not_taken(connect: Callable[..., TestClient], kind: str) -> None:
    client = signed_in(connect, Origin=OWN)
    body = b'{"items": ["movie_000"], "accept": false}'
    answer = client.post("/api/decisions", content=body, headers={"Content-Type": kind})
    assert answer.status_code in (415, 422)


def test_other_sites_may_not_read_either(owner: TestClient) -> None:
    answer = owner.get("/api/status", headers={"Origin": "http://evil.example"})
    assert not [name for name in answer.headers if name.startswith("access-control")]
    preflight = {"Origin": "http://evil.example", "Access-Control-Request-Method": "PUT"}
    answer = owner.options("/api/selection", headers=preflight)
    assert answer.status_code in (403, 405)
    assert not [name for name in answer.headers if name.startswith("access-control")]


# ---------------------------------------------------------------------- readers


@pytest.mark.parametrize(("method", "address", "body"), WRITES)
def test_readers_only_read(
    connect: Callable[..., TestClient], web_session: Any, method: str, address: str, body: Any
) -> None:
    before = fingerprint(web_session.root)
    for client in (connect(READER), signed_in(connect, READER, Origin=OWN)):
        assert client.get("/api/items/movie_000").status_code == 200
        answer = client.request(method, address, json=body)
        assert answer.status_code == 403
        assert "reading" in answer.json()["detail"]
    assert fingerprint(web_session.root) == before


def test_every_write_of_the_schema_is_among_those_tried(owner: TestClient) -> None:
    schema = owner.get("/openapi.json").json()
    writes = {
        (method.upper(), path.replace("{id}", "movie_000").replace("{job}", "TS_a"))
        for path, methods in schema["paths"].items()
        for method in methods
        if method != "get"
    }
    assert writes == {(method, address) for method, address, _ in WRITES}


# ---------------------------------------------------------------------- headers


@pytest.mark.parametrize(
    "address", ["/", "/api/status", "/api/items/nobody", "/nothing", "/api/items?limit=x"]
)
@pytest.mark.parametrize("token", [OWNER, None])
def test_every_answer_says_what_a_browser_may_do(
    connect: Callable[..., TestClient], address: str, token: str | None
) -> None:
    headers = connect(token).get(address).headers
    policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["x-frame-options"] == "DENY"
    assert "cache-control" in headers
    assert "server" not in headers


def test_pages_made_here_hold_no_script(connect: Callable[..., TestClient]) -> None:
    for page in (connect(None).get("/").text, connect().get("/").text):
        assert "<script>" not in page
        assert " style=" not in page
        assert not re.search(r"\son\w+=", page)
        assert "//" not in page.replace("//127.0.0.1", ""), "nothing is loaded from elsewhere"


def test_an_error_inside_tells_nothing(owner: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(settings: Any) -> Any:
        raise RuntimeError(f"secret {OWNER}")

    monkeypatch.setattr("weft.web.api_session.form", broken)
    answer = owner.get("/api/settings")
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert "nosniff" in str(answer.headers)
    assert answer.json()["detail"].startswith("unexpected RuntimeError")


# ---------------------------------------------------------------------- binding


def test_what_is_opened_is_said() -> None:
    assert exposure("127.0.0.1", 8765) == exposure("localhost", 1) == exposure("::1", 1) == ""
    text = exposure("0.0.0.0", 8765)
    assert "8765" in text
    assert "every network" in text
    assert "not encrypted" in text
    assert "ssh -L" in text
    assert "10.0.0.7" in exposure("10.0.0.7", 1)


def test_start_addresses_can_be_opened() -> None:
    assert start_url("127.0.0.1", 80, "a b") == "http://127.0.0.1:80/?token=a%20b"
    assert start_url("0.0.0.0", 80, "t") == "http://127.0.0.1:80/?token=t"
    assert start_url("::", 80, "t") == "http://[::1]:80/?token=t"
    assert start_url("::1", 80, "t") == "http://[::1]:80/?token=t"
