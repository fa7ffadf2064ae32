"""weft live."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weft.cli.options import SessionArgument

if TYPE_CHECKING:
    from weft.web.server import Address

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def live(
    session: SessionArgument,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of the page; 0 takes a free one.")] = 8765,
    host: Annotated[
        str, typer.Option(help="Address to listen at; 0.0.0.0 is reached by other computers.")
    ] = "127.0.0.1",
    token: Annotated[
        str | None,
        typer.Option(envvar="WEFT_TOKEN", help="Password of the page; a random one by default."),
    ] = None,
    share_token: Annotated[
        str | None,
        typer.Option(envvar="WEFT_SHARE_TOKEN", help="The same for people who may only look."),
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch/--no-watch", help="Look for new movies; without, only show the session.")
    ] = True,
    scheduler: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS|FILE", help="Use a dask cluster that runs already; see `weft workers`."
        ),
    ] = None,
    workers: Annotated[int | None, typer.Option(min=0, help="Processes; 0 works in this one.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of each worker.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only the page's address.")] = False,
) -> None:
    """Process movies as they arrive, and show the session in a web page, until Ctrl-C.

    Works on a finished session, too. Stopping is clean: items in work may end, what was not done is done
    the next time. Exit code 0: stopped. 2: it could not start.
    """
    show(
        session,
        port,
        host,
        token,
        share_token,
        quiet=quiet,
        watch=watch,
        scheduler=scheduler,
        workers=workers,
        threads=threads,
        device=device,
    )


def show(
    session: Path,
    port: int = 8765,
    host: str = "127.0.0.1",
    token: str | None = None,
    share_token: str | None = None,
    *,
    quiet: bool = False,
    **how: Any,
) -> None:
    """Process and show a session until Ctrl-C; `how` goes to the `Manager`."""
    from weft.session.live import Manager
    from weft.session.session import open as open_session
    from weft.web.server import serve

    def note(text: str) -> None:
        if not quiet:
            print(text, file=sys.stderr, flush=True)

    def ready(address: Address) -> None:
        if address.warning:
            print(address.warning, file=sys.stderr, flush=True)
        typer.echo(f"open:           {address.url}")
        typer.echo(f"only to look:   {address.share_url}")
        typer.echo("stop with Ctrl-C")
        sys.stdout.flush()

    # a stop by the queueing system is as clean as Ctrl-C, also before the server listens to signals
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    manager = Manager(open_session(session), on_note=note, **how)
    try:
        manager.start()
        serve(manager, host, port, token, share_token, on_ready=ready)
    except KeyboardInterrupt:
        note("stopped")
    finally:
        manager.stop()
