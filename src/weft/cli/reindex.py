"""weft reindex."""

from __future__ import annotations

import typer

from weft.cli.options import SessionArgument

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def reindex(session: SessionArgument) -> None:
    """Make index.sqlite and micrographs.star again from the records; nothing is computed."""
    from weft.session.session import open as open_session

    opened = open_session(session)
    count = opened.reindex()
    typer.echo(f"{count} records: {opened.root / 'index.sqlite'}, {opened.root / 'micrographs.star'}")
