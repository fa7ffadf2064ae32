"""weft vae analyze, weft vae volumes-analyze."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from weft.cli.options import JsonOption, settings_options
from weft.session.heterogeneity.analysis_settings import AnalysisSettings
from weft.session.heterogeneity.volume_analysis import VolumeAnalysisSettings

__all__ = ["analyze", "app", "volumes_analyze"]

app = typer.Typer(rich_markup_mode=None, no_args_is_help=True, help="Look at a trained landscape.")


@app.command()
@settings_options(AnalysisSettings)
def analyze(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="That `weft vae train` has written.", show_default=False)
    ],
    as_json: JsonOption = False,
    settings: Any = None,
) -> None:
    """Look at a trained landscape: clusters, components, volumes, what goes with it, has it converged?

    Writes DIR/analysis with report.html, clusters.csv, analysis.json, volumes and a mask, and gives advice.
    """
    from weft.cli.progress import counted
    from weft.session.heterogeneity.analysis import analyze as look
    from weft.session.heterogeneity.run_folder import open_run

    run = open_run(folder)
    result = look(run, AnalysisSettings(**settings), None if as_json else counted("volumes"))
    if as_json:
        typer.echo((result.folder / "analysis.json").read_text(encoding="utf-8"))
        return
    found = result.found
    shown = (
        f"{found.structure.clusters.count} clusters found"
        if found.structure.found
        else "no cluster structure"
    )
    typer.echo(f"{len(found.particle)} particles, epoch {found.epoch}: {shown}")
    for i, size in enumerate(found.clusters.size):
        if found.clusters.count > 1:
            typer.echo(f"  cluster {i + 1}: {size} particles")
    for one in result.advice:
        typer.echo(f"{one.level}: {one.about}: {one.text}")
    typer.echo(f"report: {result.report}")


@app.command("volumes-analyze")
@settings_options(VolumeAnalysisSettings)
def volumes_analyze(
    volumes: Annotated[
        list[Path],
        typer.Argument(metavar="FILES_OR_DIR", help="Volumes, or folders of them.", show_default=False),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder to write.")],
    mask: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Soft mask, instead of one made from the volumes."),
    ] = None,
    as_json: JsonOption = False,
    settings: Any = None,
) -> None:
    """How volumes differ: the principal components of their voxels under a mask.

    Writes the mean, each component, volumes along it and components.csv with the place of every volume.
    """
    from weft.session.heterogeneity.volume_analysis import analyze_volumes, find_volumes

    found = analyze_volumes(find_volumes(volumes), output, VolumeAnalysisSettings(**settings), mask)
    explained = found.components.explained.tolist()
    if as_json:
        facts = {"volumes": [str(f) for f in found.files], "explained": explained, "output": str(output)}
        typer.echo(json.dumps(facts | {"scores": found.components.scores.tolist()}))
        return
    for i, part in enumerate(explained):
        typer.echo(f"component {i + 1}: {100 * part:.1f} % of the variance")
    typer.echo(f"{len(found.files)} volumes compared: {output}")
