"""weft import."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from weft.cli.options import SessionArgument, settings_options
from weft.session.alignment_import import AlignmentImportSettings
from weft.session.pick_conversion import PickImportSettings

app = typer.Typer(
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Take in what other programs have found: picks, alignments of tilt series, projects of Warp.",
)


@app.callback()
def _group() -> None:
    """Take in what other programs have found: picks, alignments of tilt series, projects of Warp."""


@app.command()
@settings_options(AlignmentImportSettings)
def alignments(
    session: SessionArgument,
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="PATH...",
            help="Files or folders of IMOD, AreTomo, Dynamo, RELION or Warp.",
            show_default=False,
        ),
    ] = None,
    only: Annotated[str | None, typer.Option(metavar="GLOB", help="Only series whose name matches.")] = None,
    remove: Annotated[
        bool, typer.Option("--remove", help="Use Weft's own alignment again, for all series or --only.")
    ] = False,
    settings: Any = None,
) -> None:
    """Use alignments made by IMOD, AreTomo, Dynamo, RELION 5 or Warp instead of Weft's own.

    `weft run` then does anew what depends on them. Files are matched with series by their names, and views
    with tilts by the movies' names, by number or by angle; the table says how.
    """
    from weft.errors import RequestError
    from weft.session.alignment_import import import_alignments, remove_alignments
    from weft.session.session import open as open_session

    opened = open_session(session)
    if remove == bool(paths):
        raise RequestError("give the files or folders of alignments, or --remove.")
    if remove:
        names = remove_alignments(opened, only)
        typer.echo(
            f"Weft's own alignment is used again for {', '.join(names)}." if names else "None to remove."
        )
        return
    report = import_alignments(opened, paths or [], AlignmentImportSettings(**settings), only)
    typer.echo(report.describe())
    raise typer.Exit(report.exit_code)


@app.command()
def warp(
    session: SessionArgument,
    project: Annotated[
        Path,
        typer.Argument(
            metavar="PROJECT", help="Its warp_tiltseries.settings, or the folder with it.", show_default=False
        ),
    ],
    only: Annotated[str | None, typer.Option(metavar="GLOB", help="Only series whose name matches.")] = None,
) -> None:
    """Go on with a project of WarpTools: its movies, tilt series, alignment and hand.

    Makes the session where there is none.
    """
    from weft.session.warp_import import import_warp

    report = import_warp(session, project, only)
    typer.echo(report.describe())
    raise typer.Exit(report.exit_code)


@app.command()
@settings_options(PickImportSettings, skip={"flip_y"})
def picks(
    session: SessionArgument,
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="PATH...",
            help="Files of RELION, Warp, crYOLO, EMAN, topaz, XMIPP or cryoSPARC, or folders of one kind.",
            show_default=False,
        ),
    ],
    name: Annotated[
        str | None,
        typer.Option(
            help="What to call them in the session; the program's name by default.", show_default=False
        ),
    ] = None,
    only: Annotated[str | None, typer.Option(metavar="GLOB", help="Only items whose name matches.")] = None,
    flip_y: Annotated[
        bool | None,
        typer.Option(
            "--flip-y/--no-flip-y",
            help="Those micrographs are upside down against Weft's, as cryoSPARC's of TIFF movies are.",
            show_default=False,
        ),
    ] = None,
    settings: Any = None,
) -> None:
    """Take in particles that another program has picked in the same micrographs.

    Micrographs are matched with movies by their names; additions such as _aligned_mic_DW do not matter.
    """
    from weft.session.pick_import import import_picks
    from weft.session.session import open as open_session

    report = import_picks(
        open_session(session), paths, PickImportSettings(flip_y=flip_y, **settings), name=name, only=only
    )
    typer.echo(report.describe())
    raise typer.Exit(report.exit_code)
