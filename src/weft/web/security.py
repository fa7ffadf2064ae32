"""Who may ask: tokens, the cookie that stands for one, Host and Origin checks, headers of every answer.

The server listens on this machine alone unless told otherwise, but every page that is open in the
same browser, and every user of the same computer, can reach it there. So each request must name a
host that is ours (against DNS rebinding), carry a token or the cookie that it was exchanged for, and, if
it changes something, come from our own page (against forged requests).
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal
from urllib.parse import parse_qs, quote, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import cookie_parser
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from weft.errors import RequestError

__all__ = ["BODY_LIMIT", "Access", "Gate", "Role", "allowed_hosts", "exposure", "is_loopback", "new_token"]

Role = Literal["owner", "reader"]

#: Bytes of a request's body: a decision on ten thousand items, or sixty thousand picks.
BODY_LIMIT = 4 << 20
#: Shortest token that may guard a server which other computers can reach.
LEAST_TOKEN = 16
_COOKIE_LIFE = 7 * 24 * 3600  # seconds
_READING = frozenset({"GET", "HEAD"})
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})

_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data: blob:; connect-src 'self'; font-src 'self'; manifest-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def new_token() -> str:
    """A token that cannot be guessed (256 random bits, safe in an address)."""
    return secrets.token_urlsafe(32)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server that is bound to `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def allowed_hosts(host: str) -> frozenset[str]:
    """Names that a browser may use for a server that is bound to `host`, in lower case."""
    own = {host.lower()} if not is_loopback(host) else set()
    if own:
        own |= {socket.gethostname().lower(), socket.getfqdn().lower()}
    return _LOOPBACK | own


def exposure(host: str, port: int) -> str:
    """What binding to `host` opens, in words; empty where only this machine is reached."""
    if is_loopback(host):
        return ""
    where = "every network of this machine" if host in ("0.0.0.0", "::") else host
    return (
        f"Port {port} is open on {where}: whoever reaches it and has the token sees all data of this "
        "session and changes its settings, selection and picks. The connection is not encrypted, so the "
        "token can be read on the way: prefer an SSH tunnel (ssh -L "
        f"{port}:127.0.0.1:{port} {socket.gethostname()}) and leave --host away."
    )


@dataclass(frozen=True)
class Access:
    """The secrets, and the names under which the server may be called.

    Attributes
    ----------
    token : str
        Of the owner, who may do everything.
    share_token : str or None
        Of readers, who may only look.
    hosts : frozenset of str
        Host names, lower case, without port.
    any_address : bool
        Plain IP addresses are accepted as well: no name that an attacker owns resolves to one, so
        they are safe from rebinding.
    """

    token: str
    share_token: str | None = None
    hosts: frozenset[str] = _LOOPBACK
    any_address: bool = False

    def __post_init__(self) -> None:
        if not self.token or self.share_token == "":
            raise RequestError("a token must not be empty; leave it away to have one made.")
        if self.token == self.share_token:
            raise RequestError("the token for readers must differ from the owner's.")

    @classmethod
    def bound_to(cls, host: str, token: str | None = None, share_token: str | None = None) -> Access:
        """Access to a server that listens on `host`; tokens are made where none are given.

        Raises
        ------
        RequestError
            For a token that could be guessed by other computers.
        """
        token = new_token() if token is None else token
        share_token = new_token() if share_token is None else share_token
        short = [name for name in (token, share_token) if 0 < len(name) < LEAST_TOKEN]
        if short and not is_loopback(host):
            raise RequestError(
                f"a token of {len(short[0])} characters can be guessed, and {host} is open to other "
                f"computers; give one of at least {LEAST_TOKEN}, or none to have one made."
            )
        return cls(token, share_token, allowed_hosts(host), not is_loopback(host))

    def _secrets(self) -> Mapping[Role, str]:
        out: dict[Role, str] = {"owner": self.token}
        if self.share_token is not None:
            out["reader"] = self.share_token
        return out

    def cookie_value(self, role: Role) -> str:
        """What the browser keeps: not the token itself, and the same after a restart with the same token."""
        return hmac.new(self._secrets()[role].encode(), b"weft cookie 1", hashlib.sha256).hexdigest()

    def role_of_token(self, given: str) -> Role | None:
        """Whose token this is."""
        return _find(given, self._secrets())

    def role_of_cookie(self, given: str) -> Role | None:
        """Whose cookie this is."""
        return _find(given, {role: self.cookie_value(role) for role in self._secrets()})

    def knows_host(self, host: str) -> bool:
        """Whether a Host header, with or without port, names this server."""
        name, _ = split_host(host)
        return name in self.hosts or (self.any_address and _is_address(name))


def _find(given: str, known: Mapping[Role, str]) -> Role | None:
    # every comparison is made and takes as long whatever is given
    found: Role | None = None
    for role, secret in known.items():
        if hmac.compare_digest(given.encode("utf-8", "replace"), secret.encode("utf-8", "replace")):
            found = role
    return found


def split_host(host: str) -> tuple[str, str]:
    """``"[::1]:80"`` → ``("::1", "80")``; the name in lower case; empty where it is none."""
    try:
        parts = urlsplit(f"//{host}")
        port = parts.port
    except ValueError:
        return "", ""
    if parts.netloc != host or "@" in host:
        return "", ""
    return (parts.hostname or "").rstrip("."), "" if port is None else str(port)


def cookie_name(host: str) -> str:
    """Cookies ignore ports, so the name holds the one the browser sees: two servers, two cookies."""
    return f"weft_{split_host(host)[1] or '80'}"


_TOO_LARGE = f"a request may hold {BODY_LIMIT >> 20} MiB at most; send it in parts."
_SIGN_IN = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Weft</title>{refresh}</head>
<body><h1>Weft</h1><p>Open the address that <code>weft live</code> printed: it ends in
<code>/?token=...</code> and signs this browser in.</p></body></html>
"""


class Gate:
    """ASGI middleware around the whole application: nothing behind it is reached without a role.

    The role stands in ``scope["weft.role"]``.
    """

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self.app = app
        self.access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        answer = self._answer(scope)
        await (answer or self.app)(scope, _limited(receive), send_with_headers)

    def _answer(self, scope: Scope) -> Response | None:
        """The answer where the request ends here; None, with the role noted, where it goes on."""
        headers = Headers(scope=scope)
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self.access.knows_host(hosts[0]):
            return _refuse(400, "this server has no such name; use the address that weft live printed.")
        host, method = hosts[0], scope["method"]
        at_start = scope["path"] == "/" and method in _READING
        if at_start:
            given = parse_qs(scope["query_string"].decode("latin-1")).get("token")
            if given:
                return self._signed_in(host, given[0])
        role, by_cookie = self._role(headers, host)
        if role is None:
            if at_start:
                return _sign_in_page(headers.get("sec-fetch-site") == "cross-site")
            return _refuse(401, "a token is needed: Authorization: Bearer TOKEN, or the cookie of the page.")
        if method not in _READING:
            if role != "owner":
                return _refuse(403, "this token is for reading only.")
            problem = _foreign(headers, host, by_cookie)
            if problem:
                return _refuse(403, problem)
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > BODY_LIMIT:
            return _refuse(413, _TOO_LARGE)
        scope["weft.role"] = role
        return None

    def _role(self, headers: Headers, host: str) -> tuple[Role | None, bool]:
        given = headers.get("authorization")
        if given is not None:
            scheme, _, token = given.partition(" ")
            return (self.access.role_of_token(token.strip()) if scheme.lower() == "bearer" else None), False
        cookies = cookie_parser("; ".join(headers.getlist("cookie")))
        return self.access.role_of_cookie(cookies.get(cookie_name(host), "")), True

    def _signed_in(self, host: str, token: str) -> Response:
        role = self.access.role_of_token(token)
        if role is None:
            return _sign_in_page(False)
        # the redirect takes the token out of the address bar and the history
        answer = RedirectResponse("/", status_code=303)
        answer.set_cookie(
            cookie_name(host),
            self.access.cookie_value(role),
            max_age=_COOKIE_LIFE,
            path="/",
            httponly=True,
            samesite="strict",
        )
        return answer


def _limited(receive: Receive) -> Receive:
    """The same body, but no more of it than is allowed: its length need not have been told."""
    total = 0

    async def counted() -> Message:
        nonlocal total
        message = await receive()
        total += len(message.get("body", b""))
        if total > BODY_LIMIT:
            raise HTTPException(413, _TOO_LARGE)
        return message

    return counted


def _foreign(headers: Headers, host: str, by_cookie: bool) -> str:
    """Why a change does not come from our own page; empty where it does, or from a program with a token."""
    origin = headers.get("origin")
    if origin is not None:
        # "null", which a sandboxed page sends, names no host
        scheme, _, netloc = origin.partition("://")
        own = scheme in ("http", "https") and netloc.lower() == host.lower()
        return "" if own else "changes are taken from this server's own page only."
    if by_cookie:
        return "a change that is signed by the cookie needs an Origin; programs send Authorization: Bearer."
    return ""


def _refuse(status: int, text: str) -> Response:
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else None
    return JSONResponse({"detail": text}, status, headers)


def _sign_in_page(again: bool) -> Response:
    """Says where the token comes from.

    A link on another site opens this page without the SameSite=Strict cookie. Reloading it from
    itself makes the browser send the cookie; it is done once, because then the request is our own.
    """
    refresh = '<meta http-equiv="refresh" content="0;url=/">' if again else ""
    return HTMLResponse(_SIGN_IN.format(refresh=refresh), 401, {"WWW-Authenticate": "Bearer"})


def start_url(host: str, port: int, token: str) -> str:
    """The address to open: with a host that a browser on this machine can use."""
    name = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{name}:{port}/?token={quote(token, safe='')}"
