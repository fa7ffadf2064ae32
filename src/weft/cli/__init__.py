"""The command line. Commands are imported when they are called: ``weft --help`` imports none."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any, cast

import typer
import typer.core
import typer.main

from weft.__about__ import __version__
from weft.errors import ItemError, WeftError

__all__ = ["COMMANDS", "app", "main"]

#: Command → module of its group, and what it does in one line.
COMMANDS: dict[str, tuple[str, str]] = {
    "new": ("weft.cli.new", "Make a session for a folder of movies, or of tilt series."),
    "run": ("weft.cli.run", "Process what is new or stale."),
    "live": ("weft.cli.live", "Process movies as they arrive, and show the session in a web page."),
    "workers": ("weft.cli.workers", "How to spread a session over a cluster."),
    "status": ("weft.cli.show", "How the items of a session stand."),
    "show": ("weft.cli.show", "Everything that is known about one item."),
    "settings": ("weft.cli.settings", "Read or change the settings of a session."),
    "select": ("weft.cli.select", "Choose micrographs by their metrics or by hand."),
    "pick": ("weft.cli.pick", "Find particles in micrographs, teach the network that does, use templates."),
    "tilts": ("weft.cli.tilts", "Tilt series: import, stack, align, CTF, handedness, tomograms."),
    "template": ("weft.cli.template", "Make templates for matching from maps, the EMDB or atoms."),
    "mask": ("weft.cli.mask", "Make masks for templates."),
    "match": ("weft.cli.match", "Find a known structure in tomograms."),
    "candidates": ("weft.cli.candidates", "Take candidates from finished searches, or merge them."),
    "average": ("weft.cli.average", "Average particles in two halves, with FSC and alignment."),
    "backproject": ("weft.cli.backproject", "Make a map from tilt images of any program."),
    "vae": ("weft.cli.vae", "Structures of single particles from their tilt images."),
    "denoise": (
        "weft.cli.denoise",
        "Denoise micrographs or tomograms with a network that learns from halves.",
    ),
    "preprocess": ("weft.cli.preprocess", "Prepare micrographs: crop, downsample, filter, normalise ..."),
    "report": ("weft.cli.report", "One HTML file about a session: figures, filters, pictures, settings."),
    "import": ("weft.cli.import_", "Take in picks and alignments of other programs, and projects of Warp."),
    "export": ("weft.cli.export", "Write results for other programs."),
    "reindex": ("weft.cli.reindex", "Make the tables and the index again from the records."),
    "simulate": ("weft.cli.simulate", "Make movies with known truth."),
    "demo": ("weft.cli.demo", "Simulate a small session, process it, compare with the truth."),
    "doctor": ("weft.cli.doctor", "Check this computer and this installation."),
}

# click's ClickException, wherever typer keeps click
_Error = cast(type[typer.BadParameter], typer.BadParameter.__mro__[2])


class _LazyGroup(typer.core.TyperGroup):
    """Knows its commands by name and imports one only when it is called."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(COMMANDS[cmd_name][0])
        command = typer.main.get_command(module.app)
        # a module of several commands is a group; its own name picks one out
        inside = getattr(command, "commands", None)
        if inside and cmd_name in inside:
            command = inside[cmd_name]
        command.name = cmd_name
        return command

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


app = typer.Typer(
    cls=_LazyGroup,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"weft {__version__}")
        raise typer.Exit


@app.callback()
def _weft(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of errors.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Pre-process cryo-EM movies while they are collected: motion, CTF, selection, STAR files.

    Start with `weft demo`, or with `weft new SESSION --frames 'movies/*.tif' --pixel-size ...` and
    `weft run SESSION`. `weft COMMAND --help` tells about one command.
    """


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns
    -------
    int
        Exit code: 0 done, 1 some items failed (the rest are finished and written), 2 the request was
        wrong, 130 stopped with Ctrl-C.
    """
    # before torch is imported: threads that spin while they wait halve the speed of a busy machine
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    arguments = list(sys.argv[1:] if argv is None else argv)
    # wherever it stands, so that it can be added to a command that has just failed
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        code = typer.main.get_command(app).main(args=arguments, prog_name="weft", standalone_mode=False)
    except _Error as error:
        hint = getattr(getattr(error, "ctx", None), "command_path", "weft")
        text = error.format_message()
        if "unexpected extra argument" in text:
            text += " Quote patterns, so that the shell leaves them alone."
        typer.echo(f"weft: {text} (`{hint} --help` tells more)", err=True)
        return 2
    except (KeyboardInterrupt, typer.Abort):
        typer.echo("weft: stopped", err=True)
        return 130
    except BrokenPipeError:
        sys.stderr.close()  # the reader of a pipe went away, which is no error
        return 0
    except (WeftError, OSError) as error:
        if debug:
            raise
        typer.echo(f"weft: {' '.join(str(error).split())}", err=True)
        return 1 if isinstance(error, ItemError) else 2
    except Exception as error:
        if debug:
            raise
        typer.echo(
            f"weft: unexpected {type(error).__name__}: {error} "
            "(add --debug for the traceback, and please report it)",
            err=True,
        )
        return 2
    return code if isinstance(code, int) else 0
