"""weft select."""

from __future__ import annotations

import inspect
from collections import Counter
from typing import Annotated, Any, Optional

import typer

from weft.cli.options import JsonOption, SessionArgument

app = typer.Typer(rich_markup_mode=None, add_completion=False)


def _range_options(command: Any) -> Any:
    """One option for every quantity that can be filtered by."""
    import functools

    from weft.session.selection import QUANTITIES

    @functools.wraps(command)
    def wrapped(**arguments: Any) -> None:
        ranges = {name: arguments.pop(name) for name in QUANTITIES}
        command(**arguments, ranges={name: text for name, text in ranges.items() if text is not None})

    parameters = [
        p.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for p in inspect.signature(command, eval_str=True).parameters.values()
        if p.name != "ranges"
    ]
    for name, quantity in QUANTITIES.items():
        unit = f", {quantity.unit}" if quantity.unit else ""
        option = typer.Option(None, f"--{name}", metavar="LOW:HIGH", help=f"{quantity.description}{unit}.")
        kind = inspect.Parameter.KEYWORD_ONLY
        parameters.append(inspect.Parameter(name, kind, default=option, annotation=Optional[str]))  # noqa: UP045
    wrapped.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {p.name: p.annotation for p in parameters}
    return wrapped


@app.command()
@_range_options
def select(
    session: SessionArgument,
    include: Annotated[list[str] | None, typer.Option(metavar="ITEM", help="Take it in any case.")] = None,
    exclude: Annotated[list[str] | None, typer.Option(metavar="ITEM", help="Never take it.")] = None,
    undecide: Annotated[list[str] | None, typer.Option(metavar="ITEM", help="Ask the ranges again.")] = None,
    reset: Annotated[bool, typer.Option("--reset", help="Forget all ranges and decisions first.")] = False,
    as_json: JsonOption = False,
    ranges: Any = None,
) -> None:
    """Choose micrographs by their metrics or by hand; writes micrographs_selected.star.

    A range is LOW:HIGH, and either may be left out; ":" removes a range. What was chosen before stays.
    """
    import json

    from weft.session.selection import Selection, parse_range
    from weft.session.session import open as open_session

    opened = open_session(session)
    selection = Selection() if reset else opened.selection
    for name, text in ranges.items():
        selection = selection.with_range(name, *parse_range(text))
    for accept, names in ((True, include), (False, exclude), (None, undecide)):
        for name in names or ():
            selection = selection.decide(opened[name].name, accept)
    verdicts = opened.select(selection)
    chosen = [name for name, verdict in verdicts.items() if verdict.selected]
    reasons = Counter(
        reason.split(" ")[0] if "hand" not in reason else reason
        for verdict in verdicts.values()
        if not verdict.selected
        for reason in verdict.reasons
    )
    if as_json:
        left_out = {name: list(v.reasons) for name, v in verdicts.items() if not v.selected}
        typer.echo(json.dumps({"selected": chosen, "left_out": left_out}, indent=1, ensure_ascii=False))
        return
    for name, (low, high) in selection.ranges.items():
        low_text, high_text = ("" if low is None else f"{low:g}"), ("" if high is None else f"{high:g}")
        typer.echo(f"{name} {low_text}:{high_text} leaves out {reasons[name]}")
    typer.echo(f"{len(chosen)} of {len(verdicts)} selected: {opened.root / 'micrographs_selected.star'}")
