"""Requests about known structures that were searched in a tomogram: their candidates and score maps."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, HTTPException, Path, Query, Request, Response

from weft.matching.candidates import CandidateSettings
from weft.web import match_models as models
from weft.web.api_series import (
    IMAGE,
    Etag,
    Revision,
    SeriesDep,
    SliceFormat,
    file_answer,
    headers_of,
)
from weft.web.details import Missing
from weft.web.files import inside
from weft.web.matches import MOST_PICKS, Searched
from weft.web.room import Room, RoomDep, answers

__all__ = ["router"]

router = APIRouter(prefix="/api/series/{id}/matches", tags=["matches"])

_SVG: dict[str, Any] = {"content": {"image/svg+xml": {"schema": {"type": "string"}}}}
_SHOWN = ("cut_off", "false_positives", "number", "tophat", "particle_diameter", "separation", "margin")

JobName = Annotated[str, Path(max_length=255, description="As the list of searches names it.")]
TopHat = Annotated[bool, Query(description="Keep only sharp peaks.")]
FalsePositives = Annotated[
    float | None, Query(gt=0.0, le=1e9, allow_inf_nan=False, description="As set, where it is not given.")
]


def _search(entry: SeriesDep, room: RoomDep, job: JobName) -> Searched:
    return room.matches.search(room.manager.session.root, entry.name, job)


SearchDep = Annotated[Searched, Depends(_search)]


def _settings(room: Room) -> CandidateSettings:
    return room.manager.session.settings.get(CandidateSettings)


def _with(room: Room, tophat: bool, false_positives: float | None) -> CandidateSettings:
    changes = {"tophat": tophat} | ({} if false_positives is None else {"false_positives": false_positives})
    return _settings(room).model_copy(update=changes)


def _list(room: Room, item: str) -> dict[str, Any]:
    root = room.manager.session.root
    found, problems = room.matches.searches(root, item)
    settings = _settings(room)
    return {
        "searches": [room.matches.describe(one, room.tomograms) for one in found],
        "problems": problems,
        "rules": {name: getattr(settings, name) for name in _SHOWN},
    }


@router.get("", responses=answers(404, 409), response_model=models.MatchList)
async def list_matches(request: Request, entry: SeriesDep, room: RoomDep) -> Any:
    """The finished searches of a series, and which of their scores become candidates."""
    return await room.viewer.run(lambda: _list(room, entry.name), request.is_disconnected)


@router.get("/{job}/candidates", responses=answers(404, 409), response_model=models.PickList)
async def read_candidates(
    request: Request,
    search: SearchDep,
    room: RoomDep,
    tophat: TopHat = False,
    false_positives: FalsePositives = None,
    limit: Annotated[int, Query(ge=1, le=MOST_PICKS, description="Most that are sent.")] = 5000,
) -> Any:
    """Candidates of a search down to the background, best first: cut-off and number only shorten the list."""
    settings = _with(room, tophat, false_positives)
    return await room.viewer.run(lambda: room.matches.picks(search, settings, limit), request.is_disconnected)


@router.get("/{job}/estimate", responses=answers(404, 409), response_model=models.RecallCurve)
async def read_estimate(request: Request, search: SearchDep, room: RoomDep) -> Any:
    """How many of the candidates are particles, and what each cut-off gives."""
    settings = _settings(room)
    return await room.viewer.run(lambda: room.matches.estimate(search, settings), request.is_disconnected)


@router.post("/{job}/candidates", responses=answers(403, 404, 409, 413, 415), response_model=models.Saved)
def save_candidates(entry: SeriesDep, search: SearchDep, room: RoomDep, body: models.CandidateRules) -> Any:
    """Put these rules into weft.toml and write the candidates by them; no search is made again.

    Candidates of the other series become stale by it, and are taken again as everything that is stale.
    """
    given = body.model_dump()
    room.matches.cut_off(search, _settings(room).model_copy(update=given))  # before anything is changed
    changes = {
        f"candidates.{name}": str(value).lower() if isinstance(value, bool) else repr(value)
        for name, value in given.items()
        if value != getattr(_settings(room), name)
    }
    if changes:
        room.manager.change_settings(changes)
    # what weft.toml says now, which somebody may have edited meanwhile
    written = room.matches.save(search, _settings(room).model_copy(update=given))
    return written | {"matches": _list(room, entry.name)}


@router.get("/{job}/slice", response_class=Response, responses=answers(404, 409) | {200: IMAGE})
async def read_score_slice(
    request: Request,
    search: SearchDep,
    room: RoomDep,
    axis: Annotated[Literal["x", "y", "z"], Query(description="That the section is perpendicular to.")] = "z",
    index: Annotated[
        int | None, Query(ge=0, le=1_000_000, description="Of the score map's sections; else the middle.")
    ] = None,
    size: Annotated[int, Query(ge=64, le=4096, description="Pixels of the longest side, at most.")] = 1024,
    format: SliceFormat = "png",
    v: Revision = None,
) -> Response:
    """A section of the score map, its grey values from `low` to `high` of the search."""

    def work() -> tuple[bytes, dict[str, str]]:
        path = search.scores
        headers = headers_of(path, v)
        try:
            levels = room.matches.levels(search, room.tomograms)
            picture = room.tomograms.section(path, axis, index, longest=size, form=format, levels=levels)
        except IndexError as error:
            raise HTTPException(404, f"{error}.") from None
        except ValueError as error:
            raise HTTPException(409, f"{path.name} cannot be shown: {error}.") from None
        return picture, headers

    picture, headers = await room.viewer.run(work, request.is_disconnected)
    return Response(picture, media_type=f"image/{format}", headers=headers)


@router.get(
    "/{job}/hand",
    response_class=Response,
    responses=answers(404) | {200: _SVG, 304: {"description": "As it was."}},
)
def read_hand_picture(
    search: SearchDep, room: RoomDep, v: Revision = None, if_none_match: Etag = None
) -> Response:
    """The picture of the handedness experiment."""
    try:
        path = inside(room.manager.session.root, search.verdict_picture)
    except FileNotFoundError:
        raise Missing(f"the hand was not judged by {search.path.stem}") from None
    return file_answer(path, v, if_none_match, "image/svg+xml")
