"""The page: the files that were built into web/static, and what to say where they were not."""

from __future__ import annotations

import mimetypes
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, HTTPException
from fastapi import Path as PathParameter
from fastapi.responses import HTMLResponse, Response

__all__ = ["STATIC", "page_router"]

#: Where the page is built to.
STATIC = Path(__file__).resolve().parent / "static"

_TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".woff2": "font/woff2"}

_NOT_BUILT = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Weft</title></head>
<body><h1>Weft</h1>
<p>The page has not been built, which happens when Weft runs from its source folder. Build it with</p>
<pre>cd src/weft/web/app
npm ci
npm run build</pre>
<p>or install Weft with <code>pip install .</code>, which does the same; then reload. Until then the API
answers: see <a href="/openapi.json">/openapi.json</a>.</p></body></html>
"""


Name = Annotated[str, PathParameter(max_length=255)]


@dataclass(frozen=True)
class _File:
    content: bytes
    kind: str


class _Files:
    """The built files in memory, by address: no address is ever made into a path."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._built: int | None = None
        self._files: dict[str, _File] = {}

    def get(self, address: str) -> _File | None:
        """The file at an address below /; read again when the page was built again."""
        with self._lock:
            try:
                built = (self._folder / "index.html").stat().st_mtime_ns
            except OSError:
                return None
            if built != self._built:
                self._files = {
                    path.relative_to(self._folder).as_posix(): _File(path.read_bytes(), _kind(path))
                    for path in sorted(self._folder.rglob("*"))
                    if path.is_file() and not path.is_symlink()
                }
                self._built = built
            return self._files.get(address)


def _kind(path: Path) -> str:
    return _TYPES.get(path.suffix) or mimetypes.guess_type(path.name)[0] or "application/octet-stream"


def _answer(found: _File | None, caching: str) -> Response:
    if found is None:
        raise HTTPException(404, "there is nothing here.")
    return Response(found.content, media_type=found.kind, headers={"Cache-Control": caching})


def page_router(folder: Path = STATIC) -> APIRouter:
    """``/`` and what it loads."""
    router = APIRouter(include_in_schema=False)
    files = _Files(folder)

    @router.get("/")
    def read_page() -> Response:
        found = files.get("index.html")
        if found is None:
            return HTMLResponse(_NOT_BUILT)
        return Response(found.content, media_type="text/html", headers={"Cache-Control": "no-cache"})

    @router.get("/{name}")
    def read_file(name: Name) -> Response:
        return _answer(files.get(name), "no-cache")

    @router.get("/assets/{name}")
    def read_asset(name: Name) -> Response:
        # names that the build makes hold a hash of the content
        return _answer(files.get(f"assets/{name}"), "private, max-age=31536000, immutable")

    return router
