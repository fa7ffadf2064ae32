"""weft mask."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from weft.cli.options import settings_options
from weft.matching.mask import MaskSettings

app = typer.Typer(
    rich_markup_mode=None,
    add_completion=False,
    no_args_is_help=True,
    help="Masks for templates: which voxels a score is computed from.",
)


@app.callback()
def _group() -> None:
    """Masks for templates: which voxels a score is computed from."""


@app.command()
@settings_options(MaskSettings)
def create(
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="MRC file to write.")],
    voxel_size: Annotated[
        float | None,
        typer.Option(
            min=0.05, metavar="A", help="Å of the mask's voxels, those of the template; a map tells its own."
        ),
    ] = None,
    map_: Annotated[
        Path | None,
        typer.Option(
            "--map", metavar="FILE", help="Make it from the density of this template; box as the map's."
        ),
    ] = None,
    input_voxel_size: Annotated[
        float | None,
        typer.Option(metavar="A", help="Å of the map's voxels, instead of what its header says."),
    ] = None,
    settings: Any = None,
) -> None:
    """Make a mask: a sphere, an ellipsoid, or what the density of a map takes up, with a soft edge.

    Spheres and ellipsoids are centred on the voxel of index n//2, as templates are.
    """
    from weft.cli.volumes import checked, read_map
    from weft.errors import InputFileError, ItemError, RequestError, SettingsError
    from weft.formats import mrc
    from weft.matching.mask import create_mask, map_mask
    from weft.matching.template import resample

    volume = None
    if map_ is None:
        for name in ("threshold", "extend"):
            if name in settings:
                raise RequestError(f"--{name} is for a mask from a map: give --map.")
        if voxel_size is None:
            raise RequestError("give the size of the mask's voxels with --voxel-size.")
    else:
        if "radius" in settings:
            raise RequestError("give either --radius or --map.")
        volume, found = read_map(map_, input_voxel_size)
        if len(set(volume.shape)) != 1:
            raise InputFileError(
                map_,
                f"it is no cube, it has {' × '.join(map(str, volume.shape))} voxels (z, y, x): pad it",
            )
        if not bool(volume.isfinite().all()):
            raise InputFileError(map_, "some of its voxels are not finite numbers: repair it first")
        settings = {"box": volume.shape[0], **settings}
        voxel_size = voxel_size or found
        if settings["box"] != volume.shape[0] or abs(voxel_size / found - 1.0) > 1e-4:
            volume = resample(volume, found, voxel_size, settings["box"])
    wanted = checked(MaskSettings, settings)
    if map_ is None or volume is None:
        mask = create_mask(wanted)
    else:
        try:
            mask = map_mask(volume, voxel_size, wanted)
        except SettingsError as error:
            raise SettingsError(f"{map_}: {error}") from None
        except ItemError as error:
            raise InputFileError(map_, str(error)) from None
    mrc.write(output, mask.numpy(), voxel_size, labels=["mask"])
    total = float(mask.double().sum())
    typer.echo(
        f"{output}: {wanted.box} × {wanted.box} × {wanted.box} voxels of {voxel_size:g} Å, "
        f"sum {total:,.2f} voxels, {total * voxel_size**3 / 1000:,.0f} nm³"
    )
