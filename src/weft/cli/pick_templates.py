"""weft pick templates, weft pick threshold."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weft.cli.options import SessionArgument, settings_options
from weft.picking.template_peaks import TemplateThresholdSettings
from weft.session.template_picking import TemplatePickingSettings

if TYPE_CHECKING:
    from weft.session.template_picking import TemplateReport

__all__ = ["app", "templates", "threshold"]

app = typer.Typer(rich_markup_mode=None, no_args_is_help=True, help="Pick with a template.")

OnlyOption = Annotated[str | None, typer.Option(metavar="GLOB", help="Only items whose name matches.")]


@app.command()
@settings_options(TemplatePickingSettings, into="settings")
@settings_options(TemplateThresholdSettings, into="limits")
def templates(
    session: SessionArgument,
    template: Annotated[
        Path,
        typer.Option(metavar="FILE", help="A map of the particle, of any voxel size.", show_default=False),
    ],
    name: Annotated[
        str | None,
        typer.Option(help="What the picks are filed under, in SESSION/picks [default: the template's stem]."),
    ] = None,
    input_voxel_size: Annotated[
        float | None,
        typer.Option(metavar="A", help="Å of the template's voxels, instead of what its header says."),
    ] = None,
    only: OnlyOption = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    settings: Any = None,
    limits: Any = None,
) -> None:
    """Find a known structure in micrographs: projections of a 3D template, with each place's own CTF.

    Options are kept for the next time with the same name; only what is new or has changed is searched.
    `weft pick threshold` takes more or fewer of what was found.
    """
    from weft.cli.progress import show_progress
    from weft.cli.volumes import read_map
    from weft.matching.density import find_particle
    from weft.session.session import open as open_session
    from weft.session.template_picking import PickTemplate, pick_with_template
    from weft.session.work import resolve_device

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    opened = open_session(session)
    volume, voxel_size = read_map(template, input_voxel_size)
    with show_progress() as progress:
        report = pick_with_template(
            opened,
            PickTemplate(template, volume, voxel_size),
            settings,
            limits,
            name=name,
            only=only,
            device=resolve_device(device),
            progress=progress,
        )
    if not report.failed and find_particle(volume).sign < 0 and not report.settings.invert:
        typer.echo("note: the template is dark on light; if its density is protein, add --invert")
    _tell(report, opened.root)
    raise typer.Exit(report.exit_code)


@app.command()
@settings_options(TemplateThresholdSettings, into="limits")
def threshold(
    session: SessionArgument,
    picks: Annotated[
        str, typer.Option(metavar="NAME", help="The template's stem: the folder in SESSION/picks.")
    ],
    only: OnlyOption = None,
    limits: Any = None,
) -> None:
    """Take more or fewer of the peaks that `weft pick templates` has kept; nothing is searched again."""
    from weft.session.session import open as open_session
    from weft.session.template_picking import rethreshold

    opened = open_session(session)
    report = rethreshold(opened, picks, limits, only)
    _tell(report, opened.root)
    raise typer.Exit(report.exit_code)


def _tell(report: TemplateReport, root: Path) -> None:
    """The last words."""
    from weft.cli.progress import duration

    for item, reason in report.failed.items():
        typer.echo(f"failed: {item}: {reason}")
    counts = [f"{len(report.done)} searched", f"{len(report.current)} from earlier searches"]
    for what, items in (
        ("failed", report.failed),
        ("excluded by hand", report.excluded),
        ("without an average yet", report.waiting),
    ):
        if items:
            counts.append(f"{len(items)} {what}")
    stopped = "stopped; call it again to go on: " if report.interrupted else ""
    typer.echo(f"{stopped}{', '.join(counts)} in {duration(report.seconds)}")
    if report.counts:
        limit = report.threshold
        rule = (
            f"above {limit.threshold:g} σ"
            if limit.threshold
            else f"where {limit.false_positives:g} a micrograph may be noise"
        )
        written = "micrograph" if len(report.counts) == 1 else "micrographs"
        typer.echo(f"{sum(report.counts.values())} particles in {len(report.counts)} {written}, {rule}")
    typer.echo(f"picks: {root / 'picks' / report.name}")
