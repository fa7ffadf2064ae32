"""weft denoise."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weft.cli.options import SessionArgument, settings_options
from weft.denoising.micrographs import MicrographTrainingSettings
from weft.denoising.training import DenoisingSettings
from weft.settings import Settings

if TYPE_CHECKING:
    from weft.denoising.network import Denoiser, Loss
    from weft.session.session import Session

app = typer.Typer(
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Denoise micrographs and tomograms with a network that learns from their halves (noise2noise).",
)


class Kind(StrEnum):
    """What a network denoises."""

    MICROGRAPHS = "micrographs"
    TOMOGRAMS = "tomograms"


class _Both(MicrographTrainingSettings, DenoisingSettings):
    """The options of both kinds of training."""


OnlyOption = Annotated[
    str | None, typer.Option(metavar="GLOB", help="Only micrographs or series whose name matches.")
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
KindOption = Annotated[
    Kind | None, typer.Option(help="[default tomograms in a session of tilt series, else micrographs]")
]


@app.command("train")
@settings_options(_Both, into="settings")
def train_(
    session: SessionArgument,
    model: Annotated[
        Path | None,
        typer.Option(
            metavar="OUT",
            help="File to write [default in SESSION/models: denoise.safetensors, or "
            "denoise_micrographs.safetensors].",
        ),
    ] = None,
    kind: KindOption = None,
    only: OnlyOption = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Micrographs: begin with nothing, instead of Weft's own model.")
    ] = False,
    device: DeviceOption = "auto",
    settings: Any = None,
) -> None:
    """Train one network on the halves of all finished micrographs or tomograms, for `weft denoise apply`.

    Options replace what [denoising] or [tomogram_denoising] says, for this training only. Micrographs need
    averages of even and odd frames (average.halves), tomograms half maps (reconstruction.halves).
    """
    from weft.formats.atomic import atomic_write_bytes
    from weft.session.session import open as open_session

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    opened = open_session(session)
    chosen = kind or (Kind.TOMOGRAMS if opened.series else Kind.MICROGRAPHS)
    learn = _on_tomograms if chosen is Kind.TOMOGRAMS else _on_micrographs
    found, count = learn(opened, only, fresh, device, settings)
    name = "denoise.safetensors" if chosen is Kind.TOMOGRAMS else "denoise_micrographs.safetensors"
    path = (model or opened.root / "models" / name).absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(path, found.to_bytes())
    counted = f"1 {chosen.value[:-1]}" if count == 1 else f"{count} {chosen.value}"
    typer.echo(
        f"trained on {counted}: best after {found.steps} steps, where it predicts "
        f"{100 * found.explained:.1f} % of the variance of halves that it has not seen"
    )
    typer.echo(f"model: {path}")
    typer.echo(f"use it: weft denoise apply {session} --model {path}")


def _for(model: type[Settings], settings: dict[str, Any]) -> dict[str, Any]:
    """The given options, which must be of this kind of training."""
    from weft.errors import SettingsError

    for name in settings:
        if name not in model.model_fields:
            raise SettingsError(f"--{name.replace('_', '-')} is for the other kind of training (--kind).")
    return settings


def _on_tomograms(
    opened: Session, only: str | None, fresh: bool, device: str, settings: dict[str, Any]
) -> tuple[Denoiser, int]:
    from fnmatch import fnmatchcase

    from weft.denoising.training import train
    from weft.denoising.volumes import TomogramDenoisingSettings
    from weft.errors import ItemError, RequestError
    from weft.session.steps.denoise_tomogram import half_maps
    from weft.session.work import resolve_device

    chosen = opened.settings.get(TomogramDenoisingSettings).model_copy(
        update=_for(DenoisingSettings, settings)
    )
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
        raise RequestError(missing or f"{opened.root} has no tilt series that could be learnt from.")
    if len(sizes) > 1:
        listed = ", ".join(f"{size:g}" for size in sorted(sizes))
        raise RequestError(
            f"the half maps have different pixel sizes ({listed} Å); choose some with --only, or run the "
            "session again."
        )
    with _progress() as show:
        return train(pairs, sizes.pop(), chosen, resolve_device(device), show), len(pairs)


def _on_micrographs(
    opened: Session, only: str | None, fresh: bool, device: str, settings: dict[str, Any]
) -> tuple[Denoiser, int]:
    from weft.denoising.micrographs import (
        MicrographDenoisingSettings,
        beginning,
        train_on_micrographs,
    )
    from weft.session.denoising import micrograph_pairs
    from weft.session.work import resolve_device

    chosen = opened.settings.get(MicrographDenoisingSettings).model_copy(
        update=_for(MicrographTrainingSettings, settings)
    )
    pairs, pixel_size, deconvolution = micrograph_pairs(opened, chosen, only)
    start = None if fresh else beginning(chosen, pixel_size)
    with _progress() as show:
        model = train_on_micrographs(
            pairs, pixel_size, chosen, deconvolution, resolve_device(device), show, start=start
        )
    return model, len(pairs)


@app.command()
def apply(
    inputs: Annotated[
        list[Path],
        typer.Argument(
            metavar="SESSION|FILES...", help="A session's folder, or micrographs.", show_default=False
        ),
    ],
    model: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Made by `weft denoise train`; without, micrographs take Weft's own, and each tomogram "
            "trains its own.",
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="Where denoised FILES go.")
    ] = None,
    kind: KindOption = None,
    only: OnlyOption = None,
    device: DeviceOption = "auto",
    workers: Annotated[int | None, typer.Option(min=0, help="Processes; 0 works in this one.")] = None,
    retry: Annotated[bool, typer.Option("--retry", help="Also what failed by a fault of its own.")] = False,
) -> None:
    """Write denoised micrographs or tomograms of a session, or of files.

    In a session, now and in later runs: switches [denoising] or [tomogram_denoising] on in weft.toml. Files
    are micrographs as MRC, whose averages of even and odd frames lie beside them (even/NAME and odd/NAME, or
    NAME_EVN.mrc and NAME_ODD.mrc); they are not deconvolved.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if len(inputs) == 1 and inputs[0].is_dir():
        code = _in_session(inputs[0], model, kind, only, device, workers, retry)
    else:
        code = _to_files(inputs, model, output, device)
    raise typer.Exit(code)


def _in_session(
    session: Path,
    model: Path | None,
    kind: Kind | None,
    only: str | None,
    device: str,
    workers: int | None,
    retry: bool,
) -> int:
    from weft.cli.progress import show_progress, summary
    from weft.session import config
    from weft.session.denoising import read_model
    from weft.session.session import open as open_session

    opened = open_session(session)
    chosen = kind or (Kind.TOMOGRAMS if opened.series else Kind.MICROGRAPHS)
    tomograms = chosen is Kind.TOMOGRAMS
    section = "tomogram_denoising" if tomograms else "denoising"
    changes = {f"{section}.write": "true"}
    if model is not None:
        read_model(model.expanduser().absolute(), 3 if tomograms else 2)  # before anything is changed
        changes[f"{section}.model"] = str(model.expanduser().absolute())
    config.edit_file(opened.root, changes)
    with show_progress() as progress:
        report = opened.run(
            steps=["denoise_tomogram" if tomograms else "denoise_micrograph"],
            only=only,
            device=device,
            workers=workers,
            retry=retry,
            progress=progress,
        )
    typer.echo(summary(report, opened.root))
    return report.exit_code


def _to_files(paths: list[Path], model: Path | None, output: Path | None, device: str) -> int:
    from weft.errors import ItemError, RequestError
    from weft.session.denoising import denoise_files
    from weft.session.work import resolve_device

    if output is None:
        raise RequestError("denoised files need a folder: --output DIR.")
    failed = 0
    for path, result in denoise_files(paths, model, output, resolve_device(device)):
        if isinstance(result, ItemError):
            failed += 1
            typer.echo(f"{path}: {result}", err=True)
        else:
            typer.echo(f"{path} -> {result}")
    return 1 if failed else 0


@app.command(hidden=True)
@settings_options(MicrographTrainingSettings, into="settings")
def pretrain(
    model: Annotated[Path, typer.Option(metavar="OUT", help="File to write.")],
    work: Annotated[Path, typer.Option(metavar="DIR", help="What is kept meanwhile; goes on from there.")],
    device: DeviceOption = "auto",
    settings: Any = None,
) -> None:
    """Train the model that ships, on simulated micrographs. Stopped, it goes on when it is called again."""
    from weft.denoising.pretraining import pretrain as learn
    from weft.formats.atomic import atomic_write_bytes
    from weft.micrographs.deconvolution import DeconvolutionSettings
    from weft.session.denoising import kept_simulations
    from weft.session.work import resolve_device

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    chosen, deconvolution = MicrographTrainingSettings(**settings), DeconvolutionSettings()
    simulations = kept_simulations(work, chosen, deconvolution, lambda name: typer.echo(name, err=True))
    state = work / "training.pt"
    with _progress() as show:
        found = learn(
            simulations,
            chosen.pixel_size,
            chosen,
            deconvolution,
            device=resolve_device(device),
            progress=show,
            resume=state.read_bytes() if state.exists() else b"",
            keep=lambda data: atomic_write_bytes(state, data),
        )
    atomic_write_bytes(model, found.to_bytes())
    typer.echo(f"{model}: {found.steps} steps, predicts {100 * found.explained:.2f} %")


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
    return f"predicts {100 * (1.0 - loss.held_out):.1f} % of the variance of what is kept from it"
