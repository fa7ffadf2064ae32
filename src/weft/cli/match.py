"""weft match."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weft.cli.options import keep_options, settings_options
from weft.session.foreign_settings import ForeignTomogramSettings
from weft.session.match_inputs import MatchingSettings

if TYPE_CHECKING:
    from weft.session.tomogram_source import TomogramSource

app = typer.Typer(rich_markup_mode=None)


@app.command()
@settings_options(MatchingSettings, into="settings")
@settings_options(ForeignTomogramSettings, into="foreign", skip=("hand",))
def match(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SESSION | TOMOGRAM.mrc",
            help="A session of tilt series, or a tomogram that any program has made.",
            show_default=False,
        ),
    ],
    only: Annotated[str | None, typer.Option(metavar="GLOB", help="Only series whose name matches.")] = None,
    both_hands: Annotated[
        bool,
        typer.Option(
            "--both-hands",
            help="Afterwards score every candidate with either hand, and judge which it is.",
        ),
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Of a tomogram: where to write [default: matching/ beside it]."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    workers: Annotated[int | None, typer.Option(min=0, help="Processes; 0 works in this one.")] = None,
    retry: Annotated[bool, typer.Option("--retry", help="Also what failed by a fault of its own.")] = False,
    settings: Any = None,
    foreign: Any = None,
) -> None:
    """Find a known structure in tomograms; `weft candidates` takes what was found.

    Of a session, options are kept in weft.toml. Of a single tomogram give its tilts, too:
    `weft match tomo.mrc --tilts tomo.tlt --defocus tomo.defocus --template t.mrc --particle-diameter 250`.
    """
    from weft.errors import RequestError

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if source.is_file():
        raise typer.Exit(_tomogram(source, settings, foreign, output, both_hands, device))
    if not source.is_dir():
        raise RequestError(f"{source}: there is no such session or tomogram.")
    if foreign or output is not None:
        given = f"--{next(iter(foreign)).replace('_', '-')}" if foreign else "--output"
        raise RequestError(f"{given} is about a single tomogram; a session knows it.")
    raise typer.Exit(_session(source, settings, only, both_hands, device, workers, retry))


def _session(
    root: Path,
    settings: dict[str, Any],
    only: str | None,
    both_hands: bool,
    device: str,
    workers: int | None,
    retry: bool,
) -> int:
    from weft.cli.progress import show_progress, summary
    from weft.errors import RequestError
    from weft.session.both_hands import judge_session
    from weft.session.session import open as open_session

    opened = open_session(root)
    for key in ("template", "mask"):
        if settings.get(key):
            # what is named on the command line lies where the person is
            paths = settings[key] if key == "template" else (settings[key],)
            absolute = tuple(str(Path(path).expanduser().absolute()) for path in paths)
            settings[key] = absolute if key == "template" else absolute[0]
    if settings:
        keep_options(opened.root, "matching", settings)
        opened = open_session(root)
    if not opened.settings.get(MatchingSettings).template:
        raise RequestError("which structure? Give --template FILE; `weft template create` makes one.")
    with show_progress() as progress:
        report = opened.run(
            steps=["match", "candidates"],
            only=only,
            device=device,
            workers=workers,
            retry=retry,
            progress=progress,
        )
    typer.echo(summary(report, opened.root))
    code = report.exit_code
    if both_hands:
        code = max(code, judge_session(open_session(root), only, typer.echo))
    return code


def _tomogram(
    path: Path,
    given: dict[str, Any],
    foreign: dict[str, Any],
    output: Path | None,
    both_hands: bool,
    device: str,
) -> int:
    from weft.cli.volumes import checked
    from weft.session.both_hands import judge_tomogram
    from weft.session.candidate_files import FOLDER, write_candidates
    from weft.session.matching import match_tomogram
    from weft.session.tomogram_source import foreign_tomogram
    from weft.session.work import resolve_device

    # the hand is counted by the signs of the file of angles, not by those of our geometry
    hand = given.pop("hand", "auto")
    settings = checked(MatchingSettings, given)
    if hand != "auto":
        foreign["hand"] = int(hand)
    known = checked(ForeignTomogramSettings, foreign)
    source: TomogramSource = foreign_tomogram(path, known)
    for note in source.notes:
        typer.echo(f"note: {note}")
    folder = output or path.parent / FOLDER
    root = Path.cwd()
    job, _ = match_tomogram(
        source, settings, folder, root=root, device=resolve_device(device), progress=_shown()
    )
    found = write_candidates(job)
    typer.echo(f"{source.name}: {len(found)} candidates; {job}")
    return judge_tomogram(source, settings, job, root, typer.echo) if both_hands else 0


def _shown() -> Callable[[float, float], None]:
    """A line whenever another twentieth is done."""
    from weft.cli.progress import duration

    last = [0.0]

    def show(fraction: float, left: float) -> None:
        if fraction >= last[0] + 0.05 or not last[0]:
            last[0] = fraction
            typer.echo(f"{100 * fraction:.0f} % done, {duration(left)} left", err=True)

    return show
