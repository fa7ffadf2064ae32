"""weft new."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weft.cli.options import settings_options
from weft.session.input import InputSettings

if TYPE_CHECKING:
    from weft.session.session import Session

app = typer.Typer(rich_markup_mode=None, add_completion=False)


def _show_series(made: Session) -> None:
    """What the mdocs say."""
    from weft.session.lock import SessionLock
    from weft.session.series_book import SeriesBook
    from weft.session.series_summary import describe

    with SessionLock(made.root):
        found = SeriesBook(made).look(made.movie_sources({}), {}).found
    typer.echo(describe(found))


@app.command()
@settings_options(InputSettings, into="settings", names={"dose_per_frame": "dose"})
def new(
    session: Annotated[Path, typer.Argument(help="Folder of the session; it is made.")],
    bin: Annotated[
        str | None, typer.Option("--bin", help="Bin the averages by this factor ([average] bin).")
    ] = None,
    settings: Any = None,
) -> None:
    """Make a session: a folder with weft.toml, in which every setting is explained.

    Pixel size, voltage, spherical aberration, amplitude contrast and dose have no defaults.
    """
    from weft.errors import SettingsError
    from weft.session.session import new as make

    sections: dict[str, Any] = dict(settings)
    if bin is not None:
        from weft.movies.average import AverageSettings
        from weft.session.fields import parse_value

        sections["average"] = {"bin": parse_value(AverageSettings, "bin", bin, "--bin")}
    required = [name for name, field in InputSettings.model_fields.items() if field.is_required()]
    missing = [name for name in required if name not in settings]
    if missing:
        flags = [{"dose_per_frame": "dose"}.get(name, name).replace("_", "-") for name in missing]
        raise SettingsError(f"weft new needs {', '.join('--' + flag for flag in flags)}.")
    if not settings.get("frames") and not settings.get("mdoc"):
        raise SettingsError("weft new needs --frames, or --mdoc for tilt series that come as stacks.")
    made = make(session, **sections)
    given = made.settings.input
    count = len(made)
    what = "tilt" if given.of_tilts else "movie"
    typer.echo(f"made {session} with {count} {what}{'s' if count != 1 else ''}")
    if count == 0 and given.frames:
        typer.echo(f"no file matches {', '.join(given.frames)} yet", err=True)
    if given.of_tilts:
        _show_series(made)

    typer.echo(f"settings: {session / 'weft.toml'}")
    typer.echo(f"next:     weft run {session}, or weft live {session} while they come")
