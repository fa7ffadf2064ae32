"""weft template."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weft.cli.options import settings_options
from weft.matching.scattering import AtomSettings
from weft.matching.template import TemplateSettings

if TYPE_CHECKING:
    import torch

app = typer.Typer(
    rich_markup_mode=None,
    add_completion=False,
    no_args_is_help=True,
    help="Templates: what `weft match` looks for in tomograms.",
)


@app.callback()
def _group() -> None:
    """Templates: what `weft match` looks for in tomograms."""


@app.command()
@settings_options(AtomSettings, into="atom_settings")
@settings_options(TemplateSettings)
def create(
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="MRC file to write.")],
    map_: Annotated[
        Path | None,
        typer.Option("--map", metavar="FILE", help="Make it from this map (MRC, CCP4; also .gz, .bz2)."),
    ] = None,
    emdb: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Make it from the map EMD-N, downloaded once and kept."),
    ] = None,
    model: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Make it from the atoms of a PDB or mmCIF file.")
    ] = None,
    input_voxel_size: Annotated[
        float | None,
        typer.Option(metavar="A", help="Å of the map's voxels, instead of what its header says."),
    ] = None,
    settings: Any = None,
    atom_settings: Any = None,
) -> None:
    """Make a template from a map, an entry of the EMDB, or atoms.

    Templates are light on dark, density positive, as Weft's tomograms are: maps of the EMDB and models need
    no --invert against those. Tomograms in which particles are dark need it.
    """
    from weft.cli.volumes import checked, read_map
    from weft.errors import RequestError
    from weft.formats import mrc
    from weft.formats.emdb import fetch_map
    from weft.formats.structure import read_atoms
    from weft.matching.scattering import density_from_atoms

    if sum(given is not None for given in (map_, emdb, model)) != 1:
        raise RequestError("give one of --map FILE, --emdb N and --model FILE.")
    if model is None and atom_settings:
        raise RequestError(f"--{next(iter(atom_settings)).replace('_', '-')} is for --model.")
    if model is not None and input_voxel_size is not None:
        raise RequestError("--input-voxel-size is for maps; a model has none.")
    wanted = checked(TemplateSettings, settings)
    notes = []
    if model is not None:
        chosen = checked(AtomSettings, atom_settings)
        atoms = read_atoms(model, chosen.assembly)
        map_in, place = density_from_atoms(atoms, wanted.voxel_size, chosen)
        voxel_size, source = wanted.voxel_size, model
        notes.append(
            f"{len(atoms)} atoms; the centre of the box is at "
            f"({place[0]:.2f}, {place[1]:.2f}, {place[2]:.2f}) Å of the model"
        )
        if chosen.assembly is None and len(atoms.assemblies) > 0:
            notes.append(f"the file has the assemblies {', '.join(atoms.assemblies)}: --assembly builds one")
    else:
        source = map_ if map_ is not None else fetch_map(emdb or 0)
        map_in, voxel_size = read_map(source, input_voxel_size)
    template = _made(source, map_in, voxel_size, wanted)
    mrc.write(output, template.map.numpy(), wanted.voxel_size, labels=[_label(source, wanted)])
    typer.echo(
        f"{output}: {wanted.box} × {wanted.box} × {wanted.box} voxels of {wanted.voxel_size:g} Å, "
        f"{'dark on light' if template.dark else 'light on dark'}, "
        f"particle diameter {template.diameter:.0f} Å"
    )
    if model is None and 2.0 * voxel_size > (wanted.low_pass or 2.0 * wanted.voxel_size) * 1.001:
        notes.append(f"the map's own voxels of {voxel_size:g} Å end at {2 * voxel_size:g} Å")
    away = sum(value**2 for value in template.offset) ** 0.5
    if away > wanted.voxel_size and not wanted.center:
        notes.append(f"the particle lies {away:.1f} Å from the centre of the box: --center moves it there")
    if template.dark and not wanted.invert:
        notes.append("the map is dark on light, so is the template: --invert makes it light on dark")
    for note in notes:
        typer.echo(f"  {note}")


def _made(source: Path, map_: torch.Tensor, voxel_size: float, wanted: TemplateSettings) -> Any:
    from weft.errors import InputFileError, ItemError, SettingsError
    from weft.matching.template import create_template

    try:
        return create_template(map_, voxel_size, wanted)
    except SettingsError as error:
        raise SettingsError(f"{source}: {error}") from None
    except ItemError as error:
        raise InputFileError(source, str(error)) from None


def _label(source: Path, wanted: TemplateSettings) -> str:
    done = [f"low-pass {wanted.low_pass:g} A"] if wanted.low_pass else []
    done += [name for name in ("center", "invert", "mirror") if getattr(wanted, name)]
    return f"template of {source.name[:40]}: {', '.join(done) or 'unfiltered'}"
