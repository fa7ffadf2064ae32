"""A folder of prepared micrographs, kept in accord with its inputs: what `weft preprocess` does.

    OUTPUT/
      <item>.mrc             the prepared micrographs
      <name>.star            for every table that was given, the same table for the prepared micrographs
      pictures/<item>.png    before and after, when asked for
      records/<item>.json    what was done to it, from which file, with which settings
      summary.txt            what was done to the set

Whatever is done already is left alone, so that a run can be stopped and started at any time. While it
watches, files are taken when they are complete; it ends when `close` has been called on the folder.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from weft.errors import RequestError, SessionError, WeftError
from weft.formats.atomic import atomic_write_text
from weft.formats.relion_geometry import Moved, move_micrographs
from weft.formats.star import write_star
from weft.micrographs.preprocessing import PreprocessSettings
from weft.movies.source import open_movie
from weft.session.discovery import name_items, natural_key
from weft.session.engine import crew_size, run_tasks
from weft.session.input import EngineSettings
from weft.session.lock import SessionLock
from weft.session.preparing import describe, fingerprint_of, prepare
from weft.session.records import FileIdentity, Record, RecordStore, StepError, StepRecord
from weft.session.run_report import Progress, RunReport
from weft.session.set_inputs import SetInputs
from weft.session.watching import Watcher
from weft.session.work import Outcome, Task, resolve_device

__all__ = ["SetOptions", "close", "preprocess_set"]

_CLOSED = ".closed"
#: Fewer micrographs than this are not worth starting processes for.
_FEW = 4
STEP = "preprocess"


@dataclass(frozen=True)
class SetOptions:
    """How a set is prepared, apart from the operations.

    Attributes
    ----------
    pixel_size : float, optional
        Å, of the inputs, instead of what their headers or tables say.
    float16 : bool
        Write half-precision MRC (mode 12).
    pictures : bool
        Write a picture of each micrograph and its power spectrum, before and after.
    watch : bool
        Go on looking for new inputs until :func:`close` is called on the output.
    idle : float, optional
        s; stop watching when nothing has come for so long.
    settle, poll_interval, give_up : float
        s; see :class:`weft.session.watching.Watcher`.
    retry : bool
        Try failed ones again.
    """

    pixel_size: float | None = None
    float16: bool = False
    pictures: bool = False
    watch: bool = False
    idle: float | None = None
    settle: float = 2.0
    poll_interval: float = 1.0
    give_up: float = 60.0
    retry: bool = False


def close(output: str | Path) -> None:
    """Tell whoever watches for `output` that no more inputs come.

    Raises
    ------
    SessionError
        When there is no such folder.
    """
    folder = Path(output)
    if not folder.is_dir():
        raise SessionError(f"{folder} is not there; nothing is being prepared for it.")
    atomic_write_text(folder / _CLOSED, time.strftime("%Y-%m-%d %H:%M:%S\n"))


def preprocess_set(
    inputs: Sequence[str | Path],
    output: str | Path,
    settings: PreprocessSettings,
    options: SetOptions | None = None,
    *,
    workers: int | None = None,
    threads: int | None = None,
    device: str = "auto",
    progress: Callable[[Progress], None] | None = None,
) -> RunReport:
    """Prepare micrographs and keep what is in `output` in accord with them.

    Parameters
    ----------
    inputs : sequence of path-like
        Micrographs, folders, glob patterns, STAR files of RELION, sessions of Weft.
    output : path-like
        Folder; made where it is missing.
    settings : PreprocessSettings
    options : SetOptions, optional
    workers, threads : int, optional
        Processes, and threads of each; 0 workers computes in this process.
    device : str
        ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
    progress : callable, optional

    Returns
    -------
    RunReport

    Raises
    ------
    RequestError
        When nothing could be started. Failures of micrographs are in the report.
    """
    options = options or SetOptions()
    begin = time.monotonic()
    if not settings.operations():
        raise RequestError("no operation was asked for; give at least one, such as --downsample 2.")
    resolve_device(device)
    root = Path(output).absolute()
    root.mkdir(parents=True, exist_ok=True)
    found = SetInputs([str(text) for text in inputs], root, patient=options.watch)
    if not found.find() and not options.watch:
        raise RequestError(f"no micrograph was found at {', '.join(found.given)}.")
    with SessionLock(root):
        (root / _CLOSED).unlink(missing_ok=True)
        for folder in ("records", "logs"):
            (root / folder).mkdir(exist_ok=True)
        given = {name: n for name, n in (("workers", workers), ("threads", threads)) if n is not None}
        engine = EngineSettings(**given)
        source = _Source(found, root, settings, options, progress)
        if workers is None and not options.watch and source.waiting() < _FEW:
            engine = EngineSettings(**(given | {"workers": 0}))
        crew = crew_size(engine, max(source.waiting(), 1 if not options.watch else 10**6))
        source.threads, source.device = crew.threads, device
        try:
            run_tasks(source, crew, engine, root, source.outcome, source.killer, source.note, work=prepare)
        except KeyboardInterrupt:
            source.report.interrupted = True
        finally:
            source.write_tables()
    source.report.seconds = time.monotonic() - begin
    return source.report


class _Source:
    """Hands tasks to the engine as inputs come, and books what becomes of them."""

    def __init__(
        self,
        inputs: SetInputs,
        root: Path,
        settings: PreprocessSettings,
        options: SetOptions,
        progress: Callable[[Progress], None] | None,
    ) -> None:
        self.inputs, self.root, self.settings, self.options = inputs, root, settings, options
        self.progress = progress
        self.threads, self.device = 0, "cpu"
        self.report = RunReport()
        self.store = RecordStore(root)
        self.records = self.store.read_all()
        self.watcher = Watcher(inputs.find, _incomplete, settle=options.settle, give_up=options.give_up)
        self._queue: list[Path] = []
        self._in_work: set[str] = set()
        self._again: dict[str, Path] = {}
        self._total = self._finished = 0
        self._next_look = 0.0
        self._last_news = time.monotonic()
        self._closed = not options.watch
        if options.watch:
            self._look()
        else:
            self._take(inputs.find())

    # ------------------------------------------------------------------ what the engine asks

    def waiting(self) -> int:
        """Tasks that are known by now."""
        return len(self._queue)

    def next(self) -> Task | None:
        """The next task, or None when there is none now."""
        if not self._closed:
            self._look()
        while self._queue:
            path = self._queue.pop(0)
            task = self._task(path)
            if task is not None:
                return task
        return None

    def ended(self) -> bool:
        """Whether no task will come any more."""
        return self._closed and not self._queue and not self._again

    # ------------------------------------------------------------------ looking

    def _look(self) -> None:
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + self.options.poll_interval
        told = (self.root / _CLOSED).exists()
        look = self.watcher.look()
        self._take(look.ready)
        idle = self.options.idle is not None and now - self._last_news > self.options.idle
        if told or (idle and not self._in_work):
            # what is there now is all there will be, complete or not
            self._take(list(look.waiting))
            self._closed = True

    def _take(self, paths: Sequence[Path]) -> None:
        new = [path for path in paths if path not in self._queue]
        self._queue += new
        self._total += len(new)
        if new:
            self._last_news = time.monotonic()

    def _task(self, path: Path) -> Task | None:
        known = {record.input.path: name for name, record in self.records.items()}
        if str(path) not in known:
            taken = {record.input.path: Path(record.input.path) for record in self.records.values()}
            named = name_items([*taken.values(), path], known)
            item = next(name for name, source in named.items() if source == path)
        else:
            item = known[str(path)]
        if item in self._in_work:
            self._again[item] = path  # replaced while it was in work: once more afterwards
            return None
        extra = {
            "pixel_size": self.options.pixel_size or self.inputs.pixel_sizes.get(path),
            "float16": self.options.float16,
            "pictures": self.options.pictures,
        }
        plain = {STEP: self.settings.model_dump(mode="json"), "input": extra}
        task = Task(str(self.root), str(path), item, "micrograph", (STEP,), plain, self.threads, self.device)
        record = self.records.get(item)
        if record is not None and self._settled(record, task):
            self._finished += 1
            return None
        if record is None:  # so that no other file gets this name
            self.records[item] = Record(item, "micrograph", FileIdentity(str(path), 0, 0, ""))
        self._in_work.add(item)
        return task

    def _settled(self, record: Record, task: Task) -> bool:
        """Whether nothing has to be done about it; the report then knows."""
        done = record.steps.get(STEP)
        try:
            identity = FileIdentity.of(task.source)
        except OSError:
            return False
        if done is None or done.fingerprint != fingerprint_of(task, identity):
            return False
        if done.status == "failed":
            if self.options.retry or done.error is None or not done.error.item_fault:
                return False
            self.report.failed[record.item] = done.error.message
            return True
        if all((self.root / path).exists() for path in done.outputs.values()):
            self.report.current.append(record.item)
            return True
        return False

    # ------------------------------------------------------------------ booking

    def outcome(self, outcome: Outcome) -> None:
        """A micrograph has ended."""
        self._in_work.discard(outcome.item)
        self._finished += 1
        for names in (self.report.done, self.report.current):
            if outcome.item in names:
                names.remove(outcome.item)
        self.report.failed.pop(outcome.item, None)
        if outcome.error:
            self.report.failed[outcome.item] = outcome.error
        else:
            self.report.done.append(outcome.item)
        record = self.store.read(outcome.item)
        if record is not None:
            self.records[outcome.item] = record
        self._last_news = time.monotonic()
        self._tell(outcome.item, outcome.error, outcome.seconds)
        if outcome.item in self._again:
            self._take([self._again.pop(outcome.item)])
        if self.options.watch:
            self.write_tables()

    def killer(self, task: Task, deaths: int) -> Outcome:
        """A micrograph has killed its workers: set it aside."""
        text = f"set aside: {deaths} worker processes died working on it; see logs/engine.log"
        try:
            identity = FileIdentity.of(task.source)
        except OSError:
            return Outcome(task.item, (), text, STEP)
        error = StepError("Quarantined", text, item_fault=True)
        record = Record(task.item, task.kind, identity)
        self.store.write(
            record.with_step(STEP, StepRecord("failed", fingerprint_of(task, identity), error=error))
        )
        return Outcome(task.item, (), text, STEP)

    def note(self, text: str) -> None:
        """Pass on a sentence."""
        self._tell(note=text)

    def _tell(self, item: str = "", error: str = "", seconds: float = 0.0, note: str = "") -> None:
        if self.progress is not None:
            failed = len(self.report.failed)
            total = max(self._total, self._finished)
            self.progress(Progress(total, self._finished, failed, item, error, seconds, note))

    # ------------------------------------------------------------------ tables

    def write_tables(self) -> None:
        """The tables for the prepared micrographs, and the summary."""
        done = {r.input.path: r for r in self.records.values() if _is_done(r)}
        for star, blocks in self.inputs.stars.items():
            moved = {}
            for path, places in self.inputs.names.items():
                record = done.get(str(path))
                for place, name in places:
                    if place == star and record is not None:
                        moved[name] = _moved(record, self.root)
            write_star(self.root / star.name, move_micrographs(blocks, moved))
        records = sorted(self.records.values(), key=lambda r: natural_key(r.item))
        atomic_write_text(self.root / "summary.txt", describe(self.settings, records) + "\n")


def _is_done(record: Record) -> bool:
    return STEP in record.steps and record.steps[STEP].status == "done"


def _moved(record: Record, root: Path) -> Moved:
    step = record.steps[STEP]
    metrics = step.results["metrics"]
    factor = (float(metrics["factor_y"]), float(metrics["factor_x"]))
    return Moved(str(root / step.outputs["micrograph"]), metrics["pixel_size"], metrics["crop"], factor)


def _incomplete(path: Path) -> str:
    """Why a micrograph cannot be read yet; empty when it can."""
    try:
        open_movie(path).close()
    except WeftError as error:
        return str(error)
    return ""
