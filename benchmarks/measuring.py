"""Running a program against the clock: CPU seconds, wall time, memory, and how busy the machine was."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

__all__ = ["Busy", "Usage", "busy_cores", "measure", "measure_call", "quietest", "table"]

SAMPLING = 0.05  # s between two looks at the memory
QUIET = 0.10  # cores that others may use before a measurement is worth repeating
_PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True)
class Usage:
    """What a command, or a piece of work, took.

    Attributes
    ----------
    cpu : float
        User and system seconds of the process and of all that it started.
    wall : float
        Seconds.
    largest : float
        Peak resident memory of the largest single process, GB (10⁹ bytes).
    together : float
        Peak of the resident memory of all its processes added up, GB; libraries that two processes share
        count twice.
    others : float
        Cores that everything else on the machine kept busy meanwhile.
    exit_code : int
    """

    cpu: float
    wall: float
    largest: float
    together: float
    others: float
    exit_code: int = 0

    def to_dict(self) -> dict[str, float]:
        """Rounded, for JSON."""
        return {k: round(v, 3) for k, v in asdict(self).items()}


class Busy:
    """CPU seconds of the whole machine since the beginning, from /proc/stat."""

    def __init__(self) -> None:
        self.seconds, self.at = self._now(), time.perf_counter()

    @staticmethod
    def _now() -> float:
        # user nice system idle iowait irq softirq steal; what is stolen by another guest is busy, too
        numbers = [int(v) for v in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        return float(sum(numbers) - numbers[3] - numbers[4]) / os.sysconf("SC_CLK_TCK")

    def others(self, own: float) -> float:
        """Cores kept busy by everything but us, who used `own` CPU seconds."""
        return max(0.0, (self._now() - self.seconds - own) / max(time.perf_counter() - self.at, 1e-3))


def busy_cores(seconds: float = 1.0) -> float:
    """Cores that the machine keeps busy now, without us."""
    busy = Busy()
    time.sleep(seconds)
    return busy.others(0.0)


class _MemoryWatch(threading.Thread):
    """Adds up the resident memory of a process and its descendants until told to stop."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.peak = 0
        self._pid, self._end = pid, threading.Event()

    def run(self) -> None:
        while not self._end.wait(SAMPLING):
            total = 0
            try:
                root = psutil.Process(self._pid)
                members = [root, *root.children(recursive=True)]
            except psutil.Error:
                continue
            for process in members:
                try:
                    total += process.memory_info().rss
                except psutil.Error:
                    continue
            self.peak = max(self.peak, total)

    def stop(self) -> int:
        """The peak, bytes."""
        self._end.set()
        self.join()
        return self.peak


def measure(
    command: Sequence[str | Path],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    log: Path | None = None,
) -> Usage:
    """Run a command to its end, under a process of its own that waits for all descendants.

    Parameters
    ----------
    log : path, optional
        What it says goes there; the last lines are shown if it fails.

    Raises
    ------
    RuntimeError
        It ended with an exit code other than 0.
    """
    words = [str(word) for word in command]
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "usage.json"
        supervisor = [
            sys.executable,
            __file__,
            str(result),
            str((log or Path(os.devnull)).absolute()),
            *words,
        ]
        subprocess.run(supervisor, cwd=cwd, env=None if env is None else dict(env), check=True)
        usage = Usage(**json.loads(result.read_text()))
    if usage.exit_code:
        said = log.read_text(errors="replace")[-2000:] if log else ""
        raise RuntimeError(f"{' '.join(words)} ended with exit code {usage.exit_code}\n{said}")
    return usage


def _supervise(words: Sequence[str], log: str) -> Usage:
    """Run a command as the only child of this process."""
    # descendants whose parent has ended become our children, so that their CPU time can be had, too
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    busy, begin = Busy(), time.perf_counter()
    with open(log, "wb") as out:
        child = subprocess.Popen(words, stdout=out, stderr=subprocess.STDOUT)
    watch = _MemoryWatch(child.pid)
    watch.start()
    _, status, own = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    wall = time.perf_counter() - begin
    cpu, largest = own.ru_utime + own.ru_stime, own.ru_maxrss
    # what the command has waited for is in its own figures; the rest is ours to wait for
    while True:
        try:
            _, _, more = os.wait4(-1, 0)
        except ChildProcessError:
            break
        cpu, largest = cpu + more.ru_utime + more.ru_stime, max(largest, more.ru_maxrss)
    together = watch.stop()
    others = busy.others(cpu + time.process_time())
    return Usage(cpu, wall, largest * 1024e-9, together * 1e-9, others, child.returncode)


def measure_call(call: Callable[[], Any]) -> Usage:
    """Time something in this process; memory is not measured."""
    busy, cpu, wall = Busy(), time.process_time(), time.perf_counter()
    call()
    used = time.process_time() - cpu
    return Usage(used, time.perf_counter() - wall, 0.0, 0.0, busy.others(used))


def quietest(run: Callable[[], Usage], attempts: int) -> Usage:
    """Repeat a measurement while others disturb it, at most `attempts` times; the least disturbed one."""
    found: list[Usage] = []
    for _ in range(max(1, attempts)):
        found.append(run())
        if found[-1].others < QUIET:
            break
        print(f"  others kept {found[-1].others:.2f} cores busy: {found[-1].cpu:.1f} CPU s", file=sys.stderr)
    return min(found, key=lambda usage: usage.others)


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> str:
    """Rows as a Markdown table: texts to the left, numbers to the right, nothing where there is none."""
    if not rows:
        return ""
    names = list(columns or dict.fromkeys(key for row in rows for key in row))

    def text(value: Any) -> str:
        if value is None or (isinstance(value, float) and value != value):
            return "–"
        if isinstance(value, float):
            size = abs(value)
            return f"{value:.{0 if size >= 1000 else 1 if size >= 10 else 2 if size >= 0.1 else 3}f}"
        return str(value)

    cells = [[text(row.get(name)) for name in names] for row in rows]
    right = [all(isinstance(row.get(name), int | float | None) for row in rows) for name in names]
    widths = [max(len(name), *(len(line[i]) for line in cells)) for i, name in enumerate(names)]

    def line(values: Sequence[str]) -> str:
        aligned = (v.rjust(w) if r else v.ljust(w) for v, w, r in zip(values, widths, right, strict=True))
        return f"| {' | '.join(aligned)} |"

    rule = "|".join("-" * (w + 1) + (":" if r else "-") for w, r in zip(widths, right, strict=True))
    return "\n".join([line(names), f"|{rule}|", *map(line, cells)])


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(asdict(_supervise(sys.argv[3:], sys.argv[2]))))
