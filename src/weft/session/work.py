"""The task: all stale steps of one item, in this process. It returns only small metadata."""

from __future__ import annotations

import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from weft.errors import InputFileError, SessionError, SettingsError, WeftError
from weft.session.config import from_plain
from weft.session.plan import expected_fingerprints, step_states, steps_to_run
from weft.session.records import FileIdentity, Record, RecordStore, StepError, StepRecord
from weft.session.step import Job, plain_values
from weft.session.steps import all_steps, steps_of
from weft.session.tilt_table import item_identity

__all__ = ["Outcome", "Task", "killed", "resolve_device", "set_aside", "set_threads", "warm_up", "work"]


@dataclass(frozen=True)
class Task:
    """All that a worker needs to know about one item; plain values, so that it travels well.

    Attributes
    ----------
    root, source : str
        The session and the item's file.
    item, kind : str
    steps : tuple of str
        Those that were asked for, with what they need, in order.
    settings : dict
        :meth:`SessionSettings.plain`.
    threads : int
        For the arithmetic; 0 leaves it as it is.
    device : str
    retry : bool
        Try failures again that are the item's own.
    """

    root: str
    source: str
    item: str
    kind: str
    steps: tuple[str, ...]
    settings: Mapping[str, Mapping[str, Any]]
    threads: int = 0
    device: str = "cpu"
    retry: bool = False


@dataclass(frozen=True)
class Outcome:
    """What became of a task.

    Attributes
    ----------
    item : str
    done : tuple of str
        Steps that ran now and are done.
    error : str
        Empty, or one sentence.
    step : str
        The step that failed.
    seconds : float
    """

    item: str
    done: tuple[str, ...] = ()
    error: str = ""
    step: str = ""
    seconds: float = 0.0


def set_threads(threads: int) -> None:
    """Threads of torch, and of scipy through torch's number; BLAS obeys the environment of the process."""
    import torch

    if threads > 0 and torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


def warm_up() -> None:
    """Import what work needs: seconds that the first item does not wait for."""
    all_steps()
    import weft.session.steps.motion  # noqa: F401


def resolve_device(wanted: str) -> str:
    """``auto`` and ``cuda`` become one device; the workers of a machine share its GPUs evenly.

    Raises
    ------
    SettingsError
        For a device that is not there.
    """
    import torch

    if wanted == "cpu":
        return "cpu"
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted == "auto" and count == 0:
        return "cpu"
    if wanted in ("auto", "cuda") and count:
        return f"cuda:{_worker_number() % count}"
    kind, _, number = wanted.partition(":")
    if kind == "cuda" and number.isdecimal() and int(number) < count:
        return wanted
    there = ", ".join(["auto", "cpu", *(f"cuda:{i}" for i in range(count))])
    raise SettingsError(f"there is no device {wanted!r} on this machine; there are {there}.")


def _worker_number() -> int:
    try:
        from distributed import get_worker

        name = get_worker().name
    except (ImportError, ValueError):
        return 0
    return name if isinstance(name, int) else 0


def work(task: Task) -> Outcome:
    """Bring one item into accord with the settings; every step ends in the record, done or failed."""
    start = time.perf_counter()
    set_threads(task.threads)
    root = Path(task.root)
    settings = from_plain(task.settings)
    store = RecordStore(root)
    record = store.read(task.item)

    def finished(done: Sequence[str], error: str = "", step: str = "") -> Outcome:
        return Outcome(task.item, tuple(done), error, step, time.perf_counter() - start)

    try:
        source = item_identity(task.source, task.kind)
    except OSError as error:
        text = f"{task.source}: cannot be read ({error.strerror}); bring it back or exclude the item."
        # what was found out about it earlier stays true
        if record is None:
            record = Record(task.item, task.kind, FileIdentity(task.source, 0, 0, ""))
            failure = StepError("InputFileError", text, item_fault=False)
            expected = expected_fingerprints(task.kind, record.input, settings, root)
            store.write(
                record.with_step(task.steps[0], StepRecord("failed", expected[task.steps[0]], error=failure))
            )
        return finished([], text, task.steps[0])

    record = Record(task.item, task.kind, source) if record is None else _as_kind(record, task.kind)
    states = step_states(record, settings, root, source)
    todo = steps_to_run(states, task.steps, retry=task.retry)
    expected = expected_fingerprints(task.kind, source, settings, root)
    record = replace(record, input=source)
    if any(name in record.steps for name in todo):
        # its files are about to change: until they have, the record must not vouch for them
        record = replace(record, steps={k: v for k, v in record.steps.items() if k not in todo})
        store.write(record)
    job = Job(root, Path(task.source), settings, record, resolve_device(task.device))
    done: list[str] = []
    for name in todo:
        step = all_steps()[name]
        reads = step.reads(settings)
        began = time.perf_counter()
        try:
            result = step.run(job)
        except Exception as error:
            failure = StepError.of(error)
            if not isinstance(error, WeftError):
                log = job.place(f"logs/{task.item}.log")
                log.write_text(traceback.format_exc(), encoding="utf-8")
                text = f"{name}: {failure.type}: {failure.message} (details in {log.relative_to(root)})"
                failure = replace(failure, message=text)
            if isinstance(error, InputFileError) and not Path(task.source).exists():
                failure = replace(failure, item_fault=False)
            seconds = time.perf_counter() - began
            record = record.with_step(
                name, StepRecord("failed", expected[name], reads, error=failure), seconds
            )
            store.write(record)
            return finished(done, failure.message, name)
        results = {"metrics": plain_values(result.metrics), **plain_values(result.details)}
        made = StepRecord("done", expected[name], reads, results, dict(result.outputs))
        record = record.with_step(name, made, time.perf_counter() - began)
        store.write(record)
        job.record = record
        done.append(name)
    (root / "logs" / f"{task.item}.log").unlink(missing_ok=True)  # of a failure that is mended now
    return finished(done)


def _as_kind(record: Record, kind: str) -> Record:
    """A record without the steps that items of its kind do not have: a tilt is no micrograph any more."""
    if record.kind == kind:
        return record
    steps = {name: step for name, step in record.steps.items() if name in steps_of(kind)}
    return replace(record, kind=kind, steps=steps)


def killed(deaths: int, how: str) -> str:
    """Why an item that has killed its workers is set aside; `how` to try it again."""
    return (
        f"set aside: {deaths} worker processes died working on it (out of memory, or a crash in a "
        f"decoder); see logs/engine.log, and try again {how}"
    )


def set_aside(task: Task, reason: str) -> Outcome:
    """Put into an item's record that work on it is given up until somebody asks for it again."""
    root, store = Path(task.root), RecordStore(Path(task.root))
    settings = from_plain(task.settings)
    try:
        source = item_identity(task.source, task.kind)
        known = store.read(task.item)
    except (OSError, SessionError):
        return Outcome(task.item, (), reason, task.steps[0])
    record = Record(task.item, task.kind, source) if known is None else _as_kind(known, task.kind)
    expected = expected_fingerprints(task.kind, source, settings, root)
    states = step_states(record, settings, root, source)
    step = (steps_to_run(states, task.steps, retry=True) or task.steps)[0]
    reads = all_steps()[step].reads(settings)
    error = StepError("Quarantined", reason, item_fault=True)
    record = replace(record, input=source)
    store.write(record.with_step(step, StepRecord("failed", expected[step], reads, error=error)))
    return Outcome(task.item, (), reason, step)
