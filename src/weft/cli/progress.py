"""Progress of long work: a bar with rate and time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from weft.session.run_report import Progress, RunReport

__all__ = ["counted", "duration", "show_progress", "summary"]

_EVERY = 5.0  # seconds between two lines of progress


def duration(seconds: float) -> str:
    """``"8 s"``, ``"3 min 20 s"``, ``"2 h 5 min"``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _pace(progress: Progress, begin: float) -> tuple[float, float]:
    """Items an hour, and seconds left."""
    each = (time.monotonic() - begin) / max(progress.finished, 1)
    return 3600.0 / max(each, 1e-9), each * (progress.total - progress.finished)


@contextmanager
def show_progress(*, quiet: bool = False) -> Iterator[Callable[[Progress], None]]:
    """What to give `Session.run` as `progress`."""
    if quiet:
        yield lambda progress: None
    elif sys.stderr.isatty():
        with _bar() as show:
            yield show
    else:
        yield _lines()


def _lines() -> Callable[[Progress], None]:
    begin = time.monotonic()

    def show(progress: Progress) -> None:
        if progress.note:
            text = progress.note
        else:
            rate, left = _pace(progress, begin)
            result = f"FAILED {progress.error}" if progress.error else f"done in {duration(progress.seconds)}"
            text = (
                f"[{progress.finished}/{progress.total}] {progress.item}: {result}"
                f" ({rate:.0f}/h, {duration(left)} left)"
            )
        print(text, file=sys.stderr, flush=True)

    return show


@contextmanager
def _bar() -> Iterator[Callable[[Progress], None]]:
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    begin = time.monotonic()
    columns = (
        MofNCompleteColumn(),
        BarColumn(),
        TextColumn("{task.fields[pace]}"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[item]}"),
    )
    with Bar(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=None, pace="", item="starting")

        def show(progress: Progress) -> None:
            if progress.note or progress.error:
                text = progress.note or f"{progress.item}: {progress.error}"
                bar.console.print(f"[red]{escape(text)}[/red]")
            rate, left = _pace(progress, begin)
            failed = f", {progress.failed} failed" if progress.failed else ""
            pace = f"{rate:.0f}/h, {duration(left)} left{failed}" if progress.finished else ""
            name = progress.item or "working"
            bar.update(task, total=progress.total, completed=progress.finished, pace=pace, item=escape(name))

        yield show


def summary(report: RunReport, root: Path) -> str:
    """The last words of a run."""
    lines = []
    for name, reason in report.failed.items():
        lines.append(f"failed: {name}: {reason}")
    counts = [
        f"{len(report.done)} done",
        f"{len(report.current)} already up to date",
        f"{len(report.failed)} failed",
    ]
    if report.excluded:
        counts.append(f"{len(report.excluded)} excluded by hand")
    stopped = "stopped; run again to go on: " if report.interrupted else ""
    lines.append(f"{stopped}{', '.join(counts)} in {duration(report.seconds)}")
    if report.failed and not report.interrupted:
        lines.append(f"after mending the cause: weft run {root} --retry")
    tables = [root / name for name in ("tomograms.star", "micrographs.star")]
    lines.append(f"table: {next((path for path in tables if path.exists()), tables[-1])}")
    return "\n".join(lines)


def counted(what: str) -> Callable[[int, int], None]:
    """Says how many are done, at what rate, and when the rest will be."""
    begin = last = time.monotonic()

    def show(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _EVERY and done < total:
            last, each = now, (now - begin) / done
            left = duration(each * (total - done))
            typer.echo(f"[{done}/{total}] {what} ({60.0 / each:.0f}/min, {left} left)", err=True)

    return show
