"""weft new."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from weft.cli.options import settings_options
from weft.session.input import InputSettings

app = typer.Typer(rich_markup_mode=None, add_completion=False)


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
    made = make(session, **sections)
    count = len(made)
    typer.echo(f"made {session} with {count} movie{'s' if count != 1 else ''}")
    if count == 0:
        typer.echo(f"no file matches {', '.join(made.settings.input.frames)} yet", err=True)

    typer.echo(f"settings: {session / 'weft.toml'}")
    typer.echo(f"next:     weft run {session}, or weft live {session} while they come")
