"""weft report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from weft.cli.options import SessionArgument

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def report(
    session: SessionArgument,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The HTML file; reports/report.html in the session by default."),
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json",
            help="Print the numbers for programs, and write the EMPIAR image sets beside the report.",
        ),
    ] = False,
) -> None:
    """Write what the session has given into one HTML file: figures, filters, pictures, failures, settings.

    The file needs nothing else and loads nothing: it can be sent, printed and kept. With --json, the image
    sets for an EMPIAR deposition are also written as a file of the same name that ends in .empiar.json.
    """
    import json

    from weft.formats.atomic import atomic_write_text
    from weft.session.report import make_report
    from weft.session.session import open as open_session

    path, made = make_report(open_session(session), output)
    if not as_json:
        typer.echo(str(path))
        return
    beside = path.with_suffix(".empiar.json")
    text = json.dumps({"imagesets": made.imagesets}, indent=1, ensure_ascii=False)
    atomic_write_text(beside, text + "\n")
    files = {"report": str(path), "empiar": str(beside)}
    typer.echo(json.dumps({**files, **made.to_dict()}, indent=1, ensure_ascii=False))
