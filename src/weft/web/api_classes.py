"""Requests about classes of particles that a training has found, in the tomogram of a series."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from weft.web.api_series import SeriesDep
from weft.web.class_models import ClassList
from weft.web.classes import class_list
from weft.web.room import RoomDep, answers

__all__ = ["router"]

router = APIRouter(prefix="/api/series/{id}/classes", tags=["classes"])


@router.get("", responses=answers(404), response_model=ClassList)
async def list_classes(request: Request, entry: SeriesDep, room: RoomDep) -> Any:
    """Trainings whose classes `weft vae map-back` has put into this session, with their particles here."""
    root = room.manager.session.root
    return await room.viewer.run(lambda: class_list(root, entry.name), request.is_disconnected)
