"""weft denoise."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weft.cli.options import SessionArgument, settings_options
from weft.denoising.training import DenoisingSettings

if TYPE_CHECKING:
    from weft.denoising.network import Loss

app = typer.Typer(
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Denoise tomograms with a network that learns from their half maps (noise2noise).",
)

OnlyOption = Annotated[str | None, typer.Option(metavar="GLOB", help="Only series whose name matches.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]


@app.command("train")
@settings_options(DenoisingSettings, into="settings")
def train_(
    session: SessionArgument,
    model: Annotated[
        Path | None,
        typer.Option(metavar="OUT", help="File to write [default SESSION/models/denoise.safetensors]."),
    ] = None,
    only: OnlyOption = None,
    device: DeviceOption = "auto",
    settings: Any = None,
) -> None:
    """Train one network on the half maps of all finished series, for `weft denoise apply`.

    Options replace what [tomogram_denoising] says, for this training only.
    """
    from fnmatch import fnmatchcase

    from weft.denoising.training import train
    from weft.denoising.volumes import TomogramDenoisingSettings
    from weft.errors import ItemError, RequestError
    from weft.formats.atomic import atomic_write_bytes
    from weft.session.session import open as open_session
    from weft.session.steps.denoise_tomogram import half_maps
    from weft.session.work import resolve_device

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    opened = open_session(session)
    chosen = opened.settings.get(TomogramDenoisingSettings).model_copy(update=settings)
    pairs, sizes, missing = [], set(), ""
    for name, series in opened.series.items():
        if series.record is None or (only and not fnmatchcase(name, only)):
            continue
        try:
            pair, pixel_size = half_maps(opened.root, series.record)
        except ItemError as error:
            missing = missing or str(error)
            continue
        pairs.append(pair)
        sizes.add(round(pixel_size, 4))
    if not pairs:
        raise RequestError(missing or f"{session} has no tilt series that could be learnt from.")
    if len(sizes) > 1:
        listed = ", ".join(f"{size:g}" for size in sorted(sizes))
        raise RequestError(
            f"the half maps have different pixel sizes ({listed} Å); choose some with --only, or run the "
            "session again."
        )
    with _progress() as show:
        found = train(pairs, sizes.pop(), chosen, resolve_device(device), show)
    path = (model or opened.root / "models" / "denoise.safetensors").absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(path, found.to_bytes())
    count = "1 tomogram" if len(pairs) == 1 else f"{len(pairs)} tomograms"
    typer.echo(
        f"trained on {count}: best after {found.steps} steps, where it predicts "
        f"{100 * found.explained:.1f} % of the variance of halves that it has not seen"
    )
    typer.echo(f"model: {path}")


@app.command()
def apply(
    session: SessionArgument,
    model: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Made by `weft denoise train`; without, each tomogram trains its own."
        ),
    ] = None,
    only: OnlyOption = None,
    device: DeviceOption = "auto",
    workers: Annotated[int | None, typer.Option(min=0, help="Processes; 0 works in this one.")] = None,
    retry: Annotated[bool, typer.Option("--retry", help="Also what failed by a fault of its own.")] = False,
) -> None:
    """Write denoised tomograms, now and in later runs: switches [tomogram_denoising] on in weft.toml."""
    from weft.cli.progress import show_progress, summary
    from weft.session import config
    from weft.session.session import open as open_session
    from weft.session.steps.denoise_tomogram import read_model

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    opened = open_session(session)
    changes = {"tomogram_denoising.write": "true"}
    if model is not None:
        read_model(model.expanduser().absolute())  # before anything is changed
        changes["tomogram_denoising.model"] = str(model.expanduser().absolute())
    config.edit_file(opened.root, changes)
    with show_progress() as progress:
        report = opened.run(
            steps=["denoise_tomogram"],
            only=only,
            device=device,
            workers=workers,
            retry=retry,
            progress=progress,
        )
    typer.echo(summary(report, opened.root))
    raise typer.Exit(report.exit_code)


@contextmanager
def _progress() -> Iterator[Callable[[int, int, Loss | None], None]]:
    """A bar with the time left on a terminal, a line for each evaluation elsewhere."""
    import sys

    if not sys.stderr.isatty():
        yield (
            lambda step, steps, loss: (
                print(f"step {step} of {steps}: {_words(loss)}", file=sys.stderr, flush=True)
                if loss
                else None
            )
        )
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (MofNCompleteColumn(), BarColumn(), TimeRemainingColumn(), TextColumn("{task.fields[loss]}"))
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=None, loss="")

        def show(step: int, steps: int, loss: Loss | None) -> None:
            bar.update(task, total=steps, completed=step)
            if loss is not None:
                bar.update(task, loss=_words(loss))

        yield show


def _words(loss: Loss) -> str:
    return f"predicts {100 * (1.0 - loss.held_out):.1f} % of held-out cubes' variance"
