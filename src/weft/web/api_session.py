"""Requests about the session as a whole: status, selection, settings, advice, events."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Header, HTTPException, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from weft.errors import SettingsError
from weft.session.advice import AdviceSettings, advise
from weft.session.quantities import QUANTITIES, shown_values
from weft.web import models
from weft.web.events import Busy, status_for
from weft.web.listing import plain
from weft.web.room import AskerDep, Room, RoomDep, answers
from weft.web.settings_form import field_errors, form

__all__ = ["router"]

router = APIRouter(prefix="/api", tags=["session"])

_ANYTHING = (None, None)


@router.get("/status", responses=answers(), response_model=models.Status)
def read_status(room: RoomDep, asker: AskerDep) -> Any:
    """How the session stands."""
    return status_for(room.manager, asker)


@router.get("/columns", responses=answers() | {200: {"model": models.Columns}}, response_class=Response)
def read_columns(
    room: RoomDep, accept_encoding: Annotated[str, Header(include_in_schema=False)] = ""
) -> Response:
    """Every quantity of all items, for plots."""
    packed = "gzip" in accept_encoding.lower()
    headers = {"Vary": "Accept-Encoding"} | ({"Content-Encoding": "gzip"} if packed else {})
    return Response(room.columns.get(room.board, packed), media_type="application/json", headers=headers)


def _selection(room: Room) -> dict[str, Any]:
    board = room.board
    metrics = {name: entry.metrics for name, entry in board.entries.items() if entry.kind != "series"}
    selection = board.selection
    counts = selection.counts(metrics)
    measured = sum(map(bool, metrics.values()))
    quantities = []
    for name, quantity in QUANTITIES.items():
        values = shown_values(metrics, name)
        known = values[np.isfinite(values)]
        count = counts.get(name)
        quantities.append(
            {
                "name": name,
                "label": quantity.label,
                "unit": quantity.unit,
                "min": float(known.min()) if known.size else None,
                "max": float(known.max()) if known.size else None,
                "passes": count.passes if count else measured,
                "only": count.only if count else 0,
            }
        )
    verdicts = board.verdicts
    return {
        "ranges": dict(selection.ranges),
        "include": sorted(selection.include),
        "exclude": sorted(selection.exclude),
        "quantities": quantities,
        "selected": sum(verdicts[name].selected for name in metrics if name in verdicts),
    }


@router.get("/selection", responses=answers(), response_model=models.Selection)
def read_selection(room: RoomDep) -> Any:
    """Ranges and decisions by hand, and what each range does."""
    return _selection(room)


@router.put("/selection", responses=answers(403, 409, 413, 415), response_model=models.Selection)
def write_selection(room: RoomDep, body: models.Ranges) -> Any:
    """Set or remove ranges; those that are not named stay."""
    ranges = {}
    for name, limits in body.ranges.items():
        low, high = limits or _ANYTHING
        if name not in QUANTITIES:
            known = ", ".join(QUANTITIES)
            raise HTTPException(422, f"{name!r} cannot be selected by; there are {known}.")
        if low is not None and high is not None and low > high:
            raise HTTPException(422, f"{name}: the lower limit {low:g} is above the upper one, {high:g}.")
        ranges[name] = (low, high)
    room.manager.set_ranges(ranges)
    return _selection(room)


@router.get("/settings", responses=answers(), response_model=models.SettingsForm)
def read_settings(room: RoomDep) -> Any:
    """All settings with their values, units, limits and help."""
    return form(room.manager.session.settings)


@router.post("/settings/preview", responses=answers(403, 409, 413, 415), response_model=models.Preview)
def preview_settings(room: RoomDep, body: models.Changes) -> Any:
    """What would become stale; nothing is changed."""
    try:
        found = room.manager.preview_settings(body.changes)
    except SettingsError as error:
        errors = field_errors(room.manager.session.settings, body.changes, error)
        return {"errors": plain(errors), "steps": {}, "items": 0}
    return {"errors": {}, **found}


@router.post(
    "/settings",
    responses=answers(403, 409, 413, 415) | {422: {"model": models.SettingsProblem}},
    response_model=models.SettingsForm,
)
def write_settings(room: RoomDep, body: models.Changes) -> Any:
    """Change settings, all of these or none."""
    try:
        room.manager.change_settings(body.changes)
    except SettingsError as error:
        errors = field_errors(room.manager.session.settings, body.changes, error)
        return JSONResponse(plain({"detail": str(error), "errors": errors}), 422)
    return form(room.manager.session.settings)


@router.get("/advice", responses=answers(), response_model=list[models.Advice])
def read_advice(room: RoomDep) -> Any:
    """What could be changed at the microscope, with the evidence."""
    board = room.board
    settings = room.manager.session.settings.get(AdviceSettings)
    entries = list(board.entries.values())
    return plain([advice.to_dict() for advice in advise(entries, board.verdicts, settings)])


@router.post("/pause", status_code=204, responses=answers(403, 409))
def pause(room: RoomDep) -> None:
    """Begin no more work; what is running ends."""
    room.manager.pause()


@router.post("/resume", status_code=204, responses=answers(403, 409))
def resume(room: RoomDep) -> None:
    """Go on."""
    room.manager.resume()


@router.get(
    "/events",
    response_class=StreamingResponse,
    responses=answers()
    | {200: {"description": "Server-sent events, without end.", "content": {"text/event-stream": {}}}},
)
async def read_events(
    request: Request,
    room: RoomDep,
    asker: AskerDep,
    since: Annotated[
        str | None, Query(max_length=64, description="Identity of the last event that was seen.")
    ] = None,
    last_event_id: Annotated[str | None, Header(include_in_schema=False)] = None,
) -> StreamingResponse:
    """What changes, as it changes."""
    try:
        stream = room.hub.stream(asker, last_event_id or since)
    except Busy:
        raise HTTPException(503, "too many pages listen already; close some.") from None
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(stream, media_type="text/event-stream", headers=headers)
