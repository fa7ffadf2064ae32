"""Requests about tilt series: lists, one series, its tilts, its alignment, its tomogram."""

from __future__ import annotations

from pathlib import Path as FilePath
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Header, HTTPException, Path, Query, Request, Response

from weft.errors import SessionError
from weft.session.board import Entry
from weft.session.plan import StepState
from weft.session.records import Record
from weft.session.steps import steps_of
from weft.web import details, series_details, series_hand, series_heads
from weft.web import series_models as models
from weft.web.files import inside
from weft.web.room import EntryDep, Room, RoomDep, answers
from weft.web.series_heads import MAPS

__all__ = ["IMAGE", "Etag", "Revision", "SeriesDep", "SliceFormat", "file_answer", "headers_of", "router"]

router = APIRouter(prefix="/api", tags=["tilt series"])

_PNG: dict[str, Any] = {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}}
IMAGE: dict[str, Any] = {
    "content": {
        kind: {"schema": {"type": "string", "format": "binary"}} for kind in ("image/png", "image/jpeg")
    }
}
_AS_IT_WAS: dict[str, Any] = {"description": "As it was."}
_FOREVER, _ASK_AGAIN = "private, max-age=31536000, immutable", "private, no-cache"

Revision = Annotated[str | None, Query(max_length=64, description="Makes the answer cacheable.")]
Etag = Annotated[str | None, Header(include_in_schema=False)]
Map = Literal["raw", "deconvolved", "denoised"]
TiltIndex = Annotated[int, Path(ge=0, le=100_000, description="As lists of tilts give it.")]
SliceFormat = Annotated[Literal["png", "jpeg"], Query(description="JPEG is smaller, and not exact.")]
Size = Annotated[int, Query(ge=64, le=4096, description="Pixels of the longer side.")]


def _series(entry: EntryDep) -> Entry:
    if entry.kind != "series":
        raise HTTPException(404, f"{entry.name} is no tilt series.")
    return entry


SeriesDep = Annotated[Entry, Depends(_series)]


def _record(room: Room, name: str) -> Record | None:
    return room.manager.session.store.read(name)


def _waiting(room: Room) -> dict[str, str]:
    return {one["name"]: one["reason"] for one in room.manager.status()["waiting"]}


def _steps(room: Room, entry: Entry, record: Record | None) -> list[dict[str, Any]]:
    new = StepState("new", again=True)
    states = room.board.states(entry.name) or dict.fromkeys(steps_of("series"), new)
    return details.steps(record, states)


@router.get("/series", responses=answers(), response_model=models.SeriesList)
def list_series(room: RoomDep) -> Any:
    """All tilt series, with what came of them."""
    entries = [entry for entry in room.board.entries.values() if entry.kind == "series"]
    waiting = _waiting(room) if entries else {}
    heads = [
        series_heads.head(entry, series_details.table_of(entry), waiting.get(entry.name, ""))
        for entry in entries
    ]
    return {"series": heads}


@router.get("/handedness", responses=answers(), response_model=models.SessionHand)
def read_session_hand(room: RoomDep) -> Any:
    """Which way the defocus goes with the tilt, by all series together."""
    plain = room.board.expectations.settings.plain()
    setting = plain.get("handedness", {}).get("hand")
    return room.hands.session(room.board, room.manager.session.store, setting)


@router.get("/series/{id}", responses=answers(404, 409), response_model=models.SeriesDetails)
def read_series(entry: SeriesDep, room: RoomDep) -> Any:
    """One tilt series with its steps, and what has changed since they ran."""
    problem = None
    try:
        record = _record(room, entry.name)
    except SessionError as error:  # the record cannot be read
        record, problem = None, str(error)
    table = series_details.table_of(entry)
    head = series_heads.head(entry, table, _waiting(room).get(entry.name, ""))
    notes = list(table.notes) if table else []
    return head | {
        "origin": table.origin if table else entry.source,
        "form": table.form if table else "",
        "pixel_size": entry.metrics.get("series_pixel_size"),
        "changes": series_details.changes(record, table),
        "notes": list(dict.fromkeys([*notes, *series_details.notes(record)])),
        "steps": _steps(room, entry, record),
        "error": problem or details.error(record),
    }


def _tilt_list(entry: Entry, room: Room, record: Record | None) -> dict[str, Any]:
    table = series_details.table_of(entry)
    movies = {row.item for row in table.tilts if row.item} if table else set()
    found = {name: room.board.entry(name) for name in movies}
    motion = {name: one.metrics for name, one in found.items() if one is not None}
    return {
        "revision": series_heads.revision(entry),
        "tilts": series_details.tilts(record, table, motion),
    }


@router.get("/series/{id}/tilts", responses=answers(404, 409), response_model=models.TiltList)
def read_tilts(entry: SeriesDep, room: RoomDep) -> Any:
    """All exposures of a series, also those that take no part, and why."""
    return _tilt_list(entry, room, _record(room, entry.name))


@router.post("/series/{id}/tilts", responses=answers(403, 404, 409, 413, 415), response_model=models.Kept)
def decide_tilts(entry: SeriesDep, room: RoomDep, body: models.TiltDecision) -> Any:
    """Keep or leave out tilts by hand; the results that depend on it become stale, and are made again."""
    table = series_details.table_of(entry)
    if table is None:
        raise HTTPException(409, f"the table of {entry.name} cannot be read.")
    for index in body.tilts:
        if index >= len(table.tilts):
            raise HTTPException(
                404, f"{entry.name} has tilts 0 to {len(table.tilts) - 1}, there is no {index}."
            )
    room.manager.decide_tilts(entry.name, sorted(set(body.tilts)), body.keep)
    after = room.board.entry(entry.name) or entry
    record = _record(room, entry.name)
    return _tilt_list(after, room, record) | {"steps": _steps(room, after, record)}


def headers_of(path: FilePath, revision: str | None) -> dict[str, str]:
    """How an answer made from a file may be kept."""
    stat = path.stat()
    tag = f'"{stat.st_mtime_ns:x}-{stat.st_size:x}-{stat.st_ino:x}"'
    return {"ETag": tag, "Cache-Control": _FOREVER if revision else _ASK_AGAIN}


def file_answer(path: FilePath, revision: str | None, known: str | None, kind: str = "image/png") -> Response:
    """A file as it is, unless the asker has it."""
    headers = headers_of(path, revision)
    if known == headers["ETag"]:
        return Response(status_code=304, headers=headers)
    return Response(path.read_bytes(), media_type=kind, headers=headers)


def _tilt(entry: Entry, room: Room, index: int) -> tuple[dict[str, Any], Entry | None]:
    """What the stack step says of a tilt (nothing before it has run), and the entry of its movie."""
    record = _record(room, entry.name)
    try:
        rows = series_details.result(record, "stack", "tilts")
    except details.Missing:
        rows = []
    table = series_details.table_of(entry)
    count = max(len(rows), len(table.tilts) if table else 0)
    if index >= count:
        raise HTTPException(404, f"{entry.name} has {count} tilts, there is no {index}.")
    row = dict(rows[index]) if index < len(rows) else {}
    item = table.tilts[index].item if table and index < len(table.tilts) else row.get("item", "")
    return row, room.board.entry(item) if item else None


@router.get(
    "/series/{id}/tilts/{tilt}/thumbnail",
    response_class=Response,
    responses=answers(404, 409) | {200: _PNG, 304: _AS_IT_WAS},
)
def read_tilt_thumbnail(
    entry: SeriesDep, room: RoomDep, tilt: TiltIndex, v: Revision = None, if_none_match: Etag = None
) -> Response:
    """A small picture of a tilt."""
    row, movie = _tilt(entry, room, tilt)
    root = room.manager.session.root
    if row.get("thumbnail"):
        try:
            return file_answer(inside(root, row["thumbnail"]), v, if_none_match)
        except FileNotFoundError:  # it was left out: there is the movie's own
            pass
    if movie is None or "thumbnail" not in movie.outputs:
        raise details.Missing(f"there is no picture of tilt {tilt} of {entry.name}")
    return file_answer(inside(root, movie.outputs["thumbnail"]), v, if_none_match)


@router.get(
    "/series/{id}/tilts/{tilt}/view", response_class=Response, responses=answers(404, 409) | {200: _PNG}
)
async def read_tilt_view(
    request: Request, entry: SeriesDep, room: RoomDep, tilt: TiltIndex, size: Size = 1024, v: Revision = None
) -> Response:
    """A tilt at the size of the screen, its contrast stretched."""

    def work() -> tuple[bytes, dict[str, str]]:
        row, movie = _tilt(entry, room, tilt)
        section = row.get("section")
        output = entry.outputs.get("stack") if section is not None else None
        if output is None:
            section = None
            output = movie.outputs.get("average") if movie is not None else None
        if output is None:
            raise details.Missing(f"there is no image of tilt {tilt} of {entry.name}")
        path = inside(room.manager.session.root, output)
        headers = headers_of(path, v)
        try:
            return room.viewer.render(path, size, None, section), headers
        except (ValueError, IndexError) as error:
            raise HTTPException(409, f"tilt {tilt} of {entry.name} cannot be shown: {error}.") from None

    picture, headers = await room.viewer.run(work, request.is_disconnected)
    return Response(picture, media_type="image/png", headers=headers)


@router.get("/series/{id}/alignment", responses=answers(404, 409), response_model=models.AlignmentDetails)
def read_alignment(entry: SeriesDep, room: RoomDep) -> Any:
    """The alignment: its markers, where they were seen, and how far that is from where they should be."""
    return series_details.alignment(_record(room, entry.name), entry.metrics)


@router.get("/series/{id}/ctf", responses=answers(404, 409), response_model=models.CtfDetails)
def read_ctf(entry: SeriesDep, room: RoomDep) -> Any:
    """The CTF of the series as a whole; that of every tilt is in the list of tilts."""
    return series_details.ctf(_record(room, entry.name), entry.metrics)


@router.get("/series/{id}/handedness", responses=answers(404, 409), response_model=models.HandDetails)
def read_hand(entry: SeriesDep, room: RoomDep) -> Any:
    """Which way the defocus goes with the tilt, with the evidence."""
    return series_hand.hand(_record(room, entry.name), entry.metrics)


@router.get(
    "/series/{id}/picture/{picture}",
    response_class=Response,
    responses=answers(404) | {200: _PNG, 304: _AS_IT_WAS},
)
def read_series_picture(
    entry: SeriesDep,
    room: RoomDep,
    picture: Annotated[str, Path(max_length=100, description="As the series names its pictures.")],
    v: Revision = None,
    if_none_match: Etag = None,
) -> Response:
    """A picture that a step has written."""
    path = entry.outputs.get(picture, "")
    if not path.endswith(".png"):
        raise details.Missing(f"{entry.name} has no picture {picture}")
    return file_answer(inside(room.manager.session.root, path), v, if_none_match)


def _map(entry: Entry, room: Room, which: Map) -> FilePath:
    output = entry.outputs.get(MAPS[which])
    if output is None:
        raise details.Missing(f"{entry.name} has no {'' if which == 'raw' else which + ' '}tomogram")
    return inside(room.manager.session.root, output)


@router.get("/series/{id}/tomogram", responses=answers(404, 409), response_model=models.Tomogram)
async def read_tomogram(
    request: Request,
    entry: SeriesDep,
    room: RoomDep,
    map: Annotated[Map, Query(description="Which of the maps.")] = "raw",
) -> Any:
    """The size of a tomogram, and the grey scale of its sections."""

    def work() -> dict[str, Any]:
        path = _map(entry, room, map)
        try:
            return {"map": map, **room.tomograms.describe(path)}
        except ValueError as error:
            raise HTTPException(409, f"{entry.name} cannot be shown: {error}.") from None

    return await room.viewer.run(work, request.is_disconnected)


@router.get("/series/{id}/slice", response_class=Response, responses=answers(404, 409) | {200: IMAGE})
async def read_slice(
    request: Request,
    entry: SeriesDep,
    room: RoomDep,
    axis: Annotated[Literal["x", "y", "z"], Query(description="That the section is perpendicular to.")] = "z",
    index: Annotated[
        int | None, Query(ge=0, le=1_000_000, description="The middle where it is not given.")
    ] = None,
    map: Annotated[Map, Query(description="Which of the maps.")] = "raw",
    thickness: Annotated[int, Query(ge=1, le=64, description="Sections that are averaged.")] = 1,
    size: Annotated[
        int, Query(ge=64, le=4096, description="Pixels of the tomogram's longest side, at most.")
    ] = 1024,
    stretched: Annotated[bool, Query(description="With the contrast that is proposed.")] = False,
    format: SliceFormat = "png",
    v: Revision = None,
) -> Response:
    """A section of a tomogram: (y, x) across z, (z, x) across y, (y, z) across x, as rows and columns."""

    def work() -> tuple[bytes, dict[str, str]]:
        path = _map(entry, room, map)
        headers = headers_of(path, v)
        try:
            picture = room.tomograms.section(
                path, axis, index, thickness=thickness, longest=size, stretched=stretched, form=format
            )
        except IndexError as error:
            raise HTTPException(404, f"{error}.") from None
        except ValueError as error:
            raise HTTPException(409, f"{entry.name} cannot be shown: {error}.") from None
        return picture, headers

    picture, headers = await room.viewer.run(work, request.is_disconnected)
    return Response(picture, media_type=f"image/{format}", headers=headers)
