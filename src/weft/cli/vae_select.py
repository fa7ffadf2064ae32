"""weft vae select, weft vae map-back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from weft.cli.options import JsonOption
from weft.cli.particle_options import FolderArgument

if TYPE_CHECKING:
    from weft.session.heterogeneity.selection import Written

__all__ = ["app", "map_back", "select"]

app = typer.Typer(
    rich_markup_mode=None, no_args_is_help=True, help="Choose among the particles of a training."
)


#: Tomograms that are told one by one.
_SHOWN = 20


@app.command()
def select(
    folder: FolderArgument,
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE.star",
            help="Of the input's own kind; with an optimisation set beside it where the input has one.",
            show_default=False,
        ),
    ],
    cluster: Annotated[
        str | None, typer.Option(metavar="N,N", help="Any of these clusters of `weft vae analyze`.")
    ] = None,
    lasso: Annotated[
        str | None, typer.Option(metavar='"X,Y X,Y X,Y"', help="Inside the polygon with these corners.")
    ] = None,
    axes: Annotated[
        str, typer.Option(metavar="A,B", help="Of the lasso: pc1, pc2 ..., umap1, umap2, z0, z1 ...")
    ] = "pc1,pc2",
    label: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE:COLUMN=VALUE",
            help="With this label in a table (CSV, STAR); without FILE in the input. The value is one, "
            "several (1,3) or a range (0.2:0.5); may be given again.",
            show_default=False,
        ),
    ] = None,
    names: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Only these: names or indices (from 0), one a line, or in .npy or .pkl."
        ),
    ] = None,
    exclude: Annotated[Path | None, typer.Option(metavar="FILE", help="Not these, in the same form.")] = None,
    near: Annotated[
        str | None, typer.Option(metavar="PARTICLE", help="Nearest to this one in latent space ...")
    ] = None,
    count: Annotated[int, typer.Option(metavar="N", min=0, help="... so many of them.")] = 0,
    invert: Annotated[bool, typer.Option("--invert", help="All others instead.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write some of a training's particles, by cluster, lasso or label, for RELION, M or another training.

    The file is of the input's own kind, its rows are unchanged. Of several options all must hold.
    """
    from weft.errors import RequestError
    from weft.session.heterogeneity.run_folder import open_run
    from weft.session.heterogeneity.selection import Wanted, write_selection

    try:
        clusters = tuple(int(part) for part in (cluster or "").split(",") if part.strip())
    except ValueError:
        raise RequestError(f"--cluster {cluster}: give numbers, as in 1,3.") from None
    wanted = Wanted(
        cluster=clusters,
        lasso=lasso or "",
        axes=axes,
        label=tuple(label or ()),
        names=names,
        exclude=exclude,
        near=near or "",
        count=count,
        invert=invert,
    )
    written = write_selection(open_run(folder), wanted, output)
    if as_json:
        chosen = written.chosen
        facts = {
            "files": [str(file) for file in written.files],
            "chosen": len(chosen.keep),
            "particles": int(chosen.known.sum()),
            "tomograms": {name: {"chosen": n, "of": of} for name, (n, of) in chosen.tomograms().items()},
            "notes": chosen.notes,
        }
        typer.echo(json.dumps(facts))
        return
    typer.echo(_said(written))


def _said(written: Written) -> str:
    chosen = written.chosen
    lines = [f"note: {note}" for note in chosen.notes]
    lines.append(f"{len(chosen.keep)} of {int(chosen.known.sum())} particles")
    tomograms = chosen.tomograms()
    for name, (n, of) in list(tomograms.items())[:_SHOWN]:
        lines.append(f"  {name}: {n} of {of}")
    if len(tomograms) > _SHOWN:
        lines.append(f"  and {len(tomograms) - _SHOWN} tomograms more")
    return "\n".join([*lines, *map(str, written.files)])


def map_back(
    folder: FolderArgument,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="What is written.", show_default=False)
    ],
    tomogram: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Only this one; may be given again.", show_default=False),
    ] = None,
    session: Annotated[
        Path | None,
        typer.Option(
            metavar="SESSION",
            help="That the particles were cut in: its tomograms are shown, and its page shows the classes.",
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="What the session's page calls it [default: the training's folder].")
    ] = None,
    tilt_axis: Annotated[
        float | None,
        typer.Option(metavar="DEG", help="Without a session, of particles that are rows of images."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show the classes of a training in the tomograms that its particles are from.

    Writes tables of places with classes, and for every tomogram a picture and commands for ChimeraX that put
    the volume of its class at every particle.
    """
    from weft.session.heterogeneity.map_back import map_back as put_back
    from weft.session.heterogeneity.run_folder import open_run
    from weft.session.session import open as open_session

    opened = None if session is None else open_session(session)
    done = put_back(
        open_run(folder),
        output,
        tomogram=tomogram or (),
        session=opened,
        tilt_axis=tilt_axis,
        name=name,
    )
    if as_json:
        facts = {
            "tables": [str(table) for table in done.tables],
            "tomograms": [
                {
                    "name": one.name,
                    "classes": {str(number): n for number, n in one.counts.items()},
                    "commands": str(one.commands),
                    "picture": str(one.picture),
                }
                for one in done.tomograms
            ],
            "notes": done.notes,
        }
        typer.echo(json.dumps(facts))
        return
    for note in done.notes:
        typer.echo(f"note: {note}")
    for one in done.tomograms[:_SHOWN]:
        counts = ", ".join(f"{n} of cluster {number}" for number, n in one.counts.items())
        typer.echo(f"{one.name}: {counts}: {one.commands}")
    if len(done.tomograms) > _SHOWN:
        typer.echo(f"and {len(done.tomograms) - _SHOWN} tomograms more in {output}")
    for table in done.tables:
        typer.echo(table)


app.command("map-back")(map_back)
