"""What every request needs: the manager, the caches, the asker's role, and answers to what goes wrong."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Depends, FastAPI, HTTPException, Path, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as StarletteHTTPException

from weft.errors import InputFileError, RequestError, SettingsError, WeftError
from weft.session.board import Board, Entry
from weft.web.details import Missing
from weft.web.files import Outside
from weft.web.images import Gone, Viewer
from weft.web.models import Problem

if TYPE_CHECKING:
    from weft.session.live import Manager
    from weft.web.events import Hub
    from weft.web.listing import ColumnCache
    from weft.web.matches import Matches
    from weft.web.picker_training import PickerTraining
    from weft.web.series_hand import Hands
    from weft.web.tomogram_slices import Tomograms

__all__ = ["AskerDep", "EntryDep", "Room", "RoomDep", "add_handlers", "answers"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Room:
    """Everything behind the API, of one server."""

    manager: Manager
    viewer: Viewer
    hub: Hub
    columns: ColumnCache
    tomograms: Tomograms
    hands: Hands
    matches: Matches
    training: PickerTraining

    @property
    def board(self) -> Board:
        """What is known of all items."""
        return self.manager.board


def _room(request: Request) -> Any:
    return request.app.state.room


def _asker(request: Request) -> Any:
    # the gate has set it; without one nobody is trusted to write
    return request.scope.get("weft.role", "reader")


RoomDep = Annotated[Room, Depends(_room)]
AskerDep = Annotated[Any, Depends(_asker)]

_Id = Annotated[str, Path(description="The item's name, as lists give it.", max_length=255)]


def _entry(id: _Id, room: RoomDep) -> Entry:
    entry = room.board.entry(id)
    if entry is None:
        raise HTTPException(404, f"there is no item {id}.")
    return entry


EntryDep = Annotated[Entry, Depends(_entry)]

_TEXTS = {
    400: "Not a request to this server.",
    401: "No token, or a wrong one.",
    403: "The token is for reading only, or the request comes from another site.",
    404: "There is no such item, or it has no such result.",
    409: "The session does not allow it now.",
    413: "The body is too large.",
    415: "The body is not JSON.",
    422: "The request is not as the schema says.",
    503: "Too much is asked at once, or the disk refuses.",
}


def answers(*codes: int) -> dict[int | str, dict[str, Any]]:
    """Answers besides 200, for the schema: those that every request may get, and these."""
    return {
        code: {"model": Problem, "description": _TEXTS[code]} for code in sorted({400, 401, 422, 503, *codes})
    }


def _problem(status: int, text: str) -> JSONResponse:
    return JSONResponse({"detail": text}, status)


def _sentence(error: RequestValidationError) -> str:
    parts = []
    for found in error.errors()[:3]:
        where = ".".join(str(part) for part in found["loc"][1:]) or str(found["loc"][0])
        parts.append(f"{where}: {found['msg']}")
    return "; ".join(parts).encode("utf-8", "replace").decode()


def add_handlers(app: FastAPI) -> None:
    """Every error becomes a status and one sentence."""

    async def http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, StarletteHTTPException)
        return JSONResponse({"detail": str(error.detail)}, error.status_code, error.headers)

    async def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return _problem(422, _sentence(error))

    async def ours(request: Request, error: Exception) -> JSONResponse:
        status = 422 if isinstance(error, SettingsError) else 409
        return _problem(status, str(error).encode("utf-8", "replace").decode())

    async def missing(request: Request, error: Exception) -> JSONResponse:
        return _problem(404, f"{error}.")

    async def outside(request: Request, error: Exception) -> JSONResponse:
        return _problem(404, "the file lies outside the session, and is not served.")

    async def not_found(request: Request, error: Exception) -> JSONResponse:
        return _problem(404, "the file is not there.")

    async def disk(request: Request, error: Exception) -> JSONResponse:
        _log.error("%s %s: %s", request.method, request.url.path, error)
        assert isinstance(error, OSError)
        return _problem(503, f"the disk refuses: {error.strerror or type(error).__name__}.")

    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        # the server logs the traceback
        return _problem(
            500, f"unexpected {type(error).__name__}; weft live has printed more. Please report it."
        )

    async def gone(request: Request, error: Exception) -> JSONResponse:
        return _problem(503, "the request was given up.")  # which nobody reads

    app.add_exception_handler(StarletteHTTPException, http)
    app.add_exception_handler(Gone, gone)
    app.add_exception_handler(Exception, unexpected)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(Missing, missing)
    app.add_exception_handler(Outside, outside)
    app.add_exception_handler(FileNotFoundError, not_found)
    app.add_exception_handler(OSError, disk)
    for kind in (WeftError, RequestError, InputFileError):
        app.add_exception_handler(kind, ours)
