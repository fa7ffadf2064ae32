"""The command line: what it prints, what it returns, and that it says what is wrong in one sentence."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer

from weft.cli import COMMANDS, main
from weft.cli.options import settings_options
from weft.session.input import InputSettings
from weft.session.session import Session

NewSession = Callable[..., Session]
PHYSICS = ["--pixel-size", "1.5", "--voltage", "300", "--cs", "2.7", "--amplitude", "0.07", "--dose", "4"]


@pytest.fixture
def run_weft(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Call the command line; exit code, stdout, stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        out = capsys.readouterr()
        return code, out.out, out.err

    return call


@pytest.fixture
def motion_done(new_session: NewSession) -> Session:
    session = new_session()
    session.run(workers=0, threads=1)
    return session


def test_help_answers_fast_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from weft.cli import main; main(['--help']);"
        "print([m for m in ('torch', 'numpy', 'pydantic', 'dask', 'rich') if m in sys.modules])"
    )
    times = []
    for _ in range(3):
        begin = time.perf_counter()
        out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        times.append(time.perf_counter() - begin)
    assert out.stdout.rstrip().endswith("[]")
    # 0.4 s is promised; 0.06 s is measured on an idle core, and the machine that tests may be busy
    assert min(times) < 0.4
    for command in COMMANDS:
        assert f"  {command}" in out.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(run_weft: Any, command: str) -> None:
    code, out, _ = run_weft(command, "--help")
    assert code == 0
    assert out.startswith(f"Usage: weft {command}")
    help_text = out.split("Options:")[0]
    assert len(help_text) > 60


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_explains_itself(command: str) -> None:
    import importlib

    app = importlib.import_module(COMMANDS[command][0]).app
    for registered in app.registered_commands:
        function = registered.callback
        for parameter in inspect.signature(function, eval_str=True).parameters.values():
            infos = [m for m in getattr(parameter.annotation, "__metadata__", ()) if hasattr(m, "help")]
            info = infos[0] if infos else parameter.default
            assert getattr(info, "help", None), f"weft {command}: {parameter.name} has no help"


def test_new_makes_a_session_and_says_what_next(run_weft: Any, tiny_movies: Path, tmp_path: Path) -> None:
    code, out, _ = run_weft(
        "new",
        tmp_path / "s",
        "--frames",
        tiny_movies / "frames" / "*.tif",
        *PHYSICS,
        "--bin",
        "1.5",
        "--recursive",
    )
    assert code == 0
    assert "3 movies" in out
    assert f"weft run {tmp_path / 's'}" in out
    settings = Session(tmp_path / "s").settings
    assert settings.input.recursive is True
    assert settings.plain()["average"]["bin"] == 1.5


def test_new_names_the_physics_that_is_missing(run_weft: Any, tmp_path: Path) -> None:
    code, _, error = run_weft("new", tmp_path / "s", "--frames", "x", "--voltage", "300")
    assert code == 2
    assert error == "weft: weft new needs --pixel-size, --cs, --amplitude, --dose.\n"
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "/nowhere"], "not a Weft session"),
        (["nonsense"], "No such command"),
        (["run"], "Missing argument"),
        (["new", "s", "--frames", "a", "b.tif"], "Quote patterns"),
        (["new", "s", "--voltage", "high"], "--voltage: 'high' is not allowed, it must be a number, > 0"),
        (["select", "/nowhere", "--defocus", "5"], "not a Weft session"),
    ],
)
def test_wrong_requests_are_one_sentence_and_code_2(
    run_weft: Any, arguments: list[str], message: str
) -> None:
    code, _, error = run_weft(*arguments)
    assert code == 2
    assert message in error
    assert error.count("\n") == 1
    assert error.startswith("weft: ")


def test_debug_shows_where_it_happened(run_weft: Any) -> None:
    from weft.errors import SessionError

    with pytest.raises(SessionError):
        run_weft("run", "/nowhere", "--debug")


def test_run_prints_plain_lines_and_a_summary(run_weft: Any, new_session: NewSession) -> None:
    session = new_session()
    code, out, error = run_weft("run", session.root, "--workers", "0", "--steps", "motion")
    assert code == 0
    assert "[3/3] movie_002: done in" in error
    assert "/h" in error
    assert "left)" in error
    assert "3 done, 0 already up to date, 0 failed" in out
    code, out, error = run_weft("run", session.root, "--workers", "0", "--steps", "motion")
    assert "0 done, 3 already up to date" in out


def test_run_with_failures_says_why_and_returns_1(
    run_weft: Any, new_session: NewSession, tmp_path: Path
) -> None:
    (tmp_path / "frames").mkdir()
    (tmp_path / "frames" / "bad.tif").write_bytes(b"")
    session = new_session(frames=tmp_path / "frames" / "*.tif")
    code, out, _ = run_weft("run", session.root, "--workers", "0", "-q")
    assert code == 1
    assert "failed: bad: " in out
    assert "1 failed" in out
    assert "--retry" in out
    code, out, _ = run_weft("status", session.root)
    assert code == 0
    assert "failed      1" in out
    assert "failed: bad: " in out


def test_set_changes_the_file_before_the_run(run_weft: Any, new_session: NewSession) -> None:
    session = new_session()
    code, _, _ = run_weft(
        "run", session.root, "--workers", "0", "--only", "movie_000", "--set", "ctf.range_max=6.5", "-q"
    )
    assert code == 0
    assert session.settings.plain()["ctf"]["range_max"] == 6.5
    code, _, error = run_weft("run", session.root, "--set", "ctf.range_max:6")
    assert code == 2
    assert "section.key=value" in error


def test_status_and_show_for_programs(run_weft: Any, motion_done: Session) -> None:
    _, out, _ = run_weft("status", motion_done.root, "--json")
    status = json.loads(out)
    assert status["items"]["total"] == 3
    assert status["items"]["done"] == 3
    assert status["items"]["failed"] == 0
    assert status["running"] is None
    _, out, _ = run_weft("show", motion_done.root, "movie_001", "--json")
    shown = json.loads(out)
    assert shown["metrics"]["pixel_size"] == 1.5
    assert shown["states"]["motion"]["state"] == "done"
    _, out, _ = run_weft("show", motion_done.root, "movie_001")
    assert "motion_total" in out
    assert str(motion_done.root / "average" / "movie_001.mrc") in out
    code, _, error = run_weft("show", motion_done.root, "movie_9")
    assert code == 2
    assert "no item 'movie_9'" in error


def test_settings_lists_explains_and_changes(run_weft: Any, motion_done: Session) -> None:
    _, out, _ = run_weft("settings", motion_done.root)
    assert "[ctf]" in out
    _, out, _ = run_weft("settings", motion_done.root, "input.voltage")
    assert out.startswith("input.voltage = 300.0 kV\nAcceleration voltage")
    _, out, _ = run_weft("settings", motion_done.root, "ctf.range_max", "6.5")
    assert "3 items became stale (ctf)" in out
    _, out, _ = run_weft("settings", motion_done.root, "ctf.range_max", "--json")
    assert json.loads(out) == 6.5
    code, _, error = run_weft("settings", motion_done.root, "ctf.range_max", "-6")
    assert code == 2
    assert "-6" in error
    code, _, error = run_weft("settings", motion_done.root, "nonsense")
    assert code == 2


def test_select_writes_what_it_chose(run_weft: Any, motion_done: Session) -> None:
    from weft.formats.star import read_star

    star = motion_done.root / "micrographs_selected.star"
    code, out, _ = run_weft("select", motion_done.root, "--exclude", "movie_001")
    assert code == 0
    assert "2 of 3 items selected" in out
    assert len(read_star(star)["micrographs"]) == 2
    _, out, _ = run_weft("select", motion_done.root, "--motion", "1e6:", "--json")
    assert json.loads(out)["selected"] == []
    _, out, _ = run_weft("select", motion_done.root, "--include", "movie_002")
    assert "motion 1e+06: Å: 0 pass, 3 lie outside; 1 left out by this alone" in out
    assert "1 of 3 items selected" in out
    run_weft("select", motion_done.root, "--reset")
    assert len(read_star(star)["micrographs"]) == 3
    assert motion_done.run(workers=0, threads=1).excluded == []


def test_excluded_items_are_left_alone_by_a_run(run_weft: Any, motion_done: Session) -> None:
    run_weft("select", motion_done.root, "--exclude", "movie_001")
    motion_done.set("ctf.range_max", "6.5")
    report = motion_done.run(workers=0, threads=1)
    assert report.excluded == ["movie_001"]
    assert sorted(report.done) == ["movie_000", "movie_002"]
    status = motion_done.status()["movie_001"]
    assert status.state == "stale"  # excluded, and stale: two different things
    assert status.verdict.reasons == ("excluded by hand",)


def test_export_names_files_as_the_project_sees_them(
    run_weft: Any, motion_done: Session, tmp_path: Path
) -> None:
    from weft.formats.star import read_star

    star = tmp_path / "out" / "m.star"
    code, out, _ = run_weft(
        "export", "micrographs", motion_done.root, "-o", star, "--project", motion_done.root.parent
    )
    assert code == 0
    assert "3 micrographs" in out
    assert read_star(star)["micrographs"].strings("rlnMicrographName")[0] == "session/average/movie_000.mrc"
    code, _, _ = run_weft("export", "motion", motion_done.root, "-o", tmp_path / "motion")
    assert code == 0
    ours = (motion_done.root / "average" / "movie_000.star").read_text()
    assert (tmp_path / "motion" / "movie_000.star").read_text() == ours


def test_reindex(run_weft: Any, motion_done: Session) -> None:
    (motion_done.root / "index.sqlite").unlink()
    code, out, _ = run_weft("reindex", motion_done.root)
    assert code == 0
    assert "3 records" in out
    assert (motion_done.root / "index.sqlite").is_file()


def test_doctor_looks_at_everything(run_weft: Any, tmp_path: Path) -> None:
    code, out, _ = run_weft("doctor", tmp_path, "--json")
    findings = json.loads(out)
    names = {finding["name"] for finding in findings}
    assert {"python", "packages", "machine", "torch", "cuda", "fft", "disk", "relion"} <= names
    assert code == (1 if any(finding["state"] == "bad" for finding in findings) else 0)
    assert {finding["state"] for finding in findings} <= {"ok", "note", "bad"}


def test_options_are_made_from_the_model() -> None:
    seen: dict[str, Any] = {}
    app = typer.Typer()

    @app.command()
    @settings_options(InputSettings, names={"dose_per_frame": "dose"}, skip={"frames"})
    def command(place: Annotated[Path, typer.Argument(help="x")], settings: Any = None) -> None:
        seen.update(settings, place=place)

    typer.main.get_command(app).main(
        ["here", "--dose", "1.5", "--gain-flip-x", "--no-recursive", "--eer-frames", "none"],
        standalone_mode=False,
    )
    # what was not given is not there, and what was given is checked and converted
    assert seen == {
        "place": Path("here"),
        "dose_per_frame": 1.5,
        "gain_flip_x": True,
        "recursive": False,
    }


@pytest.mark.slow
def test_the_demo_runs_and_is_close_to_the_truth(
    run_weft: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, _ = run_weft("demo", tmp_path / "demo", "--json")
    assert code == 0
    rows = json.loads(out)
    assert len(rows) == 4
    for row in rows:
        assert row["track_corrected"] < 0.5 * row["track_uncorrected"]
        assert abs(row["defocus"] - row["defocus_true"]) < 300.0  # Å; a depth of focus at 4 Å is 800 Å
    shown: list[Path] = []
    monkeypatch.setattr("weft.cli.live.show", lambda root, port: shown.append(root))
    code, out, _ = run_weft("demo", tmp_path / "demo", "--serve")
    assert (code, shown) == (0, [tmp_path / "demo" / "session"])
    assert "4 already up to date" in out


def test_a_terminal_gets_a_bar_with_rate_and_time_left(new_session: NewSession) -> None:
    import os

    session = new_session()
    terminal, other_end = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "weft", "run", str(session.root), "--workers", "0", "--steps", "motion"],
        stdout=subprocess.PIPE,
        stderr=other_end,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
    )
    os.close(other_end)
    shown = b""
    try:
        while chunk := os.read(terminal, 4096):
            shown += chunk
    except OSError:  # the other end has closed: Linux's way to say so
        pass
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0, shown
    assert b"3 done" in out
    for part in ("3/3", "━", "/h", "left"):
        assert part in shown.decode()
