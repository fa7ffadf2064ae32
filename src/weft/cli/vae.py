"""weft vae."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weft.cli.options import settings_options
from weft.cli.particle_options import (
    DatadirOption,
    FolderArgument,
    ParticlesOption,
    SourceArgument,
    TomogramsOption,
)
from weft.cli.vae_analyze import analyze, volumes_analyze
from weft.cli.vae_select import map_back, select
from weft.heterogeneity.model import NetworkSettings
from weft.heterogeneity.preparation import PreparationSettings
from weft.heterogeneity.training import VAETrainingSettings

if TYPE_CHECKING:
    from weft.session.heterogeneity.training import TrainingProgress, TrainingReport

app = typer.Typer(
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Structures of single particles from their tilt images: train, look, choose.",
)

app.command("analyze")(analyze)
app.command("volumes-analyze")(volumes_analyze)
app.command("select")(select)
app.command("map-back")(map_back)

DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
EpochOption = Annotated[
    int | None, typer.Option(metavar="N", help="Of the networks; by default the last that is kept.")
]

#: Failed particles that are named one by one.
_NAMED = 5


@app.command()
@settings_options(NetworkSettings, into="network", skip=("seed",))
@settings_options(VAETrainingSettings, into="training")
@settings_options(PreparationSettings, into="preparation")
def train(
    source: SourceArgument,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="What is learnt.", show_default=False)
    ],
    homogeneous: Annotated[
        bool, typer.Option("--homogeneous", help="One structure for all: a decoder without a latent space.")
    ] = False,
    datadir: DatadirOption = None,
    tomograms: TomogramsOption = None,
    particles: ParticlesOption = None,
    memory: Annotated[
        float, typer.Option(min=0.0, help="GB for images; what does not fit is read again every epoch.")
    ] = 4.0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where DIR's training stopped; --epochs may be more.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Begin anew where DIR holds a training.")
    ] = False,
    device: DeviceOption = "auto",
    network: Any = None,
    training: Any = None,
    preparation: Any = None,
) -> None:
    """Learn what structures the particles have, and where each lies among them.

    Poses, CTF, dose and tilts are taken as the file gives them. An interrupted training goes on with --resume
    and comes to the same result.
    """
    from weft.errors import RequestError
    from weft.session.heterogeneity.training import resume_vae, train_vae
    from weft.session.work import resolve_device

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    where, show = resolve_device(device), _show_training()
    if resume:
        changed = {**network, **preparation, **training}
        changed.pop("epochs", None)
        if changed or overwrite or homogeneous:
            raise RequestError("--resume takes the settings that the training began with, but for --epochs.")
        done = resume_vae(output, epochs=training.get("epochs"), memory=memory, device=where, progress=show)
    else:
        how = VAETrainingSettings(**training)
        done = train_vae(
            source,
            output,
            NetworkSettings(**network, seed=how.seed),
            how,
            PreparationSettings(**preparation),
            homogeneous=homogeneous,
            datadir=datadir,
            tomograms=tomograms,
            only=particles,
            memory=memory,
            overwrite=overwrite,
            device=where,
            progress=show,
        )
    _tell_failed(done.failed)
    typer.echo(_trained(done))
    raise typer.Exit(done.exit_code)


@app.command()
def embed(
    folder: FolderArgument,
    source: SourceArgument,
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE.npz",
            help="mu, log_var and the particles' names.",
            show_default=False,
        ),
    ],
    datadir: DatadirOption = None,
    tomograms: TomogramsOption = None,
    epoch: EpochOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Place particles that a training has not seen in its latent space."""
    from weft.errors import RequestError
    from weft.session.heterogeneity.run_folder import open_run, write_latent
    from weft.session.heterogeneity.training import embed as place
    from weft.session.work import resolve_device

    if output.suffix != ".npz":
        raise RequestError(f"--output {output}: name a file, FILE.npz.")
    encoded, particles, failed = place(
        open_run(folder),
        source,
        epoch=epoch,
        datadir=datadir,
        tomograms=tomograms,
        device=resolve_device(device),
    )
    write_latent(output, encoded, particles.particle)
    _tell_failed(failed)
    typer.echo(f"{output}: {len(particles)} particles in {encoded.mu.shape[1]} dimensions")
    raise typer.Exit(1 if failed else 0)


@app.command()
def volumes(
    folder: FolderArgument,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="DIR", help="One .mrc for each place.", show_default=False),
    ],
    at: Annotated[
        list[str] | None,
        typer.Option(
            "--at",
            metavar="Z1,Z2,...",
            help="A place in latent space; may be given again.",
            show_default=False,
        ),
    ] = None,
    points: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Places: one a line in text or CSV, or an array in .npy."),
    ] = None,
    particle: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="The place of a particle; may be given again.", show_default=False),
    ] = None,
    epoch: EpochOption = None,
    size: Annotated[
        int | None, typer.Option(min=4, metavar="N", help="Voxels along an axis [default: the images' box].")
    ] = None,
) -> None:
    """Write the structures of places in latent space; of a homogeneous training, its one structure."""
    from weft.session.heterogeneity.latent_places import read_places, write_volumes
    from weft.session.heterogeneity.run_folder import open_run

    run = open_run(folder)
    places = read_places(run, at or [], points, particle or [], epoch)
    for path in write_volumes(run, places, output, epoch=epoch, size=size):
        typer.echo(path)


def _tell_failed(failed: dict[str, str]) -> None:
    for name, why in list(failed.items())[:_NAMED]:
        typer.echo(f"left out {name}: {why}", err=True)
    if len(failed) > _NAMED:
        typer.echo(f"left out {len(failed) - _NAMED} more", err=True)


def _trained(done: TrainingReport) -> str:
    history = done.run.history
    last = history[-1] if history else {}
    numbers = (
        f"loss {last['loss']:.4f}, reconstruction {last['reconstruction']:.4f}, KL {last['kl']:.2f}"
        if last
        else "no epoch was asked for"
    )
    after = f"`weft vae analyze {done.run.path}` shows what it found"
    if done.run.facts.homogeneous:
        after = f"`weft vae volumes {done.run.path} --output DIR` writes the structure"
    return f"{done.particles} particles, {done.images} images: {numbers}\n{after}"


def _show_training() -> Any:
    """A bar within each epoch on a terminal, and a line after each."""
    from weft.cli.progress import duration

    live = sys.stderr.isatty()

    def show(now: TrainingProgress) -> None:
        left = duration(max(now.seconds_left, 0.0))
        if now.report is None:
            if live:
                line = f"epoch {now.epoch}/{now.epochs}: {now.done}/{now.particles} particles, "
                typer.echo(f"\r\x1b[K{line}loss {now.loss:.4f}, {left} left", err=True, nl=False)
            return
        found = now.report
        line = (
            f"epoch {found.epoch}/{now.epochs}: loss {found.loss:.5f}, reconstruction "
            f"{found.reconstruction:.5f}, KL {found.kl:.3f}, beta {found.beta:.2g}"
        )
        if found.validation is not None:
            line += f", validation {found.validation:.5f}"
        typer.echo(f"{chr(13)}\x1b[K{line}, {left} left" if live else f"{line}, {left} left", err=True)

    return show
