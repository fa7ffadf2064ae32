"""What a live session makes of its tilt series: when they run, and what no longer belongs to them.

The dispatcher alone, without workers: work is told to it as done, failed or broken down.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from series_files import Folder, mdoc, movie_names

import weft
from weft.session import config, series_book, tries
from weft.session.board import Board
from weft.session.dispatch import Dispatcher
from weft.session.plan import Expectations
from weft.session.records import Record, StepError, StepRecord
from weft.session.steps import steps_of
from weft.session.tilt_table import EXCLUDED, TiltRow, item_identity
from weft.session.watching import Look
from weft.session.work import Outcome, Task, set_aside

SERIES = "TS_01"
MOVIES = [name[:-4] for name in movie_names()]


class Desk:
    """A session of one tilt series, or of as many movies, with its dispatcher."""

    def __init__(self, root: Path, **changes: Any) -> None:
        self.folder = Folder(root)
        self.folder.write(f"{SERIES}.mdoc", mdoc())
        self.folder.add_frames(movie_names())
        for name in movie_names():  # told apart by their content
            (self.folder.frames / name).write_text(name)
        given: dict[str, Any] = {
            "frames": self.folder.frames / "*.tif",
            "mdoc": self.folder.mdocs,
            "pixel_size": 1.35,
            "voltage": 300.0,
            "cs": 2.7,
            "amplitude": 0.07,
            "dose_per_frame": 3.0,
            "live": {"series_quiet": 0.0, "series_deadline": 3600.0},
        }
        self.session = weft.new(root / "session", **(given | changes))
        (self.session.root / "records").mkdir()
        (self.session.root / "logs").mkdir()
        self.open()

    def open(self) -> None:
        self.board = Board(self.session)
        self.board.load()
        settings = self.board.expectations.settings
        self.dispatcher = Dispatcher(self.session, self.board, settings, on_note=print)

    def arrive(self) -> None:
        """All movies are seen for the first time; then the mdocs."""
        paths = tuple(self.folder.frames / name for name in movie_names())
        self.dispatcher.take_in(Look(paths, {}, ()))
        self.dispatcher.look_at_series()

    def finish(self, task: Task, status: str = "done") -> None:
        """A task has ended with a record."""
        source = item_identity(task.source, task.kind)
        expected = Expectations(self.session.settings, self.session.root)
        record = Record(task.item, task.kind, source)
        for name, wanted in expected.fingerprints(task.kind, source.content).items():
            error = StepError("TruncatedError", "cut", True) if status == "failed" else None
            record = record.with_step(name, StepRecord(status, wanted, error=error))  # type: ignore[arg-type]
        self.session.store.write(record)
        self.dispatcher.outcome(Outcome(task.item, ("motion",), "" if status == "done" else "cut"))

    def work(self, but: Iterable[str] = ()) -> list[Task]:
        """Do what there is to do, one after the other; the tasks."""
        tasks = []
        while (task := self.dispatcher.next()) is not None:
            tasks.append(task)
            if task.item not in but:
                self.finish(task)
        return tasks

    def state(self, name: str = SERIES) -> str:
        entry = self.board.entry(name)
        assert entry is not None
        return entry.state

    def row(self, item: str) -> TiltRow:
        return next(row for row in self.dispatcher.book.tables[SERIES].tilts if row.item == item)

    def select(self, accept: bool | None, *items: str) -> None:
        """As the housekeeper does it when somebody decides."""
        selection = self.board.selection.decide_all(items, accept)
        selection.save(self.session.root)
        self.board.set_selection(selection)
        self.dispatcher.plan(items)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


@pytest.fixture
def done(desk: Desk) -> Desk:
    """All movies and the series are done."""
    desk.arrive()
    desk.work()
    assert desk.state() == "done"
    return desk


def names(tasks: Iterable[Task]) -> list[str]:
    return [task.item for task in tasks]


def test_a_series_follows_its_movies(desk: Desk) -> None:
    desk.arrive()
    tasks = desk.work()
    assert sorted(names(tasks[:-1])) == sorted(MOVIES)
    assert (tasks[-1].item, tasks[-1].kind) == (SERIES, "series")


# ------------------------------------------------------------------------------ what is not waited for


def test_a_movie_excluded_before_its_motion_is_not_waited_for(desk: Desk) -> None:
    desk.arrive()
    desk.select(False, MOVIES[2])
    tasks = desk.work()
    assert MOVIES[2] not in names(tasks)
    assert tasks[-1].item == SERIES
    assert desk.row(MOVIES[2]).left_out == EXCLUDED
    # and it comes back: first its motion, then the series anew
    desk.select(None, MOVIES[2])
    assert names(desk.work()) == [MOVIES[2], SERIES]
    assert desk.row(MOVIES[2]).usable


def test_a_movie_excluded_after_its_motion_leaves_its_series(done: Desk) -> None:
    done.select(False, MOVIES[0])
    assert done.state() == "stale"
    assert done.row(MOVIES[0]).left_out == EXCLUDED
    assert not done.row(MOVIES[0]).usable
    assert names(done.work()) == [SERIES]
    done.dispatcher.look_at_series()  # the mdoc does not bring it back
    assert done.state() == "done"
    done.select(True, MOVIES[0])
    assert done.row(MOVIES[0]).usable
    assert names(done.work()) == [SERIES]


def test_a_movie_that_is_given_up_is_not_waited_for(desk: Desk) -> None:
    """Work on it breaks down without a word in its record, until nobody tries any more."""
    desk.arrive()
    assert len(desk.work(but=[MOVIES[3]])) == len(MOVIES)
    for attempt in range(tries.MOST_TRIES):
        assert SERIES not in names(desk.work(but=[MOVIES[3]])), attempt
        desk.dispatcher.outcome(Outcome(MOVIES[3], (), "No space left on device", "motion"))
        desk.dispatcher.hurry()
    assert names(desk.work()) == [SERIES]
    assert "No space left on device" in desk.row(MOVIES[3]).failure
    # settings change: it is tried again, and the series has it after all
    desk.dispatcher.set_settings(desk.session.settings)
    assert names(desk.work()) == [MOVIES[3], SERIES]
    assert desk.row(MOVIES[3]).usable


def test_a_movie_whose_record_cannot_be_read_is_not_waited_for(desk: Desk) -> None:
    desk.arrive()
    desk.work(but=[MOVIES[3]])
    desk.session.store.path(MOVIES[3]).write_text("{")
    desk.dispatcher.outcome(Outcome(MOVIES[3], ("motion",)))
    assert names(desk.work()) == [SERIES]
    assert "not a readable record" in desk.row(MOVIES[3]).failure


def test_a_movie_set_aside_is_not_waited_for(desk: Desk) -> None:
    desk.arrive()
    tasks = desk.work(but=[MOVIES[3]])
    task = next(task for task in tasks if task.item == MOVIES[3])
    desk.dispatcher.outcome(desk.dispatcher.killer(task, 2))
    assert names(desk.work()) == [SERIES]
    assert "set aside: 2 worker processes died" in desk.row(MOVIES[3]).failure


def test_movies_that_nobody_has_seen_hold_a_series_until_the_deadline(done: Desk) -> None:
    """The table of an earlier day names a movie that is not on the board: the watcher has yet to find it."""
    table = done.dispatcher.book.tables[SERIES]
    rows = (*table.tilts, TiltRow(12.0, "/elsewhere/new.tif", "new", name="new.tif"))
    done.dispatcher.book._write(replace(table, tilts=rows))
    done.dispatcher._take_series([SERIES])
    assert done.work() == []
    done.dispatcher.book._grown[SERIES] -= 4000.0
    for path in (*done.folder.frames.iterdir(), *done.folder.mdocs.iterdir()):
        os.utime(path, (1e9, 1e9))
    done.dispatcher.book._mtimes.clear()
    done.dispatcher.plan([SERIES])
    assert names(done.work()) == [SERIES]


# --------------------------------------------------------------------------------- settings that change


def test_movies_become_tilts_when_mdocs_are_set_while_it_runs(tmp_path: Path) -> None:
    desk = Desk(tmp_path, mdoc=())
    desk.arrive()
    assert {task.kind for task in desk.work()} == {"movie"}
    config.edit_file(desk.session.root, {"input.mdoc": str(desk.folder.mdocs)})
    desk.dispatcher.set_settings(desk.session.settings)
    assert {desk.board.entry(name).kind for name in MOVIES} == {"tilt"}  # type: ignore[union-attr]
    desk.dispatcher.look_at_series()
    # averages of movies are weighted by dose: no tilt has one yet
    assert not any(row.usable for row in desk.dispatcher.book.tables[SERIES].tilts)
    tasks = desk.work()
    assert sorted(names(tasks[:-1])) == sorted(MOVIES)
    assert {task.kind for task in tasks[:-1]} == {"tilt"}
    assert tasks[-1].item == SERIES
    desk.open()  # what is on the disk says the same
    assert desk.board.counts()["done"] == len(MOVIES) + 1


def test_kinds_follow_the_settings_before_there_is_a_record(tmp_path: Path) -> None:
    desk = Desk(tmp_path, mdoc=())
    desk.arrive()
    config.edit_file(desk.session.root, {"input.mdoc": str(desk.folder.mdocs)})
    desk.dispatcher.set_settings(desk.session.settings)
    assert {desk.dispatcher.next().kind for _ in MOVIES} == {"tilt"}  # type: ignore[union-attr]


def test_after_a_change_of_settings_a_series_comes_after_its_movies(done: Desk) -> None:
    """Stale itself and by its movies: done once, with the new averages."""
    config.edit_file(done.session.root, {"motion.range_max": "12", "alignment.thickness": "1000"})
    done.dispatcher.set_settings(done.session.settings)
    tasks = []
    while (task := done.dispatcher.next()) is not None:
        tasks.append(task)  # several are in work at once
    assert sorted(names(tasks)) == sorted(MOVIES)
    for task in tasks:
        assert SERIES not in names(filter(None, [done.dispatcher.next()]))
        done.finish(task)
    assert names(done.work()) == [SERIES]


def test_a_series_on_the_agenda_waits_for_a_movie_that_is_replaced(done: Desk) -> None:
    config.edit_file(done.session.root, {"alignment.thickness": "1000"})
    done.dispatcher.set_settings(done.session.settings)
    path = done.folder.frames / movie_names()[4]
    path.write_text("another")
    done.dispatcher.take_in(Look((path,), {}, ()))
    task = done.dispatcher.next()
    assert task is not None
    assert task.item == MOVIES[4]
    assert done.dispatcher.next() is None
    done.finish(task)
    assert names(done.work()) == [SERIES]


def test_a_movie_that_fails_again_lets_its_series_go_on(done: Desk) -> None:
    """Nothing is new in the table then."""
    task = replace(_task(done, MOVIES[4]), retry=True)
    done.finish(task, "failed")
    assert names(done.work()) == [SERIES]
    config.edit_file(done.session.root, {"alignment.thickness": "1000"})
    done.dispatcher.retry([MOVIES[4]])
    done.dispatcher.set_settings(done.session.settings)
    again = done.dispatcher.next()
    assert again is not None
    assert again.item == MOVIES[4]
    assert done.dispatcher.next() is None
    done.finish(again, "failed")
    assert names(done.work()) == [SERIES]


def _task(desk: Desk, item: str) -> Task:
    source = str(desk.folder.frames / f"{item}.tif")
    return Task(str(desk.session.root), source, item, "tilt", ("motion",), desk.session.settings.plain())


def test_asked_for_by_hand_a_series_waits_for_its_movies(done: Desk) -> None:
    config.edit_file(done.session.root, {"motion.range_max": "12"})
    done.dispatcher.set_settings(done.session.settings)
    config.edit_file(done.session.root, {"alignment.thickness": "1000"})
    done.dispatcher.set_settings(done.session.settings)
    done.dispatcher.retry([SERIES])
    tasks = done.work()
    assert sorted(names(tasks[:-1])) == sorted(MOVIES)
    assert (tasks[-1].item, tasks[-1].retry) == (SERIES, True)


def test_a_look_does_not_write_what_was_true_before_it(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A movie ends while the mdocs are read: its series' table must not lose it again."""
    desk.arrive()
    task = desk.dispatcher.next()
    assert task is not None
    real: Callable[..., Any] = series_book.import_series

    def slow(*given: Any, **options: Any) -> Any:
        found = real(*given, **options)
        desk.finish(task)
        assert desk.row(task.item).motion
        return found

    monkeypatch.setattr(series_book, "import_series", slow)
    desk.dispatcher.look_at_series()
    assert desk.row(task.item).motion


# ----------------------------------------------------------------------------- records that are broken


@pytest.mark.parametrize(("name", "kind"), [(SERIES, "series"), (MOVIES[1], "tilt")])
def test_a_broken_record_keeps_its_kind(done: Desk, name: str, kind: str) -> None:
    done.session.store.path(name).write_text("{")
    done.open()
    entry = done.board.entry(name)
    assert entry is not None
    assert (entry.kind, entry.state) == (kind, "failed")
    done.dispatcher.take_in(Look(tuple(done.folder.frames / n for n in movie_names()), {}, ()))
    done.dispatcher.retry([name])
    task = done.dispatcher.next()
    assert task is not None
    assert (task.item, task.kind) == (name, kind)
    assert task.steps == steps_of(kind)
    done.finish(task)
    done.work()
    assert done.board.counts()["done"] == len(MOVIES) + 1


def test_setting_aside_keeps_the_kind(done: Desk) -> None:
    store = done.session.store
    task = _task(done, MOVIES[0])
    record = store.read(MOVIES[0])
    assert record is not None
    store.write(replace(record, kind="movie"))  # of a time before the mdocs
    set_aside(task, "it kills")
    assert store.read(MOVIES[0]).kind == "tilt"  # type: ignore[union-attr]
    series = replace(task, source=str(done.dispatcher.book.path(SERIES)), item=SERIES, kind="series")
    set_aside(replace(series, steps=("stack",)), "it kills")
    record = store.read(SERIES)
    assert record is not None
    assert record.input.content == done.dispatcher.book.tables[SERIES].content
    store.path(MOVIES[0]).write_text("{")
    assert set_aside(task, "it kills").error == "it kills"  # and nothing raises


# ---------------------------------------------------------------------- what the table says, and costs


def test_what_is_only_told_makes_nothing_stale(done: Desk) -> None:
    table = done.dispatcher.book.tables[SERIES]
    moved = tuple(replace(row, movie=f"/moved/{row.name}") for row in table.tilts)
    done.dispatcher.book._write(replace(table, tilts=moved, notes=("read this",), origin="/moved/x.mdoc"))
    done.dispatcher._take_series([SERIES])
    assert done.state() == "done"
    assert done.session.status()[SERIES].state == "done"
    for other in (
        replace(table, tilt_axis=1.0),
        replace(table, tilts=table.tilts[::-1]),
        replace(table, tilts=(replace(table.tilts[0], decision=False), *table.tilts[1:])),
        replace(table, tilts=(replace(table.tilts[0], motion="x"), *table.tilts[1:])),
        replace(table, tilts=(replace(table.tilts[0], prior_dose=9.0), *table.tilts[1:])),
        replace(table, alignment="a.json", alignment_content="x"),
        replace(table, stack="a.st", stack_content="x"),
    ):
        assert other.content != table.content


def test_a_poll_does_not_look_at_every_movie(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    config.edit_file(desk.session.root, {"live.series_quiet": "1000"})
    desk.dispatcher.set_settings(desk.session.settings)
    desk.arrive()
    desk.work()
    assert desk.dispatcher.look_at_series() == {SERIES: "more tilts may come"}
    seen: list[str] = []
    real = os.stat

    def stat(path: Any, *given: Any, **options: Any) -> os.stat_result:
        seen.append(str(path))
        return real(path, *given, **options)

    monkeypatch.setattr(os, "stat", stat)
    desk.dispatcher.look_at_series()
    assert [path for path in seen if path.endswith(".tif")] == []
    assert str(desk.folder.mdocs / f"{SERIES}.mdoc") in seen


def test_a_series_that_nothing_describes_any_more(desk: Desk) -> None:
    desk.folder.write("wrong.mdoc", mdoc(series="wrong"))
    desk.arrive()
    assert desk.board.entry("wrong") is not None
    (desk.folder.mdocs / "wrong.mdoc").unlink()
    desk.dispatcher.look_at_series()
    assert desk.board.entry("wrong") is None
    assert "wrong" not in desk.dispatcher.book.tables
    assert list(desk.session.series) == [SERIES]
    # what was made, and what people decided, is kept
    desk.dispatcher.decide_tilts(SERIES, [0], keep=False)
    desk.folder.write("other.mdoc", mdoc(series="other"))
    (desk.folder.mdocs / f"{SERIES}.mdoc").unlink()
    desk.dispatcher.look_at_series()
    assert SERIES in desk.dispatcher.book.tables
    assert SERIES in desk.session.series


def test_a_folder_that_is_not_there_takes_no_series_with_it(desk: Desk) -> None:
    desk.arrive()
    desk.folder.mdocs.rename(desk.folder.root / "away")
    desk.dispatcher.look_at_series()
    assert desk.board.entry(SERIES) is not None
    assert SERIES in desk.session.series


def test_the_table_of_a_series_is_deleted_while_it_runs(done: Desk) -> None:
    """It costs that series only, which says so; the next look makes it again."""
    done.dispatcher.book.forget([SERIES])
    config.edit_file(done.session.root, {"alignment.thickness": "1000"})
    done.dispatcher.set_settings(done.session.settings)  # nothing raises
    done.dispatcher.look_at_series()
    assert done.dispatcher.book.path(SERIES).is_file()
    assert names(done.work()) == [SERIES]
