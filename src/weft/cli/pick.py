"""weft pick."""

from __future__ import annotations

import json
import signal
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weft.cli.options import JsonOption, SessionArgument, settings_options
from weft.cli.pick_templates import templates, threshold
from weft.picking.training import TrainingSettings
from weft.session.pretraining import PretrainingSettings

if TYPE_CHECKING:
    from weft.picking.training import Accuracies

app = typer.Typer(
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Find particles in micrographs: with a network that can be taught, or with a template.",
)

app.command("templates")(templates)
app.command("threshold")(threshold)

OnlyOption = Annotated[str | None, typer.Option(metavar="GLOB", help="Only items whose name matches.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]


@app.command()
@settings_options(TrainingSettings)
def train(
    session: SessionArgument,
    picks: Annotated[
        str, typer.Option(metavar="NAME", help="Whose picks: the folder in SESSION/picks.")
    ] = "manual",
    name: Annotated[str, typer.Option(help="Of the new model, in SESSION/models/picking.")] = "retrained",
    start: Annotated[str, typer.Option(metavar="MODEL", help="The model to begin with.")] = "default",
    only: OnlyOption = None,
    diameter: Annotated[
        float | None, typer.Option(metavar="A", help="Å, of the particles, where their files do not say it.")
    ] = None,
    old: Annotated[
        bool,
        typer.Option(
            "--old/--no-old",
            help="Mix with what the default model was trained on, so that it does not forget.",
        ),
    ] = True,
    use: Annotated[
        bool, typer.Option("--use/--no-use", help="Pick with the new model from now on (weft.toml).")
    ] = True,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
    settings: Any = None,
) -> None:
    """Teach the picking network what has been picked in the page, or imported.

    Half of what it sees is what it knew before. While it learns it says how often the old and the new network
    are right, on old and on new data: the last should rise, the one before it stay.
    """
    from weft.session import config
    from weft.session.retraining import train_picker
    from weft.session.session import open as open_session
    from weft.session.step import plain_values
    from weft.session.work import resolve_device

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    opened = open_session(session)
    how = TrainingSettings(**settings)

    def tell(words: str, **facts: Any) -> None:
        typer.echo(json.dumps(plain_values(facts)) if as_json else words, err=not as_json)

    done = train_picker(
        opened,
        name,
        how,
        picks=picks,
        start=start,
        only=only,
        diameter=diameter,
        old=old,
        device=resolve_device(device),
        say=lambda line: tell(line, say=line),
        progress=lambda found: tell(_words(found), steps=how.steps, **asdict(found)),
    )
    if use:
        config.edit_file(opened.root, {"picking.model": name})
    if as_json:
        for line in done.skipped:
            tell("", left_out=line)
        tell("", model=str(done.path), particles=done.particles, micrographs=done.micrographs)
        return
    for line in done.skipped:
        typer.echo(f"left out: {line}")
    typer.echo(f"trained on {done.particles} particles in {done.micrographs} micrographs: {done.path}")
    if use:
        typer.echo(f"`weft run {session} --steps pick` picks with it now")


@app.command()
def apply(
    session: SessionArgument,
    model: Annotated[
        str, typer.Option(help="default, the name of one of the session's models, or a file.")
    ] = "default",
    only: OnlyOption = None,
    device: DeviceOption = "auto",
    workers: Annotated[int | None, typer.Option(min=0, help="Processes; 0 works in this one.")] = None,
    retry: Annotated[bool, typer.Option("--retry", help="Also what failed by a fault of its own.")] = False,
) -> None:
    """Pick with a model, now and in later runs: sets picking.model in weft.toml."""
    from weft.cli.progress import show_progress, summary
    from weft.session import config
    from weft.session.picking import model_file, read_model
    from weft.session.session import open as open_session

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    opened = open_session(session)
    read_model(model_file(opened.root, model))  # before anything is changed
    config.edit_file(opened.root, {"picking.model": model})
    with show_progress() as progress:
        report = opened.run(
            steps=["pick"], only=only, device=device, workers=workers, retry=retry, progress=progress
        )
    typer.echo(summary(report, opened.root))
    raise typer.Exit(report.exit_code)


@app.command()
@settings_options(PretrainingSettings)
def pretrain(
    work: Annotated[
        Path, typer.Argument(help="Folder for simulations and the state of the training.", show_default=False)
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The model to write.")] = Path(
        "default.safetensors"
    ),
    processes: Annotated[int, typer.Option(min=1, help="That simulate beside the training.")] = 1,
    device: DeviceOption = "auto",
    settings: Any = None,
) -> None:
    """Make a model from nothing, as the one that ships was made: simulate micrographs, learn, judge.

    Stopped, it goes on where it was when called again with the same folder.
    """
    from weft.session.pretraining import pretrain as make
    from weft.session.work import resolve_device

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    make(
        work,
        output,
        PretrainingSettings(**settings),
        processes=processes,
        device=resolve_device(device),
        say=lambda line: typer.echo(line, err=True),
    )


def _words(found: Accuracies) -> str:
    def percent(value: float) -> str:
        return "  – " if value != value else f"{100.0 * value:4.1f}"

    return (
        f"step {found.step}: right on old data {percent(found.old_on_old)} % before, "
        f"{percent(found.new_on_old)} % now; on new data {percent(found.old_on_new)} % before, "
        f"{percent(found.new_on_new)} % now"
    )
