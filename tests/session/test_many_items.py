"""The board and the manager over many items: what they know, how long it takes, how much memory."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from weft.session.board import Board
from weft.session.live import Manager
from weft.session.records import FileIdentity, RecordStore
from weft.session.session import Session

ROOT = Path(__file__).resolve().parents[2]


def _make(root: Path, items: int) -> Session:
    spec = importlib.util.spec_from_file_location("many_items", ROOT / "benchmarks" / "many_items.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    session: Session = module.make_session(root, items, thumbnail=32, squares=5)
    return session


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Session:
    """300 items: not to be changed."""
    return _make(tmp_path_factory.mktemp("many") / "session", 300)


@pytest.fixture
def board(many: Session) -> Board:
    board = Board(many)
    board.load()
    return board


def test_the_board_says_what_the_records_say(many: Session, board: Board) -> None:
    status = many.status()
    assert list(board.entries) == list(status)
    for name, entry in board.entries.items():
        assert entry.state == status[name].state
        assert entry.reason == status[name].reason
        assert board.verdicts[name] == status[name].verdict
    counts = board.counts()
    assert counts["total"] == 300
    assert counts["failed"] == sum(s.state == "failed" for s in status.values()) > 0
    assert counts["done"] == counts["selected"] == 300 - counts["failed"]
    record = many.store.read("grid1_00007")
    entry = board.entries["grid1_00007"]
    assert entry.metrics == record.metrics
    assert entry.outputs == record.outputs
    assert entry.folder == str(Path(record.input.path).parent)
    assert entry.mtime == pytest.approx(record.input.mtime_ns * 1e-9)


def test_the_index_saves_reading_the_records(
    many: Session, board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    real = RecordStore._read
    monkeypatch.setattr(RecordStore, "_read", lambda self, item: read.append(item) or real(self, item))
    again = Board(many)
    again.load()
    assert read == []
    assert again.entries == board.entries
    # a record that was written since is read again, whatever the index says
    path = many.store.path("grid1_00003")
    text = path.read_text()
    path.write_text(text.replace('"resolution":', '"resolution" :'))
    again.load()
    assert read == ["grid1_00003"]
    assert again.entries["grid1_00003"].metrics == board.entries["grid1_00003"].metrics


def test_the_board_tells_what_has_changed(board: Board) -> None:
    version = board.version
    entries = board.entries
    board.begin("grid1_00003")
    assert entries["grid1_00003"].state == "done"  # what was taken out stays as it was
    assert board.entries["grid1_00003"].state == "processing"
    assert board.changed_since(version) == ["grid1_00003"]
    assert board.end("grid1_00003") == []
    assert board.entries["grid1_00003"] == entries["grid1_00003"]
    board.add({"a_new_one": (Path("/somewhere/a_new_one.tif"), 5.0)})
    assert next(iter(board.entries)) == "a_new_one"
    assert board.entries["a_new_one"].state == "new"
    assert set(board.changed_since(version)) == {"grid1_00003", "a_new_one"}
    board.remove(["a_new_one", "grid1_00003"])  # what has a record stays
    assert "a_new_one" not in board.entries
    assert "grid1_00003" in board.entries
    assert board.changed_since(board.version) == []


def test_a_changed_setting_makes_stale_what_reads_it(many: Session, board: Board) -> None:
    failed = board.counts()["failed"]
    settings = many.settings
    changed = board.refresh(settings.with_value("ctf.range_max", "4.5"))
    assert len(changed) == 300 - failed
    assert board.entries[changed[0]].reason == "changed: ctf.range_max"
    assert board.refresh(settings.with_value("live.settle", "7")) == changed
    assert board.counts()["stale"] == 0


def test_a_replaced_file_makes_its_item_stale(board: Board, tmp_path: Path) -> None:
    name = "grid1_00003"
    source = tmp_path / "other.tif"
    source.write_text("another movie")
    identity = FileIdentity.of(source)
    was = board.entries[name]
    board.replaced(name, identity)
    assert (board.entries[name].state, board.entries[name].reason) == (
        "stale",
        "the input file has changed",
    )
    board.replaced(name, board.summary(name).record.input)
    assert board.entries[name] == was


def test_missing_results_are_seen(many: Session) -> None:
    path = many.root / "thumbnails" / "grid1_00005.png"
    content = path.read_bytes()
    path.unlink()
    board = Board(many)
    board.load()
    assert board.entries["grid1_00005"].reason == "thumbnails/grid1_00005.png is missing"
    path.write_bytes(content)


_MEASURE = """
import json, resource, sys, time
import weft
from weft.session.live import Manager
manager = Manager(weft.open(sys.argv[1]), workers=0)
begin = time.perf_counter()
manager.start()
start = time.perf_counter() - begin
time.sleep(8.0)
begin = time.perf_counter()
manager.set_ranges({"resolution": (None, 4.0)})
select = time.perf_counter() - begin
counts = manager.board.counts()
manager.stop()
memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"start": start, "select": select, "memory": memory, "counts": counts}))
"""


def _measure(session: Session) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(session.root)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.slow
def test_ten_thousand_items_start_in_ten_seconds_and_a_gigabyte(tmp_path: Path) -> None:
    session = _make(tmp_path / "session", 10_000)
    # a busy machine may need longer for the first time, when every record is read
    for index, most in (("from the records", 20.0), ("from the index", 10.0)):
        found = _measure(session)
        print(index, found)
        assert found["counts"]["total"] == 10_000
        assert found["start"] < most
        assert found["memory"] < 1e9
    assert (session.root / "micrographs_selected.star").is_file()


def test_a_manager_shows_a_finished_session_without_workers(many: Session) -> None:
    with Manager(many, watch=False) as manager:
        assert manager.status()["workers"] == []
        assert manager.status()["backlog"] == 0
        assert manager.status()["items"]["total"] == 300
