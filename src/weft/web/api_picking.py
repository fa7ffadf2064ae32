"""Requests about particles in micrographs: who has picked which, changing them, teaching the network."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Query

from weft.picking.components import PickingSettings
from weft.session.board import Entry
from weft.session.pick_files import MANUAL
from weft.session.picking import picker_name
from weft.web import details
from weft.web import picking_models as models
from weft.web.picks import chosen_picker, save_picks, shown_picks
from weft.web.room import EntryDep, Room, RoomDep, answers

__all__ = ["router"]

router = APIRouter(prefix="/api", tags=["picking"])

_MARGIN = 1e-6  # of the field: rounding at its edge


def _pixel_size(entry: Entry) -> float:
    pixel_size = entry.metrics.get("pixel_size")
    if not pixel_size:
        raise HTTPException(409, f"{entry.name} has no average yet, on which particles could be picked.")
    return float(pixel_size)


def _picker(entry: Entry, room: Room, asked: str | None) -> str:
    session = room.manager.session
    model = session.settings.get(PickingSettings).model
    return chosen_picker(session.root, entry.name, asked, picker_name(model) if model else "")


def _picks(entry: Entry, room: Room, picker: str) -> Any:
    try:
        return shown_picks(room.manager.session.root, entry.name, picker, _pixel_size(entry))
    except ValueError as error:
        raise HTTPException(409, f"picks/{picker}/{entry.name}.star cannot be read: {error}.") from None


@router.get("/items/{id}/picks", responses=answers(404, 409), response_model=models.Picks)
def read_item_picks(
    entry: EntryDep,
    room: RoomDep,
    picker: Annotated[
        models.PickerName | None,
        Query(description="Whose; by default those of people, else those of the model that is set."),
    ] = None,
) -> Any:
    """The particles of a micrograph, as one picker has found them."""
    return _picks(entry, room, _picker(entry, room, picker))


@router.put("/items/{id}/picks", responses=answers(403, 404, 409, 413, 415), response_model=models.Picks)
def write_item_picks(entry: EntryDep, room: RoomDep, picks: models.PickChanges) -> Any:
    """Keep these particles as those that people have picked; what pickers have found stays as it is."""
    pixel_size = _pixel_size(entry)
    session = room.manager.session
    size = details.extent(session.store.read(entry.name))
    if size is None:
        raise HTTPException(409, f"{entry.name} has no average yet, on which particles could be picked.")
    places = [(pick.x, pick.y) for pick in picks.picks]
    for axis, name in enumerate("xy"):
        low, high = -_MARGIN * size[axis], (1.0 + _MARGIN) * size[axis]
        if any(not low <= place[axis] <= high for place in places):
            raise HTTPException(422, f"picks: {name} must lie within the field, 0 to {size[axis]:g} Å.")
    before = _picker(entry, room, picks.picker)
    save_picks(session.root, entry.name, pixel_size, places, picks.diameter, before)
    return _picks(entry, room, MANUAL)


@router.get("/picking/train", responses=answers(), response_model=models.Training)
def read_training(room: RoomDep) -> Any:
    """How the training of the picking network goes, and what it could be taught."""
    return room.training.state()


@router.post("/picking/train", responses=answers(403, 409, 413, 415), response_model=models.Training)
def start_training(room: RoomDep, order: models.TrainingOrder) -> Any:
    """Teach the picking network what has been picked; when it is done, it picks. One at a time."""
    room.training.start(order)
    return room.training.state()


@router.post("/picking/train/stop", responses=answers(403, 409), response_model=models.Training)
def stop_training(room: RoomDep) -> Any:
    """Stop the training; the model that picks stays as it was."""
    room.training.stop()
    return room.training.state()
