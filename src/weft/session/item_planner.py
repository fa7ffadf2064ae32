"""Whether something is to be done about an item of a live session now, and how urgently."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from weft.session.agenda import Agenda, Rank
from weft.session.input import LiveSettings
from weft.session.plan import steps_to_run
from weft.session.steps import all_steps
from weft.session.tries import Tries
from weft.session.work import Task

if TYPE_CHECKING:
    from weft.session.board import Board
    from weft.session.series_book import SeriesBook

__all__ = ["ItemPlanner", "LateRecord"]


@dataclass(frozen=True)
class LateRecord:
    """When a record is looked for, and until when; on the monotonic clock."""

    until: float
    next_look: float


class ItemPlanner:
    """Puts items on the agenda, or takes them off. Not for several threads at once.

    Parameters
    ----------
    board : Board
    book : SeriesBook

    Attributes
    ----------
    live : LiveSettings
    agenda : Agenda
    tries : Tries
    in_work : dict
        Item → what is being done.
    gone, replaced, asked : set of str
        Items whose file is not there; whose file is another one than before; that somebody has asked for.
    late : dict
        Item → the record that has been written and cannot be seen here yet.
    """

    def __init__(self, board: Board, book: SeriesBook) -> None:
        self._board, self._book = board, book
        self.live = LiveSettings()
        self.agenda = Agenda()
        self.tries = Tries()
        self.in_work: dict[str, Task] = {}
        self.gone: set[str] = set()
        self.replaced: set[str] = set()
        self.asked: set[str] = set()
        self.late: dict[str, LateRecord] = {}

    def plan(self, name: str) -> str:
        """Put an item on the agenda, or take it off; of a series, what it waits for."""
        entry = self._board.entry(name)
        self._note_given_up(name)
        idle = entry is None or name in self._board.broken or name in self.gone or name in self.late
        if idle or entry is None or entry.state == "done" or name in self.in_work:
            self.agenda.drop(name)
            return ""
        asked = name in self.asked
        waits_for = self.why_not_yet(name, asked=asked) if entry.kind == "series" else ""
        if waits_for:
            self.agenda.drop(name)
            return waits_for
        if asked:
            self.agenda.put(name, Rank.ASKED, entry.mtime)
            return ""
        rank = self._rank(name)
        if rank is None or self.tries.given_up(name) or name in self._board.selection.exclude:
            self.agenda.drop(name)
            return ""
        delay = self.tries.delay(name)
        self.agenda.put(name, Rank.AGAIN if delay else rank, entry.mtime, delay)
        return ""

    def forget(self, name: str) -> None:
        """An item is no more."""
        self.agenda.drop(name)
        self.asked.discard(name)

    def why_not_yet(self, name: str, *, asked: bool = False) -> str:
        """Why a series is not to be processed yet; empty when it is.

        Parameters
        ----------
        asked : bool
            Somebody asks for it now: nothing that may still come is waited for.
        """
        table = self._book.tables.get(name)
        if table is None:
            return ""  # it fails with a reason of its own
        # while movies are done anew, their series would be done anew with each of them
        movies = [row.item for row in table.tilts if row.item]
        unsettled = [m for m in movies if m in self.agenda or m in self.in_work or m in self.late]
        if unsettled:
            return f"{len(unsettled)} of its {len(movies)} movies are still to be processed"
        if asked:
            return ""
        return self._book.unfinished(name, self.live.series_quiet, self.live.series_deadline, to_come=())

    def _note_given_up(self, name: str) -> None:
        """Let the series of a movie know whether anybody will work on it."""
        if name in self._board.broken:
            why = self._board.broken[name]
        elif name in self.gone:
            why = "it is gone"
        else:
            why = self.tries.given_up(name)
        if why:
            self._book.given_up[name] = why
        else:
            self._book.given_up.pop(name, None)

    def _rank(self, name: str) -> Rank | None:
        """Why something is to be done about an item; None where nothing is."""
        if self._board.summary(name) is None:
            return Rank.NEW
        states = self._board.states(name)
        if not steps_to_run(states, all_steps()):
            return None
        if name in self.replaced:
            return Rank.NEW
        return Rank.AGAIN if any(s.state == "failed" for s in states.values()) else Rank.STALE
