"""Arguments of commands that read particles as tilt images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["DatadirOption", "FolderArgument", "ParticlesOption", "SourceArgument", "TomogramsOption"]

SourceArgument = Annotated[
    Path,
    typer.Argument(
        metavar="STAR | OPTIMISATION_SET",
        help="Particles as tilt images, of Weft, Warp, M, RELION, WarpTools, NextPYP, cryoSRPNT or cisTEM.",
        show_default=False,
    ),
]
FolderArgument = Annotated[
    Path, typer.Argument(metavar="DIR", help="The folder of a training.", show_default=False)
]
DatadirOption = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Where the stacks are that the STAR file names.")
]
TomogramsOption = Annotated[
    Path | None,
    typer.Option(metavar="STAR", help="The table of tomograms, unless an optimisation set names it."),
]
ParticlesOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Only these: names or indices (from 0), one a line, or an array in .npy or .pkl.",
    ),
]
