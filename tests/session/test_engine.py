"""Lost workers, items that kill them, stopping: what dask does for us and what we add."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from weft.session.engine import Crew, crew_size, run_tasks
from weft.session.input import EngineSettings
from weft.session.work import Outcome, Task


def _task(item: str, root: Path) -> Task:
    return Task(str(root), "", item, "movie", (), {})


def _deadly(task: Task) -> Outcome:
    """Stands for a decoder that crashes on one file."""
    if task.item == "killer":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.05)
    return Outcome(task.item, ("x",))


def _deadly_once(task: Task) -> Outcome:
    """Stands for a machine that ran out of memory at a bad moment."""
    flag = Path(task.root) / f"{task.item}.seen"
    if task.item.startswith("unlucky") and not flag.exists():
        flag.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return Outcome(task.item, ("x",))


def _threads(task: Task) -> Outcome:
    import torch

    from weft.session.work import set_threads

    set_threads(task.threads)
    return Outcome(task.item, (os.environ["OMP_NUM_THREADS"], str(torch.get_num_threads())))


def test_a_killer_is_set_aside_and_the_others_go_on(tmp_path: Path) -> None:
    items = ["a", "killer", "b", "c", "d"]
    outcomes: list[Outcome] = []
    notes: list[str] = []
    run_tasks(
        [_task(item, tmp_path) for item in items],
        Crew(2, 1),
        EngineSettings(attempts=2),
        tmp_path,
        outcomes.append,
        lambda task, deaths: Outcome(task.item, (), f"died {deaths} times"),
        notes.append,
        work=_deadly,
    )
    assert {o.item: o.error for o in outcomes} == {
        "a": "",
        "b": "",
        "c": "",
        "d": "",
        "killer": "died 2 times",
    }
    assert notes == ["killer: its worker process died, trying again"]


def test_a_lost_worker_costs_a_retry(tmp_path: Path) -> None:
    outcomes: list[Outcome] = []
    run_tasks(
        [_task(item, tmp_path) for item in ("a", "unlucky1", "b", "unlucky2")],
        Crew(2, 1),
        EngineSettings(),
        tmp_path,
        outcomes.append,
        lambda task, deaths: pytest.fail(f"{task.item} was given up"),
        work=_deadly_once,
    )
    assert sorted(o.item for o in outcomes) == ["a", "b", "unlucky1", "unlucky2"]
    assert all(o.done for o in outcomes)


def test_workers_have_the_threads_that_were_asked_for(tmp_path: Path) -> None:
    outcomes: list[Outcome] = []
    task = Task(str(tmp_path), "", "a", "movie", (), {}, threads=3)
    run_tasks(
        [task],
        Crew(1, 3),
        EngineSettings(),
        tmp_path,
        outcomes.append,
        lambda task, deaths: Outcome(task.item),
        work=_threads,
    )
    assert outcomes[0].done == ("3", "3")


def test_tasks_are_read_one_by_one(tmp_path: Path) -> None:
    """What a generator yields late can depend on what has ended: the watcher's newest-first needs it."""
    ended: list[str] = []
    given: list[tuple[str, int]] = []

    def tasks() -> object:
        for item in "abcd":
            given.append((item, len(ended)))
            yield _task(item, tmp_path)

    run_tasks(
        tasks(),  # type: ignore[arg-type]
        Crew(1, 1),
        EngineSettings(),
        tmp_path,
        lambda outcome: ended.append(outcome.item),
        lambda task, deaths: Outcome(task.item),
        work=_deadly_once,
    )
    assert given == [("a", 0), ("b", 1), ("c", 2), ("d", 3)]


def test_the_crew_fits_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weft.session.engine.available_cores", lambda: 16)
    monkeypatch.setattr("os.sysconf", lambda name: {"SC_PHYS_PAGES": 1 << 24, "SC_PAGE_SIZE": 4096}[name])
    auto = EngineSettings()
    assert crew_size(auto, 100) == Crew(4, 4)
    assert crew_size(auto, 2) == Crew(2, 8)
    assert crew_size(auto, 100, gpus=2) == Crew(2, 8)
    assert crew_size(EngineSettings(workers=0), 5) == Crew(0, 16)
    assert crew_size(EngineSettings(workers=3, threads=2), 100) == Crew(3, 2)
    monkeypatch.setattr("os.sysconf", lambda name: {"SC_PHYS_PAGES": 1 << 21, "SC_PAGE_SIZE": 4096}[name])
    assert crew_size(auto, 100).workers == 2  # 8 GiB hold no more


def test_a_script_without_a_main_guard_is_not_run_again_by_workers(tmp_path: Path) -> None:
    import subprocess
    import sys

    script = tmp_path / "script.py"
    script.write_text(
        "from pathlib import Path\n"
        "from weft.session.engine import Crew, run_tasks\n"
        "from weft.session.input import EngineSettings\n"
        "from weft.session.work import Outcome, Task\n"
        f"root = Path({str(tmp_path)!r})\n"
        "with (root / 'runs').open('a') as f: f.write('x')\n"
        "run_tasks([Task(str(root), '', 'a', 'movie', (), {})], Crew(1, 1), EngineSettings(), root,\n"
        "          lambda o: print('got', o.item), None, work=lambda task: Outcome(task.item))\n"
    )
    out = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60)
    assert out.stdout == "got a\n", out.stderr
    assert (tmp_path / "runs").read_text() == "x"
