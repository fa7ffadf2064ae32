"""The application: the routes, behind the gate."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anyio.to_thread import run_sync
from fastapi import FastAPI
from fastapi.middleware.gzip import GZipMiddleware

from weft.__about__ import __version__
from weft.web import api_classes, api_items, api_matches, api_picking, api_series, api_session
from weft.web.events import STATUS_EVERY, Hub
from weft.web.images import Viewer
from weft.web.listing import ColumnCache
from weft.web.matches import Matches
from weft.web.page import STATIC, page_router
from weft.web.picker_training import PickerTraining
from weft.web.room import Room, add_handlers
from weft.web.security import Access, Gate
from weft.web.series_hand import Hands
from weft.web.tomogram_slices import Tomograms

if TYPE_CHECKING:
    from weft.session.live import Manager

__all__ = ["Application"]

_ABOUT = """What the page of `weft live` is made from, for scripts. Every request needs
`Authorization: Bearer TOKEN`, or the cookie that the start address is exchanged for."""


class Application(Gate):
    """The ASGI application of one manager.

    Parameters
    ----------
    manager : Manager
        Started already, or about to be.
    access : Access
        The tokens, and the names of this server.
    static : Path
        The built page.
    status_every : float
        Seconds between two statuses that listeners get when nothing happens.
    """

    def __init__(
        self, manager: Manager, access: Access, *, static: Path = STATIC, status_every: float = STATUS_EVERY
    ) -> None:
        self.hub = Hub(manager, status_every)
        training = PickerTraining(manager)
        room = Room(manager, Viewer(), self.hub, ColumnCache(), Tomograms(), Hands(), Matches(), training)
        self.api = _api(room, static)
        super().__init__(self.api, access)


def _api(room: Room, static: Path) -> FastAPI:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        room.hub.start()
        room.viewer.start()
        yield
        room.hub.close()
        room.viewer.close()
        await run_sync(room.training.close)

    app = FastAPI(
        title="Weft",
        version=__version__,
        description=_ABOUT,
        # the pages for people load scripts from elsewhere
        docs_url=None,
        redoc_url=None,
        # nothing leaves this machine
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
        redirect_slashes=False,
        lifespan=lifespan,
    )
    app.state.room = room
    add_handlers(app)
    # never pictures or events; the columns come packed already
    app.add_middleware(GZipMiddleware, minimum_size=2048, compresslevel=4)
    app.include_router(api_session.router)
    app.include_router(api_items.router)
    app.include_router(api_picking.router)
    app.include_router(api_series.router)
    app.include_router(api_matches.router)
    app.include_router(api_classes.router)
    _describe_security(app)
    app.include_router(page_router(static))
    return app


def _describe_security(app: FastAPI) -> None:
    """Say in the schema how to ask: the gate, not the routes, does the checking."""
    made = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = made()
            schemes = {"token": {"type": "http", "scheme": "bearer"}}
            schema.setdefault("components", {})["securitySchemes"] = schemes
            schema["security"] = [{"token": []}]
        return made()

    app.openapi = openapi  # type: ignore[method-assign]
