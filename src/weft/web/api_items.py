"""Requests about items: lists, one item and what belongs to it."""

from __future__ import annotations

from pathlib import Path as FilePath
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, HTTPException, Query, Request, Response

from weft.errors import SessionError
from weft.micrographs.deconvolution import DeconvolutionSettings
from weft.session.board import Entry
from weft.session.discovery import natural_key
from weft.session.plan import StepState
from weft.session.records import Record
from weft.session.steps import all_steps
from weft.web import details, listing, models
from weft.web.files import inside
from weft.web.images import comparison_png, mask_png
from weft.web.room import EntryDep, Room, RoomDep, answers

__all__ = ["router"]

router = APIRouter(prefix="/api", tags=["items"])

_PNG: dict[str, Any] = {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}}
#: What has a revision in its address never changes; all else is asked for again.
_FOREVER, _ASK_AGAIN = "private, max-age=31536000, immutable", "private, no-cache"
#: Limits of the sliders are those of the settings.
_LIMITS = {
    name: {
        limit: getattr(rule, limit)
        for rule in info.metadata
        for limit in ("ge", "le")
        if hasattr(rule, limit)
    }
    for name, info in DeconvolutionSettings.model_fields.items()
}
_ONE = "|".join(listing.STATES)
_STATES = f"^(({_ONE})(,({_ONE}))*)?$"
_KIND = "movie|tilt|series"
_KINDS = f"^(({_KIND})(,({_KIND}))*)?$"

Revision = Annotated[str | None, Query(max_length=64, description="Makes the answer cacheable.")]
Etag = Annotated[str | None, Header(include_in_schema=False)]


@router.get("/items", responses=answers(), response_model=models.ItemPage)
def list_items(
    room: RoomDep,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    offset: Annotated[int, Query(ge=0, le=10**9)] = 0,
    sort: Annotated[
        str,
        Query(
            max_length=64,
            description="A name or quantity; a minus before it for falling order.",
            json_schema_extra={"enum": [sign + name for name in listing.sort_names() for sign in ("", "-")]},
        ),
    ] = "name",
    state: Annotated[
        str, Query(max_length=100, pattern=_STATES, description="States, with commas; all by default.")
    ] = "",
    kind: Annotated[
        str,
        Query(
            max_length=100, pattern=_KINDS, description="movie, tilt, series, with commas; all by default."
        ),
    ] = "",
    search: Annotated[str, Query(max_length=200, description="Words in name, folder or reason.")] = "",
    selected: bool | None = None,
) -> Any:
    """A part of the list of items, filtered and sorted."""
    wanted = [name for name in state.split(",") if name]
    if sort.removeprefix("-") not in listing.sort_names():
        raise HTTPException(422, f"sort: there is no {sort!r}; there are {', '.join(listing.sort_names())}.")
    kinds = [name for name in kind.split(",") if name]
    names = listing.find(room.board, sort=sort, kinds=kinds, states=wanted, search=search, selected=selected)
    return {"total": len(names), "items": listing.items(room.board, names[offset : offset + limit])}


def _record(room: Room, name: str) -> Record | None:
    return room.manager.session.store.read(name)


@router.get("/items/{id}", responses=answers(404, 409), response_model=models.ItemDetails)
def read_item(entry: EntryDep, room: RoomDep) -> Any:
    """One item with its steps, settings and errors."""
    problem = None
    try:
        record = _record(room, entry.name)
    except SessionError as error:  # the record cannot be read
        record, problem = None, str(error)
    wanted = [name for name, step in all_steps().items() if entry.kind in step.kinds]
    states = room.board.states(entry.name) or {name: StepState("new", again=True) for name in wanted}
    found = listing.items(room.board, [entry.name])
    if not found:
        raise HTTPException(404, f"there is no item {entry.name}.")
    return found[0] | listing.plain(
        {
            "source": entry.source,
            "size": record.input.size if record else None,
            "shape": details.shape(record),
            "pixel_size": entry.metrics.get("pixel_size"),
            "extent": details.extent(record),
            "steps": details.steps(record, states),
            "error": problem or details.error(record),
            "notes": details.notes(record),
        }
    )


def _output(entry: Entry, room: Room, name: str) -> FilePath:
    """The file of an output that the item has."""
    if name not in entry.outputs:
        raise details.Missing(f"{entry.name} has no {name}")
    return inside(room.manager.session.root, entry.outputs[name])


def _headers(path: FilePath, revision: str | None) -> dict[str, str]:
    stat = path.stat()
    tag = f'"{stat.st_mtime_ns:x}-{stat.st_size:x}-{stat.st_ino:x}"'
    return {"ETag": tag, "Cache-Control": _FOREVER if revision else _ASK_AGAIN}


@router.get(
    "/items/{id}/picture/{picture}",
    response_class=Response,
    responses=answers(404) | {200: _PNG, 304: {"description": "As it was."}},
)
def read_picture(
    entry: EntryDep,
    room: RoomDep,
    picture: Literal["thumbnail", "powerspectrum"],
    v: Revision = None,
    if_none_match: Etag = None,
) -> Response:
    """A small picture that a step has written."""
    path = _output(entry, room, picture)
    headers = _headers(path, v)
    if if_none_match == headers["ETag"]:
        return Response(status_code=304, headers=headers)
    return Response(path.read_bytes(), media_type="image/png", headers=headers)


@router.get("/items/{id}/view", response_class=Response, responses=answers(404, 409) | {200: _PNG})
async def read_view(
    request: Request,
    entry: EntryDep,
    room: RoomDep,
    size: Annotated[int, Query(ge=64, le=4096, description="Pixels of the longer side.")] = 1024,
    strength: Annotated[
        float | None, Query(**_LIMITS["strength"], description="Deconvolves the picture, if given.")
    ] = None,
    falloff: Annotated[float | None, Query(**_LIMITS["falloff"])] = None,
    highpass: Annotated[float | None, Query(**_LIMITS["highpass"], description="Å")] = None,
    denoised: Annotated[bool, Query(description="The denoised average, where there is one.")] = False,
    v: Revision = None,
) -> Response:
    """The average at the size of the screen, its contrast stretched, deconvolved if that is asked for."""

    def work() -> tuple[bytes, dict[str, str]]:
        path = _output(entry, room, "denoised" if denoised else "average")
        how = None
        if strength is not None:
            record = _record(room, entry.name)
            how = details.deconvolution(record, strength, falloff, highpass, denoised=denoised)
        headers = _headers(path, v)
        try:
            return room.viewer.render(path, size, how), headers
        except ValueError as error:
            raise HTTPException(409, f"{entry.name} cannot be shown: {error}.") from None

    picture, headers = await room.viewer.run(work, request.is_disconnected)
    return Response(picture, media_type="image/png", headers=headers)


@router.get("/items/{id}/comparison", response_class=Response, responses=answers(404, 409) | {200: _PNG})
async def read_comparison(request: Request, entry: EntryDep, room: RoomDep, v: Revision = None) -> Response:
    """Average (left) and preprocessed micrograph (right), with their power spectra below."""

    def work() -> tuple[bytes, dict[str, str]]:
        before, after = _output(entry, room, "average"), _output(entry, room, "preprocessed")
        facts = entry.metrics
        factor = (facts["preprocessed_factor_y"] * facts["preprocessed_factor_x"]) ** 0.5
        headers = _headers(after, v)
        try:
            return comparison_png(before, after, factor, int(facts["preprocessed_crop"])), headers
        except ValueError as error:
            raise HTTPException(409, f"{entry.name} cannot be shown: {error}.") from None

    picture, headers = await room.viewer.run(work, request.is_disconnected)
    return Response(picture, media_type="image/png", headers=headers)


@router.get("/items/{id}/mask", response_class=Response, responses=answers(404, 409) | {200: _PNG})
async def read_mask(request: Request, entry: EntryDep, room: RoomDep, v: Revision = None) -> Response:
    """Artefacts, to be laid over the view: violet where there are some, transparent elsewhere."""

    def work() -> tuple[bytes, dict[str, str]]:
        path = _output(entry, room, "mask")
        headers = _headers(path, v)
        try:
            return mask_png(path), headers
        except ValueError as error:
            raise HTTPException(409, f"{path.name} cannot be shown: {error}.") from None

    picture, headers = await room.viewer.run(work, request.is_disconnected)
    return Response(picture, media_type="image/png", headers=headers)


@router.get("/items/{id}/curve", responses=answers(404), response_model=models.Curve)
def read_curve(entry: EntryDep, room: RoomDep) -> Any:
    """The rotational average of the power spectrum, and its fit."""
    return details.curve(_output(entry, room, "powerspectrum_curve"))


@router.get("/items/{id}/tracks", responses=answers(404, 409), response_model=models.Tracks)
def read_tracks(entry: EntryDep, room: RoomDep) -> Any:
    """Global and local motion."""
    return details.tracks(_record(room, entry.name))


@router.get("/items/{id}/defocus", responses=answers(404, 409), response_model=models.Defocus)
def read_defocus(entry: EntryDep, room: RoomDep) -> Any:
    """Local defocus."""
    return details.defocus(_record(room, entry.name))


def _known(room: Room, names: list[str]) -> list[str]:
    entries = room.board.entries
    for name in names:
        if name not in entries:
            raise HTTPException(404, f"there is no item {name}.")
    return sorted(set(names), key=natural_key)


@router.post("/items/{id}/retry", responses=answers(403, 404, 409), response_model=models.Taken)
def retry_item(entry: EntryDep, room: RoomDep) -> Any:
    """Process an item again that has failed."""
    room.manager.retry([entry.name])
    return {"items": [entry.name]}


@router.post("/retry", responses=answers(403, 404, 409, 413, 415), response_model=models.Taken)
def retry_items(room: RoomDep, body: models.Names) -> Any:
    """Process items again that have failed."""
    names = _known(room, body.items)
    room.manager.retry(names)
    return {"items": names}


@router.post("/decisions", responses=answers(403, 404, 409, 413, 415), response_model=models.Taken)
def decide_items(room: RoomDep, body: models.Decision) -> Any:
    """Include or exclude items by hand, whatever the ranges say."""
    names = _known(room, body.items)
    room.manager.decide(names, body.accept)
    return {"items": names}
