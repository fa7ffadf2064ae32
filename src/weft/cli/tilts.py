"""weft tilts."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weft.cli.options import SessionArgument, keep_options, settings_options
from weft.defocus.tilt_series import TiltCTFSettings
from weft.settings import Settings
from weft.tilts.alignment import AlignmentSettings
from weft.tilts.quality import TiltQualitySettings
from weft.tilts.reconstruction import ReconstructionSettings

if TYPE_CHECKING:
    from weft.session.session import Session

app = typer.Typer(
    rich_markup_mode=None,
    add_completion=False,
    no_args_is_help=True,
    help="Tilt series: import, stack, align, CTF, handedness, tomograms. `weft run` does all of it.",
)

OnlyOption = Annotated[str | None, typer.Option(metavar="GLOB", help="Only series whose name matches.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
WorkersOption = Annotated[int | None, typer.Option(min=0, help="Processes; 0 works in this one.")]
RetryOption = Annotated[bool, typer.Option("--retry", help="Also what failed by a fault of its own.")]


def _run(opened: Session, step: str, only: str | None, device: str, workers: int | None, retry: bool) -> int:
    """Bring the series as far as a step."""
    from weft.cli.progress import show_progress, summary

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with show_progress() as progress:
        report = opened.run(
            steps=[step], only=only, device=device, workers=workers, retry=retry, progress=progress
        )
    typer.echo(summary(report, opened.root))
    return report.exit_code


@app.command("import")
def import_(
    session: SessionArgument,
    mdoc: Annotated[
        list[str] | None,
        typer.Option(help="Folder or pattern of mdocs, .tomostar, STAR files or stacks; kept in weft.toml."),
    ] = None,
    tilt_axis: Annotated[
        float | None, typer.Option(metavar="DEG", help="Tilt axis, if the mdocs do not say it rightly.")
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Every tilt.")] = False,
) -> None:
    """Match mdocs with movies, and show what belongs together and why something does not."""
    from pathlib import Path

    from weft.session import config
    from weft.session.lock import SessionLock
    from weft.session.series_book import SeriesBook
    from weft.session.series_summary import describe
    from weft.session.session import open as open_session

    opened = open_session(session)
    changes = {}
    if mdoc:
        changes["input.mdoc"] = "[" + ", ".join(f'"{Path(m).expanduser().absolute()}"' for m in mdoc) + "]"
    if tilt_axis is not None:
        changes["input.tilt_axis"] = repr(tilt_axis)
    if changes:
        config.edit_file(opened.root, changes)
    with SessionLock(opened.root):
        records = opened.summaries()
        found = SeriesBook(opened).look(opened.movie_sources(records), records).found
    typer.echo(describe(found, verbose=verbose))
    raise typer.Exit(1 if found.problems or not found.tables else 0)


def _stage(name: str, step: str, section: str, model: type[Settings], about: str) -> None:
    """A command that goes as far as one step, with that step's settings as options."""

    @settings_options(model, into="settings")
    def stage(
        session: SessionArgument,
        only: OnlyOption = None,
        device: DeviceOption = "auto",
        workers: WorkersOption = None,
        retry: RetryOption = False,
        settings: Any = None,
    ) -> None:
        from weft.session.session import open as open_session

        opened = open_session(session)
        keep_options(opened.root, section, settings)
        raise typer.Exit(_run(opened, step, only, device, workers, retry))

    app.command(name, help=about)(stage)


_stage(
    "stack",
    "stack",
    "tilts",
    TiltQualitySettings,
    "Correct the motion of all tilts, leave out the bad ones, write the stacks.",
)
_stage(
    "align",
    "align",
    "alignment",
    AlignmentSettings,
    "Align the series by gold beads or by patches, and write IMOD's and AreTomo's files.",
)
_stage("ctf", "tilt_ctf", "tilt_ctf", TiltCTFSettings, "Fit the CTF of all tilts together.")
_stage("reconstruct", "reconstruct", "reconstruction", ReconstructionSettings, "Make the tomograms.")


@app.command()
def handedness(
    session: SessionArgument,
    set_: Annotated[
        str | None, typer.Option("--set", metavar="+1|-1|auto", help="Use this for all series from now on.")
    ] = None,
    only: OnlyOption = None,
    device: DeviceOption = "auto",
    workers: WorkersOption = None,
) -> None:
    """Say which way the defocus goes with the tilt, for each series and for the session.

    Both hands are fitted; the scores stand side by side. +1 means that a positive tilt brings +x of the
    specimen to greater underfocus; RELION's rlnTomoHand is the negative.
    """
    from weft.session.handedness import describe_hands
    from weft.session.session import open as open_session

    opened = open_session(session)
    if set_ is not None:
        opened.set("handedness.hand", set_)
    code = _run(opened, "tilt_ctf", only, device, workers, retry=False)
    typer.echo(describe_hands(opened))
    raise typer.Exit(code)


@app.command()
def exclude(
    session: SessionArgument,
    series: Annotated[str, typer.Argument(help="Name of the series.")],
    tilts: Annotated[
        list[int] | None, typer.Argument(help="Numbers of tilts as `weft show SESSION SERIES` counts them.")
    ] = None,
    angle: Annotated[
        list[float] | None, typer.Option(metavar="DEG", help="Or the tilts closest to these angles.")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep them, whatever they look like.")] = False,
    reset: Annotated[bool, typer.Option("--reset", help="Leave it to Weft again.")] = False,
) -> None:
    """Leave tilts out of a series by hand; `weft run` then redoes what depends on it."""
    from weft.errors import RequestError
    from weft.session.lock import SessionLock
    from weft.session.series_book import SeriesBook
    from weft.session.session import open as open_session

    opened = open_session(session)
    with SessionLock(opened.root):
        book = SeriesBook(opened)
        if series not in book.tables:
            raise RequestError(
                f"{session} has no tilt series {series!r}; there are {', '.join(book.tables)}."
            )
        rows = book.tables[series].tilts
        wanted = list(tilts or ())
        for value in angle or ():
            nearest = min(range(len(rows)), key=lambda i: abs(rows[i].angle - value))
            if abs(rows[nearest].angle - value) > 1.0:
                raise RequestError(f"{series} has no tilt within 1° of {value:g}°.")
            wanted.append(nearest)
        if not wanted:
            raise RequestError("give the numbers of tilts, or --angle.")
        table = book.decide(series, wanted, None if reset else keep)
    for index in wanted:
        row = table.tilts[index]
        word = {True: "kept", False: "left out", None: "left to Weft"}[row.decision]
        typer.echo(f"{series} tilt {index} ({row.angle:g}°): {word}")
