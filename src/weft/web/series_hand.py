"""Which way the defocus goes with the tilt: of one series, and of the session as a whole."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from weft.defocus.handedness import Handedness, session_hand
from weft.errors import SessionError
from weft.session.records import Record
from weft.web.details import Missing
from weft.web.listing import plain
from weft.web.series_details import result, stack_indices
from weft.web.series_heads import hand_head

if TYPE_CHECKING:
    from weft.session.board import Board
    from weft.session.records import RecordStore

__all__ = ["Hands", "hand"]


def _handedness(record: Record | None) -> Handedness:
    return Handedness.from_dict(dict(result(record, "tilt_ctf", "handedness")))


def hand(record: Record | None, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """As `weft.web.series_models.HandDetails` has it.

    Raises
    ------
    Missing
    """
    found = _handedness(record)
    gradients = found.gradients
    indices = stack_indices(record, len(gradients.angles))
    columns = (
        gradients.angles,
        gradients.predicted,
        gradients.measured,
        gradients.error,
        gradients.used,
        found.by_tilt,
    )
    names = ("angle", "predicted", "measured", "error", "used", "difference")
    rows = zip(*(column.tolist() for column in columns), strict=True)
    out: dict[str, Any] = plain(
        {
            **(hand_head(metrics) or {}),
            "hand": float(result(record, "tilt_ctf", "hand")),
            "origin": result(record, "tilt_ctf", "hand_from"),
            "found": found.hand,
            "verdict": found.verdict,
            "significance": found.significance,
            "reason": found.reason,
            "scores": list(found.scores),
            "slope": found.slope,
            "slope_error": found.slope_error,
            "tilts": [
                {"index": index, **dict(zip(names, row, strict=True))}
                for index, row in zip(indices, rows, strict=True)
            ],
        }
    )
    return out


class Hands:
    """What every series says, read once from each record."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[str, tuple[float | None, Handedness | None]] = {}

    def session(self, board: Board, store: RecordStore, setting: str | None) -> dict[str, Any]:
        """What all series together say, as `weft.web.series_models.SessionHand` has it."""
        found: dict[str, Handedness] = {}
        for entry in list(board.entries.values()):
            if entry.kind == "series" and "hand_verdict" in entry.metrics:
                one = self._of(entry.name, entry.processed, store)
                if one is not None:
                    found[entry.name] = one
        names = list(found)
        if not found:
            return {
                "hand": None,
                "verdict": None,
                "reason": "no series has been judged yet",
                "log_odds": 0.0,
                "plus": 0,
                "minus": 0,
                "series": 0,
                "contradicting": [],
                "setting": setting,
            }
        verdict = session_hand(list(found.values()))
        return {
            "hand": verdict.hand,
            "verdict": verdict.verdict,
            "reason": verdict.reason,
            "log_odds": verdict.log_odds,
            "plus": verdict.votes[0],
            "minus": verdict.votes[1],
            "series": len(found),
            "contradicting": [names[i] for i in verdict.contradicting],
            "setting": setting,
        }

    def _of(self, name: str, processed: float | None, store: RecordStore) -> Handedness | None:
        with self._lock:
            known = self._known.get(name)
        if known is not None and known[0] == processed:
            return known[1]
        one: Handedness | None = None
        with suppress(Missing, SessionError):
            one = _handedness(store.read(name))
        with self._lock:
            self._known[name] = (processed, one)
        return one
