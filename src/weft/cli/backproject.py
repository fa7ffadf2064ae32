"""weft backproject."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from weft.cli.options import settings_options
from weft.cli.particle_options import DatadirOption, ParticlesOption, SourceArgument, TomogramsOption
from weft.particles.backprojection import BackprojectionSettings

app = typer.Typer(rich_markup_mode=None)

#: A map that is brighter inside than outside by less than this says nothing about the images' sign.
_CLEAR = 0.3


@app.command()
@settings_options(BackprojectionSettings, into="settings")
def backproject(
    source: SourceArgument,
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE.mrc",
            help="The map; halves, FSC and a picture go beside it.",
            show_default=False,
        ),
    ],
    datadir: DatadirOption = None,
    tomograms: TomogramsOption = None,
    particles: ParticlesOption = None,
    first: Annotated[
        int | None, typer.Option(min=2, metavar="N", help="Only the first N particles of those.")
    ] = None,
    invert: Annotated[
        bool | None,
        typer.Option(
            "--invert/--no-invert",
            help="Density is dark in the images, or bright [default: so that the map is brighter inside].",
            show_default=False,
        ),
    ] = None,
    mask: Annotated[
        Path | None, typer.Option(metavar="MAP", help="Soft mask of the FSC, instead of a sphere.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the half-sets, where there is no rlnRandomSubset.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    settings: Any = None,
) -> None:
    """Reconstruct particles from their tilt images, in two halves with their FSC.

    Poses, CTF, dose and tilts are taken as the file gives them, and nothing is aligned.
    """
    from weft.cli.average import resolution_text
    from weft.cli.progress import counted
    from weft.errors import RequestError
    from weft.formats.tilt_particles import read_tilt_particles
    from weft.session.heterogeneity.backprojection import backproject, read_mask, write_backprojection
    from weft.session.heterogeneity.choice import choose_particles
    from weft.session.work import resolve_device

    if output.suffix != ".mrc":
        raise RequestError(f"--output {output}: name a map, FILE.mrc.")
    if not source.is_file():
        raise RequestError(f"{source}: there is no such STAR file.")
    where = resolve_device(device)
    chosen = read_tilt_particles(source, datadir=datadir, tomograms=tomograms)
    if particles is not None:
        chosen = chosen.select(choose_particles(particles, chosen))
    if first is not None:
        chosen = chosen.select(slice(0, first))
    soft = None if mask is None else read_mask(mask, chosen.box)
    facts = ["CTF multiplied already" if chosen.premultiplied else "CTF" if chosen.has_ctf else "no CTF"]
    dose = float(chosen.dose.max(initial=0.0))
    facts.append(f"dose up to {dose:.4g} e/Å²" if dose else "no dose")
    typer.echo(
        f"{len(chosen)} particles, {chosen.images} images, box {chosen.box} px of {chosen.pixel_size:g} Å "
        f"({chosen.flavour}, {', '.join(facts)})"
    )
    result = backproject(
        chosen,
        BackprojectionSettings(**settings),
        mask=soft,
        invert=invert,
        seed=seed,
        device=where,
        progress=counted("particles"),
    )
    paths = write_backprojection(result, output)
    if invert is None:
        seen = "dark in the images: the map is inverted" if result.inverted else "bright in the images"
        typer.echo(f"density is {seen} (contrast {result.contrast:+.2f})")
        if abs(result.contrast) < _CLEAR:
            typer.echo("that is too weak to be sure: look at the map, and choose --invert or --no-invert")
    fsc, (one, two) = result.average.fsc, result.average.particles
    typer.echo(
        f"resolution {resolution_text(fsc, 0.143)} at FSC 0.143, {resolution_text(fsc, 0.5)} at 0.5, from "
        f"{one} + {two} particles"
    )
    typer.echo(f"map: {paths['map']}")
    typer.echo(f"look at: {paths['picture']}")
    typer.echo(f"{result.images} images in {result.seconds:.2f} s")
    if result.failed:
        for name, reason in result.failed.items():
            typer.echo(f"weft: {name}: {reason}", err=True)
        typer.echo(f"weft: {len(result.failed)} of {len(chosen)} particles were left out", err=True)
        raise typer.Exit(1)
